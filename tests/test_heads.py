"Heads on frozen features: what is known becomes targets, answers add up, calibration changes confidence and no order."
from dataclasses import replace
import numpy as np, pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from logocentric.calibration import calibration_error
from logocentric.core import LogocentricError
from logocentric.data.players import INSTRUMENT_GROUPS
from logocentric.encoder.heads import (HEAD_QUESTIONS, calibrate_heads, calibration_of, fit_heads, head_targets,
                                       load_heads)

KINDS, SIZE = HEAD_QUESTIONS['kind'].answers, 6
READS = {question: dict(made_up=1.) for question in ('kind', 'drums', 'instruments')}


def sounds(n, seed=0):
    "Features and facts: the first three features say the kind, the fourth whether there are drums, the fifth a piano."
    x = np.random.default_rng(seed).standard_normal((n, SIZE)).astype('f4')
    facts = [dict(kind=KINDS[row[:3].argmax()], voice=None, drums='yes' if row[3] > 0 else 'no', tempo=None,
                  instruments=['piano'] if row[4] > 0 else []) for row in x]
    return dict(made_up=x), facts


@pytest.fixture(scope='module')
def heads(): return fit_heads(*sounds(400), READS)


def test_what_is_unknown_teaches_nothing():
    facts = [dict(kind='music', drums='no'), dict(kind='music', drums=None), dict(kind=None, drums='yes'),
             dict(kind='speech')]
    rows, y = head_targets(facts, 'drums')
    assert rows.tolist() == [0] and y.tolist() == [HEAD_QUESTIONS['drums'].answers.index('no')]
    assert head_targets(facts, 'kind')[0].tolist() == [0, 1, 3] and len(head_targets(facts, 'instruments')[0]) == 0
    with pytest.raises(LogocentricError, match='no sound has a known answer'):
        fit_heads(dict(x=np.zeros((4, 2))), facts, dict(instruments=dict(x=1.)))
    with pytest.raises(LogocentricError, match="'opera' is no answer"): head_targets([dict(kind='opera')], 'kind')


def test_heads_answer_as_the_classifiers_they_are_made_of(heads):
    (x, facts), (new, true) = sounds(400), sounds(200, seed=1)
    x, y = x['made_up'], new['made_up']
    z = (x - x.mean(0))/(x.std(0) + 1e-6)
    drums = LogisticRegression(C=1., max_iter=3000, class_weight='balanced')
    music = [i for i, f in enumerate(facts) if f['kind'] == 'music']
    drums.fit(z[music], [facts[i]['drums'] for i in music])
    found = heads.probabilities(new)
    expected = drums.predict_proba((y - x.mean(0))/(x.std(0) + 1e-6))[:, list(drums.classes_).index('yes')]
    assert np.allclose(found['drums']['yes'], expected, atol=1e-3)
    assert np.mean(found['kind'].idxmax(axis=1) == [f['kind'] for f in true]) > .9


def test_answers_to_one_question_share_one_and_several_do_not(heads):
    found = heads.probabilities(sounds(50, seed=2)[0])
    for name in ('kind', 'drums'): assert np.allclose(found[name].sum(axis=1), 1)
    assert found['instruments']['piano'].between(0, 1).all()
    assert (found['instruments']['guitar'] < .01).all(), 'none was heard'


def test_an_answer_that_never_occurred_is_never_given():
    x, facts = sounds(200)
    keep = [i for i, f in enumerate(facts) if f['kind'] != 'speech']
    heads = fit_heads(dict(made_up=x['made_up'][keep]), [facts[i] for i in keep], dict(kind=READS['kind']))
    found = heads.probabilities(x)['kind']
    assert (found['speech'] < .01).all() and found['music'].max() > .6


def test_calibration_keeps_the_order_and_mends_the_confidence():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((2000, 2))*4
    y = (rng.random(2000) < expit((z[:, 1] - z[:, 0])*.25 + .5)).astype(int) # four times too sure, and leaning
    scale, shift = calibration_of(z, y)
    assert .2 < scale < .3 and shift[1] > shift[0]
    before, after = (np.stack([1 - p, p], 1) for p in (expit(z @ [-1, 1]), expit((scale*z + shift) @ [-1, 1])))
    errors = [calibration_error(y, p.argmax(1), p.max(1)) for p in (before, after)]
    assert errors[1] < .05 < errors[0]
    assert (np.argsort(before[:, 1]) == np.argsort(after[:, 1])).all()


def test_a_few_sounds_calibrate_little_and_none_not_at_all(heads):
    x, facts = sounds(3, seed=5)
    assert calibrate_heads(heads, x, [dict(f, instruments=None, drums=None) for f in facts]) == dict(kind=3, drums=0,
                                                                                                  instruments=0)
    scale, at = heads.scale.numpy(), heads.places('kind')
    assert (scale[heads.places('drums')] == 1).all() and (abs(np.log(scale[at])) < 1).all()


def test_the_table_of_questions_may_change_and_saved_heads_do_not(heads, tmp_path, monkeypatch):
    x, before = sounds(20, seed=6)[0], heads.probabilities(sounds(20, seed=6)[0])['kind']
    heads.save_pretrained(tmp_path)
    monkeypatch.setitem(HEAD_QUESTIONS, 'kind', replace(HEAD_QUESTIONS['kind'], answers=['noise', *KINDS[::-1]]))
    again = load_heads(tmp_path).probabilities(x)['kind']
    assert list(again) == KINDS and (again == before).all(axis=None)


def test_instruments_are_the_groups_that_clips_are_made_of():
    assert {*HEAD_QUESTIONS['instruments'].answers} == {*INSTRUMENT_GROUPS}


def test_heads_are_the_same_after_saving(heads, tmp_path):
    x = sounds(20, seed=4)[0]
    heads.save_pretrained(tmp_path)
    again = load_heads(tmp_path)
    assert again.config.inputs == dict(made_up=SIZE) and again.config.asked['kind'] == HEAD_QUESTIONS['kind']
    for name, table in heads.probabilities(x).items(): assert (table == again.probabilities(x)[name]).all(axis=None)
    (tmp_path/'model.safetensors').write_bytes(b'nothing')
    with pytest.raises(LogocentricError, match='model.safetensors'): load_heads(tmp_path)


def test_the_logits_of_parts_are_averaged_whatever_their_order():
    "A part that says nothing halves the logits of the other; a question that does not read a part ignores it."
    (x, facts), noise = sounds(400), np.random.default_rng(9).standard_normal((400, 2)).astype('f4')
    x = dict(x, another=noise)
    one, two = (fit_heads(x, facts, dict(drums=of, kind=dict(made_up=1.)))
                for of in (dict(made_up=1.), dict(made_up=1., another=1e-6)))
    logits = [h.uncalibrated(h.vector(x))[:, h.places('drums')].detach().numpy() for h in (one, two)]
    assert np.allclose(logits[1], logits[0]/2, atol=.05)
    assert one.config.inputs.keys() == {'made_up'} and sorted(two.config.inputs) == ['another', 'made_up']
    changed = two.probabilities(dict(x, another=noise[::-1]))
    assert (changed['kind'] == two.probabilities(x)['kind']).all(axis=None)
    del x['another']
    with pytest.raises(LogocentricError, match="heads read 'another', 2 numbers"): two.probabilities(x)
