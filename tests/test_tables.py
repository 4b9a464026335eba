"Tables of one's own, and audio folders."
import pandas as pd, pytest
from logocentric.data.lists import DataError
from logocentric.data.tables import read_table
from miniatures import put


# --- tables

@pytest.mark.parametrize('name, text', [
    ('t.csv', 'path,caption,tags\nwav/loop é.wav,"slow, sad",drums;bass\n-take.flac,,"Bird, flight"\n'),
    ('t.tsv', 'file_name\ttext\tlabels\nwav/loop é.wav\tslow, sad\tdrums;bass\n-take.flac\t\tBird, flight\n'),
    ('t.jsonl', '{"audio": "wav/loop é.wav", "text": "slow, sad", "labels": ["drums", "bass"]}\n'
                '{"audio": "./-take.flac", "text": null, "labels": ["Bird, flight"]}\n')])
def test_own_tables(tmp_path, name, text):
    for sound in ('wav/loop e\u0301.wav', '-take.flac'): put(tmp_path/sound)
    manifest = read_table(put(tmp_path/name, text)).require()
    assert manifest.table.id.tolist() == ['wav/loop é', '-take']
    assert manifest.table.texts.tolist() == [['slow, sad'], []]
    assert manifest.vocabulary == ['Bird, flight', 'bass', 'drums']
    assert manifest.table.labels.tolist()[0] == ['drums', 'bass']
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
    rows = '{"path": "a.mp3", "fold": 0, "label": 0}\n{"path": "b.mp3", "fold": 1, "label": "[\\"x"}\n'
    table = read_table(put(tmp_path/'t.jsonl', rows)).table
    assert table.path.tolist() == ['a.mp3', 'b.mp3'] and table['split'].tolist() == ['0', '1']
    assert table.labels.tolist() == [['0'], ['["x']]


def test_own_tables_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match='no table t.csv in .*: there is nothing'): read_table(tmp_path/'t.csv')
    message = 'has no metadata.csv, .jsonl or .parquet, and no sound file'
    with pytest.raises(DataError, match=message): read_table(tmp_path)


# --- audio folders

@pytest.mark.parametrize('kind, text', [('csv', 'file_name,label\n-a é.wav,x\n'),
                                        ('jsonl', '{"file_name": "-a é.wav", "label": "x"}\n')])
@pytest.mark.parametrize('places', [{'': ''}, {'train': 'train', 'val': 'validation', 'test': 'test'},
                                    {'data/train': 'train', 'data/eval': 'test'}])
def test_audio_folders_with_tables(tmp_path, kind, text, places):
    for place in places:
        put(tmp_path/place/f'metadata.{kind}', text)
        put(tmp_path/place/'-a é.wav')
    manifest = read_table(tmp_path).require(len(places))
    assert sorted(manifest.table['split']) == sorted(places.values())
    assert manifest.vocabulary == ['x'] and all(p.is_file() for p in manifest.paths)


def test_audio_folder_with_parquet(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    put(tmp_path/'train/a.wav')
    pd.DataFrame(dict(file_name=['a.wav'], text=['calm'])).to_parquet(tmp_path/'train/metadata.parquet')
    assert read_table(tmp_path).require().table[['text', 'split']].values.tolist() == [['calm', 'train']]


@pytest.mark.parametrize('files, labels, splits', [
    (['data/train/Jäz/01.mp3', 'data/test/punk/01.mp3'], [['punk'], ['Jäz']], ['test', 'train']),
    (['dog/1.wav', 'cat/-1.wav'], [['cat'], ['dog']], ['', '']),
    (['1.wav', '2.wav'], [[], []], ['', '']),
    (['all/1.wav', 'all/2.wav'], [[], []], ['', '']),
    (['train/1.wav', 'dev/1.wav'], [[], []], ['validation', 'train'])])
def test_audio_folders_of_classes(tmp_path, files, labels, splits):
    for f in files: put(tmp_path/f)
    table = read_table(tmp_path).require(len(files)).table
    assert table.labels.tolist() == labels and table['split'].tolist() == splits


def test_audio_folders_that_are_wrong(tmp_path):
    for f in ('dog/1.wav', 'cat/old/2.wav'): put(tmp_path/'deep'/f)
    with pytest.raises(DataError, match='lie at different depths'): read_table(tmp_path/'deep')
    for f in ('metadata.csv', 'metadata.jsonl'): put(tmp_path/'two'/f)
    message = 'several tables in one folder: metadata.csv, metadata.jsonl'
    with pytest.raises(DataError, match=message): read_table(tmp_path/'two')
    message = 'is an audio folder, whose paths start from its tables: leave folder= out'
    with pytest.raises(DataError, match=message): read_table(tmp_path/'two', folder=tmp_path)
