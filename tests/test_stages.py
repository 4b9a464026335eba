"A stage as a value: its key is all that decides it; it is made once; a killed one goes on; a schedule keeps the order."
import multiprocessing, os, signal, subprocess, sys, time
from dataclasses import FrozenInstanceError, dataclass, fields, replace
import pytest, torch
from logocentric.core import code_hash, read_json
from logocentric.pipeline import schedule, stage as stage_module
from logocentric.pipeline.captioner_stages import descriptions, text_decoder, trained_captioner
from logocentric.pipeline.data_stages import knowledge_sentences, rendered_clips, tokenizer
from logocentric.pipeline.encoder_stages import Architecture, ShippedEncoder, masked_autoencoder, multitask_encoder
from logocentric.pipeline.reasoner_stages import LabelPrior, genre_stage, reasoner_stage
from logocentric.pipeline.results import Difficulty, SupervisedTask
from logocentric.pipeline.scales import SCALES, Setup
from logocentric.pipeline.schedule import (ScheduleBar, Waiting, answering_stages, run_in_turn, run_side_by_side,
                                           run_stages, training_stages, urgency)
from logocentric.pipeline.stage import Given, Stage, in_order, stage_tree
from logocentric.pipeline.other_set_stages import ForeignFeatures, fold_scores
from logocentric.pipeline.tagging_stages import tagging_setup, trained_tagger

pytestmark = pytest.mark.usefixtures('home')


@dataclass(frozen=True)
class Group:
    "A dataclass that is no stage, and holds one."
    of: Stage
    word: str = 'some'


@dataclass(frozen=True)
class Work(Stage):
    "Waits a little, and notes when and where."
    kind = 'work'
    name: str
    after: tuple = ()
    group: Group | None = None
    options: dict | None = None
    wait: float = 0.

    def make(self, folder):
        if self.wait < 0: raise ValueError(f'{self.name} cannot be made')
        start = time.time()
        time.sleep(self.wait)
        return dict(start=start, end=time.time(), process=os.getpid(), threads=torch.get_num_threads())

    def read(self, folder): return read_json(folder/'done.json')['info']


class LongWork(Work): kind, seconds = 'long-work', 50.
class WholeMachine(Work): kind, all_cores = 'whole-machine', True
class Coded(Work): kind, code = 'coded', ('metrics',)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    "A home of the test's own."
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    return tmp_path


# --- what a key is

SETUP = Setup.at('smoke')

def every_kind():
    "One stage of each class, of a run of the paper and beside it."
    tagging = tagging_setup(SETUP)
    clips, question = rendered_clips(SETUP, 'gtzan'), genre_stage(SETUP, 'gtzan', 'small', 8).question
    asked = descriptions(SETUP, 'gtzan', 8).asked
    more = [multitask_encoder(SETUP), ForeignFeatures(trained_tagger(tagging, 'small'), clips),
            fold_scores(tagging, clips, 'small', 'words'), LabelPrior(question, reasoner_stage(SETUP, 'small')),
            Difficulty(rendered_clips(SETUP, 'train'), clips, 'gtzan', 8),
            SupervisedTask(rendered_clips(SETUP, 'train'), asked, 'tempo', 8)]
    stages = in_order([*training_stages(SETUP), *answering_stages(SETUP), *more])
    return {type(s).__name__: s for s in stages if not isinstance(s, Given)}

EVERY = every_kind()


@pytest.mark.parametrize('kind', EVERY)
def test_every_field_is_in_the_key(kind):
    stage = EVERY[kind]
    others = [replace(stage, **{f.name: 'something else'}).key for f in fields(stage)]
    assert len({stage.key, *others}) == 1 + len(fields(stage))
    assert replace(stage).key == stage.key == f'{stage.kind}-{stage.key.rpartition("-")[2]}'


@pytest.mark.parametrize('kind', [kind for kind in EVERY if EVERY[kind].code])
def test_its_code_is_in_the_key(kind, monkeypatch):
    stage = EVERY[kind]
    assert code_hash(*stage.code) == stage.config['code'], 'modules that are there'
    for changed in stage.code:
        hashed = lambda *modules: code_hash(*modules) + 'changed'*(changed in modules)
        monkeypatch.setattr(stage_module, 'code_hash', hashed)
        assert replace(stage).key != stage.key


def test_no_two_kinds_share_a_folder():
    assert len({stage.kind for stage in EVERY.values()}) == len(EVERY)


def test_a_change_far_down_changes_every_key_above_and_no_other():
    def keys(setup):
        stages = dict(clips=rendered_clips(setup, 'train'), encoder=masked_autoencoder(setup, .15),
                      knowledge=knowledge_sentences(setup), tokenizer=tokenizer(setup), decoder=text_decoder(setup),
                      reasoner=reasoner_stage(setup), captioner=trained_captioner(setup),
                      captions=descriptions(setup, 'gtzan', 64), scores=genre_stage(setup, 'gtzan', 'large', 64))
        return {name: stage.key for name, stage in stages.items()}
    data = replace(SETUP.scale.data, sentences=SETUP.scale.data.sentences + 1)
    before, after = keys(SETUP), keys(replace(SETUP, scale=replace(SETUP.scale, data=data)))
    assert {name for name in before if before[name] == after[name]} == {'clips', 'encoder'}


def test_code_far_down_changes_every_key_above(monkeypatch):
    before = {s.key for s in in_order([trained_captioner(SETUP)]) if not isinstance(s, Given)}
    hashed = lambda *modules: code_hash(*modules) + 'changed'*('data.rendering' in modules)
    monkeypatch.setattr(stage_module, 'code_hash', hashed)
    same = before & {s.key for s in in_order([trained_captioner(SETUP)])}
    assert {key.rpartition('-')[0] for key in same} == {'knowledge'}, 'all but the sentences, which need no clip'


def test_stages_are_values():
    assert Work('a', (Work('b'),)) == Work('a', (Work('b'),)) != Work('a')
    with pytest.raises(FrozenInstanceError): Work('a').name = 'b'
    assert Work('a').key != LongWork('a').key, 'the kind counts'


def test_what_is_given_is_told_by_its_content():
    frontend = masked_autoencoder(SETUP, .15).frontend
    of = lambda **encoder: Architecture(encoder, frontend).key
    tiny, mini, other = of(name='tiny'), of(name='mini'), of(name='tiny', target='all')
    assert of(name='tiny') == tiny and len({tiny, mini, other}) == 3
    assert ShippedEncoder().key != ShippedEncoder(random=True).key and ShippedEncoder().key == ShippedEncoder().key


# --- what a stage needs

def test_needs_are_found_wherever_they_stand():
    a, b, c = Work('a'), Work('b'), Work('c')
    whole = Work('whole', (a, (b, a)), Group(b), dict(more=[c]))
    assert whole.needs == [a, b, c] and a.needs == []
    assert in_order([whole, c]) == [a, b, c, whole]


def test_a_captioner_needs_its_parts():
    kinds = {s.kind for s in trained_captioner(SETUP, 8).needs}
    assert kinds == {'corpus', 'sounds', 'tokenizer', 'mae', 'decoder'}


@pytest.mark.parametrize('scale', SCALES)
def test_every_stage_of_the_paper_stands_behind_what_it_needs(scale):
    setup, seen = Setup.at(scale), set()
    for stage in in_order([*training_stages(setup), *answering_stages(setup)]):
        assert {need.key for need in stage.needs} <= seen and stage.key not in seen
        seen.add(stage.key)


# --- made once

def test_a_stage_is_made_once_with_what_it_needs(empty):
    part = Work('part')
    whole = Work('whole', (part,))
    assert not whole.is_made() and stage_tree(whole).count('to be made') == 2
    first = whole.load()
    assert part.is_made() and whole.is_made() and stage_tree(whole).count('(made)') == 2
    assert Work('whole', (Work('part'),)).load() == first and part.load()['end'] <= first['start']
    assert not Work('whole').is_made()


def test_what_is_made_asks_for_nothing_more(empty, monkeypatch):
    "Only under a launch, where all processes must take the same steps, what it needs is visited again."
    whole, visited = Work('whole', (Work('part'),)), []
    whole.folder()
    folder = Stage.folder
    monkeypatch.setattr(Stage, 'folder', lambda self: visited.append(self.name) or folder(self))
    whole.folder()
    assert visited == ['whole']
    monkeypatch.setattr(stage_module, 'world_size', lambda: 2)
    whole.folder()
    assert visited == ['whole', 'whole', 'part']


def test_one_that_fails_is_made_again(empty):
    broken = Work('x', wait=-1)
    with pytest.raises(ValueError, match='cannot be made'): broken.folder()
    assert not broken.is_made()
    with pytest.raises(ValueError, match='cannot be made'): broken.folder()


def test_a_stage_has_one_thread_whoever_makes_it(empty):
    "A last one left after an interruption is made by the main process: its weights are those of a worker."
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert Work('alone').load()['threads'] == 1 and torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


STEPS = """
import os, time
from dataclasses import dataclass
from logocentric.pipeline.stage import Stage

@dataclass(frozen=True)
class Part(Stage):
    kind = 'part'
    names: dict
    def make(self, folder): (folder/'part.txt').write_text(str(os.getpid()))
    def read(self, folder): return int((folder/'part.txt').read_text())

@dataclass(frozen=True)
class Steps(Stage):
    "Fifty steps, and on behind the last one that is there."
    kind = 'steps'
    part: Part
    wait: tuple = (.2,)

    def make(self, folder):
        found = len(list(folder.glob('*.step')))
        for i in range(found, 50):
            (folder/f'{i}.step').write_text(str(os.getpid()))
            time.sleep(self.wait[0])
        return dict(found=found)

    def read(self, folder): return [int((folder/f'{i}.step').read_text()) for i in range(50)]

steps = Steps(Part(dict(a=1, b='two')))
"""


@pytest.fixture
def killed(empty, monkeypatch):
    "Fifty steps, in another process that is killed after three of them; the stage here, and that process."
    (empty/'fifty_steps.py').write_text(STEPS)
    monkeypatch.syspath_prepend(empty)
    from fifty_steps import steps
    made, deadline = lambda: len(list((empty/'data'/'cache'/'steps').glob('*/*.step'))), time.time() + 120
    env = os.environ | dict(PYTHONHASHSEED='7', PYTHONPATH=os.pathsep.join([str(empty), *sys.path]))
    run = subprocess.Popen([sys.executable, '-c', 'from fifty_steps import steps; steps.folder()'], env=env)
    while made() < 3 and run.poll() is None and time.time() < deadline: time.sleep(.05)
    os.kill(run.pid, signal.SIGKILL)
    yield steps, run
    sys.modules.pop('fifty_steps')


def test_a_killed_stage_goes_on_where_it_was(empty, killed):
    steps, run = killed
    assert run.wait() == -signal.SIGKILL and not steps.is_made()
    folder, = (empty/'data'/'cache'/'steps').iterdir()
    done = len(list(folder.glob('*.step')))
    for i in range(done, 50): (folder/f'{i}.step').write_text('0')      # so that what is left takes no time
    assert steps.folder() == folder, 'the same key in every process'
    assert set(steps.load()[:done]) == {run.pid} and read_json(folder/'done.json')['info'] == dict(found=50)
    assert steps.part.is_made() and steps.part.load() == run.pid, 'what was made stays'


# --- the schedule

A = Work('a')
B, C = LongWork('b', (A,)), Work('c', (A,))
D = Work('d', (B, C))


def test_urgency_is_the_longest_chain():
    assert list(urgency([A, B, C, D]).values()) == [60., 55., 10., 5.]
    found, stages = urgency(in_order(training_stages(SETUP))), in_order(training_stages(SETUP))
    for stage in stages:
        for need in stage.needs: assert found[need.key] >= found[stage.key] + need.seconds


def test_the_most_urgent_comes_first_and_none_too_early():
    waiting = Waiting([A, C, B, D])
    assert [waiting.next(), waiting.next()] == [A, None]
    waiting.made(A)
    assert [waiting.next(), waiting.next(), waiting.next()] == [B, C, None]
    waiting.made(C)
    assert waiting.next() is None
    waiting.made(B)
    assert waiting.next() == D and waiting.unmade == {D.key}


def test_in_turn_each_behind_what_it_needs(empty):
    run_in_turn([A, B, C, D], ScheduleBar([A, B, C, D]))
    times = [stage.load() for stage in (A, B, C, D)]
    assert all(one['end'] <= next['start'] for one, next in zip(times, times[1:]))
    assert {t['process'] for t in times} == {os.getpid()}


@dataclass(frozen=True)
class Met(Work):
    "Waits until `wait` of its kind have begun: workers start in their own time."
    kind = 'met'

    def make(self, folder):
        mark, start, deadline = folder.parent/f'begun-{self.name}', time.time(), time.time() + 120
        mark.write_text('')
        while len(list(folder.parent.glob('begun-*'))) < self.wait and time.time() < deadline: time.sleep(.02)
        return dict(start=start, end=time.time(), process=os.getpid(), threads=torch.get_num_threads())


@pytest.fixture(scope='module')
def side_by_side(home):
    "Two workers make five stages, three between a first and a last one; a sixth cannot be made."
    first = Work('first')
    three = [Met(name, (first,), wait=2) for name in 'xyz']
    last = Work('last', tuple(three))
    broken = Work('broken', (last,), wait=-1)
    with pytest.raises(ValueError, match='broken cannot be made'):
        run_side_by_side([first, *three, last, broken], ScheduleBar([]), workers=2)
    assert not broken.is_made() and not multiprocessing.active_children()
    return first.load(), [stage.load() for stage in three], last.load()


def test_two_workers_make_two_at_a_time(side_by_side):
    first, three, last = side_by_side
    processes = {stage['process'] for stage in (first, *three, last)}
    assert len(processes) == 2 and os.getpid() not in processes
    x, y, z = sorted(three, key=lambda stage: stage['start'])
    assert x['process'] != y['process'] and y['start'] < x['end'], 'two at a time'
    assert min(x['end'], y['end']) <= z['start'], 'and no third'


def test_workers_keep_the_order(side_by_side):
    first, three, last = side_by_side
    assert all(first['end'] <= s['start'] and s['end'] <= last['start'] for s in three)
    assert {stage['threads'] for stage in (first, *three, last)} == {1}, 'each worker on one core'


class Noted:
    "Notes which stages were made, and how."
    def __init__(self): self.calls = []
    def maker(self, how): return lambda stages, bar: self.calls.append((how, stages))


@pytest.fixture
def noted(monkeypatch):
    found = Noted()
    for how in ('run_in_turn', 'run_side_by_side'): monkeypatch.setattr(schedule, how, found.maker(how))
    return found


def test_what_fills_the_machine_comes_first_and_alone(empty, noted):
    machine = WholeMachine('machine')
    after = Work('after', (machine,))
    run_stages([D, after], side_by_side=True)
    assert noted.calls == [('run_in_turn', [machine]), ('run_side_by_side', [A, B, C, D, after])]


def test_what_is_made_is_left_out(empty, noted):
    B.folder()
    run_stages([D], side_by_side=True)
    assert noted.calls == [('run_in_turn', []), ('run_side_by_side', [C, D])]


def test_one_stage_needs_no_worker(empty, noted):
    run_stages([A], side_by_side=True)
    assert noted.calls == [('run_in_turn', []), ('run_in_turn', [A])]


def test_under_a_launch_nothing_is_left_out_and_all_go_in_turn(empty, noted, monkeypatch):
    A.folder()
    monkeypatch.setattr(schedule, 'world_size', lambda: 2)
    run_stages([B])
    assert noted.calls == [('run_in_turn', []), ('run_in_turn', [A, B])]


def test_the_bar_does_not_count_what_was_found():
    bar = ScheduleBar([A, B])
    assert bar.bar.total == 55
    bar.made(A, seconds=.01)
    assert bar.bar.total == 50
    bar.made(B, seconds=2.)
    bar.close()
