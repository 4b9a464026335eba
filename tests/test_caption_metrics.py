"Caption metrics: worked by hand, beside the libraries of the field, and on degenerate captions."
import math
from itertools import combinations, permutations
import numpy as np, pandas as pd, pytest, torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from logocentric.captioner import caption_metrics as cm
from logocentric.reasoner import knowledge
from logocentric.captioner.caption_metrics import (attribute_table, attribute_tally, attribute_values, bleu, bleu_of,
                                                   bleu_tally, caption_table, caption_words, cider_d,
                                                   embedding_similarity, fewest_chunks, length_tally, longest_common,
                                                   meteor, most_common_caption, novelty_tallies, readable, rouge_l,
                                                   shuffled_captions, tag_template, tally_difference, tally_score,
                                                   vocabulary)
from logocentric.core import LogocentricError
from logocentric.data.styles import ATTRIBUTES, corpus_clip
from logocentric.data.descriptions import describe_clip
from logocentric.metrics import Score, wilson_interval
from logocentric.reasoner.sentences import SentenceReasoner
from logocentric.reasoner.tasks import facts, told

pytestmark = pytest.mark.usefixtures('one_thread')

REFERENCES = [
    ['a slow piano ballad with soft strings', 'soft strings under a slow and sad piano'],
    ['fast drums and a distorted guitar', 'a fast and heavy guitar riff over pounding drums', 'heavy rock'],
    ['a walking bass and a swinging ride cymbal', 'a jazz trio with a walking bass'],
    ['guitar chops on the off-beat over a deep bass'],
    ['a solo violin plays a tender melody', 'one violin, tender and slow'],
    ['a synthesizer loop over a four-on-the-floor kick', 'electronic music with a kick on every beat'],
]
CAPTIONS = ['a slow piano with soft strings', 'a fast distorted guitar over pounding drums and drums', 'a jazz trio with swinging cymbals',
            'a deep bass and guitar chop on the off-beat', 'a violinist playing slowly', 'electronic music with a kick on every beat']
TRAINING = ['a slow piano with soft strings', 'a deep bass', 'a deep bass', 'a kick on every beat under noise']
TAGS = [['slow', 'piano'], ['fast', 'guitar'], ['bass', 'swing'], ['bass'], ['violin', 'slow'], ['kick']]
SENTENCES = dict(rouge_l=rouge_l, meteor=meteor, cider_d=cider_d)
sentence_level = pytest.mark.parametrize('metric', SENTENCES.values(), ids=SENTENCES)

# Printed by the libraries for the captions and references above, as words joined by spaces:
# pycocoevalcap 1.2 (Bleu(4), Rouge, Cider), sacrebleu 2.6.0 (tokenize='none', smooth_method='none', one object for each order), nltk 3.10.4
# (meteor_score with SnowballStemmer('english') and a WordNet without synsets), rouge_score 0.1.2 (rougeL, no stemmer, these words as its
# tokenizer, the first reference only). Bleu of coco-caption adds 1e-9 and the like to its counts.
COCO = dict(bleu=[0.7758856497164056, 0.6793616232162264, 0.5710415303430467, 0.45627903505006395],
            rouge_l=[0.9104477611940297, 0.6666666666666666, 0.6069651741293532, 0.4444444444444444, 0.1732954545454545, 1.0],
            cider_d=[3.8519861020718094, 1.6332793977689484, 2.589199304989907, 3.9899863382568284, 0.0, 5.257443685105711])
SACREBLEU = [0.7758856497533524, 0.6793616232499247, 0.5710415303728072, 0.4562790350753674]
NLTK_METEOR = [0.8534621578099838, 0.6768077601410936, 0.5434782608695652, 0.8819444444444444, 0.14925373134328357, 0.9990234375]
ROUGE_SCORE = [0.923076923076923, 0.4, 0.28571428571428575, 0.4444444444444444, 0.18181818181818182, 0.26666666666666666]


# --- beside the libraries

@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_bleu_of_the_libraries(order):
    assert bleu(CAPTIONS, REFERENCES, order) == pytest.approx(SACREBLEU[order - 1], rel=1e-12)
    assert bleu(CAPTIONS, REFERENCES, order) == pytest.approx(COCO['bleu'][order - 1], rel=1e-9)


def test_rouge_l_of_the_libraries():
    assert rouge_l(CAPTIONS, REFERENCES) == pytest.approx(COCO['rouge_l'], rel=1e-12)
    assert rouge_l(CAPTIONS, [refs[0] for refs in REFERENCES], beta=1) == pytest.approx(ROUGE_SCORE, rel=1e-12)


def test_cider_d_of_the_library():
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(COCO['cider_d'], rel=1e-12)


def test_meteor_of_the_library():
    found, same = meteor(CAPTIONS, REFERENCES), [0, 3, 4, 5]
    assert found[same] == pytest.approx(np.array(NLTK_METEOR)[same], rel=1e-12)
    # in the other two a word stands twice, and nltk's greedy pairing has a chunk too many
    # clip 1 beside its first reference: 6 of 9 words and 6 of 6, F = 10·(2/3)/(1 + 6); a | fast | distorted guitar | drums and: 4 chunks, nltk 5
    f = 10*(2/3)/(1 + 6)
    assert [NLTK_METEOR[1], found[1]] == pytest.approx([f*(1 - .5*(5/6)**3), f*(1 - .5*(4/6)**3)])
    # clip 2 beside its second: "a jazz trio with" is 4 of 6 and 4 of 7, one chunk; nltk takes the other "a", so 2
    f = 10*(4/6)*(4/7)/(4/7 + 9*4/6)
    assert [NLTK_METEOR[2], found[2]] == pytest.approx([f*(1 - .5*(2/4)**3), f*(1 - .5*(1/4)**3)])


# --- words

def test_words_are_those_of_the_readers_corpus():
    text = "It's a FOUR-on-the-floor beat; (140 bpm), rock ’n’ roll_er – naïve!"
    assert caption_words(text) == knowledge.words(text)
    assert caption_words(text)[:3] == ["it's", 'a', 'four-on-the-floor']
    assert caption_words('...') == []


def test_scores_do_not_see_case_or_punctuation():
    loud = [c.upper() + '!' for c in CAPTIONS]
    assert bleu(loud, REFERENCES) == bleu(CAPTIONS, REFERENCES)
    for metric in SENTENCES.values(): assert np.array_equal(metric(loud, REFERENCES), metric(CAPTIONS, REFERENCES))


# --- by hand

def test_bleu_by_hand():
    # the cat the cat on the mat: unigrams the 3, cat 2, on 1, mat 1; "the cat is on the mat" allows the 2, cat 1, on 1, mat 1 = 5 of 7.
    # bigrams: the-cat 2, cat-the 1, cat-on 1, on-the 1, the-mat 1; allowed the-cat 1, on-the 1, the-mat 1 = 3 of 6. 7 words beside 6: no penalty.
    caption, reference = ['the cat the cat on the mat'], ['the cat is on the mat']
    assert bleu(caption, reference, 1) == pytest.approx(5/7)
    assert bleu(caption, reference, 2) == pytest.approx(math.sqrt(5/7*3/6))
    # trigrams: on-the-mat 1 of 5 (the-cat-the, cat-the-cat, the-cat-on, cat-on-the are not there); 4-grams: none
    assert bleu(caption, reference, 3) == pytest.approx((5/7*3/6*1/5)**(1/3))
    assert bleu(caption, reference, 4) == 0


def test_bleu_is_of_the_corpus():
    # clip 1: 1 of 1 word right, closest reference 1; clip 2: 1 of 4 right, closest 4. Together 2 of 5; the mean of clips would be 5/8.
    assert bleu(['drums', 'a b c d'], ['drums', 'a x y z'], 1) == pytest.approx(2/5)


def test_brevity_takes_the_closest_reference_and_of_two_the_shorter():
    # 3 words; references of 2, 4, 9: 2 and 4 are as close, 2 is shorter, so no penalty. Without it: closest 4, exp(1 - 4/3)
    assert bleu(['a b c'], [['a b c x', 'a b', 'a b c x y z v w u']], 1) == pytest.approx(1)
    assert bleu(['a b c'], [['a b c x', 'a b c x y z v w u']], 1) == pytest.approx(math.exp(1 - 4/3))


def test_several_references_share_the_clipping():
    # "a a b b": one reference allows a twice and the other b twice; each n-gram takes its best reference: 4 of 4
    assert bleu(['a a b b'], [['a a x y', 'x y b b']], 1) == pytest.approx(1)


def test_rouge_l_by_hand():
    # slow sad piano | a slow piano plays: common "slow piano" = 2, P = 2/3, R = 2/4; | piano: common 1, P = 1/3, R = 1
    # best P = 2/3 and best R = 1 (of different references), F = 2.44·(2/3)·1/(1 + 1.44·2/3) = 1.62667/1.96
    assert rouge_l(['slow sad piano'], [['a slow piano plays']]) == pytest.approx([2.44*(1/3)/(.5 + .96)])
    assert rouge_l(['slow sad piano'], [['a slow piano plays', 'piano']]) == pytest.approx([1.6266666667/1.96])


def test_longest_common_subsequence_is_the_longest():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = (''.join(rng.choice(list('abc'), size=k)) for k in rng.integers(0, 7, 2))
        subsequences = lambda s: {tuple(c) for k in range(len(s) + 1) for c in combinations(s, k)}
        assert longest_common(a, b) == max(map(len, subsequences(a) & subsequences(b)))


def test_meteor_by_hand():
    # guitars playing a tune | a guitar plays the tune: stems guitar, play, a, tune: m = 4, P = 4/4, R = 4/5
    # F = 10·1·.8/(.8 + 9) = 8/9.8; chunks: guitar-play | a | tune = 3, penalty .5·(3/4)³ = .2109375
    assert meteor(['guitars playing a tune'], ['a guitar plays the tune']) == pytest.approx([8/9.8*(1 - .2109375)])
    # the best of the references: "a tune" pairs 2 of 4 and 2 of 2, F = 10·.5/(1 + 4.5), one chunk: .5·(1/2)³
    assert meteor(['guitars playing a tune'], [['loud noise', 'a tune']]) == pytest.approx([5/5.5*(1 - .0625)])


def test_meteor_pairs_repeated_words_in_the_fewest_chunks():
    # the drums | and | the bass; nltk 3.10.4 (align_words) pairs each "the" with the wrong one and counts 4
    assert fewest_chunks('the drums and the bass'.split(), 'the bass and the drums'.split()) == 3
    assert fewest_chunks('a b a'.split(), 'x a'.split()) == 1
    assert fewest_chunks('the bass the drums'.split(), 'the drums'.split()) == 1
    assert fewest_chunks('a b c'.split(), 'c b a'.split()) == 3


def all_pairings(said, true):
    "Chunks of every largest pairing, by trying all."
    best = {}
    for k in range(min(len(said), len(true)) + 1):
        for i in combinations(range(len(said)), k):
            for j in permutations(range(len(true)), k):
                if all(said[x] == true[y] for x, y in zip(i, j)):
                    pairs = list(zip(i, j))
                    chunks = sum(n == 0 or (pairs[n-1][0] + 1, pairs[n-1][1] + 1) != p for n, p in enumerate(pairs))
                    best[k] = min(chunks, best.get(k, 99))
    return best[max(best)]


def test_fewest_chunks_are_the_fewest():
    rng = np.random.default_rng(1)
    for _ in range(40):
        said, true = (rng.choice(list('abc'), size=k).tolist() for k in rng.integers(1, 6, 2))
        assert fewest_chunks(said, true) == all_pairings(said, true), (said, true)


def test_long_captions_lose_little_by_the_beam():
    "Descriptions of the corpus, over forty words, beside a beam fifty times as wide."
    specs = [corpus_clip(1, i) for i in range(12)]
    pairs = [[[cm.stem(w) for w in caption_words(describe_clip(s, v))] for v in (0, 1)] for s in specs]
    narrow, wide = (np.array([fewest_chunks(*p, width=width) for p in pairs]) for width in (40, 2000))
    assert (narrow >= wide).all() and narrow.sum() <= 1.02*wide.sum()


def test_a_caption_that_repeats_itself_is_scored_in_time():
    assert fewest_chunks(['the']*200, ['the']*60 + ['end']) == 1
    assert meteor(['the '*100 + 'a '*100], ['the a '*20])[0] > 0


def test_cider_d_by_hand():
    # two clips, no n-gram in both: each weighs log 2, which the cosine cancels.
    # slow piano | slow sad piano: cosine of words 2/√(2·3), pairs of words 0 of √(1·2), none of 3 or 4; one word shorter: exp(-1/72)
    expected = 10*math.exp(-1/72)*2/math.sqrt(6)/4
    assert cider_d(['slow piano', 'x'], ['slow sad piano', 'fast drums']) == pytest.approx([expected, 0])
    # a second reference that shares nothing halves it: the mean over references
    assert cider_d(['slow piano', 'x'], [['slow sad piano', 'quiet'], 'fast drums'])[0] == pytest.approx(expected/2)


def test_cider_d_clips_repetition():
    # drums drums drums | fast drums, in two clips: weights 3w of the caption, w of the reference; min = w: w²/(3w·√2·w) = 1/(3√2)
    # pairs: drums-drums is not in the reference. one word longer: exp(-1/72)
    assert cider_d(['drums drums drums', 'x'], ['fast drums', 'y'])[0] == pytest.approx(10*math.exp(-1/72)/(3*math.sqrt(2))/4)


def test_cider_d_weighs_by_clips():
    # "a" is in every clip: weight log(3/3) = 0, so saying it earns nothing
    assert cider_d(['a', 'a', 'a'], ['a b', 'a c', 'a d']) == pytest.approx([0, 0, 0])
    frequency = cm.document_frequency([[['a', 'b'], ['a', 'a']], [['a']]])
    assert frequency == {('a',): 2, ('b',): 1, ('a', 'b'): 1, ('a', 'a'): 1}  # clips, not references


# --- bounds and symmetries

def test_saying_a_reference_is_best():
    own = [refs[0] for refs in REFERENCES]
    assert bleu(own, REFERENCES) == pytest.approx(1)
    assert rouge_l(own, REFERENCES) == pytest.approx(np.ones(6))
    assert cider_d(own, own) == pytest.approx(np.full(6, 10.))
    assert meteor(own, own) == pytest.approx([1 - .5/len(caption_words(c))**3 for c in own])


@sentence_level
def test_nothing_in_common_is_zero(metric):
    assert metric(['zither']*6, REFERENCES).tolist() == [0]*6
    assert metric(['']*6, REFERENCES).tolist() == [0]*6
    assert bleu(['zither']*6, REFERENCES) == bleu(['']*6, REFERENCES) == 0


@sentence_level
def test_order_of_clips_and_of_references_does_not_matter(metric):
    order = [3, 0, 5, 1, 4, 2]
    turned = metric([CAPTIONS[i] for i in order], [REFERENCES[i][::-1] for i in order])
    assert turned == pytest.approx(metric(CAPTIONS, REFERENCES)[order], rel=1e-12)
    assert bleu([CAPTIONS[i] for i in order], [REFERENCES[i][::-1] for i in order]) == pytest.approx(bleu(CAPTIONS, REFERENCES), rel=1e-12)


@sentence_level
def test_one_reference_needs_no_list(metric):
    assert np.array_equal(metric(CAPTIONS, [r[0] for r in REFERENCES]), metric(CAPTIONS, [[r[0]] for r in REFERENCES]))


@pytest.mark.parametrize('captions, references, said', [
    (['a'], ['a', 'b'], '1 captions for 2 clips'), ('a', ['a'], 'give a list'), (['a', 'b'], ['a', []], r'clips \[1\]'),
    (['a', 'b'], ['...', 'b'], r'clips \[0\]'), ([], [], 'no words')])
def test_bad_lists_are_refused(captions, references, said):
    for metric in (bleu, *SENTENCES.values()):
        with pytest.raises(LogocentricError, match=said): metric(captions, references)


# --- words by themselves

def test_vocabulary_and_length():
    assert vocabulary(['A slow piano.', 'slow, slow drums']) == 4  # a slow piano drums
    assert length_tally('a slow piano'.split()).tolist() == [3, 1]


def test_novelty_by_hand():
    # known 4-grams: a-b-c-d, b-c-d-e. "A b c d!" is known and its 4-gram too; "a b c d x": new, a-b-c-d known and b-c-d-x new; "a b": new, none
    new, grams = novelty_tallies(['A b c d!', 'a b c d x', 'a b'], ['a b c d e', 'a b c d'])
    assert new.tolist() == [[0, 1], [1, 1], [1, 1]]
    assert grams.tolist() == [[0, 1], [1, 2], [0, 0]]


# --- meaning

class Letters:
    "Counts of a, b and everything else as a direction."
    def embed(self, texts):
        counts = np.array([[t.count('a'), t.count('b'), 1e-9] for t in texts])
        return counts/np.linalg.norm(counts, axis=1, keepdims=True)


def test_similarity_is_the_mean_over_references():
    # (3, 4)·(1, 0)/5 = 3/5 and (3, 4)·(0, 1)/5 = 4/5, mean 7/10; the second clip has one reference, itself
    assert embedding_similarity(['aaabbbb', 'ab'], [['a', 'b'], 'ab'], Letters()) == pytest.approx([.7, 1])


def test_similarity_of_nothing_is_zero():
    assert embedding_similarity(['', '?!', 'a'], ['a', 'a', 'a'], Letters()).tolist() == pytest.approx([0, 0, 1])


def test_a_sentence_reasoner_is_an_encoder(tmp_path):
    (tmp_path/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *sorted({w for c in CAPTIONS for w in caption_words(c)})]))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    reasoner = SentenceReasoner(model, tokenizer)
    assert embedding_similarity(CAPTIONS, CAPTIONS, reasoner) == pytest.approx(np.ones(6), abs=1e-5)
    vectors = reasoner.embed(CAPTIONS)
    assert embedding_similarity(CAPTIONS[:1], [CAPTIONS[1:3]], reasoner) == pytest.approx([vectors[0] @ vectors[1:3].mean(0)], abs=1e-5)


# --- truth

TRUTH = pd.DataFrame(dict(lead=['piano', 'guitar', 'piano', None], tempo=['slow', 'fast', 'slow', 'fast']))
NAMED = {'x': dict(lead='piano', tempo='slow'), 'y': dict(lead='piano'), 'z': {}, 'w': dict(lead='guitar', tempo='fast')}


def test_attribute_table_by_hand():
    # lead: named by x, y, w; right in x only; three clips have one. tempo: named by x and w, both right; four clips
    table = attribute_table(list('xyzw'), TRUTH, NAMED.get, ['lead', 'tempo'])
    assert table.loc['lead', ['clips', 'named', 'right', 'precision', 'recall']].tolist() == pytest.approx([3, 3, 1, 1/3, 1/3])
    assert table.loc['tempo', ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [4, 2, 2, 1, .5]
    assert tuple(table.loc['tempo', ['recall_low', 'recall_high']]) == pytest.approx(wilson_interval(2, 4))


def test_attribute_values_by_hand():
    # piano: named by x (right) and y (wrong), true in clips 0 and 2. guitar: named by w (wrong), true in clip 1
    table = attribute_values(list('xyzw'), TRUTH, NAMED.get, ['lead'])
    assert table.loc[('lead', 'piano'), ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [2, 2, 1, .5, .5]
    assert table.loc[('lead', 'guitar'), ['clips', 'named', 'right', 'precision', 'recall']].tolist() == [1, 1, 0, 0, 0]
    assert len(table) == 2


def test_attribute_tally_by_hand():
    assert attribute_tally(list('xyzw'), TRUTH, NAMED.get, ['lead', 'tempo']).tolist() == [[2, 2, 2], [0, 1, 2], [0, 0, 2], [1, 2, 1]]


def test_nothing_named_is_unknown_and_not_zero():
    table = attribute_table(['z']*4, TRUTH, NAMED.get, ['lead'])
    assert math.isnan(table.precision['lead']) and table.recall['lead'] == 0


def test_true_descriptions_are_true():
    "The corpus's own phrases, read back by `told`."
    rng = np.random.default_rng(0)
    rows = [{a: str(rng.choice(list(values))) for a, values in ATTRIBUTES.items()} for _ in range(60)]
    texts = [', '.join(ATTRIBUTES[a][v][0] for a, v in row.items()) for row in rows]
    table = attribute_table(texts, pd.DataFrame(rows), told)
    assert list(table.index) == list(ATTRIBUTES) and (table.named == 60).all()
    assert table.precision.mean() > .9
    same = facts(texts, pd.DataFrame(rows))  # of chapter 41: there `right` is among all clips
    assert table.recall.tolist() == pytest.approx(same.right.astype(float).tolist())


def test_truth_must_fit():
    with pytest.raises(LogocentricError, match='no column feel'): attribute_table(['x'], TRUTH[:1], NAMED.get, ['feel'])
    with pytest.raises(LogocentricError, match='1 captions for 4'): attribute_tally(['x'], TRUTH, NAMED.get, ['lead'])


# --- trivial lines

def test_tag_template():
    assert tag_template([['a'], ['a', 'b'], ['a', 'b', 'c'], [], 'rock'], '{tags}.') == ['a.', 'a and b.', 'a, b and c.', '.', 'rock.']


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


# --- the table

@pytest.fixture(scope='module')
def table(): return caption_table(dict(ours=CAPTIONS, theirs=CAPTIONS[::-1]), REFERENCES, TRAINING, TAGS, encoder=Letters(), n=100)


def test_table_holds_the_metrics(table):
    assert list(table.index.unique('system')) == ['ours', 'theirs', *cm.CAPTION_BASELINES]
    ours = table.loc['ours'].value
    for order in (1, 2, 3, 4): assert ours[f'BLEU-{order}'] == pytest.approx(bleu(CAPTIONS, REFERENCES, order))
    for name, metric in zip(('ROUGE-L', 'METEOR', 'CIDEr-D'), (rouge_l, meteor, cider_d)):
        assert ours[name] == pytest.approx(metric(CAPTIONS, REFERENCES).mean())
    assert ours['vocabulary'] == vocabulary(CAPTIONS) and ours['new captions'] == pytest.approx(5/6)
    assert ours['length'] == pytest.approx(np.mean([len(c.split()) for c in CAPTIONS]))
    assert table.value['most common caption', 'vocabulary'] == 3  # a deep bass


def test_intervals_hold_their_values(table):
    assert table.loc[('most common caption', 'new 4-grams'), ['value', 'low', 'high']].isna().all()  # "a deep bass" has no 4-gram
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
    table = caption_table(list('xyzw'), list('abcd'), ['x'], [['z']]*4, truth=truth, told=lambda c: NAMED.get(c, {}), attributes=['lead', 'tempo'], n=50)
    assert table.value['system', 'attribute accuracy'] == pytest.approx(3/5)  # right 2 + 0 + 0 + 1, named 2 + 1 + 0 + 2
    assert table.value['system', 'attribute recall'] == pytest.approx(3/8)
    assert math.isnan(table.value['tag template', 'attribute accuracy'])  # it names nothing that is known
    with pytest.raises(LogocentricError, match='told'): caption_table(list('xyzw'), list('abcd'), ['x'], [['z']]*4, truth=truth)


def test_table_refuses_what_does_not_fit():
    with pytest.raises(LogocentricError, match='trivial line'): caption_table({'tag template': CAPTIONS}, REFERENCES, TRAINING, TAGS)
    with pytest.raises(LogocentricError, match='5 lists of tags for 6'): caption_table(CAPTIONS, REFERENCES, TRAINING, TAGS[1:])
    with pytest.raises(LogocentricError, match='5 captions for 6'): caption_table(CAPTIONS[1:], REFERENCES, TRAINING, TAGS)


def test_readable(table):
    text = readable(table, ['BLEU-1', 'vocabulary'], '.3f')
    assert list(text.index) == ['ours', 'theirs', *cm.CAPTION_BASELINES] and list(text.columns) == ['BLEU-1', 'vocabulary']
    assert text.loc['ours', 'BLEU-1'].startswith('0.776 [0.') and text.loc['ours', 'vocabulary'] == f'{vocabulary(CAPTIONS):.3f}'


# --- the bootstrap

def test_resampling_tallies_is_resampling_clips():
    "The matrix product gives what BLEU gives of the drawn clips."
    tally = np.array([bleu_tally(w, r) for w, r in zip(*cm._split(CAPTIONS, REFERENCES))])
    draws = np.random.default_rng(0).multinomial(6, np.full(6, 1/6), size=8)
    for row, value in zip(draws, bleu_of(draws @ tally)):
        chosen = np.repeat(np.arange(6), row)
        assert value == pytest.approx(bleu([CAPTIONS[i] for i in chosen], [REFERENCES[i] for i in chosen]))


def test_interval_of_a_share():
    hits = np.stack([np.arange(400) < 100, np.ones(400)], 1)
    found = tally_score(hits, n=2000)
    assert found.value == .25 and found.n == 400
    assert (found.low, found.high) == pytest.approx(wilson_interval(100, 400), abs=.01)


def test_difference_is_paired():
    base = np.stack([np.arange(200) % 2, np.ones(200)], 1)
    better = base.copy(); better[:20, 0] = 1  # ten more
    found = tally_difference(better, base)
    assert found.value == pytest.approx(.05) and 0 < found.low < .05 < found.high
    assert tally_score(better).low < tally_score(base).high  # though the intervals overlap
    assert tally_difference(base, base) == Score(0., 0., 0., 200)
    with pytest.raises(LogocentricError, match='same clips'): tally_difference(base, base[1:])
