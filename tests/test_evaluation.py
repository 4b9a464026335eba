"Evaluation of captions: novelty, meaning, truth, baselines and one table, worked by hand and on degenerate captions."
import math
import numpy as np, pandas as pd, pytest, torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from logocentric.captioner.caption_metrics import bleu, caption_words, cider_d, meteor, rouge_l
from logocentric.captioner.evaluation import (CAPTION_BASELINES, attribute_table, attribute_tally, attribute_values,
                                              caption_table, embedding_similarity, length_tally, most_common_caption,
                                              novelty_tallies, readable, shuffled_captions, tag_template, vocabulary)
from logocentric.core import LogocentricError
from logocentric.data.styles import ATTRIBUTES
from logocentric.metrics import wilson_interval
from logocentric.reasoner.sentences import SentenceReasoner
from logocentric.reasoner.tasks import attribute_accuracy, stated_attributes
from test_caption_metrics import CAPTIONS, REFERENCES, TAGS, TRAINING


def test_vocabulary_and_length():
    assert vocabulary(['A slow piano.', 'slow, slow drums']) == 4  # a slow piano drums
    assert length_tally('a slow piano'.split()).tolist() == [3, 1]


def test_novelty_by_hand():
    # known 4-grams: a-b-c-d, b-c-d-e. "A b c d!" is known and its 4-gram too; "a b c d x": new, a-b-c-d known and
    # b-c-d-x new; "a b": new, none
    new, grams = novelty_tallies(['A b c d!', 'a b c d x', 'a b'], ['a b c d e', 'a b c d'])
    assert new.tolist() == [[0, 1], [1, 1], [1, 1]]
    assert grams.tolist() == [[0, 1], [1, 2], [0, 0]]


class Letters:
    "Counts of a, b and everything else as a direction."
    def embed(self, texts):
        counts = np.array([[t.count('a'), t.count('b'), 1e-9] for t in texts])
        return counts/np.linalg.norm(counts, axis=1, keepdims=True)


def test_similarity_is_the_mean_over_references():
    # (3, 4)·(1, 0)/5 = 3/5 and (3, 4)·(0, 1)/5 = 4/5, mean 7/10; the second clip has one reference, itself
    assert embedding_similarity(['aaabbbb', 'ab'], [['a', 'b'], 'ab'], Letters()) == pytest.approx([.7, 1])


def test_what_is_no_caption_is_named_by_every_score():
    truth = TRUTH.iloc[:2]
    calls = [vocabulary, lambda c: novelty_tallies(c, TRAINING),
             lambda c: embedding_similarity(c, ['a', 'b'], Letters()),
             lambda c: attribute_table(c, truth, dict, ['lead']), lambda c: attribute_values(c, truth, dict, ['lead']),
             lambda c: attribute_tally(c, truth, dict, ['lead'])]
    for call in calls:
        with pytest.raises(LogocentricError, match='caption 1 is no text: None'): call(['a', None])
        with pytest.raises(LogocentricError, match='dict'): call({'a': 'slow', 'b': 'fast'})
    for call in (lambda t: novelty_tallies(['a'], t), lambda t: most_common_caption(t, 1)):
        with pytest.raises(LogocentricError, match='training caption 1 is no text: nan'): call(['a', math.nan])
    with pytest.raises(LogocentricError, match='clip 1: reference 0 is no text: None'): shuffled_captions(['a', None])


def test_an_empty_reference_is_left_out_of_the_whole_table():
    gaps = [[*REFERENCES[0], ''], *REFERENCES[1:]]
    with pytest.warns(UserWarning, match='left out in 1 clips') as said:
        found = caption_table(CAPTIONS, gaps, TRAINING, TAGS, encoder=Letters(), n=20)
    assert len(said) == 1
    pd.testing.assert_frame_equal(found, caption_table(CAPTIONS, REFERENCES, TRAINING, TAGS, encoder=Letters(), n=20))


def test_similarity_of_nothing_is_zero():
    assert embedding_similarity(['', '?!', 'a'], ['a', 'a', 'a'], Letters()).tolist() == pytest.approx([0, 0, 1])


def test_a_sentence_reasoner_is_an_encoder(tmp_path):
    (tmp_path/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.',
                                                 *sorted({w for c in CAPTIONS for w in caption_words(c)})]))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=32))
    reasoner = SentenceReasoner(model, tokenizer)
    assert embedding_similarity(CAPTIONS, CAPTIONS, reasoner) == pytest.approx(np.ones(6), abs=1e-5)
    vectors = reasoner.embed(CAPTIONS)
    assert embedding_similarity(CAPTIONS[:1], [CAPTIONS[1:3]],
                                reasoner) == pytest.approx([vectors[0] @ vectors[1:3].mean(0)], abs=1e-5)


TRUTH = pd.DataFrame(dict(lead=['piano', 'guitar', 'piano', None], tempo=['slow', 'fast', 'slow', 'fast']))


NAMED = {'x': dict(lead='piano', tempo='slow'), 'y': dict(lead='piano'), 'z': {},
         'w': dict(lead='guitar', tempo='fast')}


def test_attribute_table_by_hand():
    # lead: named by x, y, w; right in x only; three clips have one. tempo: named by x and w, both right; four clips
    table = attribute_table(list('xyzw'), TRUTH, NAMED.get, ['lead', 'tempo'])
    assert table.loc['lead',
                     ['clips', 'named', 'right', 'precision', 'recall']].tolist() == pytest.approx([3, 3, 1, 1/3, 1/3])
    assert table.loc['tempo', ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [4, 2, 2, 1, .5]
    assert tuple(table.loc['tempo', ['recall_low', 'recall_high']]) == pytest.approx(wilson_interval(2, 4))


def test_attribute_values_by_hand():
    # piano: named by x (right) and y (wrong), true in clips 0 and 2. guitar: named by w (wrong), true in clip 1
    table = attribute_values(list('xyzw'), TRUTH, NAMED.get, ['lead'])
    assert table.loc[('lead', 'piano'), ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [2, 2, 1, .5,
            .5]
    assert table.loc[('lead', 'guitar'), ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [1, 1, 0, 0, 0]
    assert len(table) == 2


def test_attribute_tally_by_hand():
    assert attribute_tally(list('xyzw'), TRUTH, NAMED.get, ['lead', 'tempo']).tolist() == [[2, 2, 2], [0, 1, 2],
            [0, 0, 2], [1, 2, 1]]


def test_nothing_named_is_unknown_and_not_zero():
    table = attribute_table(['z']*4, TRUTH, NAMED.get, ['lead'])
    assert math.isnan(table.precision['lead']) and table.recall['lead'] == 0


def test_true_descriptions_are_true():
    "The corpus's own phrases, read back by `told`."
    rng = np.random.default_rng(0)
    rows = [{a: str(rng.choice(list(values))) for a, values in ATTRIBUTES.items()} for _ in range(60)]
    texts = [', '.join(ATTRIBUTES[a][v][0] for a, v in row.items()) for row in rows]
    table = attribute_table(texts, pd.DataFrame(rows), stated_attributes)
    assert list(table.index) == list(ATTRIBUTES) and (table.named == 60).all()
    assert table.precision.mean() > .9
    same = attribute_accuracy(texts, pd.DataFrame(rows))  # of chapter 41: there `right` is among all clips
    assert table.recall.tolist() == pytest.approx(same.right.astype(float).tolist())


def test_truth_must_fit():
    with pytest.raises(LogocentricError, match='no column feel'): attribute_table(['x'], TRUTH[:1], NAMED.get, ['feel'])
    with pytest.raises(LogocentricError, match='1 captions for 4'): attribute_tally(['x'], TRUTH, NAMED.get, ['lead'])


def test_tag_template():
    assert tag_template([['a'], ['a', 'b'], ['a', 'b', 'c'], [], 'rock'], '{tags}.') == ['a.', 'a and b.',
            'a, b and c.', '.', 'rock.']


def test_most_common_caption():
    assert most_common_caption(['b', 'a', 'a', 'b', 'c'], 3) == ['b']*3
    with pytest.raises(LogocentricError, match='no training captions'): most_common_caption([], 3)


@pytest.mark.parametrize('n', [2, 3, 50])
def test_shuffled_captions_are_of_others(n):
    references = [[f'{i} one', f'{i} two'] for i in range(n)]
    for seed in range(5):
        taken = [int(c.split()[0]) for c in shuffled_captions(references, seed)]
        assert sorted(taken) == list(range(n)) and not any(i == t for i, t in enumerate(taken))
    assert shuffled_captions(references, 3) == shuffled_captions(references, 3)


def test_one_clip_cannot_be_shuffled():
    with pytest.raises(LogocentricError, match='two or more'): shuffled_captions(['a'])


@pytest.fixture(scope='module')
def table():
    return caption_table(dict(ours=CAPTIONS, theirs=CAPTIONS[::-1]), REFERENCES, TRAINING, TAGS, encoder=Letters(),
                         n=100)


def test_table_holds_the_metrics(table):
    assert list(table.index.unique('system')) == ['ours', 'theirs', *CAPTION_BASELINES]
    ours = table.loc['ours'].value
    for order in (1, 2, 3, 4): assert ours[f'BLEU-{order}'] == pytest.approx(bleu(CAPTIONS, REFERENCES, order))
    for name, metric in zip(('ROUGE-L', 'METEOR', 'CIDEr-D'), (rouge_l, meteor, cider_d)):
        assert ours[name] == pytest.approx(metric(CAPTIONS, REFERENCES).mean())
    assert ours['vocabulary'] == vocabulary(CAPTIONS) and ours['new captions'] == pytest.approx(5/6)
    assert ours['length'] == pytest.approx(np.mean([len(c.split()) for c in CAPTIONS]))
    assert table.value['most common caption', 'vocabulary'] == 3  # a deep bass


def test_intervals_hold_their_values(table):
    # "a deep bass" has no 4-gram
    assert table.loc[('most common caption', 'new 4-grams'), ['value', 'low', 'high']].isna().all()
    bounded = table.drop('vocabulary', level='metric').dropna()
    assert len(bounded) == 5*11 - 1
    assert (bounded.low <= bounded.value + 1e-12).all() and (bounded.value <= bounded.high + 1e-12).all()
    assert table.xs('vocabulary', level='metric')[['low', 'high']].isna().all(axis=None)
    assert (table.n == 6).all()


def test_one_system_needs_no_name_and_a_seed_makes_it_repeatable():
    first, again = (caption_table(CAPTIONS, REFERENCES, iter(TRAINING), TAGS, n=20, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert first.index.unique('system')[0] == 'system'
    assert 'similarity' not in first.loc['system'].index and 'attribute accuracy' not in first.loc['system'].index


def test_attributes_in_the_table():
    truth = TRUTH.assign(lead=TRUTH.lead.fillna('drums'))
    table = caption_table(list('xyzw'), list('abcd'), ['x'], [['z']]*4, truth=truth, extract=lambda c: NAMED.get(c, {}),
                          attributes=['lead', 'tempo'], n=50)
    assert table.value['system', 'attribute accuracy'] == pytest.approx(3/5)  # right 2 + 0 + 0 + 1, named 2 + 1 + 0 + 2
    assert table.value['system', 'attribute recall'] == pytest.approx(3/8)
    assert math.isnan(table.value['tag template', 'attribute accuracy'])  # it names nothing that is known
    with pytest.raises(LogocentricError, match='extract'):
        caption_table(list('xyzw'), list('abcd'), ['x'], [['z']]*4, truth=truth)


def test_table_refuses_what_does_not_fit():
    with pytest.raises(LogocentricError, match='a baseline'):
        caption_table({'tag template': CAPTIONS}, REFERENCES, TRAINING, TAGS)
    with pytest.raises(LogocentricError, match='5 lists of tags for 6'):
        caption_table(CAPTIONS, REFERENCES, TRAINING, TAGS[1:])
    with pytest.raises(LogocentricError, match='5 captions for 6'):
        caption_table(CAPTIONS[1:], REFERENCES, TRAINING, TAGS)


def test_readable(table):
    text = readable(table, ['BLEU-1', 'vocabulary'], '.3f')
    assert list(text.index) == ['ours', 'theirs', *CAPTION_BASELINES] and list(text.columns) == ['BLEU-1', 'vocabulary']
    assert text.loc['ours', 'BLEU-1'].startswith('0.776 [0.')
    assert text.loc['ours', 'vocabulary'] == f'{vocabulary(CAPTIONS):.3f}'
