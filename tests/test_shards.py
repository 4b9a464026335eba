"""Shards: what goes in comes out, whoever writes and reads; killed runs, full disks, damaged files, networks;
music rendered while training."""
import errno, functools, http.server, io, json, os, pickle, shutil, sys, tarfile, threading, zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
import fsspec, numpy as np, pytest, soundfile as sf, torch, webdataset as wds
from torch.utils.data import DataLoader
from transformers.utils import ModelOutput
import logocentric.data.packing, logocentric.data.shards
from logocentric.captioner.model import Captioner
from logocentric.captioner.training_data import Pairs, tokenise
from logocentric.data.clipset import Crops
from logocentric.data.clips import build_clips
from logocentric.core import LogocentricError
from logocentric.data.corpus import build_corpus
from logocentric.data.lists import DataError
from logocentric.data.tables import read_table
from logocentric.audio.frontend import FrontendConfig
from logocentric.reasoner.knowledge import train_tokenizer
from logocentric.encoder.mae import MAEConfig
from logocentric.data.clipset import LazyPairs
from logocentric.data.shards import LazyCorpus, Shards, clip_bytes, clip_of_bytes
from logocentric.data.packing import _packing_of, write_shards
from logocentric.data.sound_corpus import build_sounds
from logocentric.runs import TrainConfig
from logocentric.batches import fetch
from logocentric.training import train


def made(n, frames=6, first=0):
    logmel = lambda i: np.random.default_rng(i).standard_normal((frames, 8)).astype(np.float16)
    return [dict(id=f'ä/{i}.x.wav', logmel=logmel(i), text=f'Stück {i} – 歌', labels=['α', str(i)])
            for i in range(first, first + n)]


def same(a, b):
    assert a.keys() == b.keys()
    for k in a: assert np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k]


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in ('.tar', '.npy', '.json')}


@pytest.fixture
def twenty(tmp_path):
    "Twenty clips in shards of three."
    return write_shards(tmp_path/'twenty', iter(made(20)), size=3)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory): return build_corpus(tmp_path_factory.mktemp('corpus')/'music', 9, seed=7, processes=1)


@pytest.fixture
def recordings(tmp_path):
    "Seven recordings of half a second and more, and a list of them."
    for i in range(7): sf.write(tmp_path/f'{i}.wav', .1*np.random.default_rng(i).standard_normal(8000 + 800*i), 16_000)
    (tmp_path/'list.csv').write_text('path,labels,text\n' + ''.join(f'{i}.wav,a;b{i},text {i}\n' for i in range(7)))
    return read_table(tmp_path/'list.csv')


# --- what goes in comes out

def test_round_trip():
    logmel = np.random.default_rng(0).standard_normal((7, 80)).astype(np.float16)
    clip = dict(id='ключ/a.b.c', logmel=logmel, text='«Für Elise» – 1\n2', labels=['Ü', 'ß'], start=.1,
                frames=7, active=np.arange(7) > 3, nothing=None)
    same(clip_of_bytes(clip_bytes('1-2', clip)), clip)
    changed = dict(clip, duration=float('nan'), text=None, logmel=logmel.astype(np.float32), n=np.int64(3),
                   flag=np.bool_(True))
    odd = clip_of_bytes(clip_bytes('1-2', changed))
    assert odd['duration'] is None and odd['text'] == '' and odd['n'] == 3 and odd['flag'] is True
    assert odd['logmel'].dtype == np.float16 and np.array_equal(odd['logmel'], clip['logmel'])


def test_every_clip_is_found_and_the_table_knows_it(twenty):
    clips = made(20)
    for i in (19, 0, 7, 3): same(twenty.clip(i), clips[i])
    assert len(twenty) == 20 and twenty.features.shape == (20, 6, 8)
    assert np.array_equal(twenty.features[[4, 1]], np.stack([clips[4]['logmel'], clips[1]['logmel']]))
    assert np.array_equal(twenty.features[-1, 2:4], clips[-1]['logmel'][2:4]) and len(twenty.features[17:40]) == 3
    assert len(list(twenty.features)) == 20
    assert twenty.table.to_dict('records') == [{k: v for k, v in c.items() if k != 'logmel'} for c in clips]


def test_webdataset_reads_it(twenty):
    urls = [f"{twenty.place}/{s['name']}" for s in twenty.index['shards']]
    read = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [(r['json']['id'], r['txt']) for r in read] == [(c['id'], c['text']) for c in made(20)]
    assert all(np.array_equal(r['logmel.npy'], c['logmel']) for r, c in zip(read, made(20)))
    with tarfile.open(urls[-1]) as tar: assert len(tar.getnames()) == 6


def test_index(twenty):
    index = twenty.index
    assert [index[k] for k in ('clips', 'frames', 'failed', 'shape')] == [20, 120, 0, [6, 8]]
    assert [s['clips'] for s in index['shards']] == [3]*6 + [2]
    assert index['frontend'] == FrontendConfig().to_dict() and twenty.damaged() == []
    assert write_shards(twenty.place, iter(made(20)), size=3).index == index


def test_clips_of_several_lengths(tmp_path):
    shards = write_shards(tmp_path/'s', iter(made(2) + made(2, frames=9, first=2)), size=2)
    assert shards.clip(1)['logmel'].shape == (6, 8) and shards.clip(3)['logmel'].shape == (9, 8)
    with pytest.raises(LogocentricError, match='several lengths'): shards.features.shape
    with pytest.raises(LogocentricError, match='unequal length'): LazyPairs(shards, lambda t: {}).batch([0, 3], None)
    assert LazyPairs(shards, lambda t: {}, crop=5).batch([0, 3], np.random.default_rng(0))['logmel'].shape == (2, 5, 8)


# --- sources

def test_a_corpus(corpus, tmp_path):
    shards = write_shards(tmp_path/'s', corpus, size=4, processes=1)
    by_id = dict(zip(corpus.table.id, range(9)))
    places = [by_id[i] for i in shards.table.id]
    assert sorted(places) == list(range(9)) and places != list(range(9)), 'shuffled once'
    assert np.array_equal(shards.features[:], corpus.features[places])
    assert shards.table.text.tolist() == corpus.table.description.iloc[places].tolist()
    assert 'description' not in shards.table
    assert shards.table.gtzan.tolist() == corpus.table.gtzan.iloc[places].tolist()
    assert shards.index['texts'] == dict(column='description')
    again = write_shards(tmp_path/'again', shards, size=2, seed=None, processes=1)
    assert np.array_equal(again.features[:], shards.features[:])
    assert again.table.text.tolist() == shards.table.text.tolist()


def test_sounds_keep_where_they_sound(tmp_path):
    sounds = build_sounds(tmp_path/'sounds', 3, seed=1, processes=1)
    shards = write_shards(tmp_path/'s', sounds, seed=None, processes=1)
    for i in range(3):
        assert np.array_equal(shards.clip(i)['active'], sounds.active[i])
        assert np.array_equal(shards.features[i], sounds.features[i])


def test_recordings_are_what_clips_holds(recordings, tmp_path):
    clips = build_clips(tmp_path/'clips', recordings, seconds=.7, processes=1)
    for source in (recordings, clips):
        shards = write_shards(tmp_path/type(source).__name__, source, seconds=.7, size=3, seed=None, processes=1)
        assert np.array_equal(shards.features[:], clips.features[:]) and shards.config == clips.config
        assert shards.table.text.tolist() == [f'text {i}' for i in range(7)]
        for column in ('id', 'labels', 'frames', 'fit'):
            assert shards.table[column].tolist() == clips.table[column].tolist()


def test_texts_of_ones_own(corpus, tmp_path):
    own = {i: f'own {i}' for i in corpus.table.id}
    shards = write_shards(tmp_path/'own', corpus, texts=own, processes=1, note='by hand')
    assert shards.table.text.tolist() == [own[i] for i in shards.table.id] and shards.index['note'] == 'by hand'
    styles = write_shards(tmp_path/'style', corpus, texts='style', processes=1)
    assert styles.table.text.isin(corpus.table['style']).all()
    own.pop(corpus.table.id[3])
    with pytest.raises(LogocentricError, match='1 of 9 clips have no text'):
        write_shards(tmp_path/'x', corpus, texts=own)
    with pytest.raises(LogocentricError, match="no column 'words'"): write_shards(tmp_path/'x', corpus, texts='words')
    with pytest.raises(LogocentricError, match='no source of clips'): write_shards(tmp_path/'x', 5)
    with pytest.raises(LogocentricError, match='a clip is a dict'):
        write_shards(tmp_path/'y', iter([('id', np.zeros((3, 3)), 'text')]))


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_files(recordings, tmp_path):
    for n in (1, 2): write_shards(tmp_path/f'{n}', recordings, seconds=.6, size=2, processes=n)
    assert contents(tmp_path/'1') == contents(tmp_path/'2')


def test_what_goes_to_workers(recordings, corpus):
    for source in (recordings, corpus, LazyCorpus(5, seed=3)):
        here = _packing_of(source, None, .6, FrontendConfig())
        there = pickle.loads(pickle.dumps((here.items([3, 1]), here.read)))
        assert len(pickle.dumps(here.read)) < 200_000, 'no features travel'
        for a, b in zip(there[0], here.items([3, 1])):
            assert clip_bytes('k', there[1](a)) == clip_bytes('k', here.read(b))


# --- killed, full, damaged

def test_a_killed_run_goes_on(twenty, tmp_path):
    folder = tmp_path/'twenty'
    whole, times = contents(folder), {p: p.stat().st_mtime_ns for p in folder.glob('*.tar')}
    for name in ('shard-000006.tar', 'shard-000006.json', 'index.json', 'shard-000002.tar'): (folder/name).unlink()
    (folder/'.shard-000006.tar.1234.tmp').write_bytes(b'half of a')
    (folder/'shard-000004.tar').write_bytes(b'cut short')
    write_shards(folder, iter(made(20)), size=3)
    assert contents(folder) == whole and not list(folder.glob('.*.tmp'))
    assert {p.name[8:12] for p in times if p.stat().st_mtime_ns != times[p]} == {'0006', '0002', '0004'}


def test_killed_while_decoding(recordings, tmp_path, monkeypatch):
    seen, real = [], logocentric.data.packing.read_clip
    def counted(path, *args):
        if len(seen) == 5: seen.append('killed'); raise KeyboardInterrupt
        seen.append(path); return real(path, *args)
    monkeypatch.setattr(logocentric.data.packing, 'read_clip', counted)
    go = lambda: write_shards(tmp_path/'s', recordings, seconds=.6, size=2, processes=1)
    with pytest.raises(KeyboardInterrupt): go()
    with pytest.raises(LogocentricError, match='make them with `write_shards`'): Shards(tmp_path/'s')
    assert len(go()) == 7
    assert len(seen) == 5 + 1 + 3, 'two whole shards are not decoded again'


def test_a_full_disk_leaves_what_is_whole(tmp_path, monkeypatch):
    real, left = logocentric.data.shards.clip_bytes, [7]
    def full(*args):
        left[0] -= 1
        if not left[0]: raise OSError(errno.ENOSPC, 'No space left on device')
        return real(*args)
    monkeypatch.setattr(logocentric.data.shards, 'clip_bytes', full)
    with pytest.raises(LogocentricError, match='no room is left on the disk of'):
        write_shards(tmp_path/'s', iter(made(10)), size=3)
    assert sorted(p.name for p in (tmp_path/'s').glob('*.tar')) == ['shard-000000.tar', 'shard-000001.tar']
    assert not list((tmp_path/'s').glob('.*.tmp'))
    shards = write_shards(tmp_path/'s', iter(made(10)), size=3)
    for i, c in enumerate(made(10)): same(shards.clip(i), c)


def test_a_small_disk_is_told_of_first(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(1, 1, 1_000_000))
    with pytest.raises(DataError, match='9 clips need .* GB are free'): write_shards(tmp_path/'s', corpus, processes=1)
    assert not list((tmp_path/'s').glob('*.tar'))


def test_unreadable_clips_are_counted_and_listed(recordings, tmp_path):
    go = lambda **kwargs: write_shards(tmp_path/'s', recordings, seconds=.6, size=2, seed=None, processes=1, **kwargs)
    good = (tmp_path/'3.wav').read_bytes()
    for i in (3, 5): (tmp_path/f'{i}.wav').write_bytes(b'RIFF....WAVE')
    with pytest.raises(DataError, match='2 of 7 clips cannot be read:\n  3: .*\n  5: ') as e: go()
    assert 'tolerate=2' in str(e.value)
    assert [line.split(',')[0] for line in (tmp_path/'s'/'failed.csv').read_text().splitlines()] == ['id', '3', '5']
    shards = go(tolerate=2)
    assert shards.table.id.tolist() == ['0', '1', '2', '4', '6'] and '2 unreadable' in repr(shards)
    assert [s['clips'] for s in shards.index['shards']] == [2, 1, 1, 1] and shards.clip(4)['id'] == '6'
    (tmp_path/'3.wav').write_bytes(good)
    time = (tmp_path/'s'/'shard-000000.tar').stat().st_mtime_ns
    assert go(tolerate=1).table.id.tolist() == ['0', '1', '2', '3', '4', '6']
    assert (tmp_path/'s'/'shard-000000.tar').stat().st_mtime_ns == time


def test_a_folder_belongs_to_one_job(corpus, twenty, tmp_path):
    for change in (dict(size=4), dict(size=3, note='x'), dict(size=3, config=FrontendConfig(n_mels=8))):
        with pytest.raises(DataError, match='holds shards of something else'):
            write_shards(twenty.place, iter(made(20)), **change)
    with pytest.raises(DataError, match='something else'): write_shards(twenty.place, corpus, size=3)
    (tmp_path/'twenty'/'index.json').unlink()
    with pytest.raises(LogocentricError, match='shard-000000.tar holds other clips'):
        write_shards(twenty.place, iter(made(20, first=5)), size=3)
    (tmp_path/'theirs').mkdir(); (tmp_path/'theirs'/'photos.tar').write_bytes(b'')
    with pytest.raises(DataError, match='photos.tar of somebody else'): write_shards(tmp_path/'theirs', corpus)


@pytest.mark.parametrize('damage', ['flipped', 'short', 'gone'])
def test_a_damaged_shard_is_named(twenty, tmp_path, damage):
    path = tmp_path/'twenty'/'shard-000002.tar'
    raw = path.read_bytes()
    if damage == 'gone': path.unlink()
    else: path.write_bytes(raw[:3000] if damage == 'short' else raw[:1500] + bytes([raw[1500] ^ 1]) + raw[1501:])
    with pytest.raises(LogocentricError, match='shard-000002.tar is (damaged at clip 6|missing)'): twenty.clip(6)
    with pytest.raises(LogocentricError, match='shard-000002.tar'): fetch(LazyPairs(twenty, lambda texts: {}), [0, 6])
    assert twenty.damaged() == ['shard-000002.tar']
    same(twenty.clip(3), made(20)[3])


# --- order, ranks, workers

def line(data, batch, size, seed): # which clips the loop takes where a data set has an order
    places = range(batch*size, (batch + 1)*size)
    return [int(data.order(seed, p//len(data))[p % len(data)]) for p in places]


@pytest.mark.parametrize('window', [1, 3, 100, None])
def test_order(twenty, window):
    a, b = (Shards(twenty.place, window=window) for _ in range(2))
    epochs = [a.order(s, e).tolist() for s in (0, 1) for e in (0, 1)]
    assert all(sorted(e) == list(range(20)) for e in epochs) and len({tuple(e) for e in epochs}) == 4
    assert [b.order(s, e).tolist() for s in (1, 0) for e in (1, 0)] == epochs[::-1], 'no state'
    assert line(b, 3, 6, 0) == [*epochs[0][18:], *epochs[1][:4]]


def test_few_shards_are_in_use_at_a_time(tmp_path):
    write_shards(tmp_path/'s', iter(made(400)), size=10)
    spread = {}
    for window in (1, 4, 16, None):
        shard = Shards(tmp_path/'s', window=window).order(0, 0)//10
        spread[window] = max(len(set(shard[i:i + 10].tolist())) for i in range(20, 370))
    assert spread[1] <= 3 and spread[4] <= 6 and spread[1] < spread[4] < spread[None]
    clips = Shards(tmp_path/'s', window=4).order(0, 0)
    assert len({tuple(np.sort(clips[i:i + 40]//10).tolist()) for i in range(0, 400, 40)}) == 10


class Numbered:
    "Batches of a rank by number, as the loop asks its workers for them."
    def __init__(self, data): self.data = data
    def __getitem__(self, number): return fetch(self.data, line(self.data, number, 5, 3), number)['id']


@pytest.mark.parametrize('window', [2, None])
def test_ranks_and_workers_see_each_clip_once(twenty, window):
    data = LazyPairs(Shards(twenty.place, window=window), lambda texts: {})
    alone = [fetch(data, line(data, t, 5, 3), t)['id'] for t in range(8)]
    for world, workers in ((2, 2), (3, 1)):
        settings = dict(batch_size=None, num_workers=workers)
        ranks = [list(DataLoader(Numbered(data), sampler=range(r, 8, world), **settings)) for r in range(world)]
        assert [ranks[t % world][t//world] for t in range(8)] == alone
    for epoch in (alone[:4], alone[4:]): assert sorted(sum(epoch, [])) == sorted(c['id'] for c in made(20))


# --- networks

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(params=['http', 'memory'])
def distant(request, twenty):
    "The address of the same shards on a network."
    if request.param == 'memory':
        store = fsspec.filesystem('memory')
        store.put(twenty.place, '/pairs', recursive=True)
        yield 'memory://pairs', twenty.place
        return store.rm('/pairs', recursive=True)
    with served(twenty.place) as address: yield address, twenty.place


def test_the_same_from_a_network(distant, twenty, tmp_path):
    far = Shards(distant[0], cache=tmp_path/'cache')
    assert len(far) == 20 and far.table.equals(twenty.table) and far.damaged() == []
    for i in (19, 4, 0): same(far.clip(i), twenty.clip(i))
    shutil.rmtree(distant[1])
    same(far.clip(4), made(20)[4])
    numbered = Numbered(LazyPairs(far, lambda texts: {}))
    loaded = list(DataLoader(numbered, batch_size=None, sampler=range(4), num_workers=2))
    assert sorted(sum(loaded, [])) == sorted(c['id'] for c in made(20))


def test_what_is_not_used_makes_room(distant, tmp_path):
    size = 3*max(s['bytes'] for s in Shards(distant[0]).index['shards'])
    far = Shards(distant[0], window=1, cache=tmp_path/'cache', cache_bytes=size)
    for i, c in enumerate(made(20)):
        same(far.clip(i), c)
        assert sum(p.stat().st_size for p in far.cache.glob('*.tar')) <= size
    assert far.name(6) in {p.name for p in far.cache.glob('*.tar')}
    assert far.name(0) not in {p.name for p in far.cache.glob('*.tar')}
    with pytest.raises(LogocentricError, match='cannot hold the shards of a window'):
        Shards(distant[0], window=2, cache_bytes=size)


@contextmanager
def served(folder=None, handler=None):
    "The address of a folder on the loopback."
    if not shutil.which('curl'): pytest.skip('http is read by curl')
    handler = handler or functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def with_index(folder, change):
    "Let the index of some shards say something else."
    index = json.loads((folder/'index.json').read_text())
    change(index)
    (folder/'index.json').write_text(json.dumps(index))


def with_places(folder, change):
    "Let the places of the clips of some shards be others."
    places = np.load(folder/'clips.npy')
    change(places)
    np.save(folder/'clips.npy', places)


def with_clip(folder, raw):
    "Put other bytes where the clips of the first of some shards lie, with the checksum that they have."
    (folder/'shard-000000.tar').write_bytes(raw)
    with_index(folder, lambda index: index['shards'][0].update(bytes=len(raw)))
    with_places(folder, lambda places: places.__setitem__(slice(3), [0, len(raw), zlib.crc32(raw)]))


def member(name, content, size=None):
    "A member of a tar file, which may claim another size."
    info = tarfile.TarInfo(f'0.{name}')
    info.size = len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def npy(descr, shape, content=b''):
    "What an array of this type and shape begins with."
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr=descr, fortran_order=False, shape=shape))
    return file.getvalue() + content


def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


@pytest.mark.parametrize('path', ['{}/outside', '../../outside', '..', '.', '', '~', '0123/../../outside', 'xyz',
                                  'ab\n', None, 7])
def test_a_served_hash_writes_nothing_outside_the_cache(twenty, tmp_path, path):
    path = path.format(tmp_path) if isinstance(path, str) else path
    with_index(tmp_path/'twenty', lambda index: index.update(hash=path))
    before = files(tmp_path)
    refused = pytest.raises(LogocentricError, match='http.*index.json is damaged: .*hash is not hexadecimal')
    with served(twenty.place) as address, refused:
        Shards(address, cache=tmp_path/'cache').clip(0)
    assert files(tmp_path) == before


@pytest.mark.parametrize('name', ['{}/outside.tar', '../../outside.tar', '..', '.hidden.tar', 'C:outside.tar',
                                  'a\\outside.tar', 'a/b.tar', 'a.tar\n', 'a\0.tar', '', None])
def test_a_served_name_writes_nothing_outside_the_cache(twenty, tmp_path, name):
    name = name.format(tmp_path) if isinstance(name, str) else name
    with_index(tmp_path/'twenty', lambda index: index['shards'][0].update(name=name))
    before = files(tmp_path)
    refused = pytest.raises(LogocentricError, match='http.*index.json is damaged: .* is not the name of a file')
    with served(twenty.place) as address, refused:
        Shards(address, cache=tmp_path/'cache').clip(0)
    assert files(tmp_path) == before


@pytest.mark.parametrize('change, why', [
    (dict(bytes=2**61), 'shard-000000.tar has 2305843009213693952 bytes'), (dict(bytes=-1), 'has -1 bytes'),
    (dict(clips=2**61), 'shard-000000.tar has 2305843009213693952 clips'), (dict(clips='3'), 'has 3 clips'),
    (dict(bytes=1e300), 'has 1e.300 bytes'), (dict(sha256=None), 'hash of shard-000000.tar is not hex'),
    (dict(clips=2**27), 'more than 134,217,728 clips')])
def test_numbers_of_an_index_that_cannot_be_true_are_refused(twenty, tmp_path, change, why):
    with_index(tmp_path/'twenty', lambda index: index['shards'][0].update(change))
    with pytest.raises(LogocentricError, match=f'twenty/index.json is damaged: .*{why}'): Shards(twenty.place)


@pytest.mark.parametrize('text', ['', '[]', '7', '{}', '{"shards": 3}', '['*100_000, '\ufeff\ufffd', '{"hash": NaN}',
                                  '{"hash": "ab", "shards": [7], "shape": null, "frontend": {}}', '9'*5000])
def test_an_index_that_is_none_is_named(twenty, tmp_path, text):
    (tmp_path/'twenty'/'index.json').write_text(text, encoding='utf-8')
    with pytest.raises(LogocentricError, match='twenty/index.json is damaged: '): Shards(twenty.place)


@pytest.mark.parametrize('key, value', dict(shape=[2**61, 2**61], failed='none', frontend=dict(mels=80), hash='',
                                            shards={}).items())
def test_an_index_of_other_kinds_of_values_is_named(twenty, tmp_path, key, value):
    with_index(tmp_path/'twenty', lambda index: index.update({key: value}))
    with pytest.raises(LogocentricError, match='twenty/(index.json|clips.npy) is damaged: '): Shards(twenty.place)


@pytest.mark.parametrize('i, start, stop', [(1, 0, 2**61), (4, 2**61, 2**62), (19, -2**63, 2**63 - 1), (0, 512, 512),
                                            (7, 1024, 0), (2, -512, 512)])
def test_a_clip_lies_within_its_shard(twenty, tmp_path, i, start, stop):
    with_places(tmp_path/'twenty', lambda places: places.__setitem__((i, slice(2)), (start, stop)))
    where = f'clips.npy is damaged: .*clip {i} cannot lie at bytes .* of shard-00000{i//3}.tar'
    with pytest.raises(LogocentricError, match=where): Shards(twenty.place)


def test_a_clip_of_a_huge_shard_has_a_bounded_length(twenty, tmp_path):
    with_index(tmp_path/'twenty', lambda index: index['shards'][0].update(bytes=2**39))
    with_places(tmp_path/'twenty', lambda places: places.__setitem__((0, 1), 2**38))
    with pytest.raises(LogocentricError, match='clip 0 cannot lie at .* of shard-000000.tar'): Shards(twenty.place)
    with_places(tmp_path/'twenty', lambda places: places.__setitem__((0, 1), 2**30))
    with pytest.raises(LogocentricError, match='shard-000000.tar is damaged at clip 0'): Shards(twenty.place).clip(0)


PLACES = dict(empty=b'', text=b'no array', huge=npy('<i8', (2**61, 3)), objects=npy('|O', (20, 3), b'x'*480),
              floats=npy('<f8', (20, 3), bytes(480)), flat=npy('<i8', (60,), bytes(480)),
              short=npy('<i8', (20, 3), bytes(479)), nothing=npy('|V0', (20, 3)))

@pytest.mark.parametrize('kind', PLACES)
def test_places_of_clips_are_the_array_that_the_index_asks_for(twenty, tmp_path, kind):
    (tmp_path/'twenty'/'clips.npy').write_bytes(PLACES[kind])
    with pytest.raises(LogocentricError, match='twenty/clips.npy (is damaged: |does not end)'): Shards(twenty.place)


LOGMEL = npy('<f2', (6, 8), bytes(96))
HOSTILE = dict(
    negative=(member('json', b'', -512), 'claims -512'), longer=(member('json', b'{}', 2**33), 'claims 8,589,934,592'),
    zeros=(bytes(1024), 'not a clip'), garbage=(bytes(range(256))*4, 'not a clip'),
    nothing=(member('json', b'{"id": "a"}'), "'txt'"), half=(member('json', b'{"id": "a"}')[:520], 'are left'),
    bare=(member('json', b'{}') + member('txt', b'') + member('logmel.npy', LOGMEL), 'no id'),
    array=(member('json', b'[]') + member('txt', b'') + member('logmel.npy', LOGMEL), 'not a clip'),
    deep=(member('json', b'['*100_000) + member('txt', b'') + member('logmel.npy', LOGMEL), 'not a clip'),
    text=(member('json', b'{"id": "a"}') + member('txt', b'\xff') + member('logmel.npy', LOGMEL), 'not a clip'),
    **{name: (member('json', b'{"id": "a"%s}' % more) + member('txt', b'') + member('logmel.npy', raw), why)
       for name, more, raw, why in (
        ('huge', b'', npy('<f2', (2**61, 8)), 'no array of float16'),
        ('objects', b'', npy('|O', (6, 8)), 'array of object'),
        ('flat', b'', npy('<f2', (48,), bytes(96)), 'no table'),
        ('words', b'', npy('<U1', (6, 8), bytes(192)), 'no table'),
        ('nan', b'', npy('<f2', (6, 8), b'\0\x7e'*48), 'finite'),
        ('wide', b'', npy('<f2', (8, 6), bytes(96)), 'not .6, 8.'),
        ('frames', b', "frames": 7', LOGMEL, 'more of it'),
        ('active', b', "active": [true]', LOGMEL, 'more of it'),
        ('pickle', b'', b'\x80\x04N.', 'not a clip'))})

@pytest.mark.parametrize('kind', HOSTILE)
def test_a_hostile_clip_is_named_with_its_shard(twenty, tmp_path, kind):
    raw, why = HOSTILE[kind]
    with_clip(tmp_path/'twenty', raw)
    shards = Shards(twenty.place)
    with pytest.raises(LogocentricError, match=f'shard-000000.tar is damaged at clip 0 .*{why}'): shards.clip(0)
    same(shards.clip(4), made(5)[4])


@pytest.mark.parametrize('name', ['json', 'txt'])
def test_a_text_has_a_bounded_length(monkeypatch, name):
    monkeypatch.setattr(logocentric.data.shards, 'MAX_TEXT_BYTES', 100)
    texts = dict(json=b'{"id": "a"}', txt=b'a') | {name: b'"' + b' '*99 + b'"'}
    raw = b''.join(member(k, v) for k, v in texts.items()) + member('logmel.npy', LOGMEL)
    with pytest.raises(LogocentricError, match=f'its {name} has 101 bytes, and a clip may have 100'): clip_of_bytes(raw)


class Endless(http.server.BaseHTTPRequestHandler):
    "A server whose files never end, or stop in the middle, but for those that are in a folder."
    def __init__(self, *args, folder, silent=False): self.folder, self.silent = folder, silent; super().__init__(*args)
    def log_message(self, *args): pass

    def do_GET(self):
        self.send_response(200); self.end_headers()
        if (path := self.folder/self.path.strip('/')).exists(): return self.wfile.write(path.read_bytes())
        with suppress(OSError):
            self.wfile.write(bytes(100)); self.wfile.flush()
            while not self.silent: self.wfile.write(bytes(1 << 16))
            threading.Event().wait(30)


@pytest.mark.parametrize('gone', ['index.json', 'clips.npy', 'shard-000001.json', 'shard-000001.tar'])
def test_a_body_without_an_end_is_read_no_further_than_it_may_go(twenty, tmp_path, monkeypatch, gone):
    monkeypatch.setattr(logocentric.data.shards._read_small, '__defaults__', (2**20,))
    (tmp_path/'twenty'/gone).unlink()
    ends = pytest.raises(LogocentricError, match=f'{gone} does not end after [0-9,]+ bytes')
    with served(handler=functools.partial(Endless, folder=tmp_path/'twenty')) as address, ends:
        shards = Shards(address, cache=tmp_path/'cache')
        same(shards.clip(0), made(1)[0])
        shards.clip(4) if gone.endswith('.tar') else list(shards.rows())
    assert 'shard-000001.tar' not in ' '.join(files(tmp_path/'cache')).replace('locks/shard-000001.tar', '')


def test_a_server_that_falls_silent_is_given_up(twenty, tmp_path, monkeypatch):
    monkeypatch.setattr(logocentric.data.shards, 'STALLED', 1)
    (tmp_path/'twenty'/'clips.npy').unlink()
    handler = functools.partial(Endless, folder=tmp_path/'twenty', silent=True)
    with served(handler=handler) as address, pytest.raises(LogocentricError, match='clips.npy cannot be read .curl'):
        Shards(address, cache=tmp_path/'cache')


def test_a_shard_that_has_no_room_is_not_fetched(twenty, tmp_path):
    with_index(tmp_path/'twenty', lambda index: index['shards'][1].update(bytes=2**40))
    with served(twenty.place) as address, pytest.raises(LogocentricError, match='no place for .*shard-000001.tar'):
        Shards(address, cache=tmp_path/'cache').clip(3)


def test_what_is_no_file_is_not_waited_for(twenty, tmp_path):
    for name in ('shard-000001.tar', 'shard-000001.json'):
        (tmp_path/'twenty'/name).unlink(); os.mkfifo(tmp_path/'twenty'/name)
    with pytest.raises(LogocentricError, match='shard-000001.tar cannot be read .*not a file'): twenty.clip(4)
    with pytest.raises(LogocentricError, match='shard-000001.json cannot be read .*not a file'): list(twenty.rows())
    assert twenty.damaged() == ['shard-000001.tar']


@pytest.mark.parametrize('name', ['clips.npy', 'index.json', 'shard-000002.tar'])
def test_what_is_damaged_is_made_anew(twenty, tmp_path, name):
    good, path = contents(tmp_path/'twenty'), tmp_path/'twenty'/name
    path.write_bytes(path.read_bytes()[:40])
    write_shards(tmp_path/'twenty', iter(made(20)), size=3)
    assert contents(tmp_path/'twenty') == good


def test_rows_that_are_damaged_are_made_anew_where_they_are_deleted(twenty, tmp_path):
    good, path = contents(tmp_path/'twenty'), tmp_path/'twenty'/'shard-000002.json'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LogocentricError, match='shard-000002.json is damaged: .*; delete it and call'): twenty.table
    path.unlink()
    write_shards(tmp_path/'twenty', iter(made(20)), size=3)
    assert contents(tmp_path/'twenty') == good


def test_a_damaged_job_is_named(twenty, tmp_path):
    (tmp_path/'twenty'/'job.json').write_text('{')
    with pytest.raises(DataError, match='job.json.* is damaged'): write_shards(twenty.place, iter(made(20)), size=3)


def test_an_index_on_disk_cannot_name_files_elsewhere(twenty, tmp_path):
    with_index(tmp_path/'twenty', lambda index: index['shards'][0].update(name='../../elsewhere.tar'))
    with pytest.raises(LogocentricError, match='elsewhere.tar.* is not the name of a file'): Shards(twenty.place)


def test_a_list_in_another_order_is_another_job(recordings, tmp_path):
    write_shards(tmp_path/'s', recordings, seconds=.6, size=2, processes=1)
    with pytest.raises(DataError, match='ids: '):
        turned = replace(recordings, table=recordings.table[::-1].reset_index(drop=True))
        write_shards(tmp_path/'s', turned, seconds=.6, size=2, processes=1)


def test_what_float16_cannot_hold_is_refused(tmp_path):
    big = [dict(c, logmel=c['logmel'].astype(np.float32)*(1e6 if i == 1 else 1)) for i, c in enumerate(made(3))]
    with pytest.raises(DataError, match='1 of 3 clips cannot be read:\n.*float16'):
        write_shards(tmp_path/'s', iter(big), size=3)


def test_a_damaged_upload_is_named(twenty, tmp_path):
    store = fsspec.filesystem('memory')
    store.put(twenty.place, '/spoilt', recursive=True)
    store.pipe('/spoilt/shard-000003.tar', b'something else'); store.rm('/spoilt/shard-000005.tar')
    far = Shards('memory://spoilt', cache=tmp_path/'cache')
    with pytest.raises(LogocentricError, match='memory://spoilt/shard-000003.tar is damaged'): far.clip(9)
    with pytest.raises(LogocentricError, match='memory://spoilt/shard-000005.tar cannot be read'): far.clip(15)
    same(far.clip(0), made(1)[0])


@pytest.mark.parametrize('place, why', [('s3://bucket/pairs', 's3fs'), ('gs://bucket/pairs', 'gcsfs'),
                                        ('nope://x', 'Protocol not known'), ('memory://empty', 'make them with')])
def test_what_is_missing_is_named(place, why, monkeypatch):
    if why in ('s3fs', 'gcsfs'): monkeypatch.setitem(sys.modules, why, None) # even where it is installed
    with pytest.raises(LogocentricError, match=why): Shards(place)


# --- batches as from an array

@pytest.fixture(scope='module')
def tokenizer(corpus): return train_tokenizer(corpus.table.description.tolist(), 400)


@pytest.mark.parametrize('crop', [None, 300, (200, 500)])
def test_batches_are_those_of_pairs(corpus, tokenizer, tmp_path, crop):
    pairs = Pairs(corpus.features, corpus.table.description, tokenizer, crop, corpus.table.id.tolist())
    shards = write_shards(tmp_path/'s', corpus, size=4, seed=None, processes=1)
    for source in (shards, LazyCorpus(9, seed=7)):
        lazy = LazyPairs(source, functools.partial(tokenise, tokenizer), crop)
        for indices, seed in (([3, 8, 0], 1), ([5], 2)):
            a, b = fetch(pairs, indices, seed), fetch(lazy, indices, seed)
            assert a.keys() == b.keys() and a['id'] == b['id']
            for k in a.keys() - {'id'}: assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k])


def test_crops_hold_what_sounds_as_those_of_pairs(tmp_path, tokenizer):
    sounds = build_sounds(tmp_path/'sounds', 3, seed=2, processes=1)
    shards = write_shards(tmp_path/'s', sounds, seed=None, processes=1)
    pairs = Pairs(sounds.features, sounds.table.description, tokenizer, 100, active=list(sounds.active))
    for seed in range(5):
        lazy = LazyPairs(shards, functools.partial(tokenise, tokenizer), 100)
        assert torch.equal(*(fetch(data, [2, 0, 1], seed)['logmel'] for data in (pairs, lazy)))


def test_crops_for_pretraining_and_labels(corpus, tmp_path):
    shards = write_shards(tmp_path/'s', corpus, seed=None, processes=1)
    a, b = (Crops(c, FrontendConfig(mean=-8., std=4.), 200) for c in (corpus, shards))
    assert torch.equal(fetch(a, [1, 7], 3)['logmel'], fetch(b, [1, 7], 3)['logmel'])
    batch = LazyPairs(shards, lambda styles: dict(style=styles), field='style').batch([2, 4], None)
    assert batch['style'] == corpus.table['style'].iloc[[2, 4]].tolist()


# --- rendered while training

@pytest.mark.parametrize('kwargs', [{}, dict(shift=True), dict(labels='gtzan')])
def test_rendered_is_what_a_corpus_holds(tmp_path, kwargs):
    corpus, rendered = build_corpus(tmp_path/'c', 4, seed=11, processes=1, **kwargs), LazyCorpus(4, seed=11, **kwargs)
    assert np.array_equal(rendered.features[:], corpus.features[:]) and rendered.features.shape == corpus.features.shape
    rows = [json.loads(line) for line in (tmp_path/'c'/'clips.jsonl').open(encoding='utf-8')]
    assert list(rendered.rows()) == [{'text' if k == 'description' else k: v for k, v in r.items()} for r in rows]


class Whole:
    def __init__(self, data): self.data = data
    def __getitem__(self, indices): return self.data.batch(indices, None)


def test_workers_render_what_one_process_renders(corpus):
    data = LazyPairs(LazyCorpus(9, seed=7), lambda texts: dict(text=texts))
    batch = data.batch([2, 5], None)
    loaded = next(iter(DataLoader(Whole(data), batch_size=None, sampler=[[2, 5]], num_workers=2)))
    assert torch.equal(loaded['logmel'], batch['logmel'])
    assert torch.equal(batch['logmel'].half(), torch.from_numpy(corpus.features[[2, 5]]))
    assert loaded['text'] == corpus.table.description.iloc[[2, 5]].tolist()


def test_no_end():
    endless = LazyCorpus(seed=7)
    assert [int(endless.order(0, 0)[p]) for p in (0, 5, 10**11)] == [0, 5, 10**11] and len(endless) > 10**12
    assert endless.clip(10**9)['id'] == '7-1000000000'


# --- training

class Guess(torch.nn.Module):
    "Guesses how long a text is."
    def __init__(self, mels):
        super().__init__()
        torch.manual_seed(0); self.net = torch.nn.Linear(mels, 1)

    def forward(self, logmel, length): return ModelOutput(loss=(self.net(logmel.mean(1)) - length).square().mean())


class Killed(Exception): pass


def lengths(texts): return dict(length=torch.tensor([[len(t)/100] for t in texts]))


@pytest.mark.parametrize('source', ['shards', 'rendered'])
def test_training_goes_on_as_if_nothing_had_happened(twenty, tmp_path, source):
    clips, steps = (twenty, 10) if source == 'shards' else (LazyCorpus(6, seed=1), 4)
    data, mels = LazyPairs(clips, lengths, crop=4), clips.shape[-1]
    config = lambda **k: TrainConfig(steps=steps, batch_size=3, checkpoint_every=steps//2, keep='last', **k)
    calls = []
    def dies(model, batch):
        calls.append(1)
        if len(calls) > steps - 2: raise Killed
        return model(**batch).loss
    whole = train(Guess(mels), data, config(), progress=False).frame.loss.tolist()
    with pytest.raises(Killed): train(Guess(mels), data, config(), folder=tmp_path/'run', loss_fn=dies, progress=False)
    again = train(Guess(mels), data, config(num_workers=2), folder=tmp_path/'run', progress=False)
    assert again.frame.loss.tolist() == whole
    assert len(whole) == steps and len(set(whole)) > 2


def test_from_a_list_of_recordings_to_a_captioner(recordings, tokenizer, tmp_path):
    write_shards(tmp_path/'shards', recordings, seconds=.8, size=3, processes=1)
    shards = Shards(tmp_path/'shards')
    model = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer)
    model.calibrate([torch.from_numpy(shards.features[:4]).float()], shards.table.text.tolist())
    data = LazyPairs(shards, functools.partial(tokenise, model.tokenizer), crop=(32, 64))
    history = train(model, data, TrainConfig(steps=3, batch_size=2, num_workers=2), data, progress=False)
    assert np.isfinite(history.frame.loss).all() and np.isfinite(history.best_loss)
    assert len(model.caption(model.encode(torch.from_numpy(shards.features[:1]).float()), max_new_tokens=3)) == 1


class Watched(LazyPairs):
    "Remembers what was asked for."
    def batch(self, indices, rng):
        self.__dict__.setdefault('asked', []).extend(map(int, indices))
        return super().batch(indices, rng)


def test_the_loop_takes_the_order_of_the_shards(twenty):
    data = Watched(Shards(twenty.place, window=2), lengths)
    train(Guess(8), data, TrainConfig(steps=8, batch_size=5, seed=3, keep='last'), progress=False)
    assert data.asked == [i for t in range(8) for i in line(data, t, 5, 3)]
    endless = Watched(LazyCorpus(seed=2), lengths)
    train(Guess(80), endless, TrainConfig(steps=2, batch_size=2, keep='last'), progress=False)
    assert endless.asked == [0, 1, 2, 3]
