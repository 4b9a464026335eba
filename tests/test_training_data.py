"Training data of a captioner: pairs, padding, crops, constants, rates, embeddings of a frozen encoder; a run resumes."
import numpy as np, pytest, torch
from logocentric.captioner.model import caption_clips
from logocentric.captioner.training_data import Pairs, cache_embeddings, encode_clips, tokenise, warm_up
from logocentric.memory import OutOfMemory
from logocentric.runs import TrainConfig
from logocentric.training import train
from test_captioner import build, logmels, model, tokenizer # noqa: F401


def test_calibration(model):
    x = logmels(32, seed=3)
    model.calibrate(x.split(8), ['a calm'])
    z = (model.encode(x) - model.prefix.mean)/model.prefix.std
    torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-3, rtol=0.)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones_like(z[0]), atol=2e-2, rtol=0.)
    before = model.prefix.std.clone()
    assert torch.equal(model.calibrate(x.split(8), ['a calm']).prefix.std, before)


def test_features_given_before_change_nothing(model, tokenizer):
    x, text = logmels(3), tokenise(tokenizer, ['a hum', 'quick clicks', 'noise'])
    with torch.no_grad():
        features, given = (model(**text, **how).loss for how in (dict(logmel=x), dict(features=model.encode(x))))
    assert torch.equal(features, given)
    # perhaps in bfloat16
    assert torch.allclose(torch.cat(list(encode_clips(model, x.numpy(), batch_size=2))), model.encode(x), atol=.05)


def test_a_small_device_encodes_and_says_the_same(model, monkeypatch):
    "With room for two sounds; one that is too large on its own is an error that says what helps."
    x = logmels(5)
    def small(method, room):
        def limited(*args, **kwargs):
            if len(kwargs.get('audio', args[0] if args else ())) > room:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return method(*args, **kwargs)
        return limited
    features = torch.cat(list(encode_clips(model, x.numpy())))
    said, encode = model.caption(features, max_new_tokens=5), model.encode
    for name in ('encode', 'generate'): monkeypatch.setattr(model, name, small(getattr(model, name), 2))
    with pytest.warns(UserWarning, match='5 clips at a time'): parts = list(encode_clips(model, x.numpy()))
    # perhaps in bfloat16
    assert [len(p) for p in parts] == [2, 1, 2] and torch.allclose(torch.cat(parts), features, atol=.05)
    with pytest.warns(UserWarning, match='5 sounds at a time'): assert model.caption(features, max_new_tokens=5) == said
    monkeypatch.setattr(model, 'encode', small(encode, 0))
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match='one of the clips'):
        list(encode_clips(model, x.numpy()))


def test_padding_behind_a_recording_does_not_count(model):
    whole, short = logmels(2), logmels(1, frames=120, seed=5)
    silence = torch.full((1, 80, 80), model.frontend.config.silence)
    padded = torch.cat([whole, torch.cat([short, silence], 1)]).numpy()
    features = torch.cat(list(encode_clips(model, padded, frames=[200, 200, 120])))
    with_padding = torch.cat(list(encode_clips(model, padded)))
    assert torch.allclose(features[2], model.encode(short)[0], atol=.05)
    assert torch.allclose(features[:2], with_padding[:2], atol=.05)
    assert (features[2] - with_padding[2]).abs().max() > .2, 'as sound, the padding would count'


def test_param_groups_hold_every_parameter_once(model):
    groups = model.param_groups(TrainConfig(steps=1, lr=1.), decoder_rate=.25)
    ids = [id(p) for g in groups for p in g['params']]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})
    slow = {id(p) for g in groups if g['lr'] == .25 for p in g['params']}
    assert slow == {id(p) for p in model.decoder.parameters()}


def test_learns_and_resumes(tokenizer, tmp_path):
    x, texts = logmels(16), ['a calm deep hum', 'quick clicks and noise']*8
    x[1::2, ::8] += 9.
    pairs, config = Pairs(x.numpy().astype(np.float16), texts, tokenizer, crop=160), TrainConfig(steps=40, batch_size=8,
            lr=5e-3)
    model = build(tokenizer)
    warm_up(model.decoder, tokenizer, texts, TrainConfig(steps=20, batch_size=8, lr=5e-3), folder=tmp_path/'text',
            progress=False)
    model.calibrate([x], texts)
    train(model, pairs, config, folder=tmp_path/'pairs', progress=False)
    assert caption_clips(model, encode_clips(model, x.numpy(), batch_size=5)) == texts
    again = build(tokenizer, seed=1)
    train(again, pairs, config, folder=tmp_path/'pairs', progress=False)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0., atol=0., equal_nan=True)


def test_crops_hold_what_sounds(tokenizer):
    clips = [np.zeros((1001, 80), np.float32) for _ in range(3)]
    active = [None, np.zeros(1001, bool), np.zeros(1001, bool)]
    clips[1][640:650], active[1][640:650] = 1, True
    pairs = Pairs(clips, ['a', 'b', 'c'], tokenizer, crop=256, active=active)
    for seed in range(20):
        batch = pairs.batch([0, 1, 2], np.random.default_rng(seed))
        assert batch['logmel'].shape == (3, 256, 80) and batch['logmel'][1].max() == 1
    whole = Pairs(clips, ['a', 'b', 'c'], tokenizer, active=active).batch([1], np.random.default_rng(0))
    assert whole['logmel'].shape == (1, 1001, 80)


def test_padding_is_not_learned_from(model, tokenizer):
    "A padded recording has the loss of the recording, from log-mels and from embeddings; crops lie where it is sound."
    texts, sound = ['a calm deep hum', 'quick clicks'], logmels(2, frames=200, seed=3)
    padded, frames = sound.clone(), [200, 112]
    padded[1, 112:] = model.frontend.config.silence
    given, rng = dict(texts=texts, tokenizer=tokenizer, frames=frames), np.random.default_rng(0)
    embeddings = model.embeddings(padded, torch.arange(200) < torch.tensor(frames)[:, None])[0].detach().numpy()
    loss = lambda batch: model(**{k: v for k, v in batch.items() if k != 'id'}).loss.item()
    with torch.no_grad():
        alone = model(logmel=sound[1:, :112], **tokenise(tokenizer, texts[1:])).loss.item()
        assert loss(Pairs(padded.numpy(), **given).batch([1], rng)) == pytest.approx(alone, abs=1e-5)
        assert loss(Pairs(embeddings, **given | dict(frames=[-(-n//model.encoder.config.patch_frames) for n in frames]),
                          what='embeddings').batch([1], rng)) == pytest.approx(alone, abs=1e-5)
        assert loss(Pairs(padded.numpy(), texts, tokenizer).batch([1], rng)) != pytest.approx(alone, abs=1e-3)
    for seed in range(20):
        short = Pairs(padded.numpy(), crop=96, **given).batch([0, 1], np.random.default_rng(seed))
        long = Pairs(padded.numpy(), crop=160, **given).batch([0, 1], np.random.default_rng(seed))
        assert 'frame_mask' not in short and (short['logmel'][1] != model.frontend.config.silence).any(1).all()
        assert long['frame_mask'].sum(1).tolist() == [160, 112] and torch.equal(long['logmel'][1], padded[1, :160])


def test_windows_of_many_lengths_stay_inside_a_clip(tokenizer):
    clips = [np.full((126, 12), i, np.float16) + np.arange(126, dtype=np.float16)[:, None] for i in range(3)]
    pairs, lengths = Pairs(clips, ['a', 'b', 'c'], tokenizer, crop=(42, 126), what='embeddings'), set()
    for seed in range(40):
        features = pairs.batch([0, 1, 2], np.random.default_rng(seed))['embeddings']
        assert features.dtype == torch.float32 and 42 <= features.shape[1] <= 126 and features.shape[::2] == (3, 12)
        assert (features.diff(dim=1) == 1).all() and (features[:, 0, 0] >= torch.arange(3)).all()
        assert (features[:, -1, 0] <= 125 + torch.arange(3)).all()
        lengths.add(features.shape[1])
    assert len(lengths) > 15


def test_a_frozen_encoder_encodes_once(tokenizer, tmp_path):
    model, x = build(tokenizer, lags=[1, 2]), logmels(5)
    kept = cache_embeddings(model, x.numpy(), tmp_path/'embeddings.npy', batch_size=2)
    assert kept.dtype == np.float16 and len(kept) == 5
    # in bfloat16 where that pays
    torch.testing.assert_close(model.features_of(torch.from_numpy(kept.astype(np.float32))), model.encode(x), rtol=0,
                               atol=.03)
    assert (cache_embeddings(None, None, tmp_path/'embeddings.npy') == kept).all()
    before = [p.clone() for p in model.encoder.parameters()]
    model.encoder.requires_grad_(False)
    pairs, config = Pairs(kept, ['quick clicks', 'a deep hum']*2 + ['soft noise'], tokenizer, crop=(5, kept.shape[1]),
                          what='embeddings'), TrainConfig(steps=30, batch_size=5, lr=5e-3)
    learned = train(model, pairs, config, param_groups=model.param_groups(config, encoder_rate=0.), progress=False)
    assert learned.rows[-1]['loss'] < .7*learned.rows[0]['loss']
    assert all(torch.equal(a, b) for a, b in zip(before, model.encoder.parameters()))
