"Descriptions of recordings: files as waveforms, any length, refusals, novelty."
import numpy as np, pytest, soundfile as sf, torch
from logocentric.audio.decoding import AudioError
from logocentric.captioner.describe import CAVEAT, describe
from logocentric.core import shared_path
from test_captioner import logmels, model, tokenizer # noqa: F401


def tone(seconds, rate=16_000): return (.1*np.sin(2*np.pi*300*np.arange(int(seconds*rate))/rate)).astype(np.float32)


def test_describe_file_as_wave(model, tmp_path):
    wave = tone(5.)
    sf.write(tmp_path/'x.wav', wave, 16_000, subtype='FLOAT')
    sf.write(tmp_path/'stereo.wav', np.stack([wave, wave], 1), 16_000, subtype='FLOAT')
    found = describe(wave, model)
    assert found == describe(tmp_path/'x.wav', model) == describe(str(tmp_path/'stereo.wav'), model)
    assert [(w.start, w.stop) for w in found.windows] == [(0., 2.), (2., 4.), (4., 5.)]
    assert found.coverage == 'heard 0.0–5.0 s in 3 windows, 0.0 s dropped' and found.note == CAVEAT
    assert found.novelty is None
    assert describe(wave, model, batch_size=1).windows == found.windows


def test_describe_loads_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert describe(tone(2.), tmp_path) == describe(tone(2.), model)


def test_describe_refuses(model, tmp_path):
    (tmp_path/'no.wav').write_text('not audio')
    for bad in (tmp_path/'no.wav', tmp_path/'missing.wav', np.zeros(0, np.float32),
                np.full(16_000, np.nan, np.float32)):
        with pytest.raises(AudioError): describe(bad, model)


def test_describe_silence_and_20_ms(model):
    for wave in (np.zeros(16_000, np.float32), tone(.02)): assert isinstance(describe(wave, model).text, str)


def test_novelty_orders(model):
    model.calibrate_novelty(logmels(200, seed=1).split(50), logmels(100, seed=2).split(50))
    alike = model.novelty(model.encode(logmels(50, seed=3)))
    assert .2 < np.mean(alike) < .8
    assert model.novelty(model.encode(torch.full((1, 200, 80), -5.))) == [1.]


@pytest.mark.slow
def test_recordings(model):
    folder = shared_path() and shared_path()/'data'/'recordings'
    if not folder or not folder.is_dir(): pytest.skip('no recordings beside the checkout')
    for file in sorted(p for p in folder.rglob('*') if p.is_file()):
        try: found = describe(file, model, max_new_tokens=4)
        except AudioError as e: assert str(file) in str(e)
        else: assert found.windows and found.coverage.startswith('heard')
