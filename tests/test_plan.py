"What a run will cost: operations against torch's counter, memory against what torch keeps, and plans that add up."
from dataclasses import replace
from types import SimpleNamespace
import pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoConfig
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError, set_seed
from logocentric.encoder.mae import MASKING, MAEConfig, MAEModel
from logocentric.pipeline.clocks import DEVICES, find_device
from logocentric.pipeline.footprint import (block_bytes, captioner_bytes, encoder_bytes, language_bytes, mae_bytes,
                                            peak_memory)
from logocentric.pipeline.jobs import planned_reasoner
from logocentric.pipeline.operations import (Operations, captioner_parts, count_parameters, language_config,
                                             language_operations, mae_operations, without_weights)
from logocentric.pipeline.plan import ROOM, plan
from logocentric.pipeline.scales import SCALES

CALM = dict(n_embd=64, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    set_seed(0)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def counted(model, **batch):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH): model(**batch).loss.backward()
    return counter.get_total_flops()


def kept(model, run, half=False):
    "Bytes that are kept for the way back, without weights and their half copies."
    own, found = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}, {}
    copies = {tuple(sorted(p.shape)) for p in model.parameters() if p.ndim == 2} if half else ()
    def keep(t):
        if t.untyped_storage()._cdata not in own and tuple(sorted(t.shape)) not in copies:
            found[t.untyped_storage()._cdata] = t.untyped_storage()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast('cpu', torch.bfloat16,
                                                                                     enabled=half):
        run()
    return sum(s.nbytes() for s in found.values())


# --- parameters

@pytest.mark.parametrize('name, parameters',
                         {'gpt2': 124_439_808, 'gpt2-medium': 354_823_168, 'gpt2-large': 774_030_080,
                          'EleutherAI/gpt-neo-1.3B': 1_315_575_808}.items())
def test_published_sizes(name, parameters):
    model = without_weights(lambda: AutoModelForCausalLM.from_config(language_config(name)))
    assert count_parameters(model) == parameters and next(model.parameters()).is_meta


def test_a_folder_is_read_and_an_unknown_name_explained(tmp_path):
    GPT2Config(n_embd=48, n_layer=3, n_head=3).save_pretrained(tmp_path)
    assert language_config(str(tmp_path)).n_embd == 48
    with pytest.raises(LogocentricError, match='offline give a folder.*gpt2-medium'):
        language_config('nobody/has-this-model')


# --- operations

@pytest.mark.parametrize('ratio', MASKING.values())
@pytest.mark.parametrize('name, frames', [('tiny', 256), ('mini', 320), ('small', 128), ('base', 16)])
def test_masked_reconstruction_is_counted(name, frames, ratio):
    config = MAEConfig.preset(name, mask_ratio=ratio)
    assert mae_operations(config,
                          frames).training() == pytest.approx(counted(MAEModel(config).train(),
                                                                      logmel=torch.zeros(1, frames, 80)), rel=.02)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('bridge',
                         [{}, dict(lags=[1, 2]), dict(word_weight=0.), dict(spoken_share=.5, prefix_length=3)], ids=str)
def test_captioning_is_counted(bridge, frozen):
    parts = captioner_parts(MAEConfig.preset('tiny'), language_config(CALM, 600), **bridge)
    model, ids = Captioner(parts.config).train(), torch.randint(600, (4, 20))
    model.encoder.requires_grad_(not frozen)
    torchs = counted(model, input_ids=ids, labels=ids, logmel=torch.randn(4, 256, 80))
    assert 4*parts.operations(256, 20, frozen).training() == pytest.approx(torchs, rel=.02)
    assert sum(parts.sizes.values()) == count_parameters(model)


def test_a_base_block_of_both_is_counted():
    parts = captioner_parts(MAEConfig.preset('base', num_hidden_layers=1),
                            GPT2Config(n_embd=1024, n_layer=1, n_head=16, vocab_size=5000, bos_token_id=0,
                                       eos_token_id=0))
    ids = torch.randint(5000, (1, 16))
    assert parts.operations(64,
                            16).training() == pytest.approx(counted(Captioner(parts.config).train(), input_ids=ids,
                                                                    labels=ids, logmel=torch.randn(1, 64, 80)), rel=.02)


def test_reasoners_are_counted():
    config = planned_reasoner('medium', 500)
    model, ids = AutoModelForCausalLM.from_config(config).train(), torch.randint(500, (2, 30))
    model.loss_type = 'ForCausalLM'
    assert 2*language_operations(config, 30).training() == pytest.approx(counted(model, input_ids=ids, labels=ids),
                                                                         rel=.02)


def test_what_is_frozen_costs_one_way():
    trained, frozen = Operations(10., 0., 1.), Operations(10., 0., 1.).as_frozen()
    assert (trained.training(), trained.training(recompute=True), frozen.training()) == (29., 39., 10.)


# --- memory

@pytest.mark.parametrize('batch', [1, 6])
@pytest.mark.parametrize('name, frames', [('tiny', 256), ('mini', 992), ('small', 128)])
def test_what_an_autoencoder_keeps(name, frames, batch):
    model = MAEModel(MAEConfig.preset(name)).train()
    assert batch*mae_bytes(model.config, frames,
                           False) == pytest.approx(kept(model, lambda: model(logmel=torch.zeros(batch, frames, 80))),
                                                   rel=.05)


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('way, kind', [('sdpa', 'fused'), ('eager', 'plain')])
def test_what_a_block_of_gpt2_keeps(way, kind, half):
    "The difference of two depths is a block."
    def bytes_of(layers):
        model = GPT2LMHeadModel(language_config(dict(CALM, n_layer=layers), 100)).train()
        model.set_attn_implementation(way)
        ids = torch.randint(100, (3, 40))
        return kept(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().sum(), half)
    assert 3*block_bytes(40, 64, 4, kind, half) == pytest.approx(bytes_of(2) - bytes_of(1), rel=.05)


@pytest.mark.parametrize('half', [False, True])
def test_what_a_block_of_gpt_neo_keeps(half):
    "In bfloat16 queries and keys go through single precision, and are kept twice."
    make = lambda layers: GPTNeoConfig(vocab_size=100, hidden_size=64, num_layers=layers, num_heads=4,
                                       attention_types=[[['global', 'local'], layers//2]], max_position_embeddings=192)
    def bytes_of(layers):
        model, ids = AutoModelForCausalLM.from_config(make(layers)).train(), torch.randint(100, (3, 40))
        return kept(model, lambda: model(input_ids=ids).logits.float().sum(), half)
    planned = lambda layers: language_bytes(make(layers), 40, 0, half, False, False)[0]
    assert 3*(planned(4) - planned(2)) == pytest.approx(bytes_of(4) - bytes_of(2), rel=.01)


def test_the_peak_is_a_bound_and_not_far_off():
    from torch.profiler import ProfilerActivity, profile
    parts = captioner_parts(MAEConfig.preset('tiny'), language_config(CALM, 4000))
    model, ids = Captioner(parts.config).train(), torch.randint(4000, (8, 48))
    model.decoder.set_attn_implementation('eager')
    optimizer = torch.optim.AdamW(model.parameters())
    def step():
        model(input_ids=ids, labels=ids,
              logmel=torch.zeros(8, 256, 80)).loss.backward(); optimizer.step(); optimizer.zero_grad()
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler: step()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = highest = 12*count_parameters(model)
    for e in events:
        if e.name() == '[memory]': held += e.nbytes(); highest = max(highest, held)
    bound = sum(peak_memory(count_parameters(model), count_parameters(model), 8,
                            *captioner_bytes(parts, 256, 48, False, False, False), False).values())
    assert highest < bound < 1.5*highest


def test_recomputing_keeps_less_and_takes_longer():
    c = MAEConfig.preset('base')
    assert encoder_bytes(c, 300, True, True) < .3*encoder_bytes(c, 300, True) < .6*encoder_bytes(c, 300, False)


# --- plans

def plans(name, *args, **kwargs): return plan(SCALES[name], SCALES[name].tagging, *args, **kwargs)


@pytest.mark.parametrize('name', SCALES)
def test_every_scale_has_a_plan(name):
    p = plans(name)
    table = p.table
    assert (table.hours >= 0).all() and table.hours.max() > 0 and table.index.is_unique
    assert {f'captioner on {n:,} pairs' for n in SCALES[name].data.pairs} <= set(table.index)
    assert repr(p).splitlines()[-1] == p.last_line() and 'on 1 x H100' in p.last_line()


def test_the_paper_by_hand():
    "6 N for each token and clip, and the head; the encoder by its own parameters."
    job = next(j for j in plans('paper').jobs if j.title == 'captioner on 25,723 pairs')
    steps, batch = SCALES['paper'].captioner.train.steps, 64
    by_hand = steps*batch*6*(303e6*80 + 1024*50257*72 + 85e6*310)
    assert job.flops == pytest.approx(by_hand, rel=.08)
    assert job.parameters > 354_823_168 + 85_000_000


def test_sums_add_up():
    p = plans('paper', 'A100-80', 4, price=2.)
    t, s = p.table, p.totals
    assert s['hours'] == pytest.approx(t.hours.sum()) and s['paid_hours'] == pytest.approx(4*s['hours'])
    assert s['cost'] == pytest.approx(8*s['hours'])
    assert s['device_hours'] == pytest.approx((t.hours*t.devices).sum()) and s['device_hours'] < s['paid_hours']
    assert s['disk'] >= t.kept.sum() and f"{s['cost']:,.0f} USD at 2" in p.last_line()


def test_utilisation_and_devices_divide_arithmetic():
    hours = lambda **kwargs: plans('paper', **kwargs).table.loc['captioner on 25,723 pairs', 'hours']
    assert hours(device='T4', mfu=.5) == pytest.approx(hours(device='T4', mfu=.25)/2)
    assert hours(device='T4', count=2) == pytest.approx(hours(device='T4')/2)
    assert plans('paper').table.loc['gpt2-large reads 30,000 descriptions', 'devices'] == 1


def test_many_devices_share_memory_but_not_python():
    one, many = (plans('paper', count=n) for n in (1, 8))
    assert many.table.loc['captioner on 25,723 pairs', 'memory'] < one.table.loc['captioner on 25,723 pairs', 'memory']
    clocks = [next(j for j in p.jobs if j.title == 'captioner on 25,723 pairs').clocks(p.terms) for p in (one, many)]
    assert clocks[1]['arithmetic'] == pytest.approx(clocks[0]['arithmetic']/8)
    assert clocks[1]['python'] == clocks[0]['python']
    said = '\n'.join(many.warnings)
    assert 'while 7 wait' in said and not [w for w in one.warnings if 'wait' in w]


@pytest.mark.parametrize('changes',
                         [dict(batch_size=256, mixed_precision='no'), dict(batch_size=1024),
                          dict(batch_size=96, mixed_precision='no')], ids=str)
def test_the_remedy_helps(changes):
    paper = SCALES['paper']
    trained = lambda recipe: replace(paper, captioner=replace(paper.captioner, train=recipe))
    recipe = replace(paper.captioner.train, **changes)
    said = next(w for w in plan(trained(recipe), device='RTX4090').warnings if w.startswith('captioner on 25'))
    option, _, tail = said.rpartition('; ')[2].partition('batch_size=')
    turned = eval(f'dict(batch_size={tail})')
    flag = ' --recompute' if turned.get('recompute') else ''
    expected = f"reproduce --parts {turned['accumulation']}{flag}, which is " if 'mixed_precision' not in turned else ''
    assert option == expected
    assert turned['batch_size']*turned['accumulation'] == changes['batch_size']
    better = plan(trained(replace(recipe, **turned)), device='RTX4090')
    assert not [w for w in better.warnings if 'captioner' in w]
    assert better.table.loc['captioner on 25,723 pairs', 'memory'] <= ROOM*DEVICES['RTX4090'].memory


def test_a_model_that_is_too_large_is_named():
    said = [w for w in plans('paper', 'T4').warnings if 'no batch is small enough' in w]
    assert said and all('gpt2-large' in w for w in said)
    assert any('no bfloat16 units' in w for w in plans('paper', 'T4').warnings)


def test_batches_that_cannot_be_shared():
    assert any('cannot be shared evenly by 3' in w for w in plans('paper', count=3).warnings)


def test_rendering_while_learning_is_waited_for():
    slow, fast = (plans('gpu', cores=n) for n in (2, 2000))
    assert slow.table.loc['captioner on 400,000 pairs', 'limit'] == 'cores'
    assert any('400,000 pairs: waits for 2 cores' in w for w in slow.warnings)
    assert not [w for w in fast.warnings if 'waits' in w]
    assert slow.table.loc['captioner on 2,000 pairs', 'limit'] != 'cores', 'kept clips are not rendered again'
    assert slow.table.loc['render music', 'kept'] < 400_000*160_000


def test_what_is_wrong_is_said():
    with pytest.raises(LogocentricError, match='H100.*cpu'): find_device('B9000')
    with pytest.raises(LogocentricError, match='between 0 and 1'): plans('smoke', mfu=0)
    with pytest.raises(LogocentricError, match='one device'): plans('smoke', 'cpu', 2)
    with pytest.raises(LogocentricError, match='gtzan, fma_small'): plans('smoke', sets=('nobody',))
    assert find_device('rtx-3090') is DEVICES['RTX3090']


def test_published_sets_take_disk():
    bare, with_set = plans('smoke'), plans('smoke', sets=('fma_small',))
    assert with_set.totals['disk'] - bare.totals['disk'] == pytest.approx(7.73e9 + 8000*3001*80*2, rel=.01)


def test_this_cpu_is_measured():
    p = plans('smoke', 'cpu')
    assert 0 < p.terms.mfu <= 1 and 1e9 < p.terms.device.fp32 < 1e13 and p.terms.device.memory > 1e9
    assert not p.terms.fused and 'measured on this machine' in repr(p)


def test_a_run_without_table3_and_a_scale_of_ones_own():
    mini = SCALES['mini']
    subjects = {k: getattr(mini, k) for k in ('name', 'data', 'encoder', 'captioner', 'reasoner')}
    p = plan(SimpleNamespace(**subjects
                             | dict(encoder=replace(mini.encoder, multitask=None), data=replace(mini.data, sounds=0))))
    assert not [t for t in p.table.index if 'Table 3' in t or 'labels' in t]
    assert p.table.loc['captioner on 6,000 pairs',
                       'scratch'] > 2*6000*1.25*126*960*2, 'embeddings of a frozen encoder lie on disk'
