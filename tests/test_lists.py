"Sound files below a folder, and lists as they are found on disks."
import json
import pytest
from logocentric.data.lists import DataError, audio_index, audio_stem, read_rows, read_skip_list
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


def test_skip_lists_in_other_forms(tmp_path):
    assert read_skip_list(put(tmp_path/'a.json', '{"jazz.00054": "unreadable"}')) == {'jazz.00054': 'unreadable'}
    for name, text, message in [('b.json', '["jazz.00054"]', 'expected {"id": "reason"}'),
                                ('c.csv', 'clip,why\na,b\n', 'has no column id, reason'),
                                ('e.json', '{', 'is no JSON')]:
        with pytest.raises(DataError, match=message): read_skip_list(put(tmp_path/name, text))
    with pytest.raises(DataError, match='no skip list d.csv'): read_skip_list(tmp_path/'d.csv')
