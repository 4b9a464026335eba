"Two processes learn what one learns; checkpoints, stages and the knobs of memory and speed change nothing."
import os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
from logocentric.captioner import Captioner, Pairs
from logocentric.core import LogocentricError, launched, set_seed, stage
from logocentric.mae import MAEConfig, MAEModel, clip_noise
from logocentric.training import ByClip, OutOfMemory, TrainConfig, count_items, evaluate, fetch, train

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS, TOLERANCE = 20, 1e-5

class Clips:
    "Log-mels whose masks come by the clip's name."
    def __init__(self, n, seed): self.logmel = torch.randn(n, 64, 80, generator=torch.Generator().manual_seed(seed)).double()
    def __len__(self): return len(self.logmel)
    def batch(self, indices, rng):
        return dict(logmel=self.logmel[indices], noise=clip_noise([str(i) for i in indices], 5, 4), id=[str(i) for i in indices])

def mae(): set_seed(0); return MAEModel(MAEConfig.preset('tiny')).double()

WORDS = 'calm bright slow fast piano drums with and of a'.split()

def tokenizer():
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['<s>', '</s>', *WORDS])}, unk_token='a'))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token='<s>', eos_token='</s>')

def captioner(attention='eager', **settings):
    set_seed(0)
    model = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=2, n_head=2, n_positions=64), tokenizer(), prefix_length=4, **settings)
    model.decoder.set_attn_implementation(attention)
    return model.double()

def pairs(n, seed):
    rng = np.random.default_rng(seed)
    texts = [' '.join(rng.choice(WORDS, rng.integers(2, 14))) for _ in range(n)]      # of very unequal length
    return Pairs(rng.normal(-7, 3, (n, 64, 80)).astype(np.float32), texts, tokenizer())

CASES = dict(mae=(mae, lambda: Clips(26, 1), lambda: Clips(10, 2)), captioner=(captioner, lambda: pairs(26, 1), lambda: pairs(10, 2)))

def learn(case, parts=1, stop_after=None, folder=None, dtype=torch.float64, make=None, **changes):
    "Train for 20 steps of 8 clips, shared out between processes and `parts`; the history's rows and the weights."
    config = TrainConfig(**dict(dict(steps=STEPS, batch_size=8//parts//launched(), accumulation=parts, lr=3e-3, eval_every=5, checkpoint_every=4), **changes))
    model, data = (make or CASES[case][0])().to(dtype), CASES[case][1]()
    if stop_after: data = Cut(data, stop_after*config.accumulation)
    try: history = train(model, data, config, CASES[case][2](), by_clip=case == 'captioner' and not config.compile, folder=folder, progress=False)
    except InterruptedError: return None
    return dict(rows=[{k: v for k, v in row.items() if k != 'seconds'} for row in history.rows], best=history.best_step, weights=model.state_dict())

class Cut:
    "The lights go out after some batches."
    def __init__(self, data, batches): self.data, self.left = data, batches
    def __len__(self): return len(self.data)
    def batch(self, indices, rng):
        self.left -= 1
        if self.left < 0: raise InterruptedError
        return self.data.batch(indices, rng)

def same(a, b, tolerance=TOLERANCE):
    "Losses, norms, validations and weights agree, relatively or absolutely."
    assert len(a['rows']) == len(b['rows']) == STEPS and a['best'] == b['best'] and a['weights'].keys() == b['weights'].keys()
    for x, y in zip(a['rows'], b['rows']): assert x == pytest.approx(y, rel=tolerance, abs=tolerance)
    for k in a['weights']: torch.testing.assert_close(a['weights'][k], b['weights'][k], rtol=tolerance, atol=tolerance, equal_nan=True)

# What each of two processes does, and leaves in a folder

class Named:
    "Thirteen clips that remember who was fetched."
    def __init__(self): self.seen = []
    def __len__(self): return 13
    def batch(self, indices, rng):
        self.seen.append(indices)
        return dict(x=torch.ones(len(indices), 3))

class Line(torch.nn.Module):
    def __init__(self): super().__init__(); set_seed(0); self.layer, self.idle = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    def forward(self, x): return dict(loss=self.layer(x).square().mean())

plain = lambda model, batch: model(**batch)['loss']

def said(call):
    try: call()
    except LogocentricError as e: return str(e)

def stages(folder, rank):
    os.environ['LOGOCENTRIC_HOME'] = str(folder/'home')
    def make(place):
        entered.append(place.name)
        train(Line(), Named(), TrainConfig(steps=2, batch_size=2), loss_fn=plain, folder=place/'training', progress=False)
        (place/'result.txt').write_text(f'of process {rank}')
    entered = []
    found = [stage('learned', dict(x=1), make, together=True) for _ in range(2)]
    alone = said(lambda: stage('lonely', {}, make))     # enters, and is refused by `train`
    return dict(entered=entered, found=[str(f) for f in found], text=(found[0]/'result.txt').read_text(), alone=alone)

def first(folder, rank):
    disk = folder/'run' if rank == 0 else folder/'another-machine'
    data, few = Named(), dict(steps=13, batch_size=2)
    train(Line(), data, TrainConfig(**few), loss_fn=plain, progress=False)
    return dict({case: learn(case) for case in CASES}, parts=learn('captioner', parts=2), seen=data.seen, cut=learn('mae', stop_after=6, folder=disk),
                files=[p.name for p in disk.glob('*')], stages=stages(folder, rank))

def second(folder, rank):
    disk = folder/'run' if rank == 0 else folder/'a-third-machine'
    return dict(wrong=said(lambda: learn('mae', folder=disk, batch_size=3)), run=learn('mae', folder=disk))

SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_distributed
from logocentric.core import all_processes
torch.set_num_threads(1)
folder, phase, rank = Path({folder!r}), sys.argv[1], all_processes().process_index
torch.save(getattr(test_distributed, phase)(folder, rank), folder/(phase + str(rank) + '.pt'))
"""

def launch(folder, phase):
    "Two processes over gloo; what each of them found. (`accelerate launch` starts several on CPUs by MPI only.)"
    script = folder/'script.py'
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1]), ACCELERATE_USE_CPU='true')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', script, phase]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    (folder/f'{phase}.err').write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder/f'{phase}{rank}.pt', weights_only=False) for rank in (0, 1)]

@pytest.fixture(scope='module')
def two(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp('two')
    return folder, launch(folder, 'first')

@pytest.mark.parametrize('case', CASES)
def test_two_processes_learn_what_one_learns(two, case):
    alone = learn(case)
    for process in two[1]: same(process[case], alone)
    same(learn(case, parts=2), alone)

def test_two_processes_with_two_parts_each(two):
    same(two[1][0]['parts'], two[1][1]['captioner'])

def test_every_epoch_has_every_clip_once(two):
    seen = [indices for step in zip(two[1][0]['seen'], two[1][1]['seen']) for batch in step for indices in batch]
    assert len(seen) == 52 and all(sorted(seen[e:e + 13]) == list(range(13)) for e in range(0, 52, 13))   # 13 is no multiple of 2 x 2

def test_only_the_main_process_writes(two):
    main, other = two[1]
    assert sorted(main['files']) == ['best.safetensors', 'last.pt'] or main['files'] == ['last.pt']
    assert other['files'] == [] and main['cut'] is other['cut'] is None

def test_a_run_goes_on_with_one_process_and_again_with_two(two):
    folder = two[0]
    assert torch.load(folder/'run'/'last.pt')['step'] == 4
    assert learn('mae', folder=folder/'run', stop_after=10) is None and torch.load(folder/'run'/'last.pt')['step'] == 12
    main, other = launch(folder, 'second')
    for process in (main, other):
        assert 'clips_in_a_step: 8 -> 6' in process['wrong'] and 'choose batch_size=4' in process['wrong']
        same(process['run'], learn('mae'))

def test_stages_of_all_processes(two):
    main, other = (process['stages'] for process in two[1])
    folder = Path(main['found'][0])
    assert main['found'] == other['found'] == [str(folder)]*2 and main['text'] == other['text'] == 'of process 0'
    assert main['entered'][0] == folder.name != other['entered'][0]
    assert main['entered'][1:] == other['entered'][1:] != [folder.name]                  # the lonely one, one after the other
    assert all('lonely' in s['alone'] and 'together=True' in s['alone'] for s in (main, other))
    assert (folder/'done.json').exists() and (folder/'training'/'last.pt').exists()

# One process

def test_what_a_loss_is_a_mean_of():
    data = pairs(6, 1)
    batch, model = fetch(data, [0, 1, 2, 3]), captioner(spoken_share=.5)
    words = (batch['labels'] >= 0).sum(1)
    assert count_items(model.train(), batch, 4) == (int(words[:2].sum()) - 2, int(words.sum()))
    assert count_items(model.eval(), batch, 4) == count_items(model.decoder, batch, 4) == (int(words.sum()) - 4,)
    assert count_items(mae(), dict(logmel=batch['logmel']), 4) == (4,)
    assert evaluate(model, data, 2) == pytest.approx(evaluate(model, data, 6), rel=1e-6)

def test_a_clip_draws_the_same_in_any_batch():
    model = captioner().train()
    def loss(indices, more):
        batch = {k: v for k, v in fetch(pairs(6, 1), indices).items() if k != 'id'}
        batch = {k: torch.nn.functional.pad(v, (0, more), value=dict(input_ids=1, attention_mask=0, labels=-100)[k]) if k != 'logmel' else v for k, v in batch.items()}
        set_seed(3)
        with ByClip().of(indices): return model(**batch).logits
    alone, among, padded = loss([2], 0)[0], loss([4, 2, 5], 0)[1], loss([2], 7)[0]
    torch.testing.assert_close(alone, among[:len(alone)])
    torch.testing.assert_close(alone, padded[:len(alone)])
    assert not torch.allclose(alone, loss([2], 0)[0]*0 + model.eval()(**{k: v for k, v in fetch(pairs(6, 1), [2]).items() if k != 'id'}).logits[0])

def test_dropout_inside_fused_attention_is_refused():
    with pytest.raises(LogocentricError, match="eager"):
        train(captioner('sdpa'), pairs(8, 1), TrainConfig(steps=1, batch_size=2), by_clip=True, progress=False)

@pytest.mark.parametrize('case', CASES)
def test_recomputed_activations_are_the_same(case):
    same(learn(case, recompute=True), learn(case), 1e-6)

def test_recomputing_is_undone_and_needs_layers():
    model = captioner()
    train(model, pairs(8, 1), TrainConfig(steps=1, batch_size=2, recompute=True), progress=False)
    assert not any(getattr(m, 'gradient_checkpointing', False) for m in model.modules())
    with pytest.raises(LogocentricError, match='recompute=False'): train(Line(), Named(), TrainConfig(steps=1, batch_size=2, recompute=True), loss_fn=plain, progress=False)

def still(model):
    "Without dropout."
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    return model

def test_fused_attention_is_the_same():
    same(*(learn('captioner', make=lambda: still(captioner(attention))) for attention in ('sdpa', 'eager')))

@pytest.mark.parametrize('case', CASES)
def test_bf16_follows_the_curve(case):
    "Measured: 20 losses differ by at most .0003 of their value, validations by .0001."
    half, full = (learn(case, dtype=torch.float32, mixed_precision=precision)['rows'] for precision in ('bf16', 'no'))
    for x, y in zip(half, full): assert {k: x[k] for k in y if 'loss' in k} == pytest.approx({k: y[k] for k in y if 'loss' in k}, rel=1e-3)
    assert half[0]['loss'] != full[0]['loss']

class Texts:
    "Texts of one length."
    def __len__(self): return 16
    def batch(self, indices, rng):
        ids = torch.tensor([[i, i + 1, 3, 1] for i in indices])
        return dict(input_ids=ids, labels=ids)

def written(compile, folder):
    size = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=1, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
    set_seed(0)
    model = GPT2LMHeadModel(size).double()
    history = train(model, Texts(), TrainConfig(steps=4, batch_size=4, eval_every=2, compile=compile), Texts(), folder=folder, progress=False)
    assert model._compiled_call_impl is None and type(model) is GPT2LMHeadModel
    return history, model.state_dict(), torch.load(folder/'last.pt')['model']

def compiled_is_the_same(tmp_path):
    (h, weights, saved), (h0, weights0, saved0) = (written(c, tmp_path/str(c)) for c in (True, False))
    for x, y in zip(h.rows, h0.rows): assert x['loss'] == pytest.approx(y['loss'], rel=1e-4) and x['grad_norm'] == pytest.approx(y['grad_norm'], rel=1e-4)
    assert saved.keys() == saved0.keys() and not any('_orig_mod' in k for k in saved)
    for k in weights: torch.testing.assert_close(weights[k], weights0[k], rtol=1e-4, atol=1e-4)

def test_a_traced_model_is_the_same(tmp_path, monkeypatch):
    "All of compilation but the compiler."
    calls, compile = [], torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self: calls.append(self) or compile(self, backend='aot_eager'))
    compiled_is_the_same(tmp_path)
    assert len(calls) == 1

@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, (os.environ.get('CXX', 'g++'), 'clang++'))), reason='torch.compile needs a C++ compiler on the CPU')
def test_a_compiled_model_is_the_same(tmp_path): compiled_is_the_same(tmp_path)

def test_what_is_drawn_for_each_clip_is_not_compiled():
    with pytest.raises(LogocentricError, match='compile=False'): train(mae(), Clips(8, 1), TrainConfig(steps=1, batch_size=2, compile=True), by_clip=True, progress=False)

def test_masks_of_a_clip_are_its_own():
    class Plain(Clips):
        def batch(self, indices, rng): return dict(logmel=self.logmel[indices])
    def final(parts, by_clip):
        model = mae()
        config = TrainConfig(steps=4, batch_size=8//parts, accumulation=parts)
        return train(model, Plain(26, 1), config, Plain(10, 2), by_clip=by_clip, progress=False).rows[-1]
    whole, parts, otherwise = final(1, True), final(2, True), final(2, False)
    for k in ('loss', 'valid_loss', 'grad_norm'): assert whole[k] == pytest.approx(parts[k], rel=TOLERANCE) and whole[k] != pytest.approx(otherwise[k], rel=TOLERANCE)

class Greedy(Line):
    def __init__(self, error): super().__init__(); self.error = error
    def forward(self, x): raise self.error

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_out_of_memory_says_what_to_turn(error):
    with pytest.raises(OutOfMemory) as found: train(Greedy(error), Named(), TrainConfig(steps=3, batch_size=4, accumulation=3), loss_fn=plain, progress=False)
    text = str(found.value)
    assert 'step 1 on cpu with 4 clips' in text and text.index('batch_size=2, accumulation=6') < text.index('recompute=True') < text.index("mixed_precision='bf16'")

def test_another_error_passes():
    with pytest.raises(RuntimeError, match='something else'): train(Greedy(RuntimeError('something else')), Named(), TrainConfig(steps=1, batch_size=1), loss_fn=plain, progress=False)
