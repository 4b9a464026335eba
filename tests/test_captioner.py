"The captioner: generation against naive loops, determinism, one folder for everything, recordings of any length."
import numpy as np, pytest, torch
from transformers import GPT2LMHeadModel
import logocentric.captioner.describe # noqa: F401, for `novelty`
from logocentric.audio.frontend import FrontendConfig
from logocentric.audio.decoding import LengthPolicy
from logocentric.captioner.bridges import pool
from logocentric.captioner.model import Captioner, gpt2_config, load_gpt2
from logocentric.captioner.training_data import tokenise
from logocentric.core import LogocentricError, set_seed
from logocentric.encoder.mae import MAEConfig, MAEModel

WORDS = 'a calm deep hum bright high whistle quick clicks soft noise with and'.split()
FRONTEND = FrontendConfig(mean=-8., std=3.)

@pytest.fixture(scope='session')
def tokenizer(word_tokenizer): return word_tokenizer(WORDS)

def build(tokenizer, window=2., seed=0, **settings):
    set_seed(seed)
    sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = Captioner.from_parts(MAEConfig.preset('tiny'), sizes, tokenizer, frontend=FRONTEND,
                                 length=LengthPolicy(window=window, hop=window), **settings)
    model.calibrate([logmels(8, seed=9)], [' '.join(WORDS[:5]), 'quick clicks'])
    for p in model.parameters(): p.data += .15*torch.randn_like(p) # untrained weights say the same of everything
    return model.eval()

def logmels(n, frames=200, seed=0):
    return torch.randn(n, frames, 80, generator=torch.Generator().manual_seed(seed))*3 - 8

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
    for config in (model.config.decoder, model.generation_config):
        assert config.bos_token_id == config.eos_token_id == config.pad_token_id == end

def test_greedy(model):
    x = logmels(5)
    expected = naive(model, x)
    assert len(set(map(tuple, expected.tolist()))) > 1 # it does depend on the sound
    assert torch.equal(model.generate(x, **TEN), expected)
    assert torch.equal(model.generate(x, use_cache=False, **TEN), expected)
    assert torch.equal(torch.cat([model.generate(p[None], **TEN) for p in x]), expected)

def test_beams_against_exhaustive_search(model):
    x, n, vocabulary = logmels(1), 3, model.config.decoder.vocab_size
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
    x = logmels(3)
    assert torch.equal(model.generate(x, num_beams=3, **TEN),
                       torch.cat([model.generate(p[None], num_beams=3, **TEN) for p in x]))
    a, b = (set_seed(s) or model.generate(x, do_sample=True, top_p=.9, **TEN) for s in (1, 1))
    assert torch.equal(a, b)
    for row in model.generate(x, no_repeat_ngram_size=2, **TEN).tolist():
        pairs = list(zip(row, row[1:]))
        assert len(set(pairs)) == len(pairs)

def test_prompts_of_different_length(model, tokenizer):
    x, end = logmels(2), tokenizer.eos_token_id
    prompts = [tokenizer.encode('a calm'), tokenizer.encode('quick')]
    ids = torch.tensor([[end, *prompts[0]], [end, end, *prompts[1]]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    both = model.generate(x, input_ids=ids, attention_mask=mask, **TEN)
    for i, p in enumerate(prompts):
        assert torch.equal(model.generate(x[i:i + 1], input_ids=torch.tensor([[end, *p]]), **TEN)[0, -10:],
                           both[i, -10:])

def test_features_alone_batched_padded(model):
    sounds = [p[:n] for p, n in zip(logmels(4), (200, 33, 120, 16))]
    batch, mask = model.length.batch(sounds, FRONTEND.silence)
    with torch.no_grad():
        together, alone = model.encode(batch, mask), torch.cat([model.encode(s[None]) for s in sounds])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    batch[~mask] = 99.
    torch.testing.assert_close(model.encode(batch, mask), together, atol=1e-5, rtol=1e-5)

def test_training_mode_does_not_change_features(model):
    x = logmels(4)
    assert torch.equal(model.train().encode(x), model.eval().encode(x))
    torch.testing.assert_close(model.encode(x)[:1], model.encode(x[:1]), atol=1e-5, rtol=1e-5)


def test_loss_counts_text_only(model, tokenizer):
    x, batch = logmels(2), tokenise(tokenizer, ['a calm deep hum', 'quick clicks'])
    with torch.no_grad(): out = model(logmel=x, **batch)
    logp, total = out.logits.log_softmax(-1), []
    for row, ids in zip(logp, batch['labels'].tolist()):
        total += [-row[t, i].item() for t, i in enumerate(ids[1:]) if i >= 0]
    assert len(total) == 5 + 3
    assert out.loss.item() == pytest.approx(np.mean(total), abs=1e-5)


def test_attention_of_a_joined_model_is_plain_on_a_cpu(model):
    assert model.decoder.config._attn_implementation == 'eager' or model.device.type != 'cpu'

def test_word_loss_only_in_training(model, tokenizer):
    batch = dict(logmel=logmels(2), **tokenise(tokenizer, ['a calm deep hum', 'quick clicks']))
    spoken = model(**batch).loss
    set_seed(0); model.train()
    assert model(**batch).loss > spoken + .1

def test_evidence_starts_at_zero_and_spares_the_end(tokenizer):
    set_seed(0)
    new = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer).eval()
    new.calibrate([logmels(8)], ['a calm deep hum'])
    audio = new.prefix(new.encode(logmels(2)))
    assert new.evidence(audio).abs().max() < 1e-5
    new.word_bias.data += 1.
    evidence = new.evidence(audio)
    assert evidence[:, tokenizer.eos_token_id].abs().max() == 0. and torch.allclose(evidence[:, 0], torch.ones(2))
    new.config.word_weight = 0.
    ids = torch.tensor([[tokenizer.eos_token_id, 1]]*2)
    direct = new.decoder(inputs_embeds=torch.cat([audio, new.decoder.transformer.wte(ids)], 1)).logits[:, -2:]
    torch.testing.assert_close(new(ids, audio=audio).logits, direct, atol=1e-5, rtol=1e-5)


def test_one_folder(model, tokenizer, tmp_path):
    x = logmels(3)
    model.calibrate_novelty([logmels(24, seed=1)], [logmels(24, seed=2)]).save_pretrained(tmp_path)
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
    with pytest.raises(LogocentricError, match='needs a tokenizer'):
        Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_layer=1))
    gpt2 = GPT2LMHeadModel(gpt2_config(tokenizer, n_embd=32, n_layer=1, n_head=2))
    gpt2.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    joined = Captioner.from_parts(MAEModel(MAEConfig.preset('tiny')), str(tmp_path))
    assert torch.equal(joined.decoder.lm_head.weight, gpt2.lm_head.weight)
    assert joined.tokenizer.eos_token_id == tokenizer.eos_token_id
    small = GPT2LMHeadModel(gpt2_config(tokenizer, n_embd=32, n_layer=1, n_head=2, vocab_size=4, bos_token_id=0,
                                        eos_token_id=0, pad_token_id=0))
    with pytest.raises(LogocentricError, match='only 4'):
        Captioner.from_parts(MAEConfig.preset('tiny'), small, tokenizer)




def test_a_share_of_the_batch_goes_through_gpt2(tokenizer):
    "The first rows of a training batch go through GPT-2, at validation all; the unordered words count in all of them."
    model = build(tokenizer, spoken_share=.5, word_weight=2.)
    texts = ['a calm deep hum', 'quick clicks', 'soft noise', 'bright whistle and noise']
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    x, batch = logmels(4), tokenise(tokenizer, texts)
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


def test_an_encoder_that_learns_sees_a_share(tokenizer):
    model, whole = build(tokenizer, seen_share=.5), build(tokenizer)
    x = logmels(2)
    assert torch.equal(model.eval().encode(x), whole.eval().encode(x))
    seen = []
    hook = model.encoder.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    first, second = model.train().encode(x), model.encode(x)
    hook.remove()
    cols = -(-x.shape[1]//model.encoder.config.patch_frames)
    assert seen == [5*round(.5*cols)]*2 and not torch.equal(first, second) and first.shape == whole.encode(x).shape


def test_a_change_at_a_lag_is_what_differs_after_so_many_embeddings():
    x, real = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 9, dtype=torch.bool)
    real[1, 6:] = False
    for lag in (1, 4):
        change = pool(x, real, [lag])[:, 6:]
        for i, n in enumerate((9, 6)):
            expected = np.sqrt(np.mean([(x[i, t + lag] - x[i, t]).numpy()**2 for t in range(n - lag)], 0) + 1e-4)
            np.testing.assert_allclose(change[i], expected, rtol=1e-5)
    assert (pool(x, real, [20])[:, 6:] == .01).all()                     # nothing lies so far apart
    torch.testing.assert_close(pool(x, real, [20])[:, :6], pool(x, real))


def test_a_subset_of_patches_has_no_neighbours(tokenizer):
    with pytest.raises(LogocentricError, match='seen_share=1'): build(tokenizer, lags=[1], seen_share=.3)
