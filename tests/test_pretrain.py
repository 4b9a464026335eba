"""Pre-training by causes: what a batch says is true, what is hidden stays hidden, a killed run goes on."""
import numpy as np, pytest, torch
from logocentric.data.styles import ATTRIBUTES
from logocentric.data.corpus import build_corpus
from logocentric.audio.frontend import FrontendConfig
from logocentric.encoder.mae import MAEConfig
from logocentric.encoder.pretrain import (MUSIC, IGNORE_INDEX, PretrainingClips, Objective, Pretrainer, colour,
                                          visible_frame_embeddings, mix, phones_in_columns, pool_visible, pretrain,
                                          to_grid, transpose)
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.audio.sounds import KINDS
from logocentric.audio.voices import PHONES, UNKNOWN
from logocentric.data.sound_corpus import build_sounds
from logocentric.data.clipset import crop_start
from logocentric.runs import TrainConfig

FEW = TrainConfig(steps=6, batch_size=4, lr=1e-3, eval_every=3, checkpoint_every=2, keep='last')


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrain')
    music = build_corpus(folder/'music', 6, seed=31, processes=1)
    return music, build_sounds(folder/'sounds', 14, seed=32, processes=1)


@pytest.fixture
def clips(corpora): return PretrainingClips(*corpora, FrontendConfig())


def config(**changes): return MAEConfig.preset('tiny', target='per_patch', **changes)


def answers(clips, rows, seed=0):
    return {k: v for k, v in clips.batch(rows, np.random.default_rng(seed)).items() if k != 'id'}


def test_a_batch_is_a_function_of_its_numbers_and_seed(clips):
    first, again, other = (answers(clips, [0, 7, 9], seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first['logmel'], other['logmel'])


def test_music_is_asked_for_attributes_and_sounds_for_phones(clips):
    batch = answers(clips, [0, 1, 6, 10])
    assert batch['kind'][:2].tolist() == [MUSIC, MUSIC] and (batch['kind'][2:] < MUSIC).all()
    assert (batch['attributes'][:2] >= 0).all() and (batch['attributes'][2:] == IGNORE_INDEX).all()
    assert (batch['phones'][:2] == IGNORE_INDEX).all() and (batch['phones'][2:] > IGNORE_INDEX).all()


def test_answers_are_those_of_the_tables(clips, corpora):
    music, sounds = corpora
    batch = answers(clips, range(20))
    for j, (name, values) in enumerate(ATTRIBUTES.items()):
        assert [list(values)[v] for v in batch['attributes'][:6, j]] == list(music.table[name])
    assert [list(KINDS)[k] for k in batch['kind'][6:]] == list(sounds.table.kind)


def test_validation_crops_are_fixed_and_untouched(corpora):
    fixed = PretrainingClips(*corpora, FrontendConfig(), random=False)
    a, b = answers(fixed, [0, 8], 1), answers(fixed, [0, 8], 2)
    assert torch.equal(a['logmel'], b['logmel'])
    music, c = corpora[0], FrontendConfig()
    start = (music.features.shape[1] - 256)//2
    expected = (torch.from_numpy(music.features[0, start:start + 256].astype(np.float32)) - c.mean)/c.std
    assert torch.allclose(a['logmel'][0], expected)


@pytest.mark.parametrize('at', [0, 500, 1000])
def test_a_crop_holds_something_active(at):
    active = np.zeros(1001, bool); active[at] = True
    for seed in range(30):
        start = crop_start(active, 256, np.random.default_rng(seed))
        assert 0 <= start <= 1001 - 256 and active[start:start + 256].any()


def test_a_silent_clip_can_be_cropped():
    assert 0 <= crop_start(np.zeros(1001, bool), 256, np.random.default_rng(0)) <= 745


def test_a_mixture_is_never_softer_and_adds_power():
    x = torch.randn(8, 10, 5)
    mixed, chosen = mix(x, np.random.default_rng(0), share=1.)
    assert chosen.all() and not mix(x, np.random.default_rng(0), share=0.)[1].any()
    assert (mixed >= x).all() and (mixed > x).any()
    assert torch.equal(mix(x, np.random.default_rng(0), share=0.)[0], x)


def test_a_voice_behind_is_unknown(clips, monkeypatch):
    import logocentric.encoder.pretrain as module
    monkeypatch.setattr(module, 'mix', lambda x, rng: mix(x, np.random.default_rng(0), share=0.))
    plain = answers(clips, [0, 7, 9, 12, 15], 3)
    monkeypatch.setattr(module, 'mix', lambda x, rng: mix(x, np.random.default_rng(0), share=1.))
    mixed = answers(clips, [0, 7, 9, 12, 15], 3)
    behind = plain['phones'].roll(1, 0)
    voiced = (plain['phones'] != IGNORE_INDEX) & (behind != 0) & (behind != IGNORE_INDEX)
    assert voiced.any() and (mixed['phones'][voiced] == UNKNOWN).all()
    assert torch.equal(mixed['phones'][~voiced], plain['phones'][~voiced])


def test_the_neighbour_is_softer_whatever_its_level():
    x = torch.randn(8, 10, 5) + 8*torch.randn(8, 1, 1)
    power, mixed = (y.double().exp() for y in (x, mix(x.double(), np.random.default_rng(0), share=1.)[0]))
    added = (mixed - power).sum((1, 2))/power.sum((1, 2))
    assert (added <= np.exp(-2) + 1e-6).all() and (added >= np.exp(-8) - 1e-6).all() and added.max() > np.exp(-4)


def test_colour_keeps_silence_silent():
    silent = torch.full((4, 10, 80), -15.9)
    assert (colour(silent, np.random.default_rng(0), -15.9) < -15.9 + 7).all()
    assert (colour(silent, np.random.default_rng(0), -15.9) >= -15.9).all()


def test_transpose_moves_a_line():
    x = torch.zeros(1, 4, 80); x[:, :, 40] = 1
    for step in (-3, 0, 3): assert transpose(x, torch.tensor([step]))[0, 0].argmax() == 40 + step


def test_to_grid_puts_patches_back():
    x = torch.arange(24.).view(1, 12, 2)                                       # 3 rows, 4 columns
    noise = torch.rand(1, 12, generator=torch.Generator().manual_seed(0))
    order, rank = noise.argsort(1), noise.argsort(1).argsort(1)
    hidden = rank >= 5
    grid, seen = to_grid(x[:, order[0, :5]], hidden, rank, 3)
    flat = grid.view(1, 12, 2)
    assert torch.equal(flat[~hidden], x[~hidden]) and (flat[hidden] == 0).all()
    assert seen.sum() == 5


def test_pooling_ignores_what_is_hidden():
    grid, seen = torch.randn(2, 3, 6, 4), (torch.rand(2, 3, 6, 1) > .5).float()
    seen[:, :, 0] = 1
    junk = grid + 100*torch.randn_like(grid)*(1 - seen)
    assert torch.allclose(pool_visible(grid*seen, seen), pool_visible(junk*seen, seen))
    pooled = pool_visible(grid*seen, seen)
    row = grid[0, 1][seen[0, 1, :, 0] > 0]
    assert torch.allclose(pooled[0, 4:8], row.mean(0), atol=1e-5)
    assert torch.allclose(pooled[0, 12 + 4:12 + 8], (row.var(0, correction=0) + 1e-4).sqrt(), atol=1e-5)


def test_columns_are_scaled_for_their_hidden_rows():
    grid, seen = torch.ones(1, 4, 2, 3), torch.ones(1, 4, 2, 1)
    seen[:, 2:, 0] = 0
    embeddings = visible_frame_embeddings(grid*seen, seen)
    assert embeddings.shape == (1, 2, 12) and embeddings[0, 0].sum() == embeddings[0, 1].sum() == 12


def test_columns_of_unknown_phones_do_not_count():
    torch.manual_seed(0)
    model = Pretrainer(config())
    width, rows = model.mae.config.patch_frames, model.mae.config.n_rows
    grid, seen = torch.randn(2, rows, 4, model.mae.config.hidden_size), torch.ones(2, rows, 4, 1)
    kind, phones = torch.zeros(2, dtype=torch.long), torch.zeros(2, 4*width, dtype=torch.long)
    attributes = torch.full((2, len(ATTRIBUTES)), IGNORE_INDEX)
    ask = lambda: model.auxiliary_losses(grid, seen, kind, phones, attributes)['phones']
    phones[:, 2*width + 1] = UNKNOWN
    with_unknown = ask()
    grid[:, :, 2] += 100
    assert torch.equal(ask(), with_unknown)
    phones[:, 2*width + 1] = 0
    assert not torch.allclose(ask(), with_unknown)


def test_phones_need_a_sixth_of_a_column():
    phones = torch.zeros(1, 32, dtype=torch.long)
    phones[0, 0], phones[0, 16:20] = 3, 5
    found = phones_in_columns(phones, 16)
    assert found[0, 0, 3] == 0 and found[0, 1, 5] == 1 and (found[0, :, 0] == 1).all()
    assert found.shape == (1, 2, len(PHONES))


def test_a_batch_of_music_alone_or_sounds_alone_is_finite(clips):
    torch.manual_seed(0)
    model = Pretrainer(config())
    for rows, idle in (([0, 1, 2], 'phones'), ([7, 8, 9], 'attributes')):
        out = model(**answers(clips, rows))
        assert out.parts[idle] == 0 and out.loss.isfinite()
        out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_weights_of_losses_are_obeyed(clips):
    torch.manual_seed(0)
    weights = dict(reconstruction=2., kind=.5, attributes=0., phones=1.)
    model = Pretrainer(config(), Objective(**weights))
    out = model(**answers(clips, [0, 1, 7, 8]))
    assert torch.allclose(out.loss, sum(weights[k]*v for k, v in out.parts.items()))
    assert 'reconstruction' not in Pretrainer(config(), Objective(reconstruction=0.))(**answers(clips, [0, 7])).parts


def test_hidden_patches_do_not_reach_the_heads(clips):
    "Changing what is hidden changes no answer of the heads."
    model = Pretrainer(config(), Objective(mask_ratios=(.75,))).eval()
    batch = answers(clips, [0, 7])
    def causes(logmel):
        torch.manual_seed(3)
        return {k: v.item() for k, v in model(**dict(batch, logmel=logmel)).parts.items() if k != 'reconstruction'}
    torch.manual_seed(3); torch.randint(1, ())
    _, _, _, (_, hidden, _) = model.mae.mask(batch['logmel'])
    c = model.mae.config
    bands = hidden.view(2, c.n_rows, -1).repeat_interleave(c.patch_mels, 1)
    cells = bands.repeat_interleave(c.patch_frames, 2).transpose(1, 2)
    assert causes(batch['logmel']) == causes(batch['logmel'] + 5*cells)
    assert causes(batch['logmel']) != causes(batch['logmel'] + 5*~cells)


def test_a_killed_run_ends_as_one_left_alone(corpora, tmp_path):
    class Killed(Exception): pass
    def run(folder, **kwargs):
        return pretrain(*corpora, FrontendConfig(), config(), FEW, folder,
                        PretrainingClips(*corpora, FrontendConfig(), random=False), progress=False, **kwargs)
    whole, _ = run(tmp_path/'whole')
    import logocentric.encoder.pretrain as module
    original, left = module.save_encoder, [1]
    def die(*args):
        left[0] -= 1
        if left[0] < 0: raise Killed
        return original(*args)
    module.save_encoder = die
    try:
        with pytest.raises(Killed): run(tmp_path/'killed')
    finally: module.save_encoder = original
    continued, _ = run(tmp_path/'killed')
    for a, b in zip(whole.parameters(), continued.parameters()): assert torch.equal(a, b)


def test_an_encoder_comes_back_with_its_frontend(corpora, tmp_path):
    frontend = FrontendConfig(mean=-6., std=4.)
    model, history = pretrain(*corpora, frontend, config(), FEW, tmp_path, progress=False)
    encoder, found = load_encoder(tmp_path)
    assert found == frontend and encoder.config.pad_value == pytest.approx((frontend.silence + 6)/4)
    for a, b in zip(encoder.parameters(), model.mae.encoder.parameters()): assert torch.equal(a, b)
