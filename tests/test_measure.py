"A few real steps of every stage beside its plan: what is run and counted, what is said if not. No times are asserted."
import json, math
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from logocentric.core import LogocentricError
from logocentric.memory import halve_on_oom
from logocentric.pipeline import measure, trials
from logocentric.pipeline.agreement import apart, curve, curves_without_gpu, verdict
from logocentric.pipeline.clocks import DEVICES, Terms, find_device
from logocentric.pipeline.measure import (AllocationTrace, Clock, measure_trial, planned_row, resident_bytes,
                                          rows_table)
from logocentric.pipeline.plan import measured_shares, plan
from logocentric.pipeline.scales import SCALES
from logocentric.pipeline.trials import (card, random_text_tokenizer, random_texts, running_device, scale_trials,
                                         terms_here)

pytestmark = pytest.mark.usefixtures('one_thread')
H100 = Terms(DEVICES['H100'])


@pytest.fixture(scope='module')
def here(): return terms_here()


@pytest.fixture(scope='module')
def smoke(here): return {x.job.kind: x for x in scale_trials(SCALES['smoke'], SCALES['smoke'].tagging, here)}


def brief(trial, t): return measure_trial(trial, t, .01, 2)


# --- devices

@pytest.mark.parametrize('name, known',
                         [('NVIDIA H100 80GB HBM3', 'H100'), ('NVIDIA A100-SXM4-80GB', 'A100-80'),
                          ('NVIDIA GeForce RTX 4090', 'RTX4090'), ('NVIDIA GeForce RTX 4090 D',
                                                                   ''), ('NVIDIA H100 PCIe', ''),
                                         ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', ''), ('NVIDIA GeForce RTX 3090 Ti', ''),
                                         ('mps', '')])
def test_cards_are_known_by_their_whole_name(name, known):
    device = card(name, 1e9)
    assert (device is DEVICES[known]) if known else (device.name == name and math.isnan(device.bf16)
                                                     and device.memory == 1e9)


def test_an_unknown_gpu_is_measured_without_a_share(smoke):
    row = brief(smoke['text'], Terms(card('a card of tomorrow', 8e9)))
    assert row['outcome'] == 'measured' and row['a_second'] > 0 and row['memory'] > 0
    assert row['mfu'] is row['predicted_seconds'] is row['limit'] is None and row['predicted_memory'] > 0
    assert rows_table([row]).loc['GPT-2 reads descriptions', 'utilisation, %'] is None
    json.dumps(row, allow_nan=False)


def test_a_gpu_is_recognised(monkeypatch):
    monkeypatch.setattr(trials, 'best_device', lambda: torch.device('cuda'))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: SimpleNamespace(total_memory=6e9))
    for said, name in (('Tesla T4', 'T4'), ('Quadro', 'Quadro')):
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: said)
        assert running_device().name == name and terms_here().mfu == .25


# --- stages

@pytest.mark.parametrize('name', SCALES)
def test_every_stage_that_calculates_is_tried(name):
    planned = {j.kind for j in plan(SCALES[name], SCALES[name].tagging).jobs if j.flops + j.encoder_flops
               and not j.kind.startswith('score')}
    assert planned | {'hear'} == {x.job.kind for x in scale_trials(SCALES[name], SCALES[name].tagging, H100)}


@pytest.mark.parametrize('name', ['mini', 'gpu', 'paper'])
def test_a_step_is_the_plans_step(name):
    "What a trial counts, times the steps of the plan, is what the plan counts where nothing is held out."
    scale = replace(SCALES[name], data=replace(SCALES[name].data, held_out=0))
    tags = replace(scale.tagging, clips=(0, 0, 0))
    whole = {j.kind: j for j in reversed(plan(scale, tags).jobs)}
    tried = [x for x in scale_trials(scale, tags, H100) if x.job.train]
    for x in tried:
        job, train = whole[x.job.kind], whole[x.job.kind].train
        assert x.job.flops*train.steps == pytest.approx(job.flops) and x.job.parameters == job.parameters
        assert (x.job.train.batch_size, x.job.train.accumulation) == (train.batch_size, train.accumulation)
        if train.mixed_precision != 'auto': assert (x.job.train.mixed_precision == 'bf16') == x.job.half == job.half
    assert len(tried) == len(whole.keys() & {x.job.kind for x in tried}) > 4


LEARNS = 'paint 0.15', 'paint 0.75', 'text', 'captioner', 'reader small', 'reader large', 'tagger small', 'sigmoids'

@pytest.mark.parametrize('kind', LEARNS)
def test_networks_and_operations_are_those_of_the_plan(smoke, kind):
    trial = smoke[kind]
    model, batch, _ = trial.make()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trial.job.parameters
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH): model.train()(**batch).loss.backward()
    assert trial.job.flops == pytest.approx(counter.get_total_flops(), rel=.05)


@pytest.mark.parametrize('kind', ['paint 0.75', 'captioner', 'tagger large', 'sigmoids', 'reader medium'])
def test_training_is_taken_and_its_memory_counted(smoke, here, kind):
    first, second = brief(smoke[kind], here), brief(smoke[kind], here)
    assert first['outcome'] == 'measured' and first['steps'] >= 2
    assert first['fastest'] <= first['seconds'] <= first['slowest']
    assert first['memory'] == pytest.approx(second['memory'], rel=.01), 'tensors, not a process with its neighbours'
    assert .7 < first['memory']/first['predicted_memory'] < 1.1
    top = here.device.bf16 if first['precision'] == 'bf16' else here.device.fp32
    assert first['mfu'] == pytest.approx(first['flops']/first['seconds']/top)


def test_reading_is_compared_with_tf32(here):
    "As it is done on a GPU; a CPU has no TF32."
    scale = SCALES['paper']
    on_card, on_cpu = (next(x for x in scale_trials(scale, None, t) if x.job.kind == 'read gpt2-large')
                       for t in (H100, here))
    assert on_card.job.rate(DEVICES['H100']) == DEVICES['H100'].bf16/2
    assert on_cpu.job.rate(here.device) == here.device.fp32
    assert planned_row(on_card, H100)['precision'] == 'TF32' and planned_row(on_cpu, here)['precision'] == 'float32'
    assert [DEVICES[n].tf32/1e12
            for n in ('A100-80', 'RTX4090', 'RTX3090', 'T4')] == pytest.approx([156, 82.6, 35.6, 8.1])


@pytest.mark.parametrize('kind', ['hear', 'describe', 'read small'])
def test_answers_are_taken_within_the_bound(smoke, here, kind):
    row = brief(smoke[kind], here)
    assert row['outcome'] == 'measured' and not row['learns'] and 0 < row['memory'] <= row['predicted_memory']
    assert row['a_second'] == pytest.approx(row['items']/row['seconds'])


def test_descriptions_have_all_their_tokens(smoke, here):
    model, work = smoke['describe'].make()
    seen = []
    model.tokenizer = SimpleNamespace(batch_decode=lambda tokens, **_: seen.append(tokens.shape) or ['']*len(tokens))
    work()
    assert seen == [(64, here.tokens + 1)], 'the begin and all tokens'


@pytest.mark.parametrize('vocabulary', [600, 2000])
def test_texts_are_as_long_as_planned_and_all_are_read(vocabulary):
    "A reasoner reads equal texts but once: what is measured must be unequal."
    tokenizer = random_text_tokenizer(vocabulary)
    texts = random_texts(tokenizer, 72, 32)
    assert {len(tokenizer.encode(f' {t}')) for t in texts} == {72} and len(set(texts)) == 32


# --- clocks

def test_the_loops_own_steps_are_timed():
    "Each mark is the beginning of a step of the loop, whatever the batches in it; the first ones do not count."
    trial = next(x for x in scale_trials(SCALES['smoke'], None, H100) if x.job.kind == 'paint 0.15')
    trial = replace(trial, job=replace(trial.job, train=replace(trial.job.train, accumulation=2, batch_size=4)))
    clock, calls = Clock(0., warm=1, least=3), []
    model, batch, _ = trial.make()
    model.register_forward_pre_hook(lambda *_: calls.append(len(clock.marks)))
    measure._time_training(replace(trial, make=lambda: (model, {k: v[:4] for k, v in batch.items()}, None)), clock)
    assert len(clock.steps) == 3 and len(clock.marks) == 5
    assert calls == [1, 1, 2, 2, 3, 3, 4, 4, 5,
                     5], 'two batches in each step, and the last step is the one whose memory is noted'


def test_the_first_steps_do_not_count():
    clock = Clock(10., warm=2, least=2)
    clock.marks = [0., 100., 200., 205.]
    assert list(clock.steps) == [5.] and not clock.full
    clock.marks.append(211.)
    assert list(clock.steps) == [5., 6.] and clock.full


def test_allocations_and_what_stays():
    with AllocationTrace() as trace: a = torch.ones(100_000); b = a + 1; del a
    assert trace.most == pytest.approx(800_000, abs=100)
    model = torch.nn.Linear(10, 10)
    model.bias.requires_grad_(False)
    assert (resident_bytes(model, False), resident_bytes(model, True)) == (440, 440 + 800)


# --- what does not fit

def failing(trial, error):
    class Greedy(torch.nn.Linear):
        def forward(self, **batch): raise error
    return replace(trial, make=lambda: (Greedy(2, 2), dict(x=torch.zeros(8, 2)), None))


@pytest.mark.parametrize('error',
                         [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB\nmore'),
                          RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_stage_that_does_not_fit_is_a_row(smoke, here, error):
    row = brief(failing(smoke['paint 0.15'], error), here)
    assert row['outcome'].startswith('out of memory: ') and '\n' not in row['outcome']
    assert row['seconds'] is row['memory'] is row['mfu'] is None
    assert row.keys() == brief(smoke['text'], here).keys()
    def make(): raise error
    assert brief(replace(smoke['describe'], make=make), here)['outcome'].startswith('out of memory: ')


def test_halves_are_not_taken_for_the_whole(smoke, here):
    "What encodes, describes and reads goes on in halves where memory is too small: here that is a row that says so."
    def work(rows):
        if len(rows) > 2: raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    row = brief(replace(smoke['describe'],
                        make=lambda: (torch.nn.Linear(2, 2), lambda: halve_on_oom(work, [1, 2, 3, 4], 'sounds'))), here)
    assert row['outcome'] == ('out of memory: the memory is too small for 4 sounds at a time: '
                              'they are taken in halves; a smaller batch_size saves the attempts')


def test_another_error_is_an_error(smoke, here):
    with pytest.raises(ValueError, match='wrong'): brief(failing(smoke['paint 0.15'], ValueError('wrong')), here)


def test_what_would_fill_a_machine_is_not_begun(smoke, here, monkeypatch):
    monkeypatch.setattr(measure.psutil, 'virtual_memory', lambda: SimpleNamespace(available=1000))
    def make(): raise AssertionError('begun')
    row = brief(replace(smoke['text'], make=make), here)
    assert row['outcome'].startswith('not tried') and row['seconds'] is None


# --- curves

def test_distances_of_curves_by_hand():
    run = lambda *values: dict(valid_loss=list(values))
    found = apart(run(3., 2.), run(3.1, 1.8), [run(3.2, 2.4), run(3.4, 2.2)])
    assert found['largest'] == pytest.approx(.2) and found['between_seeds'] == pytest.approx(.2)
    assert found['ratio'] == pytest.approx(1.) and found['last'] == pytest.approx(-.2) and found['seeds'] == 3
    assert found['typical'] == pytest.approx(np.sqrt(.025))
    assert 'no more than noise' in verdict(found | dict(ratio=.5))
    assert 'more than noise: look' in verdict(found | dict(ratio=2.))


def test_a_seed_is_a_curve():
    a, b, half, other = curve(1, 'no', 4), curve(1, 'no', 4), curve(1, 'bf16', 4), curve(2, 'no', 4)
    assert a == b and len(a['loss']) == 4 and a['step'] == [1, 2, 3, 4] and a['valid_step'] == [1, 2, 3, 4]
    near, far = (np.abs(np.subtract(a['loss'], x['loss'])).max() for x in (half, other))
    assert 0 < near < far


@pytest.mark.slow
def test_a_process_without_a_gpu_learns_the_same():
    there, = curves_without_gpu([1], 3)
    assert there['loss'] == pytest.approx(curve(1, 'no', 3)['loss'], abs=1e-5)


# --- plans that rest on it

def device_record(tmp_path, name='H100', **shares):
    path = tmp_path/'record.json'
    path.write_text(json.dumps(dict(params=dict(scale='paper'), machine='a machine',
                                    metrics=dict(device=dict(name=name),
                                                 rows=[dict(kind=k.replace('_', ' '), mfu=v) for k,
                                                       v in shares.items()]))))
    return path


def test_hours_rest_on_what_was_measured(tmp_path):
    assumed, p = (plan(SCALES['paper'], SCALES['paper'].tagging, 'H100', measured=m)
                  for m in ('', device_record(tmp_path, captioner=.5, describe=None, hear=.125)))
    arithmetic = lambda plan, title: next(j for j in plan.jobs if j.title == title).clocks(plan.terms)['arithmetic']
    seen, other = 'captioner on 25,723 pairs', 'pre-train the encoder, 15% hidden'
    assert arithmetic(p, seen) == pytest.approx(arithmetic(assumed, seen)/2)
    assert arithmetic(p, other) == pytest.approx(arithmetic(assumed, other)), 'not measured: as assumed'
    assert p.terms.shares == dict(captioner=.5, hear=.125) and p.report()['shares'] == p.terms.shares
    said = '\n'.join(p.assumptions)
    assert 'measured by device_check (scale paper; a machine)' in said
    assert '25% of the peak is reached by the other' in said
    assert 'measured by device_check' not in '\n'.join(assumed.assumptions)


def test_a_measured_share_of_a_cpu_holds_python(tmp_path):
    path = device_record(tmp_path, 'cpu', captioner=.5)
    p = plan(SCALES['smoke'], None, 'cpu', measured=path)
    job = next(j for j in p.jobs if j.kind == 'captioner')
    own = replace(p.terms, shares={}, mfu=.5)
    encoder = job.encoder_flops/max(own.device.bf16, own.device.fp32)*(1/.5 - 1/p.terms.mfu)
    assert job.clocks(own)['arithmetic'] - job.clocks(p.terms)['arithmetic'] == pytest.approx(job.python + encoder)


def test_a_record_of_another_device_is_refused(tmp_path):
    with pytest.raises(LogocentricError, match='measured on H200: plan for that device'):
        plan(SCALES['smoke'], device='H100', measured=device_record(tmp_path, 'H200', captioner=.5))
    (tmp_path/'other.json').write_text('{"metrics": {}}')
    for path in (tmp_path/'other.json', tmp_path/'none.json'):
        with pytest.raises(LogocentricError, match='is no record of the experiment device_check'):
            measured_shares(path, find_device('H100'))
