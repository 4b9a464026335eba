"musicnn: the network against outputs of the original program, the conversion, windows and tags."
import struct
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from transformers import AutoConfig
import convert_musicnn
from logocentric.core import LogocentricError, set_seed, shipped_path
from logocentric.audio.decoding import AudioError, Decoded
from logocentric.encoder.musicnn import (MUSICNNS, Line, Musicnn, MusicnnConfig, _output, encode_sound,
                                         load_musicnn, sound_windows)
from logocentric.encoder.tags import tag_row, tag_sound, tag_table

GOLDEN = Path(__file__).with_name('musicnn_golden.npz') # outputs of musicnn 0.1.0 in TensorFlow 2.21, float32

def rule(kind, frames):
    "Inputs that the original program was given: log-mels (frames, 96)."
    t, m = np.arange(frames)[:, None]/62.5, np.arange(96)[None]     # s, band
    if kind == 'silence': x = 0*t + 0*m
    if kind == 'waves': x = 1.5 + np.sin(2*np.pi*(2*t + m/19)) * np.cos(m/7) * (1 - m/192)
    if kind == 'beats': x = 4*np.exp(-12*((2*t) % 1) - m/60)        # 120 strokes a minute
    if kind == 'chord': x = 3*np.exp(-t/2)*sum(np.exp(-((m - b)/1.2)**2) for b in (12, 18, 22, 27, 33, 40))
    if kind == 'noise': x = 6*np.random.default_rng(0).random((frames, 96))
    return torch.tensor(x.astype(np.float32))[None]

FRAMES = dict(silence=187, waves=187, beats=187, noise=187, chord=100)

@pytest.fixture(scope='module')
def models(): return {name: load_musicnn(name) for name in MUSICNNS}

@pytest.fixture(scope='module')
def golden(): return dict(np.load(GOLDEN))

@pytest.fixture(scope='module')
def music():
    "Eight seconds: a tune of decaying notes over a drone."
    t, rng = np.arange(8*16_000)/16_000, np.random.default_rng(1)
    hz = np.repeat(rng.choice([220, 247, 262, 294, 330], 32), 4000)
    tune = sum(np.sin(2*np.pi*k*np.cumsum(hz)/16_000)/k for k in (1, 2, 3))*np.exp(-6*(t % .25))
    return (.1*tune + .03*np.sin(2*np.pi*110*t) + .003*rng.standard_normal(len(t))).astype(np.float32)

@pytest.fixture(scope='module')
def toy():
    "A small musicnn with random weights; half of its norms fall."
    set_seed(0)
    model = Musicnn(MusicnnConfig(timbral_filters=6, temporal_filters=3, middle_filters=4, hidden_size=8, num_labels=5))
    for module in model.modules():
        if isinstance(module, Line): torch.nn.init.normal_(module.scale)
    return model.eval().requires_grad_(False)


# --- the network

@pytest.mark.parametrize('name', MUSICNNS)
@pytest.mark.parametrize('kind', FRAMES)
def test_the_network_equals_the_original(models, golden, name, kind):
    out, want = models[name](rule(kind, FRAMES[kind])), lambda n: torch.tensor(golden[f'{name}/{kind}/{n}'])
    torch.testing.assert_close(out.logits[0].sigmoid(), want('logits').sigmoid(), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.logits[0], want('logits'), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.penultimate[0], want('penultimate'), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.pooler_output[0], want('pooled'), rtol=2e-5, atol=1e-4) # up to 93

@pytest.mark.parametrize('name', MUSICNNS)
def test_frame_embeddings_equal_the_layers_of_the_original(models, golden, name):
    out = models[name](rule('beats', 187)).last_hidden_state[0, [0, 93, 186]]
    torch.testing.assert_close(out, torch.tensor(golden[f'{name}/beats/frames']), rtol=2e-5, atol=1e-4)

def test_the_golden_values_would_notice(models, golden):
    "The two models differ, and so do the inputs."
    a, b = (golden[f'{n}/waves/logits'] for n in MUSICNNS)
    assert np.abs(a - b).max() > 1 and np.abs(a - golden['msd/beats/logits']).max() > 1
    assert GOLDEN.stat().st_size < 100_000

def test_a_clip_has_the_same_features_alone_and_in_a_batch(toy):
    x, real = torch.rand(3, 187, 96), torch.ones(3, 187, dtype=torch.bool)
    x[1, 40:], real[1, 40:] = 5., False
    together, alone = toy(x, real), toy(x[1:2, :40])
    for n in ('logits', 'penultimate', 'pooler_output'): torch.testing.assert_close(together[n][1:2], alone[n])
    torch.testing.assert_close(together.last_hidden_state[1:2, :40], alone.last_hidden_state)
    assert not together.last_hidden_state[1, 40:].any()

def test_training_mode_changes_nothing(toy):
    x = torch.rand(2, 60, 96)
    want = toy(x).logits
    try: torch.testing.assert_close(toy.train()(x).logits, want)
    finally: toy.eval()

def test_two_threads_give_what_one_gives(models):
    x = rule('waves', 187)
    one = models['mtt'](x).logits
    torch.set_num_threads(2)
    try: torch.testing.assert_close(models['mtt'](x).logits, one, rtol=0, atol=1e-4)
    finally: torch.set_num_threads(1)

def test_a_model_is_saved_and_loaded(toy, tmp_path):
    toy.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MusicnnConfig)
    x = torch.rand(1, 60, 96)
    loaded, kept = load_musicnn(tmp_path), toy.state_dict()
    assert all(torch.equal(w, kept[n]) for n, w in loaded.state_dict().items())
    torch.testing.assert_close(loaded(x).logits, toy(x).logits)
    with pytest.raises(LogocentricError, match='give msd or mtt'): load_musicnn(tmp_path/'nothing')

def test_gradients_reach_every_weight(toy):
    model = Musicnn(toy.config)
    model(torch.rand(2, 60, 96)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- sounds

def test_windows_are_the_log_mel_of_the_whole_cut(models, music):
    logmel = models['msd'].frontend
    whole = logmel.normalise(logmel(torch.from_numpy(music)))
    windows, parts = zip(*sound_windows(music, models['msd']))
    assert [len(p) for p in parts] == [187, 187, len(whole) - 374] and windows[-1].stop == 8
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)

def test_a_file_and_its_waveform_have_the_same_features(toy, music, tmp_path):
    sf.write(tmp_path/'a.wav', music, 16_000, 'FLOAT')
    found = Decoded()
    file, = encode_sound(tmp_path/'a.wav', toy, found=found)
    wave, = encode_sound(music, toy)
    stereo, = encode_sound(np.stack([music, music], 1), toy)
    assert found.seconds == 8 and file.windows == wave.windows
    for other in (wave, stereo): torch.testing.assert_close(file.logits, other.logits, rtol=0, atol=1e-4)

def test_windows_may_overlap(toy, music):
    every, = encode_sound(music, toy, hop=.512, frames=True)
    plain, = encode_sound(music, toy, frames=True)
    assert len(every.windows) == 9 and every.windows[2].start == 1.024
    torch.testing.assert_close(every.logits[0], plain.logits[0])
    assert plain.frames.shape == (501, toy.frame_size)     # 1 + 128,000 // 256

def test_a_short_sound_is_one_window(toy, music):
    for n in (1, 100, 8_000, 40_000):
        found, = encode_sound(music[:n], toy, frames=True)
        assert len(found.windows) == 1 and found.logits.isfinite().all() and len(found.frames) == 1 + n//256

def test_a_clip_that_fills_its_window_is_not_changed(toy, music):
    x = next(sound_windows(music, toy))[1]
    torch.testing.assert_close(encode_sound(music[:187*256], toy)[0].logits, toy(x[None]).logits, rtol=0, atol=1e-4)

def test_a_rest_under_a_second_is_dropped_and_said(toy, music):
    found = tag_sound(music[:int(6.9*16_000)], dict(toy=toy))
    assert found.coverage == 'heard 0.0–6.0 s in 2 windows, 0.9 s dropped'
    assert len(found.windows) == 2


# --- tags

def test_shares_of_the_whole_are_means_of_its_windows_weighted_by_length(toy, music):
    found = tag_sound(music, dict(a=toy, b=toy))
    seconds = np.array([stop - start for start, stop in found.windows.index])
    want = (found.windows.values*seconds[:, None]).sum(0)/8
    np.testing.assert_allclose(found.shares.values, want, atol=1e-5)
    assert found.windows.shape == (3, 10) and found.notes == []

def test_silence_has_no_tags_and_takes_none_away(toy, music):
    nothing = tag_sound(np.zeros(64_000, np.float32), dict(toy=toy))
    assert nothing.shares.max() == 0 and nothing.notes == ['it is silent: no tag is given']
    scene = np.concatenate([music[:40_000], np.zeros(4*47_872 - 40_000, np.float32)])
    found, alone = tag_sound(scene, dict(toy=toy)), tag_sound(scene[:47_872], dict(toy=toy))
    np.testing.assert_allclose(found.shares, alone.shares, atol=1e-5)
    assert found.notes == ['silent windows, which do not count: 3 of 4']

@pytest.mark.parametrize('decibels, silent', [(-90, True), (-75, False)])
def test_a_tone_above_80_dB_below_full_scale_counts(toy, decibels, silent):
    tone = 10**(decibels/20)*np.sin(2*np.pi*220*np.arange(48_000)/16_000)
    assert (tag_sound(tone[500:], dict(toy=toy)).shares.max() == 0) == silent

def test_the_likeliest_tags_are_named_once(models, music):
    found = tag_sound(music[:47_872], models)
    likeliest = found.likeliest(100)
    assert likeliest.index.is_unique and likeliest.is_monotonic_decreasing and len(likeliest) == 100 - len(
        set(models['msd'].config.labels) & set(models['mtt'].config.labels))
    assert likeliest['guitar'] == max(found.shares['msd', 'guitar'], found.shares['mtt', 'guitar'])
    assert list(found.likeliest(3, 'msd').index) == list(found.shares['msd'].nlargest(3).index)

def test_rows_hold_plain_values_and_make_a_table(models, music, tmp_path):
    sf.write(tmp_path/'a.wav', music[:48_000], 16_000)
    row = tag_row(tmp_path/'a.wav', models)
    assert list(row) == ['coverage', 'notes', 'tags'] and all(type(v) is float for v in row['tags']['mtt'].values())
    table = tag_table([dict(file='a.wav', **row), dict(file='b.wav', error='no such file')])
    assert table.shape == (2, 102) and table['error'].tolist()[1] == 'no such file'
    assert table.loc[0, 'msd rock'] == row['tags']['msd']['rock'] and np.isnan(table.loc[1, 'msd rock'])
    with pytest.raises(AudioError, match='no such file'): tag_row(tmp_path/'b.wav', models)

def test_shipped_models_say_whose_they_are(models):
    for name, model in models.items():
        card = (shipped_path(f'musicnn_{name}')/'README.md').read_text(encoding='utf-8')
        for words in ('Universitat Pompeu Fabra 2019', 'Permission to use, copy, modify', 'license: isc', 'Jordi Pons'):
            assert words in card
        assert len(set(model.config.labels)) == 50 and ', '.join(model.config.labels) in card
    assert 'non-commercial' in (shipped_path('musicnn_mtt')/'README.md').read_text(encoding='utf-8')
    assert 'Last.fm' in (shipped_path('musicnn_msd')/'README.md').read_text(encoding='utf-8')


# --- the conversion: a checkpoint written here, by the format

def varint(n): return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

def block(rows):
    "A LevelDB block: keys share their beginnings, one restart point, no compression, no checksum."
    data, last = b'', b''
    for key, value in rows:
        shared = next((i for i, (a, b) in enumerate(zip(key, last)) if a != b), min(len(key), len(last)))
        data, last = data + varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value, key
    return data + struct.pack('<II', 0, 1) + bytes(5)

def checkpoint(tensors):
    "Index and data of a TensorFlow V2 checkpoint."
    rows, data = [(b'', b'\x08\x01')], b''
    for name, x in sorted(tensors.items()):
        shape = b''.join(b'\x12' + varint(1 + len(varint(n))) + b'\x08' + varint(n) for n in x.shape)
        entry = b'\x08\x01\x12' + varint(len(shape)) + shape + b'\x20' + varint(len(data)) + b'\x28' + varint(x.nbytes)
        rows, data = rows + [(name.encode(), entry + b'\x35\0\0\0\0')], data + x.tobytes()
    half = len(rows)//2
    parts = [block(rows[:half]), block(rows[half:])]
    places = [varint(sum(map(len, parts[:i]))) + varint(len(p) - 5) for i, p in enumerate(parts)]
    index = block([(rows[half - 1][0], places[0]), (rows[-1][0], places[1])])
    at = sum(map(len, parts))
    foot = (varint(0) + varint(0) + varint(at) + varint(len(index) - 5)).ljust(40, b'\0')
    return b''.join(parts) + index + foot + bytes.fromhex('57fb808b247547db'), data

def test_a_checkpoint_is_read_without_tensorflow():
    rng = np.random.default_rng(0)
    made = {n: rng.standard_normal(shape).astype('<f4') for n, shape in {
        'conv2d/kernel': (7, 38, 1, 4), 'conv2d/bias': (4,), 'conv2d_1/kernel': (200, 3), 'dense/kernel/Adam': (2, 2),
        'beta1_power': (), 'batch_normalization/gamma': (1,)}.items()}
    found = convert_musicnn.read_tensors(*checkpoint(made))
    assert set(found) == {n for n in made if 'Adam' not in n and 'power' not in n}
    for n, x in found.items(): np.testing.assert_array_equal(x, made[n])

def test_what_is_no_index_is_refused():
    with pytest.raises(LogocentricError, match='no LevelDB table'): convert_musicnn.read_tensors(bytes(100), b'')

def test_another_wheel_is_refused(tmp_path):
    (tmp_path/'musicnn.whl').write_bytes(b'PK')
    with pytest.raises(LogocentricError, match='not the published'): convert_musicnn.main(str(tmp_path/'musicnn.whl'))

def test_a_norm_becomes_a_line():
    rng = np.random.default_rng(0)
    norm = {f'batch_normalization_3/{n}': rng.uniform(.1, 2, 5).astype('f4')
            for n in ('gamma', 'beta', 'moving_mean', 'moving_variance')}
    x = torch.randn(7, 5)
    gamma, beta, mean, variance = (torch.tensor(w) for w in norm.values())
    want = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)
    found = convert_musicnn.line(norm, 3)
    np.testing.assert_allclose(x.numpy()*found['scale'] + found['shift'], want, atol=1e-5)


def test_frame_embeddings_that_nobody_asked_for_are_not_held(models):
    model, x = next(iter(models.values())), torch.zeros(187, 96)
    held = lambda frames: _output(model, x, frames)['last_hidden_state'].untyped_storage().nbytes()
    assert [held(False), held(True)] == [0, 187*753*4]


def test_windows_side_by_side_give_what_one_thread_gives_to_the_last_bit(toy):
    music, before = np.random.default_rng(0).normal(0, .1, 10*16_000).astype(np.float32), torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found += encode_sound(music, toy)
            assert torch.get_num_threads() == n
    finally: torch.set_num_threads(before)
    assert found[0].windows == found[1].windows and len(found[0].windows) == 4
    for what in ('logits', 'penultimate', 'pooled', 'peak'):
        assert torch.equal(getattr(found[0], what), getattr(found[1], what))
