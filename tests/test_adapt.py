"Adaptation: what stands still stands still, what was learned can be taken out, merged, stored and found again; perplexity is exact."
import math
from copy import deepcopy
import numpy as np, pytest, torch, torch.nn.functional as F
from peft import PeftModel
from transformers import GPT2LMHeadModel
from logocentric.captioner.adapt import (ADAPTATIONS, L2SP, Rehearsal, TextLoss, adapt, adapter_state, base_weights,
                                         footprint, forgetting, load_adapter, merge, perplexity, token_windows,
                                         rehearse, save_adapter, switched_off)
from logocentric.captioner.model import Captioner, Pairs, gpt2_config, tokenise
from logocentric.core import LogocentricError, load_records, set_seed
from logocentric.pipeline.experiments import run_experiment
from logocentric.reasoner.knowledge import train_tokenizer
from logocentric.encoder.mae import MAEConfig, MAEEncoder
from logocentric.reasoner.model import Reasoner
from logocentric.data.clipset import LazyPairs
from logocentric.runs import TrainConfig
from logocentric.steps import evaluate
from logocentric.training import train

pytestmark = pytest.mark.usefixtures('one_thread')

OLD = ['the weather of oslo is cold and clear', 'lisbon is warm and windy in spring', 'they say that cairo is hot', 'bergen is wet'] * 4
NEW = ['a slow piano plays a sad tune', 'fast drums and a loud guitar', 'a soft flute over quiet strings']
TOKENIZER = train_tokenizer(OLD + NEW, 320)


def language(seed=0):
    set_seed(seed)
    model = GPT2LMHeadModel(gpt2_config(TOKENIZER, n_embd=32, n_layer=2, n_head=2, n_positions=40)).eval()
    model.set_attn_implementation('eager')
    return model


def pairs(n=24, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=n)
    embeddings = np.random.default_rng(9).normal(size=(3, 1, 32))[kinds] + rng.normal(0, .3, (n, 4, 32))
    return Pairs(embeddings.astype(np.float32), [NEW[k] for k in kinds], TOKENIZER, what='columns')


def captioner(seed=0, base=0, ear=0, **settings):
    set_seed(100 + ear)
    encoder = MAEEncoder(MAEConfig(n_mels=8, patch_frames=4, patch_mels=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    decoder = language(base)
    set_seed(seed)
    model = Captioner.from_parts(encoder, decoder, TOKENIZER, prefix_length=3, **settings)
    model.encoder.requires_grad_(False)
    data = pairs()
    return model.calibrate([model.features_of(torch.from_numpy(data.logmels))], data.texts)


def teach(model, data=None, loss_fn=None, steps=6, **changes):
    config = TrainConfig(**(dict(steps=steps, batch_size=8, lr=1e-2) | changes))
    history = train(model, data or pairs(), config, pairs(8, 1), loss_fn, param_groups=model.param_groups(config, decoder_rate=1.), progress=False)
    return model, history


@torch.no_grad()
def logits(model):
    data = pairs(5, 3)
    return model.eval()(embeddings=torch.from_numpy(data.logmels), **tokenise(TOKENIZER, data.texts)).logits


@torch.no_grad()
def read(model):
    ids = tokenise(TOKENIZER, OLD[:4])['input_ids']
    return model.eval()(ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope='module')
def taught(): return {way: teach(adapt(captioner(), way))[0] for way in ADAPTATIONS}


def test_each_way_begins_as_the_untouched_captioner_and_learns():
    for way in ADAPTATIONS:
        model = adapt(captioner(), way)
        assert torch.equal(logits(model), logits(captioner()))
        before = evaluate(model, pairs(8, 1))
        assert teach(model, steps=20)[1].best_loss < before - .1, way


def test_what_stands_still_does_not_move_by_a_bit(taught):
    weights, ear = dict(language().named_parameters()), captioner().encoder.state_dict()
    for way, model in taught.items():
        assert all(torch.equal(p, ear[k]) for k, p in model.encoder.state_dict().items())
        assert set(base_weights(model)) == set(weights)
        assert all(torch.equal(p, weights[k]) for k, p in base_weights(model).items()) == (way != 'full')
        assert not torch.equal(logits(model), logits(captioner()))
    assert not torch.equal(read(taught['lora'].decoder), read(language()))


def test_switched_off_is_the_old_model_to_the_bit(taught):
    was = {n: p.requires_grad for n, p in taught['lora'].named_parameters()}
    said = logits(taught['lora'])
    with switched_off(taught['lora']) as decoder: assert torch.equal(read(decoder), read(language()))
    assert torch.equal(logits(taught['lora']), said) and was == {n: p.requires_grad for n, p in taught['lora'].named_parameters()}
    with switched_off(taught['prefix']) as decoder: assert torch.equal(read(decoder), read(language()))
    with pytest.raises(RuntimeError), switched_off(taught['lora']): raise RuntimeError
    assert torch.equal(logits(taught['lora']), said)
    with pytest.raises(LogocentricError, match='gone'), switched_off(taught['full']): pass


def test_merged_is_the_same_function_without_foreign_layers(taught):
    merged = merge(deepcopy(taught['lora']))
    torch.testing.assert_close(logits(merged), logits(taught['lora']), rtol=1e-4, atol=1e-4)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in captioner().named_parameters()]
    assert torch.equal(merge(deepcopy(taught['prefix'])).prefix.project.weight, taught['prefix'].prefix.project.weight)
    adapt(merged, 'lora')  # and may be adapted again
    torch.testing.assert_close(logits(merged), logits(taught['lora']), rtol=1e-4, atol=1e-4)


def test_a_saved_captioner_says_the_same_in_each_way(taught, tmp_path):
    features = captioner().features_of(torch.from_numpy(pairs(4, 5).logmels))
    for way, model in taught.items():
        model.save_pretrained(tmp_path/way)
        again = Captioner.from_pretrained(tmp_path/way)
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
        assert again.caption(features, max_new_tokens=8) == model.caption(features, max_new_tokens=8)
    assert any('lora_' in n for n, _ in taught['lora'].named_parameters())  # saving merged a copy


@pytest.mark.parametrize('way', ['lora', 'prefix'])
def test_an_adapter_loads_onto_its_base(taught, tmp_path, way):
    folder = save_adapter(taught[way], tmp_path/way)
    again = load_adapter(captioner(seed=7), folder)
    assert torch.equal(logits(again), logits(taught[way]))
    assert all(torch.equal(v, adapter_state(taught[way])[k]) for k, v in adapter_state(again).items())
    assert not any(k.startswith(('encoder.', 'decoder.')) for k in adapter_state(again))
    files = sum(p.stat().st_size for p in folder.rglob('*.safetensors'))
    assert footprint(taught[way])['stored'] < files < footprint(taught[way])['stored'] + 10_000


def test_the_novelty_of_a_calibrated_captioner_goes_along(tmp_path):
    model = adapt(captioner(), 'prefix')
    model.novelty_levels.copy_(torch.linspace(0, 1, 101)); model.novelty_mean.fill_(2)
    again = load_adapter(captioner(), save_adapter(model, tmp_path))
    assert torch.equal(again.novelty_levels, model.novelty_levels) and torch.equal(again.novelty_mean, model.novelty_mean)
    assert captioner().novelty_levels.isnan().all() and 'novelty_whiten' not in adapter_state(adapt(captioner(), 'prefix'))


def test_peft_reads_the_adapter_without_a_captioner(taught, tmp_path):
    save_adapter(taught['lora'], tmp_path)
    assert torch.equal(read(PeftModel.from_pretrained(language(), tmp_path/'lora')), read(taught['lora'].decoder))


def test_a_wrong_base_is_refused(taught, tmp_path):
    folder = save_adapter(taught['lora'], tmp_path/'lora')
    for other, what in ((captioner(base=1), 'GPT-2'), (captioner(ear=1), 'ear'), (captioner(word_weight=0.), 'word_weight'), (merge(deepcopy(taught['lora'])), 'GPT-2')):
        with pytest.raises(LogocentricError, match=rf'other parts \({what}\)'): load_adapter(other, folder)
    with pytest.raises(LogocentricError, match='no adapter in'): load_adapter(captioner(), tmp_path)
    with pytest.raises(LogocentricError, match='has an adapter'): load_adapter(adapt(captioner(), 'lora'), folder)
    with pytest.raises(LogocentricError, match='no small adapter'): save_adapter(taught['full'], tmp_path/'full')
    loose = adapt(captioner(), 'prefix')
    loose.encoder.requires_grad_(True)
    with pytest.raises(LogocentricError, match='ear learns too'): save_adapter(loose, tmp_path/'loose')


def test_wrong_wishes_are_refused():
    for wish, why in ((dict(way='half'), 'choose from'), (dict(way='full', r=2), 'belong to lora'), (dict(way='lora', colour='red'), 'peft refuses'), (dict(way='lora', r=0), 'refuses|fits'),
                      (dict(way='lora', target_modules=['q_proj']), 'no adapter fits')):
        with pytest.raises(LogocentricError, match=why): adapt(captioner(), **wish)
    with pytest.raises(LogocentricError, match='has an adapter'): adapt(adapt(captioner(), 'lora'), 'prefix')
    with pytest.raises(LogocentricError, match='stand still'): L2SP(adapt(captioner(), 'lora'), 1.)
    with pytest.raises(LogocentricError, match='no old texts'): Rehearsal(pairs(), [])


def test_settings_of_lora_reach_peft():
    few, many = (footprint(adapt(captioner(), 'lora', r=r, target_modules=['c_attn']))['language'] for r in (2, 4))
    assert few == 2*2*(32 + 96) and many == 2*few
    full, prefix = (footprint(adapt(captioner(), way)) for way in ('full', 'prefix'))
    assert full['language'] == language().num_parameters() and prefix['language'] == 0 and full['bridge'] == prefix['bridge'] > 0
    assert full['optimiser'] - prefix['optimiser'] == 8*full['language'] and full['stored'] - prefix['stored'] == 4*full['language']


@pytest.mark.parametrize('way', ADAPTATIONS)
def test_mixed_precision_and_an_interrupted_run(way, tmp_path):
    config = dict(batch_size=8, lr=1e-2, mixed_precision='bf16', eval_every=2, keep='last')
    run = lambda model, folder, data: train(model, data, TrainConfig(steps=6, **config), pairs(8, 1), folder=folder, progress=False)
    whole = adapt(captioner(), way); run(whole, tmp_path/'whole', pairs())

    class Broken(Pairs):
        def batch(self, indices, rng):
            self.left -= 1
            if not self.left: raise KeyboardInterrupt
            return super().batch(indices, rng)
    source = pairs()
    broken = Broken(source.logmels, source.texts, TOKENIZER, what='columns'); broken.left = 5
    with pytest.raises(KeyboardInterrupt): run(adapt(captioner(), way), tmp_path/'parts', broken)
    second = adapt(captioner(), way); run(second, tmp_path/'parts', pairs())
    assert torch.equal(logits(second), logits(whole))
    assert all(p.dtype == torch.float32 for p in second.parameters())


def test_rehearsal_remembers_and_a_pull_holds_back():
    forgot = {}
    for way, data, loss in (('full', None, None), ('rehearsed', Rehearsal(pairs(), OLD, .5), rehearse), ('pulled', None, 'pull')):
        model = adapt(captioner(), 'full')
        teach(model, data, L2SP(model, 30.) if loss == 'pull' else loss, steps=25)
        forgot[way] = perplexity(model.decoder, TOKENIZER, OLD).nats, sum((p - language().state_dict()[k]).square().sum().item() for k, p in model.decoder.named_parameters())
    assert forgot['rehearsed'][0] < forgot['full'][0] - .5
    assert forgot['pulled'][1] < forgot['full'][1]/2


def test_old_texts_are_read_in_the_precision_of_the_run():
    "In training both losses come out of one precision; outside of it, of the weights'."
    model, seen = adapt(captioner(), 'full'), []
    model.decoder.lm_head.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    for precision, expected in (('bf16', torch.bfloat16), ('no', torch.float32)):
        seen.clear()
        train(model, Rehearsal(pairs(), OLD, .5), TrainConfig(steps=1, batch_size=4, mixed_precision=precision), loss_fn=rehearse, progress=False)
        assert len(seen) == 2 and set(seen) == {expected}


def test_old_texts_beside_pairs_that_are_read_as_they_come():
    "The order of shards is kept; a tokenizer is asked for where the pairs have none."
    class Shards:
        def __len__(self): return 6
        def clip(self, i): return dict(id=str(i), logmel=np.zeros((20, 80), np.float16), text=NEW[0])
        def order(self, seed, epoch): return np.arange(6)[::-1]
    lazy = LazyPairs(Shards(), lambda texts: tokenise(TOKENIZER, texts))
    with pytest.raises(LogocentricError, match='give the one of the captioner'): Rehearsal(lazy, OLD)
    rehearsal = Rehearsal(lazy, OLD, tokenizer=TOKENIZER)
    assert rehearsal.order(1, 0).tolist() == [5, 4, 3, 2, 1, 0] and len(rehearsal.batch([0, 1, 2, 3], np.random.default_rng(0))['old']['input_ids']) == 1
    assert not hasattr(Rehearsal(pairs(), OLD), 'order')


def test_the_terms_of_the_remedies_are_what_they_say():
    model = adapt(captioner(), 'full').train()
    data = pairs()
    batch = lambda: {k: v for k, v in Rehearsal(data, OLD, .5).batch([0, 1, 2, 3], np.random.default_rng(0)).items() if k != 'id'}
    old = batch()['old']
    assert len(old['input_ids']) == 2 and 'old' not in data.batch([0], np.random.default_rng(0))
    new = {k: v for k, v in batch().items() if k != 'old'}
    model.eval()  # no dropout
    mine = F.cross_entropy(model.decoder(old['input_ids'], attention_mask=old['attention_mask']).logits[:, :-1].flatten(0, 1), old['labels'][:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(rehearse(model, batch()), model(**new).loss + mine)
    torch.testing.assert_close(rehearse(model, dict(new)), model(**new).loss)
    pull = L2SP(model, 3.)
    with torch.no_grad(): model.decoder.transformer.wpe.weight[0, 0] += 2
    torch.testing.assert_close(pull(model, dict(new)), model(**new).loss)  # validation compares captions
    plain = L2SP(model, 0.)
    for m in (pull, plain): model.train(); torch.manual_seed(0); m.found = m(model, dict(new))
    torch.testing.assert_close(pull.found - plain.found, torch.tensor(6.), rtol=1e-4, atol=1e-4)


# --- perplexity

def test_windows_count_each_token_once():
    for n in range(1, 40):
        for size, stride in ((8, 4), (8, 7), (8, 1), (5, 3), (2, 1)):
            found = token_windows(n, size, stride)
            assert [i for _, stop, first in found for i in range(first, stop)] == list(range(1, n))
            assert all(stop - start <= size and start < first for start, stop, first in found if first < stop)
            assert all(first - start >= size - stride for start, stop, first in found[1:])


def test_perplexity_is_the_definition():
    model, texts = language(), [OLD[0], OLD[3], 'Ünï ♫ bergen', '']
    found = perplexity(model, TOKENIZER, texts, batch_size=3)
    for text, (nats, tokens, size) in zip(texts, found.tally):
        ids = tokenise(TOKENIZER, [text])['input_ids']
        assert tokens == ids.shape[1] - 1 and size == len(text.encode())
        assert nats == pytest.approx(model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.item()*tokens, rel=1e-4)
    assert found.nats == pytest.approx(found.tally[:, 0].sum()/found.tally[:, 1].sum()) and found.perplexity == pytest.approx(math.exp(found.nats))
    assert found.nats_per_byte == pytest.approx(found.tally[:, 0].sum()/found.tally[:, 2].sum())
    s = found.interval('byte')
    assert s.low <= s.value <= s.high and s.value == pytest.approx(found.perplexity_per_byte) and s.n == 4


@torch.no_grad()
def test_a_long_text_is_read_with_context():
    model, text = language(), ' '.join(OLD)
    ids = tokenise(TOKENIZER, [text], 10_000)['input_ids'][0]
    window = 40
    by_hand = [-model(ids[None, max(0, i + 1 - window):i]).logits[0, -1].log_softmax(-1)[ids[i]].item() for i in range(1, len(ids))]
    assert len(ids) > 2*window and perplexity(model, TOKENIZER, [text], stride=1).nats == pytest.approx(np.mean(by_hand), rel=1e-4)
    for settings in (dict(), dict(stride=39), dict(window=10, stride=3)): # the same by windows, one at a time
        found = perplexity(model, TOKENIZER, [text], **settings).tally[0]
        size = settings.get('window', window)
        hand = 0.
        for start, stop, first in token_windows(len(ids), size, settings.get('stride', size//2)):
            logp = model(ids[None, start:stop]).logits[0].log_softmax(-1)
            hand -= sum(logp[i - start - 1, ids[i]].item() for i in range(first, stop))
        assert found[0] == pytest.approx(hand, rel=1e-4) and found[1] == len(ids) - 1


def test_perplexity_leaves_the_model_as_it_was_and_refuses_nonsense():
    model = language().train()
    perplexity(model, TOKENIZER, OLD[:1])
    assert model.training
    for wrong, why in ((dict(texts=[]), 'no texts'), (dict(texts='one'), 'no texts'), (dict(texts=OLD, window=1), 'stride'), (dict(texts=OLD, stride=40), 'stride')):
        with pytest.raises(LogocentricError, match=why): perplexity(model, TOKENIZER, **wrong)


def test_forgetting_is_the_ratio_of_perplexities():
    a, b = (perplexity(language(seed), TOKENIZER, OLD[:4]) for seed in (0, 1))
    found = forgetting(a, b)
    assert found.value == pytest.approx(b.perplexity/a.perplexity) and found.low <= found.value <= found.high
    same = forgetting(a, a)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    with pytest.raises(LogocentricError, match='different texts'): forgetting(a, TextLoss(b.tally[:3]))


def test_a_reasoner_reads_with_the_adapter_and_without(taught):
    ask = lambda model: Reasoner(deepcopy(model), TOKENIZER).reason(['cold', 'warm'], ['oslo', 'lisbon'], prompt='{description} is', rule='mean').values
    with switched_off(taught['lora']) as decoder: off = ask(decoder)
    np.testing.assert_allclose(off, ask(language()), rtol=1e-6)
    assert not np.allclose(ask(taught['lora'].decoder), off)


# --- the experiment

@pytest.mark.slow
def test_the_study_of_forgetting_compares_all_ways(home):
    run_experiment('forgetting', 'smoke', 1)
    metrics = load_records(home/'data'/'runs'/'smoke-1'/'records', name='forgetting')[0].metrics
    ways, longer = {'full', 'rehearsed', 'pulled', 'pulled lightly', 'lora 2', 'lora 8', 'lora 32', 'lora 8 in attention', 'prefix'}, {'full, longer', 'lora 32, longer', 'prefix, longer'}
    assert set(metrics['quality']) == set(metrics['costs']) == ways | longer and set(metrics['chosen']) == set(metrics['trials']) == ways
    for way, trials in metrics['trials'].items():
        rates = {(t['bridge'], t['language']): t['valid_loss'] for t in trials}
        chosen = metrics['chosen'][way]
        assert len(rates) >= 3 and rates[chosen['bridge'], chosen['language']] <= min(v for (b, l), v in rates.items() if b == chosen['bridge'] or l == chosen['language'])
    assert set(metrics['forgetting']) == ways | longer | {'lora 8, switched off'} and set(metrics['genres']) == set(metrics['forgetting']) | {'untouched'}
    for name in ('prefix', 'prefix, longer', 'lora 8, switched off'):
        assert all(s['value'] == pytest.approx(1, abs=1e-6) for s in metrics['forgetting'][name].values()) and metrics['genres'][name]['value'] == metrics['genres']['untouched']['value']
    assert {way for way, c in metrics['costs'].items() if c['moved']} == {'full', 'full, longer', 'rehearsed', 'pulled', 'pulled lightly'}
    assert metrics['costs']['lora 2']['language'] < metrics['costs']['lora 8 in attention']['language'] < metrics['costs']['lora 8']['language'] < metrics['costs']['lora 32']['language']
    for way, scores in metrics['quality'].items(): assert scores['CIDEr-D']['n'] == metrics['n'] == 40
    for name, of in metrics['forgetting'].items():
        for text, s in of.items(): assert s['value'] == pytest.approx(metrics['perplexity'][name][text]['value']/metrics['perplexity']['untouched'][text]['value'], rel=1e-6)
