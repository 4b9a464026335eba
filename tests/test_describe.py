"Descriptions of recordings: files as waveforms, any length, refusals, novelty; many files at a time."
import os
import numpy as np, pytest, soundfile as sf, torch
from logocentric.audio.formats import AudioError
from logocentric.audio.frontend import FrontendConfig
from logocentric.captioner import describe as chapter
from logocentric.captioner.describe import CAVEAT, describe, describe_files
from logocentric.captioner.model import Captioner
from logocentric.core import shared_path, shipped_path
from logocentric.encoder import audio_encoder
from logocentric.encoder.audio_encoder import AudioEncoder
from logocentric.encoder.mae import MAEConfig, MAEEncoder
from logocentric.data.lists import audio_files, audio_index, walk_sounds
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


@pytest.fixture(scope='module')
def shipped(): return Captioner.from_pretrained(shipped_path('captioner'))


@pytest.fixture
def clips(tmp_path):
    "Six short clips of several lengths, rates and channels."
    rng = np.random.default_rng(0)
    for i in range(6):
        wave = rng.normal(0, .02*(i + 1), (8000 + 4000*i, 1 + i % 2))*np.sin(np.arange(8000 + 4000*i)/(2 + i))[:, None]
        sf.write(tmp_path/f'{i}.wav', wave, (8000, 16_000, 22_050)[i % 3])
    return tmp_path


def test_many_files_are_answered_as_each_alone(shipped, clips):
    alone = {f: describe(f, shipped, max_new_tokens=8) for f in sorted(clips.iterdir())}
    assert dict(describe_files(alone, shipped, max_new_tokens=8)) == alone    # words, novelty, windows, bit for bit
    assert dict(describe_files(alone, shipped, batch_size=3, max_new_tokens=8)) == alone
    assert len({d.text for d in alone.values()}) > 1


def test_files_encoded_side_by_side_are_answered_as_one_by_one(model, clips):
    files, before = sorted(clips.iterdir()), torch.get_num_threads()
    (clips/'no.wav').write_text('not audio')
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append({f: str(a) if isinstance(a, Exception) else a
                          for f, a in describe_files([*files, clips/'no.wav'], model, max_new_tokens=6)})
            assert torch.get_num_threads() == n
    finally: torch.set_num_threads(before)
    assert found[0] == found[1] and list(found[1]) == [*files, clips/'no.wav']


def test_an_untrained_captioner_is_in_doubt_at_every_word_and_still_answers_as_alone(model, clips):
    alone = {f: describe(f, model, max_new_tokens=6) for f in sorted(clips.iterdir())}
    assert dict(describe_files(alone, model, max_new_tokens=6)) == alone


@pytest.mark.parametrize('options', [dict(num_beams=2), dict(samples=2)], ids=str)
def test_beams_and_samples_are_those_of_each_file_alone(model, clips, options):
    alone = {f: describe(f, model, max_new_tokens=4, **options) for f in sorted(clips.iterdir())[:3]}
    assert dict(describe_files(alone, model, max_new_tokens=4, **options)) == alone


@pytest.mark.slow # on a busy machine two threads wait for each other, which is what the rule is for
def test_answers_do_not_depend_on_threads(shipped, clips, monkeypatch):
    monkeypatch.setattr('logocentric.core.SMALL_MODEL', 0) # no help: as many threads as torch is given
    files, found = sorted(clips.iterdir())[:4], []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append([d for _, d in describe_files(files, shipped, max_new_tokens=4)])
    finally: torch.set_num_threads(1)
    one, two = found
    assert [d.text for d in one] == [d.text for d in two]
    assert [d.novelty for d in one] == pytest.approx([d.novelty for d in two], abs=1e-6)


def test_a_small_model_gets_one_thread_and_gives_the_others_back(model, monkeypatch):
    seen, caption = [], Captioner.caption
    monkeypatch.setattr(Captioner, 'caption',
                        lambda *a, **k: seen.append(torch.get_num_threads()) or caption(*a, **k))
    torch.set_num_threads(2)
    try:
        describe(tone(1.), model, max_new_tokens=2)
        assert seen == [1] and torch.get_num_threads() == 2
    finally: torch.set_num_threads(1)


def test_a_bad_file_costs_its_own_answer(model, clips, monkeypatch):
    (clips/'3.wav').unlink(); (clips/'3.wav').symlink_to('nowhere.wav')
    (clips/'4.wav').write_text('no sound')
    (clips/'folder.wav').mkdir()
    names = ['0.wav', '3.wav', '4.wav', 'folder.wav', 'x'*5000, '5.wav']
    files = [*(clips/n for n in names), '-', 'https://example.org/a.mp3', clips/'1.wav']
    (clips/'1.wav').unlink()                                             # it was there when the folder was listed
    found = dict(describe_files(files, model, max_new_tokens=4))
    assert list(found) == files and found[files[5]] == describe(files[5], model, max_new_tokens=4)
    errors = {str(f)[-9:]: e.reason for f, e in found.items() if isinstance(e, AudioError)}
    assert len(errors) == 7 and 'no such file' in errors[str(clips/'3.wav')[-9:]]
    assert 'without sound files' in errors['older.wav'] and errors['x'*9]
    assert 'standard input' in errors['-'] and 'nothing is downloaded' in errors['org/a.mp3']
    for bad in files[3:5]:
        with pytest.raises(AudioError): describe(bad, model)


def test_a_fault_of_ours_costs_the_file_that_shows_it(model, clips, monkeypatch):
    files, ours = sorted(clips.iterdir())[:4], chapter._description
    def faulty(model, e, *rest): return ours(model, e, *rest) if e.windows[0].stop != 1. else 1/0 # the second file
    monkeypatch.setattr(chapter, '_description', faulty)
    found = [d for _, d in describe_files(files, model, max_new_tokens=2)]
    failed = [isinstance(d, AudioError) for d in found]
    assert sum(failed) < 4 and all('ZeroDivisionError' in d.reason for d in found if isinstance(d, AudioError))
    assert failed == [abs(sf.info(f).duration - 1) < 1e-9 for f in files] and sum(failed) == 1


def test_a_model_is_loaded_once_and_again_when_it_has_changed(model, tmp_path, monkeypatch):
    loaded, load = [], Captioner.from_pretrained.__func__
    monkeypatch.setattr(Captioner, 'from_pretrained', classmethod(lambda cls, f: loaded.append(f) or load(cls, f)))
    model.save_pretrained(tmp_path/'m')
    for _ in range(3): describe(tone(1.), tmp_path/'m', max_new_tokens=2)
    assert len(loaded) == 1
    os.utime(tmp_path/'m'/'model.safetensors', (1, 1))
    describe(tone(1.), tmp_path/'m', max_new_tokens=2)
    assert len(loaded) == 2


def test_loading_shows_no_bar_and_leaves_bars_as_they_were(model, tmp_path, capfd):
    from transformers.utils import logging
    model.save_pretrained(tmp_path/'m')
    was = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    capfd.readouterr()  # what saving has shown
    try:
        describe(tone(1.), tmp_path/'m', max_new_tokens=2)
        assert logging.is_progress_bar_enabled() and '%' not in capfd.readouterr().err
    finally:
        if not was: logging.disable_progress_bar()


def test_what_decoding_found_out_is_told(model, tmp_path, monkeypatch):
    def windows(path, policy, rate, found):
        for w in policy.windows(3.): yield w, tone(w.stop - w.start)
        found.seconds = 3.5
        found.notes.append('cut short')
    monkeypatch.setattr(chapter, 'stream_windows', windows)
    sf.write(tmp_path/'any.wav', tone(1.), 16_000)
    found = describe(tmp_path/'any.wav', model, max_new_tokens=2)
    assert found.notes == ['cut short'] and found.coverage == model.length.coverage(3.5)


# --- vectors of long files

@pytest.mark.parametrize('how', ['mean+std', 'std+thirds'])
def test_a_long_file_has_the_vector_of_all_its_samples_at_once(tmp_path, monkeypatch, how):
    audio = AudioEncoder(MAEEncoder(MAEConfig.preset('tiny')).eval(), FrontendConfig())
    wave = (np.random.default_rng(0).normal(0, .1, 16_000*31 + 77)*np.linspace(0, 1, 16_000*31 + 77)).astype(np.float32)
    sf.write(tmp_path/'x.wav', wave, 16_000, subtype='FLOAT')
    at_once = audio.embed([wave, wave[:16_000]], how=how)
    sizes, layers = [], audio_encoder.layer_embeddings
    monkeypatch.setattr(audio_encoder, 'layer_embeddings', lambda e, x, m: sizes.append(x.shape[1]) or layers(e, x, m))
    monkeypatch.setattr(audio_encoder, 'LONG_SECONDS', 5.)
    found = audio.embed([tmp_path/'x.wav', wave[:16_000]], how=how)
    assert len(sizes) == 4 and max(sizes) <= 1008 and np.abs(found - at_once).max() < 1e-5
    assert np.array_equal(audio.embed(wave, how=how), audio.embed(str(tmp_path/'x.wav'), how=how))


# --- the walk

def test_every_folder_is_walked_once_whatever_links_lead_to_it(tmp_path):
    disk, top = tmp_path/'disk', tmp_path/'top'
    for f in ('top/z/a.wav', 'top/z/y/b.oga', 'disk/c.webm', 'disk/d/e.W64', 'top/.hidden/x.wav', 'top/__MACOSX/x.wav',
              'top/z/._a.wav', 'top/notes.txt'):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/f).touch()
    links = dict(a=top/'z', b=disk/'d', c=disk, up=tmp_path, **{'z/loop': top, 'z/y/other': top/'a'})
    for name, target in links.items(): (top/name).symlink_to(target, target_is_directory=True)
    (disk/'back').symlink_to(top/'z', target_is_directory=True)
    assert audio_files(top) == ['b/e.W64', 'c/c.webm', 'z/a.wav', 'z/y/b.oga']
    assert ('a', 'z') in walk_sounds(top).again
    index = audio_index(top).paths                   # a list may name a clip by the name of a link
    assert index['a/y/b'] == 'a/y/b.oga' and index['z/y/b'] == 'z/y/b.oga'


def test_folders_that_link_to_each_other_do_not_multiply(tmp_path):
    for i in range(12):
        (tmp_path/f'{i}').mkdir(); (tmp_path/f'{i}'/'x.wav').touch()
        for j in range(12): (tmp_path/f'{i}'/f'to{j}').symlink_to(tmp_path/f'{j}', target_is_directory=True)
    assert len(audio_files(tmp_path)) == 12


def test_a_closed_folder_is_named(model, tmp_path, monkeypatch):
    (tmp_path/'shut').mkdir(); (tmp_path/'a.wav').touch()
    scan = os.scandir
    def closed(path='.'):
        if str(path).endswith('shut'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    monkeypatch.setattr(os, 'scandir', closed)
    assert walk_sounds(tmp_path) == (['a.wav'], ['shut'], [])
    with pytest.raises(AudioError, match='cannot be opened: Permission denied'): describe(tmp_path/'shut', model)


@pytest.mark.slow
def test_recordings(model):
    folder = shared_path() and shared_path()/'data'/'recordings'
    if not folder or not folder.is_dir(): pytest.skip('no recordings beside the checkout')
    for file in sorted(p for p in folder.rglob('*') if p.is_file()):
        try: found = describe(file, model, max_new_tokens=4)
        except AudioError as e: assert str(file) in str(e)
        else: assert found.windows and found.coverage.startswith('heard')
