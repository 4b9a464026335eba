"The data-set doctor: each kind of finding is found, and a healthy file is not accused."
import json, os, signal
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf
from typer.testing import CliRunner
from logocentric.cli import app
from logocentric.audio.decoding import Decoded, load_audio
from logocentric.audio.formats import AudioError
from logocentric.data import doctor
from logocentric.data.datasets import DATASETS, read_dataset
from logocentric.data.doctor import (FINDING_KINDS, KNOWN_FAULTS, clipped_samples, decibels, diagnose, examine,
                                     examine_all, folder_manifest, majority_value)
from logocentric.data.lists import AUDIO_SUFFIXES, DataError, read_skip_list, write_skip_list
from logocentric.data.tables import read_table
from miniatures import real, shared


RATE = 16_000


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    "The cache of each test is its own."
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path_factory.mktemp('home')))


def wave(seconds=2., seed=0):
    t = np.arange(int(seconds*RATE))/RATE
    return .3*np.sin(2*np.pi*(300 + 10*seed)*t) + np.random.default_rng(seed).normal(0, .02, len(t))


def put(path, samples=None, rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = wave() if samples is None else samples
    sf.write(path, (32767*np.clip(samples, -1, 1)).astype(np.int16), rate, **kwargs)
    return path


def kinds(folder, **kwargs):
    "Kind and id of every finding."
    return sorted(diagnose(folder, processes=0, **kwargs).findings[['kind', 'id']].itertuples(index=False, name=None))


# --- one file

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3', '.au', '.aiff'])
def test_a_healthy_file_is_not_accused(tmp_path, suffix):
    for n in range(3): put(tmp_path/f'{n}{suffix}', wave(seed=n))
    found = diagnose(tmp_path, processes=0)
    assert not len(found.findings) and found.skip_list() == {} and 'nothing to leave out' in repr(found)
    assert found.examined['seconds'].tolist() == pytest.approx([2]*3, abs=.1) and set(found.examined['rate']) == {RATE}


def test_measures_against_the_whole_file(tmp_path):
    "Blocks of 65,536 frames, and numpy on all of it at once."
    left, right = wave(10, 1), .5*wave(10, 2)
    path = put(tmp_path/'a.wav', np.stack([left, right], 1))
    seen, x = examine(path), sf.read(path)[0]
    assert (seen.channels, seen.seconds, seen.error) == (2, 10, '')
    x = x.mean(1) # what is heard
    assert seen.peak == pytest.approx((x.max() - x.min())/2, rel=1e-6)
    assert seen.rms == pytest.approx(np.sqrt(np.mean(x**2)), rel=1e-4)


@pytest.mark.parametrize('runs, expected', [([1], 0), ([2], 0), ([3], 3), ([7, 2, 4], 11), ([], 0)])
def test_clipped_are_runs_of_three(runs, expected):
    x = np.concatenate([np.r_[np.zeros(4), sign*np.ones(n)] for n, sign in zip(runs, [1, -1, 1])] + [np.zeros(2)])
    assert clipped_samples(x[:, None]) == expected == clipped_samples(np.stack([0*x, x], 1))
    assert clipped_samples(np.ones((2, 1))) == 0


def test_usual_and_decibels():
    assert majority_value([1, 1, 1, 1, 2]) == 1
    assert all(majority_value(values) is None for values in ([1, 1, 1, 2, 2], [1]*4, []))
    assert (decibels(1), decibels(.1), decibels(0)) == (0, -20, -200)


# --- what can be wrong with a file

def cut(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[:int(len(raw)*share)])


def test_broken_files(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '') # and no ffmpeg
    put(tmp_path/'good.wav', wave(seed=1))
    (tmp_path/'empty.wav').touch()
    (tmp_path/'page.wav').write_text('<html>not found</html>')
    put(tmp_path/'none.wav', np.zeros(0))
    for n, suffix in enumerate(('.wav', '.mp3', '.flac')): cut(put(tmp_path/f'cut{suffix}', wave(8, 3 + n)), .5)
    sf.write(tmp_path/'nan.wav', np.full(RATE, np.nan, np.float32), RATE, subtype='FLOAT')
    (tmp_path/'a.m4a').write_bytes(b'\0\0\0\x20ftypM4A ' + b'\0'*100)
    found = diagnose(tmp_path, processes=0)
    assert kinds(tmp_path) == [('truncated', 'cut.flac'), ('truncated', 'cut.mp3'), ('truncated', 'cut.wav')] + [
        ('unreadable', n) for n in ('a.m4a', 'empty.wav', 'nan.wav', 'none.wav', 'page.wav')]
    said = found.findings.set_index('id')['message']
    assert 'the header promises 8.0 s, and only 4.0 s' in said['cut.wav'] and 'NaN' in said['nan.wav']
    assert 'ffmpeg' in said['a.m4a'] and 'empty' in said['empty.wav']
    assert set(found.skip_list()) == set(said.index) and len(found.manifest.skip(found.skip_list())) == 1


def test_an_mp3_of_unstated_length_is_found_by_the_others(tmp_path):
    "Without a length in its header an MP3 cut short is whole for its decoder."
    for n in range(6): put(tmp_path/f'{n}.mp3', wave(4, n), format='MP3')
    raw = bytearray((tmp_path/'3.mp3').read_bytes())
    for tag in (b'Xing', b'Info'): raw = raw.replace(tag, b'\0'*4)
    (tmp_path/'3.mp3').write_bytes(raw[:len(raw)//2])
    (found,) = diagnose(tmp_path, processes=0).findings.to_dict('records')
    assert (found['kind'], found['id'], found['severity']) == ('short', '3.mp3', 'problem')
    assert '4.0 s expected by the length of the other clips' in found['message']


def test_silence_clipping_names_and_formats(tmp_path):
    for n in range(8): put(tmp_path/f'{n}.wav', wave(seed=n))
    for name, samples in dict(zero=0*wave(), hush=wave()*1e-3, constant=0*wave() + .3).items():
        put(tmp_path/f'{name}.wav', samples)
    put(tmp_path/'loud.wav', 9*wave(seed=20))
    put(tmp_path/'b.mp3', wave(seed=21)).rename(tmp_path/'mp3.wav')
    put(tmp_path/'fast.wav', wave(4, seed=22), 2*RATE)
    found = diagnose(tmp_path, processes=0)
    silent = ['constant.wav', 'hush.wav', 'zero.wav']
    assert kinds(tmp_path) == [('clipped', 'loud.wav'), ('format', 'fast.wav'), ('misnamed', 'mp3.wav'),
                               *(('silent', name) for name in silent)]
    assert set(found.skip_list()) == {*silent} and set(found.skip_list(['clipped'])) == {*silent, 'loud.wav'}
    assert '32000 Hz' in found.findings.set_index('id')['message']['fast.wav'] and len(found.problems) == 3


def test_a_damaged_frame_is_a_note(tmp_path):
    path = put(tmp_path/'a.mp3', wave(10), format='MP3', subtype='MPEG_LAYER_III', compression_level=0.)
    raw = bytearray(path.read_bytes())
    raw[len(raw)//2:len(raw)//2 + 600] = b'x'*600
    path.write_bytes(raw)
    assert kinds(tmp_path) == [('damaged', 'a.mp3')] and diagnose(tmp_path, processes=0).skip_list() == {}


def test_the_doctor_says_what_the_decoder_says(tmp_path):
    "Of every kind of file: the same length, or the same refusal."
    mono = wave(4)
    for suffix in ('wav', 'flac', 'ogg', 'mp3', 'aiff', 'au', 'caf', 'w64'):
        put(tmp_path/f'a.{suffix}', mono)
        (tmp_path/f'joined.{suffix}').write_bytes(2*(tmp_path/f'a.{suffix}').read_bytes())
        cut(put(tmp_path/f'cut.{suffix}', mono), .6)
    put(tmp_path/'gsm.wav', mono, 8_000, subtype='GSM610')
    put(tmp_path/'slow.wav', mono, 1)
    sf.write(tmp_path/'loud.wav', 1e4*mono, RATE, subtype='FLOAT')
    (tmp_path/'page.wav').write_text('<html>')
    for path in sorted(tmp_path.iterdir()):
        seen, found = examine(path), Decoded()
        try: samples = len(load_audio(path, found=found))
        except AudioError as e: assert seen.error == e.reason; continue
        assert (seen.error, seen.seconds) == ('', found.seconds) and abs(samples - RATE*seen.seconds) < 2, path
    assert examine(tmp_path/'gsm.wav').seconds == pytest.approx(8, abs=.1)
    assert examine(tmp_path/'joined.mp3').seconds == pytest.approx(8)


def test_silence_and_identity_are_those_of_what_is_heard(tmp_path):
    "Two recordings with opposite channels: nothing is heard of either, and they are no copies of each other."
    for n in range(2):
        x = wave(2, n)
        put(tmp_path/f'opposite{n}.wav', np.stack([x, -x], 1))
        put(tmp_path/f'nearly{n}.wav', np.stack([x, -.95*x], 1))
    found = diagnose(tmp_path, processes=0).findings
    assert sorted(found[['kind', 'id']].itertuples(index=False, name=None)) == [
        ('odd', 'nearly0.wav'), ('odd', 'nearly1.wav'), ('odd', 'opposite0.wav'), ('odd', 'opposite1.wav'),
        ('silent', 'opposite0.wav'), ('silent', 'opposite1.wav')]
    assert all('its channels cancel' in said for said in found[found['kind'] == 'odd']['message'])


def test_a_sound_of_another_format_than_its_name_says_is_misnamed(tmp_path):
    for n in range(2): put(tmp_path/f'{n}.wav', wave(2, n))
    (tmp_path/'1.wav').rename(tmp_path/'1.m4a')
    assert kinds(tmp_path) == [('misnamed', '1.m4a')] and examine(tmp_path/'1.m4a').seconds == 2


# --- the same sound

def test_duplicates_across_names_formats_and_channels(tmp_path):
    mono = wave(seed=1)
    for name in ('a.wav', 'a.flac', 'lossy.mp3'): put(tmp_path/name, mono)
    put(tmp_path/'sub/stereo.aiff', np.stack([mono, mono], 1))
    put(tmp_path/'other.wav', wave(seed=2))
    put(tmp_path/'slower.wav', mono, RATE//2)
    found = [k for k in kinds(tmp_path) if k[0] != 'short'] # copies of a.flac; lossy and slower copies are not found
    assert found == [('duplicate', 'a.wav'), ('duplicate', 'sub/stereo.aiff')]


def test_a_leak_is_closed_by_taking_clips_out_of_training(tmp_path):
    for path, seed in {'train/a.wav': 1, 'test/b.flac': 1, 'valid/c.wav': 1, 'train/d.wav': 2}.items():
        put(tmp_path/path, wave(seed=seed))
    found = diagnose(tmp_path, processes=0)
    assert kinds(tmp_path) == [('leak', 'train/a.wav'), ('leak', 'valid/c.wav')]
    assert 'the same sound as test/b.flac in test, and this one is in train' in found.findings['message'].tolist()
    assert found.skip_list() == {} and set(found.skip_list(['leak'])) == {'train/a.wav', 'valid/c.wav'}


def test_a_table_of_ones_own(tmp_path):
    "Lengths by the list, other labels for the same sound, two clips of one file, and a class in a name."
    for path, seed in {'jazz/jazz.1': 1, 'rock/rock.1': 1, 'rock/jazz.2': 2, 'rock/stray': 3}.items():
        put(tmp_path/f'{path}.wav', wave(seed=seed))
    rows = [('jazz/jazz.1.wav', 'jazz', 'j', 0, 1), ('jazz/jazz.1.wav', 'jazz', 'j2', 1, 1),
            ('rock/rock.1.wav', 'rock', 'r', 0, 5), ('rock/jazz.2.wav', 'rock', 'x', 0, 2),
            ('no.wav', 'jazz', 'n', 0, 2)]
    pd.DataFrame(rows, columns=['path', 'label', 'id', 'start', 'duration']).to_csv(tmp_path/'list.csv', index=False)
    manifest = read_table(tmp_path/'list.csv')
    found = diagnose(manifest, processes=0)
    assert kinds(manifest) == [('duplicate', 'r'), ('misplaced', 'x'), ('missing', 'n'), ('short', 'r'),
                               ('unlisted', 'rock/stray')]
    said = found.findings.set_index('kind')['message']
    assert '2.0 s found, 5.0 s expected by the list' in said['short'] and 'with other labels' in said['duplicate']
    assert 'says jazz, its folder rock' in said['misplaced']
    assert len(found.examined) == 3  # files, each decoded once


# --- published sets

def gtzan(folder):
    for n, genre in enumerate(['blues', 'jazz', 'hiphop', 'reggae']):
        put(folder/f'genres/{genre}/{genre}.00000.wav', wave(seed=n))
    return folder


def test_known_broken_here_and_absent(tmp_path):
    (gtzan(tmp_path)/'genres/jazz/jazz.00054.wav').write_bytes(b'RIFF')
    found = diagnose(tmp_path, processes=0)
    row, = found.findings[found.findings['id'] == 'jazz.00054'].to_dict('records')
    assert (row['kind'], row['known']) == ('unreadable', KNOWN_FAULTS['gtzan']['jazz.00054'])
    assert 'known: ' in found.skip_list()['jazz.00054']
    (tmp_path/'genres/jazz/jazz.00054.wav').unlink()
    found = diagnose(tmp_path, processes=0)
    assert found.findings[found.findings['known'] != ''][['kind', 'id']].values.tolist() == [['missing', 'jazz.00054']]
    assert found.summary().loc['missing', 'known'] == 1 and found.summary().loc['missing', 'clips'] == 996
    put(tmp_path/'genres/jazz/jazz.00054.wav', wave(seed=9))
    assert ('known', 'jazz.00054') in kinds(tmp_path)


def test_a_clip_in_the_wrong_folder(tmp_path):
    put(gtzan(tmp_path)/'genres/blues/jazz.00012.wav', wave(seed=8))
    found = [k for k in kinds(tmp_path) if k[0] != 'missing']
    assert found == [('misplaced', 'genres/blues/jazz.00012'), ('unlisted', 'genres/blues/jazz.00012')]


def test_known_clips_are_clips_of_their_sets():
    assert set(KNOWN_FAULTS) <= set(DATASETS) and all(len(i) == 6 and i.isdigit() for i in KNOWN_FAULTS['fma_small'])


def test_loaders_honour_the_skip_list(tmp_path):
    put(gtzan(tmp_path)/'genres/jazz/jazz.00001.wav', 0*wave())
    found = diagnose(tmp_path, processes=0)
    for name in ('skip.csv', 'skip.json'):
        path = write_skip_list(tmp_path/name, found.skip_list())
        left = read_dataset('gtzan', tmp_path, skip=path).require()
        assert len(left) == 4 and len(left.skipped) == 996
        assert left.hash == found.report()['hash_after'] != found.manifest.hash
    again = diagnose(left, processes=0)
    assert not len(again.problems) and again.skip_list() == read_skip_list(path)


# --- many files, killed runs

NAMES = ['-rf.wav', 'Café – 音.wav', 'two words.flac', "it's.wav", '.hidden.wav']

def test_names_of_every_kind(tmp_path):
    for n, name in enumerate(NAMES): put(tmp_path/'Ordner ü'/name, wave(seed=n))
    found = diagnose(tmp_path, processes=0)
    assert len(found.examined) == 4 and not len(found.findings)
    assert diagnose(tmp_path, processes=0).measured == 0


def count_calls(monkeypatch, stop_at=None):
    calls, measure = [], doctor.examine
    def counted(path):
        calls.append(path)
        if len(calls) == stop_at: raise KeyboardInterrupt
        return measure(path)
    monkeypatch.setattr(doctor, 'examine', counted)
    return calls


def test_a_second_run_decodes_nothing_and_a_changed_file_again(tmp_path, monkeypatch):
    for n in range(5): put(tmp_path/f'{n}.wav', wave(seed=n))
    first, calls = diagnose(tmp_path, processes=0), count_calls(monkeypatch)
    assert diagnose(tmp_path, processes=0).findings.equals(first.findings) and calls == []
    put(tmp_path/'2.wav', 0*wave())
    os.utime(tmp_path/'2.wav', ns=(0, 1))
    again = diagnose(tmp_path, processes=0)
    assert [Path(c).name for c in calls] == ['2.wav'] and again.measured == 1
    assert again.findings['kind'].tolist() == ['silent']


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    for n in range(20): put(tmp_path/f'{n:02}.wav', wave(.2, n))
    with monkeypatch.context() as m:
        count_calls(m, stop_at=18)
        with pytest.raises(KeyboardInterrupt): diagnose(tmp_path, processes=0)
    (cache,) = Path(os.environ['LOGOCENTRIC_HOME']).rglob('*.jsonl')
    with open(cache, 'a') as f: f.write('{"path": "half')
    calls = count_calls(monkeypatch)
    assert diagnose(tmp_path, processes=0).measured == len(calls) == 4  # two chunks of eight were finished
    assert diagnose(tmp_path, processes=0).measured == 0


def _deadly(paths):
    "A decoder that takes its process with it."
    if any('deadly' in p for p in paths): os.kill(os.getpid(), signal.SIGKILL)
    return [examine(p) for p in paths]


def test_a_crash_costs_one_file(tmp_path):
    paths = [put(tmp_path/f'{n:02}{"deadly"*(n == 5)}.wav', wave(.2, n)) for n in range(20)]
    seen, measured = examine_all(paths, tmp_path/'cache.jsonl', processes=2, work=_deadly)
    errors = ['the decoder crashed on it' if n == 5 else '' for n in range(20)]
    assert measured == 20 and [s.error for s in seen] == errors
    assert examine_all(paths, tmp_path/'cache.jsonl', processes=2) == (seen, 0)


def test_processes_agree_with_one(tmp_path):
    paths = [put(tmp_path/f'{n}.flac', wave(.2, n)) for n in range(9)]
    one, none = [examine_all(paths, tmp_path/f'{n}.jsonl', processes=n)[0] for n in (1, 0)]
    assert one == none


# --- reports and refusals

def test_the_report_is_json_and_no_file_is_touched(tmp_path):
    (gtzan(tmp_path)/'genres/jazz/jazz.00001.wav').touch()
    state = lambda: {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob('*') if p.is_file()}
    before = state()
    report = json.loads(json.dumps(diagnose(tmp_path, processes=0).report(), allow_nan=False))
    assert report['counts'] == dict(missing=995, unreadable=1)
    assert report['examined'] == 5 and len(report['leave_out']) == 996 and state() == before


def command(folder, *options): return CliRunner().invoke(app, ['doctor', str(folder), '--processes', '0', *options])

def incomplete(n):
    return (f'next: {n} of the 2,000 clips that the publisher counts are listed; complete the set, '
            f'or go on with these: manifest.require({n})')

def test_the_command_on_a_set_of_another_size(tmp_path):
    "The last line counts listed and skipped clips against the publisher's; a set listed whole has no such line."
    put(tmp_path/'esc/audio/1-1-A-0.wav'), put(tmp_path/'esc/audio/1-2-A-0.wav', wave(seed=1))
    (tmp_path/'esc/meta').mkdir()
    (tmp_path/'esc/meta/esc50.csv').write_text('filename,fold,target,category,esc10\n1-1-A-0.wav,1,0,dog,True\n'
                                               '1-2-A-0.wav,1,0,dog,True\n')
    skip = write_skip_list(tmp_path/'skip.csv', {'1-2-A-0': 'x'})
    said = [command(tmp_path/'esc', *options).output for options in ((), ('--skip', str(skip)))]
    assert all(s.rstrip().endswith(incomplete(2)) for s in said)
    whole = command(gtzan(tmp_path/'gtzan'))
    assert whole.exit_code == 1 and 'the publisher counts' not in whole.output
    assert 'writes down the 996 clips to leave out' in whole.output


def test_refusals(tmp_path):
    with pytest.raises(DataError, match='no sound files'): diagnose(tmp_path)
    with pytest.raises(DataError, match='no folder'): diagnose(tmp_path/'no')
    put(tmp_path/'a.wav')
    with pytest.raises(DataError, match='no kind of finding dull'): diagnose(tmp_path, processes=0).skip_list(['dull'])
    assert {k.severity for k in FINDING_KINDS.values()} == {'out', 'problem', 'note'}
    assert set(doctor.SUFFIX_FORMATS) <= set(AUDIO_SUFFIXES)
    assert folder_manifest(tmp_path).name == tmp_path.name


# --- real recordings

@real('esc10')
def test_esc10_is_healthy():
    found = diagnose(shared('esc10'), processes=0)
    assert len(found.examined) == 240 and not len(found.findings)


@real('esc10')
def test_the_command_says_how_many_clips_the_publisher_counts():
    "Healthy files and half a set: `require` refuses, and so the command does not say that there is nothing to do."
    said = command(shared('esc10'))
    assert said.exit_code == 0 and said.output.rstrip().endswith(incomplete(240))
    manifest = read_dataset('esc50', shared('esc10'))
    assert manifest.require(240) is manifest


@real('recordings', 'incompetech')
def test_a_real_damaged_frame_is_a_note():
    found = diagnose(shared('recordings', 'incompetech'), processes=0)
    assert not len(found.problems)
    assert found.findings[found.findings['kind'] == 'damaged']['id'].tolist() == ['Krampus Workshop.mp3']


def test_what_vanishes_dangles_or_is_closed_costs_its_own_line(tmp_path, monkeypatch):
    folder = tmp_path/'sounds'
    folder.mkdir()
    sf.write(folder/'good.wav', .1*np.sin(np.arange(8000)), 8000)
    (folder/'dangling.wav').symlink_to(tmp_path/'nowhere.wav')
    (folder/'locked').mkdir()
    found = doctor.walk_sounds(folder)
    monkeypatch.setattr(doctor, 'walk_sounds', lambda folder: found._replace(closed=['locked']))
    findings = diagnose(folder, processes=0).findings.set_index('path')
    assert findings.loc['dangling.wav', 'message'] == 'no such file'
    assert findings.loc['locked', 'kind'] == 'unreadable' and 'good.wav' not in findings.index
