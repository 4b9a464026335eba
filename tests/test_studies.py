"Our own studies at scale smoke: each runs to its end and writes a record that says enough."
import os
import pytest, torch
from logocentric.core import LogocentricError, load_records, read_json
from logocentric.experiments import STARTS, Lab, run_experiment
from logocentric.mae import MAEEncoder
from logocentric.pretrain import Objective


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp('home')
    before = os.environ.get('LOGOCENTRIC_HOME')
    os.environ.update(LOGOCENTRIC_HOME=str(folder), LOGOCENTRIC_QUIET='1')
    yield folder
    os.environ.pop('LOGOCENTRIC_HOME') if before is None else os.environ.update(LOGOCENTRIC_HOME=before)


def record(home, name):
    run_experiment(name, 'smoke', 1)
    return load_records(home/'data'/'runs'/'smoke-1'/'records', name=name)[0]


def test_the_study_of_ears_measures_every_variant(home):
    metrics = record(home, 'ear_study').metrics
    assert {'log-mel statistics', 'random weights, 0', 'the recipe'} <= set(metrics['accuracy'])
    for row in metrics['accuracy'].values():
        assert set(row) == set(metrics['n']) == set(metrics['chance']) and all(0 <= v <= 1 for v in row.values())


def test_the_probes_have_all_their_lines(home):
    metrics = record(home, 'probe_ear').metrics
    for task, lines in metrics['accuracy'].items():
        assert {'log-mel statistics', 'random weights 0', 'the ear'} <= set(lines)
        for s in lines.values(): assert 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == 40
    assert {(p['task'], p['against']) for p in metrics['paired']} == {(t, line) for t in metrics['accuracy'] for line in ('log-mel statistics', 'random weights 0')}
    assert all(p['p'] <= p['p_holm'] <= 1 for p in metrics['paired'])


def test_a_captioner_begins_where_it_is_told(home):
    labs = {start: Lab.at('smoke', 1, start) for start in ('random', 'ear', 'ear15')}
    assert len({lab.captioner(8) for lab in labs.values()}) == 3
    begun, ear = labs['ear'].encoder(), MAEEncoder.from_pretrained(labs['ear'].ear())
    for a, b in zip(begun.parameters(), ear.parameters()): assert torch.equal(a, b)
    with pytest.raises(LogocentricError, match='unknown start'): Lab.at('smoke', 1, 'asleep')


def test_each_way_to_learn_is_a_stage_of_its_own(home):
    lab = Lab.at('smoke', 1)
    ways = [lab.ear(), lab.ear(STARTS['ear15']), lab.ear(of='music'), lab.ear(patch_frames=8), lab.ear(steps=2), lab.ear(Objective(paint=0.))]
    assert len(set(ways)) == 6 and lab.ear() == ways[0]
    assert read_json(ways[4]/'history.json')['passes'] == 2*lab.scale.ear.batch_size


def test_a_scale_without_a_recipe_says_so():
    with pytest.raises(LogocentricError, match='no recipe'): Lab.at('paper').ear()
