"The traps of AudioSet, FSD50K, OpenMIC-2018, MagnaTagATune and MTG-Jamendo, on miniatures and on real lists."
import numpy as np, pytest
from logocentric.data.datasets import identify, read_dataset
from logocentric.data.lists import DataError, youtube_names
from miniatures import MINI, mini, put, real, row, shared


def test_audioset_names_of_files_and_ids(tmp_path):
    folder = mini(tmp_path, 'audioset')
    read = lambda: read_dataset('audioset', folder)
    assert row(read(), '--aaaaaaaaa').labels == ['Speech', 'Male speech, man speaking']
    for name in youtube_names('Ybbbbbbbbbb', 0, 10):
        sound = put(folder/'wavs'/f'{name}.wav')
        assert row(read(), 'Ybbbbbbbbbb').path == f'wavs/{name}.wav'
        sound.unlink()
    put(folder/'eval_segments.csv', MINI['audioset']['eval_segments.csv'].replace('num_segs=2', 'num_segs=20371'))
    assert read().notes == {'segments of evaluation by the head of its list, which has 2': 20371}
    put(folder/'balanced_train_segments.csv', 'ccccccccccc, thirty, 40.000, "/m/1"\n')
    message = "balanced_train_segments.csv, ccccccccccc: expected a number, found 'thirty'"
    with pytest.raises(DataError, match=message): read()
    put(folder/'balanced_train_segments.csv', 'ccccccccccc, 30.000, 40.000, /m/1,/m/2\n')
    with pytest.raises(DataError, match='expected rows of id, start, end and quoted labels, found 1 others'): read()


def test_audioset_lists_with_a_plain_header(tmp_path):
    folder = mini(tmp_path, 'audioset')
    before = read_dataset('audioset', folder)
    put(folder/'eval_segments.csv', 'YTID,start_seconds,end_seconds,positive_labels\n'
                                    '--aaaaaaaaa,30.000,40.000,"/m/1,/m/2"\nYbbbbbbbbbb,0.000,10.000,"/m/1"\n')
    assert read_dataset('audioset', folder).hash == before.hash


def test_fsd50k_words(tmp_path):
    folder = mini(tmp_path, 'fsd50k')
    manifest = read_dataset('fsd50k', folder)
    words = ['Electric guitar', 'Guitar', 'Accelerating and revving and vroom', 'Keyboard (musical)']
    assert manifest.vocabulary == words
    assert (row(manifest, '37199').path, row(manifest, '37199')['split']) == ('FSD50K.eval_audio/37199', 'test')
    (folder/'FSD50K.ground_truth/vocabulary.csv').unlink()
    message = 'vocabulary.csv is not in FSD50K.ground_truth: there is dev.csv, eval.csv'
    with pytest.raises(DataError, match=message): read_dataset('fsd50k', tmp_path)


def test_openmic_unobserved_is_unknown(tmp_path):
    "An array of likelihoods says 0.5 of the unobserved; thresholded without its mask it would say: drums."
    manifest = read_dataset('openmic2018', mini(tmp_path, 'openmic2018'))
    true, known = manifest.targets()
    y_true, y_mask = np.array([[.5, .1, .5]]), np.array([[False, True, True]])
    assert np.array_equal(known, y_mask) and np.array_equal(true, (y_true >= .5) & y_mask)
    assert not np.array_equal(true, y_true >= .5) and manifest.vocabulary == ['drums', 'flute', 'mallet percussion']
    assert manifest.notes['clips of the splits without any label'] == 1


def test_magnatagatune_split_and_top(tmp_path):
    manifest = read_dataset('magnatagatune', mini(tmp_path, 'magnatagatune'))
    assert manifest.table['split'].tolist() == ['test', 'validation', 'train']
    assert manifest.table.labels.tolist() == [['harp', 'no voice'], ['harp'], []] and manifest.published == 25863
    assert read_dataset('magnatagatune', tmp_path, top=1).vocabulary == ['harp']


def test_jamendo_tags_beyond_the_header(tmp_path):
    manifest = read_dataset('mtg_jamendo', mini(tmp_path, 'mtg_jamendo'), fold=1)
    track = row(manifest, 'track_1')
    assert track.labels == ['calm', 'dark', 'deep'] and track.path == 'audio/48/948.low.mp3'
    assert manifest.vocabulary == ['calm', 'dark', 'deep'] and manifest.notes['tracks of the list in no split'] == 1
    with pytest.raises(DataError, match='there is no folder split-4'): read_dataset('mtg_jamendo', tmp_path, fold=4)
    message = 'autotagging_genre-train.tsv is not in split-0'
    with pytest.raises(DataError, match=message): read_dataset('mtg_jamendo', tmp_path, tags='genre')


def test_magnatagatune_flags_and_encodings_of_a_spreadsheet(tmp_path):
    folder = mini(tmp_path, 'magnatagatune')
    before, text = read_dataset('magnatagatune', folder), MINI['magnatagatune']['annotations_final.csv']
    put(folder/'annotations_final.csv', text.replace('"1"', '"TRUE"').replace('"0"', '"FALSE"'), 'utf-16')
    assert identify(folder) == 'magnatagatune' and read_dataset('magnatagatune', folder).hash == before.hash
    put(folder/'annotations_final.csv', text.replace('"1"', '"2"'))
    message = "annotations_final.csv, 2: expected true or false, found '2'"
    with pytest.raises(DataError, match=message): read_dataset('magnatagatune', folder)


def test_segments_that_begin_nowhere_are_refused(tmp_path):
    folder = mini(tmp_path, 'audioset')
    for start in ('nan', 'inf', '-1'):
        put(folder/'eval_segments.csv', MINI['audioset']['eval_segments.csv'].replace('30.000', start))
        with pytest.raises(DataError, match=f'eval_segments.csv, --aaaaaaaaa: expected .*found .{start}.'):
            read_dataset('audioset', folder)


# --- real lists

@real('audioset', 'class_labels_indices.csv')
def test_real_audioset_labels(tmp_path):
    put(tmp_path/'class_labels_indices.csv', shared('audioset', 'class_labels_indices.csv').read_text())
    put(tmp_path/'eval_segments.csv', '--abc, 30.000, 40.000, "/m/05zppz,/m/04rlf"\n')
    manifest = read_dataset('audioset', tmp_path)
    assert len(manifest.vocabulary) == 527 and manifest.table.labels[0] == ['Male speech, man speaking', 'Music']
    assert sum(',' in w for w in manifest.vocabulary) == 75 and not [w for w in manifest.vocabulary if ';' in w]


@real('layouts', 'openmic2018')
def test_real_openmic():
    manifest = read_dataset('openmic2018', shared('layouts', 'openmic2018'))
    clip = row(manifest, '000046_3840')
    assert clip.observed == ['clarinet', 'flute', 'trumpet'] and clip.labels == []
    assert clip['split'] == 'train' and not clip.missing
    assert len(manifest.vocabulary) == 20 and manifest.targets()[1].sum() == 3
    assert manifest.notes['clips of the splits without any label'] == 19
    assert identify(shared('layouts', 'openmic2018')) == 'openmic2018'


@real('layouts', 'openmic2018_repo')
def test_real_openmic_splits(tmp_path):
    copy = lambda to, *parts: put(tmp_path/to, shared('layouts', *parts).read_text())
    for path in ('openmic-2018-aggregated-labels.csv', 'class-map.json'): copy(path, 'openmic2018', path)
    for part in ('train', 'test'):
        copy(f'partitions/split01_{part}.csv', 'openmic2018_repo', 'examples', f'split01_{part}.csv')
    manifest = read_dataset('openmic2018', tmp_path)
    assert manifest.published == 20_000 and manifest.notes['clips of the splits without any label'] == 19_999


@real('layouts', 'mtg_jamendo_autotagging_moodtheme')
def test_real_jamendo():
    manifest = read_dataset('mtg_jamendo', shared('layouts', 'mtg_jamendo_autotagging_moodtheme'))
    splits = dict(track_0000948='train', track_0003346='validation', track_0003524='test')
    assert dict(zip(manifest.table.id, manifest.table['split'])) == splits
    assert row(manifest, 'track_0003346').labels == ['calm', 'melodic']
    assert manifest.table.missing.tolist() == [False, True, True]
    assert manifest.table.duration.tolist() == [212.7, 195, 266.1]
