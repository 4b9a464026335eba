"Bridges from encoder to GPT-2: each alone, in a batch, padded, cached, in beams, saved; at first GPT-2 is as before."
import numpy as np, pytest, torch, torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from logocentric.captioner.bridges import BRIDGES, bridge, join_mask, make_bridge, split_mask
from logocentric.captioner.budgets import bridge_size, sizes_for_budget
from logocentric.captioner.model import Captioner, CaptionerConfig, caption_clips, sample_captions, gpt2_config
from logocentric.captioner.training_data import Pairs, encode_clips, tokenise
from logocentric.captioner.describe import describe
from logocentric.core import LogocentricError, set_seed, shipped_path
from logocentric.audio.frontend import FrontendConfig
from logocentric.audio.decoding import LengthPolicy
from logocentric.encoder.mae import MAEConfig
from logocentric.reasoner.tagging import SigmoidTagger, TagVocabulary, next_tag, score_tags
from logocentric.runs import TrainConfig
from logocentric.training import train
from test_captioner import TEN, naive

NAMES = ['prefix', 'resampler', 'cross']
SIZES = dict(prefix=dict(rank=12), resampler=dict(width=16, hidden=24), cross=dict(width=24, hidden=40))
WORDS = 'a calm deep hum bright high whistle quick clicks soft noise with and ; tag'.split()
every = pytest.mark.parametrize('name', NAMES)

@pytest.fixture(scope='session')
def tokenizer(word_tokenizer): return word_tokenizer(WORDS)

def logmels(n, frames=200, seed=0): # each with a spectrum of its own, which turns over in the middle
    rng = torch.Generator().manual_seed(seed)
    noise, spectrum = torch.randn(n, frames, 80, generator=rng), torch.randn(n, 1, 80, generator=rng)
    return 2*noise + 4*spectrum*torch.linspace(1, -1, frames).sign()[:, None] - 8

def new(tokenizer, name, seed=0, decoder=None, **settings):
    set_seed(seed)
    decoder = decoder or dict(n_embd=32, n_layer=2, n_head=2, n_positions=64, embd_pdrop=0., attn_pdrop=0.,
                              resid_pdrop=0.)
    settings = dict(bridge=name, bridge_sizes=SIZES[name], prefix_length=4, lags=[1]) | settings
    model = Captioner.from_parts(MAEConfig.preset('tiny'), decoder, tokenizer,
                                 frontend=FrontendConfig(mean=-8., std=3.), length=LengthPolicy(window=2., hop=2.),
                                 **settings)
    return model.calibrate([logmels(8, seed=9)], [' '.join(WORDS[:5]), 'quick clicks']).eval()

def build(tokenizer, name, **settings):
    model = new(tokenizer, name, **settings)
    for p in model.parameters(): p.data += .15*torch.randn_like(p) # untrained weights say the same of everything
    return model

@every
def test_generate_is_what_a_loop_without_a_cache_says(tokenizer, name):
    model, x = build(tokenizer, name), logmels(5)
    expected = naive(model, x)
    assert len(set(map(tuple, expected.tolist()))) > 1 # it does depend on the sound
    assert torch.equal(model.generate(x, **TEN), expected)
    assert torch.equal(model.generate(x, use_cache=False, **TEN), expected)
    assert torch.equal(torch.cat([model.generate(p[None], **TEN) for p in x]), expected)

@every
def test_beams_are_those_of_an_exhaustive_search(tokenizer, name):
    model, x, n, vocabulary = build(tokenizer, name), logmels(2), 2, len(tokenizer)
    ids = torch.cartesian_prod(*[torch.arange(vocabulary)]*n)
    ids = ids[(ids != tokenizer.eos_token_id).all(1)]
    ids = torch.cat([torch.full((len(ids), 1), tokenizer.bos_token_id), ids], 1)
    found = model.generate(x, num_beams=100, max_new_tokens=n, min_new_tokens=n)
    for one, beam in zip(x, found):
        audio = model.prefix(model.encode(one[None])).repeat_interleave(len(ids), 0)
        with torch.no_grad(): full = model(ids, audio=audio).logits.log_softmax(-1)
        assert torch.equal(beam, ids[full[:, :-1].gather(2, ids[:, 1:, None]).sum((1, 2)).argmax()])
    assert torch.equal(model.generate(x, num_beams=3, **TEN),
                       torch.cat([model.generate(p[None], num_beams=3, **TEN) for p in x]))

@every
@pytest.mark.parametrize('search', [dict(), dict(num_beams=3), dict(do_sample=True, top_k=0)])
def test_a_bridge_is_crossed_once_for_a_text(tokenizer, name, search):
    model, calls = build(tokenizer, name), []
    hook = model.prefix.register_forward_hook(lambda *_: calls.append(1))
    model.generate(logmels(2), **TEN, **search)
    hook.remove()
    assert len(calls) == 1

@every
def test_unequal_lengths_in_a_batch_are_encoded_as_alone(tokenizer, name):
    model = build(tokenizer, name)
    sounds = [p[:n] for p, n in zip(logmels(4), (200, 33, 120, 16))]
    batch, mask = model.length.batch(sounds, model.frontend.config.silence)
    text = tokenise(tokenizer, ['a calm deep hum'])
    with torch.no_grad():
        alone = torch.cat([model(logmel=s[None], **text).logits for s in sounds])
        together = lambda x: model(logmel=x, frame_mask=mask, **{k: v.expand(4, -1) for k, v in text.items()}).logits
        torch.testing.assert_close(together(batch), alone, atol=1e-4, rtol=1e-4)
        batch[~mask] = 99.
        torch.testing.assert_close(together(batch), alone, atol=1e-4, rtol=1e-4)
        batch[mask] += 1.
        assert (together(batch) - alone).abs().max() > .01
    assert model.caption(model.encode(batch, mask),
                         max_new_tokens=6) == [model.caption(model.encode(s[None] + 1.),
                         max_new_tokens=6)[0] for s in sounds]

@every
def test_embeddings_given_before_are_as_good(tokenizer, name):
    model, x, text = build(tokenizer, name), logmels(3), tokenise(tokenizer, ['a hum', 'quick clicks', 'noise'])
    with torch.no_grad():
        losses = [model(**text, **how).loss for how in (dict(logmel=x), dict(embeddings=model.embeddings(x)[0]),
                                                        dict(features=model.encode(x)),
                                                        dict(audio=model.prefix(model.encode(x))))]
    for loss in losses[1:]: torch.testing.assert_close(loss, losses[0])
    # perhaps in bfloat16
    assert torch.allclose(torch.cat(list(encode_clips(model, x.numpy(), batch_size=2))), model.encode(x), atol=.06)

@pytest.mark.parametrize('name', ['resampler', 'cross'])
def test_embeddings_of_any_number(name):
    set_seed(0)
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2)
    made = make_bridge(name, 20, gpt2, length=5, width=16, hidden=24)
    for t in (1, 7, 3000):
        audio = made(join_mask(torch.randn(2, t, 20), torch.ones(2, t, dtype=torch.bool)))
        assert made.vectors(audio).shape == (2, 5 if name == 'resampler' else 0, 32)
        assert made.summary(audio).flatten(1).shape == (2, made.summary_size) and audio.isfinite().all()
        if name == 'resampler': assert audio.shape == (2, 5, 32)

def test_the_resampler_knows_when(tokenizer):
    model, x = build(tokenizer, 'resampler'), logmels(1)
    embeddings = model.embeddings(x)[0]
    with torch.no_grad(): forth, back = (model.prefix(model.features_of(c)) for c in (embeddings, embeddings.flip(1)))
    assert (forth - back).abs().max() > .01

@every
def test_every_weight_of_a_bridge_learns(tokenizer, name):
    model, x, text = new(tokenizer, name).train(), logmels(4), tokenise(tokenizer,
            ['a calm deep hum', 'quick clicks', 'soft noise', 'bright whistle'])
    model.encoder.requires_grad_(False); model.decoder.requires_grad_(False)
    gpt2 = {k: v.clone() for k, v in model.decoder.state_dict().items()}
    before = {k: v.clone() for k, v in model.prefix.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.)
    for _ in range(3): # what starts at zero lets no gradient through in the first step
        optimizer.zero_grad(); model(logmel=x, **text).loss.backward(); optimizer.step()
    for k, p in model.prefix.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0 and not torch.equal(p, before[k]), k
    assert model.words.weight.grad.abs().sum() > 0
    assert all(torch.equal(v, gpt2[k]) for k, v in model.decoder.state_dict().items())

@every
def test_gradient_reaches_encoder_and_decoder(tokenizer, name):
    model, text = build(tokenizer, name).train(), tokenise(tokenizer, ['a calm deep hum', 'quick clicks'])
    model.config.word_weight = 0. # by GPT-2 alone
    model(logmel=logmels(2), **text).loss.backward()
    for part in (model.encoder, model.prefix, model.decoder):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads and sum(g.abs().sum() for g in grads) > 0

@every
def test_words_have_evidence_from_each_bridge(tokenizer, name):
    fresh, x = new(tokenizer, name), logmels(2)
    assert fresh.evidence(fresh.prefix(fresh.encode(x))).abs().max() < 1e-5
    model = build(tokenizer, name)
    a = model.evidence(model.prefix(model.encode(x)))
    assert a.shape == (2, len(tokenizer)) and (a[0] - a[1]).abs().max() > .01
    assert a[:, tokenizer.eos_token_id].abs().max() == 0

@every
def test_a_share_of_the_batch_goes_through_gpt2_over_each_bridge(tokenizer, name):
    model, texts = build(tokenizer, name, spoken_share=.5, word_weight=2.), ['a calm deep hum', 'quick clicks',
            'soft noise', 'bright whistle']
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    x, batch = logmels(4), tokenise(tokenizer, texts)
    audio = model.prefix(model.encode(x))
    occurs = torch.zeros(4, len(tokenizer))
    for row, ids in zip(occurs, tokenizer(texts).input_ids): row[[*ids, tokenizer.bos_token_id]] = 1.
    unordered = F.binary_cross_entropy_with_logits(model.word_logits(audio), occurs,
                                                   reduction='sum')/batch['attention_mask'].sum()
    spoken = model(logmel=x[:2], **{k: v[:2] for k, v in batch.items()}).loss
    torch.testing.assert_close(model.train()(logmel=x, **batch).loss, spoken + 2*unordered)

@every
def test_one_folder_holds_each_bridge(tokenizer, tmp_path, name):
    model, x = build(tokenizer, name), logmels(3)
    model.calibrate_novelty([logmels(24, seed=1)], [logmels(24, seed=2)]).save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert again.config.bridge == name and again.config.bridge_sizes == SIZES[name]
    assert type(again.prefix) is BRIDGES[name]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    assert torch.equal(again.generate(x), model.generate(x))
    assert again.novelty(again.encode(x)) == model.novelty(model.encode(x))

def test_a_checkpoint_from_before_there_were_names_is_a_prefix():
    model = Captioner.from_pretrained(shipped_path('captioner'))
    assert model.config.bridge == 'prefix' and model.config.bridge_sizes is None
    assert model.prefix.project.weight.shape == (8*128, 5*960)
    config = CaptionerConfig.from_dict({k: v for k, v in model.config.to_dict().items() if not k.startswith('bridge')})
    assert config.bridge == 'prefix' and config.bridge_sizes is None

@every
def test_a_pretrained_gpt2_of_another_width(tokenizer, tmp_path, name):
    set_seed(1)
    gpt2 = GPT2LMHeadModel(gpt2_config(tokenizer, n_embd=48, n_layer=3, n_head=4))
    gpt2.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    model = new(tokenizer, name, decoder=str(tmp_path))
    assert all(torch.equal(v, model.decoder.state_dict()[k]) for k, v in gpt2.state_dict().items())
    with torch.no_grad():
        assert model(logmel=logmels(2), **tokenise(tokenizer, ['a hum', 'noise'])).logits.isfinite().all()
    assert len(model.generate(logmels(2), num_beams=2, max_new_tokens=3)) == 2

def test_cross_attention_begins_as_gpt2(tokenizer):
    model, text = new(tokenizer, 'cross'), tokenise(tokenizer, ['a calm deep hum', 'quick clicks'])
    with torch.no_grad():
        alone = model.decoder(input_ids=text['input_ids'], attention_mask=text['attention_mask']).logits
    with torch.no_grad(): with_sound = model(logmel=logmels(2), **text).logits
    real = text['attention_mask'].bool()
    torch.testing.assert_close(with_sound[real], alone[real], atol=1e-5, rtol=1e-5)
    assert model.config.prefix_length == 0
    for look in model.prefix.layers: look.out.weight.data.normal_()
    with torch.no_grad(): assert (model(logmel=logmels(2), **text).logits - with_sound).abs().max() > .01

def test_gpt2_attends_to_the_sound_only_while_it_is_asked_to(tokenizer):
    model = build(tokenizer, 'cross')
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        alone = model.decoder(ids).logits
        with model.prefix.attending(model.decoder.transformer, model.prefix(model.encode(logmels(1)))):
            with_sound = model.decoder(ids).logits
        assert (alone - with_sound).abs().max() > .01 and torch.equal(model.decoder(ids).logits, alone)
        with pytest.raises(RuntimeError, match='on the way'):
            with model.prefix.attending(model.decoder.transformer, model.prefix(model.encode(logmels(1)))):
                raise RuntimeError('on the way')
        assert torch.equal(model.decoder(ids).logits, alone)

@every
def test_in_bfloat16(tokenizer, name):
    model, x, text = build(tokenizer, name), logmels(2), tokenise(tokenizer, ['a calm deep hum', 'quick clicks'])
    with torch.no_grad():
        exact = model(logmel=x, **text).loss
        with torch.autocast('cpu', torch.bfloat16): half = model(logmel=x, **text).loss
        assert half.item() == pytest.approx(exact.item(), rel=.05)
        with torch.autocast('cpu', torch.bfloat16): assert model.generate(x, num_beams=2, **TEN).shape == (2, 11)
    model.train()
    with torch.autocast('cpu', torch.bfloat16): model(logmel=x, **text).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.prefix.parameters())
    whole = model.bfloat16().eval()
    assert whole.generate(audio=whole.prefix(whole.encode(x).bfloat16()), **TEN).shape == (2, 11)

@every
def test_learns_to_tell_sounds_apart(tokenizer, name):
    x, texts = logmels(16), ['a calm deep hum', 'quick clicks and noise']*8
    x[1::2, ::8] += 9.
    model = new(tokenizer, name, word_weight=1.)
    model.encoder.requires_grad_(False)
    with torch.no_grad(): embeddings = model.embeddings(x)[0].numpy()
    pairs, config = Pairs(list(embeddings), texts, tokenizer, crop=(5, embeddings.shape[1]),
                          what='embeddings'), TrainConfig(steps=80, batch_size=8, lr=5e-3)
    learned = train(model, pairs, config, param_groups=model.param_groups(config, encoder_rate=0.), progress=False)
    assert learned.rows[-1]['loss'] < .7*learned.rows[0]['loss']
    assert [c.split()[0] for c in caption_clips(model, encode_clips(model, x.numpy()), max_new_tokens=4)] == ['a',
            'quick']*8

def test_the_bridge_learns_at_its_own_rate_and_gpt2_at_another(tokenizer):
    model = build(tokenizer, 'cross')
    groups = model.param_groups(TrainConfig(steps=1, lr=1.), decoder_rate=.25, encoder_rate=.5)
    rate = {id(p): g['lr'] for g in groups for p in g['params']}
    assert {rate[id(p)] for p in model.prefix.parameters()} == {1.}
    assert {rate[id(p)] for p in model.decoder.parameters()} == {.25}

@every
def test_calibration_measures_embeddings_and_not_padding(tokenizer, name):
    model, x = new(tokenizer, name), logmels(32, seed=3)
    model.calibrate(x.split(8), ['a calm'])
    seen = model.prefix.observations(model.encode(x))
    z = (seen - model.prefix.mean)/model.prefix.std
    torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-3, rtol=0.)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones_like(z[0]), atol=2e-2, rtol=0.)
    constants = model.prefix.std.clone()
    assert torch.equal(model.calibrate([model.encode(b) for b in x.split(8)], ['a calm']).prefix.std, constants)
    if name != 'prefix':
        padded = F.pad(model.encode(x), (0, 0, 0, 9))
        padded[:, -9:, :-1] = 99.
        torch.testing.assert_close(model.calibrate([padded], ['a calm']).prefix.std, constants)
        torch.testing.assert_close(model.prefix.clip_embedding(padded), model.prefix.clip_embedding(model.encode(x)))

@every
def test_describes_a_recording_of_many_windows(tokenizer, name):
    model = build(tokenizer, name)
    wave = (np.sin(2*np.pi*440*np.arange(5*16_000)/16_000)*.1).astype(np.float32)
    wave[40_000:] *= .1
    model.calibrate_novelty([logmels(24, seed=1)], [logmels(24, seed=2)])
    found = describe(wave, model, batch_size=2, samples=3, max_new_tokens=6)
    assert [(w.start, w.stop) for w in found.windows] == [(0., 2.), (2., 4.), (4., 5.)] and len(found.samples) == 3
    assert 0 <= found.novelty <= 1
    assert describe(wave, model, batch_size=1, max_new_tokens=6).windows == found.windows
    assert describe(wave, model, batch_size=1, max_new_tokens=6).text == found.text
    assert describe(wave[:32_000], model, max_new_tokens=6).text == found.windows[0].text

def test_the_whole_of_a_recording_is_all_of_its_embeddings(tokenizer):
    model = build(tokenizer, 'resampler')
    features = model.encode(*model.length.batch([p[:n] for p, n in zip(logmels(2), (200, 40))]))
    whole, real = split_mask(model.prefix.whole(features, None, model.length))
    embeddings, mask = split_mask(features)
    assert real.all() and torch.equal(whole[0], torch.cat([c[m] for c, m in zip(embeddings, mask)]))
    assert whole.shape[1] < embeddings.shape[1]*2

@every
def test_samples_and_searches(tokenizer, name):
    model, x = build(tokenizer, name), logmels(3)
    features = list(encode_clips(model, x.numpy()))
    samples = sample_captions(model, features, n=4, max_new_tokens=6)
    assert samples == sample_captions(model, features, n=4, max_new_tokens=6) and [len(d) for d in samples] == [4]*3
    ids, mask = torch.tensor([[15, 0, 1], [15, 15, 7]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    both = model.generate(x[:2], input_ids=ids, attention_mask=mask, **TEN)
    assert torch.equal(both[1, -10:], model.generate(x[1:2], input_ids=ids[1:, 1:], **TEN)[0, -10:])

@every
@pytest.mark.parametrize('weight', [0., 20.])
def test_tags_are_scored_exactly_over_each_bridge(tokenizer, name, weight):
    model = build(tokenizer, name, word_weight=weight)
    tags, features = TagVocabulary(tokenizer, ['hum', 'deep hum', 'noise', 'quick clicks'],
                                   'tag a'), model.encode(logmels(3)).detach()
    contexts, found = [(), (2,), (0, 3)], None
    found = next_tag(model, features, tags, contexts)
    for f, c, row in zip(features, contexts, found):
        for tokens, scores in zip(tags.tokens, row):
            for close, score in zip((tags.more, tags.end), scores):
                context = tags.context(c)
                ids = context + tokens + close
                with torch.no_grad():
                    logp = model(input_ids=torch.tensor([ids]), audio=model.prefix(f[None])).logits[0].log_softmax(-1)
                assert score.item() == pytest.approx(sum(logp[k - 1, ids[k]].item() for k in range(len(context),
                        len(ids))), abs=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert score_tags(model, features, tags, 2).scores['sampled'].shape == (3, 4)

def test_a_classifier_made_from_a_captioner_takes_pooled_features(tokenizer):
    tagger = SigmoidTagger.from_captioner(build(tokenizer, 'prefix'), ['hum', 'noise'])
    assert tagger(logmel=logmels(2)).logits.shape == (2, 2)

# --- budgets

@every
@pytest.mark.parametrize('budget', [60_000, 1_000_000, 20_000_000])
def test_budgets_are_kept(tokenizer, name, budget):
    gpt2 = GPT2Config(vocab_size=2000, n_embd=128, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
    dim = 320 if budget < 100_000 else 960
    gpt2 = gpt2 if dim == 960 else gpt2_config(tokenizer, n_embd=32, n_layer=2, n_head=2)
    sizes = sizes_for_budget(name, budget, dim, gpt2, lags=(1, 2, 4))
    assert abs(bridge_size(name, dim, gpt2, 8, (1, 2, 4), **sizes)/budget - 1) < .02

@every
def test_the_size_is_what_a_captioner_has_between_encoder_and_gpt2(tokenizer, name):
    model = new(tokenizer, name)
    counted = sum(p.numel() for part in (model.prefix, model.words) for p in part.parameters())
    assert bridge_size(name, 320, model.config.decoder, 4, (1,), **SIZES[name]) == counted

def test_a_budget_that_cannot_be_kept_says_so(tokenizer):
    gpt2 = gpt2_config(tokenizer, n_embd=128, n_layer=3, n_head=4)
    for name in NAMES:
        with pytest.raises(LogocentricError, match='choose another budget'): sizes_for_budget(name, 5_000, 960, gpt2)
    depth = sizes_for_budget('resampler', 1_000_000, 960, gpt2, depth=4)
    assert depth['depth'] == 4 and depth['width'] < sizes_for_budget('resampler', 1_000_000, 960, gpt2)['width']

def test_what_is_not_there_is_refused(tokenizer):
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2)
    with pytest.raises(LogocentricError, match="unknown bridge 'tunnel': choose from .*resampler"):
        make_bridge('tunnel', 16, gpt2)
    with pytest.raises(LogocentricError, match='no size depth'): make_bridge('cross', 16, gpt2, depth=2)
    with pytest.raises(LogocentricError, match='multiple of 4'): make_bridge('resampler', 16, gpt2, width=30)
    with pytest.raises(LogocentricError, match='unknown bridge'):
        Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer, bridge='tunnel')

def test_a_bridge_of_ones_own_has_a_name(tokenizer):
    from logocentric.captioner.bridges import Bridge
    @bridge('last embedding')
    class Last(Bridge):
        def __init__(self, dim, gpt2, length=1, lags=()):
            super().__init__(dim, 1, gpt2.n_embd)
            self.linear = torch.nn.Linear(dim, gpt2.n_embd)
        def forward(self, features): return self.linear(split_mask(features)[0][:, -1:])
    try:
        model = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer,
                                     bridge='last embedding').eval()
        assert model.config.prefix_length == 1
        assert model.generate(logmels(2), max_new_tokens=3, min_new_tokens=3).shape == (2, 4)
    finally: del BRIDGES['last embedding']
