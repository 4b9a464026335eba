"Forgetting: perplexity is exact, rehearsal and the pull are what they say, and the study compares all ways."
import math
from copy import deepcopy
import numpy as np, pytest, torch, torch.nn.functional as F
from logocentric.captioner.adapt import adapt, switched_off
from logocentric.captioner.forgetting import (L2SP, Rehearsal, TextLoss, forgetting, perplexity, rehearse,
                                              token_windows)
from logocentric.captioner.training_data import tokenise
from logocentric.core import LogocentricError, load_records
from logocentric.data.clipset import LazyPairs
from logocentric.pipeline.experiments import run_experiment
from logocentric.reasoner.model import Reasoner
from logocentric.runs import TrainConfig
from logocentric.training import train
from test_adapt import NEW, OLD, TOKENIZER, captioner, language, pairs, taught, teach # noqa: F401


def test_rehearsal_remembers_and_a_pull_holds_back():
    forgot = {}
    for way, data, loss in (('full', None, None), ('rehearsed', Rehearsal(pairs(), OLD, .5), rehearse),
                            ('pulled', None, 'pull')):
        model = adapt(captioner(), 'full')
        teach(model, data, L2SP(model, 30.) if loss == 'pull' else loss, steps=25)
        forgot[way] = perplexity(model.decoder, TOKENIZER,
                                 OLD).nats, sum((p - language().state_dict()[k]).square().sum().item() for k,
                                 p in model.decoder.named_parameters())
    assert forgot['rehearsed'][0] < forgot['full'][0] - .5
    assert forgot['pulled'][1] < forgot['full'][1]/2


def test_old_texts_are_read_in_the_precision_of_the_run():
    "In training both losses come out of one precision; outside of it, of the weights'."
    model, seen = adapt(captioner(), 'full'), []
    model.decoder.lm_head.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    for precision, expected in (('bf16', torch.bfloat16), ('no', torch.float32)):
        seen.clear()
        train(model, Rehearsal(pairs(), OLD, .5), TrainConfig(steps=1, batch_size=4, mixed_precision=precision),
              loss_fn=rehearse, progress=False)
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
    assert rehearsal.order(1, 0).tolist() == [5, 4, 3, 2, 1, 0]
    assert len(rehearsal.batch([0, 1, 2, 3], np.random.default_rng(0))['old']['input_ids']) == 1
    assert not hasattr(Rehearsal(pairs(), OLD), 'order')


def test_the_terms_of_the_remedies_are_what_they_say():
    model = adapt(captioner(), 'full').train()
    data = pairs()
    batch = lambda: {k: v for k,
                     v in Rehearsal(data, OLD, .5).batch([0, 1, 2, 3], np.random.default_rng(0)).items() if k != 'id'}
    old = batch()['old']
    assert len(old['input_ids']) == 2 and 'old' not in data.batch([0], np.random.default_rng(0))
    new = {k: v for k, v in batch().items() if k != 'old'}
    model.eval()  # no dropout
    mine = F.cross_entropy(model.decoder(old['input_ids'], attention_mask=old['attention_mask']).logits[:,
            :-1].flatten(0, 1), old['labels'][:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(rehearse(model, batch()), model(**new).loss + mine)
    torch.testing.assert_close(rehearse(model, dict(new)), model(**new).loss)
    pull = L2SP(model, 3.)
    with torch.no_grad(): model.decoder.transformer.wpe.weight[0, 0] += 2
    torch.testing.assert_close(pull(model, dict(new)), model(**new).loss)  # validation compares captions
    plain = L2SP(model, 0.)
    for m in (pull, plain): model.train(); torch.manual_seed(0); m.found = m(model, dict(new))
    torch.testing.assert_close(pull.found - plain.found, torch.tensor(6.), rtol=1e-4, atol=1e-4)


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
        assert nats == pytest.approx(model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.item()*tokens,
                                     rel=1e-4)
    assert found.nats == pytest.approx(found.tally[:, 0].sum()/found.tally[:, 1].sum())
    assert found.perplexity == pytest.approx(math.exp(found.nats))
    assert found.nats_per_byte == pytest.approx(found.tally[:, 0].sum()/found.tally[:, 2].sum())
    s = found.interval('byte')
    assert s.low <= s.value <= s.high and s.value == pytest.approx(found.perplexity_per_byte) and s.n == 4


@torch.no_grad()
def test_a_long_text_is_read_with_context():
    model, text = language(), ' '.join(OLD)
    ids = tokenise(TOKENIZER, [text], 10_000)['input_ids'][0]
    window = 40
    by_hand = [-model(ids[None, max(0, i + 1 - window):i]).logits[0,
                                                                  -1].log_softmax(-1)[ids[i]].item() for i in range(1,
                                                                  len(ids))]
    assert len(ids) > 2*window
    assert perplexity(model, TOKENIZER, [text], stride=1).nats == pytest.approx(np.mean(by_hand), rel=1e-4)
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
    for wrong, why in ((dict(texts=[]), 'no texts'), (dict(texts='one'), 'no texts'),
                       (dict(texts=OLD, window=1), 'stride'), (dict(texts=OLD, stride=40), 'stride')):
        with pytest.raises(LogocentricError, match=why): perplexity(model, TOKENIZER, **wrong)


def test_forgetting_is_the_ratio_of_perplexities():
    a, b = (perplexity(language(seed), TOKENIZER, OLD[:4]) for seed in (0, 1))
    found = forgetting(a, b)
    assert found.value == pytest.approx(b.perplexity/a.perplexity) and found.low <= found.value <= found.high
    same = forgetting(a, a)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    with pytest.raises(LogocentricError, match='different texts'): forgetting(a, TextLoss(b.tally[:3]))


def test_a_reasoner_reads_with_the_adapter_and_without(taught):
    ask = lambda model: Reasoner(deepcopy(model), TOKENIZER).reason(['cold', 'warm'], ['oslo', 'lisbon'],
                                                                    prompt='{description} is', rule='mean').values
    with switched_off(taught['lora']) as decoder: off = ask(decoder)
    np.testing.assert_allclose(off, ask(language()), rtol=1e-6)
    assert not np.allclose(ask(taught['lora'].decoder), off)


@pytest.mark.slow
def test_the_study_of_forgetting_compares_all_ways(home):
    run_experiment('forgetting', 'smoke', 1)
    metrics = load_records(home/'data'/'runs'/'smoke-1'/'records', name='forgetting')[0].metrics
    ways, longer = {'full', 'rehearsed', 'pulled', 'pulled lightly', 'lora 2', 'lora 8', 'lora 32',
                    'lora 8 in attention', 'prefix'}, {'full, longer', 'lora 32, longer', 'prefix, longer'}
    assert set(metrics['quality']) == set(metrics['costs']) == ways | longer
    assert set(metrics['chosen']) == set(metrics['trials']) == ways
    for way, trials in metrics['trials'].items():
        rates = {(t['bridge'], t['language']): t['valid_loss'] for t in trials}
        chosen = metrics['chosen'][way]
        assert len(rates) >= 3
        near = [v for (b, l), v in rates.items() if b == chosen['bridge'] or l == chosen['language']]
        assert rates[chosen['bridge'], chosen['language']] <= min(near)
    assert set(metrics['forgetting']) == ways | longer | {'lora 8, switched off'}
    assert set(metrics['genres']) == set(metrics['forgetting']) | {'untouched'}
    for name in ('prefix', 'prefix, longer', 'lora 8, switched off'):
        assert all(s['value'] == pytest.approx(1, abs=1e-6) for s in metrics['forgetting'][name].values())
        assert metrics['genres'][name]['value'] == metrics['genres']['untouched']['value']
    moved = {way for way, c in metrics['costs'].items() if c['moved']}
    assert moved == {'full', 'full, longer', 'rehearsed', 'pulled', 'pulled lightly'}
    sizes = [metrics['costs'][way]['language'] for way in ('lora 2', 'lora 8 in attention', 'lora 8', 'lora 32')]
    assert all(a < b for a, b in zip(sizes, sizes[1:]))
    for way, scores in metrics['quality'].items(): assert scores['CIDEr-D']['n'] == metrics['n'] == 40
    known = metrics['perplexity']
    for name, of in metrics['forgetting'].items():
        for text, s in of.items():
            ratio = known[name][text]['value']/known['untouched'][text]['value']
            assert s['value'] == pytest.approx(ratio, rel=1e-6)
