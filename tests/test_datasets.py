"Data sets from their published layouts: miniatures of every set with every trap we know of, real lists where they lie beside the checkout."
import hashlib, json, re
from importlib.util import find_spec
from pathlib import Path
from unicodedata import normalize
import numpy as np, pandas as pd, pytest
from logocentric.data import arrow_folders as datasets
from logocentric.core import LogocentricError, shared_path
from logocentric.data.datasets import DATASETS, dataset_table, identify, read_dataset
from logocentric.data.lists import (DataError, audio_index, audio_stem, read_rows, read_skip_list, write_skip_list,
                                    youtube_names)
from logocentric.data.class_sets import GTZAN_GENRES
from logocentric.data.manifests import Manifest, manifest_hash
from logocentric.data.tables import read_table

real = lambda *parts: pytest.mark.skipif(not (shared_path() and shared_path().joinpath('data', *parts).exists()), reason=f"shared data {'/'.join(parts)} is not there")
shared = lambda *parts: shared_path().joinpath('data', *parts)


def put(path, text='sound', encoding='utf-8'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding, newline='')
    return path


JAMENDO = 'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n'
CLOTHO = 'file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n'
FMA = (',set,set,track,track\n,split,subset,genre_top,title\ntrack_id,,,,\n2,training,small,Hip-Hop,"a\nb, c"\n5,test,small,Rock,c\n7,validation,small,Folk,\n'
       '9,training,medium,Rock,d\n11,training,large,,e\n')

MINI = dict(
    gtzan={'genres_original/blues/blues.00000.wav': '', 'genres_original/hiphop/hiphop.00099.au': '', 'genres_original/jazz/._jazz.00001.wav': ''},
    fma_small={'fma_metadata/tracks.csv': FMA, 'fma_small/000/000002.mp3': '', 'fma_small/000/000005.mp3': ''},
    audioset={'class_labels_indices.csv': 'index,mid,display_name\n0,/m/1,"Speech"\n1,/m/2,"Male speech, man speaking"\n',
              'eval_segments.csv': '# Segments csv created\n# num_ytids=2, num_segs=2, num_unique_labels=2\n# YTID, start_seconds, end_seconds, positive_labels\n'
                                   '--aaaaaaaaa, 30.000, 40.000, "/m/1,/m/2"\nYbbbbbbbbbb, 0.000, 10.000, "/m/1"\n', 'wavs/a/Y--aaaaaaaaa.flac': ''},
    esc50={'meta/esc50.csv': 'filename,fold,target,category,esc10,src_file,take\n1-1-A-12.wav,1,12,crackling_fire,True,1,A\n2-2-A-7.wav,2,7,rooster,False,2,A\n',
           'audio/1-1-A-12.ogg': ''},
    fsd50k={'FSD50K.ground_truth/dev.csv': 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/a,/m/b",train\n1,Accelerating_and_revving_and_vroom,/m/c,val\n',
            'FSD50K.ground_truth/eval.csv': 'fname,labels,mids\n37199,Keyboard_(musical),/m/d\n', 'FSD50K.dev_audio/64760.wav': '',
            'FSD50K.ground_truth/vocabulary.csv': '0,Electric_guitar,/m/a\n1,Guitar,/m/b\n2,Accelerating_and_revving_and_vroom,/m/c\n3,Keyboard_(musical),/m/d\n'},
    openmic2018={'openmic-2018-aggregated-labels.csv': 'sample_key,instrument,relevance,num_responses\n000046_3840,flute,0.1,3\n000046_3840,mallet_percussion,0.5,3\n',
                 'class-map.json': '{"drums": 0, "flute": 1, "mallet_percussion": 2}', 'partitions/split01_train.csv': '000046_3840\n',
                 'partitions/split01_test.csv': '000178_3840\n', 'audio/000/000046_3840.ogg': ''},
    magnatagatune={'annotations_final.csv': '"clip_id"\t"no voice"\t"harp"\t"mp3_path"\n"2"\t"1"\t"1"\t"f/a.mp3"\n"6"\t"0"\t"1"\t"c/b.mp3"\n"8"\t"0"\t"0"\t"0/c.mp3"\n',
                   'mp3/f/a.mp3': '', '0/c.mp3': ''},
    mtg_jamendo={**{f'data/splits/split-{k}/autotagging_moodtheme-{p}.tsv': JAMENDO + row for k in (0, 1) for p, row in dict(
                    train='track_1\ta\tb\t48/948.mp3\t212.7\tmood/theme---calm\tmood/theme---dark\tmood/theme---deep\n', validation='track_2\ta\tb\t1/1.mp3\t2\tmood/theme---calm\n',
                    test='track_3\ta\tb\t2/2.mp3\t2\tmood/theme---calm\n').items()},
                 'data/autotagging_moodtheme.tsv': JAMENDO + ''.join(f'track_{i}\ta\tb\t1/1.mp3\t2\tmood/theme---rare\n' for i in (1, 2, 3, 4)),
                 'audio/48/948.low.mp3': '', 'audios/1/1.mp3': ''},
    musiccaps={'musiccaps-public.csv': 'ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n'
                                       '-0Gj8-vB1q4,30,40,"/m/1,/m/2","[\'sad\', \\"rock \'n\' roll\\"]".,"x",4,False,True\n'.replace('\\"', '""').replace('".,', '",')
                                       + '1e10aaaaaaa,0,10,/m/1,[],plain,4,False,False\n', 'wav/[-0Gj8-vB1q4]-[30-40].wav': ''},
    song_describer={'song_describer.csv': 'caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n'
                                          '1,1004034,calm,True,0,1,2,34/1004034.mp3,202.5\n2,1004034,"slow, sad",,0,1,2,34/1004034.mp3,202.5\n3,200,odd,False,0,1,2,00/200.mp3,60\n',
                    'audio/34/1004034.2min.mp3': ''},
    clotho={'clotho_captions_development.csv': CLOTHO + '"Café, inside.wav",a,b,c,d,"e, f"\n', 'clotho_captions_evaluation.csv': CLOTHO + '"Café, inside.wav",g,h,i,j,k\n',
            'development/Cafe\u0301, inside.wav': ''},
    audiocaps={'dataset/train.csv': 'audiocap_id,youtube_id,start_time,caption\n1,abc,30,"A man, far"\n', 'dataset/test.csv':
               'audiocap_id,youtube_id,start_time,caption\n2,-ab,0,A dog barks\n3,-ab,0,"Barking, near"\n', 'audio/-ab_0_10.wav': ''})


def mini(tmp_path, name):
    for path, text in MINI[name].items(): put(tmp_path/name/path, text or 'sound')
    return tmp_path/name


def row(manifest, id):
    found = manifest.table[manifest.table.id == id]
    assert len(found) == 1, list(manifest.table.id)
    return found.iloc[0]


# --- every set

def test_every_set_has_a_miniature_and_says_what_it_is():
    assert set(MINI) == set(DATASETS)
    for info in DATASETS.values():
        assert callable(info.list_clips) and info.page.startswith('http') and info.licence and info.tree and info.verified and info.clips
    assert list(dataset_table().index) == list(DATASETS)


#           clips, there, by split
COUNTS = dict(gtzan=(1000, 2, {'': 1000}), fma_small=(3, 2, dict(train=1, validation=1, test=1)), audioset=(2, 1, dict(evaluation=2)), esc50=(2, 1, {'1': 1, '2': 1}),
              fsd50k=(3, 1, dict(train=1, validation=1, test=1)), openmic2018=(1, 1, dict(train=1)), magnatagatune=(3, 2, dict(train=1, validation=1, test=1)),
              mtg_jamendo=(3, 2, dict(train=1, validation=1, test=1)), musiccaps=(2, 1, dict(train=1, test=1)), song_describer=(2, 1, dict(test=2)),
              clotho=(2, 1, dict(train=1, test=1)), audiocaps=(2, 1, dict(train=1, test=1)))

@pytest.mark.parametrize('name', MINI)
def test_counts_of_clips_and_sounds(tmp_path, name):
    manifest = read_dataset(name, mini(tmp_path, name))
    clips, there, splits = COUNTS[name]
    assert (len(manifest), int((~manifest.table.missing).sum()), manifest.table['split'].value_counts().to_dict()) == (clips, there, splits)
    assert [p.is_file() for p in manifest.paths] == (~manifest.table.missing).tolist()
    assert manifest.table.id.is_unique and manifest.name == name and manifest.source == DATASETS[name].page
    assert f'{there:,} of {clips:,} clips are there' in repr(manifest)


@pytest.mark.parametrize('name', MINI)
def test_identify_here_and_below(tmp_path, name):
    folder = mini(tmp_path, name)
    assert identify(folder) == identify(tmp_path) == name
    assert manifest_hash(read_dataset(name, tmp_path).table) == manifest_hash(read_dataset(name, folder).table)


@pytest.mark.parametrize('name', MINI)
def test_the_wrong_folder_is_told_what_it_is(tmp_path, name):
    other = 'esc50' if name != 'esc50' else 'musiccaps'
    folder = mini(tmp_path, other)
    with pytest.raises(DataError) as error: read_dataset(name, folder)
    message = str(error.value)
    assert f'no folder of {DATASETS[name].title}' in message and DATASETS[name].tree in message and f'looks like {DATASETS[other].title}' in message


@pytest.mark.parametrize('name', MINI)
def test_half_extracted(tmp_path, name):
    "The lists are there, the sound is not: all rows are kept and flagged, and nothing is computed on them."
    folder = mini(tmp_path, name)
    for path in audio_index(folder).paths.values(): (folder/path).unlink()
    manifest = read_dataset(name, folder)
    assert len(manifest) == COUNTS[name][0] and manifest.table.missing.all()
    with pytest.raises(DataError, match=r'0 of [\d,]+ clips are there. Not one is: was the archive unpacked\? Expected e\.g\. '): manifest.require()


LISTS = [(name, path) for name, files in MINI.items() for path, text in files.items() if path.endswith(('.csv', '.tsv')) and text
         and not any(p in path for p in ('partitions', 'vocabulary', 'split-1'))]
HEADED = [(name, path) for name, path in LISTS if path != 'eval_segments.csv']

@pytest.mark.parametrize('name, path', HEADED)
def test_absent_columns(tmp_path, name, path):
    "The first line, where the columns are named, is replaced: no list is read by position in silence."
    folder = mini(tmp_path, name)
    lines, sep = MINI[name][path].split('\n'), '\t' if '\t' in MINI[name][path] else ','
    keep = {'magnatagatune': 'mp3_path', 'audiocaps': 'audiocap_id'}.get(name, 'other')
    lines[0] = sep.join([keep] + [f'column{i}' for i in range(lines[0].count(sep))])
    put(folder/path, '\n'.join(lines))
    with pytest.raises(DataError, match=r'has no column .*: expected .*, found .*column0'): read_dataset(name, folder)


@pytest.mark.parametrize('name, path, row', [
    ('esc50', 'meta/esc50.csv', '1-1-A-12.wav,1,12,crackling_fire,True,1,A\n'), ('musiccaps', 'musiccaps-public.csv', '1e10aaaaaaa,0,10,/m/1,[],plain,4,False,False\n'),
    ('audioset', 'eval_segments.csv', 'Ybbbbbbbbbb, 0.000, 10.000, "/m/1"\n'), ('fsd50k', 'FSD50K.ground_truth/eval.csv', '37199,Keyboard_(musical),/m/d\n')])
def test_a_row_that_is_repeated_is_counted_and_kept_once(tmp_path, name, path, row):
    folder = mini(tmp_path, name)
    before = read_dataset(name, folder)
    put(folder/path, MINI[name][path] + row)
    manifest = read_dataset(name, folder)
    assert len(manifest) == len(before) and manifest.hash == before.hash
    assert manifest.notes['rows listed twice'] == 1 and 'rows listed twice: 1' in repr(manifest)


@pytest.mark.parametrize('name, path, row, what', [
    ('esc50', 'meta/esc50.csv', '1-1-A-12.wav,3,12,crackling_fire,True,1,A\n', 'split'), ('fsd50k', 'FSD50K.ground_truth/eval.csv', '64760,Guitar,/m/b\n', 'labels'),
    ('musiccaps', 'musiccaps-public.csv', '1e10aaaaaaa,0,10,/m/1,[],other,4,False,False\n', 'texts'), ('audioset', 'class_labels_indices.csv', '2,/m/2,"Chant"\n', 'names'),
    ('openmic2018', 'openmic-2018-aggregated-labels.csv', '000046_3840,flute,0.9,3\n', 'relevance of flute: 0.1 and 0.9')])
def test_a_row_that_contradicts_another_is_refused(tmp_path, name, path, row, what):
    folder = mini(tmp_path, name)
    put(folder/path, MINI[name][path] + row)
    with pytest.raises(DataError, match=f'is listed twice with different .*{what}'): read_dataset(name, folder)


# A clip of each miniature whose list holds a name. GTZAN's names and FMA's numbers are ours: no list can bring others.
NAMED = dict(audioset='--aaaaaaaaa', esc50='1-1-A-12', fsd50k='64760', openmic2018='000046_3840', magnatagatune='a', mtg_jamendo='948', musiccaps='-0Gj8-vB1q4',
             song_describer='1004034', clotho='Café, inside', audiocaps='-ab')
HOW = dict(magnatagatune='f/{}.mp3', mtg_jamendo='48/{}.mp3', song_describer='34/{}.mp3')  # where the list has a path, and the id apart from it

def renamed(tmp_path, name, listed, stored):
    "A miniature whose list calls one clip by another name, and whose disk does."
    old, how = NAMED[name], HOW.get(name, '{}')
    for path, text in MINI[name].items():
        place, _, file = path.rpartition('/')
        if path.endswith(('.csv', '.tsv')): text = text.replace(how.format(old), how.format(listed))
        elif old in (plain := normalize('NFC', file)): path = '/'.join([f'audio/{stored[:3]}' if name == 'openmic2018' else place, plain.replace(old, stored)])
        put(tmp_path/name/path, text or 'sound')
    return read_dataset(name, tmp_path/name)

def the_clip(manifest, name, called):
    "The one clip that is called so; its sound is there, and skip lists and saved manifests keep its name."
    hits = [r for r in manifest.table.to_dict('records') if not r['missing'] and called in (audio_stem(r['path']) if name in HOW else r['id'])]
    assert len(hits) == 1, manifest.table[['id', 'path', 'missing']].to_dict('records')
    return hits[0]

def test_sets_without_names_of_their_own(): assert set(MINI) - set(NAMED) == {'gtzan', 'fma_small'}

@pytest.mark.parametrize('name', NAMED)
@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD'), ('NFC', 'NFC')], ids='-'.join)
def test_names_that_are_not_ascii(tmp_path, name, forms):
    called = f'{NAMED[name]}é ü'
    listed, stored = (normalize(form, called) for form in forms)
    manifest = renamed(tmp_path, name, listed, stored)
    clip = the_clip(manifest, name, called)
    assert (tmp_path/name/clip['path']).is_file() and clip['id'] == normalize('NFC', clip['id'])
    assert manifest.hash == renamed(tmp_path/'b', name, called, called).hash
    for suffix in ('csv', 'json'):
        left = manifest.skip(write_skip_list(tmp_path/f'skip.{suffix}', {normalize(forms[0], clip['id']): 'x'}))
        assert left.skipped.id.tolist() == [clip['id']] and Manifest.load(left.save(tmp_path/'m.csv')).hash == left.hash
    assert not manifest.at(tmp_path/name).table.missing[list(manifest.table.id).index(clip['id'])]

@pytest.mark.parametrize('name, path, word', [('openmic2018', 'partitions/split01_train.csv', '000046_3840'), ('fsd50k', 'FSD50K.ground_truth/vocabulary.csv', 'Electric_guitar'),
                                              ('mtg_jamendo', 'data/autotagging_moodtheme.tsv', 'track_2')])
def test_two_lists_of_a_set_in_two_forms(tmp_path, name, path, word):
    for p, text in MINI[name].items(): put(tmp_path/name/p, normalize('NFD' if p == path else 'NFC', text.replace(word, f'{word}é')) or 'sound')
    manifest, before = read_dataset(name, tmp_path/name), read_dataset(name, mini(tmp_path/'plain', name))
    assert manifest.summary()['splits'] == before.summary()['splits'] and {k: n for k, n in manifest.notes.items() if 'in no list' not in k} == before.notes

@pytest.mark.parametrize('name', NAMED)
def test_names_that_begin_with_a_dash(tmp_path, name):
    called = f'-{NAMED[name]}'
    clip = the_clip(manifest := renamed(tmp_path, name, called, called), name, called)
    assert (tmp_path/name/clip['path']).is_file() and clip['labels'] == read_dataset(name, mini(tmp_path/'plain', name)).table.labels[list(manifest.table.id).index(clip['id'])]
    for suffix in ('csv', 'json'):
        left = manifest.skip(write_skip_list(tmp_path/f'skip.{suffix}', {clip['id']: '-x'}))
        assert left.skipped.id.tolist() == [clip['id']] and Manifest.load(left.save(tmp_path/'m.csv')).hash == left.hash

def test_clip_numbers_that_begin_with_a_dash(tmp_path):
    "Where a list has an id apart from the path."
    for name, path, old in (('magnatagatune', 'annotations_final.csv', '"2"'), ('mtg_jamendo', 'data/splits/split-0/autotagging_moodtheme-train.tsv', 'track_1'), ('song_describer', 'song_describer.csv', ',1004034,')):
        before = read_dataset(name, folder := mini(tmp_path, name))
        put(folder/path, MINI[name][path].replace(old, old.replace('"', '"-', 1) if '"' in old else old.replace(',', ',-', 1) if ',' in old else f'-{old}'))
        manifest = read_dataset(name, folder)
        changed = [i for i in manifest.table.id if i not in set(before.table.id)]
        assert changed == [f"-{old.strip(',').strip(chr(34))}"] and not row(manifest, changed[0]).missing


# The other sets have no vocabulary beside their rows, so that no label of theirs can be outside of it.
OUTSIDE = [('gtzan', 'lists/train_filtered.txt', 'blues/blues', 'blue/blue', 'gtzan: labels outside the vocabulary of 10: blue, in 1 places. Expected e.g. blues, classical, country'),
           ('fma_small', 'fma_metadata/tracks.csv', 'Hip-Hop', 'Hiphop', 'fma_small: labels outside the vocabulary of 8: Hiphop, in 1 places. Expected e.g. Electronic, Experimental, Folk'),
           ('audioset', 'eval_segments.csv', '/m/1,/m/2', '/m/1,/m/3', 'audioset: labels outside the vocabulary of 2: /m/3, in 1 places. Expected e.g. Speech, Male speech, man speaking'),
           ('fsd50k', 'FSD50K.ground_truth/dev.csv', 'Electric_guitar', 'Electric guitars', 'fsd50k: labels outside the vocabulary of 4: Electric guitars, in 1 places. Expected e.g. Electric guitar, Guitar'),
           ('openmic2018', 'openmic-2018-aggregated-labels.csv', 'mallet_percussion', 'mallets', 'openmic2018: labels outside the vocabulary of 3: mallets, in 1 places. Expected e.g. drums, flute')]

@pytest.mark.parametrize('name, path, old, new, message', OUTSIDE)
def test_labels_outside_the_vocabulary(tmp_path, name, path, old, new, message):
    folder = mini(tmp_path, name)
    lists = {f'lists/{part}_filtered.txt': f'{g}/{g}.00000.wav\n' for part, g in dict(train='blues', valid='rock', test='pop').items()} if name == 'gtzan' else {}
    for p, text in {**lists, path: {**MINI[name], **lists}[path].replace(old, new)}.items(): put(folder/p, text)
    with pytest.raises(DataError, match=re.escape(message)): read_dataset(name, folder, **(dict(filtered=folder/'lists') if lists else {}))

@pytest.mark.parametrize('name', sorted(set(MINI) - {o[0] for o in OUTSIDE}))
def test_sets_whose_rows_are_the_vocabulary(tmp_path, name):
    manifest = read_dataset(name, mini(tmp_path, name))
    assert manifest.vocabulary is None or {w for words in manifest.table.labels for w in words} <= set(manifest.vocabulary)
    manifest.vocabulary = ['yodelling']
    if manifest.table.labels.str.len().any():
        with pytest.raises(DataError, match=f'{name}: labels outside the vocabulary of 1: .*Expected e.g. yodelling'): manifest.targets()


@pytest.mark.parametrize('name, path', LISTS)
def test_a_list_cut_short(tmp_path, name, path):
    "Cut inside its last row, a list is refused, or lacks the clip: it never gives a clip with half its labels."
    folder, text = mini(tmp_path, name), MINI[name][path].rstrip('\n')
    whole = read_dataset(name, folder)
    put(folder/path, text[:text.rindex('\n') + 3])
    try: cut = read_dataset(name, folder)
    except LogocentricError as e: assert Path(path).name in str(e) or name in str(e)
    else: assert len(cut) < len(whole) or cut.hash == whole.hash or cut.notes != whole.notes


@pytest.mark.parametrize('name, path', LISTS)
@pytest.mark.parametrize('lines', [0, 1])
def test_a_list_that_is_empty(tmp_path, name, path, lines):
    "An empty list, or one with a header alone, is refused, or gives fewer clips: never an error of Python's."
    folder = mini(tmp_path, name)
    whole = read_dataset(name, folder)
    put(folder/path, ''.join(line + '\n' for line in MINI[name][path].split('\n')[:2*lines if 'tracks' in path else lines]))
    try: less = read_dataset(name, tmp_path/name)
    except DataError as e: assert any(w in str(e) for w in ('name no clip', 'has no column', 'is damaged', 'no track of the subset', 'is no folder of', 'another number of fields', 'outside the vocabulary'))
    else: assert len(less) < len(whole) or less.notes != whole.notes


@pytest.mark.parametrize('name, path', LISTS)
def test_the_last_row_twice(tmp_path, name, path):
    "A repeated row gives no second clip and no second text, and is counted."
    folder, text = mini(tmp_path, name), MINI[name][path]
    before = read_dataset(name, folder)
    put(folder/path, text.rstrip('\n') + '\n' + text.rstrip('\n').rsplit('\n', 1)[1] + '\n')
    after = read_dataset(name, folder)
    assert after.hash == before.hash and {k: n for k, n in after.notes.items() if 'by the head' not in k} == before.notes | {'rows listed twice': 1}


def test_splits_that_leak(tmp_path):
    folder = mini(tmp_path, 'openmic2018')
    put(folder/'partitions/split01_test.csv', '000046_3840\n')
    with pytest.raises(DataError, match='000046_3840: in the lists of train and of test'): read_dataset('openmic2018', folder)
    for part in ('train', 'valid', 'test'): put(tmp_path/f'lists/{part}_filtered.txt', 'blues/blues.00001.wav\n')
    with pytest.raises(DataError, match='blues.00001: in the lists of train and of validation'): read_dataset('gtzan', mini(tmp_path, 'gtzan'), filtered=tmp_path/'lists')


def test_broken_json(tmp_path, manifest):
    put(mini(tmp_path, 'openmic2018')/'class-map.json', '{')
    with pytest.raises(DataError, match='class-map.json is no JSON'): read_dataset('openmic2018', tmp_path/'openmic2018')
    saved = manifest.save(tmp_path/'m.csv')
    put(saved, saved.read_text().replace('manifest {', 'manifest {{', 1))
    with pytest.raises(DataError, match='the first line of m.csv is no JSON'): Manifest.load(saved)


def test_unknown_names_and_options(tmp_path):
    with pytest.raises(DataError, match="no data set 'esc': there are gtzan"): read_dataset('esc', tmp_path)
    with pytest.raises(DataError, match='esc50 has no option folds: there are split, skip, esc10'): read_dataset('esc50', mini(tmp_path, 'esc50'), folds=1)
    with pytest.raises(DataError, match="no split 'dev': there are '1', '2'"): read_dataset('esc50', tmp_path, split='dev')
    assert len(read_dataset('esc50', tmp_path, split=2)) == 1


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match='no folder '): read_dataset('esc50', tmp_path/'nowhere')
    with pytest.raises(DataError, match='unpack it first'): identify(put(tmp_path/'genres.tar.gz'))
    with pytest.raises(DataError, match='is none of gtzan, .* there is genres.tar.gz'): identify(tmp_path)
    for name in ('esc50', 'musiccaps'): mini(tmp_path, name)
    with pytest.raises(DataError, match='holds several data sets: esc50, musiccaps'): identify(tmp_path)
    (tmp_path/'esc50').rename(tmp_path/'copy'); mini(tmp_path, 'esc50')
    with pytest.raises(DataError, match='holds ESC-50 2 times: name one of copy, esc50'): read_dataset('esc50', tmp_path)


# --- the traps of each set

@pytest.mark.parametrize('place', ['genres/', 'genres_original/', ''])
def test_gtzan_folders_and_formats(tmp_path, place):
    for g in GTZAN_GENRES: put(tmp_path/f'{place}{g}/{g}.00000.{"au" if g == "rock" else "wav"}')
    manifest = read_dataset('gtzan', tmp_path)
    assert [i for i, m in zip(manifest.table.id, manifest.table.missing) if not m] == [f'{g}.00000' for g in GTZAN_GENRES]
    assert row(manifest, 'rock.00000').path == f'{place}rock/rock.00000.au' and row(manifest, 'jazz.00054').labels == ['jazz']


def test_gtzan_filtered_from_lists(tmp_path):
    folder, lists = mini(tmp_path, 'gtzan'), tmp_path/'lists'
    with pytest.raises(DataError, match='no folder'): read_dataset('gtzan', folder, filtered=lists)
    for part, line in dict(train='blues/blues.00000.wav', valid='jazz/jazz.00054.wav').items(): put(lists/f'{part}_filtered.txt', line + '\n')
    with pytest.raises(DataError, match='test_filtered.txt is not in lists: there is train_filtered.txt, valid_filtered.txt'): read_dataset('gtzan', folder, filtered=lists)
    put(lists/'test_filtered.txt', 'hiphop/hiphop.00099.wav\n')
    manifest = read_dataset('gtzan', folder, filtered=lists)
    assert dict(zip(manifest.table.id, manifest.table['split'])) == {'blues.00000': 'train', 'jazz.00054': 'validation', 'hiphop.00099': 'test'}
    assert manifest.published == 930 and manifest.take('test').published == 290
    with pytest.raises(DataError, match='290 clips are expected and 1 listed'): manifest.take('test').require()


def test_fma_small_is_not_medium(tmp_path):
    manifest = read_dataset('fma_small', mini(tmp_path, 'fma_small'))
    assert manifest.table.id.tolist() == ['000002', '000005', '000007'] and row(manifest, '000007').path == 'fma_small/000/000007'
    assert (manifest.published, manifest.take('test').published) == (8000, 800)
    put(tmp_path/'fma_small/fma_metadata/tracks.csv', FMA + '2,training,large,Rock,x\n')
    with pytest.raises(DataError, match='tracks.csv: listed twice, in the subset small and in another: 2. Correct'): read_dataset('fma_small', tmp_path)
    put(tmp_path/'fma_small/fma_metadata/tracks.csv', FMA.replace(',small,', ',medium,'))
    with pytest.raises(DataError, match='no track of the subset small; it has large, medium'): read_dataset('fma_small', tmp_path)
    put(tmp_path/'fma_small/fma_metadata/tracks.csv', FMA + '12,training,small,Rock,"never closed')
    with pytest.raises(DataError, match='tracks.csv is damaged'): read_dataset('fma_small', tmp_path)


def test_audioset_names_of_files_and_ids(tmp_path):
    folder = mini(tmp_path, 'audioset')
    assert row(read_dataset('audioset', folder), '--aaaaaaaaa').labels == ['Speech', 'Male speech, man speaking']
    for name in youtube_names('Ybbbbbbbbbb', 0, 10):
        sound = put(folder/'wavs'/f'{name}.wav')
        assert row(read_dataset('audioset', folder), 'Ybbbbbbbbbb').path == f'wavs/{name}.wav'
        sound.unlink()
    put(folder/'eval_segments.csv', MINI['audioset']['eval_segments.csv'].replace('num_segs=2', 'num_segs=20371'))
    assert read_dataset('audioset', folder).notes == {'segments of evaluation by the head of its list, which has 2': 20371}
    put(folder/'balanced_train_segments.csv', 'ccccccccccc, thirty, 40.000, "/m/1"\n')
    with pytest.raises(DataError, match="balanced_train_segments.csv, ccccccccccc: expected a number, found 'thirty'"): read_dataset('audioset', folder)
    put(folder/'balanced_train_segments.csv', 'ccccccccccc, 30.000, 40.000, /m/1,/m/2\n')
    with pytest.raises(DataError, match='expected rows of id, start, end and quoted labels, found 1 others'): read_dataset('audioset', folder)


def test_audioset_lists_with_a_plain_header(tmp_path):
    folder = mini(tmp_path, 'audioset')
    before = read_dataset('audioset', folder)
    put(folder/'eval_segments.csv', 'YTID,start_seconds,end_seconds,positive_labels\n--aaaaaaaaa,30.000,40.000,"/m/1,/m/2"\nYbbbbbbbbbb,0.000,10.000,"/m/1"\n')
    assert read_dataset('audioset', folder).hash == before.hash


def test_esc10_and_edited_targets(tmp_path):
    folder = mini(tmp_path, 'esc50')
    assert read_dataset('esc50', folder, esc10=True).table.labels.tolist() == [['crackling fire']]
    assert (read_dataset('esc50', folder).published, read_dataset('esc50', folder, esc10=True, split=1).published) == (2000, 80)
    put(folder/'meta/esc50.csv', MINI['esc50']['meta/esc50.csv'].replace(',7,rooster', ',12,rooster'))
    with pytest.raises(DataError, match='share a target with another category'): read_dataset('esc50', folder)


def test_fsd50k_words(tmp_path):
    manifest = read_dataset('fsd50k', mini(tmp_path, 'fsd50k'))
    assert manifest.vocabulary == ['Electric guitar', 'Guitar', 'Accelerating and revving and vroom', 'Keyboard (musical)']
    assert (row(manifest, '37199').path, row(manifest, '37199')['split']) == ('FSD50K.eval_audio/37199', 'test')
    (tmp_path/'fsd50k/FSD50K.ground_truth/vocabulary.csv').unlink()
    with pytest.raises(DataError, match='vocabulary.csv is not in FSD50K.ground_truth: there is dev.csv, eval.csv'): read_dataset('fsd50k', tmp_path)


def test_openmic_unobserved_is_unknown(tmp_path):
    "An array of likelihoods says 0.5 of the unobserved; thresholded without its mask it would say that there are drums."
    manifest = read_dataset('openmic2018', mini(tmp_path, 'openmic2018'))
    true, known = manifest.targets()
    y_true, y_mask = np.array([[.5, .1, .5]]), np.array([[False, True, True]])
    assert np.array_equal(known, y_mask) and np.array_equal(true, (y_true >= .5) & y_mask) and not np.array_equal(true, y_true >= .5)
    assert manifest.vocabulary == ['drums', 'flute', 'mallet percussion'] and manifest.notes['clips of the splits without any label'] == 1


def test_targets_outside_a_vocabulary_one_sets(tmp_path):
    manifest = read_dataset('magnatagatune', mini(tmp_path, 'magnatagatune'))
    assert manifest.targets()[0].tolist() == [[True, True], [True, False], [False, False]] and manifest.targets()[1].all()
    manifest.vocabulary = ['harp']
    with pytest.raises(DataError, match='outside the vocabulary of 1: no voice'): manifest.targets()


def test_magnatagatune_split_and_top(tmp_path):
    manifest = read_dataset('magnatagatune', mini(tmp_path, 'magnatagatune'))
    assert manifest.table['split'].tolist() == ['test', 'validation', 'train'] and manifest.table.labels.tolist() == [['harp', 'no voice'], ['harp'], []]
    assert read_dataset('magnatagatune', tmp_path, top=1).vocabulary == ['harp'] and manifest.published == 25863


def test_jamendo_tags_beyond_the_header(tmp_path):
    manifest = read_dataset('mtg_jamendo', mini(tmp_path, 'mtg_jamendo'), fold=1)
    assert row(manifest, 'track_1').labels == ['calm', 'dark', 'deep'] and row(manifest, 'track_1').path == 'audio/48/948.low.mp3'
    assert manifest.vocabulary == ['calm', 'dark', 'deep'] and manifest.notes['tracks of the list in no split'] == 1
    with pytest.raises(DataError, match='there is no folder split-4'): read_dataset('mtg_jamendo', tmp_path, fold=4)
    with pytest.raises(DataError, match='autotagging_genre-train.tsv is not in split-0'): read_dataset('mtg_jamendo', tmp_path, tags='genre')


def test_musiccaps_lists_in_python(tmp_path):
    folder = mini(tmp_path, 'musiccaps')
    manifest = read_dataset('musiccaps', folder)
    assert row(manifest, '-0Gj8-vB1q4').labels == ['sad', "rock 'n' roll"] and row(manifest, '1e10aaaaaaa').duration == 10
    with pytest.raises(DataError, match='free words for labels and no vocabulary'): manifest.targets()
    put(folder/'musiccaps-public.csv', MINI['musiccaps']['musiccaps-public.csv'].replace('[]', '__import__'))
    with pytest.raises(DataError, match='musiccaps-public.csv, 1e10aaaaaaa: expected a Python list as text'): read_dataset('musiccaps', folder)


def test_song_describer(tmp_path):
    manifest = read_dataset('song_describer', mini(tmp_path, 'song_describer'))
    track = row(manifest, '1004034')
    assert track.texts == ['calm', 'slow, sad'] and track.text == 'calm' and np.isnan(track.duration) and track.path == 'audio/34/1004034.2min.mp3'
    valid = read_dataset('song_describer', tmp_path, valid=True)
    assert valid.table.texts.tolist() == [['calm']] and (manifest.published, valid.published) == (706, 546)


def test_clotho_one_title_in_two_splits_and_other_accents(tmp_path):
    manifest = read_dataset('clotho', mini(tmp_path, 'clotho'))
    assert manifest.table.id.tolist() == ['development/Café, inside', 'evaluation/Café, inside'] and manifest.table.missing.tolist() == [False, True]
    put(tmp_path/'clotho/clotho_captions_development.csv', MINI['clotho']['clotho_captions_development.csv'], encoding='latin-1')
    assert read_dataset('clotho', tmp_path).hash == manifest.hash and manifest.table.texts[0] == ['a', 'b', 'c', 'd', 'e, f']


def test_audiocaps_groups_and_leaks(tmp_path):
    manifest = read_dataset('audiocaps', mini(tmp_path, 'audiocaps'))
    assert row(manifest, '-ab_0').texts == ['A dog barks', 'Barking, near'] and row(manifest, '-ab_0').path == 'audio/-ab_0_10.wav'
    put(tmp_path/'audiocaps/dataset/val.csv', MINI['audiocaps']['dataset/train.csv'])
    with pytest.raises(DataError, match='abc_30 are in train and in another split'): read_dataset('audiocaps', tmp_path)


# --- the manifest

@pytest.fixture
def manifest(tmp_path): return read_dataset('fsd50k', mini(tmp_path, 'fsd50k'))


def test_hash_is_of_the_clips_and_not_of_the_disk(manifest):
    table = manifest.table
    assert manifest_hash(table[::-1]) == manifest_hash(table.assign(path='other')) == manifest.hash
    for column, value in dict(id=list('abc'), start=1., duration=2., split='x', labels=[[], [], []], texts=[['a']]*3, missing=True).items():
        assert manifest_hash(table.assign(**{column: pd.Series(value, index=table.index) if isinstance(value, list) else value})) != manifest.hash, column
    assert manifest.skip({'1': 'x'}).hash != manifest_hash(manifest.skip({'1': 'x'}).table) != manifest.hash


def test_hash_is_stable():
    table = pd.DataFrame(dict(id=['é', 'b'], start=[0., 1.5], duration=[np.nan, 2.], split=['', 'test'], labels=[['z', 'a'], []], texts=[[], ['x']], missing=[False, True]))
    lines = ['["b", 1.5, 2.0, "test", ["x"], true, []]', '["é", 0.0, null, "", [], false, ["a", "z"]]']
    assert manifest_hash(table, n=64) == hashlib.sha256('\n'.join(lines).encode()).hexdigest()
    assert manifest_hash(table) == 'db44023ebd9b'


def test_require_counts_every_clip(manifest):
    with pytest.raises(DataError, match=r'1 of 3 clips are there. Missing: 1, 37199. Expected e.g. FSD50K.dev_audio/1 in fsd50k'): manifest.require()
    left = manifest.skip(manifest.absent())
    assert (len(left), len(left.skipped), set(left.skipped.reason)) == (1, 2, {'the sound file is missing'}) and ', 2 skipped' in repr(left)
    with pytest.raises(DataError, match=r'51,197 clips are expected and 3 listed \(2 of them skipped\)'): left.require()
    assert left.require(3) is left and left.summary()['skipped'] == 2
    with pytest.raises(DataError, match='no clip is left'): left.skip({'64760': 'x'}).require(3)


@pytest.mark.parametrize('suffix', ['csv', 'json'])
def test_loaders_honour_skip_lists(tmp_path, suffix):
    listed = write_skip_list(tmp_path/f'skip.{suffix}', {'1': 'truncated, at 3 s', '-x': 'not of this set'})
    manifest = read_dataset('fsd50k', mini(tmp_path, 'fsd50k'), skip=listed)
    assert manifest.table.id.tolist() == ['64760', '37199'] and manifest.skipped[['id', 'reason']].values.tolist() == [['1', 'truncated, at 3 s']]
    assert manifest.notes['skip-listed ids that are not in this set'] == 1
    assert read_dataset('fsd50k', tmp_path, skip=listed, split='test').skipped.empty and len(manifest.take('validation').skipped) == 1
    assert manifest.skip(listed).hash == manifest.hash


def test_skip_lists_in_other_forms(tmp_path):
    assert read_skip_list(put(tmp_path/'a.json', '{"jazz.00054": "unreadable"}')) == {'jazz.00054': 'unreadable'}
    for name, text, message in [('b.json', '["jazz.00054"]', 'expected {"id": "reason"}'), ('c.csv', 'clip,why\na,b\n', 'has no column id, reason'), ('e.json', '{', 'is no JSON')]:
        with pytest.raises(DataError, match=message): read_skip_list(put(tmp_path/name, text))
    with pytest.raises(DataError, match='no skip list d.csv'): read_skip_list(tmp_path/'d.csv')


@pytest.mark.parametrize('name', MINI)
@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_saved_and_loaded(tmp_path, name, suffix):
    if suffix == 'parquet': pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    whole = read_dataset(name, mini(tmp_path, name))
    for manifest in (whole, whole.skip({whole.table.id[0]: 'a "reason", quoted'})):
        again = Manifest.load(manifest.save(tmp_path/f'saved.{suffix}'))
        assert again.summary() == manifest.summary() and again.paths == manifest.paths
        pd.testing.assert_frame_equal(again.table, manifest.table)
        assert again.skipped[['id', 'reason']].values.tolist() == manifest.skipped[['id', 'reason']].values.tolist()
        assert (again.vocabulary, again.expected, again.source) == (manifest.vocabulary, manifest.expected, manifest.source)


def test_saved_manifests_that_are_none(tmp_path, manifest):
    saved = manifest.save(tmp_path/'m.csv')
    put(saved, saved.read_text().replace('Guitar', 'Banjo', 1))
    Manifest.load(manifest.save(tmp_path/'n.csv'))
    put(saved, manifest.save(tmp_path/'n.csv').read_text().replace('64760', '64761'))
    with pytest.raises(DataError, match='was changed after it was saved'): Manifest.load(saved)
    with pytest.raises(DataError, match='is no saved manifest: read a list of your own'): Manifest.load(put(tmp_path/'own.csv', 'path\na.wav\n'))
    with pytest.raises(DataError, match='no manifest none.csv'): Manifest.load(tmp_path/'none.csv')


@pytest.mark.skipif(find_spec('pyarrow') is not None, reason='pyarrow is installed')
def test_parquet_without_pyarrow(tmp_path, manifest):
    with pytest.raises(DataError, match='Parquet needs pyarrow, which is not installed'): manifest.save(tmp_path/'m.parquet')


def test_moved_to_another_folder(tmp_path, manifest):
    saved = manifest.save(tmp_path/'m.csv')
    put(tmp_path/'new/FSD50K.eval_audio/37199.flac')
    moved = Manifest.load(saved, root=tmp_path/'new')
    assert moved.table.missing.tolist() == [True, True, False] and moved.paths[2] == tmp_path/'new/FSD50K.eval_audio/37199.flac'


def test_sounds_in_no_list_are_counted(tmp_path):
    folder = mini(tmp_path, 'fsd50k')
    for name in ('extra.wav', '._64760.wav', 'notes.txt', '__MACOSX/64760.wav'): put(folder/'FSD50K.dev_audio'/name)
    assert read_dataset('fsd50k', folder).notes == {'sound files in no list': 1}


def test_links_that_go_in_circles(tmp_path):
    put(tmp_path/'a/b/c.wav')
    (tmp_path/'a/b/up').symlink_to(tmp_path/'a', target_is_directory=True)
    put(tmp_path.parent/f'{tmp_path.name}-disk/d.wav')
    (tmp_path/'a/disk').symlink_to(tmp_path.parent/f'{tmp_path.name}-disk', target_is_directory=True)
    assert audio_index(tmp_path).paths == {'a/b/c': 'a/b/c.wav', 'a/disk/d': 'a/disk/d.wav'}


def test_one_stem_in_two_formats(tmp_path):
    for name in ('a.mp3', 'a.WAV', 'b.c.mp3', 'b.mp3'): put(tmp_path/name)
    assert audio_index(tmp_path).paths == {'a': 'a.WAV', 'b.c': 'b.c.mp3', 'b': 'b.mp3'} and audio_stem('a.b') == 'a.b'


# --- tables of one's own

@pytest.mark.parametrize('name, text', [
    ('t.csv', 'path,caption,tags\nwav/loop é.wav,"slow, sad",drums;bass\n-take.flac,,"Bird, flight"\n'),
    ('t.tsv', 'file_name\ttext\tlabels\nwav/loop é.wav\tslow, sad\tdrums;bass\n-take.flac\t\tBird, flight\n'),
    ('t.jsonl', '{"audio": "wav/loop é.wav", "text": "slow, sad", "labels": ["drums", "bass"]}\n{"audio": "./-take.flac", "text": null, "labels": ["Bird, flight"]}\n')])
def test_own_tables(tmp_path, name, text):
    for sound in ('wav/loop e\u0301.wav', '-take.flac'): put(tmp_path/sound)
    manifest = read_table(put(tmp_path/name, text)).require()
    assert manifest.table.id.tolist() == ['wav/loop é', '-take'] and manifest.table.texts.tolist() == [['slow, sad'], []]
    assert manifest.vocabulary == ['Bird, flight', 'bass', 'drums'] and manifest.table.labels.tolist()[0] == ['drums', 'bass']
    assert len(read_table(tmp_path/name, skip={'-take': 'noisy'}).skipped) == 1


def test_own_parquet(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    put(tmp_path/'a.wav')
    pd.DataFrame(dict(audio=['a.wav'], labels=[['x', 'y']], duration=[3.])).to_parquet(tmp_path/'t.parquet')
    manifest = read_table(tmp_path/'t.parquet').require()
    assert manifest.table.labels.tolist() == [['x', 'y']] and manifest.table.duration.tolist() == [3]


def test_own_table_with_sounds_elsewhere(tmp_path):
    sound, beside = put(tmp_path/'disk/a b.wav'), put(tmp_path/'x/b.wav')
    manifest = read_table(put(tmp_path/'x/t.csv', f'path,start,duration\n{sound},1.5,2\n{beside},,\n'))
    assert manifest.require(2).paths == [sound, beside] and manifest.table.start.tolist() == [1.5, 0]
    assert not manifest.at(tmp_path/'x').table.missing.any()


@pytest.mark.parametrize('name, text, options, message', [
    ('t.csv', 'sound,label\na.wav,x\n', {}, 'no column of sound files: expected one of path, .* found sound, label'),
    ('t.csv', 'path,label\na.wav,x\n', dict(labels='genre'), 'has no column genre: expected genre, found path, label'),
    ('t.csv', 'path,label\n,x\n', {}, 'row 1 of 1 names no sound file'),
    ('t.csv', 'path,label\na.wav,x\na.wav,y\n', {}, 'row 2 repeats a with another file, other labels'),
    ('t.csv', 'path,label\na.wav,x\na.mp3,x\n', {}, 'row 2 repeats a with another file'),
    ('t.csv', 'path,label\na.wav,x\n', dict(vocabulary=['y']), 'outside the vocabulary of 1: x'),
    ('t.csv', 'path,start\na.wav,soon\n', {}, "start and duration are seconds, found 'soon'"),
    ('t.csv', 'path,text\na.wav,"never clo', {}, 'ends inside a quoted field'),
    ('t.jsonl', '{"path": "a.wav"}\n{"path": "b.w', {}, 'a row is no JSON'),
    ('t.xlsx', 'PK', {}, 'a table ends in .csv, .tsv, .jsonl or .parquet')])
def test_own_tables_that_are_wrong(tmp_path, name, text, options, message):
    with pytest.raises(DataError, match=message): read_table(put(tmp_path/name, text), **options)


def test_own_table_means_the_file_it_names(tmp_path):
    for name in ('a.wav', 'a.mp3'): put(tmp_path/name)
    manifest = read_table(put(tmp_path/'t.jsonl', '{"path": "a.mp3", "fold": 0, "label": 0}\n{"path": "b.mp3", "fold": 1, "label": "[\\"x"}\n'))
    assert manifest.table.path.tolist() == ['a.mp3', 'b.mp3'] and manifest.table['split'].tolist() == ['0', '1'] and manifest.table.labels.tolist() == [['0'], ['["x']]


def test_own_tables_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match='no table t.csv in .*: there is nothing'): read_table(tmp_path/'t.csv')
    with pytest.raises(DataError, match='has no metadata.csv, .jsonl or .parquet, and no sound file'): read_table(tmp_path)


@pytest.mark.parametrize('kind, text', [('csv', 'file_name,label\n-a é.wav,x\n'), ('jsonl', '{"file_name": "-a é.wav", "label": "x"}\n')])
@pytest.mark.parametrize('places', [{'': ''}, {'train': 'train', 'val': 'validation', 'test': 'test'}, {'data/train': 'train', 'data/eval': 'test'}])
def test_audio_folders_with_tables(tmp_path, kind, text, places):
    for place in places: put(tmp_path/place/f'metadata.{kind}', text); put(tmp_path/place/'-a é.wav')
    manifest = read_table(tmp_path).require(len(places))
    assert sorted(manifest.table['split']) == sorted(places.values()) and manifest.vocabulary == ['x'] and all(p.is_file() for p in manifest.paths)


def test_audio_folder_with_parquet(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    put(tmp_path/'train/a.wav')
    pd.DataFrame(dict(file_name=['a.wav'], text=['calm'])).to_parquet(tmp_path/'train/metadata.parquet')
    assert read_table(tmp_path).require().table[['text', 'split']].values.tolist() == [['calm', 'train']]


@pytest.mark.parametrize('files, labels, splits', [
    (['data/train/Jäz/01.mp3', 'data/test/punk/01.mp3'], [['punk'], ['Jäz']], ['test', 'train']), (['dog/1.wav', 'cat/-1.wav'], [['cat'], ['dog']], ['', '']),
    (['1.wav', '2.wav'], [[], []], ['', '']), (['all/1.wav', 'all/2.wav'], [[], []], ['', '']), (['train/1.wav', 'dev/1.wav'], [[], []], ['validation', 'train'])])
def test_audio_folders_of_classes(tmp_path, files, labels, splits):
    for f in files: put(tmp_path/f)
    table = read_table(tmp_path).require(len(files)).table
    assert table.labels.tolist() == labels and table['split'].tolist() == splits


def test_audio_folders_that_are_wrong(tmp_path):
    for f in ('dog/1.wav', 'cat/old/2.wav'): put(tmp_path/'deep'/f)
    with pytest.raises(DataError, match='lie at different depths'): read_table(tmp_path/'deep')
    for f in ('metadata.csv', 'metadata.jsonl'): put(tmp_path/'two'/f)
    with pytest.raises(DataError, match='several tables in one folder: metadata.csv, metadata.jsonl'): read_table(tmp_path/'two')
    with pytest.raises(DataError, match='is an audio folder, whose paths start from its tables: leave folder= out'): read_table(tmp_path/'two', folder=tmp_path)


# --- folders of `save_to_disk`, written here as the library writes them

AUDIO, CLASS = dict(_type='Audio'), dict(_type='ClassLabel', names=['dog', 'cat', 'none of these'])
WAV, FLAC = b'RIFF\x24\0\0\0WAVEfmt ', b'fLaC\0\0\0\x22'
inside = lambda raw, path=None: dict(bytes=raw, path=path)

def saved(folder, features, *shards, fingerprint='0123456789abcdef'):
    "Arrow files of some columns each, with the two JSON files beside them."
    pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    kinds = dict(Audio=pa.struct(dict(bytes=pa.binary(), path=pa.string())), ClassLabel=pa.int64(), Value=pa.string(), Sequence=pa.list_(pa.int64()))
    folder.mkdir(parents=True)
    names = [f'data-{n:05}-of-{len(shards):05}.arrow' for n in range(len(shards))]
    for name, columns in zip(names, shards):
        table = pa.table({c: pa.array(v, type=kinds[features[c]['_type']]) for c, v in columns.items()})
        with pa.OSFile(str(folder/name), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out: out.write_table(table, max_chunksize=2)
    put(folder/'dataset_info.json', json.dumps(dict(citation='', description='', features=features, homepage='', license='')))
    put(folder/'state.json', json.dumps(dict(_data_files=[dict(filename=n) for n in names], _fingerprint=fingerprint, _format_columns=None, _split=None)))
    return folder

FEATURES = dict(audio=AUDIO, label=CLASS, tags=dict(_type='Sequence', feature=dict(_type='ClassLabel', names=['x', 'y'])), text=dict(_type='Value', dtype='string'))

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/'home'))
    return tmp_path/'home'

@pytest.fixture
def arrow(tmp_path, home):
    "Two splits; in one two files of three rows, one without a name and one of no class."
    first = dict(audio=[inside(WAV + b'1', 'é.wav'), inside(FLAC)], label=[1, 0], tags=[[1, 0], []], text=['a cat', None])
    saved(tmp_path/'set'/'train', FEATURES, first, dict(audio=[inside(WAV + b'3', '-3.wav')], label=[-1], tags=[None], text=['']))
    saved(tmp_path/'set'/'test', FEATURES, dict(audio=[inside(WAV + b'1', 'é.wav')], label=[None], tags=[[1]], text=['x']), fingerprint='f')
    put(tmp_path/'set'/'dataset_dict.json', '{"splits": ["train", "test"]}')
    return tmp_path/'set'

def test_saved_folder(arrow, home):
    before = {p: p.stat().st_mtime_ns for p in [arrow, *arrow.rglob('*')]}
    manifest = read_table(arrow).require(4)
    nameless = hashlib.sha256(FLAC).hexdigest()[:16]
    assert manifest.table.id.tolist() == ['train/é', f'train/{nameless}', 'train/-3', 'test/é'] and manifest.table['split'].tolist() == ['train']*3 + ['test']
    assert manifest.table.labels.tolist() == [['cat'], ['dog'], [], []] and manifest.vocabulary == ['dog', 'cat', 'none of these'] and manifest.table.texts.tolist() == [['a cat'], [], [], ['x']]
    assert [p.read_bytes() for p in manifest.paths] == [WAV + b'1', FLAC, WAV + b'3', WAV + b'1'] and [p.suffix for p in manifest.paths] == ['.wav', '.flac', '.wav', '.wav']
    assert home/'data'/'cache'/'arrow' in manifest.root.parents and {p: p.stat().st_mtime_ns for p in [arrow, *arrow.rglob('*')]} == before
    tags = read_table(arrow, labels='tags')
    assert tags.table.labels.tolist() == [['y', 'x'], [], [], ['y']] and tags.vocabulary == ['x', 'y'] and tags.paths == manifest.paths
    again = Manifest.load(manifest.save(arrow.parent/'saved.csv'))
    assert again.hash == manifest.hash == read_table(arrow.rename(arrow.with_name('moved'))).hash and not again.table.missing.any()

def test_saved_sounds_are_written_once(arrow):
    paths = read_table(arrow).paths
    times = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    assert [p.stat().st_mtime_ns for p in read_table(arrow).paths][2:] == times[2:] and paths[1].is_file()
    assert {p.name for p in paths[0].parent.iterdir()} == {p.name for p in paths[:3]}

def test_saved_names_that_sounds_share(tmp_path, home):
    folder = saved(tmp_path/'set', dict(audio=AUDIO, text=FEATURES['text']),
                   dict(audio=[inside(WAV + b'1', 'dog/1.wav'), inside(WAV + b'2', 'cat/1.wav'), inside(WAV + b'3', '3.wav'), inside(WAV + b'3', '3.wav')], text=list('abcd')))
    table = read_table(folder).require(3).table
    assert [i[:2] for i in table.id] == ['1-', '1-', '3'] and table.id.is_unique and table.texts.tolist() == [['a'], ['b'], ['c', 'd']]

@pytest.mark.parametrize('kind', ['Audio', 'Value'])
def test_saved_folder_with_paths(tmp_path, home, kind):
    for place in ('set', 'other'): put(tmp_path/place/'wav'/'a é.wav')
    wrap = inside if kind == 'Audio' else lambda _, path: path
    folder = saved(tmp_path/'set'/'arrow', dict(sound=dict(_type=kind)), dict(sound=[wrap(None, '../wav/a é.wav'), wrap(None, str(tmp_path/'other/wav/a é.wav'))]))
    manifest = read_table(folder, audio='sound').require(2)
    assert manifest.paths == [tmp_path/'set/wav/a é.wav', tmp_path/'other/wav/a é.wav'] and manifest.root == folder and not home.exists()
    (tmp_path/'other'/'x').mkdir()
    put(tmp_path/'other'/'b.wav')
    folder = saved(tmp_path/'plain', dict(sound=dict(_type=kind)), dict(sound=[wrap(None, '../b.wav')]))
    assert read_table(folder, audio='sound', folder=tmp_path/'other'/'x').require(1).paths == [tmp_path/'other'/'b.wav']

def test_saved_splits_are_the_dictionary_unless_a_column_is_named(tmp_path, home):
    folder = saved(tmp_path/'set'/'train', dict(audio=AUDIO, fold=FEATURES['text']), dict(audio=[inside(WAV, 'a.wav'), inside(FLAC, 'b.flac')], fold=['1', '2']))
    put(folder.parent/'dataset_dict.json', '{"splits": ["train"]}')
    assert read_table(folder.parent).table['split'].tolist() == ['train']*2 and read_table(folder.parent, split='fold').table['split'].tolist() == read_table(folder).table['split'].tolist() == ['1', '2']

def _cut(path, n): path.write_bytes(path.read_bytes()[:n])

@pytest.mark.parametrize('spoil, options, message', [
    (lambda f: None, dict(folder='.'), 'has its sounds inside: no path starts from .*, leave folder= out'),
    (lambda f: None, dict(audio='sound'), 'has no column sound: expected sound, found audio, label, tags, text'),
    (lambda f: None, dict(vocabulary=['dog']), 'outside the vocabulary of 1: cat'),
    (lambda f: _cut(f/'train/data-00000-of-00002.arrow', -9), {}, 'data-00000-of-00002.arrow in train was cut short'),
    (lambda f: (f/'train/data-00001-of-00002.arrow').unlink(), {}, 'data-00001-of-00002.arrow of 2 Arrow files are not in train: there is data-00000'),
    (lambda f: (f/'train/data-00000-of-00002.arrow').write_bytes(b'x'*50 + bytes(4)), {}, 'train/data-00000-of-00002.arrow is damaged'),
    (lambda f: (f/'test/state.json').unlink(), {}, 'state.json is not in test: there is data-00000-of-00001.arrow, dataset_info.json. Was the folder copied whole'),
    (lambda f: put(f/'train/dataset_info.json', '{'), {}, 'train/dataset_info.json is no JSON'),
    (lambda f: put(f/'dataset_dict.json', '{}'), {}, 'names no split'),
    (lambda f: put(f/'train/dataset_info.json', json.dumps(dict(features=dict(FEATURES, label=dict(CLASS, names=['dog']))))), {}, 'class 1 of 1: dataset_info.json names dog'),
    (lambda f: put(f/'train/dataset_info.json', json.dumps(dict(features=dict(FEATURES, text=AUDIO)))), {}, "several columns of sounds: audio, text. Name one: audio='…'")])
def test_saved_folders_that_are_wrong(arrow, spoil, options, message):
    spoil(arrow)
    with pytest.raises(DataError, match=message): read_table(arrow, **options)

@pytest.mark.parametrize('sound, message', [(inside(b'<html>not found', None), "a sound without a name begins with b'<html>no', as no sound file does"), (None, 'row 1 of 1 names no sound file')])
def test_saved_sounds_that_are_none(tmp_path, home, sound, message):
    with pytest.raises(DataError, match=message): read_table(saved(tmp_path/'set', dict(audio=AUDIO), dict(audio=[sound])))

def test_saved_folder_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'find_spec', lambda name: None)
    put(tmp_path/'arrow/dataset_dict.json', '{"splits": ["train"]}')
    with pytest.raises(DataError, match='written by `datasets.save_to_disk`, as Arrow files, which need pyarrow, and that is not installed: `pip install pyarrow`'): read_table(tmp_path/'arrow')


def test_lines_that_are_no_lines(tmp_path):
    "A caption may hold a line break, and Unicode's line separator is none of ours."
    rows = read_rows(put(tmp_path/'t.csv', '\ufefffile,text\r\na,"one\ntwo"\r\nb,thr\u2028ee\r\n'), ['file', 'text'])
    assert [r['text'] for r in rows] == ['one\ntwo', 'thr\u2028ee']
    assert read_table(put(tmp_path/'t.jsonl', json.dumps(dict(path='a.wav', text='x\u2028y'), ensure_ascii=False))).table.text[0] == 'x\u2028y'


# --- real lists

@real('esc10')
def test_real_esc10():
    manifest = read_dataset('esc50', shared('esc10'), esc10=True)
    assert identify(shared('esc10')) == 'esc50' and manifest.summary()['splits'] == {'1': 80, '2': 80, '3': 80}
    assert not manifest.table.missing.any() and len(manifest.vocabulary) == 10 and 'crackling fire' in manifest.vocabulary
    with pytest.raises(DataError, match='400 clips are expected and 240 listed'): manifest.require()
    assert len(manifest.take(1, 2, 3).require()) == 240 and not manifest.notes


@real('gtzan_splits')
def test_real_gtzan_splits(tmp_path):
    lists = shared('gtzan_splits', 'data', 'index', 'GTZAN')
    manifest = read_dataset('gtzan', mini(tmp_path, 'gtzan'), filtered=lists)
    assert manifest.summary()['splits'] == dict(train=443, validation=197, test=290) and set(manifest.table.id) <= set(read_dataset('gtzan', tmp_path).table.id)
    assert row(manifest, 'jazz.00054')['split'] == 'train'
    for path in manifest.table.path: put(tmp_path/'gtzan'/f'{audio_stem(path)}.wav')
    manifest = read_dataset('gtzan', tmp_path, filtered=lists, skip={'jazz.00054': 'unreadable'}).require()
    assert (len(manifest), len(manifest.skipped), len(manifest.take('test').require())) == (929, 1, 290)


@real('layouts', 'openmic2018')
def test_real_openmic():
    manifest = read_dataset('openmic2018', shared('layouts', 'openmic2018'))
    clip = row(manifest, '000046_3840')
    assert clip.observed == ['clarinet', 'flute', 'trumpet'] and clip.labels == [] and clip['split'] == 'train' and not clip.missing
    assert len(manifest.vocabulary) == 20 and manifest.targets()[1].sum() == 3 and manifest.notes['clips of the splits without any label'] == 19
    assert identify(shared('layouts', 'openmic2018')) == 'openmic2018'


@real('layouts', 'openmic2018_repo')
def test_real_openmic_splits(tmp_path):
    for path in ('openmic-2018-aggregated-labels.csv', 'class-map.json'): put(tmp_path/path, shared('layouts', 'openmic2018', path).read_text())
    for part in ('train', 'test'): put(tmp_path/f'partitions/split01_{part}.csv', shared('layouts', 'openmic2018_repo', 'examples', f'split01_{part}.csv').read_text())
    manifest = read_dataset('openmic2018', tmp_path)
    assert manifest.published == 20_000 and manifest.notes['clips of the splits without any label'] == 19_999


@real('layouts', 'mtg_jamendo_autotagging_moodtheme')
def test_real_jamendo():
    manifest = read_dataset('mtg_jamendo', shared('layouts', 'mtg_jamendo_autotagging_moodtheme'))
    assert dict(zip(manifest.table.id, manifest.table['split'])) == dict(track_0000948='train', track_0003346='validation', track_0003524='test')
    assert row(manifest, 'track_0003346').labels == ['calm', 'melodic'] and manifest.table.missing.tolist() == [False, True, True]
    assert manifest.table.duration.tolist() == [212.7, 195, 266.1]


@real('musiccaps')
def test_real_musiccaps():
    manifest = read_dataset('musiccaps', shared('musiccaps'))
    assert manifest.summary()['splits'] == dict(train=2663, test=2858) and len(manifest) == manifest.published and manifest.table.missing.all()
    assert row(manifest, '-0Gj8-vB1q4').labels[:2] == ['low quality', 'sustained strings melody'] and manifest.table.text.str.len().min() > 0
    with pytest.raises(DataError, match='0 of 5,521 clips are there. Not one is'): manifest.require()


@real('audioset', 'class_labels_indices.csv')
def test_real_audioset_labels(tmp_path):
    put(tmp_path/'class_labels_indices.csv', shared('audioset', 'class_labels_indices.csv').read_text())
    put(tmp_path/'eval_segments.csv', '--abc, 30.000, 40.000, "/m/05zppz,/m/04rlf"\n')
    manifest = read_dataset('audioset', tmp_path)
    assert len(manifest.vocabulary) == 527 and manifest.table.labels[0] == ['Male speech, man speaking', 'Music']
    assert sum(',' in w for w in manifest.vocabulary) == 75 and not [w for w in manifest.vocabulary if ';' in w]


@real('layouts')
def test_real_folders_that_are_no_set_of_ours():
    for name in ('tinysol', 'groove_midi', 'vocadito'):
        with pytest.raises(DataError, match='is none of gtzan'): identify(shared('layouts', name))
