"""The shipped encoder: loads in one line, embeds any sound the same alone and in company, and can be made again."""
import numpy as np, pytest, torch
from logocentric.core import LogocentricError, model_path, read_json, shipped_path
from logocentric.encoder.shipped import Recipe, train_encoder
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.audio.frontend import FrontendConfig
from logocentric.data.sound_corpus import draw_sound, render_sound

TINY = Recipe(music=4, sounds=6, held_out=3, steps=4, batch_size=3, encoder=dict(name='tiny', target='per_patch'))


@pytest.fixture(scope='module')
def encoder(): return load_encoder()


@pytest.fixture(scope='module')
def waves(): return [render_sound(draw_sound(4, i)).wave[:n] for i, n in enumerate((160_000, 50_000, 8_000, 700))]


def test_the_package_brings_an_encoder():
    assert model_path('ear', None).name == 'ear' and shipped_path('ear').is_dir()
    size = sum(p.stat().st_size for p in shipped_path('ear').iterdir())
    assert size < 15e6
    assert not list(shipped_path('ear').glob('*.bin')) and not list(shipped_path('ear').glob('*.pt'))


def test_its_folder_says_how_it_was_made():
    recipe, history = (read_json(shipped_path('ear')/f'{name}.json') for name in ('recipe', 'history'))
    recipe = Recipe.from_dict(recipe)
    assert history['passes'] == recipe.steps*recipe.batch_size
    assert history['rows'][-1]['step'] == recipe.steps
    card = (shipped_path('ear')/'README.md').read_text(encoding='utf-8')
    assert 'license: apache-2.0' in card and f"{history['passes']:,}" in card


def test_any_length_and_any_company(encoder, waves):
    together, alone = encoder.embed(waves), np.stack([encoder.embed(w) for w in waves])
    assert together.shape == (4, encoder.size) and np.isfinite(together).all()
    assert np.abs(together - alone).max() < 1e-3


def test_a_file_and_its_samples_sound_the_same(encoder, waves, tmp_path):
    import soundfile as sf
    sf.write(tmp_path/'sound.wav', waves[1], 16_000, subtype='FLOAT')
    assert np.allclose(encoder.embed(tmp_path/'sound.wav'), encoder.embed(waves[1]), atol=1e-4)
    stereo = np.stack([waves[1], waves[1]], 1)
    assert np.allclose(encoder.embed(stereo), encoder.embed(waves[1]), atol=1e-4)


def test_silence_is_finite(encoder): assert np.isfinite(encoder.embed(np.zeros(16_000, np.float32))).all()


def test_following_agrees_with_embedding(encoder, waves):
    wave = waves[0][:(100*encoder.encoder.config.patch_frames - 1)*160]  # a hundred columns, all of them full
    vectors, seconds = encoder.timestamp_embeddings(wave)
    assert len(vectors) == len(seconds) == 100 and (np.diff(seconds) > 0).all() and seconds[-1] < len(wave)/16_000
    assert np.allclose(vectors.mean(0), encoder.embed(wave)[:encoder.size//2], atol=1e-4)


def test_a_sound_that_cannot_be_read_says_why(encoder, tmp_path):
    with pytest.raises(LogocentricError, match='no such file'): encoder.embed(tmp_path/'nothing.wav')


def test_integers_and_tensors_are_waveforms_too(encoder, waves):
    short = (waves[2]*32768).astype(np.int16)
    assert np.allclose(encoder.embed(short), encoder.embed(short/32768), atol=1e-5)
    assert np.allclose(encoder.embed(torch.from_numpy(waves[2])), encoder.embed(waves[2]), atol=1e-5)


def test_what_cannot_be_embedded_says_why(encoder, waves):
    with pytest.raises(LogocentricError, match='no sounds'): encoder.embed([])
    for layer in (7, -8):
        with pytest.raises(LogocentricError, match='6 blocks'): encoder.embed(waves[2], layer=layer)
    assert np.array_equal(encoder.embed(waves[2], layer=6), encoder.embed(waves[2], layer=-1))


def test_a_folder_without_an_encoder_says_so(tmp_path):
    with pytest.raises(LogocentricError, match='no encoder'): load_encoder(tmp_path)


def test_a_recipe_is_strict():
    assert Recipe.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(LogocentricError, match='birds'): Recipe.from_dict(dict(birds=3))


def test_a_card_is_of_its_own_encoder(encoder, tmp_path):
    from logocentric.core import load_records, results_path
    from logocentric.encoder.shipped import write_card
    record = load_records(results_path(), name='probe_encoder')[0]
    assert record.metrics['encoder'] == encoder.fingerprint
    import shutil
    shutil.copytree(shipped_path('ear'), tmp_path/'ear')
    assert write_card(record, tmp_path/'ear').read_text() == (shipped_path('ear')/'README.md').read_text()
    record.metrics['encoder'] = 'another'
    with pytest.raises(LogocentricError, match='another encoder'): write_card(record, tmp_path/'ear')


def test_an_encoder_can_be_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    first = train_encoder(tmp_path/'a', TINY, processes=1, mixed_precision='no', progress=False)
    again = train_encoder(tmp_path/'b', TINY, processes=1, mixed_precision='no', progress=False)
    assert first.rows[-1]['loss'] == again.rows[-1]['loss']
    a, b = load_encoder(tmp_path/'a'), load_encoder(tmp_path/'b')
    assert a.frontend == b.frontend != FrontendConfig()
    for x, y in zip(a.encoder.parameters(), b.encoder.parameters()): assert torch.equal(x, y)
    assert train_encoder(tmp_path/'a', TINY, processes=1, mixed_precision='no', progress=False).rows == first.rows


def test_the_shipped_encoder_tells_kinds_apart_better_than_chance(encoder):
    "Made for this test: eight kinds, six of each to learn from, four to be asked."
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler
    kinds = ['talk', 'rain', 'bell', 'engine', 'bird', 'knock', 'siren', 'wind']
    waves = [render_sound(draw_sound(1234, 10*k + i, kind)).wave[:48_000] for k, kind in enumerate(kinds)
             for i in range(10)]
    x, y = StandardScaler().fit_transform(encoder.embed(waves)), np.repeat(np.arange(8), 10)
    known = np.tile(np.arange(10) < 6, 8)
    assert RidgeClassifier(100.).fit(x[known], y[known]).score(x[~known], y[~known]) > .5
