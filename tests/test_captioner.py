"The captioner: generation against naive loops, determinism, one folder for everything, recordings of any length."
import numpy as np, pytest, soundfile as sf, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from logocentric.captioner.model import (CAVEAT, Captioner, Pairs, cache_embeddings, caption_clips, describe,
                                         gpt2_config, encode_clips, load_gpt2, pool, tokenise, warm_up)
from logocentric.core import LogocentricError, set_seed, shared_path
from logocentric.memory import OutOfMemory
from logocentric.audio.decoding import AudioError, LengthPolicy
from logocentric.audio.frontend import FrontendConfig
from logocentric.encoder.mae import MAEConfig, MAEModel
from logocentric.runs import TrainConfig
from logocentric.training import train

END, WORDS = '<|endoftext|>', 'a calm deep hum bright high whistle quick clicks soft noise with and'.split()
FRONTEND = FrontendConfig(mean=-8., std=3.)

@pytest.fixture(scope='session')
def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*WORDS, END])}, unk_token=END)) # the end is not token 0
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=END, eos_token=END)

def build(tokenizer, window=2., seed=0, **settings):
    set_seed(seed)
    sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = Captioner.from_parts(MAEConfig.preset('tiny'), sizes, tokenizer, frontend=FRONTEND,
                                 length=LengthPolicy(window=window, hop=window), **settings)
    model.calibrate([pictures(8, seed=9)], [' '.join(WORDS[:5]), 'quick clicks'])
    for p in model.parameters(): p.data += .15*torch.randn_like(p) # untrained weights say the same of everything
    return model.eval()

def pictures(n, frames=200, seed=0): return torch.randn(n, frames, 80, generator=torch.Generator().manual_seed(seed))*3 - 8

@pytest.fixture
def model(tokenizer): return build(tokenizer)

TEN = dict(max_new_tokens=10, min_new_tokens=10)

def naive(model, x, n=10):
    ids, end = torch.full((len(x), 1), model.config.decoder.bos_token_id), model.config.decoder.eos_token_id
    for _ in range(n):
        with torch.no_grad(): logits = model(ids, logmel=x).logits[:, -1]
        logits[:, end] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids

def test_special_tokens(model, tokenizer):
    end = tokenizer.eos_token_id
    for config in (model.config.decoder, model.generation_config): assert config.bos_token_id == config.eos_token_id == config.pad_token_id == end

def test_greedy(model):
    x = pictures(5)
    expected = naive(model, x)
    assert len(set(map(tuple, expected.tolist()))) > 1 # it does depend on the sound
    assert torch.equal(model.generate(x, **TEN), expected)
    assert torch.equal(model.generate(x, use_cache=False, **TEN), expected)
    assert torch.equal(torch.cat([model.generate(p[None], **TEN) for p in x]), expected)

def test_beams_against_exhaustive_search(model):
    x, n, vocabulary = pictures(1), 3, model.config.decoder.vocab_size
    ids = torch.cartesian_prod(*[torch.arange(vocabulary)]*n)
    ids = ids[(ids != model.config.decoder.eos_token_id).all(1)]
    ids = torch.cat([torch.full((len(ids), 1), model.config.decoder.bos_token_id), ids], 1)
    audio = model.prefix(model.encode(x))
    with torch.no_grad(): logp = model(ids, audio=audio.expand(len(ids), -1, -1)).logits.clone()
    logp[..., model.config.decoder.eos_token_id] = -torch.inf   # as `min_new_tokens` does, after the softmax
    with torch.no_grad(): full = model(ids, audio=audio.expand(len(ids), -1, -1)).logits.log_softmax(-1)
    best = ids[full[:, :-1].gather(2, ids[:, 1:, None]).sum((1, 2)).argmax()]
    found = model.generate(x, num_beams=200, max_new_tokens=n, min_new_tokens=n)
    assert torch.equal(found[0], best)

def test_beams_batched_nucleus_no_repeats(model):
    x = pictures(3)
    assert torch.equal(model.generate(x, num_beams=3, **TEN), torch.cat([model.generate(p[None], num_beams=3, **TEN) for p in x]))
    a, b = (set_seed(s) or model.generate(x, do_sample=True, top_p=.9, **TEN) for s in (1, 1))
    assert torch.equal(a, b)
    for row in model.generate(x, no_repeat_ngram_size=2, **TEN).tolist():
        pairs = list(zip(row, row[1:]))
        assert len(set(pairs)) == len(pairs)

def test_prompts_of_different_length(model, tokenizer):
    x, end = pictures(2), tokenizer.eos_token_id
    prompts = [tokenizer.encode('a calm'), tokenizer.encode('quick')]
    ids = torch.tensor([[end, *prompts[0]], [end, end, *prompts[1]]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    both = model.generate(x, input_ids=ids, attention_mask=mask, **TEN)
    for i, p in enumerate(prompts):
        assert torch.equal(model.generate(x[i:i + 1], input_ids=torch.tensor([[end, *p]]), **TEN)[0, -10:], both[i, -10:])

def test_features_alone_batched_padded(model):
    sounds = [p[:n] for p, n in zip(pictures(4), (200, 33, 120, 16))]
    batch, mask = model.length.batch(sounds, FRONTEND.silence)
    with torch.no_grad(): together, alone = model.encode(batch, mask), torch.cat([model.encode(s[None]) for s in sounds])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    batch[~mask] = 99.
    torch.testing.assert_close(model.encode(batch, mask), together, atol=1e-5, rtol=1e-5)

def test_training_mode_does_not_change_features(model):
    x = pictures(4)
    assert torch.equal(model.train().encode(x), model.eval().encode(x))
    torch.testing.assert_close(model.encode(x)[:1], model.encode(x[:1]), atol=1e-5, rtol=1e-5)

def test_calibration(model):
    x = pictures(32, seed=3)
    model.calibrate(x.split(8), ['a calm'])
    z = (model.encode(x) - model.prefix.mean)/model.prefix.std
    torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-3, rtol=0.)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones_like(z[0]), atol=2e-2, rtol=0.)
    before = model.prefix.std.clone()
    assert torch.equal(model.calibrate(x.split(8), ['a calm']).prefix.std, before)

def test_loss_counts_text_only(model, tokenizer):
    x, batch = pictures(2), tokenise(tokenizer, ['a calm deep hum', 'quick clicks'])
    with torch.no_grad(): out = model(logmel=x, **batch)
    logp, total = out.logits.log_softmax(-1), []
    for row, ids in zip(logp, batch['labels'].tolist()): total += [-row[t, i].item() for t, i in enumerate(ids[1:]) if i >= 0]
    assert len(total) == 5 + 3
    assert out.loss.item() == pytest.approx(np.mean(total), abs=1e-5)

def test_features_given_before_change_nothing(model, tokenizer):
    x, text = pictures(3), tokenise(tokenizer, ['a hum', 'quick clicks', 'noise'])
    with torch.no_grad(): heard, given = (model(**text, **how).loss for how in (dict(logmel=x), dict(features=model.encode(x))))
    assert torch.equal(heard, given)
    assert torch.allclose(torch.cat(list(encode_clips(model, x.numpy(), batch_size=2))), model.encode(x), atol=.05) # perhaps in bfloat16

def test_a_small_device_hears_and_says_the_same(model, monkeypatch):
    "With room for two sounds; one that is too large on its own is an error that says what helps."
    x = pictures(5)
    def small(method, room):
        def limited(*args, **kwargs):
            if len(kwargs.get('audio', args[0] if args else ())) > room: raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return method(*args, **kwargs)
        return limited
    features = torch.cat(list(encode_clips(model, x.numpy())))
    said, encode = model.caption(features, max_new_tokens=5), model.encode
    for name in ('hear', 'generate'): monkeypatch.setattr(model, name, small(getattr(model, name), 2))
    with pytest.warns(UserWarning, match='5 clips at a time'): parts = list(encode_clips(model, x.numpy()))
    assert [len(p) for p in parts] == [2, 1, 2] and torch.allclose(torch.cat(parts), features, atol=.05) # perhaps in bfloat16
    with pytest.warns(UserWarning, match='5 sounds at a time'): assert model.caption(features, max_new_tokens=5) == said
    monkeypatch.setattr(model, 'hear', small(encode, 0))
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match='one of the clips'): list(encode_clips(model, x.numpy()))

def test_padding_behind_a_recording_is_not_heard(model):
    whole, short = pictures(2), pictures(1, frames=120, seed=5)
    silence = torch.full((1, 80, 80), model.frontend.config.silence)
    padded = torch.cat([whole, torch.cat([short, silence], 1)]).numpy()
    heard = torch.cat(list(encode_clips(model, padded, frames=[200, 200, 120])))
    deaf_to_padding = torch.cat(list(encode_clips(model, padded)))
    assert torch.allclose(heard[2], model.encode(short)[0], atol=.05) and torch.allclose(heard[:2], deaf_to_padding[:2], atol=.05)
    assert (heard[2] - deaf_to_padding[2]).abs().max() > .2, 'as sound, the padding would be heard'

def test_attention_of_a_joined_model_is_plain_on_a_cpu(model):
    assert model.decoder.config._attn_implementation == 'eager' or model.device.type != 'cpu'

def test_word_loss_only_in_training(model, tokenizer):
    batch = dict(logmel=pictures(2), **tokenise(tokenizer, ['a calm deep hum', 'quick clicks']))
    spoken = model(**batch).loss
    set_seed(0); model.train()
    assert model(**batch).loss > spoken + .1

def test_evidence_starts_at_zero_and_spares_the_end(tokenizer):
    set_seed(0)
    new = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer).eval()
    new.calibrate([pictures(8)], ['a calm deep hum'])
    audio = new.prefix(new.encode(pictures(2)))
    assert new.evidence(audio).abs().max() < 1e-5
    new.word_bias.data += 1.
    evidence = new.evidence(audio)
    assert evidence[:, tokenizer.eos_token_id].abs().max() == 0. and torch.allclose(evidence[:, 0], torch.ones(2))
    new.config.word_weight = 0.
    ids = torch.tensor([[tokenizer.eos_token_id, 1]]*2)
    direct = new.decoder(inputs_embeds=torch.cat([audio, new.decoder.transformer.wte(ids)], 1)).logits[:, -2:]
    torch.testing.assert_close(new(ids, audio=audio).logits, direct, atol=1e-5, rtol=1e-5)

def test_param_groups_hold_every_parameter_once(model):
    groups = model.param_groups(TrainConfig(steps=1, lr=1.), decoder_rate=.25)
    ids = [id(p) for g in groups for p in g['params']]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})
    slow = {id(p) for g in groups if g['lr'] == .25 for p in g['params']}
    assert slow == {id(p) for p in model.decoder.parameters()}

def test_one_folder(model, tokenizer, tmp_path):
    x = pictures(3)
    model.calibrate_novelty([pictures(24, seed=1)], [pictures(24, seed=2)]).save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert again.frontend.config == FRONTEND and again.length == model.length and not again.training
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert torch.equal(again.generate(x), model.generate(x))
    assert again.novelty(again.encode(x)) == model.novelty(model.encode(x))
    assert again.decoder.lm_head.weight is again.decoder.transformer.wte.weight
    assert (tmp_path/'model.safetensors').exists()

def test_gpt2_by_name(model, tokenizer, tmp_path):
    with pytest.raises(LogocentricError, match='no GPT-2 found'): load_gpt2(tmp_path/'nothing')
    with pytest.raises(LogocentricError, match='no captioner found'): Captioner.from_pretrained(tmp_path/'nothing')
    with pytest.raises(LogocentricError, match='needs a tokenizer'): Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_layer=1))
    gpt2 = GPT2LMHeadModel(gpt2_config(tokenizer, n_embd=32, n_layer=1, n_head=2))
    gpt2.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    joined = Captioner.from_parts(MAEModel(MAEConfig.preset('tiny')), str(tmp_path))
    assert torch.equal(joined.decoder.lm_head.weight, gpt2.lm_head.weight)
    assert joined.tokenizer.eos_token_id == tokenizer.eos_token_id
    small = GPT2LMHeadModel(gpt2_config(tokenizer, n_embd=32, n_layer=1, n_head=2, vocab_size=4, bos_token_id=0, eos_token_id=0, pad_token_id=0))
    with pytest.raises(LogocentricError, match='only 4'): Captioner.from_parts(MAEConfig.preset('tiny'), small, tokenizer)

def test_learns_and_resumes(tokenizer, tmp_path):
    x, texts = pictures(16), ['a calm deep hum', 'quick clicks and noise']*8
    x[1::2, ::8] += 9.
    pairs, config = Pairs(x.numpy().astype(np.float16), texts, tokenizer, crop=160), TrainConfig(steps=40, batch_size=8, lr=5e-3)
    model = build(tokenizer)
    warm_up(model.decoder, tokenizer, texts, TrainConfig(steps=20, batch_size=8, lr=5e-3), folder=tmp_path/'text', progress=False)
    model.calibrate([x], texts)
    train(model, pairs, config, folder=tmp_path/'pairs', progress=False)
    assert caption_clips(model, encode_clips(model, x.numpy(), batch_size=5)) == texts
    again = build(tokenizer, seed=1)
    train(again, pairs, config, folder=tmp_path/'pairs', progress=False)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0., atol=0., equal_nan=True)

# ── describe ─────────────────────────────────────────────────────────────────────────────────────────────────────────

def tone(seconds, rate=16_000): return (.1*np.sin(2*np.pi*300*np.arange(int(seconds*rate))/rate)).astype(np.float32)

def test_describe_file_as_wave(model, tmp_path):
    wave = tone(5.)
    sf.write(tmp_path/'x.wav', wave, 16_000, subtype='FLOAT')
    sf.write(tmp_path/'stereo.wav', np.stack([wave, wave], 1), 16_000, subtype='FLOAT')
    found = describe(wave, model)
    assert found == describe(tmp_path/'x.wav', model) == describe(str(tmp_path/'stereo.wav'), model)
    assert [(w.start, w.stop) for w in found.windows] == [(0., 2.), (2., 4.), (4., 5.)]
    assert found.heard == 'heard 0.0–5.0 s in 3 windows, 0.0 s dropped' and found.note == CAVEAT and found.novelty is None
    assert describe(wave, model, batch_size=1).windows == found.windows

def test_describe_loads_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert describe(tone(2.), tmp_path) == describe(tone(2.), model)

def test_describe_refuses(model, tmp_path):
    (tmp_path/'no.wav').write_text('not audio')
    for bad in (tmp_path/'no.wav', tmp_path/'missing.wav', np.zeros(0, np.float32), np.full(16_000, np.nan, np.float32)):
        with pytest.raises(AudioError): describe(bad, model)

def test_describe_silence_and_20_ms(model):
    for wave in (np.zeros(16_000, np.float32), tone(.02)): assert isinstance(describe(wave, model).text, str)

def test_novelty_orders(model):
    model.calibrate_novelty(pictures(200, seed=1).split(50), pictures(100, seed=2).split(50))
    alike = model.novelty(model.encode(pictures(50, seed=3)))
    assert .2 < np.mean(alike) < .8
    assert model.novelty(model.encode(torch.full((1, 200, 80), -5.))) == [1.]

@pytest.mark.slow
def test_recordings(model):
    folder = shared_path() and shared_path()/'data'/'recordings'
    if not folder or not folder.is_dir(): pytest.skip('no recordings beside the checkout')
    for file in sorted(p for p in folder.rglob('*') if p.is_file()):
        try: found = describe(file, model, max_new_tokens=4)
        except AudioError as e: assert str(file) in str(e)
        else: assert found.windows and found.heard.startswith('heard')

def test_a_share_of_the_batch_speaks(tokenizer):
    "GPT-2 speaks the first rows of a training batch; the unordered words count in all of them, and at validation all rows speak."
    model, texts = build(tokenizer, spoken_share=.5, word_weight=2.), ['a calm deep hum', 'quick clicks', 'soft noise', 'bright whistle and noise']
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    x, batch = pictures(4), tokenise(tokenizer, texts)
    assert len(model(logmel=x, **batch).logits) == 4
    model.train()
    out, first = model(logmel=x, **batch), {k: v[:2] for k, v in batch.items()}
    assert len(out.logits) == 2
    audio = model.prefix(model.encode(x))
    words = torch.nn.functional.binary_cross_entropy_with_logits
    occurs = torch.zeros(4, model.config.decoder.vocab_size)
    for row, ids in zip(occurs, tokenizer(texts).input_ids): row[[*ids, tokenizer.bos_token_id]] = 1.
    unordered = words(model.word_logits(audio), occurs, reduction='sum')/batch['attention_mask'].sum()
    spoken = model.eval()(logmel=x[:2], **first).loss
    torch.testing.assert_close(out.loss, spoken + 2*unordered)


def test_an_ear_that_learns_sees_a_share(tokenizer):
    model, whole = build(tokenizer, seen_share=.5), build(tokenizer)
    x = pictures(2)
    assert torch.equal(model.eval().encode(x), whole.eval().encode(x))
    seen = []
    hook = model.encoder.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    first, second = model.train().encode(x), model.encode(x)
    hook.remove()
    cols = -(-x.shape[1]//model.encoder.config.patch_frames)
    assert seen == [5*round(.5*cols)]*2 and not torch.equal(first, second) and first.shape == whole.encode(x).shape


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
    "A short recording in a long picture has the loss of the recording, from pictures and from columns; crops lie where it is sound."
    texts, sound = ['a calm deep hum', 'quick clicks'], pictures(2, frames=200, seed=3)
    padded, frames = sound.clone(), [200, 112]
    padded[1, 112:] = model.frontend.config.silence
    given, rng = dict(texts=texts, tokenizer=tokenizer, frames=frames), np.random.default_rng(0)
    embeddings = model.embeddings(padded, torch.arange(200) < torch.tensor(frames)[:, None])[0].detach().numpy()
    loss = lambda batch: model(**{k: v for k, v in batch.items() if k != 'id'}).loss.item()
    with torch.no_grad():
        alone = model(logmel=sound[1:, :112], **tokenise(tokenizer, texts[1:])).loss.item()
        assert loss(Pairs(padded.numpy(), **given).batch([1], rng)) == pytest.approx(alone, abs=1e-5)
        assert loss(Pairs(embeddings, **given | dict(frames=[-(-n//model.encoder.config.patch_frames) for n in frames]), what='columns').batch([1], rng)) == pytest.approx(alone, abs=1e-5)
        assert loss(Pairs(padded.numpy(), texts, tokenizer).batch([1], rng)) != pytest.approx(alone, abs=1e-3)
    for seed in range(20):
        short = Pairs(padded.numpy(), crop=96, **given).batch([0, 1], np.random.default_rng(seed))
        long = Pairs(padded.numpy(), crop=160, **given).batch([0, 1], np.random.default_rng(seed))
        assert 'frame_mask' not in short and (short['logmel'][1] != model.frontend.config.silence).any(1).all()
        assert long['frame_mask'].sum(1).tolist() == [160, 112] and torch.equal(long['logmel'][1], padded[1, :160])


def test_windows_of_many_lengths_stay_inside_a_clip(tokenizer):
    clips = [np.full((126, 12), i, np.float16) + np.arange(126, dtype=np.float16)[:, None] for i in range(3)]
    pairs, lengths = Pairs(clips, ['a', 'b', 'c'], tokenizer, crop=(42, 126), what='columns'), set()
    for seed in range(40):
        heard = pairs.batch([0, 1, 2], np.random.default_rng(seed))['columns']
        assert heard.dtype == torch.float32 and 42 <= heard.shape[1] <= 126 and heard.shape[::2] == (3, 12)
        assert (heard.diff(dim=1) == 1).all() and (heard[:, 0, 0] >= torch.arange(3)).all() and (heard[:, -1, 0] <= 125 + torch.arange(3)).all()
        lengths.add(heard.shape[1])
    assert len(lengths) > 15


def test_a_change_at_a_lag_is_what_differs_after_so_many_columns():
    x, real = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 9, dtype=torch.bool)
    real[1, 6:] = False
    for lag in (1, 4):
        change = pool(x, real, [lag])[:, 6:]
        for i, n in enumerate((9, 6)):
            expected = np.sqrt(np.mean([(x[i, t + lag] - x[i, t]).numpy()**2 for t in range(n - lag)], 0) + 1e-4)
            np.testing.assert_allclose(change[i], expected, rtol=1e-5)
    assert (pool(x, real, [20])[:, 6:] == .01).all()                     # nothing lies so far apart
    torch.testing.assert_close(pool(x, real, [20])[:, :6], pool(x, real))


def test_an_ear_that_stands_still_is_heard_once(tokenizer, tmp_path):
    model, x = build(tokenizer, lags=[1, 2]), pictures(5)
    kept = cache_embeddings(model, x.numpy(), tmp_path/'columns.npy', batch_size=2)
    assert kept.dtype == np.float16 and len(kept) == 5
    torch.testing.assert_close(model.features_of(torch.from_numpy(kept.astype(np.float32))), model.encode(x), rtol=0, atol=.03) # the ear hears in bfloat16 where that pays
    assert (cache_embeddings(None, None, tmp_path/'columns.npy') == kept).all()
    ear = [p.clone() for p in model.encoder.parameters()]
    model.encoder.requires_grad_(False)
    pairs, config = Pairs(kept, ['quick clicks', 'a deep hum']*2 + ['soft noise'], tokenizer, crop=(5, kept.shape[1]), what='columns'), TrainConfig(steps=30, batch_size=5, lr=5e-3)
    learned = train(model, pairs, config, param_groups=model.param_groups(config, encoder_rate=0.), progress=False)
    assert learned.rows[-1]['loss'] < .7*learned.rows[0]['loss'] and all(torch.equal(a, b) for a, b in zip(ear, model.encoder.parameters()))


def test_glimpses_have_no_neighbours(tokenizer):
    with pytest.raises(LogocentricError, match='seen_share=1'): build(tokenizer, lags=[1], seen_share=.3)
