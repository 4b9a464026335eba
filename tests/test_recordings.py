"""The labels of real recordings, `data/recordings.csv`: they parse, stay in their vocabularies, and the files exist.

Nobody listened. A label is in the table where the file's name, its note, the heading of its group in the README beside
it, or the published description of the recording says so; an empty field is not known, and a file about which nothing
is certain has no row. The signal was used only to doubt a name, and for the tempo of five loops of whole bars.

* `kind`: music, speech or other. One stroke of a drum or bell, or a few, is none of the three: empty. A note is music.
* `form`: recording; loop; note (a note, a chord or a short figure); hit (one stroke or a few); sound (anything else,
  test tones too).
* `voice`: any human voice, spoken or sung. An animal has none. The label is of the whole file: the song of Karissa
  Hobbs begins without its singer.
* `lead`: a key of `ATTRIBUTES['lead']`; empty too where that has no word, as for an oboe, a bass or singing with words.
* `instruments`: keys of `FAMILIES` below, those that are certain; there may be more, except where the note lists all.
* `drums`: any drum or cymbal. `tempo`: a key of `TEMPO_RANGES`. `seconds`: the length of the file, measured.

Of a recording in two encodings (librosa's `.ogg` and `.hq.ogg`) the plain `.ogg` has the row.
"""
import pandas as pd, pytest, soundfile as sf
from logocentric.core import project_root, shared_path
from logocentric.data.composition import TEMPO_RANGES
from logocentric.data.styles import ATTRIBUTES
from logocentric.data.composition import TEMPO_RANGES

COLUMNS = ['file', 'kind', 'form', 'voice', 'lead', 'instruments', 'drums', 'tempo', 'seconds', 'source']
VALUES = dict(kind=['music', 'speech', 'other', ''], form=['recording', 'loop', 'note', 'hit', 'sound'],
              voice=['yes', 'no', ''], lead=[*ATTRIBUTES['lead'], ''], drums=['yes', 'no', ''],
              tempo=[*TEMPO_RANGES, ''])
GUITARS = ['acoustic_guitar', 'clean_guitar', 'distorted_guitar', 'slide_guitar']
FAMILIES = dict(piano=['piano'], organ=['organ'], guitar=GUITARS, violin=['violin', 'fiddle'], cello=['cello'],
                strings=['strings'], brass=['trumpet'], trumpet=['trumpet'], saxophone=['saxophone'], flute=['flute'],
                voices=['voices'], mallets=['vibraphone', 'marimba'], bells=['bells'], celesta=['bells'], oboe=[],
                bassoon=[], orchestra=[], bass=[*ATTRIBUTES['bass']], drums=[*ATTRIBUTES['drums']],
                hand_drums=['hand_drums'])  # the corpus' nearest words

FOLDER = shared_path() and shared_path()/'data'/'recordings'
real = pytest.mark.skipif(not (FOLDER and FOLDER.is_dir()), reason='the folder of real recordings is not there')

@pytest.fixture(scope='module')
def table(): return pd.read_csv(project_root()/'data'/'recordings.csv', dtype=str, keep_default_na=False)

def test_columns_and_rows(table):
    assert list(table) == COLUMNS and len(table) > 150
    assert table.file.is_unique and table.file.is_monotonic_increasing
    assert not table.file.str.endswith('.hq.ogg').any() and not table.file.str.startswith(('/', '.')).any()
    assert (table.source.str.len() > 2).all() and (table.seconds.astype(float) > 0).all()

@pytest.mark.parametrize('column', VALUES)
def test_values_are_from_the_vocabulary(table, column): assert set(table[column]) <= set(VALUES[column])

def test_every_row_says_something(table):
    assert (table[['kind', 'voice', 'lead', 'instruments', 'drums', 'tempo']] != '').any(axis=1).all()

def test_instruments_are_families_of_the_corpus(table):
    assert {i for row in table.instruments for i in row.split()} == set(FAMILIES)
    assert all(len(set(row.split())) == len(row.split()) for row in table.instruments)
    assert {v for values in FAMILIES.values() for v in values} <= {*ATTRIBUTES['lead'], *ATTRIBUTES['bass'],
                                                                   *ATTRIBUTES['drums']}

def test_labels_agree_with_each_other(table):
    for row in table.itertuples():
        played = row.instruments.split()
        if row.lead: assert row.lead in {v for i in played for v in FAMILIES[i]}, row.file
        if played: assert ('drums' in played or 'hand_drums' in played) == (row.drums == 'yes'), row.file
        if 'voices' in played or row.kind == 'speech': assert row.voice == 'yes', row.file
        if row.kind in ('speech', 'other'): assert not (row.lead or row.instruments or row.tempo), row.file
        if row.kind in ('speech', 'other'): assert row.drums != 'yes', row.file
        assert (row.form == 'hit') <= (row.kind == '') and (row.form == 'note') <= (row.kind == 'music'), row.file

HUNGARIAN = 'librosa/Hungarian_Dance_number_5_-_Allegro_in_F_sharp_minor_(string_orchestra).ogg'
KNOWN = {
    'librosa/198-209-0000.ogg': dict(kind='speech', voice='yes', lead='', drums='no'),
    'librosa/sorohanro_-_solo-trumpet-06.ogg': dict(kind='music', lead='trumpet', drums='no',
                                                    tempo='moderate'),                  # 90 bpm, says the note
    HUNGARIAN: dict(kind='music', lead='strings', tempo=''),                            # its tempo changes
    'librosa/pibble.ogg': dict(kind='other', voice='no'),
    'incompetech/Gold Rush.mp3': dict(kind='music', lead='piano', voice='no', drums='no'),
    'smstools/oboe-A4.wav': dict(kind='music', form='note', lead='', instruments='oboe'),
    'smstools/soprano-E4.wav': dict(voice='yes', lead='voices'),
    'sonicpi/bd_808.flac': dict(kind='', form='hit', drums='yes'),
    'sonicpi/loop_amen.flac': dict(kind='music', form='loop', drums='yes', tempo='')}   # 137 bpm: between two classes

@pytest.mark.parametrize('file, labels', KNOWN.items())
def test_by_hand(table, file, labels): assert table.set_index('file').loc[file, list(labels)].to_dict() == labels

def length(file):
    "Seconds. The length in an mp3's header is an estimate."
    info = sf.info(FOLDER/file)
    return (len(sf.read(FOLDER/file)[0]) if info.format == 'MP3' else info.frames)/info.samplerate

@real
def test_files_exist_with_their_length(table):
    for row in table.itertuples():
        assert (FOLDER/row.file).is_file(), row.file
        assert abs(length(row.file) - float(row.seconds)) < .01, row.file

BEATS = dict(loop_breakbeat=4, arovane_beat_a=32, arovane_beat_b=32, arovane_beat_c=16, arovane_beat_e=24)

@real
@pytest.mark.parametrize('file, beats', BEATS.items())
def test_measured_tempo(table, file, beats):
    row = table.set_index('file').loc[f'sonicpi/{file}.flac']
    bpm = 60*beats/sf.info(FOLDER/'sonicpi'/f'{file}.flac').duration
    assert abs(bpm - round(bpm)) < .1 and TEMPO_RANGES[row.tempo][0] <= bpm <= TEMPO_RANGES[row.tempo][1]
