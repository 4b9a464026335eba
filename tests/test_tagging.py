"Labels as words: what is written is what is read, every probability is exact, every sample is fair."
import warnings
from itertools import permutations
import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import log_loss
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError
from logocentric.reasoner.knowledge import train_tokenizer
from logocentric.encoder.mae import MAEConfig, MAEEncoder
from logocentric.reasoner.tagging import (TAG_PROMPTS, TAG_RULES, TagInputs, SigmoidTagger, TagPairs, TagVocabulary,
                                          TargetPairs, multi_hot, next_tag, decode_tags, score_tags, sample_tags)

LABELS = ['Dog', 'Bell', 'Bell tower', 'Chirp, tweet', 'Rain', 'Rain on surface']
FEATURES = 96 # of an encoder with 2 rows of 16 numbers: mean, deviation and one lag
pytestmark = [pytest.mark.filterwarnings('ignore::logocentric.reasoner.model.LabelWarning')]


def learned(labels, size=320):
    "A byte-level tokenizer that has read lists of these labels."
    lists = [f"{TAG_PROMPTS['text']} {'; '.join(np.random.default_rng(i).permutation(labels)).lower()}"
             for i in range(50)]
    return train_tokenizer([*lists, TAG_PROMPTS['table3']], size)


@pytest.fixture(scope='module')
def tokenizer(): return learned(LABELS)


@pytest.fixture(scope='module')
def tags(tokenizer): return TagVocabulary(tokenizer, LABELS)


def captioner(tokenizer, seed=0, spread=.3, **settings):
    "An untrained captioner that is far from indifferent."
    torch.manual_seed(seed)
    encoder = MAEEncoder(MAEConfig(n_mels=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    model = Captioner.from_parts(encoder, dict(n_embd=32, n_layer=2, n_head=2, n_positions=128), tokenizer,
                                 prefix_length=2, lags=[1], **settings).eval()
    with torch.no_grad():
        for p in model.decoder.transformer.parameters():
            if p.ndim > 1: p.normal_(std=spread)
        for p in model.words.parameters(): p.normal_(std=.1)
        model.word_prior.normal_()
    return model


def sounds(n, seed=0): return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, FEATURES))).float()


@pytest.fixture(scope='module')
def model(tokenizer): return captioner(tokenizer)


@pytest.fixture(scope='module')
def audioset(shared): return pd.read_csv(shared('audioset', 'class_labels_indices.csv')).display_name.tolist()


# --- words

# ends of labels: `);` and `.;` are single tokens of a byte-level BPE, which takes punctuation together
MERGED = (')', '.')

def assert_one_way_of_writing(tokenizer, labels, prompt, split=()):
    "Whole sentences, tokenised at once, are what is written label by label; and what is written is read."
    tags, rng = TagVocabulary(tokenizer, labels, prompt), np.random.default_rng(0)
    lists = [[i] for i in range(len(labels))] + [rng.permutation(len(labels))[:rng.integers(1, 7)].tolist()
                                                 for _ in range(100)]
    for places in lists: assert tags.read(tokenizer.decode(tags.write(places))) == (places, [])
    lists = [p for p in lists if not any(labels[i].endswith(apart) for i in p for apart in split)]
    for places in lists:
        text = f"{TAG_PROMPTS.get(prompt, prompt)} {'; '.join(labels[i].lower() for i in places)}"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tags.begin + tags.write(places) == [tokenizer.bos_token_id, *ids]
        assert tags.context(places) == [tokenizer.bos_token_id,
                                        *tokenizer(text + ';', add_special_tokens=False).input_ids]
    assert tags.context() == tags.begin and tags.write([]) == []
    return tags


@pytest.mark.parametrize('prompt', [*TAG_PROMPTS, 'One hears'])
def test_written_and_read(tokenizer, prompt): assert_one_way_of_writing(tokenizer, LABELS, prompt)


@pytest.mark.parametrize('prompt', TAG_PROMPTS)
def test_all_of_audioset_in_gpt2s_tokens(gpt2_tokenizer, audioset, prompt):
    tags = assert_one_way_of_writing(gpt2_tokenizer, audioset, prompt, MERGED) # see below
    assert len(tags.labels) == len(tags.place) == len({tuple(t) for t in tags.tokens}) == 527
    # every beginning of a closed label is a node of the tree, once, beside the root
    beginnings = {tuple(row[:k]) for t in tags.tokens for close in (tags.more, tags.end) for row in [t + close]
                  for k in range(1, len(row) + 1)}
    assert len(tags.trie.tokens) == 1 + len(beginnings) and tags.trie.paths.shape[0] == 2*527
    leaves = {path[path > 0][-1].item() for path in tags.trie.paths}
    assert len(leaves) == 2*527, 'each label with each close ends in a leaf of its own'
    labels = {tuple(t) for t in tags.tokens}
    assert len(tags.trie.inner) == len(beginnings) - 2*527 and sum(b in labels for b in beginnings) == 527


def test_punctuation_before_a_semicolon_stays_apart(gpt2_tokenizer, audioset):
    "GPT-2's own tokenizer joins `);` and `.;`; a label is always written with the same tokens, whatever closes it."
    tags = TagVocabulary(gpt2_tokenizer, audioset)
    ending = [i for i, l in enumerate(audioset) if l.endswith(MERGED)]
    written = [tags.write([i, 0]) for i in ending]
    assert len(ending) == 26 and all(w[:len(tags.tokens[i])] == tags.tokens[i] for w, i in zip(written, ending))
    assert all(len(w) == len(gpt2_tokenizer(f' {audioset[i].lower()}; {audioset[0].lower()}',
                                   add_special_tokens=False).input_ids) + 1 for w, i in zip(written, ending))


def test_all_of_audioset_in_tokens_of_our_own(audioset):
    assert_one_way_of_writing(learned(audioset, 800), audioset, 'text', MERGED)


def test_the_tree_of_a_few_labels(tags):
    beginnings = {tuple((t + c)[:k]) for t in tags.tokens for c in (tags.more, tags.end) for k in range(1, len(t) + 2)}
    assert len(tags.trie.tokens) == len(beginnings) + 1 and tags.trie is tags.trie
    for path, row in zip(tags.trie.paths, [t + c for t in tags.tokens for c in (tags.more, tags.end)]):
        assert [tags.trie.tokens[n] for n in path[path > 0]] == row


def test_read_takes_whole_names_once(tags):
    assert tags.read(' chirp, tweet; a dog ;RAIN; rain;; bell towers; bell') == ([3, 4, 1], ['a dog', 'bell towers'])
    assert tags.read('') == ([], []) and tags.read('chirp') == ([], ['chirp'])


def test_what_cannot_be_written_apart_is_refused(tokenizer):
    with pytest.raises(LogocentricError, match="'a; b' contains a semicolon.*rename"):
        TagVocabulary(tokenizer, ['dog', 'a; b'])
    with pytest.raises(LogocentricError): TagVocabulary(tokenizer, ['Dog', 'dog'])


def test_named_marks_each_list():
    table = multi_hot([[0, 2], [], [1]], 3)
    assert table.dtype == bool and table.tolist() == [[True, False, True], [False]*3, [False, True, False]]


# --- exact

@torch.no_grad()
def naive(model, tags, features, context):
    "One sequence at a time, no padding, no tree: log-probabilities (labels, 2)."
    audio, scores = model.prefix(features[None]), []
    for tokens in tags.tokens:
        rows = [context + tokens + close for close in (tags.more, tags.end)]
        logp = [model(input_ids=torch.tensor([r]), audio=audio).logits[0].log_softmax(-1) for r in rows]
        scores.append([sum(l[k - 1, r[k]].item() for k in range(len(context), len(r))) for l, r in zip(logp, rows)])
    return np.array(scores)


CONTEXTS = [(), (3,), (0, 5, 1), (2, 4)]

@pytest.mark.parametrize('weight', [0., 20.])
def test_next_tag_equals_naive_passes(tokenizer, tags, weight):
    "In double precision up to the logits; scores are kept in single precision, which is the bound."
    model, features = captioner(tokenizer, word_weight=weight).double(), sounds(4).double()
    expected = np.stack([naive(model, tags, f, tags.context(c)) for f, c in zip(features, CONTEXTS)])
    assert expected.std() > 1 and np.abs(expected[0] - expected[1]).max() > .1
    for size in (1, 3, 32):
        np.testing.assert_allclose(next_tag(model, features, tags, CONTEXTS, batch_size=size), expected, atol=1e-5,
                                   rtol=2e-6)
    alone = torch.cat([next_tag(model, f[None], tags, [c]) for f, c in zip(features, CONTEXTS)])
    np.testing.assert_allclose(alone, expected, atol=1e-5, rtol=2e-6)


def test_next_tag_in_single_precision(model, tags):
    features = sounds(4)
    expected = np.stack([naive(model, tags, f, tags.context(c)) for f, c in zip(features, CONTEXTS)])
    np.testing.assert_allclose(next_tag(model, features, tags, CONTEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(next_tag(model, features, tags)[0], expected[0], atol=1e-4)


def test_words_weigh(tokenizer, tags):
    "Evidence of the unordered words counts: the same weights without it say something else."
    a, b = (captioner(tokenizer, word_weight=w) for w in (0., 20.))
    b.load_state_dict(a.state_dict())
    assert (next_tag(a, sounds(2), tags) - next_tag(b, sounds(2), tags)).abs().max() > .01


def test_all_of_audioset_equals_naive_passes(gpt2_tokenizer, audioset):
    model, tags = captioner(gpt2_tokenizer, spread=.1), TagVocabulary(gpt2_tokenizer, audioset)
    named = ('Chirp, tweet', 'Bell', 'Rain on surface', 'Music')
    features, picked = sounds(2), sorted({*range(0, 527, 40), *map(audioset.index, named)})
    few = TagVocabulary(gpt2_tokenizer, [audioset[i] for i in picked])
    contexts = [(), (audioset.index('Dog'), 0)]
    found = next_tag(model, features, tags, contexts)
    assert found.shape == (2, 527, 2)
    for f, c, row in zip(features, contexts, found):
        np.testing.assert_allclose(row[picked], naive(model, few, f, tags.context(c)), atol=1e-4)
    assert (found.double().exp().sum((1, 2)) <= 1 + 1e-5).all()


def test_closed_labels_are_disjoint(model, tags):
    total = next_tag(model, sounds(20), tags).double().exp().sum((1, 2))
    assert (total > 0).all() and (total <= 1 + 1e-5).all()


def test_a_label_that_begins_another_is_closed(tokenizer, tags, model):
    "`bell` does not take what belongs to `bell tower`: its score is that of the name and of what closes it."
    bell, tower = tags.tokens[1], tags.tokens[2]
    assert tower[:len(bell)] == bell != tower
    both, one = (next_tag(model, sounds(1), TagVocabulary(tokenizer, l))[0] for l in (['Bell', 'Bell tower'], ['Bell']))
    np.testing.assert_allclose(both[0], one[0], atol=1e-5)
    ids = torch.tensor([tags.begin + bell])
    with torch.no_grad(): logp = model(input_ids=ids, audio=model.prefix(sounds(1))).logits[0].log_softmax(-1)
    open_ = sum(logp[len(tags.begin) + k - 1, t].item() for k, t in enumerate(bell))
    closes = logp[-1, [tags.more[0], tags.end[0]]]
    np.testing.assert_allclose(both[0], open_ + closes, atol=1e-4)
    assert both.exp().sum() < np.exp(open_) + 1e-6


# --- sampled lists

@pytest.fixture(scope='module')
def three():
    "Three labels, a captioner that doubts, and what each list of labels is worth, by enumeration."
    labels = ['Dog', 'Bell', 'Bell tower']
    tokenizer = learned(labels, 300)
    model, tags, features = captioner(tokenizer, 3, .2), TagVocabulary(tokenizer, labels), sounds(2, 1)
    return model, tags, features, [enumerated(model, tags, f) for f in features]


def enumerated(model, tags, f, max_labels=9):
    "Probability that a label is said, from all ordered lists; and the mean length."
    n = len(tags.labels)
    lists = [c for k in range(n) for c in permutations(range(n), k)]
    logp = dict(zip(lists, next_tag(model, f.expand(len(lists), -1), tags, lists).double().exp().numpy()))
    said, number = np.zeros(n), 0.
    def go(context, weight):
        nonlocal number
        free = [i for i in range(n) if i not in context]
        p = logp[context][free]/logp[context][free].sum()
        for i, (more, end) in zip(free, p):
            said[i] += weight*(more + end)
            number += weight*(more + end)
            if len(context) + 1 < min(n, max_labels): go((*context, i), weight*more)
    go((), 1.)
    return said, number


def test_samples_agree_with_all_lists(three):
    "A share of lists is binomial at worst: five deviations of that; `inclusion` adds up expectations and varies less."
    model, tags, features, exact = three
    n_samples = 4000
    samples = sample_tags(model, features, tags, n_samples)
    for i, (said, number) in enumerate(exact):
        bound = 5*np.sqrt(np.maximum(said*(1 - said), 1e-4)/n_samples)
        assert 0 < said.min() and said.max() < 1 + 1e-9 and 1 <= number <= 3
        assert (np.abs(samples.sampled[i] - said) < bound).all() and (np.abs(samples.inclusion[i] - said) < bound).all()
        assert abs(samples.number[i] - number) < 5*np.sqrt(1/n_samples)


def test_few_samples_are_right_on_average(three):
    model, tags, features, exact = three
    several = [sample_tags(model, features, tags, 4, seed) for seed in range(60)]
    for i, (said, _) in enumerate(exact):
        for how in ('sampled', 'inclusion'):
            error = np.abs(np.mean([getattr(w, how)[i] for w in several], 0) - said)
            assert (error < 5*np.sqrt(np.maximum(said*(1 - said), 1e-4)/240)).all(), how
        spread = {how: np.std([getattr(w, how)[i] for w in several], 0).sum() for how in ('sampled', 'inclusion')}
        assert spread['inclusion'] < spread['sampled']


def test_a_list_of_one_label_is_its_probability(three):
    model, tags, features, _ = three
    first = next_tag(model, features, tags).double().exp().sum(-1).numpy()
    samples = sample_tags(model, features, tags, 4, max_labels=1)
    np.testing.assert_allclose(samples.inclusion, first/first.sum(1, keepdims=True), atol=1e-6)
    assert (samples.number == 1).all()


def test_samples_repeat_and_never_say_a_label_twice(model, tags):
    features = sounds(5)
    a, b, other = (sample_tags(model, features, tags, 8, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a, b)) and not np.array_equal(a.sampled, other.sampled)
    assert a.sampled.max() <= 1 and (a.inclusion <= a.number[:, None] + 1e-9).all()
    np.testing.assert_allclose(a.inclusion.sum(1), a.number)    # every step says one label
    np.testing.assert_allclose(a.sampled.sum(1), a.number)
    assert ((a.sampled*8) % 1 == 0).all()


@pytest.mark.parametrize('longest', [1, 2, 4, 99])
def test_no_list_is_longer_than_asked(model, tags, longest, monkeypatch):
    import logocentric.reasoner.tagging as module
    seen = []
    def spy(model, features, tags, contexts, **kwargs):
        seen.extend(contexts)
        return next_tag(model, features, tags, contexts, **kwargs)
    monkeypatch.setattr(module, 'next_tag', spy)
    samples = sample_tags(model, sounds(4), tags, 6, max_labels=longest)
    assert max(map(len, seen)) < min(longest, len(LABELS)) and all(len(set(c)) == len(c) for c in seen)
    assert (1 <= samples.number).all() and samples.number.max() <= min(longest, len(LABELS))


# --- decoding and scores

def test_say_tags_reads_the_captioners_own_words(model, tags, monkeypatch):
    said = decode_tags(model, sounds(5), tags, batch_size=2, max_new_tokens=12)
    assert len(said) == 5 and said == decode_tags(model, sounds(5), tags, max_new_tokens=12)
    written = iter([tags.write([3, 0]) + tags.more + tags.tokenizer(' a cat; rain', add_special_tokens=False).input_ids,
                    tags.write([5])])
    def generate(audio, input_ids, **kwargs): return torch.cat([input_ids, torch.tensor([next(written)])], 1)
    monkeypatch.setattr(model, 'generate', generate)
    assert decode_tags(model, sounds(2), tags, batch_size=1) == [([3, 0, 4], ['a cat']), ([5], [])]


def test_score_tags_keeps_every_rule(model, tags, monkeypatch):
    features = sounds(3)
    scores, unknown = score_tags(model, features, tags, n_samples=4)
    samples = sample_tags(model, features, tags, 4)
    assert set(scores) == set(TAG_RULES) and all(s.shape == (3, len(LABELS)) for s in scores.values())
    assert 0 <= unknown <= 1
    np.testing.assert_allclose(scores['first'], next_tag(model, features, tags).exp().sum(-1), atol=1e-6)
    np.testing.assert_allclose(scores['count'], scores['first']*samples.number[:, None])
    assert np.array_equal(scores['sampled'], samples.sampled) and np.array_equal(scores['inclusion'], samples.inclusion)
    import logocentric.reasoner.tagging as module
    said = [tags.read(t) for t in ('dog; a cat', 'a cow', 'bell; rain')]
    monkeypatch.setattr(module, 'decode_tags', lambda *args, **kwargs: said)
    scores, unknown = score_tags(model, features, tags, n_samples=2)
    assert unknown == 2/5 and np.array_equal(scores['decoded'], multi_hot([[0], [], [1, 4]], len(LABELS)))


# --- batches

def test_noise_is_as_asked():
    x = np.random.default_rng(0).standard_normal((4000, 3))*[1, 10, .1] + 5
    rng = np.random.default_rng(1)
    made = TagInputs(x, 'features', noise=.3).batch(range(4000), rng)
    off = made['features'].numpy() - x
    np.testing.assert_allclose(off.std(0), .3*x.std(0), rtol=.05)
    assert (np.abs(off.mean(0)) < 5*.3*x.std(0)/np.sqrt(4000)).all() and abs(np.corrcoef(off.T)[0, 1]) < .1
    plain = TagInputs(x, 'features', ids=[f'c{i}' for i in range(4000)]).batch([3, 1], rng)
    assert torch.equal(plain['features'], torch.from_numpy(x[[3, 1]].astype(np.float32)))
    assert plain['id'] == ['c3', 'c1']
    assert TagInputs(list(x[:2].reshape(2, 3, 1)), 'logmel').batch([1], rng)['logmel'].shape == (1, 3, 1)


def test_pairs_are_shuffled_by_the_draw(tags):
    pairs = TagPairs(TagInputs(sounds(2).numpy(), 'features'), [[0, 1, 2, 3, 4, 5], [3]], tags)
    def orders(seed):
        rng, found = np.random.default_rng(seed), []
        for _ in range(8):
            batch = pairs.batch([0, 1], rng)
            found.append(tuple(tags.read(tags.tokenizer.decode(batch['input_ids'][0][len(tags.begin):],
                                                               skip_special_tokens=True)).places))
        return found
    assert orders(0) == orders(0) != orders(1) and len(set(orders(0))) > 4
    assert all(sorted(o) == [0, 1, 2, 3, 4, 5] for o in orders(0)) and pairs.places == [[0, 1, 2, 3, 4, 5], [3]]
    assert len(pairs) == 2


def test_only_labels_and_end_are_to_be_predicted(tags):
    batch, begin = tags.batch([[0, 3], [4]]), len(tags.begin)
    for row, places in enumerate([[0, 3], [4]]):
        written = tags.write(places) + tags.end
        assert (batch['labels'][row, :begin] == -100).all()
        assert batch['labels'][row, begin:begin + len(written)].tolist() == written
        assert (batch['labels'][row, begin + len(written):] == -100).all()
        assert batch['attention_mask'][row].sum() == begin + len(written)
        assert batch['input_ids'][row, :begin + len(written)].tolist() == tags.begin + written


def test_lengths_have_to_agree(tags):
    inputs = TagInputs(sounds(3).numpy(), 'features')
    with pytest.raises(LogocentricError, match='3 sounds, and tags of 2'): TagPairs(inputs, [[0], [1]], tags)
    with pytest.raises(LogocentricError, match='3 sounds and 2 rows of targets'): TargetPairs(inputs, np.zeros((2, 6)))
    batch = TargetPairs(inputs, multi_hot([[0], [], [1, 5]], 6)).batch([2, 0], np.random.default_rng(0))
    assert batch['targets'].tolist() == [[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert batch['targets'].dtype == torch.float32 and batch['id'] == ['2', '0']


# --- the direct classifier

@pytest.fixture(scope='module', params=[0, 8])
def direct(request, tokenizer):
    model = captioner(tokenizer)
    model.prefix.mean.normal_(); model.prefix.std.uniform_(.5, 2)
    torch.manual_seed(1)
    return model, SigmoidTagger.from_captioner(model, LABELS, request.param).eval()


def test_sigmoids_have_the_captioners_features(direct):
    model, tagger = direct
    logmel = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 64, 32))).float()
    mask = torch.arange(64)[None] < torch.tensor([[64], [32]])
    with torch.no_grad():
        features = model.encode(logmel, mask)
        assert features.shape == (2, FEATURES) and torch.equal(features, tagger.encode(logmel, mask))
        logits = tagger(logmel=logmel, frame_mask=mask).logits
        assert torch.equal(logits, tagger(features=features).logits) and torch.equal(logits, tagger.log_odds(features))
        assert logits.shape == (2, len(LABELS))
    assert torch.equal(tagger.mean, model.prefix.mean) and torch.equal(tagger.std, model.prefix.std)
    assert tagger(features=features).loss is None


def test_loss_is_sklearns_summed_over_labels(direct):
    _, tagger = direct
    truth = np.random.default_rng(0).random((7, len(LABELS))) < .4
    with torch.no_grad(): out = tagger(features=sounds(7), targets=torch.from_numpy(truth).float())
    by_label = [log_loss(y, p, labels=[False, True]) for y, p in zip(truth.T, out.logits.sigmoid().double().numpy().T)]
    assert out.loss.item() == pytest.approx(sum(by_label), rel=1e-4)


def test_sigmoids_are_saved_with_their_tags(direct, tmp_path):
    _, tagger = direct
    tagger.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again, report = SigmoidTagger.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert again.config.tags == LABELS and again.config.lags == [1] and again.config.hidden == tagger.config.hidden
    with torch.no_grad(): assert torch.equal(again.eval().log_odds(sounds(3)), tagger.log_odds(sounds(3)))


def test_sigmoids_refuse_features_of_another_encoder(direct):
    with pytest.raises(RuntimeError, match='size'): direct[1].log_odds(sounds(2)[:, :-1])
