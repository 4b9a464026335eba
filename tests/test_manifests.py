"Manifests: what the hash covers, what `require` refuses, what is kept on disk."
import hashlib, os
from importlib.util import find_spec
import numpy as np, pandas as pd, pytest
from logocentric.data.datasets import read_dataset
from logocentric.data.lists import DataError, write_skip_list
from logocentric.data.manifests import Manifest, manifest_hash
from logocentric.data.tables import read_table
from miniatures import MINI, mini, put


@pytest.fixture
def manifest(tmp_path): return read_dataset('fsd50k', mini(tmp_path, 'fsd50k'))


# --- the hash

def test_hash_is_of_the_clips_and_not_of_the_disk(manifest):
    table = manifest.table
    assert manifest_hash(table[::-1]) == manifest_hash(table.assign(path='other')) == manifest.hash
    changes = dict(id=list('abc'), start=1., duration=2., split='x', labels=[[], [], []], texts=[['a']]*3, missing=True)
    for column, value in changes.items():
        value = pd.Series(value, index=table.index) if isinstance(value, list) else value
        assert manifest_hash(table.assign(**{column: value})) != manifest.hash, column
    assert manifest.skip({'1': 'x'}).hash != manifest_hash(manifest.skip({'1': 'x'}).table) != manifest.hash


def test_hash_is_stable():
    table = pd.DataFrame(dict(id=['é', 'b'], start=[0., 1.5], duration=[np.nan, 2.], split=['', 'test'],
                              labels=[['z', 'a'], []], texts=[[], ['x']], missing=[False, True]))
    lines = ['["b", 1.5, 2.0, "test", ["x"], true, []]', '["é", 0.0, null, "", [], false, ["a", "z"]]']
    assert manifest_hash(table, n=64) == hashlib.sha256('\n'.join(lines).encode()).hexdigest()
    assert manifest_hash(table) == 'db44023ebd9b'


# --- going on with less

def test_require_counts_every_clip(manifest):
    message = r'1 of 3 clips are there. Missing: 1, 37199. Expected e.g. FSD50K.dev_audio/1 in fsd50k'
    with pytest.raises(DataError, match=message): manifest.require()
    left = manifest.skip(manifest.absent())
    assert (len(left), len(left.skipped), set(left.skipped.reason)) == (1, 2, {'the sound file is missing'})
    assert ', 2 skipped' in repr(left)
    with pytest.raises(DataError, match=r'51,197 clips are expected and 3 listed \(2 of them skipped\)'): left.require()
    assert left.require(3) is left and left.summary()['skipped'] == 2
    with pytest.raises(DataError, match='no clip is left'): left.skip({'64760': 'x'}).require(3)


@pytest.mark.parametrize('suffix', ['csv', 'json'])
def test_loaders_honour_skip_lists(tmp_path, suffix):
    listed = write_skip_list(tmp_path/f'skip.{suffix}', {'1': 'truncated, at 3 s', '-x': 'not of this set'})
    manifest = read_dataset('fsd50k', mini(tmp_path, 'fsd50k'), skip=listed)
    assert manifest.table.id.tolist() == ['64760', '37199']
    assert manifest.skipped[['id', 'reason']].values.tolist() == [['1', 'truncated, at 3 s']]
    assert manifest.notes['skip-listed ids that are not in this set'] == 1
    assert read_dataset('fsd50k', tmp_path, skip=listed, split='test').skipped.empty
    assert len(manifest.take('validation').skipped) == 1 and manifest.skip(listed).hash == manifest.hash


def test_targets_outside_a_vocabulary_one_sets(tmp_path):
    manifest = read_dataset('magnatagatune', mini(tmp_path, 'magnatagatune'))
    true, known = manifest.targets()
    assert true.tolist() == [[True, True], [True, False], [False, False]] and known.all()
    manifest.vocabulary = ['harp']
    with pytest.raises(DataError, match='outside the vocabulary of 1: no voice'): manifest.targets()


def test_names_are_skipped_as_they_are_and_else_without_blanks(tmp_path):
    text = 'path\n Rain.wav\nRain.wav\n Dog.wav\n'
    manifest = read_table(put(tmp_path/'t.csv', text))
    assert manifest.skip({' Rain': 'x'}).table.id.tolist() == ['Rain', ' Dog']
    assert manifest.skip({'Rain': 'x'}).table.id.tolist() == [' Rain', ' Dog']
    left = manifest.skip(put(tmp_path/'skip.csv', 'id,reason\nDog,x\nCat,y\n'))
    assert left.table.id.tolist() == [' Rain', 'Rain'] and left.skipped.id.tolist() == [' Dog']
    assert left.notes['skip-listed ids that are not in this set'] == 1


# --- on disk

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
        facts = ('vocabulary', 'expected', 'source')
        assert [getattr(again, f) for f in facts] == [getattr(manifest, f) for f in facts]


def test_saved_manifests_that_are_none(tmp_path, manifest):
    saved = manifest.save(tmp_path/'m.csv')
    put(saved, saved.read_text().replace('Guitar', 'Banjo', 1))
    Manifest.load(manifest.save(tmp_path/'n.csv'))
    put(saved, manifest.save(tmp_path/'n.csv').read_text().replace('64760', '64761'))
    own = put(tmp_path/'own.csv', 'path\na.wav\n')
    for path, message in ((saved, 'was changed after it was saved'), (tmp_path/'none.csv', 'no manifest none.csv'),
                          (own, 'is no saved manifest: read a list of your own')):
        with pytest.raises(DataError, match=message): Manifest.load(path)


def test_broken_json(tmp_path, manifest):
    folder = mini(tmp_path, 'openmic2018')
    put(folder/'class-map.json', '{')
    with pytest.raises(DataError, match='class-map.json is no JSON'): read_dataset('openmic2018', folder)
    saved = manifest.save(tmp_path/'m.csv')
    put(saved, saved.read_text().replace('manifest {', 'manifest {{', 1))
    with pytest.raises(DataError, match='the first line of m.csv is no JSON'): Manifest.load(saved)


def test_saved_manifests_through_a_spreadsheet_and_a_saw(tmp_path, manifest):
    saved = manifest.save(tmp_path/'m.csv')
    text = saved.read_text(encoding='utf-8')
    spelled = text.replace(',True,', ',TRUE,').replace(',False,', ',FALSE,')
    assert spelled != text and Manifest.load(put(tmp_path/'n.csv', spelled)).hash == manifest.hash
    for damaged in (text[:-len(text)//3], text.replace('"hash"', '"hush"'), text.replace(',start,', ',begin,'),
                    '# logocentric manifest []\n', '# logocentric manifest {}\nid\n', text.replace('True', 'perhaps'),
                    text.replace('["', '[[["', 1)):
        with pytest.raises(DataError, match='n.csv'): Manifest.load(put(tmp_path/'n.csv', damaged))


def test_file_names_that_are_not_utf8_have_a_hash_and_are_saved(tmp_path):
    name = os.fsdecode(b'caf\xe9.wav')
    try: put(tmp_path/'sounds'/name)
    except OSError: pytest.skip('this disk takes no such name')
    manifest = read_table(tmp_path/'sounds').require(1)
    assert Manifest.load(manifest.save(tmp_path/'m.csv')).hash == manifest.hash and manifest.paths[0].is_file()


@pytest.mark.skipif(find_spec('pyarrow') is not None, reason='pyarrow is installed')
def test_parquet_without_pyarrow(tmp_path, manifest):
    message = 'Parquet needs pyarrow, which is not installed'
    with pytest.raises(DataError, match=message): manifest.save(tmp_path/'m.parquet')


def test_moved_to_another_folder(tmp_path, manifest):
    saved = manifest.save(tmp_path/'m.csv')
    put(tmp_path/'new/FSD50K.eval_audio/37199.flac')
    moved = Manifest.load(saved, root=tmp_path/'new')
    assert moved.table.missing.tolist() == [True, True, False]
    assert moved.paths[2] == tmp_path/'new/FSD50K.eval_audio/37199.flac'


def test_sounds_in_no_list_are_counted(tmp_path):
    folder = mini(tmp_path, 'fsd50k')
    for name in ('extra.wav', '._64760.wav', 'notes.txt', '__MACOSX/64760.wav'): put(folder/'FSD50K.dev_audio'/name)
    assert read_dataset('fsd50k', folder).notes == {'sound files in no list': 1}
