"Tables of one's own, and audio folders."
import json
import numpy as np, pandas as pd, pytest
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
    ('t.csv', 'path,label\n,x\n', {}, 'row 1 names no sound file'),
    ('t.csv', 'path,label\na.wav,x\na.wav,y\n', {}, 'row 2 repeats a with another file, other labels'),
    ('t.csv', 'path,label\na.wav,x\na.mp3,x\n', {}, 'row 2 repeats a with another file'),
    ('t.csv', 'path,label\na.wav,x\n', dict(vocabulary=['y']), 'outside the vocabulary of 1: x'),
    ('t.csv', 'path,start\na.wav,soon\n', {}, "t.csv, row 1, start: expected a number, found 'soon'"),
    ('t.csv', 'path,text\na.wav,"never clo', {}, 'ends inside a quoted field'),
    ('t.jsonl', '{"path": "a.wav"}\n{"path": "b.w', {}, 't.jsonl, line 2 is no JSON'),
    ('t.xlsx', 'PK', {}, 'a table ends in .csv, .tsv, .jsonl or .parquet')])
def test_own_tables_that_are_wrong(tmp_path, name, text, options, message):
    with pytest.raises(DataError, match=message): read_table(put(tmp_path/name, text), **options)


def test_own_table_means_the_file_it_names(tmp_path):
    for name in ('a.wav', 'a.mp3'): put(tmp_path/name)
    rows = '{"path": "a.mp3", "fold": 0, "label": 0}\n{"path": "b.mp3", "fold": 1, "label": "[\\"x"}\n'
    table = read_table(put(tmp_path/'t.jsonl', rows)).table
    assert table.path.tolist() == ['a.mp3', 'b.mp3'] and table['split'].tolist() == ['0', '1']
    assert table.labels.tolist() == [['0'], ['["x']]


# --- what spreadsheets and other programs make of a table

@pytest.mark.parametrize('field, labels', [
    ("['rock', 'pop']", ['rock', 'pop']), ("['rock' 'pop']", ['rock', 'pop']), ('["rock", "pop"]', ['rock', 'pop']),
    ('["a"]', ['a']), ('[]', []), ("[\"rock 'n' roll\",\n 'pop']", ["rock 'n' roll", 'pop']),
    ('rock; pop', ['rock', 'pop']), ('Bird, flight', ['Bird, flight'])])
def test_a_list_in_a_field_is_labels(tmp_path, field, labels):
    table = pd.DataFrame(dict(path=['a.wav'], label=[field], text=['[silence]']))
    table.to_csv(tmp_path/'t.csv', index=False)
    manifest = read_table(tmp_path/'t.csv')
    assert manifest.table.labels[0] == labels and manifest.vocabulary == sorted(labels)
    assert manifest.table.texts[0] == ['[silence]']


def test_lists_as_pandas_writes_them_are_labels(tmp_path):
    table = pd.DataFrame(dict(path=['a.wav', 'b.wav'], tags=[['rock', 'pop'], []]))
    for tags in (table.tags, table.tags.map(lambda words: np.array(words, dtype=object))):
        table.assign(tags=tags).to_csv(tmp_path/'t.csv', index=False)
        assert read_table(tmp_path/'t.csv').table.labels.tolist() == [['rock', 'pop'], []]
    with pytest.raises(DataError, match=r"t.csv, row 2: '\[rock, pop\]' is no list that can be read"):
        read_table(put(tmp_path/'t.csv', 'path,label\na.wav,x\nb.wav,"[rock, pop]"\n'))


def test_start_and_end_are_start_and_duration(tmp_path):
    rows = 'path,start_time,end_time\na.wav,30,40.5\na.wav,,5\n'
    table = read_table(put(tmp_path/'t.csv', rows.replace('a.wav,,', 'b.wav,,'))).table
    assert table[['start', 'duration']].values.tolist() == [[30, 10.5], [0, 5]]
    table = read_table(put(tmp_path/'t.csv', 'path,start_s,end_s,duration\na.wav,1,3,2\nb.wav,,,nan\n')).table
    assert table.start.tolist() == [1, 0] and table.duration[0] == 2 and np.isnan(table.duration[1])


@pytest.mark.parametrize('columns, row, message', [
    ('start', 'nan', "start: expected a number, found 'nan'"), ('start', 'inf', 'start: expected a number'),
    ('start', '-1', "start: expected seconds, 0 or more"), ('duration', 'inf', 'duration: expected a number'),
    ('duration', '-2', 'duration: expected seconds'), ('start,end', '5,5', 'ends at 5 s and begins at 5 s'),
    ('start,end,duration', '30,40,180', 'from 30 s to 40 s is no duration of 180 s')])
def test_times_that_are_none_are_refused_with_their_row(tmp_path, columns, row, message):
    commas = ','*columns.count(',')
    text = f'path,{columns}\na.wav,{commas}\nb.wav,{row}\n'
    with pytest.raises(DataError, match=f't.csv, row 2.*{message}'): read_table(put(tmp_path/'t.csv', text))
    line = json.dumps(dict(path='a.wav', start=float('nan')))
    with pytest.raises(DataError, match='t.jsonl, row 1, start'): read_table(put(tmp_path/'t.jsonl', line))


def test_backslashes_are_folders_and_counted(tmp_path):
    put(tmp_path/'wav/a.wav')
    manifest = read_table(put(tmp_path/'t.csv', 'path,label\nwav\\a.wav,x\n')).require(1)
    assert manifest.table.path[0] == 'wav/a.wav'
    assert list(manifest.notes) == ['sounds found without the blanks at the ends of a name, or with / for a backslash']
    assert not len(manifest.skip({'wav/a': 'noisy'})) and not len(manifest.skip({'wav\\a': 'noisy'}))
    gone = read_table(put(tmp_path/'t.csv', 'path\nmp3\\b.mp3\n'))
    with pytest.raises(DataError, match='A backslash is no / here: write folders with /'): gone.require()


@pytest.mark.parametrize('text, message', [
    ('[{"path": "a.wav"}]', 't.jsonl, line 1, begins one JSON array'),
    ('[\n{"path": "a.wav"}\n]', 't.jsonl, line 1, begins one JSON array'),
    ('{"path": "a.wav"}\n\n"b.wav"\n', 't.jsonl, line 3: expected an object such as .* found \'"b.wav"\''),
    ('{"path": "a.wav"}\n3\n', "t.jsonl, line 2: expected an object such as .* found '3'"),
    ('{"path": "a.wav"}\n' + '['*100_000, 't.jsonl, line 2 is nested too deeply'),
    ('{"path": "a.wav", "text": "x\\ud800"}', 't.jsonl, line 1 holds half a character'),
    ('{"path": "a.wav", "size": ' + '9'*5000 + '}', 't.jsonl, line 1 is no JSON'),
    ('{"path": "a.wav", "path": "b.wav"}', 't.jsonl, line 1 is no JSON .a key stands twice: path')])
def test_json_lines_that_are_none(tmp_path, text, message):
    with pytest.raises(DataError, match=message): read_table(put(tmp_path/'t.jsonl', text))


def test_headers_that_say_too_much_or_too_little(tmp_path):
    with pytest.raises(DataError, match='t.csv has several columns text: which one is meant'):
        read_table(put(tmp_path/'t.csv', 'path,text,text\na.wav,x,y\n'))
    with pytest.raises(DataError, match='t.csv has a header and no row below it'):
        read_table(put(tmp_path/'t.csv', 'path,text\n'))


def test_a_long_table_is_not_held_twice(tmp_path):
    "Rows are read one after the other: strings that repeat are one object, and no row is kept beside its clip."
    rows = ''.join(f'wav/{i}.wav,"loop {i}",drums;bass,train\n' for i in range(300))
    manifest = read_table(put(tmp_path/'t.csv', f'path,text,labels,split\n{rows}'))
    labels = manifest.table.labels.tolist()
    assert len(labels) == 300 and all(words[0] is labels[0][0] for words in labels)
    assert manifest.table.text[299] == 'loop 299' and manifest.vocabulary == ['bass', 'drums']


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
