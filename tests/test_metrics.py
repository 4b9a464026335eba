"Metrics against scikit-learn, SciPy's tables and values worked by hand."
import json
from dataclasses import asdict
import numpy as np, pytest
from scipy.stats import binom, norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score
from logocentric.core import LogocentricError
from logocentric.metrics import (Score, accuracy, bootstrap_interval, bootstrap_score, chance_level, confusion, holm,
                                 macro_f1, majority_level, mcnemar, pairwise, plot_confusion, rank, score,
                                 wilson_interval)
from logocentric.calibration import (calibration_bins, calibration_error, calibration_score, distance_score,
                                     plot_reliability)
from logocentric.multilabel import d_prime, mean_auc, mean_average_precision, score_tagging

LABELS = np.array('blues classical country disco hip-hop jazz metal pop reggae rock'.split())


@pytest.fixture
def answers():
    rng = np.random.default_rng(1)
    y = rng.choice(LABELS, 500)
    return y, np.where(rng.random(500) < .6, y, rng.choice(LABELS, 500)), np.where(rng.random(500) < .7, y, 'rock')


def test_accuracy_and_trivial_lines(answers):
    y, p, _ = answers
    assert accuracy(y, p) == np.mean(y == p) and isinstance(accuracy(y, p), float)
    assert accuracy(list(y), list(p)) == accuracy(y, p)
    assert chance_level(8) == .125
    assert majority_level(['a', 'b', 'b'], ['b', 'a', 'b', 'c']) == .5
    assert majority_level(['b', 'a'], ['a', 'a', 'b']) == pytest.approx(2/3)  # a tie: the first in order


def test_macro_f1_is_the_mean_over_labels(answers):
    y, p, collapsed = answers
    for q in (p, collapsed):
        assert macro_f1(y, q) == pytest.approx(precision_recall_fscore_support(y, q, zero_division=0)[2].mean())


@pytest.mark.parametrize('k, n, low, high', [
    (81, 263, .2553, .3662),  # Newcombe (1998), Table I, method 3
    (15, 148, .0624, .1605),
    (0, 20, .0000, .1611),
    (1, 29, .0061, .1718),
])
def test_wilson_against_newcombe(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_ordered():
    for k in range(11):
        low, high = wilson_interval(k, 10)
        assert 0 <= low <= k/10 <= high <= 1
        assert (1 - high, 1 - low) == pytest.approx(wilson_interval(10 - k, 10))
    assert wilson_interval(5, 10, .99)[1] > wilson_interval(5, 10, .95)[1] > wilson_interval(5, 10, .5)[1]


def test_290_clips_give_4_6_points():
    low, high = wilson_interval(232, 290)
    assert (high - low)/2 == pytest.approx(.046, abs=5e-4)


def test_score(answers):
    y, p, _ = answers
    s = score(y, p)
    assert (s.value, s.n) == (accuracy(y, p), 500) and (s.low, s.high) == wilson_interval((y == p).sum(), 500)
    assert repr(Score(.665, .6351, .6939, 1000)) == '0.665 [0.635, 0.694] (N=1000)'
    assert Score(**json.loads(json.dumps(asdict(s)))) == s


def test_bootstrap_of_a_mean_is_nearly_normal():
    x = np.random.default_rng(0).normal(3, 2, 400)
    half = norm.ppf(.975)*x.std()/20
    assert bootstrap_interval(x) == pytest.approx((x.mean() - half, x.mean() + half), abs=.03)
    assert bootstrap_interval(x, seed=5) == bootstrap_interval(x, seed=5) != bootstrap_interval(x, seed=6)


def test_bootstrap_of_pairs_keeps_pairs_together(answers):
    y, _, _ = answers
    assert bootstrap_interval(np.stack([y, y], 1), lambda rows: accuracy(*rows.T), n=50) == (1., 1.)


@pytest.mark.parametrize('only_a, only_b, expected', [(1, 9, 2*11/1024), (0, 6, 2/64), (5, 5, 1.), (0, 0, 1.)])
def test_mcnemar_by_hand(only_a, only_b, expected):
    y = np.ones(only_a + only_b + 7)
    a, b = y.copy(), y.copy()
    b[:only_a] = 0; a[only_a:only_a + only_b] = 0
    assert mcnemar(y, a, b) == pytest.approx(expected) == mcnemar(y, b, a)


def test_mcnemar_holds_its_level():
    "With 40 fair disagreements p falls below 0.05 in at most one of twenty experiments."
    y, wins = np.ones(40), np.arange(41)
    p = np.array([mcnemar(y, np.arange(40) < k, np.arange(40) >= k) for k in wins])
    assert .02 < binom.pmf(wins, 40, .5)[p < .05].sum() <= .05


def test_confusion(answers):
    y, p, _ = answers
    m = confusion(y, p, list(LABELS))
    assert (m == confusion_matrix(y, p, labels=LABELS)).all() and m.trace()/500 == accuracy(y, p)
    with pytest.raises(ValueError, match='rock'): confusion(y, p, list(LABELS[:-1]))


def test_plot_confusion_rows_without_clips_are_zero():
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    matrix = confusion(['a', 'a'], ['a', 'b'], ['a', 'b', 'c'])
    ax = plot_confusion(plt.figure().gca(), matrix, ['a', 'b', 'c'], 'title')
    assert [t.get_text() for t in ax.texts] == ['0.50', '0.50', '0.00'] + ['0.00']*6
    assert ax.get_title() == 'title'
    plt.close('all')


def test_bootstrap_score_resamples_columns_together(answers):
    y, p, _ = answers
    s = bootstrap_score(macro_f1, y, p, n=50)
    assert s.value == macro_f1(y, p) and s.n == 500 and s.low < s.value < s.high
    assert (s.low, s.high) == bootstrap_interval(np.stack([y, p], 1), lambda rows: macro_f1(*rows.T), n=50)
    assert bootstrap_score(macro_f1, y, y, n=20) == Score(1., 1., 1., 500)
    with pytest.raises(LogocentricError, match='different lengths'): bootstrap_score(macro_f1, y, p[1:])


def test_basic_interval_reflects_the_percentile_one():
    x = np.random.default_rng(0).exponential(size=80)
    low, high = bootstrap_interval(x, n=500)
    assert bootstrap_interval(x, n=500, method='basic') == pytest.approx((2*x.mean() - high, 2*x.mean() - low))


@pytest.mark.parametrize('p, expected', [
    ([.01, .04, .03, .005], [.03, .06, .06, .02]),  # .005*4, .01*3, .03*2, then .04*1 lifted to .06
    ([.5, .6], [1., 1.]), ([.2], [.2]), ([], []), ([.01, .01], [.02, .02]),
])
def test_holm_by_hand(p, expected):
    assert holm(p) == pytest.approx(expected)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, rejected = rng.random(6)**4, set()
        for k, i in enumerate(p.argsort()):  # stop at the first that is kept
            if p[i] > .05/(6 - k): break
            rejected.add(int(i))
        assert set(np.flatnonzero(holm(p) <= .05).tolist()) == rejected


def three_systems():
    "a is right on the first 60 of 100 clips, b on the first 54, c on the first 50."
    y = np.full(100, 'x')
    return y, {name: np.where(np.arange(100) < k, 'x', 'z') for name, k in dict(c=50, a=60, b=54).items()}


def test_pairwise_and_ranks_that_are_not_transitive():
    y, systems = three_systems()
    tests = pairwise(y, systems).set_index(['a', 'b'])
    assert tests.difference.to_dict() == pytest.approx({('c', 'a'): -.1, ('c', 'b'): -.04, ('a', 'b'): .06})
    assert tests.p.to_dict() == pytest.approx({('c', 'a'): 2/2**10, ('c', 'b'): 2/2**4, ('a', 'b'): 2/2**6})
    assert tests.p_holm.to_dict() == pytest.approx({('c', 'a'): 6/2**10, ('a', 'b'): 4/2**6, ('c', 'b'): 2/2**4})
    table = rank(y, systems)  # a is better than c; b is level with both
    assert table.index.tolist() == ['a', 'b', 'c'] and table['rank'].tolist() == ['1–2', '1–3', '2–3']
    assert table.better_than.tolist() == ['c', '', '']
    assert table.loc['b', ['accuracy', 'low', 'high']].tolist() == [.54, *wilson_interval(54, 100)]
    assert rank(y, systems, level=.9)['rank'].tolist() == ['1', '2–3', '2–3']  # 4/64 < .1


def test_rank_of_one_and_of_equals():
    y, systems = three_systems()
    assert rank(y, dict(a=systems['a']))['rank'].tolist() == ['1']
    assert rank(y, dict(a=systems['a'], again=systems['a']))['rank'].tolist() == ['1–2', '1–2']
    with pytest.raises(ValueError, match='inconsistent'): rank(y, dict(a=systems['a'], short=systems['b'][1:]))


def test_calibration_error_by_hand():
    y, p = list('aaaabbbb'), list('aaazbzzz')              # three of four right, then one of four
    confidence = [.7]*4 + [.4]*4
    bins = calibration_bins(y, p, confidence, n_bins=2)
    found = bins[['n', 'confidence', 'accuracy']].to_numpy().tolist()
    assert found == [[4, pytest.approx(.4), .25], [4, pytest.approx(.7), .75]]
    assert bins.loc[0, ['low', 'high']].tolist() == pytest.approx(wilson_interval(1, 4))
    assert calibration_error(y, p, confidence, n_bins=2) == pytest.approx((.15 + .05)/2)
    assert calibration_error(y, p, [.5]*8) == pytest.approx(0)  # equal confidences stay in one bin
    assert calibration_error(['a'], ['b'], [.9]) == pytest.approx(.9)


def test_calibration_bins_against_sklearn():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(333).round(2), rng.random(333) < .5  # with ties
    bins = calibration_bins(np.ones(333), right, confidence, 7)
    fraction, mean = calibration_curve(right, confidence, n_bins=7, strategy='quantile')
    assert bins.accuracy.to_numpy() == pytest.approx(fraction) and bins.n.sum() == 333
    assert bins.confidence.to_numpy() == pytest.approx(mean)
    error = calibration_error(np.ones(333), right, confidence, 7)
    assert error == pytest.approx((bins.n*abs(fraction - mean)).sum()/333)


def test_calibration_score_knows_luck():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(.3, 1, 300)
    fair, sure = rng.random(300) < confidence, rng.random(300) < confidence - .3
    honest, boaster = (calibration_score(np.ones(300), right, confidence, n=200) for right in (fair, sure))
    assert honest.low == 0 < honest.value <= honest.high < .15
    assert .15 < boaster.low < .3 < boaster.high and boaster.n == 300


def test_distance_score_begins_at_zero_only_within_luck():
    x = np.random.default_rng(0).normal(.2, 1, 100)
    distance = lambda x: abs(x.mean())
    within = distance_score(distance, lambda rng: (rng.normal(0, 5, 100),), x, n=200)
    beyond = distance_score(distance, lambda rng: (np.zeros(100),), x, n=200)
    assert within.low == 0 and within.value == beyond.value == abs(x.mean()) and within.high == beyond.high
    low, high = bootstrap_interval(x, distance, n=200, method='basic')
    assert (beyond.low, beyond.high) == (max(low, 0), max(high, beyond.value))


def test_plot_reliability_draws_a_point_a_bin():
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    answers = list('aaaabbbb'), list('aaazbzzz'), [.7]*4 + [.4]*4
    ax = plot_reliability(plt.figure().gca(), *answers, n_bins=2, title='title')
    points = ax.lines[1].get_xydata()
    assert points.tolist() == [[pytest.approx(.4), .25], [pytest.approx(.7), .75]] and ax.get_title() == 'title'
    plt.close('all')


def test_tagging_by_hand_and_against_sklearn():
    y = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[.9, .8, .1], [.8, .7, .2], [.7, .1, .3], [.1, .2, .4]])
    found = score_tagging(y, scores, ['dog', 'guitar', 'harp'], n=50)
    precision = found.table.average_precision
    assert precision.tolist()[:2] == pytest.approx([1/2 + 1/2*2/3, 1/2]) and np.isnan(precision['harp'])
    assert found.table.positives.tolist() == [2, 1, 0] and found.table.chance.tolist() == [.5, .25, 0]
    assert found.score.value == pytest.approx((5/6 + 1/2)/2) and found.left_out == ['harp']
    assert repr(found).startswith('mAP 0.667') and repr(found).endswith('(N=4) over 2 of 3 labels; no clip has harp')
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 2, (60, 5)), rng.random((60, 5))
    found = score_tagging(y, scores, list('abcde'), n=50)
    assert found.score.value == pytest.approx(average_precision_score(y, scores))
    assert found.score.low < found.score.value < found.score.high
    assert repr(found).endswith('over 5 of 5 labels')


def test_labels_have_intervals_from_the_same_resamples_as_their_mean():
    rng = np.random.default_rng(2)
    y = rng.random((120, 4)) < [.5, .2, .02, 0]
    y[0, 2] = True
    scores = rng.random((120, 4)) + .4*y
    found = score_tagging(y, scores, list('abcd'), n=80, seed=3)
    mean = bootstrap_interval(np.arange(120), lambda rows: mean_average_precision(y[rows], scores[rows]), n=80, seed=3)
    first_label = lambda rows: average_precision_score(y[rows, 0], scores[rows, 0])
    alone = bootstrap_interval(np.arange(120), first_label, n=80, seed=3)
    assert (found.score.low, found.score.high) == pytest.approx(mean)
    assert tuple(found.table.loc['a', ['low', 'high']]) == pytest.approx(alone)
    assert found.table.loc[['a', 'b'], 'high'].gt(found.table.loc[['a', 'b'], 'low']).all()
    rare = found.table.loc['c', ['low', 'high']].astype(float)
    assert np.isfinite(rare).all(), 'resamples without a clip of it are left out'
    assert found.table.loc['d', ['average_precision', 'low', 'high']].isna().all()


def test_auc_and_d_prime_by_hand_and_against_sklearn():
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1]])
    scores = np.array([[.9, .8, 1], [.8, .7, 1], [.7, .1, 1], [.1, .2, 1]])
    assert mean_auc(y, scores) == pytest.approx((3/4 + 1/3)/2), 'a label that all clips have has no pairs'
    assert mean_auc(np.ones((3, 1)), np.ones((3, 1))) == .5
    assert d_prime(.5) == 0 and d_prime(.9) == pytest.approx(1.8124, abs=1e-4) and d_prime(.1) == -d_prime(.9)
    rng = np.random.default_rng(1)
    y, scores = rng.integers(0, 2, (80, 4)), rng.random((80, 4)).round(1)  # with ties
    assert mean_auc(y, scores) == pytest.approx(roc_auc_score(y, scores))
    assert mean_average_precision(y, scores) == pytest.approx(average_precision_score(y, scores))
    assert mean_average_precision(0*y, scores) == 0


def test_tagging_refuses_what_has_no_answer():
    refuses = lambda match: pytest.raises(LogocentricError, match=match)
    with refuses('do not agree'): score_tagging(np.ones((4, 2)), np.ones((4, 3)), ['a', 'b', 'c'])
    with refuses('do not agree'): score_tagging(np.ones((4, 2)), np.ones((4, 2)), ['a'])
    with refuses('no clip has any label'): score_tagging(np.zeros((4, 1)), np.ones((4, 1)), ['a'])
