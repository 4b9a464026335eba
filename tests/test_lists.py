"Sound files below a folder, and lists as they are found on disks."
import json
import pytest
from logocentric.data.lists import DataError, audio_index, audio_stem, decode_text, read_rows, read_skip_list
from logocentric.data.tables import read_table
from miniatures import put


def test_links_that_go_in_circles(tmp_path):
    put(tmp_path/'a/b/c.wav')
    (tmp_path/'a/b/up').symlink_to(tmp_path/'a', target_is_directory=True)
    put(tmp_path.parent/f'{tmp_path.name}-disk/d.wav')
    (tmp_path/'a/disk').symlink_to(tmp_path.parent/f'{tmp_path.name}-disk', target_is_directory=True)
    assert audio_index(tmp_path).paths == {'a/b/c': 'a/b/c.wav', 'a/disk/d': 'a/disk/d.wav'}


def test_one_stem_in_two_formats(tmp_path):
    for name in ('a.mp3', 'a.WAV', 'b.c.mp3', 'b.mp3'): put(tmp_path/name)
    assert audio_index(tmp_path).paths == {'a': 'a.WAV', 'b.c': 'b.c.mp3', 'b': 'b.mp3'} and audio_stem('a.b') == 'a.b'


def test_lines_that_are_no_lines(tmp_path):
    "A caption may hold a line break, and Unicode's line separator is none of ours."
    rows = read_rows(put(tmp_path/'t.csv', '\ufefffile,text\r\na,"one\ntwo"\r\nb,thr\u2028ee\r\n'), ['file', 'text'])
    assert [r['text'] for r in rows] == ['one\ntwo', 'thr\u2028ee']
    line = json.dumps(dict(path='a.wav', text='x\u2028y'), ensure_ascii=False)
    assert read_table(put(tmp_path/'t.jsonl', line)).table.text[0] == 'x\u2028y'


# --- letters

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252'])
def test_lists_in_every_encoding_of_a_spreadsheet(tmp_path, encoding):
    text = 'path,text\na.wav,“slow” – für 5 €\n'
    assert read_rows(put(tmp_path/'t.csv', text, encoding))[0]['text'] == '“slow” – für 5 €'


def test_latin_1_is_read_without_control_characters(tmp_path):
    assert read_rows(put(tmp_path/'t.csv', 'name\ncafé\n', 'latin-1'))[0]['name'] == 'café'
    for encoding in ('cp932', 'utf-16'): # a text of Windows in Japanese, and half a letter
        raw = 'path,text\na.wav,ゆっくり、静か\n'.encode(encoding)
        (tmp_path/'t.csv').write_bytes(raw[:-1])
        with pytest.raises(DataError, match='t.csv: byte .*Save it as UTF-8'): decode_text(tmp_path/'t.csv')
    (tmp_path/'t.csv').write_bytes(b'name\n\x81\x8d\n')
    with pytest.raises(DataError, match='t.csv: byte 6, in line 2, is not CP1252'): decode_text(tmp_path/'t.csv')


def test_two_encodings_in_one_list_are_refused(tmp_path):
    (tmp_path/'t.csv').write_bytes('name\ncafé\n'.encode() + 'naïf\n'.encode('latin-1'))
    with pytest.raises(DataError, match='in line 3, is not UTF-8, as the rest seems to be'):
        read_rows(tmp_path/'t.csv')
    (tmp_path/'t.csv').write_bytes('name\ncafé\ncafé'.encode()[:-1])
    with pytest.raises(DataError, match='was it cut short'): read_rows(tmp_path/'t.csv')


# --- quotation marks

def test_a_quotation_mark_in_a_list_with_tabs_swallows_no_row(tmp_path):
    text = 'path\ttext\na.wav\t"slow\nb.wav\t5" speaker\nc.wav\t"a ""sad"" one"\nd.wav\t"calm" and "slow"\n'
    found = read_rows(put(tmp_path/'t.tsv', text), sep='\t')
    assert [r['text'] for r in found] == ['"slow', '5" speaker', 'a "sad" one', '"calm" and "slow"']
    found = read_rows(put(tmp_path/'t.tsv', 'path\ttext\na.wav\t"one\ntwo"\n'), sep='\t')
    assert found == [dict(path='a.wav', text='one\ntwo')]
    with pytest.raises(DataError, match='begins in line 2 runs on to line 4'):
        read_rows(put(tmp_path/'t.tsv', 'path\ttext\na.wav\t"slow\nb.wav\n"c\td'), sep='\t')


@pytest.mark.parametrize('text, message', [
    ('a.wav,"slow\nb.wav,calm\nc.wav,odd"\n', 'begins in line 2 runs on to line 4'),
    ('a.wav,x\nb.wav,"slow\nc.wav,"calm"\n', 'begins in line 3 runs on to line 4'),
    ('a.wav,x\nb.wav,"slow\nc.wav,calm\n', 'ends inside a quoted field of the row that begins in line 3')])
def test_a_quotation_mark_that_swallows_rows_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message): read_rows(put(tmp_path/'t.csv', f'path,text\n{text}'))


def test_quotation_marks_within_a_line_are_read(tmp_path):
    rows = read_rows(put(tmp_path/'t.csv', 'path,text\na.wav,"slow" one\nb.wav,"one, long\ntwo, sad"\n'[:27]))
    assert rows == [dict(path='a.wav', text='slow one')]
    rows = read_rows(put(tmp_path/'t.csv', 'path,text\nb.wav,"one, long\ntwo, sad"\n'))
    assert rows == [dict(path='b.wav', text='one, long\ntwo, sad')]


def test_blanks_after_commas_are_style_or_part_of_a_name(tmp_path):
    read = lambda text: [list(r.values()) for r in read_rows(put(tmp_path/'t.csv', text))]
    assert read('path,text\na.wav, "slow, sad"\nb.wav, calm\n') == [['a.wav', 'slow, sad'], ['b.wav', 'calm']]
    assert read('label,path\nx, a.wav\ny, b.wav\n') == [['x', 'a.wav'], ['y', 'b.wav']]
    assert read('label,path\nx, a.wav\ny,b.wav\n') == [['x', ' a.wav'], ['y', 'b.wav']]
    assert read('path,text\n a.wav,"said ""x"", ""y"""\n') == [[' a.wav', 'said "x", "y"']]


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match='t.csv has several columns id: which one is meant'):
        read_rows(put(tmp_path/'t.csv', 'id,reason,id\na,b,c\n'))
    assert read_rows(put(tmp_path/'t.csv', 'id,reason,,\na,b,,\n'))[0]['reason'] == 'b'


def test_skip_lists_in_other_forms(tmp_path):
    assert read_skip_list(put(tmp_path/'a.json', '{"jazz.00054": "unreadable"}')) == {'jazz.00054': 'unreadable'}
    for name, text, message in [('b.json', '["jazz.00054"]', 'expected {"id": "reason"}'),
                                ('c.csv', 'clip,why\na,b\n', 'has no column id, reason'),
                                ('e.json', '{', 'is no JSON'), ('f.json', '3', 'expected {"id": "reason"}')]:
        with pytest.raises(DataError, match=message): read_skip_list(put(tmp_path/name, text))
    with pytest.raises(DataError, match='no skip list d.csv'): read_skip_list(tmp_path/'d.csv')
