"Metrics against scikit-learn, SciPy's tables and values worked by hand."
import json
from dataclasses import asdict
import numpy as np, pytest
from scipy.stats import binom, norm
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from logocentric.metrics import (Score, accuracy, bootstrap_interval, chance_level, confusion, macro_f1, majority_level,
                                 mcnemar, plot_confusion, score, wilson_interval)

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
    ax = plot_confusion(plt.figure().gca(), confusion(['a', 'a'], ['a', 'b'], ['a', 'b', 'c']), ['a', 'b', 'c'], 'title')
    assert [t.get_text() for t in ax.texts] == ['0.50', '0.50', '0.00'] + ['0.00']*6
    assert ax.get_title() == 'title'
    plt.close('all')
