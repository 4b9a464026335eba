"Caption metrics: worked by hand, as the libraries of the field have them, and on degenerate captions."
import math, re, unicodedata
from itertools import combinations, permutations
import numpy as np, pandas as pd, pytest
from logocentric.captioner import caption_metrics as cm
from logocentric.captioner.caption_metrics import (bleu, bleu_of, bleu_tally, caption_words, cider_d, fewest_chunks,
                                                   longest_common, meteor, rouge_l, tally_difference, tally_score)
from logocentric.core import LogocentricError
from logocentric.data.styles import corpus_clip
from logocentric.data.descriptions import describe_clip
from logocentric.metrics import Score, wilson_interval
from logocentric.reasoner import knowledge


REFERENCES = [
    ['a slow piano ballad with soft strings', 'soft strings under a slow and sad piano'],
    ['fast drums and a distorted guitar', 'a fast and heavy guitar riff over pounding drums', 'heavy rock'],
    ['a walking bass and a swinging ride cymbal', 'a jazz trio with a walking bass'],
    ['guitar chops on the off-beat over a deep bass'],
    ['a solo violin plays a tender melody', 'one violin, tender and slow'],
    ['a synthesizer loop over a four-on-the-floor kick', 'electronic music with a kick on every beat'],
]
CAPTIONS = ['a slow piano with soft strings', 'a fast distorted guitar over pounding drums and drums',
            'a jazz trio with swinging cymbals',
            'a deep bass and guitar chop on the off-beat', 'a violinist playing slowly',
            'electronic music with a kick on every beat']
TRAINING = ['a slow piano with soft strings', 'a deep bass', 'a deep bass', 'a kick on every beat under noise']
TAGS = [['slow', 'piano'], ['fast', 'guitar'], ['bass', 'swing'], ['bass'], ['violin', 'slow'], ['kick']]
SENTENCES = dict(rouge_l=rouge_l, meteor=meteor, cider_d=cider_d)
sentence_level = pytest.mark.parametrize('metric', SENTENCES.values(), ids=SENTENCES)

# Printed by the libraries for the captions and references above, as words joined by spaces:
# pycocoevalcap 1.2 (Bleu(4), Rouge, Cider), sacrebleu 2.6.0 (tokenize='none', smooth_method='none', one object for
# each order), nltk 3.10.4
# (meteor_score with SnowballStemmer('english') and a WordNet without synsets), rouge_score 0.1.2 (rougeL, no stemmer,
# these words as its
# tokenizer, the first reference only). Bleu of coco-caption adds 1e-9 and the like to its counts.
COCO = dict(bleu=[0.7758856497164056, 0.6793616232162264, 0.5710415303430467, 0.45627903505006395],
            rouge_l=[0.9104477611940297, 0.6666666666666666, 0.6069651741293532, 0.4444444444444444, 0.1732954545454545,
                     1.0],
            cider_d=[3.8519861020718094, 1.6332793977689484, 2.589199304989907, 3.9899863382568284, 0.0,
                     5.257443685105711])
SACREBLEU = [0.7758856497533524, 0.6793616232499247, 0.5710415303728072, 0.4562790350753674]
NLTK_METEOR = [0.8534621578099838, 0.6768077601410936, 0.5434782608695652, 0.8819444444444444, 0.14925373134328357,
               0.9990234375]
ROUGE_SCORE = [0.923076923076923, 0.4, 0.28571428571428575, 0.4444444444444444, 0.18181818181818182,
               0.26666666666666666]


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
    # clip 1 beside its first reference: 6 of 9 words and 6 of 6, F = 10·(2/3)/(1 + 6); a | fast | distorted
    # guitar | drums and: 4 chunks, nltk 5
    f = 10*(2/3)/(1 + 6)
    assert [NLTK_METEOR[1], found[1]] == pytest.approx([f*(1 - .5*(5/6)**3), f*(1 - .5*(4/6)**3)])
    # clip 2 beside its second: "a jazz trio with" is 4 of 6 and 4 of 7, one chunk; nltk takes the other "a", so 2
    f = 10*(4/6)*(4/7)/(4/7 + 9*4/6)
    assert [NLTK_METEOR[2], found[2]] == pytest.approx([f*(1 - .5*(2/4)**3), f*(1 - .5*(1/4)**3)])


# --- words

def test_words_are_those_of_the_reasoners_corpus():
    text = "It's a FOUR-on-the-floor beat; (140 bpm), rock ’n’ roll_er – naïve!"
    assert caption_words(text) == knowledge.words(text)
    assert caption_words(text)[:3] == ["it's", 'a', 'four-on-the-floor']
    assert caption_words('...') == []


def test_scores_do_not_see_case_or_punctuation():
    loud = [c.upper() + '!' for c in CAPTIONS]
    assert bleu(loud, REFERENCES) == bleu(CAPTIONS, REFERENCES)
    for metric in SENTENCES.values(): assert np.array_equal(metric(loud, REFERENCES), metric(CAPTIONS, REFERENCES))


FOREIGN = ['Une mélodie très douce, jouée à la flûte', "it's a naïve waltz; Björk's voice", 'हिन्दी गीत, धीमा',
           'off-beat forró']

@pytest.mark.parametrize('written', [
    lambda t: unicodedata.normalize('NFD', t), str.upper, lambda t: unicodedata.normalize('NFD', t.upper()),
    lambda t: t.replace("'", '’'), lambda t: t.replace("'", 'ʼ'), lambda t: t.replace('-', '\u2011'),
    lambda t: t.replace('-', '\u2010'), lambda t: t.replace('lo', 'l\u00ado').replace('lt', 'l\u200dt'),
    lambda t: '\ufeff' + t.replace(' ', '\u00a0')], ids=range(9))
def test_a_caption_scores_the_same_however_it_was_typed(written):
    typed = [written(t) for t in FOREIGN]
    assert typed != FOREIGN
    assert [caption_words(t) for t in typed] == [caption_words(t) for t in FOREIGN]
    assert bleu(typed, FOREIGN, 1) == bleu(FOREIGN, typed, 1) == bleu(FOREIGN, FOREIGN, 1) == 1
    for metric in SENTENCES.values():
        same = metric(FOREIGN, FOREIGN)
        assert np.array_equal(metric(typed, FOREIGN), same) and np.array_equal(metric(FOREIGN, typed), same)


def test_what_is_no_letter_does_not_split_a_word():
    assert caption_words('x\u0303 n\u0303a \u0928\u0940\u0932\u093e') == ['x\u0303', 'ña', '\u0928\u0940\u0932\u093e']
    assert caption_words('slow\u00ad, pi\u00adano four‑on‑the‑floor') == ['slow', 'piano', 'four-on-the-floor']
    assert caption_words('loud \u2764\ufe0f love \u0301') == ['loud', 'love'] # a mark alone is no word
    assert caption_words('calm\u200bly no\u00a0break') == ['calm', 'ly', 'no', 'break'] # these two do part words


def test_words_of_plain_text_are_as_they_were():
    texts = [describe_clip(corpus_clip(1, i), 0) for i in range(40)]
    texts += [bytes(range(128)).decode(), 'naïve ½ m² Ⅷ ﬁ']
    for text in texts: assert caption_words(text) == re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text.lower())


# --- by hand

def test_bleu_by_hand():
    # the cat the cat on the mat: unigrams the 3, cat 2, on 1, mat 1; "the cat is on the mat" allows the 2, cat 1,
    # on 1, mat 1 = 5 of 7.
    # bigrams: the-cat 2, cat-the 1, cat-on 1, on-the 1, the-mat 1; allowed the-cat 1, on-the 1, the-mat 1 = 3 of
    # 6. 7 words beside 6: no penalty.
    caption, reference = ['the cat the cat on the mat'], ['the cat is on the mat']
    assert bleu(caption, reference, 1) == pytest.approx(5/7)
    assert bleu(caption, reference, 2) == pytest.approx(math.sqrt(5/7*3/6))
    # trigrams: on-the-mat 1 of 5 (the-cat-the, cat-the-cat, the-cat-on, cat-on-the are not there); 4-grams: none
    assert bleu(caption, reference, 3) == pytest.approx((5/7*3/6*1/5)**(1/3))
    assert bleu(caption, reference, 4) == 0


def test_bleu_is_of_the_corpus():
    # clip 1: 1 of 1 word right, closest reference 1; clip 2: 1 of 4 right, closest 4. Together 2 of 5; the mean
    # of clips would be 5/8.
    assert bleu(['drums', 'a b c d'], ['drums', 'a x y z'], 1) == pytest.approx(2/5)


def test_brevity_takes_the_closest_reference_and_of_two_the_shorter():
    # 3 words; references of 2, 4, 9: 2 and 4 are as close, 2 is shorter, so no penalty. Without it: closest 4,
    # exp(1 - 4/3)
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
    # slow piano | slow sad piano: cosine of words 2/√(2·3), pairs of words 0 of √(1·2), none of 3 or 4; one word
    # shorter: exp(-1/72)
    expected = 10*math.exp(-1/72)*2/math.sqrt(6)/4
    assert cider_d(['slow piano', 'x'], ['slow sad piano', 'fast drums']) == pytest.approx([expected, 0])
    # a second reference that shares nothing halves it: the mean over references
    assert cider_d(['slow piano', 'x'], [['slow sad piano', 'quiet'], 'fast drums'])[0] == pytest.approx(expected/2)


def test_cider_d_clips_repetition():
    # drums drums drums | fast drums, in two clips: weights 3w of the caption, w of the reference; min = w:
    # w²/(3w·√2·w) = 1/(3√2)
    # pairs: drums-drums is not in the reference. one word longer: exp(-1/72)
    assert cider_d(['drums drums drums', 'x'],
                   ['fast drums', 'y'])[0] == pytest.approx(10*math.exp(-1/72)/(3*math.sqrt(2))/4)


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
    assert bleu([CAPTIONS[i] for i in order],
                [REFERENCES[i][::-1] for i in order]) == pytest.approx(bleu(CAPTIONS, REFERENCES), rel=1e-12)


@sentence_level
def test_one_reference_needs_no_list(metric):
    assert np.array_equal(metric(CAPTIONS, [r[0] for r in REFERENCES]), metric(CAPTIONS, [[r[0]] for r in REFERENCES]))


@pytest.mark.parametrize('captions, references, said', [
    (['a'], ['a', 'b'], '1 captions for 2 clips'), ('a', ['a'], 'give a list'), (['a', 'b'], ['a', []], r'clips \[1\]'),
    (['a', 'b'], ['...', 'b'], r'clips \[0\]'), ([], [], 'no words')])
def test_bad_lists_are_refused(captions, references, said):
    for metric in (bleu, *SENTENCES.values()):
        with pytest.raises(LogocentricError, match=said): metric(captions, references)


def test_dictionaries_are_matched_by_id():
    "As pycocoevalcap has them, in any order; the weights of CIDEr-D are of all clips."
    ids = [f'clip{i}' for i in range(6)]
    said, true = {i: [c] for i, c in zip(ids, CAPTIONS)}, dict(zip(ids, REFERENCES))
    said = dict(sorted(said.items(), reverse=True))
    for given in (said, {i: c[0] for i, c in said.items()}):
        assert bleu(given, true) == bleu(CAPTIONS, REFERENCES) > 0
        for metric in SENTENCES.values(): assert np.array_equal(metric(given, true), metric(CAPTIONS, REFERENCES))


@pytest.mark.parametrize('captions, references, said', [
    ({'a': 'slow'}, {1: 'slow'}, "different clips: 2 are in one of the two only, for instance 'a'"),
    ({'a': 'slow', 'b': 'fast'}, {'a': 'slow'}, "for instance 'b'"),
    ({'a': 'slow'}, ['slow'], 'here one of them is a dictionary'),
    (['slow'], {'a': 'slow'}, 'here one of them is a dictionary'),
    ({'a': ['slow', 'sad']}, {'a': 'slow'}, "clip 'a' has 2 captions"), ({'a': []}, {'a': 'slow'}, 'has 0 captions'),
    ({'a': [{'caption': 'slow'}]}, {'a': 'slow'}, "caption 'a' is no text: {'caption'"),
    ({'a': 'slow'}, {'a': [{'caption': 'slow'}]}, "clip 'a': reference 0 is no text: {'caption'"),
    ({'a': 'slow'}, {'a': ''}, r"no words in a reference of clips \['a'\]"), ({}, {}, 'no words'),
    (['a', None], ['a', 'b'], 'caption 1 is no text: None'), ([math.nan], ['a'], 'caption 0 is no text: nan'),
    ([b'a'], ['a'], "caption 0 is no text: b'a'"), (['a', 'b'], ['a', None], 'clip 1: reference 0 is no text: None'),
    (['a'], [['a', math.nan]], 'clip 0: reference 1 is no text: nan'), (['a'], 'a', 'references come as one str'),
    (['a'], [['a', pd.NA]], 'clip 0: reference 1 is no text: <NA>')])
def test_what_cannot_be_matched_is_named(captions, references, said):
    for metric in (bleu, *SENTENCES.values()):
        with pytest.raises(LogocentricError, match=said): metric(captions, references)


@sentence_level
def test_an_empty_reference_among_others_does_not_count(metric):
    gaps = [[*REFERENCES[0], ''], REFERENCES[1], [' - ', *REFERENCES[2]], *REFERENCES[3:]]
    with pytest.warns(UserWarning, match='left out in 2 clips, for instance 0') as found:
        assert np.array_equal(metric(CAPTIONS, gaps), metric(CAPTIONS, REFERENCES))
        assert bleu(CAPTIONS, gaps) == bleu(CAPTIONS, REFERENCES)
    assert {w.filename for w in found} == {__file__}


# --- the bootstrap

def test_resampling_tallies_is_resampling_clips():
    "The matrix product gives what BLEU gives of the resampled clips."
    tally = np.array([bleu_tally(w, r) for w, r in zip(*cm.split_words(CAPTIONS, REFERENCES))])
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
