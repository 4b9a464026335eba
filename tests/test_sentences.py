"The sentence reasoner: pooling, batches, labels on small encoders; all-MiniLM-L6-v2 against its own library."
import hashlib, warnings
import numpy as np, pytest, torch
from transformers import BertConfig, BertModel, BertTokenizerFast, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel
from logocentric.reasoner import sentences
from logocentric.core import LogocentricError
from logocentric.data.styles import LABELS, corpus_clip
from logocentric.data.descriptions import describe_clip
from logocentric.metrics import accuracy
from logocentric.reasoner.sentences import (LABEL_DESCRIPTIONS, SentenceReasoner, described_labels, label_texts,
                                            mean_pool, minilm_folder)

TEXTS = ['slow and weary, with a wailing harmonica', 'calm',
         'bright and fast, with a kick on every beat, octaves in the bass; happy', 'Calm', '']
WORDS = sorted({*' '.join(TEXTS).lower().replace('.', ' .').replace(',', ' ,').replace(';', ' ;').split(),
                'this', 'music', 'is', 'jazz', 'metal', 'swinging', 'trio'})


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    "A WordPiece tokenizer of a few words, with BERT's special tokens around every text."
    file = tmp_path_factory.mktemp('vocab')/'vocab.txt'
    file.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS]))
    return BertTokenizerFast.from_pretrained(file.parent)


ENCODERS = dict(bert=(BertConfig, BertModel), roberta=(RobertaConfig, RobertaModel), mpnet=(MPNetConfig, MPNetModel))

def tiny(kind, tokenizer, positions=40):
    config, model = ENCODERS[kind]
    torch.manual_seed(0)
    return model(config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=positions,
                        initializer_range=.3))


@pytest.fixture(params=ENCODERS)
def reasoner(request, tokenizer): return SentenceReasoner(tiny(request.param, tokenizer), tokenizer)


@pytest.fixture
def bert(tokenizer): return SentenceReasoner(tiny('bert', tokenizer), tokenizer)


def alone(reasoner, text):
    "One text, asked of `transformers` directly: no padding, no mask."
    ids = torch.tensor([reasoner.tokenizer(text).input_ids])
    with torch.no_grad(): mean = reasoner.model(ids).last_hidden_state[0].mean(0)
    return (mean/mean.norm()).numpy()


# --- embeddings

def test_mean_pool_by_hand():
    states = torch.tensor([[[3., 0.], [3., 8.], [5., 5.]], [[0., -2.], [7., 7.], [7., 7.]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    pooled = mean_pool(states, mask)
    assert torch.allclose(pooled, torch.tensor([[.6, .8], [0., -1.]]))
    assert torch.allclose(pooled, mean_pool(torch.where(states == 7, 1e6, states), mask))


def test_tokenizer_knows_the_words(tokenizer):
    assert tokenizer(TEXTS[1]).input_ids == tokenizer.convert_tokens_to_ids(['[CLS]', 'calm', '[SEP]'])
    assert tokenizer.unk_token_id not in sum(tokenizer(TEXTS).input_ids, [])


@pytest.mark.parametrize('size', [1, 2, 64])
def test_embed_is_the_mean_of_each_text_alone(reasoner, size):
    vectors = reasoner.embed(TEXTS, batch_size=size)
    assert vectors.shape == (len(TEXTS), 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [alone(reasoner, t) for t in TEXTS], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > .01


def test_same_text_same_vector_in_any_company(reasoner):
    first = reasoner.embed(['calm'])[0]
    for company in ([TEXTS[0]], TEXTS, ['calm']*3, [TEXTS[2]]*70):
        np.testing.assert_allclose(reasoner.embed([*company, 'calm'])[-1], first, atol=1e-5)


def test_one_text_and_none(bert):
    assert bert.embed('calm').shape == (1, 32) and bert.embed([]).shape == (0, 32)
    assert bert.reason([], ['jazz', 'metal']).values.shape == (0, 2)


def test_frozen(bert):
    assert not bert.model.training and not any(p.requires_grad for p in bert.model.parameters())


@pytest.mark.parametrize('kind,room', [('bert', 40), ('roberta', 39), ('mpnet', 38)])
def test_long_texts_are_cut_with_a_warning(kind, room, tokenizer):
    reasoner = SentenceReasoner(tiny(kind, tokenizer), tokenizer)
    fits, long = 'calm '*(room - 2), 'calm '*(room - 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        expected = reasoner.embed([fits])
    with pytest.warns(UserWarning, match=f'1 of 2 texts are longer than {room} tokens'):
        np.testing.assert_allclose(reasoner.embed([long, 'calm'])[0], expected[0], atol=1e-5)


def test_max_tokens_is_a_limit_of_its_own(tokenizer):
    short = SentenceReasoner(tiny('bert', tokenizer), tokenizer, max_tokens=5)
    with pytest.warns(UserWarning, match='longer than 5 tokens'): cut = short.embed(['calm bright slow fast happy'])
    np.testing.assert_allclose(cut, short.embed(['calm bright slow']), atol=1e-5)


# --- loading

@pytest.mark.parametrize('kind', ENCODERS)
def test_roundtrip_through_a_folder(kind, tokenizer, tmp_path):
    reasoner = SentenceReasoner(tiny(kind, tokenizer), tokenizer)
    again = SentenceReasoner.from_pretrained(reasoner.save_pretrained(tmp_path/kind), max_tokens=30)
    assert again.model.config.model_type == kind and again.max_tokens == 30
    np.testing.assert_allclose(again.embed(TEXTS), reasoner.embed(TEXTS), atol=1e-6)


def test_no_such_encoder(tmp_path):
    with pytest.raises(LogocentricError, match='no sentence encoder'): SentenceReasoner.from_pretrained(tmp_path)


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(sentences, 'find_spec', lambda name: None)
    monkeypatch.setattr(sentences, 'fetched_folder', lambda name: None)
    with pytest.raises(LogocentricError, match='run `logocentric get minilm`'):
        SentenceReasoner.from_pretrained()


# --- labels and scores

def test_scores_are_scaled_cosines(reasoner):
    scores = reasoner.reason(TEXTS, ['Jazz', 'metal'], scale=7)
    labels = [alone(reasoner, f'this music is {l}.') for l in ('jazz', 'metal')]
    expected = 7*np.array([[alone(reasoner, t) @ l for l in labels] for t in TEXTS])
    np.testing.assert_allclose(scores.values, expected, atol=1e-4)
    assert scores.labels == ['jazz', 'metal'] and set(scores.predictions) <= {'jazz', 'metal'}
    np.testing.assert_allclose(scores.probabilities.sum(axis=1), 1, atol=1e-5)


def test_described_labels_are_mean_directions(bert):
    group = [alone(bert, t) for t in ('a swinging trio', 'calm')]
    label = sum(group)/np.linalg.norm(sum(group))
    scores = bert.reason(TEXTS, {'Jazz': ['a swinging trio', 'calm'], 'metal': 'fast'}, scale=1)
    expected = [[alone(bert, t) @ l for l in (label, alone(bert, 'fast'))] for t in TEXTS]
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    assert scores.labels == ['jazz', 'metal']


def test_order_of_labels_does_not_matter(bert):
    one, two = bert.reason(TEXTS, ['jazz', 'metal']).frame, bert.reason(TEXTS, ['metal', 'jazz']).frame
    np.testing.assert_allclose(one, two[['jazz', 'metal']], atol=1e-5)


def test_reference_takes_off_the_mean_score(bert):
    plain, others = (bert.reason(t, ['jazz', 'metal']).values for t in (TEXTS, TEXTS[:3]))
    centred = bert.reason(TEXTS, ['jazz', 'metal'], reference=TEXTS[:3]).values
    np.testing.assert_allclose(centred, plain - others.mean(0), atol=1e-4)


def test_prompt_and_template_are_read(bert):
    asked = dict(prompt='this music is {description}', template='swinging {label}')
    scores = bert.reason(['calm.'], ['jazz'], scale=1, **asked)
    expected = alone(bert, 'this music is calm') @ alone(bert, 'swinging jazz')
    np.testing.assert_allclose(scores.values, [[expected]], atol=1e-5)
    assert bert.reason(['calm'], ['jazz'], 'tables').values.shape == (1, 1)


@pytest.mark.parametrize('labels,message', [
    ([], 'none of them empty'), (['jazz', 'Jazz'], 'twice'), ({'jazz': 'a', 'Jazz': 'b'}, 'twice'),
    ({'jazz': []}, 'without a text: jazz')])
def test_labels_that_cannot_be_answered(labels, message):
    with pytest.raises(LogocentricError, match=message): label_texts(labels)


def test_questions_that_cannot_be_put(bert):
    with pytest.raises(LogocentricError, match='is no template'): bert.reason(['calm'], ['jazz'], template='jazz')
    with pytest.raises(LogocentricError, match='is no prompt'): bert.reason(['calm'], ['jazz'], prompt='calm')
    with pytest.raises(LogocentricError, match='reference is empty'): bert.reason(['calm'], ['jazz'], reference=[])


def test_one_label_as_a_word(): assert label_texts('Jazz') == {'jazz': ['This music is jazz.']}


# --- the described labels

def test_both_sets_of_genres_are_described():
    assert {l.lower() for labels in LABELS.values() for l in labels} == set(LABEL_DESCRIPTIONS)
    for kind, labels in LABELS.items(): assert list(described_labels(labels)) == [l.lower() for l in labels], kind
    assert all(3 <= len(texts) <= 6 and len(set(texts)) == len(texts) for texts in LABEL_DESCRIPTIONS.values())
    with pytest.raises(LogocentricError, match='no description of polka'): described_labels(['jazz', 'polka'])


def test_no_text_says_its_own_label():
    assert [(l, t) for l, texts in LABEL_DESCRIPTIONS.items() for t in texts if l in t.lower()] == []


# --- all-MiniLM-L6-v2

# sha256 of model.safetensors as published on the Hub
WEIGHTS = '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'

@pytest.fixture(scope='module')
def minilm():
    try: return SentenceReasoner.from_pretrained()
    except LogocentricError as error: pytest.skip(str(error))


@pytest.fixture(scope='module')
def clips():
    "True descriptions of 300 clips of ten genres, and of 200 of no genre in particular, from seeds that no split uses."
    asked = [corpus_clip(977, i, labels='gtzan') for i in range(300)]
    others = [describe_clip(corpus_clip(978, i)) for i in range(200)]
    return [describe_clip(c) for c in asked], [c.label('gtzan') for c in asked], others


@pytest.mark.slow
def test_minilm_has_the_published_weights(minilm):
    assert hashlib.sha256((minilm_folder()/'model.safetensors').read_bytes()).hexdigest() == WEIGHTS
    assert minilm.model.config.model_type == 'bert' and minilm.max_tokens == 256


@pytest.mark.slow
def test_minilm_embeds_as_its_own_library_does(minilm):
    from sentence_transformers import SentenceTransformer
    texts = [*TEXTS, *[t for texts in LABEL_DESCRIPTIONS.values() for t in texts], 'a long and winding tune, '*80]
    with pytest.warns(UserWarning, match='1 of'): vectors = minilm.embed(texts)
    own = SentenceTransformer(str(minilm_folder()), device='cpu').encode(texts)
    np.testing.assert_allclose(vectors, own, atol=1e-5)
    np.testing.assert_allclose(vectors[:5], np.concatenate([minilm.embed(t) for t in TEXTS]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('description,label', [
    ('a swinging jazz trio with a walking bass', 'jazz'),
    ('headbanging, with screaming distorted guitars and double kick drums', 'metal'),
    ('a string quartet by Haydn', 'classical'), ('a rapper over a boom-bap beat', 'hip-hop'),
    ('an off-beat guitar skank from Kingston', 'reggae')])
def test_minilm_knows_what_goes_together(minilm, description, label):
    assert minilm.reason([description], LABELS['gtzan']).predictions == [label]


@pytest.mark.slow
def test_minilm_reads_descriptions(minilm, clips):
    "Our descriptions mean something to it: above chance with bare words, far above with described labels."
    texts, truth, others = clips
    answer = lambda labels, **kwargs: accuracy(truth, minilm.reason(texts, labels, **kwargs).predictions)
    words, described = answer(LABELS['gtzan']), answer(described_labels(LABELS['gtzan']))
    centred = answer(described_labels(LABELS['gtzan']), reference=others)
    assert .15 < words < described < centred and centred > .45
