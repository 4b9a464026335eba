"The frontend against librosa, and on real recordings."
import json, math
import librosa, numpy as np, pytest, soundfile as sf, torch
from logocentric.audio.decoding import AudioError, LengthPolicy, load_audio
from logocentric.audio.frontend import FrontendConfig, LogMel, calibrate, mel_filters
from logocentric.core import LogocentricError
from test_decoding import RATE, RECORDINGS, music, needs_recordings, seconds


# --- the log-mel ------------------------------------------------------------------------------------------------------
SOUNDS = dict(
    noise=lambda: .1*np.random.default_rng(0).standard_normal(10*RATE),
    tone=lambda: .5*np.sin(2*np.pi*440*seconds(10)),
    tones=lambda: sum(np.sin(2*np.pi*f*seconds(10))/8 for f in (110, 1000.5, 3333, 7000)),
    sweep=lambda: np.sin(2*np.pi*(50*seconds(10) + 390*seconds(10)**2)),
    whisper=lambda: 1e-4*np.sin(2*np.pi*440*seconds(10)),
    click=lambda: np.eye(1, RATE, 5000)[0])

def agrees_with_librosa(wave):
    reference = librosa.feature.melspectrogram(y=wave.astype(np.float64), sr=RATE, n_fft=400, hop_length=160, n_mels=80,
                                               fmin=50, fmax=8000).T
    config = FrontendConfig(log_offset=1e-30)  # so that the exponential gives the power back, however small
    ours = LogMel(config)(torch.tensor(wave)).double().exp().numpy()
    assert ours.shape == reference.shape
    difference, audible = abs(ours - reference), reference > 1e-6*reference.max()
    assert difference.max() < 1e-5*reference.max()
    assert (difference[audible] < 1e-4*reference[audible]).all()

@pytest.mark.parametrize('name', SOUNDS)
def test_equals_librosa(name): agrees_with_librosa(np.float32(SOUNDS[name]()))

@needs_recordings
@pytest.mark.parametrize('name', ['librosa/147793__setuniman__sweet-waltz-0i-22mi.hq.ogg', 'smstools/piano.wav',
                                  'sonicpi/loop_amen.flac'])
def test_equals_librosa_on_recordings(name): agrees_with_librosa(load_audio(RECORDINGS/name)[:20*RATE])

@pytest.mark.parametrize('n_mels,n_fft,f_min,f_max,rate', [(80, 400, 50, 8000, 16000), (128, 1024, 0, 11025, 22050),
                                                           (64, 512, 20, 7600, 16000)])
def test_filters_equal_librosa(n_mels, n_fft, f_min, f_max, rate):
    config = FrontendConfig(sample_rate=rate, n_mels=n_mels, n_fft=n_fft, f_min=f_min, f_max=f_max)
    reference = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(config), reference, atol=1e-12)

@pytest.mark.parametrize('size', [1, 2, 5, 16, 33])
def test_same_in_any_batch(size):
    log_mel, wave = LogMel(), torch.tensor(music())
    batch = torch.randn(size, len(wave), generator=torch.Generator().manual_seed(size))
    batch[size//2] = wave
    assert (log_mel(batch)[size//2] - log_mel(wave)).abs().max() < 1e-5

def test_same_with_padding_after_it():
    log_mel, wave = LogMel(), torch.tensor(music())
    padded = torch.nn.functional.pad(wave, (0, 12_345))
    assert (log_mel(padded)[:200] - log_mel(wave)[:200]).abs().max() < 1e-5

def test_same_from_doubled_stereo(tmp_path):
    wave = music()
    sf.write(tmp_path/'mono.wav', wave, RATE, 'FLOAT')
    sf.write(tmp_path/'stereo.wav', np.stack([wave, wave], 1), RATE, 'FLOAT')
    mono, stereo = (LogMel()(torch.tensor(load_audio(tmp_path/name))) for name in ('mono.wav', 'stereo.wav'))
    assert (mono - stereo).abs().max() < 1e-5

def test_shapes():
    log_mel = LogMel()
    assert log_mel(torch.zeros(10*RATE)).shape == (1001, 80)
    assert log_mel(torch.zeros(2, 3, 320)).shape == (2, 3, 3, 80)
    assert log_mel(torch.zeros(1)).shape == (1, 80)
    with pytest.raises(LogocentricError, match='without samples'): log_mel(torch.zeros(0))

def test_silence_is_a_number():
    assert torch.allclose(LogMel()(torch.zeros(RATE)), torch.tensor(FrontendConfig().silence))
    assert math.isclose(FrontendConfig().silence, math.log(2**-23))

def test_precision_does_not_depend_on_the_surroundings():
    log_mel, wave = LogMel(), torch.tensor(music())
    expected = log_mel(wave)
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(log_mel(wave), expected)
    assert torch.equal(LogMel().to(torch.bfloat16)(wave), expected)
    with torch.device('meta'): built_on_meta = LogMel()
    assert torch.equal(built_on_meta(wave), expected)

def test_differentiable_also_after_inference_mode():
    config = FrontendConfig(mean=-3.3)  # settings that no other test has cached
    with torch.inference_mode(): LogMel(config)(torch.tensor(music()))
    wave = torch.tensor(music(.2).astype(np.float64), requires_grad=True)
    direction = torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
    LogMel(config)(wave).mean().backward()
    ahead, behind = (LogMel(config)(wave.detach() + e*direction).double().mean() for e in (1e-4, -1e-4))
    slope = (ahead - behind)/2e-4
    assert abs(slope - wave.grad @ direction.double()) < .03*abs(slope)

def test_gradient_of_silence_is_finite():
    wave = torch.zeros(RATE, requires_grad=True)
    LogMel()(wave).sum().backward()
    assert wave.grad.isfinite().all()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_same_on_gpu():
    wave = torch.tensor(music())
    assert (LogMel()(wave.cuda()).cpu() - LogMel()(wave)).abs().max() < 1e-3


# --- the settings -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('settings', [FrontendConfig(mean=-5.), LengthPolicy(hop=5.)])
def test_settings_survive_json(settings):
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(LogocentricError, match='no setting windw'): type(settings).from_dict(dict(windw=1))

@pytest.mark.parametrize('bad', [dict(f_max=9000.), dict(f_min=-1.), dict(win_length=512), dict(log_offset=0.),
                                 dict(std=0.)])
def test_bad_settings(bad):
    with pytest.raises(LogocentricError): FrontendConfig(**bad)

def test_calibrate():
    x = torch.randn(1000, 80, generator=torch.Generator().manual_seed(0))*3 - 5
    config = calibrate(x.half().split(100))
    assert abs(config.mean - x.mean()) < 1e-3 and abs(config.std - x.std()) < 1e-2
    assert abs(LogMel(config).normalise(x).std() - 1) < 1e-2
    with pytest.raises(LogocentricError): calibrate([])


# --- files and windows -----------------------------------------------------------------------------------------------
def test_silence_and_a_blink_have_a_logmel(tmp_path):
    for n, frames in ((RATE, 101), (320, 3), (1, 1)):
        sf.write(tmp_path/'a.wav', np.zeros(n), RATE)
        logmel = LogMel()(torch.tensor(load_audio(tmp_path/'a.wav')))
        assert logmel.shape == (frames, 80) and logmel.isfinite().all()
        padded, mask = LengthPolicy().pad(logmel)
        assert len(padded) % 16 == 0 and mask.sum() == frames

@needs_recordings
@pytest.mark.parametrize('step', [10, pytest.param(1, marks=pytest.mark.slow)])
def test_recordings_are_decoded_or_refused(step):
    decoded, refusals, log_mel = 0, set(), LogMel()
    paths = sorted(p for p in RECORDINGS.rglob('*') if p.is_file())[::step]
    for path in paths:
        try: wave = load_audio(path, duration=5)
        except AudioError:
            refusals.add(path.suffix)
            continue
        assert log_mel(torch.tensor(wave)).isfinite().all(), path
        decoded += 1
    assert decoded > .8*len(paths) and refusals <= {'', '.md', '.txt', '.msgpack', '.json'}

def test_padding_is_silence_and_masked():
    logmels, masks = LengthPolicy().batch([torch.zeros(1001, 80), torch.zeros(5, 80)])
    assert logmels.shape == (2, 1008, 80) and masks.sum(1).tolist() == [1001, 5]
    assert torch.all(logmels[~masks] == FrontendConfig().silence) and torch.all(logmels[masks] == 0)

def test_combine_weights_by_length():
    policy = LengthPolicy()
    embeddings = torch.randn(3, 4, 5)
    expected = (10*embeddings[0] + 10*embeddings[1] + 4*embeddings[2])/24
    torch.testing.assert_close(policy.combine(embeddings, policy.windows(24)), expected)
