"The traps of GTZAN, FMA small and ESC-50; real lists where they lie beside the checkout."
import pytest
from logocentric.data.class_sets import GTZAN_GENRES
from logocentric.data.datasets import identify, read_dataset
from logocentric.data.lists import DataError, audio_stem
from miniatures import FMA, MINI, mini, put, real, row, shared


@pytest.mark.parametrize('place', ['genres/', 'genres_original/', ''])
def test_gtzan_folders_and_formats(tmp_path, place):
    for g in GTZAN_GENRES: put(tmp_path/f'{place}{g}/{g}.00000.{"au" if g == "rock" else "wav"}')
    manifest = read_dataset('gtzan', tmp_path)
    assert manifest.table.id[~manifest.table.missing].tolist() == [f'{g}.00000' for g in GTZAN_GENRES]
    assert row(manifest, 'rock.00000').path == f'{place}rock/rock.00000.au'
    assert row(manifest, 'jazz.00054').labels == ['jazz']


def test_gtzan_filtered_from_lists(tmp_path):
    folder, lists = mini(tmp_path, 'gtzan'), tmp_path/'lists'
    read = lambda: read_dataset('gtzan', folder, filtered=lists)
    with pytest.raises(DataError, match='no folder'): read()
    for part, line in dict(train='blues/blues.00000.wav', valid='jazz/jazz.00054.wav').items():
        put(lists/f'{part}_filtered.txt', line + '\n')
    message = 'test_filtered.txt is not in lists: there is train_filtered.txt, valid_filtered.txt'
    with pytest.raises(DataError, match=message): read()
    put(lists/'test_filtered.txt', 'hiphop/hiphop.00099.wav\n')
    manifest = read()
    splits = {'blues.00000': 'train', 'jazz.00054': 'validation', 'hiphop.00099': 'test'}
    assert dict(zip(manifest.table.id, manifest.table['split'])) == splits
    assert manifest.published == 930 and manifest.take('test').published == 290
    with pytest.raises(DataError, match='290 clips are expected and 1 listed'): manifest.take('test').require()


def test_fma_small_is_not_medium(tmp_path):
    folder = mini(tmp_path, 'fma_small')
    manifest = read_dataset('fma_small', folder)
    assert manifest.table.id.tolist() == ['000002', '000005', '000007']
    assert row(manifest, '000007').path == 'fma_small/000/000007'
    assert (manifest.published, manifest.take('test').published) == (8000, 800)
    twice = 'tracks.csv: listed twice, in the subset small and in another: 2. Correct'
    for text, message in ((FMA + '2,training,large,Rock,x\n', twice),
                          (FMA.replace(',small,', ',medium,'), 'no track of the subset small; it has large, medium'),
                          (FMA + '12,training,small,Rock,"never closed', 'tracks.csv is damaged')):
        put(folder/'fma_metadata/tracks.csv', text)
        with pytest.raises(DataError, match=message): read_dataset('fma_small', tmp_path)


def test_esc10_and_edited_targets(tmp_path):
    folder = mini(tmp_path, 'esc50')
    assert read_dataset('esc50', folder, esc10=True).table.labels.tolist() == [['crackling fire']]
    assert read_dataset('esc50', folder).published == 2000
    assert read_dataset('esc50', folder, esc10=True, split=1).published == 80
    put(folder/'meta/esc50.csv', MINI['esc50']['meta/esc50.csv'].replace(',7,rooster', ',12,rooster'))
    with pytest.raises(DataError, match='share a target with another category'): read_dataset('esc50', folder)


@pytest.mark.parametrize('spelled', ['TRUE', 'true', '1', 'yes'])
def test_esc10_however_true_is_spelled(tmp_path, spelled):
    folder = mini(tmp_path, 'esc50')
    put(folder/'meta/esc50.csv', MINI['esc50']['meta/esc50.csv'].replace(',True,', f',{spelled},'))
    assert read_dataset('esc50', folder, esc10=True).table.labels.tolist() == [['crackling fire']]


@pytest.mark.parametrize('encoding', ['cp1252', 'utf-16', 'utf-8-sig'])
def test_fma_in_other_encodings(tmp_path, encoding):
    folder = mini(tmp_path, 'fma_small')
    before = read_dataset('fma_small', folder)
    put(folder/'fma_metadata/tracks.csv', FMA.replace('"a\nb, c"', 'Café –'), encoding)
    assert read_dataset('fma_small', folder).hash == before.hash


# --- real lists

@real('esc10')
def test_real_esc10():
    manifest = read_dataset('esc50', shared('esc10'), esc10=True)
    assert identify(shared('esc10')) == 'esc50' and manifest.summary()['splits'] == {'1': 80, '2': 80, '3': 80}
    assert not manifest.table.missing.any()
    assert len(manifest.vocabulary) == 10 and 'crackling fire' in manifest.vocabulary
    with pytest.raises(DataError, match='400 clips are expected and 240 listed'): manifest.require()
    assert len(manifest.take(1, 2, 3).require()) == 240 and not manifest.notes


@real('gtzan_splits')
def test_real_gtzan_splits(tmp_path):
    lists = shared('gtzan_splits', 'data', 'index', 'GTZAN')
    manifest = read_dataset('gtzan', mini(tmp_path, 'gtzan'), filtered=lists)
    assert manifest.summary()['splits'] == dict(train=443, validation=197, test=290)
    assert set(manifest.table.id) <= set(read_dataset('gtzan', tmp_path).table.id)
    assert row(manifest, 'jazz.00054')['split'] == 'train'
    for path in manifest.table.path: put(tmp_path/'gtzan'/f'{audio_stem(path)}.wav')
    manifest = read_dataset('gtzan', tmp_path, filtered=lists, skip={'jazz.00054': 'unreadable'}).require()
    assert (len(manifest), len(manifest.skipped), len(manifest.take('test').require())) == (929, 1, 290)
