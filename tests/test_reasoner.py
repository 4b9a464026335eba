"The scorer is exact, whatever the model, the tokenizer, the batch."
import itertools, logging, math, warnings
import numpy as np, pandas as pd, pytest, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel,
                          GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM,
                          MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast)
from logocentric.core import LogocentricError, shipped_path
from logocentric.memory import OutOfMemory
from logocentric.fetch import fetched_folder
from logocentric.reasoner.facts import genres
from logocentric.reasoner.generation import answer_part, named_label
from logocentric.reasoner.knowledge import knowledge, train_tokenizer
from logocentric.reasoner.labels import Trie, collisions, label_report, label_tokens, label_words, open_end
from logocentric.reasoner.model import CONTENT_FREE, PROMPTS, RULES, LabelWarning, Reasoner, domain_premise, fill
from logocentric.reasoner.scoring import shared_tokens, tf32
from logocentric.reasoner.training import (REASONER_SIZES, KnowledgeDataset, ReasonerSize, SelectedTokenLoss,
                                           train_reasoner)

DESCRIPTIONS = ['slow and weary, with a wailing harmonica.', 'calm',
                'bright and fast, with a kick on every beat, octaves in the bass, strings; the mood is happy']
pytestmark = pytest.mark.filterwarnings('ignore::logocentric.reasoner.model.LabelWarning')


@pytest.fixture(scope='module')
def sentences(): return knowledge(3000, seed=0)


@pytest.fixture(scope='module')
def tokenizer(sentences): return train_tokenizer([s.text for s in sentences], 1200)


@pytest.fixture(scope='module')
def audioset(shared):
    return pd.read_csv(shared('audioset', 'class_labels_indices.csv')).display_name.str.lower().tolist()


SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=.3,
            pad_token_id=0, bos_token_id=0, eos_token_id=0)
ROTARY = dict(SIZE, num_key_value_heads=2, head_dim=8, max_position_embeddings=256)
KINDS = dict(
    gpt2=lambda v: GPT2LMHeadModel(GPT2Config(
        vocab_size=v, n_embd=32, n_layer=2, n_head=2, initializer_range=.3, bos_token_id=0, eos_token_id=0)),
    gpt_neo=lambda v: GPTNeoForCausalLM(GPTNeoConfig(
        vocab_size=v, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
        window_size=8, max_position_embeddings=256, initializer_range=.3, bos_token_id=0, eos_token_id=0)),
    llama=lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **ROTARY)),
    eager=lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, attn_implementation='eager', **ROTARY)),
    gemma2=lambda v: Gemma2ForCausalLM(Gemma2Config(                          # logits that are no linear map
        vocab_size=v, sliding_window=512, final_logit_softcapping=2., **ROTARY)),
    mistral=lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=40, **ROTARY)),
    bloom=lambda v: BloomForCausalLM(BloomConfig(
        vocab_size=v, hidden_size=32, n_layer=2, n_head=2, initializer_range=.3)),
    mamba=lambda v: MambaForCausalLM(MambaConfig(
        vocab_size=v, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=.3)))

PLAIN = ('mistral', 'bloom', 'mamba') # cannot be packed behind prompts of this length


def tiny(kind, vocabulary):
    torch.manual_seed(0)
    return KINDS[kind](vocabulary).eval()


def brute_force(model, tokenizer, description, label, prompt='tables'):
    "One sequence at a time, no padding, no sharing: log-probability of every token of a label."
    p, ids = tokenizer(fill(prompt, description)).input_ids, tokenizer(' ' + label).input_ids
    with torch.no_grad(): logp = model(torch.tensor([p + ids]), use_cache=False).logits[0].log_softmax(-1)
    return [logp[len(p) + i - 1, t].item() for i, t in enumerate(ids)]


def as_long_as(tokenizer, tokens):
    "A description whose prompt has this many tokens."
    length = lambda description: len(tokenizer(fill('tables', description)).input_ids)
    room = tokens - length('')
    return next(d for n in range(room//2, room + 2) if length(d := 'slow' + ' slow'*n) == tokens)


def table(model, tokenizer, labels, prompt='tables', descriptions=DESCRIPTIONS, reduce=sum):
    return np.array([[reduce(brute_force(model, tokenizer, d, l, prompt)) for l in labels] for d in descriptions])


def assert_exact(kind, tokenizer, labels):
    model = tiny(kind, len(tokenizer))
    reasoner = Reasoner(model, tokenizer)
    for prompt in PROMPTS:
        expected = table(model, tokenizer, labels, prompt)
        for size in (1, 3, 64):
            scores = reasoner.reason(DESCRIPTIONS, labels, prompt, 'sum', batch_size=size)
            np.testing.assert_allclose(scores.values, expected, atol=1e-4)
    assert all(reasoner._tried.values()) == (kind not in PLAIN)


# --- exact

@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_sum_equals_brute_force(kind, tokenizer):
    labels = genres()
    assert sum(len(t) > 1 for t in label_tokens(tokenizer, labels)) >= 3
    assert_exact(kind, tokenizer, labels)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_all_of_audioset_equals_brute_force(kind, gpt2_tokenizer, audioset):
    "527 labels with GPT-2's tokenizer, of 1 to 12 tokens, 28 of them the beginning of others."
    tokens = label_tokens(gpt2_tokenizer, audioset)
    assert len(audioset) == 527 and gpt2_tokenizer.pad_token is None
    assert (sum(map(len, tokens)), len(Trie(tokens).inner)) == (1350, 734)
    model, prompt = tiny(kind, len(gpt2_tokenizer)), 'There is {description}. One hears'
    reasoner = Reasoner(model, gpt2_tokenizer)
    found = reasoner.reason(DESCRIPTIONS, audioset, prompt, 'sum').values
    assert all(reasoner._tried.values()), 'the packed way is what is tested'
    before = gpt2_tokenizer(fill(prompt, DESCRIPTIONS[2])).input_ids
    for n in set(map(len, tokens)): # rows of one length need no padding
        same = [i for i, ids in enumerate(tokens) if len(ids) == n]
        whole = torch.tensor([before + tokens[i] for i in same])
        with torch.no_grad(): logits = model(whole, logits_to_keep=n + 1).logits
        for i, logp in zip(same, logits.log_softmax(-1)):
            by_hand = sum(logp[k, t].item() for k, t in enumerate(tokens[i]))
            assert math.isclose(by_hand, found[2, i], abs_tol=1e-4), audioset[i]


@pytest.mark.parametrize('kind', ['llama', 'eager', 'gemma2', 'mistral', 'bloom', 'mamba'])
@pytest.mark.filterwarnings('ignore:.*cannot read labels packed')
def test_other_models_equal_brute_force(kind, tokenizer):
    "Rotary positions with shared keys, eager attention, capped logits; and those that cannot be packed."
    assert_exact(kind, tokenizer, ['hip-hop', 'rock', 'rock and roll', 'rock and blues', 'jazz', 'drum machine'])


def test_what_cannot_be_packed_is_said_once(tokenizer):
    reasoner = Reasoner(tiny('bloom', len(tokenizer)), tokenizer)
    with pytest.warns(UserWarning, match='exact but slower'): reasoner.reason('calm', ['jazz', 'rock'])
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.simplefilter('ignore', LabelWarning)
        reasoner.reason('slow', ['jazz', 'rock'])


def test_a_window_counts_only_where_it_is_exceeded(tokenizer):
    "Prompts within Mistral's window are packed, longer ones are read whole."
    model, labels, long = tiny('mistral', len(tokenizer)), ['rock', 'rock and roll', 'hip-hop'], 'slow and weary, '*12
    reasoner = Reasoner(model, tokenizer)
    with pytest.warns(UserWarning, match='MistralForCausalLM'):
        found = reasoner.reason(['calm', long], labels, rule='sum', batch_size=1).values
    np.testing.assert_allclose(found, table(model, tokenizer, labels, descriptions=['calm', long]), atol=1e-4)
    assert reasoner._tried[32] and not all(reasoner._tried.values())


def test_out_of_memory_is_not_taken_for_a_model_that_cannot(tokenizer, monkeypatch):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    def full(*args): raise torch.OutOfMemoryError('full')
    monkeypatch.setattr(reasoner, '_packed', full)
    with pytest.raises(OutOfMemory, match='one of the prompts'): reasoner.reason('calm', ['jazz'])


def test_prompts_that_do_not_fit_are_read_in_halves(tokenizer, monkeypatch):
    "With room for three prompts, all scores are those of a large device."
    reasoner, read = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer), []
    said = ['calm', 'loud', 'slow and weary', 'a flute', 'a choir', 'drums, no bass', 'fast']
    labels = ['jazz', 'rock and roll']
    at_once, packed = reasoner.reason(said, labels, rule='sum').values, reasoner._packed
    def small(prompts, trie, size=None):
        if len(prompts) > 3: raise torch.OutOfMemoryError('full')
        read.append(len(prompts))
        return packed(prompts, trie, size)
    monkeypatch.setattr(reasoner, '_packed', small)
    with pytest.warns(UserWarning, match='7 prompts at a time'):
        halves = reasoner.reason(said, labels, rule='sum').values
    np.testing.assert_allclose(halves, at_once, atol=1e-4)
    assert read == [3, 2, 2]


def test_tf32_is_for_as_long_as_a_gpu_reads():
    before = torch.get_float32_matmul_precision()
    for kind, precision in dict(cuda='high', cpu='highest').items():
        with pytest.raises(ValueError), tf32(torch.device(kind)):
            assert torch.get_float32_matmul_precision() == precision
            raise ValueError
        assert torch.get_float32_matmul_precision() == before == 'highest'


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_any_chunks(kind, tokenizer):
    "However the tree is cut, and where a chunk begins inside a branch."
    model = tiny(kind, len(tokenizer))
    labels = ['rock', 'rock and roll and rock and blues', 'rock and roll and jazz', 'rock and pop', 'blues and jazz',
              'hip-hop', 'drum machine']
    trie = Trie(label_tokens(tokenizer, labels))
    prompts = [tokenizer(fill('tables', d)).input_ids for d in DESCRIPTIONS]
    expected = table(model, tokenizer, labels)
    for size in (1, 2, 3, 5, 1000):
        assert set(sum(trie.chunks(size), [])) == set(trie.inner)
        found = Reasoner(model, tokenizer)._packed(prompts, trie, size)[:, trie.paths].sum(-1)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_more_places_than_positions(tokenizer):
    "Prompt and nodes together are more than GPT-Neo's buffer holds; each position exists."
    model = tiny('gpt_neo', len(tokenizer))
    parts = ('rock', 'jazz', 'slow'), ('and', 'with', 'of'), ('bass', 'drums', 'a kick', 'strings')
    labels = list(map(' '.join, itertools.product(*parts)))
    positions = model.config.max_position_embeddings
    longest = max(map(len, label_tokens(tokenizer, labels)))
    long = as_long_as(tokenizer, positions - longest + 1)
    before = len(tokenizer(fill('tables', long)).input_ids)
    assert before + len(Trie(label_tokens(tokenizer, labels)).inner) > positions >= before + longest - 1
    reasoner, buffers = Reasoner(model, tokenizer), [b.clone() for _, b in model.named_buffers()]
    found = reasoner.reason(long, labels, rule='sum').values
    p = tokenizer(fill('tables', long)).input_ids
    for label, score in zip(labels, found[0]):
        ids = label_tokens(tokenizer, [label])[0]
        with torch.no_grad(): logp = model(torch.tensor([p + ids[:-1]])).logits[0, -len(ids):].log_softmax(-1)
        assert math.isclose(sum(logp[i, t].item() for i, t in enumerate(ids)), score, abs_tol=1e-4)
    assert all(torch.equal(a, b) for a, (_, b) in zip(buffers, model.named_buffers())), 'the model is as it was'


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
@pytest.mark.parametrize('rule', [r for r in RULES if RULES[r].baseline != 'batch'])
def test_neighbours_do_not_matter(kind, rule, tokenizer):
    reasoner = Reasoner(tiny(kind, len(tokenizer)), tokenizer)
    asked = [*DESCRIPTIONS, 'calm']
    together = reasoner.reason(asked, genres(), rule=rule).values
    alone = np.concatenate([reasoner.reason(d, genres(), rule=rule).values for d in asked])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo', 'llama'])
def test_half_precision(kind, tokenizer):
    "A rounded model answers roughly the same, still packed, in single precision."
    labels = ['hip-hop', 'rock', 'rock and roll', 'jazz']
    model = tiny(kind, len(tokenizer))
    full = Reasoner(model, tokenizer).reason(DESCRIPTIONS, labels, rule='mean').values
    half = Reasoner(model.to(torch.bfloat16), tokenizer)
    found = half.reason(DESCRIPTIONS, labels, rule='mean').values
    assert found.dtype == np.float32 and all(half._tried.values())
    assert np.abs(found - full).mean() < .1*full.std()


def test_float16_is_refused(tokenizer):
    model = tiny('gpt_neo', len(tokenizer)).half()
    with pytest.raises(LogocentricError, match='dtype=torch.bfloat16'): Reasoner(model, tokenizer)


# --- rules

def test_first_token_is_the_highest_label_logit(tokenizer):
    model = tiny('gpt_neo', len(tokenizer))
    scores = Reasoner(model, tokenizer).reason(DESCRIPTIONS, genres(), rule='first_token')
    first = [t[0] for t in label_tokens(tokenizer, genres())]
    for d, answer in zip(DESCRIPTIONS, scores.predictions):
        with torch.no_grad(): logits = model(torch.tensor([tokenizer(fill('tables', d)).input_ids])).logits[0, -1]
        assert genres()[logits[first].argmax()] == answer


def softmax(x): return np.exp(x)/np.exp(x).sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def asked(tokenizer):
    "A model, some labels, and brute force."
    model, labels = tiny('gpt_neo', len(tokenizer)), ['hip-hop', 'rock', 'jazz', 'drum machine']
    by_hand = lambda ds, prompt='tables', reduce=sum: table(model, tokenizer, labels, prompt, ds, reduce)
    return Reasoner(model, tokenizer), labels, by_hand


def test_first_token_and_mean_by_hand(asked):
    reasoner, labels, by_hand = asked
    for rule, reduce in dict(first_token=lambda x: x[0], mean=np.mean).items():
        found = reasoner.reason(DESCRIPTIONS, labels, rule=rule).values
        np.testing.assert_allclose(found, by_hand(DESCRIPTIONS, reduce=reduce), atol=1e-4)


def test_pmi_by_hand(asked):
    reasoner, labels, by_hand = asked
    premise = 'So its genre is'
    assert domain_premise('tables') == premise
    expected = by_hand(DESCRIPTIONS) - by_hand([premise], '{description}')
    np.testing.assert_allclose(reasoner.reason(DESCRIPTIONS, labels, rule='pmi').values, expected, atol=1e-4)
    given = reasoner.reason(DESCRIPTIONS, labels, rule='pmi', premise='One hears')
    np.testing.assert_allclose(given.values, by_hand(DESCRIPTIONS) - by_hand(['One hears'], '{description}'), atol=1e-4)
    assert reasoner.reason(DESCRIPTIONS, labels, '{description}: a piece of', 'pmi').values.shape == (3, 4)


@pytest.mark.parametrize('texts', [None, ['noise'], DESCRIPTIONS])
def test_calibrated_by_hand(asked, texts):
    reasoner, labels, by_hand = asked
    p, without = softmax(by_hand(DESCRIPTIONS)), softmax(by_hand(CONTENT_FREE if texts is None else texts)).mean(0)
    scores = reasoner.reason(DESCRIPTIONS, labels, rule='calibrated', content_free=texts)
    np.testing.assert_allclose(np.exp(scores.values), p/without, rtol=1e-3)
    weighted = p/without
    np.testing.assert_allclose(scores.probabilities, weighted/weighted.sum(1, keepdims=True), atol=1e-4)


def test_calibration_by_its_own_text_is_flat(asked):
    reasoner, labels, _ = asked
    assert np.ptp(reasoner.reason('calm', labels, rule='calibrated', content_free='calm').values) < 1e-4
    assert np.abs(reasoner.reason('calm', labels, rule='pmi', premise=fill('tables', 'calm')).values).max() < 1e-4


def test_per_character_by_hand(asked):
    reasoner, labels, by_hand = asked
    found = reasoner.reason(DESCRIPTIONS, labels, rule='per_character').values
    np.testing.assert_allclose(found, by_hand(DESCRIPTIONS)/np.array([7, 4, 4, 12]), atol=1e-4)
    several = reasoner.reason(DESCRIPTIONS, {'a': ['hip-hop', 'rock'], 'b': 'jazz'}, rule='per_character').values
    np.testing.assert_allclose(several, np.stack([found[:, :2].max(1), found[:, 2]], 1), atol=1e-4)


def test_batch_calibration_by_hand(asked):
    "Minus the mean over the clips of the log-probabilities."
    reasoner, labels, by_hand = asked
    scores = reasoner.reason(DESCRIPTIONS, labels, rule='batch_calibrated')
    expected = by_hand(DESCRIPTIONS)
    np.testing.assert_allclose(scores.values, expected - expected.mean(0), atol=1e-4)
    shares = softmax(expected)  # the same answers, whether whole probabilities or shares among the labels are asked
    centred = np.log(shares) - np.log(shares).mean(0)
    np.testing.assert_allclose(scores.probabilities, softmax(centred), atol=1e-4)
    order = [2, 0, 1]
    again = reasoner.reason([DESCRIPTIONS[i] for i in order], labels, rule='batch_calibrated', batch_size=1).values
    np.testing.assert_allclose(again, scores.values[order], atol=1e-4)


def test_batch_calibration_needs_several_descriptions(asked):
    reasoner, labels, _ = asked
    with pytest.raises(LogocentricError, match='ask about several'):
        reasoner.reason('calm', labels, rule='batch_calibrated')
    with pytest.raises(LogocentricError, match='ask about several'): reasoner.prior(labels, rule='batch_calibrated')
    twice = reasoner.reason(['calm', 'calm'], labels, rule='batch_calibrated').values
    np.testing.assert_allclose(twice, 0, atol=1e-4)


def test_premises():
    assert domain_premise('section2.2') == "and what's its genre?"
    assert domain_premise('A song of this genre: {description}.') == 'A song of this genre: .'
    assert domain_premise('{description}, {description}! It is ') == 'It is'


# --- what prompts share

RULE = 'one of these is right: rock, jazz, hip-hop, drum machine, and no other one. slow and weary, bright and fast: '

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.filterwarnings('ignore:.*cannot read labels packed')
def test_what_prompts_share_is_read_once_and_changes_nothing(kind, tokenizer):
    "A long beginning, prompts of different length, and one (the premise) that lacks the beginning."
    model, labels, prompt = tiny(kind, len(tokenizer)), ['rock', 'rock and roll', 'jazz'], RULE + '{description}. It is'
    reasoner, several = Reasoner(model, tokenizer), [*DESCRIPTIONS, 'loud', 'a flute, calm']
    expected = table(model, tokenizer, labels, prompt, several)
    premise = table(model, tokenizer, labels, '{description}', [domain_premise(prompt)])
    for size in (1, 2, 64):
        found = reasoner.reason(several, labels, prompt, 'pmi', batch_size=size).values
        np.testing.assert_allclose(found, expected - premise, atol=1e-4)
    assert (reasoner._shared, reasoner._shared_cache) == ([], None), 'nothing is kept'


def test_shared_tokens_are_not_read_again(tokenizer, monkeypatch):
    reasoner, read = Reasoner(tiny('llama', len(tokenizer)), tokenizer), []
    forward = reasoner.model.forward
    def counting(input_ids, **kwargs):
        read.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **kwargs)
    ask = lambda: reasoner.reason(DESCRIPTIONS, ['rock', 'jazz'], RULE + '{description}. It is', 'sum', batch_size=1)
    expected = ask().values                              # and tries whether labels can be packed
    monkeypatch.setattr(reasoner.model, 'forward', counting)
    monkeypatch.setattr(reasoner, '_keep', lambda n: {})
    np.testing.assert_allclose(ask().values, expected, atol=1e-5)
    rows = [tokenizer(fill(RULE + '{description}. It is', d)).input_ids for d in DESCRIPTIONS]
    shared = len(shared_tokens(rows))
    assert shared >= 16 and read == [(1, shared), *sorted((1, len(row) - shared) for row in rows)]


def test_shared_tokens():
    rows = [[1, 2, 3, 4, 9], [1, 2, 3, 4, 8, 7], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert shared_tokens(rows, 3) == [1, 2, 3, 4], 'three of four begin so, and go on'
    assert shared_tokens([[1, 2, 3], [1, 2, 3]], 1) == [1, 2], 'something is left to read'
    assert shared_tokens([*rows, [6], *rows], 3) == [1, 2, 3], 'an outlier'
    assert shared_tokens(rows, 5) == shared_tokens(rows[:1], 1) == shared_tokens([], 1) == []


# --- what the model writes

def greedy(model, tokenizer, prompt, n):
    "The likeliest token, n times, each by a whole pass."
    row = before = tokenizer(prompt).input_ids
    for _ in range(n):
        with torch.no_grad(): row = row + [model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax().item()]
        if row[-1] == tokenizer.eos_token_id: break
    return tokenizer.decode(row[len(before):], skip_special_tokens=True)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo', 'llama', 'gemma2', 'bloom'])
def test_what_is_written_is_the_greedy_continuation(kind, tokenizer):
    model = tiny(kind, len(tokenizer))
    model.generation_config.update(do_sample=True, temperature=5., top_k=3, repetition_penalty=2.) # is left aside
    reasoner, prompts = Reasoner(model, tokenizer), [fill('section2.2', d) for d in DESCRIPTIONS]
    expected = [greedy(model, tokenizer, p, 12) for p in prompts]
    for size in (1, 2, 64):
        assert reasoner.write([tokenizer(p).input_ids for p in prompts], 12, size) == expected


def test_an_answer_is_the_first_label_that_is_named():
    labels = {'rock': ['rock'], 'rock and roll': ['rock and roll', "rock'n'roll"], 'hip-hop': ['hip-hop', 'rap'],
              'r&b': ['r&b'], 'metal': ['metal'], 'heavy metal': ['heavy metal']}
    for answer, label in {
            'It is Rock.': 'rock', 'ROCK AND ROLL': 'rock and roll', "rock'n'roll!": 'rock and roll',
            'rocky, rockabilly': None, 'hip hop or rock': 'hip-hop', 'hip\nhop': 'hip-hop', 'trap': None, 'R&B': 'r&b',
            'some heavy metal': 'heavy metal', 'heavy, metal': 'metal', 'metal or heavy metal': 'metal',
            'metal_rock': None, 'rock-and-roll': 'rock and roll', '': None, 'not metal, rock': 'metal'}.items():
        assert named_label(answer, labels) == label, answer


def test_an_answer_ends_where_something_new_begins():
    assert answer_part(' jazz.\nQ: rock?') == answer_part('\n\n jazz. \n\nrock') == 'jazz.'
    assert answer_part('') == answer_part(' \n') == ''


def test_generate_is_a_rule(tokenizer, monkeypatch):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    monkeypatch.setattr(reasoner, 'write', lambda rows, n, size: [' Jazz.\nrock', ' none of them', ' rap, then rock'])
    found = reasoner.reason(DESCRIPTIONS, {'rock': 'rock', 'Jazz': 'jazz', 'hip-hop': ['rap']}, rule='generate')
    assert found.labels == ['rock', 'jazz', 'hip-hop'] and found.predictions == ['jazz', None, 'hip-hop']
    assert found.texts == ['Jazz.', 'none of them', 'rap, then rock'] and found.silent == pytest.approx(1/3)
    np.testing.assert_array_equal(found.values, np.where([[0, 1, 0], [0, 0, 0], [0, 0, 1]], 0, -np.inf))
    np.testing.assert_array_equal(found.probabilities, [[0, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert list(found.frame.columns) == found.labels


def test_generate_takes_its_words_from_the_model(tokenizer):
    model = tiny('gpt_neo', len(tokenizer))
    written = Reasoner(model, tokenizer).reason(DESCRIPTIONS, genres(), rule='generate', tokens=5)
    assert written.texts == [answer_part(greedy(model, tokenizer, fill('tables', d), 5)) for d in DESCRIPTIONS]
    none = Reasoner(model, tokenizer).reason([], genres(), rule='generate')
    assert none.values.shape == (0, len(genres())) and none.predictions == [] and none.silent == 0


# --- a model that was really pretrained

@pytest.fixture(scope='module')
def smollm2():
    if not fetched_folder('smollm2'): pytest.skip('SmolLM2 is not here: `logocentric get smollm2` fetches it')
    return Reasoner.from_pretrained('smollm2')


@pytest.mark.slow
def test_smollm2_equals_brute_force(smollm2):
    "Grouped queries, rotary positions, 49,152 tokens; labels of one to four tokens, a shared beginning."
    labels, listed = ['rock', 'rock and roll', 'hip-hop', 'jazz', 'drum and bass'], RULE + '{description}. Its genre is'
    assert smollm2.model.config.num_key_value_heads < smollm2.model.config.num_attention_heads
    for prompt in ('tables', listed):
        found = smollm2.reason(DESCRIPTIONS, labels, prompt, 'sum').values
        np.testing.assert_allclose(found, table(smollm2.model, smollm2.tokenizer, labels, prompt), atol=2e-3)
    assert all(smollm2._tried.values())


@pytest.mark.slow
def test_smollm2_knows_what_the_web_knows(smollm2):
    asked = 'The capital of {description} is'
    found = smollm2.reason(['France', 'Italy', 'Japan'], ['paris', 'rome', 'tokyo'], asked, 'generate')
    assert found.predictions == ['paris', 'rome', 'tokyo'] and found.silent == 0


# --- labels

def test_aliases(tokenizer):
    "Any of the texts may be said; none is counted twice."
    model = tiny('gpt2', len(tokenizer))
    reasoner, p = Reasoner(model, tokenizer), lambda text: table(model, tokenizer, [text])[:, 0]
    labels = {'Hip-hop': ['rap', 'Music with a kick'], 'rock': ['rock', 'rock and roll', 'metal', 'Metal']}
    scores = reasoner.reason(DESCRIPTIONS, labels, rule='sum')
    expected = [np.logaddexp(p('rap'), p('music with a kick')), np.logaddexp(p('rock'), p('metal'))]
    assert scores.labels == ['hip-hop', 'rock']
    np.testing.assert_allclose(scores.values, np.stack(expected, 1), atol=1e-4)
    best = lambda *texts: np.max([p(t)/len(label_tokens(tokenizer, [t])[0]) for t in texts], 0)
    expected = [best('rap', 'music with a kick'), best('rock', 'rock and roll', 'metal')]
    found = reasoner.reason(DESCRIPTIONS, labels, rule='mean').values
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-4)
    first = reasoner.reason(DESCRIPTIONS, {'a': ['rock', 'rock and roll']}, rule='first_token').values
    np.testing.assert_allclose(first, reasoner.reason(DESCRIPTIONS, ['rock']).values, atol=1e-5)
    alias, jazz = (reasoner.reason(DESCRIPTIONS, l).values for l in ({'rock': 'jazz'}, ['jazz']))
    np.testing.assert_allclose(alias, jazz, atol=1e-5)


def test_prefixes_and_end(tokenizer):
    model, labels = tiny('gpt_neo', len(tokenizer)), ['rock', 'rock and roll']
    reasoner = Reasoner(model, tokenizer)
    plain = reasoner.reason(DESCRIPTIONS, labels, rule='sum').values
    assert (plain[:, 0] > plain[:, 1]).all()
    with pytest.warns(LabelWarning, match="'rock' begins 'rock and roll'"): reasoner.reason('calm', labels, rule='sum')
    closed = reasoner.reason(DESCRIPTIONS, labels, rule='sum', end='.').values
    np.testing.assert_allclose(closed, table(model, tokenizer, ['rock.', 'rock and roll.']), atol=1e-4)


def said(reasoner, labels, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        reasoner.reason('calm', labels, **options)
    assert all(w.category is LabelWarning and w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


def test_warnings_come_once_a_kind(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    many = [f'{a} {b}' for a in ('jazz', 'rock', 'calm', 'slow', 'fast') for b in ('bass', 'kick')]
    several, same = said(reasoner, many)
    assert '10 of 10 labels' in several and 'and 7 more' in several and 'same token' in same and 'and 2 more' in same
    lengths, begins = said(reasoner, ['jazz', *many], rule='sum')
    assert '1 to ' in lengths and "'jazz' begins 'jazz bass'" in begins
    assert said(reasoner, ['jazz', 'rock']) == said(reasoner, ['jazz', 'rock'], rule='sum') == []
    assert not any(said(reasoner, many, rule=rule) for rule in ('mean', 'per_character', 'pmi', 'calibrated'))
    shared = said(reasoner, {'loud': ['rock', 'rock kick'], 'soft': 'jazz'})
    assert [w[:11] for w in shared] == ['first_token'], 'texts of one label may share'


def test_collisions_are_said(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    with pytest.warns(LabelWarning, match='same token'): reasoner.reason(['calm'], ['jazz', 'jazz trio'])
    assert collisions([[1], [1, 2], [3]], ['a', 'b', 'c']) == {1: ['a', 'b']}
    assert label_words('Jazz') == ['jazz']


def test_report(tokenizer):
    report = label_report(tokenizer, {'rock': ['rock'], 'rnr': ['rock and roll', 'oldies'], 'jazz': ['jazz']})
    assert list(report.columns) == ['label', 'text', 'tokens', 'n', 'shares_first_token_with', 'is_prefix_of']
    rock, roll = report.iloc[0], report.iloc[1]
    assert rock.n == 1 and rock.is_prefix_of == ['rock and roll'] and roll.shares_first_token_with == ['rock']
    assert roll.tokens.split(' | ')[0] == ' rock' and report.iloc[3].is_prefix_of == []


def test_spaces_of_other_tokenizers(metaspace):
    tokenizer = metaspace
    whole = tokenizer('So its genre is hip-hop', add_special_tokens=False).input_ids
    ids = label_tokens(tokenizer, ['hip-hop'])[0]
    assert whole == tokenizer('So its genre is', add_special_tokens=False).input_ids + ids
    model = tiny('llama', len(tokenizer))
    before = tokenizer(fill('tables', 'calm')).input_ids
    assert (before[0], before[-1]) == (0, 1)
    with torch.no_grad(): logp = model(torch.tensor([before[:-1] + ids])).logits[0].log_softmax(-1)
    expected = sum(logp[len(before) - 2 + i, t].item() for i, t in enumerate(ids))
    found = Reasoner(model, tokenizer).reason('calm', ['hip-hop'], rule='sum').values.item()
    assert math.isclose(found, expected, abs_tol=1e-4)


JOINED = ['So its genre is "', 'Genre (', 'Genre:\n', 'Genre:\n\n', 'Genre:\u00a0', '{"genre":"', 'it is “', "genre='",
          'Is it [', 'Its «', 'Genre:\t', '"']
PARTED = ['So its genre is', 'Genre:', "Q: What's its genre?", 'Its name is "hit", its genre', 'They call it "calm"',
          "the players'", '<category>', 'He says (calm)', 'genre –', '']

@pytest.fixture(scope='module')
def metaspace(sentences):
    "A tokenizer that puts a space and a begin-of-text token of its own before everything, as Llama's does."
    inner = Tokenizer(models.BPE(unk_token='<s>'))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always', split=True)
    inner.decoder = decoders.Metaspace(prepend_scheme='always', split=True)
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=['<s>', '</s>'], show_progress=False,
                                  initial_alphabet=list('"(\n\t\u00a0“«[\'{}:=)<>–?,.'))
    inner.train_from_iterator((s.text for s in sentences), trainer)
    inner.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token='<s>', eos_token='</s>')


@pytest.fixture(scope='module')
def shipped_tokenizer(): return Reasoner.from_pretrained(shipped_path('reasoner')).tokenizer


@pytest.fixture(scope='module', params=['tokenizer', 'metaspace', 'gpt2_tokenizer', 'shipped_tokenizer'])
def some_tokenizer(request): return request.getfixturevalue(request.param)


@pytest.mark.parametrize('prompt', JOINED + PARTED)
def test_a_space_parts_label_and_prompt_unless_the_prompt_is_open(some_tokenizer, prompt):
    "Prompt and label, decoded together, are the text that would be printed."
    gap = ' ' if prompt in PARTED else ''
    assert (open_end(prompt) == '') == bool(gap)
    plain = lambda text: some_tokenizer(text, add_special_tokens=False).input_ids
    decoded = lambda ids: some_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    for label, ids in zip(['hip-hop', 'jazz'], label_tokens(some_tokenizer, ['hip-hop', 'jazz'], prompt=prompt)):
        before = plain(f'x {prompt}')
        assert decoded(before + ids) == decoded(before) + gap + label
        if gap: assert ids == label_tokens(some_tokenizer, [label])[0]
        elif plain(f'x {prompt}{label}')[:len(before)] == before: assert before + ids == plain(f'x {prompt}{label}')


@pytest.mark.parametrize('prompt', ['{description}. So its genre is "', 'Genre of something {description}:\n',
                                    '({description}) ('])
def test_labels_behind_an_open_prompt_are_scored_exactly(tokenizer, prompt):
    model, labels = tiny('gpt_neo', len(tokenizer)), ['jazz', 'rock', 'rock and roll']
    def brute(d, label):
        p, ids = (tokenizer(t).input_ids for t in (fill(prompt, d), label))
        with torch.no_grad(): logp = model(torch.tensor([p + ids])).logits[0].log_softmax(-1)
        return sum(logp[len(p) + i - 1, t].item() for i, t in enumerate(ids))
    expected = np.array([[brute(d, l) for l in labels] for d in DESCRIPTIONS])
    found = Reasoner(model, tokenizer).reason(DESCRIPTIONS, labels, prompt, 'sum').values
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_prompts_with_and_without_a_space_may_be_mixed(tokenizer):
    "The premise ends otherwise than the prompt, and descriptions end a template in two ways."
    reasoner, labels = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer), ['jazz', 'rock', 'rock and roll']
    asked = reasoner.reason(DESCRIPTIONS, labels, 'It is {description}: "', 'sum').values
    premise = reasoner.prior(labels, 'So it is{description}', 'sum').values
    for said in ('So it is', 'So it is  '):
        found = reasoner.reason(DESCRIPTIONS, labels, 'It is {description}: "', 'pmi', premise=said).values
        np.testing.assert_allclose(found, asked - premise, atol=1e-4)
    ends = ['calm "', 'slow', 'happy (', 'calm', 'fast "']
    mixed = reasoner.reason(ends, labels, '{description}', 'sum').values
    alone = [reasoner.reason(d, labels, '{description}', 'sum').values[0] for d in ends]
    np.testing.assert_allclose(mixed, alone, atol=1e-4)


@pytest.mark.parametrize('rule', RULES)
def test_a_description_gives_up_the_end_of_its_sentence(tokenizer, rule):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    said = ['calm', 'calm.', 'calm!', 'calm?!', 'calm…', ' calm ... ', 'calm .']
    assert {fill('tables', d) for d in said} == {'The music feels calm. So its genre is'}
    assert fill('{description}?', 'loud! calm!') == 'loud! calm?'
    values = reasoner.reason(said, ['rock', 'jazz'], rule=rule).values
    assert (values == values[0]).all()
    with pytest.raises(LogocentricError, match='description 0 is empty'): reasoner.reason('?!', ['rock'])


def test_a_prompt_without_words(tokenizer):
    "Nothing at all is the begin-of-text token alone; without one it is an error."
    model = tiny('gpt2', len(tokenizer))
    with torch.no_grad(): logp = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1].log_softmax(-1)
    found = Reasoner(model, tokenizer).prior(['jazz', 'rock'], '{description}', 'sum').values[0]
    np.testing.assert_allclose(found, logp[[t[0] for t in label_tokens(tokenizer, ['jazz', 'rock'])]], atol=1e-4)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    with pytest.raises(LogocentricError, match='no tokens'): Reasoner(model, without).prior(['jazz'], '{description}')


# --- errors

def test_bad_questions(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    for labels in ([], None, ['rock', ''], ['Rock', 'rock '], {'rock': []}, {'rock': ['']},
                   {'rap': 'rap', 'hip-hop': ['Rap', 'hip-hop']}, {'Rock': 'a', 'rock': 'b'}):
        with pytest.raises(LogocentricError): reasoner.reason(['calm'], labels)
    for options in (dict(prompt='table'), dict(prompt='no slot'), dict(rule='best'), dict(premise='So'),
                    dict(rule='pmi', content_free=['']), dict(rule='calibrated', content_free=[])):
        with pytest.raises(LogocentricError): reasoner.reason(['calm'], ['rock', 'jazz'], **options)
    with pytest.raises(LogocentricError, match='no language model'): Reasoner.from_pretrained('/no/such/folder')
    assert reasoner.reason('calm {really}', ['rock'], prompt='{description}? It is').predictions == ['rock']


def test_empty_descriptions(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    for empty in ('', ' ', '.', None, float('nan')):
        with pytest.raises(LogocentricError, match='description 1 is'): reasoner.reason(['calm', empty], ['rock'])
    for rule in RULES: assert reasoner.reason([], ['rock', 'jazz'], rule=rule).values.shape == (0, 2)
    assert reasoner.reason([], ['rock']).predictions == []
    labels = ['rock', 'jazz']
    by_hand = table(reasoner.model, tokenizer, labels, descriptions=[''])
    np.testing.assert_allclose(reasoner.prior(labels, rule='sum').values, by_hand, atol=1e-4)


def test_long_prompts(tokenizer):
    "What does not fit is named; what just fits is read."
    reasoner, labels = Reasoner(tiny('gpt_neo', len(tokenizer)), tokenizer), ['rock', 'rock and roll']
    too_long = r'description 1 makes a prompt of \d+ tokens; beside these labels the model reads 25\d'
    with pytest.raises(LogocentricError, match=too_long):
        reasoner.reason(['calm', 'calm ' + 'and slow '*2000], labels, rule='sum')
    with pytest.raises(LogocentricError, match='content-free text 0'):
        reasoner.reason('calm', labels, rule='calibrated', content_free=['and slow '*2000])
    with pytest.raises(LogocentricError, match='the premise'):
        reasoner.reason('calm', labels, rule='pmi', premise='and slow '*2000)
    fits = as_long_as(tokenizer, 256)
    assert reasoner.reason(fits, labels).values.shape == (1, 2)
    with pytest.raises(LogocentricError, match='256 tokens'): reasoner.reason(fits, labels, rule='sum')


def test_labels_a_tokenizer_cannot_tell_apart():
    words = Tokenizer(models.WordLevel({'<unk>': 0, 'is': 1, 'jazz': 2, 'calm': 3}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    reasoner = Reasoner(tiny('gpt2', 4), PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>'))
    assert reasoner.reason('calm', ['jazz', 'rock'], '{description} is').values.shape == (1, 2)
    with pytest.raises(LogocentricError, match='same tokens'):
        reasoner.reason('calm', ['pop', 'rock'], '{description} is')


def test_no_noise_from_the_model(tokenizer, caplog, monkeypatch):
    "Padding is no reason for a warning of the library's."
    model = tiny('gpt2', len(tokenizer))
    model.config.pad_token_id = 0
    monkeypatch.setattr(logging.getLogger('transformers'), 'propagate', True)
    with caplog.at_level(logging.WARNING, logger='transformers'):
        Reasoner(model, tokenizer).reason(DESCRIPTIONS, ['rock', 'rock and roll'], rule='sum')
    assert not caplog.records


def test_it_is_frozen_and_travels(tokenizer, tmp_path):
    reasoner = Reasoner.from_config('small', tokenizer)
    assert not any(p.requires_grad for p in reasoner.model.parameters()) and not reasoner.model.training
    reasoner.save_pretrained(tmp_path)
    again = Reasoner.from_pretrained(tmp_path)
    one, two = (r.reason(DESCRIPTIONS, genres()).values for r in (reasoner, again))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert reasoner.prior(genres()).values.shape == (1, len(genres()))
    assert np.isclose(reasoner.prior(genres()).probabilities.sum(axis=1).item(), 1)


def test_loss_is_transformers_own(sentences, tokenizer):
    model = Reasoner.from_config('small', tokenizer).model
    batch = KnowledgeDataset(sentences[:256], tokenizer, keep=.2).batch([1, 2], np.random.default_rng(0))
    assert torch.allclose(SelectedTokenLoss(model)(**batch).loss, model(**batch).loss, atol=1e-5)


def test_every_sentence_has_an_answer(sentences, tokenizer):
    "What counts is what the knowledge says is an answer, and none is without."
    answers = {s.text: ''.join(s.text[a:b] for a, b in s.answers).replace(' ', '') for s in sentences}
    for bundle in KnowledgeDataset(sentences, tokenizer, keep=0.).items:
        for ids, answer in bundle:
            assert tokenizer.decode(ids[answer]).replace(' ', '') == answers[tokenizer.decode(ids[:-1])] != ''


def test_training_learns_and_repeats(sentences, tokenizer, tmp_path):
    size = ReasonerSize(32, 2, 25, 5e-3)
    train = lambda folder: train_reasoner(size, sentences, tokenizer, folder, progress=False)
    (a, history), (b, _) = train(None), train(tmp_path)
    assert history.rows[-1]['loss'] < history.rows[0]['loss'] - .5
    for x, y in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(x, y)
    assert (tmp_path/'config.json').exists() and Reasoner.from_pretrained(tmp_path).model.config.hidden_size == 32


def test_sizes_grow():
    widths = [REASONER_SIZES[s].hidden_size for s in ('small', 'medium', 'large')]
    assert widths == sorted(set(widths))
