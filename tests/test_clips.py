"Recordings to log-mels: every kind of file, cut and padded and broken ones, runs that are killed, lists that change."
import shutil, subprocess, sys
from collections import namedtuple
from dataclasses import replace
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
import logocentric.data.clips, logocentric.data.corpus
from logocentric.audio.frontend import FrontendConfig, LogMel
from logocentric.audio.decoding import load_audio
from logocentric.core import LogocentricError, shared_path
from logocentric.data.clips import Clips, build_clips, clips_bytes, read_clip
from logocentric.data.clipset import ClipSet, Crops, LazyPairs, Part, clip_frames, crop_window, sound_mask
from logocentric.data.corpus import build_corpus
from logocentric.data.lists import DataError
from logocentric.data.datasets import read_dataset
from logocentric.data.tables import read_table
from logocentric.data.packing import write_shards
from logocentric.data.shards import LazyCorpus
from logocentric.data.sound_corpus import build_sounds

SECONDS = 1.
SILENCE = np.float16(FrontendConfig().silence)


def put(path, seconds=1., rate=16_000, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, .1*np.random.default_rng(seed).standard_normal((int(seconds*rate), channels)), rate)
    return path


def listed(tmp_path, names, name='list.csv'):
    (tmp_path/name).write_text('path,label\n' + ''.join(f'{n},{n[0]}\n' for n in names))
    return read_table(tmp_path/name)


@pytest.fixture
def five(tmp_path, monkeypatch):
    "Five recordings in shards of two."
    for module in (logocentric.data.clips, logocentric.data.corpus): monkeypatch.setattr(module, 'SHARD', 2)
    for i, n in enumerate('abcde'): put(tmp_path/f'{n}.wav', seed=i)
    return [f'{n}.wav' for n in 'abcde']


@pytest.fixture
def reads(monkeypatch):
    "The files that were decoded; after `reads.limit` of them the run is killed."
    class Reads(list): limit = 99
    seen, real = Reads(), read_clip
    def counted(path, *args):
        if len(seen) >= seen.limit: raise KeyboardInterrupt
        seen.append(path.rsplit('/', 1)[-1])
        return real(path, *args)
    monkeypatch.setattr(logocentric.data.clips, 'read_clip', counted)
    return seen


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'mp3'])
@pytest.mark.parametrize('rate, channels', [(8_000, 1), (16_000, 2), (44_100, 2), (48_000, 1)])
def test_any_file_is_what_the_frontend_makes_of_it(tmp_path, suffix, rate, channels):
    path = put(tmp_path/f'é.{suffix}', 2.5, rate, channels)
    logmel, facts = read_clip(path, .5, None, SECONDS)
    wave = load_audio(path, .5, SECONDS)
    assert len(wave) == 16_000 and facts == dict(frames=101, sound_seconds=1., fit='cut') and logmel.dtype == np.float16
    np.testing.assert_allclose(logmel[:-3], LogMel()(torch.from_numpy(wave))[:-3].half(), atol=.02)


@pytest.mark.parametrize('length, start, duration, frames, fit', [
    (1, 0, None, 101, 'whole'), (1.05, 0, None, 101, 'whole'), (.95, 0, None, 96, 'whole'), (.4, 0, None, 41, 'padded'),
    (3, 0, None, 101, 'cut'), (3, 2.5, None, 51, 'padded'), (3, 1, 1, 101, 'whole'), (3, 1, .3, 31, 'padded'),
    (3, 0, 30, 101, 'cut'), (.4, 0, 30, 41, 'padded'), (3, 0, 1.15, 101, 'cut')])
def test_what_is_there_decides_how_a_clip_fits(tmp_path, length, start, duration, frames, fit):
    logmel, facts = read_clip(put(tmp_path/'a.wav', length), start, duration, SECONDS)
    assert logmel.shape == (101, 80) and (facts['frames'], facts['fit']) == (frames, fit)
    assert (logmel[frames:] == SILENCE).all() and (logmel[:frames].min(1) > SILENCE).all()


def test_a_part_from_its_start(tmp_path):
    path = put(tmp_path/'a.wav', 4)
    whole = LogMel()(torch.from_numpy(load_audio(path))).half().numpy()
    np.testing.assert_allclose(read_clip(path, 2, 1, SECONDS)[0][2:-2], whole[202:299], atol=.02)


def test_other_settings(tmp_path):
    config = FrontendConfig(sample_rate=8_000, f_max=4_000, hop_length=100, n_mels=40, win_length=200, n_fft=256)
    put(tmp_path/'a.wav', 1)
    clips = build_clips(tmp_path/'clips', listed(tmp_path, ['a.wav']), .5, 1, config)
    assert clips.features.shape == (1, clip_frames(.5, config), 40) == (1, 41, 40) and clips.config == config
    assert clips_bytes(1, .5, config) == clips.features.nbytes


def test_rows_logmels_and_counts(tmp_path, five):
    put(tmp_path/'b.wav', 3); put(tmp_path/'c.wav', .5)
    manifest = listed(tmp_path, five)
    clips = build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    assert len(clips) == 5 and clips.table['id'].tolist() == manifest.table['id'].tolist()
    assert clips.table.labels.tolist() == [[n] for n in 'abcde']
    assert clips.frames.tolist() == clips.table.frames.tolist() == [101, 101, 51, 101, 101]
    assert clips.vocabulary == list('abcde')
    assert clips.manifest == dict(manifest.summary(), fit=dict(whole=3, cut=1, padded=1))
    assert '1 cut, 1 padded' in repr(clips)
    assert clips.features[[4, 0]].shape == (2, 101, 80) and isinstance(clips.features, np.memmap)
    for i, path in enumerate(manifest.paths):
        expected = LogMel()(torch.from_numpy(load_audio(path, 0, 1)))[:50].half()
        np.testing.assert_allclose(clips.features[i][:50], expected, atol=.02)
    assert clips.logmel(1).dtype == torch.float32 and not (tmp_path/'clips/todo').exists()
    assert np.isnan(clips.table.duration).all() and clips.table.columns[:9].tolist() == manifest.table.columns.tolist()


def test_two_processes_make_the_same(tmp_path):
    for n in 'ab': put(tmp_path/f'{n}.wav', seed=ord(n))
    manifest = listed(tmp_path, ['a.wav', 'b.wav'])
    one, two = (build_clips(tmp_path/f'{k}', manifest, SECONDS, k) for k in (1, 2))
    assert np.array_equal(one.features, two.features) and one.table.equals(two.table)


def test_a_killed_run_goes_on(tmp_path, five, reads):
    manifest, reads.limit = listed(tmp_path, five), 3
    with pytest.raises(KeyboardInterrupt): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    with pytest.raises(LogocentricError, match='no finished clips'): Clips(tmp_path/'clips')
    reads.limit = 99; reads.clear()
    clips = build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    assert reads == ['c.wav', 'd.wav', 'e.wav']
    assert np.array_equal(clips.features, build_clips(tmp_path/'again', manifest, SECONDS, 1).features)
    reads.clear()
    assert len(build_clips(tmp_path/'clips', manifest, SECONDS, 1)) == 5 and not reads


def test_broken_files_are_named_at_the_end_and_nothing_is_lost(tmp_path, five, reads):
    whole = build_clips(tmp_path/'whole', listed(tmp_path, five), SECONDS, 1)
    good = (tmp_path/'d.wav').read_bytes()
    (tmp_path/'b.wav').write_bytes(b''); (tmp_path/'d.wav').write_bytes(good[:1000])
    manifest = listed(tmp_path, five)
    for _ in range(2):
        said = r'(?s)2 of 5 clips cannot be read:\n  b: the file is empty\n  d: truncated.*`logocentric doctor`.*skip='
        with pytest.raises(DataError, match=said):
            build_clips(tmp_path/'clips', manifest, SECONDS, 1)
        with pytest.raises(LogocentricError, match='no finished clips'): Clips(tmp_path/'clips')
    (tmp_path/'d.wav').write_bytes(good); reads.clear()
    with pytest.raises(DataError, match='1 of 5'): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    assert reads == ['a.wav', 'b.wav', 'c.wav', 'd.wav']
    reads.clear()
    clips = build_clips(tmp_path/'clips', manifest.skip(tmp_path/'clips/failed.csv'), SECONDS, 1)
    assert not reads and clips.table['id'].tolist() == list('acde')
    assert np.array_equal(clips.features, whole.features[[0, 2, 3, 4]])
    assert clips.manifest['skipped'] == 1 and '1 skipped' in repr(clips) and not list(tmp_path.glob('*.before*'))


def test_a_killed_run_with_another_skip_list(tmp_path, five, reads):
    manifest, reads.limit = listed(tmp_path, five), 3
    with pytest.raises(KeyboardInterrupt): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    reads.limit = 99; reads.clear()
    assert len(build_clips(tmp_path/'clips', manifest.skip({'a': 'x'}), SECONDS, 1)) == 4
    assert reads == ['c.wav', 'd.wav', 'e.wav']


def test_a_killed_run_in_another_order(tmp_path, five, reads):
    "Reordered rows are the same clips: none is lost or read twice, and a finished folder is taken as it is."
    manifest, reads.limit = listed(tmp_path, five), 3
    with pytest.raises(KeyboardInterrupt): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    reads.limit = 99; reads.clear()
    turned = replace(manifest, table=manifest.table.iloc[::-1].reset_index(drop=True))
    clips = build_clips(tmp_path/'clips', turned, SECONDS, 1)
    assert clips.table['id'].tolist() == list('edcba') and sorted(reads) == ['c.wav', 'd.wav', 'e.wav']
    assert np.array_equal(clips.features[::-1], build_clips(tmp_path/'again', manifest, SECONDS, 1).features)
    reads.clear()
    assert build_clips(tmp_path/'clips', manifest, SECONDS, 1).table['id'].tolist() == list('edcba') and not reads


RACE = """
import sys, time
from pathlib import Path
import logocentric.data.clips, logocentric.data.corpus
from logocentric.data.clips import build_clips, read_clip
from logocentric.data.tables import read_table
place, rank = Path(sys.argv[1]), sys.argv[2]
logocentric.data.clips.SHARD = logocentric.data.corpus.SHARD = 2
def slow(path, *args):
    with (place/'reads').open('a') as f: f.write(Path(path).name + ' ')
    time.sleep(.2)
    return read_clip(path, *args)
logocentric.data.clips.read_clip = slow
manifest = read_table(place/'list.csv')
(place/f'ready{rank}').touch()
while len(list(place.glob('ready*'))) < 3: time.sleep(.01)
clips = build_clips(place/'clips', manifest, 1., 1)
print(clips.table['id'].tolist(), clips.features.astype('float64').sum())
"""

def test_processes_that_want_one_folder_at_once_read_it_once(tmp_path, five):
    "As under a launch: none finds the folder half made, and all have the same."
    listed(tmp_path, five)
    start = lambda rank: subprocess.Popen([sys.executable, '-c', RACE, str(tmp_path), str(rank)], text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    runs = [start(rank) for rank in range(3)]
    found = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0]*3, found
    assert len({out for out, _ in found}) == 1 and sorted((tmp_path/'reads').read_text().split()) == five
    assert not (tmp_path/'clips'/'todo').exists()


def test_a_finished_folder_is_read_where_nothing_can_be_written(tmp_path, five, monkeypatch):
    manifest = listed(tmp_path, five)
    build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    locked = lambda *args: pytest.fail('a finished folder needs no lock')
    monkeypatch.setattr(logocentric.data.clips, 'one_process_at_a_time', locked)
    assert len(build_clips(tmp_path/'clips', manifest, SECONDS, 1)) == 5


def test_a_folder_is_for_its_clips_alone(tmp_path, five):
    manifest = listed(tmp_path, five)
    build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    another = listed(tmp_path, five, 'other.csv').skip({'b': ''})
    for other, seconds in ((manifest.skip({'a': 'x'}), SECONDS), (manifest, 2.), (another, SECONDS)):
        with pytest.raises(DataError, match='choose another folder or delete it'):
            build_clips(tmp_path/'clips', other, seconds, 1)
    assert len(Clips(tmp_path/'clips')) == 5


def test_unfinished_work_on_another_set_is_not_touched(tmp_path, five, reads):
    manifest, reads.limit = listed(tmp_path, five), 3
    with pytest.raises(KeyboardInterrupt): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    with pytest.raises(DataError, match='choose another folder'):
        build_clips(tmp_path/'clips', listed(tmp_path, five[:2], 'other.csv'), SECONDS, 1)
    assert (tmp_path/'clips/shards/00000.json').exists()


def test_fewer_clips_than_it_says(tmp_path, five):
    manifest = listed(tmp_path, [*five, 'gone.wav'])
    with pytest.raises(DataError, match='5 of 6 clips are there'): build_clips(tmp_path/'clips', manifest, SECONDS, 1)
    with pytest.raises(DataError, match='7 clips are expected and 6 listed'):
        build_clips(tmp_path/'clips', manifest.skip(manifest.absent()), SECONDS, 1, n=7)
    assert not (tmp_path/'clips').exists()
    clips = build_clips(tmp_path/'clips', manifest.skip(manifest.absent()), SECONDS, 1)
    assert (len(clips), clips.manifest['skipped']) == (5, 1)


def test_a_disk_that_is_full(tmp_path, five, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: namedtuple('usage', 'free')(1000))
    with pytest.raises(DataError, match='5 clips of 1 s need .* GB more and 1e-06 GB are free at clips'):
        build_clips(tmp_path/'clips', listed(tmp_path, five), SECONDS, 1)
    assert clips_bytes(20_000) == 20_000*1001*80*2


def test_the_size_is_said_first(tmp_path, five, monkeypatch, capsys):
    monkeypatch.delenv('LOGOCENTRIC_QUIET', raising=False)
    monkeypatch.delitem(sys.modules, 'ipykernel', raising=False) # a kernel is quiet; another test may have imported it
    build_clips(tmp_path/'clips', listed(tmp_path, five), SECONDS, 1)
    assert 'list: 8.08e-05 GB for 5 clips of 1 s' in capsys.readouterr().out


@pytest.mark.skipif(not (shared_path() and shared_path().joinpath('data', 'esc10').exists()),
                    reason='shared data esc10 is not there')
def test_real_esc10(tmp_path):
    manifest = read_dataset('esc50', shared_path()/'data'/'esc10', esc10=True)
    with pytest.raises(DataError, match='400 clips are expected and 240 listed'):
        build_clips(tmp_path/'clips', manifest, 5., 1)
    clips = build_clips(tmp_path/'clips', manifest, 5., 1, n=240)
    assert clips.features.shape == (240, 501, 80) and clips.manifest['fit'] == dict(whole=240, cut=0, padded=0)
    assert len(clips.vocabulary) == 10
    wave = load_audio(manifest.paths[100])
    np.testing.assert_allclose(clips.features[100][:500], LogMel()(torch.from_numpy(wave))[:500].half(), atol=.02)


# --- one interface for clips, whatever they came from

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    "One interface: rendered music and sounds, recordings, shards, parts, and clips that are made when asked for."
    folder = tmp_path_factory.mktemp('sets')
    for i in range(4): put(folder/f'{i}.wav', .5 + .2*i, seed=i)
    rows = ''.join(f'{i}.wav,a;b{i},text {i}\n' for i in range(3))
    (folder/'list.csv').write_text(f'path,labels,text\n{rows}3.wav,,\n')
    music = build_corpus(folder/'music', 4, seed=5, processes=1)
    clips = build_clips(folder/'clips', read_table(folder/'list.csv'), SECONDS, 1)
    shards = write_shards(folder/'shards', clips, size=3, seed=None, processes=1)
    sounds = build_sounds(folder/'sounds', 4, seed=6, processes=1)
    lazy, part = LazyCorpus(4, seed=5), Part(shards, 0, 4)
    return dict(music=music, sounds=sounds, clips=clips, shards=shards, lazy=lazy, part=part)


@pytest.mark.parametrize('name', ['music', 'sounds', 'clips', 'shards', 'lazy', 'part'])
def test_all_clips_have_one_interface(sets, name):
    clips = sets[name]
    n, (frames, mels) = len(clips), clips.shape
    assert isinstance(clips, ClipSet) and n == len(clips.table) == len(clips.texts) == len(clips.labels) == 4
    assert clips.features.shape == (n, frames, mels) and clips.fingerprint == clips.folder.name
    assert clips.frames.tolist() == clips.table.get('frames', pd.Series([frames]*n)).tolist()
    assert clips.pairs(2) == [(0, clips.texts[0][0]), (1, clips.texts[1][0])]
    for i in (0, 3):
        clip = clips.clip(i)
        assert np.array_equal(clip['logmel'], clips.features[i]) and clip['id'] == clips.table['id'][i]
        assert torch.equal(clips.logmel(i), torch.from_numpy(clips.features[i].astype(np.float32)))
        assert clip['text'] == next(iter(clips.texts[i]), '')
        assert clips.active is None or np.array_equal(clip['active'], clips.active[i])
    assert np.array_equal(np.sort(clips.order(1, 0)), np.arange(n))
    head = clips.head(3)
    assert np.array_equal(head.features[:], clips.features[:3]) and head.texts == clips.texts[:3]
    assert sorted(head.order(1, 0)) == [0, 1, 2] and head.fingerprint == f'{clips.fingerprint}-0-3'


@pytest.mark.parametrize('name', ['music', 'sounds', 'clips', 'shards', 'lazy', 'part'])
def test_batches_come_from_any_clips(sets, name):
    batch = LazyPairs(sets[name], lambda texts: dict(texts=texts), crop=40).batch([0, 2], np.random.default_rng(0))
    assert batch['logmel'].shape == (2, 40, 80) and batch['texts'] == [sets[name].texts[i][0] for i in (0, 2)]
    crops = Crops(sets[name], FrontendConfig(mean=-8., std=4.), 30).batch([1, 2], np.random.default_rng(0))
    assert crops['logmel'].shape == (2, 30, 80)


def test_texts_labels_and_sound_of_recordings(sets):
    for clips in (sets['clips'], sets['part'], sets['shards']):
        assert clips.labels == [['a', 'b0'], ['a', 'b1'], ['a', 'b2'], []]
        assert clips.texts == [['text 0'], ['text 1'], ['text 2'], []] and len(clips.pairs()) == 3
        assert [len(x) for x in clips.unpadded(3)] == clips.frames[:3].tolist() == [51, 71, 91]
    assert [x.shape for x in sets['music'].unpadded(3)] == [(3, 1001, 80)], 'whole clips in one array'


def test_a_mask_and_a_crop_of_whole_clips_are_none_and_unchanged(sets):
    "Passing the `frames` of rendered clips changes nothing: all of each clip is sound."
    frames = sets['music'].frames
    assert sound_mask(frames, sets['music'].shape[0]) is None
    for seed in range(5):
        whole, known = (crop_window(1001, n, 300, None, np.random.default_rng(seed)) for n in (1001, frames[0]))
        assert whole == known


def test_first_descriptions_come_first():
    class Several(ClipSet): table = pd.DataFrame(dict(id=list('abc'), texts=[['a1', 'a2', 'a3'], [], ['c1', 'c2']]))
    assert Several().pairs() == [(0, 'a1'), (2, 'c1'), (0, 'a2'), (2, 'c2'), (0, 'a3')]
    assert Several().pairs(3) == Several().pairs()[:3] and Several().labels == [[], [], []]


def test_a_part_is_packed_as_the_whole(sets, tmp_path):
    packed = write_shards(tmp_path/'part', Part(sets['shards'], 1, 3), seed=None, processes=1)
    assert np.array_equal(packed.features[:], sets['clips'].features[1:3]) and packed.texts == sets['clips'].texts[1:3]


@pytest.mark.parametrize('name', ['features.npy', 'clips.json', 'corpus.json', 'shards/00000.json'])
@pytest.mark.parametrize('damage', ['short', 'empty', 'objects', 'huge'])
def test_a_damaged_file_of_finished_clips_is_named(five, tmp_path, name, damage):
    build_clips(tmp_path/'clips', listed(tmp_path, five), SECONDS, processes=1)
    path = tmp_path/'clips'/name
    raw = path.read_bytes()
    header = lambda descr, shape: repr(dict(descr=descr, fortran_order=False, shape=shape)).encode().ljust(118)
    made = dict(short=raw[:len(raw)//2], empty=b'', objects=raw[:10] + header('|O', (5, 101, 80)) + raw[128:],
                huge=raw[:10] + header('<f2', (2**58, 8, 8)) + raw[128:])
    path.write_bytes(made[damage])
    with pytest.raises(LogocentricError, match=name): Clips(tmp_path/'clips')
