"Folders of `save_to_disk`, written here as the library writes them."
import hashlib, json
import pytest
from logocentric.data import arrow_folders
from logocentric.data.lists import DataError
from logocentric.data.manifests import Manifest
from logocentric.data.tables import read_table
from miniatures import put

AUDIO, CLASS = dict(_type='Audio'), dict(_type='ClassLabel', names=['dog', 'cat', 'none of these'])
TAGS = dict(_type='Sequence', feature=dict(_type='ClassLabel', names=['x', 'y']))
FEATURES = dict(audio=AUDIO, label=CLASS, tags=TAGS, text=dict(_type='Value', dtype='string'))
WAV, FLAC = b'RIFF\x24\0\0\0WAVEfmt ', b'fLaC\0\0\0\x22'
inside = lambda raw, path=None: dict(bytes=raw, path=path)

def saved(folder, features, *shards, fingerprint='0123456789abcdef'):
    "Arrow files of some columns each, with the two JSON files beside them."
    pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    kinds = dict(Audio=pa.struct(dict(bytes=pa.binary(), path=pa.string())), ClassLabel=pa.int64(), Value=pa.string(),
                 Sequence=pa.list_(pa.int64()))
    folder.mkdir(parents=True)
    names = [f'data-{n:05}-of-{len(shards):05}.arrow' for n in range(len(shards))]
    for name, columns in zip(names, shards):
        table = pa.table({c: pa.array(v, type=kinds[features[c]['_type']]) for c, v in columns.items()})
        with pa.OSFile(str(folder/name), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out:
            out.write_table(table, max_chunksize=2)
    info = dict(citation='', description='', features=features, homepage='', license='')
    state = dict(_data_files=[dict(filename=n) for n in names], _fingerprint=fingerprint, _format_columns=None,
                 _split=None)
    put(folder/'dataset_info.json', json.dumps(info))
    put(folder/'state.json', json.dumps(state))
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def arrow(tmp_path, home):
    "Two splits; in one two files of three rows, one without a name and one of no class."
    first = dict(audio=[inside(WAV + b'1', 'é.wav'), inside(FLAC)], label=[1, 0], tags=[[1, 0], []],
                 text=['a cat', None])
    second = dict(audio=[inside(WAV + b'3', '-3.wav')], label=[-1], tags=[None], text=[''])
    test = dict(audio=[inside(WAV + b'1', 'é.wav')], label=[None], tags=[[1]], text=['x'])
    saved(tmp_path/'set'/'train', FEATURES, first, second)
    saved(tmp_path/'set'/'test', FEATURES, test, fingerprint='f')
    put(tmp_path/'set'/'dataset_dict.json', '{"splits": ["train", "test"]}')
    return tmp_path/'set'


# --- folders that are whole

def test_saved_folder(arrow, home):
    times = lambda: {p: p.stat().st_mtime_ns for p in [arrow, *arrow.rglob('*')]}
    before = times()
    manifest = read_table(arrow).require(4)
    nameless, table = hashlib.sha256(FLAC).hexdigest()[:16], manifest.table
    assert table.id.tolist() == ['train/é', f'train/{nameless}', 'train/-3', 'test/é']
    assert table['split'].tolist() == ['train']*3 + ['test'] and table.texts.tolist() == [['a cat'], [], [], ['x']]
    assert table.labels.tolist() == [['cat'], ['dog'], [], []]
    assert manifest.vocabulary == ['dog', 'cat', 'none of these']
    assert [p.read_bytes() for p in manifest.paths] == [WAV + b'1', FLAC, WAV + b'3', WAV + b'1']
    assert [p.suffix for p in manifest.paths] == ['.wav', '.flac', '.wav', '.wav']
    assert home/'data'/'cache'/'arrow' in manifest.root.parents and times() == before
    tags = read_table(arrow, labels='tags')
    assert tags.table.labels.tolist() == [['y', 'x'], [], [], ['y']] and tags.vocabulary == ['x', 'y']
    assert tags.paths == manifest.paths
    again = Manifest.load(manifest.save(arrow.parent/'saved.csv'))
    assert again.hash == manifest.hash == read_table(arrow.rename(arrow.with_name('moved'))).hash
    assert not again.table.missing.any()


def test_saved_sounds_are_written_once(arrow):
    paths = read_table(arrow).paths
    times = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    assert [p.stat().st_mtime_ns for p in read_table(arrow).paths][2:] == times[2:] and paths[1].is_file()
    assert {p.name for p in paths[0].parent.iterdir()} == {p.name for p in paths[:3]}


def test_saved_names_that_sounds_share(tmp_path, home):
    sounds = [inside(WAV + b'1', 'dog/1.wav'), inside(WAV + b'2', 'cat/1.wav'), *[inside(WAV + b'3', '3.wav')]*2]
    folder = saved(tmp_path/'set', dict(audio=AUDIO, text=FEATURES['text']), dict(audio=sounds, text=list('abcd')))
    table = read_table(folder).require(3).table
    assert [i[:2] for i in table.id] == ['1-', '1-', '3'] and table.id.is_unique
    assert table.texts.tolist() == [['a'], ['b'], ['c', 'd']]


@pytest.mark.parametrize('kind', ['Audio', 'Value'])
def test_saved_folder_with_paths(tmp_path, home, kind):
    for place in ('set', 'other'): put(tmp_path/place/'wav'/'a é.wav')
    wrap = inside if kind == 'Audio' else lambda _, path: path
    features = dict(sound=dict(_type=kind))
    sounds = [wrap(None, '../wav/a é.wav'), wrap(None, str(tmp_path/'other/wav/a é.wav'))]
    folder = saved(tmp_path/'set'/'arrow', features, dict(sound=sounds))
    manifest = read_table(folder, audio='sound').require(2)
    assert manifest.paths == [tmp_path/'set/wav/a é.wav', tmp_path/'other/wav/a é.wav']
    assert manifest.root == folder and not home.exists()
    (tmp_path/'other'/'x').mkdir()
    put(tmp_path/'other'/'b.wav')
    folder = saved(tmp_path/'plain', features, dict(sound=[wrap(None, '../b.wav')]))
    manifest = read_table(folder, audio='sound', folder=tmp_path/'other'/'x').require(1)
    assert manifest.paths == [tmp_path/'other'/'b.wav']


def test_saved_splits_are_the_dictionary_unless_a_column_is_named(tmp_path, home):
    rows = dict(audio=[inside(WAV, 'a.wav'), inside(FLAC, 'b.flac')], fold=['1', '2'])
    folder = saved(tmp_path/'set'/'train', dict(audio=AUDIO, fold=FEATURES['text']), rows)
    put(folder.parent/'dataset_dict.json', '{"splits": ["train"]}')
    splits = lambda *path, **options: read_table(*path, **options).table['split'].tolist()
    assert splits(folder.parent) == ['train']*2
    assert splits(folder.parent, split='fold') == splits(folder) == ['1', '2']


# --- folders that are damaged

def _cut(path, n): path.write_bytes(path.read_bytes()[:n])

def _features(folder, **features): # changed
    put(folder/'train/dataset_info.json', json.dumps(dict(features=dict(FEATURES, **features))))

FIRST, SECOND = (f'train/data-0000{n}-of-00002.arrow' for n in (0, 1))

@pytest.mark.parametrize('spoil, options, message', [
    (lambda f: None, dict(folder='.'), 'has its sounds inside: no path starts from .*, leave folder= out'),
    (lambda f: None, dict(audio='sound'), 'has no column sound: expected sound, found audio, label, tags, text'),
    (lambda f: None, dict(vocabulary=['dog']), 'outside the vocabulary of 1: cat'),
    (lambda f: _cut(f/FIRST, -9), {}, 'data-00000-of-00002.arrow in train was cut short'),
    (lambda f: (f/SECOND).unlink(), {},
     'data-00001-of-00002.arrow of 2 Arrow files are not in train: there is data-00000'),
    (lambda f: (f/FIRST).write_bytes(b'x'*50 + bytes(4)), {}, 'train/data-00000-of-00002.arrow is damaged'),
    (lambda f: (f/'test/state.json').unlink(), {},
     'state.json is not in test: there is data-00000-of-00001.arrow, dataset_info.json. Was the folder copied whole'),
    (lambda f: put(f/'train/dataset_info.json', '{'), {}, 'train/dataset_info.json is no JSON'),
    (lambda f: put(f/'dataset_dict.json', '{}'), {}, 'names no split'),
    (lambda f: _features(f, label=dict(CLASS, names=['dog'])), {}, 'class 1 of 1: dataset_info.json names dog'),
    (lambda f: _features(f, text=AUDIO), {}, "several columns of sounds: audio, text. Name one: audio='…'")])
def test_saved_folders_that_are_wrong(arrow, spoil, options, message):
    spoil(arrow)
    with pytest.raises(DataError, match=message): read_table(arrow, **options)


@pytest.mark.parametrize('sound, message', [
    (inside(b'<html>not found', None), "a sound without a name begins with b'<html>no', as no sound file does"),
    (None, 'row 1 names no sound file')])
def test_saved_sounds_that_are_none(tmp_path, home, sound, message):
    folder = saved(tmp_path/'set', dict(audio=AUDIO), dict(audio=[sound]))
    with pytest.raises(DataError, match=message): read_table(folder)


def test_saved_folder_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_folders, 'find_spec', lambda name: None)
    put(tmp_path/'arrow/dataset_dict.json', '{"splits": ["train"]}')
    message = ('written by `datasets.save_to_disk`, as Arrow files, which need pyarrow, and that is not installed: '
               '`pip install pyarrow`')
    with pytest.raises(DataError, match=message): read_table(tmp_path/'arrow')
