"Both encoders in one pass: the numbers of each by itself, however a sound is long, stored or shared out over threads."
import tracemalloc
from dataclasses import replace
import numpy as np, pytest, soundfile as sf, torch
import logocentric.encoder.both as module
from logocentric.core import MOST_WORKERS, LogocentricError
from logocentric.audio.decoding import AudioError, Decoded, LengthPolicy, Window, stream_windows
from logocentric.audio.frontend import LogMel
from logocentric.encoder.audio_encoder import AudioEncoder
from logocentric.encoder.both import FEATURE_PARTS, BothEncoders, load_both
from logocentric.encoder.features import clip_features, layer_embeddings
from logocentric.encoder.musicnn import encode_sound

RATE, FIELDS = 16_000, ('logits', 'penultimate', 'pooled')

def make_music(seconds, seed=1):
    "A tune of decaying notes over a drone."
    t, rng = np.arange(int(seconds*RATE))/RATE, np.random.default_rng(seed)
    hz = np.repeat(rng.choice([220, 247, 262, 294, 330], int(4*seconds) + 1), RATE//4)[:len(t)]
    tune = sum(np.sin(2*np.pi*k*np.cumsum(hz)/RATE)/k for k in (1, 2, 3))*np.exp(-6*(t % .25))
    return (.1*tune + .03*np.sin(2*np.pi*110*t) + .003*rng.standard_normal(len(t))).astype(np.float32)

@pytest.fixture(scope='module')
def both(): return load_both()

@pytest.fixture(scope='module')
def music(): return make_music(23.5)

@pytest.fixture(scope='module')
def features(both, music): return both.encode(music)

def assert_same(a, b):
    assert a.windows == b.windows and torch.equal(a.ours, b.ours) and torch.equal(a.peak, b.peak)
    for name, m in a.musicnn.items():
        assert m.windows == b.musicnn[name].windows
        for field in FIELDS: assert torch.equal(getattr(m, field), getattr(b.musicnn[name], field))
    for part in FEATURE_PARTS:
        for x, y in zip(a.part(part), b.part(part)): assert torch.equal(x, y)

@pytest.fixture
def threads():
    "A function that sets the number of torch's threads; afterwards it is what it was."
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- the numbers of each encoder

def test_windows_have_the_numbers_of_each_encoder_by_itself(both, music, features):
    assert features.windows == [(0, 10), (10, 20), (20, 23.5)]
    parts = [music[:160_000], music[160_000:320_000], music[320_000:]]
    np.testing.assert_allclose(features.ours, both.ours.embed(parts), rtol=0, atol=1e-5)
    for name, model in both.taggers.items():
        alone, = encode_sound(music, model)
        assert alone.windows == features.musicnn[name].windows and alone.frames.numel() == 0
        for field in (*FIELDS, 'peak'):
            torch.testing.assert_close(getattr(features.musicnn[name], field), getattr(alone, field), rtol=0, atol=1e-5)

def test_a_window_gets_the_mean_of_what_it_shares_with_windows_of_musicnn(features):
    m = features.musicnn['mtt']
    share = lambda w, v: max(0, min(w.stop, v.stop) - max(w.start, v.start))
    weights = np.array([[share(w, v) for v in m.windows] for w in features.windows])
    np.testing.assert_allclose(weights.sum(1), [10, 10, 3.5])
    want = (weights/weights.sum(1, keepdims=True)) @ m.logits.numpy()
    np.testing.assert_allclose(features.part('tags')[1][:, 50:], want, atol=1e-5)
    np.testing.assert_allclose(features.part('tags')[0][50:], m.clip('logits'), atol=1e-5)

def test_the_whole_has_mean_and_deviation_of_all_columns(both, music, features):
    logmel, columns = LogMel(both.ours.frontend), []
    for w in features.windows:
        x = logmel(torch.from_numpy(music[round(w.start*RATE):round(w.stop*RATE)]))
        padded, mask = LengthPolicy(patch_frames=8).pad(x, both.ours.frontend.silence)
        with torch.no_grad():
            columns.append(layer_embeddings(both.ours.encoder, logmel.normalise(padded)[None], mask[None])[0][-1][0])
    assert features.columns.tolist() == [len(c) for c in columns]
    joined = torch.cat(columns)[None]
    want = clip_features(joined, torch.ones(joined.shape[:2], dtype=torch.bool))[0]
    torch.testing.assert_close(features.part('ours')[0], want, rtol=0, atol=1e-5)

def test_of_one_window_the_whole_is_the_window(both, music):
    found = both.encode(music[:100_000])
    whole, windows, _ = found.vector(['ours'])
    np.testing.assert_allclose(whole, windows[0], rtol=1e-6)
    np.testing.assert_allclose(whole, both.ours.embed(music[:100_000]), rtol=0, atol=1e-5)

def test_a_window_that_shares_nothing_gets_the_nearest(both):
    "Half a second that one length policy keeps and musicnn's drops."
    found = replace(both, length=LengthPolicy(window=2., hop=2., min_seconds=.5)).encode(make_music(6.55))
    m = found.musicnn['msd']
    assert found.windows[-1] == (6, 6.55) and m.windows[-1].stop < 6
    torch.testing.assert_close(found.part('tags')[1][-1, :50], m.logits[-1])
    assert found.peak[-1] > 0


# --- the same numbers, always

def test_two_threads_give_what_one_gives_to_the_last_bit(both, music, features, threads):
    for n in (2, 3):
        threads(n)
        assert_same(both.encode(music), features)
        assert torch.get_num_threads() == n

def test_work_is_shared_out_where_torch_has_threads(both, music, threads, monkeypatch):
    seen, plain = [], module.side_by_side
    monkeypatch.setattr(module, 'side_by_side', lambda jobs, workers: seen.append(workers) or plain(jobs, workers))
    for n in (1, 2, 64): threads(n); both.encode(music[:20_000])
    assert seen == [1, 2, MOST_WORKERS]

def test_other_sounds_change_nothing(both, music, features):
    both.encode(make_music(5, seed=2))
    assert_same(both.encode(music), features)

@pytest.mark.parametrize('rate, form', [(16_000, 'wav'), (44_100, 'flac'), (22_050, 'ogg')])
def test_a_file_is_cut_as_its_length_says(both, tmp_path, rate, form):
    t = np.arange(int(21.2*rate))/rate
    sf.write(tmp_path/f'a.{form}', .1*np.sin(2*np.pi*440*t)*np.exp(-(t % .5)), rate)
    found, read = Decoded(), Decoded()
    features = both.encode(tmp_path/f'a.{form}', found=found)
    waves = dict(stream_windows(tmp_path/f'a.{form}', both.length, RATE, read))
    assert found == read and features.windows == list(waves) == both.length.windows(found.seconds)
    np.testing.assert_allclose(features.ours, both.ours.embed(list(waves.values())), rtol=0, atol=1e-5)
    alone, = encode_sound(tmp_path/f'a.{form}', both.taggers['msd'])
    assert alone.windows == features.musicnn['msd'].windows
    torch.testing.assert_close(alone.logits, features.musicnn['msd'].logits, rtol=0, atol=1e-5)

def test_a_file_and_its_waveform_have_the_same_numbers(both, music, features, tmp_path):
    sf.write(tmp_path/'a.wav', music, RATE, 'FLOAT')
    assert_same(both.encode(tmp_path/'a.wav'), features)

def test_windows_may_overlap(both, music, features):
    every = replace(both, length=LengthPolicy(hop=5.)).encode(music)
    assert every.windows == LengthPolicy(hop=5.).windows(23.5)
    assert torch.equal(every.ours[[0, 2]], features.ours[:2])

@pytest.mark.parametrize('seconds', [1/RATE, .045, .3, 2.99, 2.992, 9.9999, 10, 10.0001])
def test_a_short_sound_is_one_short_window(both, seconds):
    wave = make_music(11)[:round(seconds*RATE)]
    found = both.encode(wave)
    assert found.windows == both.length.windows(len(wave)/RATE) and len(found.windows) == 1
    whole, windows, names = found.vector(FEATURE_PARTS)
    assert np.isfinite(whole).all() and np.isfinite(windows).all() and len(whole) == len(names) == windows.shape[1]
    np.testing.assert_allclose(found.ours[0], both.ours.embed(wave[:160_000]), rtol=0, atol=1e-5)


# --- what else is said

def test_silent_windows_are_known(both):
    scene = np.concatenate([make_music(10), np.zeros(20*RATE, np.float32), make_music(4)])
    found = both.encode(scene)
    assert found.silent.tolist() == [False, True, True, False] and found.peak[1] == 0
    assert both.encode(np.zeros(5_000, np.float32)).silent.tolist() == [True]

def test_a_sound_at_the_end_of_its_window_does_not_wake_the_next(both):
    "The window of musicnn from 8.976 s on reaches into both."
    scene = np.concatenate([make_music(9.9), np.zeros(int(4.1*RATE), np.float32)])
    assert both.encode(scene).silent.tolist() == [False, True]

def test_notes_and_coverage_are_passed_on(both, music, tmp_path):
    found = Decoded()
    cancelled = both.encode(np.stack([music[:40_000], -music[:40_000]], 1), found=found)
    assert 'its channels cancel' in cancelled.notes[0] and found.notes == cancelled.notes
    assert both.encode(music[:170_000]).coverage == 'heard 0.0–10.0 s in 1 window, 0.6 s dropped'
    sf.write(tmp_path/'a.wav', np.stack([music, -music], 1), RATE)
    assert 'its channels cancel' in both.encode(tmp_path/'a.wav').notes[0]

def test_columns_have_names(both, features):
    whole, windows, names = features.vector(FEATURE_PARTS)
    assert whole.dtype == windows.dtype == np.float32 and len(set(names)) == len(names) == len(whole)
    assert whole.shape == (both.ours.size + 400 + 100 + 4*753,) and windows.shape == (3, len(whole))
    tags = features.vector(['tags'])
    rock = tags.names.index('msd rock')
    assert tags.whole[rock] == features.musicnn['msd'].clip('logits')[both.taggers['msd'].config.labels.index('rock')]
    assert features.vector().names == [n for p in ('ours', 'penultimate', 'tags') for n in features.names(p)]
    half = both.ours.size//2
    assert names[half - 1:half + 1] == [f'ours mean {half - 1}', 'ours std 0']

def test_what_cannot_be_had_is_an_error(both, features, music, tmp_path):
    with pytest.raises(LogocentricError, match='choose from ours, penultimate'): features.vector(['mood'])
    with pytest.raises(AudioError, match='no such file'): both.encode(tmp_path/'a.wav')
    with pytest.raises(AudioError, match='NaN'): both.encode(np.full(100, np.nan))
    other = AudioEncoder(both.ours.encoder, replace(both.ours.frontend, sample_rate=8_000, f_max=4_000.))
    with pytest.raises(LogocentricError, match='one pass has one sample rate'): BothEncoders(other, both.taggers)

def test_an_error_midway_is_passed_on_from_any_thread(both, music, tmp_path, threads):
    sf.write(tmp_path/'a.wav', np.where(np.arange(len(music)) < 300_000, music, np.nan), RATE, 'FLOAT')
    for n in (1, 2):
        threads(n)
        with pytest.raises(AudioError, match='NaN'): both.encode(tmp_path/'a.wav')
        assert torch.get_num_threads() == n

def test_encoders_are_loaded_once(both): assert load_both() is both

def inputs_and_peak(both, path):
    "Windows of a file, and the bytes that NumPy and Python hold at most while they come to the encoders."
    tracemalloc.start()
    try: return [row[:2] for row in both._inputs(path, None, Decoded())], tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()

def test_a_long_file_is_never_held_as_a_whole(both, tmp_path):
    "`tee` forgets blocks by dozens, so that what is held goes up and down by some megabytes."
    for minutes in (2, 10): sf.write(tmp_path/f'{minutes}.flac', np.tile(make_music(10), 6*minutes), RATE)
    (_, short), (windows, long) = (inputs_and_peak(both, tmp_path/f'{minutes}.flac') for minutes in (2, 10))
    assert long < short + 4e6   # eight minutes more are 31 MB
    assert [w for name, w in windows if name == 'ours'] == both.length.windows(600)
    stops = [w.stop for _, w in windows]
    assert stops == sorted(stops) and ('ours', Window(590, 600)) in windows

def test_frame_embeddings_do_not_stay_in_memory(both):
    rows, _ = module._tags_of(both, torch.rand(187, 96))
    for row in rows.values(): assert row['last_hidden_state'].untyped_storage().nbytes() == 0
