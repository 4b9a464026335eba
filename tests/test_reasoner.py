"The scorer is exact, whatever the model, the tokenizer, the batch."
import warnings
import numpy as np, pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, GPTNeoConfig, GPTNeoForCausalLM
from logocentric.core import LogocentricError, shared_path
from logocentric.knowledge import genres, knowledge_text, train_tokenizer
from logocentric.reader import SIZES, ChosenLoss, ReasonerSize, Sentences, train_reasoner
from logocentric.reasoner import PROMPTS, Reasoner, collisions, fill, label_tokens, label_words

DESCRIPTIONS = ['slow and weary, with a wailing harmonica.', 'calm', 'bright and fast, with a kick on every beat, octaves in the bass, strings; the mood is happy', '']


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Models of this size are slower on two."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def sentences(): return knowledge_text(3000, seed=0)


@pytest.fixture(scope='module')
def tokenizer(sentences): return train_tokenizer(sentences, 1200)


def tiny(kind, vocabulary):
    torch.manual_seed(0)
    if kind == 'gpt2': return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, initializer_range=.3, bos_token_id=0, eos_token_id=0))
    return GPTNeoForCausalLM(GPTNeoConfig(vocab_size=vocabulary, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                                          window_size=8, max_position_embeddings=256, initializer_range=.3, bos_token_id=0, eos_token_id=0))


def brute_force(model, tokenizer, description, label, prompt):
    "One sequence at a time, no padding, no sharing."
    p, ids = tokenizer(fill(prompt, description)).input_ids, tokenizer(' ' + label).input_ids
    with torch.no_grad(): logp = model(torch.tensor([p + ids])).logits[0].log_softmax(-1)
    return sum(logp[len(p) + i - 1, t].item() for i, t in enumerate(ids))


def assert_exact(model, tokenizer, labels):
    reasoner = Reasoner(model, tokenizer)
    for prompt in PROMPTS:
        expected = np.array([[brute_force(model, tokenizer, d, l, prompt) for l in labels] for d in DESCRIPTIONS])
        for size in (1, 3, 64):
            scores = reasoner.reason(DESCRIPTIONS, labels, prompt, 'sum', batch_size=size)
            np.testing.assert_allclose(scores.values, expected, atol=1e-4)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_sum_equals_brute_force(kind, tokenizer):
    labels = genres()
    assert sum(len(t) > 1 for t in label_tokens(tokenizer, labels)) >= 3
    assert_exact(tiny(kind, len(tokenizer)), tokenizer, labels)


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
def test_sum_with_gpt2s_own_tokenizer(kind):
    folder = shared_path() and shared_path()/'data'/'gpt2_tokenizer'
    if not folder or not (folder/'vocab.bpe').exists(): pytest.skip('no GPT-2 tokenizer beside the checkout')
    gpt2 = GPT2TokenizerFast(vocab=str(folder/'encoder.json'), merges=str(folder/'vocab.bpe'))
    assert gpt2.pad_token is None and len(gpt2(' reggae').input_ids) == 2
    assert_exact(tiny(kind, len(gpt2)), gpt2, ['reggae', 'hip-hop', 'rock', 'drum machine'])


@pytest.mark.parametrize('kind', ['gpt2', 'gpt_neo'])
@pytest.mark.parametrize('rule', ['first_token', 'sum'])
def test_neighbours_do_not_matter(kind, rule, tokenizer):
    reasoner = Reasoner(tiny(kind, len(tokenizer)), tokenizer)
    together = reasoner.reason(DESCRIPTIONS, genres(), rule=rule).values
    alone = np.concatenate([reasoner.reason(d, genres(), rule=rule).values for d in DESCRIPTIONS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_first_token_is_the_highest_label_logit(tokenizer):
    model = tiny('gpt_neo', len(tokenizer))
    scores = Reasoner(model, tokenizer).reason(DESCRIPTIONS, genres(), rule='first_token')
    first = [t[0] for t in label_tokens(tokenizer, genres())]
    for d, answer in zip(DESCRIPTIONS, scores.predictions):
        with torch.no_grad(): logits = model(torch.tensor([tokenizer(fill('tables', d)).input_ids])).logits[0, -1]
        assert genres()[logits[first].argmax()] == answer


def test_bad_questions(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    for labels in ([], ['rock', ''], ['Rock', 'rock ']):
        with pytest.raises(LogocentricError): reasoner.reason(['calm'], labels)
    for options in (dict(prompt='table'), dict(prompt='no slot'), dict(rule='best')):
        with pytest.raises(LogocentricError): reasoner.reason(['calm'], ['rock', 'jazz'], **options)
    with pytest.raises(LogocentricError, match='tokens'): reasoner.reason(['calm ' + 'and slow '*2000], ['rock', 'jazz'])
    with pytest.raises(LogocentricError, match='no language model'): Reasoner.from_pretrained('/no/such/folder')
    assert reasoner.reason([], ['rock']).values.shape == (0, 1)
    assert reasoner.reason('calm {really}', ['rock'], prompt='{description}? It is').predictions == ['rock']


def test_collisions_are_said(tokenizer):
    reasoner = Reasoner(tiny('gpt2', len(tokenizer)), tokenizer)
    with pytest.warns(UserWarning, match='same token'): reasoner.reason(['calm'], ['jazz', 'jazz trio'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        reasoner.reason(['calm'], ['jazz', 'jazz trio'], rule='sum')
    assert collisions([[1], [1, 2], [3]], ['a', 'b', 'c']) == {1: ['a', 'b']}
    assert label_words('Jazz') == ['jazz']


def test_it_is_frozen_and_travels(tokenizer, tmp_path):
    reasoner = Reasoner.from_config('small', tokenizer)
    assert not any(p.requires_grad for p in reasoner.model.parameters()) and not reasoner.model.training
    reasoner.save_pretrained(tmp_path)
    again = Reasoner.from_pretrained(tmp_path)
    np.testing.assert_allclose(reasoner.reason(DESCRIPTIONS, genres()).values, again.reason(DESCRIPTIONS, genres()).values, atol=1e-5)
    assert reasoner.prior(genres()).values.shape == (1, len(genres()))
    assert np.isclose(reasoner.prior(genres()).probabilities.sum(axis=1).item(), 1)


def test_loss_is_transformers_own(sentences, tokenizer):
    model = Reasoner.from_config('small', tokenizer).model
    batch = Sentences(sentences[:256], tokenizer, keep=.2).batch([1, 2], np.random.default_rng(0))
    assert torch.allclose(ChosenLoss(model)(**batch).loss, model(**batch).loss, atol=1e-5)


def test_every_sentence_has_an_answer(sentences, tokenizer):
    data = Sentences(sentences, tokenizer, keep=0.)
    for bundle in data.bundles:
        for ids, answer in bundle: assert tokenizer.decode(ids[answer]).strip() in genres()


def test_training_learns_and_repeats(sentences, tokenizer, tmp_path):
    size = ReasonerSize(32, 2, 60, 5e-3)
    (a, history), (b, _) = (train_reasoner(size, sentences, tokenizer, folder, progress=False) for folder in (None, tmp_path))
    assert history.rows[-1]['loss'] < history.rows[0]['loss'] - .5
    for x, y in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(x, y)
    assert (tmp_path/'config.json').exists() and Reasoner.from_pretrained(tmp_path).model.config.hidden_size == 32


def test_sizes_grow():
    widths = [SIZES[s].hidden_size for s in ('small', 'medium', 'large')]
    assert widths == sorted(set(widths))
