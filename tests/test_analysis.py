"Verdicts, bias and the prompt lab on scores made by hand."
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np, pytest
from scipy.special import softmax
from logocentric.core import LogocentricError
from logocentric.data.styles import FMA_LABELS, GTZAN_LABELS
from logocentric.metrics import Score, mcnemar, wilson_interval
from logocentric.reasoner.model import PROMPTS, Scores, fill
from logocentric.reasoner.analysis import (LABEL_PHRASES, PROMPT_LAB, Question, bias, bias_difference, ensemble,
                                           explain, plot_bias, prompt_lab, questions, recall_change, shared_ngrams)

LABELS = ['blues', 'jazz', 'rock']


def says(answers, probability=.8, labels=LABELS):
    "Scores that give each answer its probability and share the rest among the others."
    rest = (1 - probability)/(len(labels) - 1)
    return Scores(np.log([[probability if l == a else rest for l in labels] for a in answers]), labels)


TRUTH  = ['Blues', 'Blues', 'Jazz', 'Jazz', 'Rock', 'Rock']
PREDICTED  = ['blues', 'blues', 'rock', 'blues', 'rock', 'blues']
ORACLE = ['blues', 'jazz',  'jazz', 'rock',  'rock', 'rock']
#          right    lucky    captioner  reasoner  right  captioner; the blank description gives blues


@pytest.fixture
def why():
    texts = [[f'{kind} {i}' for i in range(6)] for kind in ('predicted', 'true')]
    return explain(says(PREDICTED), says(ORACLE), says(['blues'], .5), TRUTH, *texts)


def test_verdicts(why):
    f = why.frame
    assert f.verdict.tolist() == ['right', 'right', 'captioner', 'reasoner', 'right', 'captioner']
    assert f.lucky.tolist() == [False, True, False, False, False, False]
    assert f.fell_back.tolist() == [False, False, False, True, False, True]  # never for a right answer
    assert f.truth.tolist() == [t.lower() for t in TRUTH] and f.answer.tolist() == PREDICTED
    assert f.oracle.tolist() == ORACLE and set(f.prior) == {'blues'}
    assert f.probability.to_numpy() == pytest.approx(.8) and f.margin.to_numpy() == pytest.approx(np.log(.8/.1))
    assert f.description[3] == 'predicted 3' and f.true_description[3] == 'true 3'


def test_shares_add_up_and_have_wilson_intervals(why):
    shares = why.shares()
    assert shares.loc['all'].value.to_dict() == pytest.approx(dict(right=3/6, captioner=2/6, reasoner=1/6))
    assert shares.loc[('all', 'captioner'), ['low', 'high']].tolist() == pytest.approx(wilson_interval(2, 6))
    assert shares.loc['jazz'].value.to_dict() == dict(right=0, captioner=.5, reasoner=.5)
    assert (shares.loc['jazz'].n == 2).all()
    assert shares.value.groupby('label').sum().to_numpy() == pytest.approx(1)


def test_labels_without_clips_have_no_shares():
    s = says(['blues', 'rock'])
    assert set(explain(s, s, says(['jazz']), ['blues', 'rock'], ['', ''],
                       ['', '']).shares().index.get_level_values('label')) == {'all', 'blues', 'rock'}


def test_findings_and_html(why):
    assert why.fallback() == Score(2/3, *wilson_interval(2, 3), 3)
    said = repr(why)
    # two errors of the captioner, one made good by luck
    assert '0.500 [0.188, 0.812] (N=6)' in said and 'difference 0.167' in said
    assert f'p = {mcnemar(why.frame.truth, PREDICTED, ORACLE):.1e}' in said
    # no wrong answer to true blues, and two labels to choose
    assert "are 'blues'" in said and 'spread evenly would give 0.500' in said
    assert why._repr_html_().count('<tr') == 6 and '0.33 [0.10, 0.70]' in why._repr_html_()


def test_all_right_has_no_fallback():
    s = says(PREDICTED)
    right = explain(s, s, says(['jazz']), PREDICTED, PREDICTED, PREDICTED)
    assert right.fallback() is None and 'blank' not in repr(right) and right.examples().empty


def test_examples_and_one_clip():
    predicted = Scores(np.log([[.6, .3, .1], [.2, .7, .1], [.1, .8, .1]]), LABELS)
    why = explain(predicted, says(['rock', 'rock', 'rock']), says(['jazz'], .5), ['rock', 'rock', 'jazz'], list('abc'),
                  list('xyz'))
    assert why.examples().index.tolist() == [1, 0] and why.examples('captioner', 1).description.tolist() == ['b']
    assert why.examples('right').index.tolist() == [2] and why.examples('reasoner').empty
    clip = why.clip(0)
    assert clip.index.tolist() == LABELS and clip.predicted.to_numpy() == pytest.approx([.6, .3, .1])
    assert clip.true['rock'] == pytest.approx(.8) and clip.blank['jazz'] == pytest.approx(.5)
    with pytest.raises(LogocentricError, match='is no verdict: give one of right, captioner, reasoner'):
        why.examples('luck')


def test_explain_refuses_what_does_not_fit():
    s, p = says(['blues', 'rock']), says(['jazz'])
    two = ['', '']
    with pytest.raises(LogocentricError, match='samba'): explain(s, s, p, ['samba', 'rock'], two, two)
    with pytest.raises(LogocentricError, match='one row a clip'): explain(s, s, p, ['rock'], two, two)
    with pytest.raises(LogocentricError, match='one row a clip'): explain(s, s, p, ['rock', 'rock'], two, [''])
    with pytest.raises(LogocentricError, match='2 rows'): explain(s, s, s, ['rock', 'rock'], two, two)
    with pytest.raises(LogocentricError, match='different labels'):
        explain(s, says(['blues', 'rock'], labels=LABELS[::-1]), p, ['rock', 'rock'], two, two)
    with pytest.raises(LogocentricError, match='at least two'):
        explain(*[Scores(np.zeros((1, 1)), ['rock'])]*3, ['rock'], [''], [''])


def test_plot_is_a_bar_a_label(why):
    ax = why.plot(plt.figure().gca())
    assert [t.get_text() for t in ax.get_yticklabels()] == LABELS
    ends = {(round(p.get_y() + p.get_height()/2), round(p.get_x() + p.get_width(), 6)) for p in ax.patches
            if p.get_width()}
    # blues right; jazz half reasoner, half captioner; rock half right, half captioner
    assert ends == {(0, 1.), (1, .5), (1, 1.), (2, .5), (2, 1.)}
    plt.close('all')


def test_bias_by_hand():
    truth = ['blues']*4 + ['jazz']*4 + ['rock']*4
    answers = ['blues']*8 + ['jazz']*2 + ['rock']*2  # of twelve: 8, 2, 2 instead of 4, 4, 4
    found = bias(says(answers), says(['blues'], .6), truth, n=100)
    assert found.distance.value == pytest.approx(4/12) and found.distance.n == 12
    assert found.table.answers.tolist() == pytest.approx([8/12, 2/12, 2/12])
    assert found.table.truth.tolist() == pytest.approx([1/3]*3)
    assert found.table.prior.tolist() == pytest.approx([.6, .2, .2])
    assert found.table.sum().to_numpy() == pytest.approx(1)
    assert "'blues' is 66.7% of the answers and 33.3% of the truth" in repr(found)
    assert "says 'blues' (probability 0.60)" in repr(found)


def test_bias_has_nothing_to_do_with_errors():
    truth = LABELS*40
    # every answer wrong, the histogram perfect
    shifted = bias(says(truth[1:] + truth[:1]), says(['blues']), truth, n=100)
    assert shifted.distance.value == 0 and shifted.distance.low == 0
    assert bias(says(['blues']*120), says(['blues']), truth, n=100).distance.low > .5


def test_bias_of_an_unbiased_reasoner_reaches_down_to_zero():
    rng = np.random.default_rng(0)
    lows = []
    for _ in range(20):
        truth, answers = rng.choice(LABELS, 90), rng.choice(LABELS, 90)
        lows.append(bias(says(answers), says(['blues']), truth, n=100).distance.low)
    assert sum(low == 0 for low in lows) >= 17


def test_bias_difference_is_paired_and_signed():
    rng = np.random.default_rng(0)
    truth = rng.choice(LABELS, 150)
    narrow, broad = np.where(rng.random(150) < .6, 'jazz', truth), np.where(rng.random(150) < .1, 'jazz', truth)
    change = bias_difference(says(narrow), says(broad), truth, n=300)
    assert change.low <= change.value <= change.high < 0
    swapped = bias_difference(says(broad), says(narrow), truth, n=300)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-change.value, -change.high, -change.low))
    assert bias_difference(says(narrow), says(narrow), truth, n=50) == Score(0., 0., 0., 150)


def test_plot_bias_has_three_bars_a_label():
    ax = plot_bias(plt.figure().gca(), bias(says(LABELS), says(['rock'], .5), LABELS, n=20), 'title')
    heights = [[bar.get_height() for bar in group] for group in ax.containers]
    assert np.array(heights) == pytest.approx(np.array([[.25, .25, .5], [1/3]*3, [1/3]*3]))
    assert ax.get_title() == 'title'
    plt.close('all')


def test_no_prompt_was_read_by_the_shipped_reasoner(knowledge_sentences):
    assert len(PROMPT_LAB) >= 14 and len(set(PROMPT_LAB.values())) == len(PROMPT_LAB)
    assert set(PROMPTS) <= set(PROMPT_LAB)
    assert all(fill(p, 'calm').count('calm') == 1 and not p.endswith(' ') for p in PROMPT_LAB.values())
    assert shared_ngrams(PROMPT_LAB, knowledge_sentences) == {}


def test_shared_ngrams():
    text = ['It sounds like a very old song.']
    assert shared_ngrams(dict(a='Sounds LIKE a very {description}', b='It sounds like {description} a very old'),
                         text) == {
        'a': [('sounds', 'like', 'a',
               'very')]}  # b: the run is broken by the description, three words remain on each side
    assert shared_ngrams(dict(b='{description} a very old song'), text,
                         n=3) == {'b': [('a', 'very', 'old'), ('very', 'old', 'song')]}


class Echo:
    "A reasoner that finds the label word that occurs in the prompt, and notes what it was asked."
    def __init__(self): self.asked = []

    def reason(self, descriptions, labels, prompt='tables', **settings):
        self.asked.append((tuple(labels), prompt, settings))
        return Scores(np.array([[float(l in fill(prompt, d)) for l in labels] for d in descriptions]), labels)


def test_question_reads_labels_off_their_words():
    q, echo = Question('It is {description}:', dict(blues='sad songs', rock='loud guitars')), Echo()
    scores = q.ask(echo, ['loud guitars', 'sad songs'], rule='mean')
    assert scores.predictions == ['rock', 'blues'] and scores.labels == ['blues', 'rock']
    assert echo.asked == [(('sad songs', 'loud guitars'), 'It is {description}:', dict(rule='mean'))]


def test_questions_are_prompts_times_words():
    words = dict(plain=dict(a='a'), long=dict(a='quite a'))
    assert list(questions(dict(x='{description} x', y='{description} y'), words)) == ['x, plain', 'x, long', 'y, plain',
                                                                                      'y, long']
    assert questions(dict(x='{description} x'), ['a', 'b']) == {'x': Question('{description} x', dict(a='a', b='b'))}


def test_label_phrases_are_for_all_labels():
    wanted = {l.lower() for l in GTZAN_LABELS + FMA_LABELS}
    assert set(LABEL_PHRASES) == wanted and len(set(LABEL_PHRASES.values())) == len(wanted)


ANSWERS = dict(good=dict(valid='blues jazz jazz rock', test='blues jazz jazz jazz'),
               best=dict(valid='blues jazz rock rock', test='blues jazz rock jazz'),
               same=dict(valid='blues jazz rock rock', test='jazz jazz jazz jazz'))

@pytest.fixture
def lab():
    truth = 'Blues Jazz Rock Rock'.split()
    return prompt_lab(lambda descriptions, q: says(q[descriptions[0]].split()), ANSWERS, (['valid']*4, truth),
                      dict(test=(['test']*4, truth)))


def test_prompt_lab_chooses_on_validation_the_first_of_equals(lab):
    assert lab.chosen == 'best'
    assert lab.table.index.tolist() == ['best', 'same', 'good'] and lab.table.valid.tolist() == [1, 1, .75]
    assert lab.table.test.tolist() == [.75, .25, .5]
    assert lab.table.loc['good', ['low', 'high']].tolist() == pytest.approx(wilson_interval(3, 4))
    row = lab.spread.loc['test']
    assert row[['n', 'chosen', 'min', 'median', 'max']].tolist() == [4, .75, .25, .5, .75]
    assert row[['low', 'high']].tolist() == pytest.approx(wilson_interval(3, 4))
    assert row.ensemble == .5  # blues, jazz, jazz, jazz
    assert "4 validation clips: 'best', 1.000" in repr(lab)
    assert 'all questions 0.250 to 0.750, median 0.500; ensemble 0.500' in repr(lab)


def test_prompt_lab_refuses():
    ask = lambda descriptions, q: says(['blues']*len(descriptions))
    with pytest.raises(LogocentricError, match="named 'valid'"):
        prompt_lab(ask, dict(q=0), ([''], ['rock']), dict(valid=([''], ['rock'])))
    with pytest.raises(LogocentricError, match='one row a clip'): prompt_lab(ask, dict(q=0), (['', ''], ['rock']), {})
    with pytest.raises(LogocentricError, match='samba'): prompt_lab(ask, dict(q=0), ([''], ['samba']), {})


def test_prompt_lab_with_real_questions():
    found = prompt_lab(lambda d, q: q.ask(Echo(), d),
                       questions(dict(a='{description}', b='blues {description}'), LABELS),
                       (['a jazz', 'a rock'], ['jazz', 'rock']), {})
    assert found.chosen == 'a' and found.table.valid.to_dict() == dict(a=1., b=0.) and found.spread.empty


def test_ensemble_is_the_mean_of_probabilities():
    # only differences between labels count
    a, b = np.array([[2., 0., 1.], [0., 5., 1.]]), np.array([[-9., -7., -8.], [0., 0., 3.]])
    expected = (softmax(a, 1) + softmax(b, 1))/2
    assert ensemble([Scores(a, LABELS), Scores(b, LABELS)]).probabilities.to_numpy() == pytest.approx(expected)
    assert np.exp(ensemble([Scores(a, LABELS), Scores(b + 7, LABELS)]).values) == pytest.approx(expected)


def test_no_member_of_an_ensemble_has_a_veto():
    sure = Scores(np.array([[0., -1e4, -1e4]]), LABELS)
    assert ensemble([sure, says(['jazz']), says(['jazz'])]).predictions == ['jazz']


def test_ensemble_refuses():
    with pytest.raises(LogocentricError, match='nobody'): ensemble([])
    with pytest.raises(LogocentricError, match='different labels'):
        ensemble([says(['jazz']), says(['jazz'], labels=LABELS[::-1])])
    with pytest.raises(LogocentricError, match='one row a clip'): ensemble([says(['jazz']), says(['jazz', 'jazz'])])


def test_recall_change_by_hand():
    truth = ['blues']*8 + ['rock']*4
    first, second = ['blues']*1 + ['jazz']*7 + ['rock']*4, ['blues']*8 + ['rock']*3 + ['jazz']
    found = recall_change(truth, says(first), says(second))
    assert found.index.tolist() == ['blues', 'rock'] and found.n.tolist() == [8, 4]  # nobody asked for jazz
    assert found['first'].tolist() == [1/8, 1.] and found.second.tolist() == [1., 3/4]
    assert found.difference.tolist() == [7/8, -1/4]
    assert found.p.tolist() == pytest.approx([2/2**7, 1.]) and found.p_holm.tolist() == pytest.approx([4/2**7, 1.])
