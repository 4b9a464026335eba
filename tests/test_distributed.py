"Two processes learn what one learns; checkpoints, stages and the switches for memory and speed change nothing."
import os, shutil, socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from filelock import FileLock
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
from logocentric.captioner.model import Captioner
from logocentric.captioner.training_data import Pairs
from logocentric import cache
from logocentric.core import LogocentricError, cache_path, config_hash, cores, read_json, set_seed
from logocentric.cache import all_processes, world_size, quiet, save_on_main_process, cached_folder
from logocentric.encoder.shipped import Recipe, train_encoder
from logocentric.pipeline.report import leave_launch
from logocentric.reasoner.knowledge import Sentence
from logocentric.encoder.mae import MAEConfig, MAEModel, clip_noise
from logocentric.reasoner.training import SelectedTokenLoss, ReasonerSize, KnowledgeDataset, untrained_reasoner
from logocentric.batches import PerClipRandom, fetch
from logocentric.runs import TrainConfig
from logocentric.steps import count_items, evaluate
from logocentric.memory import less_memory
from logocentric.training import train
from logocentric.memory import OutOfMemory

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS, TOLERANCE = 20, 1e-5

class Clips:
    "Log-mels whose masks come by the clip's name."
    def __init__(self, n, seed):
        self.logmel = torch.randn(n, 64, 80, generator=torch.Generator().manual_seed(seed)).double()
    def __len__(self): return len(self.logmel)
    def batch(self, indices, rng):
        ids = [str(i) for i in indices]
        return dict(logmel=self.logmel[indices], noise=clip_noise(ids, 5, 4), id=ids)

def mae(): set_seed(0); return MAEModel(MAEConfig.preset('tiny')).double()

WORDS = 'calm bright slow fast piano drums with and of a'.split()

def tokenizer():
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['<s>', '</s>', *WORDS])}, unk_token='a'))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token='<s>', eos_token='</s>')

def captioner(attention='eager', **settings):
    set_seed(0)
    decoder = dict(n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = Captioner.from_parts(MAEConfig.preset('tiny'), decoder, tokenizer(), prefix_length=4, **settings)
    model.decoder.set_attn_implementation(attention)
    return model.double()

def pairs(n, seed):
    rng = np.random.default_rng(seed)
    texts = [' '.join(rng.choice(WORDS, rng.integers(2, 14))) for _ in range(n)]      # of very unequal length
    return Pairs(rng.normal(-7, 3, (n, 64, 80)).astype(np.float32), texts, tokenizer())

def reasoner(): set_seed(0); return SelectedTokenLoss(untrained_reasoner(ReasonerSize(16, 2, STEPS, 3e-3), tokenizer()))

def sentences(n, seed):
    "As long as the model, so that they begin at its first position; unequal halves of a bundle weigh differently."
    rng = np.random.default_rng(seed)
    words = [rng.choice(WORDS, 6).tolist() for _ in range(n)]
    span = lambda w, k: (len(' '.join(w[:k])) + 1, len(' '.join(w)))
    whole = [Sentence(' '.join(w), [span(w, k)]) for w, k in zip(words, rng.integers(1, 6, n))]
    return KnowledgeDataset(whole, tokenizer(), bundle=8, keep=0., positions=7, by_sentence=True)

CASES = dict(mae=(mae, lambda: Clips(26, 1), lambda: Clips(10, 2)),
             captioner=(captioner, lambda: pairs(26, 1), lambda: pairs(10, 2)),
             reasoner=(reasoner, lambda: sentences(26, 1), lambda: sentences(10, 2)))

def learn(case, parts=1, stop_after=None, folder=None, dtype=torch.float64, make=None, **changes):
    "Train for 20 steps of 8 clips, shared out between processes and `parts`; the history's rows and the weights."
    settings = dict(steps=STEPS, batch_size=8//parts//world_size(), accumulation=parts, lr=3e-3, eval_every=5,
                    checkpoint_every=4)
    config = TrainConfig(**dict(settings, **changes))
    model, data = (make or CASES[case][0])().to(dtype), CASES[case][1]()
    if stop_after: data = Cut(data, stop_after*config.accumulation)
    per_clip = case == 'captioner' and not config.compile
    try: history = train(model, data, config, CASES[case][2](), per_clip=per_clip, folder=folder, progress=False)
    except InterruptedError: return None
    rows = [{k: v for k, v in row.items() if k != 'seconds'} for row in history.rows]
    return dict(rows=rows, best=history.best_step, weights=model.state_dict())

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
    assert len(a['rows']) == len(b['rows']) == STEPS and a['best'] == b['best']
    assert a['weights'].keys() == b['weights'].keys()
    for x, y in zip(a['rows'], b['rows']): assert x == pytest.approx(y, rel=tolerance, abs=tolerance)
    for k, w in a['weights'].items():
        torch.testing.assert_close(w, b['weights'][k], rtol=tolerance, atol=tolerance, equal_nan=True)

# What each of two processes does, and leaves in a folder

class Named:
    "Thirteen clips that remember who was fetched."
    def __init__(self): self.seen = []
    def __len__(self): return 13
    def batch(self, indices, rng):
        self.seen.append(indices)
        return dict(x=torch.ones(len(indices), 3))

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__(); set_seed(0)
        self.layer, self.idle = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    def forward(self, x): return dict(loss=self.layer(x).square().mean())

plain = lambda model, batch: model(**batch)['loss']

def said(call):
    try: call()
    except LogocentricError as e: return str(e)

class Heavy:
    def save_pretrained(self, folder): (folder/'model.bin').write_bytes(b'14 GB')

def silent(): # as a user's terminal has it
    asked = os.environ.pop('LOGOCENTRIC_QUIET', None)
    try: return quiet()
    finally: os.environ.update({} if asked is None else dict(LOGOCENTRIC_QUIET=asked))

def stages(folder, rank):
    os.environ['LOGOCENTRIC_HOME'] = str(folder/'home')
    def make(place):
        entered.append((place.name, silent()))
        config = TrainConfig(steps=2, batch_size=2)
        train(Line(), Named(), config, loss_fn=plain, folder=place/'training', progress=False)
        (place/'result.txt').write_text(f'of process {rank}')
        save_on_main_process(place, Heavy())
        kept.extend(str(p.relative_to(folder/'home')) for p in place.glob('*.bin'))
    entered, kept = [], []
    found = [cached_folder('learned', dict(x=1), make, together=True) for _ in range(2)]
    alone = said(lambda: cached_folder('lonely', {}, make))     # enters, and is refused by `train`
    return dict(entered=entered, kept=kept, found=[str(f) for f in found], text=(found[0]/'result.txt').read_text(),
                alone=alone, scratch=list(cache_path('scratch').glob('*')), held=held(rank, make))

def held(rank, make):
    "A stage whose lock another run has, as here the second process."
    place, cache._PATIENCE = cache_path('learned', config_hash(dict(x=2))), .3
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place/'lock') if rank else nullcontext():
        all_processes().wait_for_everyone()
        return said(lambda: cached_folder('learned', dict(x=2), make, together=True))

class Buffered(Line):
    "Counts its calls, each process in its own way."
    def __init__(self, rank):
        super().__init__(); self.rank = rank
        self.register_buffer('seen', torch.tensor([100.*rank]))
    def forward(self, x): self.seen += 1 + self.rank; return super().forward(x)

def buffers(rank):
    model = Buffered(rank)
    train(model, Named(), TrainConfig(steps=3, batch_size=2), loss_fn=plain, progress=False)
    return model.seen.item()

TINY = Recipe(music=4, sounds=6, held_out=4, steps=4, batch_size=4, encoder=dict(name='tiny', target='per_patch'))

def encoder(folder):
    history = train_encoder(folder/'ear', TINY, processes=1, mixed_precision='no', progress=False)
    return [row['loss'] for row in history.rows]

def parted():
    "After the others are gone."
    main = leave_launch()
    return main, world_size(), os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads() == cores()

def first(folder, rank):
    disk = folder/'run' if rank == 0 else folder/'another-machine'
    data, few = Named(), dict(steps=13, batch_size=2)
    train(Line(), data, TrainConfig(**few), loss_fn=plain, progress=False)
    return dict({case: learn(case) for case in CASES}, parts=learn('captioner', parts=2), seen=data.seen,
                cut=learn('mae', stop_after=6, folder=disk), files=[p.name for p in disk.glob('*')],
                stages=stages(folder, rank), buffers=buffers(rank), encoder=encoder(folder), parted=parted())

def second(folder, rank):
    disk = folder/'run' if rank == 0 else folder/'a-third-machine'
    return dict(wrong=said(lambda: learn('mae', folder=disk, batch_size=3)), run=learn('mae', folder=disk))

def leave(phase, folder, rank, port):
    "What one of two processes does, begun as a launcher begins it."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', GROUP_RANK='0',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    torch.set_num_threads(1)
    torch.save(phase(folder, rank), folder/f'{phase.__name__}{rank}.pt')

def launch(process, phase, folder):
    "Two processes over gloo; what each of them found. (Under `torchrun` the chapter on training begins two.)"
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    both = [process(target=leave, args=(phase, folder, rank, port)) for rank in (0, 1)]
    for run in both: run.start()
    for run in both: run.join(300)
    assert [run.exitcode for run in both] == [0, 0]
    return [torch.load(folder/f'{phase.__name__}{rank}.pt', weights_only=False) for rank in (0, 1)]

@pytest.fixture(scope='module')
def two(tmp_path_factory, one_thread, fresh_process):
    folder = tmp_path_factory.mktemp('two')
    return folder, launch(fresh_process, first, folder)

@pytest.mark.parametrize('case', CASES)
def test_two_processes_learn_what_one_learns(two, case):
    alone = learn(case)
    for process in two[1]: same(process[case], alone)
    same(learn(case, parts=2), alone)

def test_two_processes_with_two_parts_each(two):
    same(two[1][0]['parts'], two[1][1]['captioner'])

def test_every_epoch_has_every_clip_once(two):
    seen = [indices for step in zip(two[1][0]['seen'], two[1][1]['seen']) for batch in step for indices in batch]
    assert len(seen) == 52                                                # 13 is no multiple of 2 x 2
    assert all(sorted(seen[e:e + 13]) == list(range(13)) for e in range(0, 52, 13))

def test_only_the_main_process_writes(two):
    main, other = two[1]
    assert sorted(main['files']) == ['best.safetensors', 'last.pt'] or main['files'] == ['last.pt']
    assert other['files'] == [] and main['cut'] is other['cut'] is None

def test_a_run_goes_on_with_one_process_and_again_with_two(two, fresh_process):
    folder = two[0]
    assert torch.load(folder/'run'/'last.pt')['step'] == 4
    assert learn('mae', folder=folder/'run', stop_after=10) is None and torch.load(folder/'run'/'last.pt')['step'] == 12
    main, other = launch(fresh_process, second, folder)
    for process in (main, other):
        assert 'clips_in_a_step: 8 -> 6' in process['wrong'] and 'choose batch_size=4' in process['wrong']
        same(process['run'], learn('mae'))

def test_stages_of_all_processes(two):
    main, other = (process['stages'] for process in two[1])
    folder = Path(main['found'][0])
    assert main['found'] == other['found'] == [str(folder)]*2 and main['text'] == other['text'] == 'of process 0'
    # the same work, and one of them shows a bar
    assert main['entered'][0] == (folder.name, False) and other['entered'][0] == (f'{folder.name}-1', True)
    # what is made by one, one after the other; the one that works shows a bar
    assert main['entered'][1:] == other['entered'][1:] and main['entered'][1][1] is False
    assert len(main['kept']) == 1 and other['kept'] == [] and main['scratch'] == other['scratch'] == []
    assert all('lonely' in s['alone'] and 'together=True' in s['alone'] for s in (main, other))
    assert (folder/'done.json').exists() and (folder/'training'/'last.pt').exists()

def test_a_stage_that_another_run_makes_is_an_error_in_all(two):
    for process in two[1]:
        message = process['stages']['held']
        assert 'another run is making the stage' in message and config_hash(dict(x=2)) in message

def test_buffers_are_made_equal_once(two):
    # 103 and 206 if they began unequal; 3 and 4 if those of the main process came with every step
    assert [process['buffers'] for process in two[1]] == [3., 6.]

def test_an_encoder_is_trained_together(two):
    (folder, (main, other)), passes = two, TINY.steps*TINY.batch_size
    assert main['encoder'] == other['encoder']
    assert {p.name for p in (folder/'ear'/'milestones').iterdir()} == {'4', '8', '12', '16'}
    assert read_json(folder/'ear'/'history.json')['passes'] == passes
    assert read_json(folder/'ear'/'recipe.json') == TINY.to_dict() and (folder/'ear'/'model.safetensors').exists()

def test_who_leaves_a_launch_has_all_cores(two):
    assert [process['parted'] for process in two[1]] == [(True, 1, None, True), (False, 1, None, True)]

# One process

def test_a_configuration_is_divided_among_processes(monkeypatch):
    recipe = TrainConfig(steps=3, batch_size=16, num_workers=14, compile=True)
    assert recipe.per_process() == replace(recipe, num_workers=min(14, cores())) and recipe.per_process().compile
    with less_memory(parts=4, recompute=True): small = recipe.per_process()
    assert (small.batch_size, small.accumulation, small.recompute) == (4, 4, True)
    assert 'LOGOCENTRIC_PARTS' not in os.environ
    monkeypatch.setattr('logocentric.memory.cores', lambda: 32)
    for name, value in dict(WORLD_SIZE='8', LOCAL_WORLD_SIZE='4').items(): monkeypatch.setenv(name, value)
    mine, alone = recipe.per_process(), replace(recipe, num_workers=0).per_process()
    assert (mine.batch_size, mine.num_workers, alone.num_workers) == (2, 3, 0)
    monkeypatch.setattr('logocentric.memory.cores', lambda: 2)
    assert recipe.per_process().num_workers == 1
    with less_memory(parts=3), pytest.raises(LogocentricError, match='16 clips .* 8 process.* 3 part'):
        recipe.per_process()
    monkeypatch.setenv('LOGOCENTRIC_PARTS', 'two')
    with pytest.raises(LogocentricError, match="LOGOCENTRIC_PARTS is a number, not 'two'"): recipe.per_process()

def test_a_run_that_was_too_large_goes_on_in_parts(tmp_path):
    assert learn('mae', stop_after=6, folder=tmp_path) is None and torch.load(tmp_path/'last.pt')['step'] == 4
    same(learn('mae', parts=2, recompute=True, folder=tmp_path), learn('mae'))

def test_a_part_of_a_bundle_may_ask_nothing():
    model, batch = reasoner(), sentences(8, 1).batch([0, 1], np.random.default_rng(0))
    loss = model(**dict(batch, labels=torch.full_like(batch['labels'], -100))).loss
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in model.parameters() if p.grad is not None)

def test_sentences_one_by_one_are_the_same_bundles():
    one, whole = sentences(26, 1), KnowledgeDataset([Sentence('calm and slow', [(0, 4)])]*26, tokenizer(), bundle=8)
    assert len(one) == 24 and len(whole) == 3
    for epoch in (0, 1):
        assert one.order(5, epoch).reshape(3, 8).tolist() == [list(range(8*b, 8*b + 8)) for b in whole.order(5, epoch)]
        assert (whole.order(5, epoch) == np.random.default_rng([5, 0, epoch]).permutation(3)).all()

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
        padding = dict(input_ids=1, attention_mask=0, labels=-100)
        for k, v in padding.items(): batch[k] = torch.nn.functional.pad(batch[k], (0, more), value=v)
        set_seed(3)
        with PerClipRandom().of(indices): return model(**batch).logits
    alone, among, padded = loss([2], 0)[0], loss([4, 2, 5], 0)[1], loss([2], 7)[0]
    torch.testing.assert_close(alone, among[:len(alone)])
    torch.testing.assert_close(alone, padded[:len(alone)])
    batch = {k: v for k, v in fetch(pairs(6, 1), [2]).items() if k != 'id'}
    assert not torch.allclose(alone, loss([2], 0)[0]*0 + model.eval()(**batch).logits[0])

def test_dropout_inside_fused_attention_is_refused():
    with pytest.raises(LogocentricError, match="eager"):
        train(captioner('sdpa'), pairs(8, 1), TrainConfig(steps=1, batch_size=2), per_clip=True, progress=False)

@pytest.mark.parametrize('case', CASES)
def test_recomputed_activations_are_the_same(case):
    same(learn(case, recompute=True), learn(case), 1e-6)

def test_recomputing_is_undone_and_needs_layers():
    model = captioner()
    train(model, pairs(8, 1), TrainConfig(steps=1, batch_size=2, recompute=True), progress=False)
    assert not any(getattr(m, 'gradient_checkpointing', False) for m in model.modules())
    config = TrainConfig(steps=1, batch_size=2, recompute=True)
    with pytest.raises(LogocentricError, match='recompute=False'):
        train(Line(), Named(), config, loss_fn=plain, progress=False)

def without_dropout(model):
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    return model

def test_fused_attention_is_the_same():
    same(*(learn('captioner', make=lambda: without_dropout(captioner(attention))) for attention in ('sdpa', 'eager')))

@pytest.mark.parametrize('case', ['mae', 'captioner'])
def test_bf16_follows_the_curve(case):
    "Measured: 20 losses differ by at most .0003 of their value, validations by .0001."
    half, full = (learn(case, dtype=torch.float32, mixed_precision=precision)['rows'] for precision in ('bf16', 'no'))
    losses = lambda row: {k: v for k, v in row.items() if 'loss' in k}
    for x, y in zip(half, full): assert losses(x) == pytest.approx(losses(y), rel=1e-3)
    assert half[0]['loss'] != full[0]['loss']

class Texts:
    "Texts of one length."
    def __len__(self): return 16
    def batch(self, indices, rng):
        ids = torch.tensor([[i, i + 1, 3, 1] for i in indices])
        return dict(input_ids=ids, labels=ids)

def written(compile, folder):
    size = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=1,
                      resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
    set_seed(0)
    model = GPT2LMHeadModel(size).double()
    config = TrainConfig(steps=4, batch_size=4, eval_every=2, compile=compile)
    history = train(model, Texts(), config, Texts(), folder=folder, progress=False)
    assert model._compiled_call_impl is None and type(model) is GPT2LMHeadModel
    return history, model.state_dict(), torch.load(folder/'last.pt')['model']

def compiled_is_the_same(tmp_path):
    (h, weights, saved), (h0, weights0, saved0) = (written(c, tmp_path/str(c)) for c in (True, False))
    for x, y in zip(h.rows, h0.rows):
        for k in ('loss', 'grad_norm'): assert x[k] == pytest.approx(y[k], rel=1e-4)
    assert saved.keys() == saved0.keys() and not any('_orig_mod' in k for k in saved)
    for k in weights: torch.testing.assert_close(weights[k], weights0[k], rtol=1e-4, atol=1e-4)

def test_a_traced_model_is_the_same(tmp_path, monkeypatch):
    "All of compilation but the compiler."
    calls, compile = [], torch.nn.Module.compile
    traced = lambda self: calls.append(self) or compile(self, backend='aot_eager')
    monkeypatch.setattr(torch.nn.Module, 'compile', traced)
    compiled_is_the_same(tmp_path)
    assert len(calls) == 1

@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, (os.environ.get('CXX', 'g++'), 'clang++'))),
                    reason='torch.compile needs a C++ compiler on the CPU')
def test_a_compiled_model_is_the_same(tmp_path): compiled_is_the_same(tmp_path)

def test_what_is_drawn_for_each_clip_is_not_compiled():
    config = TrainConfig(steps=1, batch_size=2, compile=True)
    with pytest.raises(LogocentricError, match='compile=False'):
        train(mae(), Clips(8, 1), config, per_clip=True, progress=False)

def test_masks_of_a_clip_are_its_own():
    class Plain(Clips):
        def batch(self, indices, rng): return dict(logmel=self.logmel[indices])
    def final(parts, per_clip):
        model = mae()
        config = TrainConfig(steps=4, batch_size=8//parts, accumulation=parts)
        return train(model, Plain(26, 1), config, Plain(10, 2), per_clip=per_clip, progress=False).rows[-1]
    whole, parts, otherwise = final(1, True), final(2, True), final(2, False)
    for k in ('loss', 'valid_loss', 'grad_norm'):
        assert whole[k] == pytest.approx(parts[k], rel=TOLERANCE)
        assert whole[k] != pytest.approx(otherwise[k], rel=TOLERANCE)

class Greedy(Line):
    def __init__(self, error): super().__init__(); self.error = error
    def forward(self, x): raise self.error

@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: "
                 'you tried to allocate 9 bytes')])
def test_out_of_memory_says_what_to_turn(error):
    config = TrainConfig(steps=3, batch_size=4, accumulation=3)
    with pytest.raises(OutOfMemory) as found: train(Greedy(error), Named(), config, loss_fn=plain, progress=False)
    text = str(found.value)
    places = [text.index(t) for t in ('batch_size=2, accumulation=6', 'recompute=True', "mixed_precision='bf16'")]
    assert 'step 1 on cpu with 4 clips' in text and places == sorted(places)

def test_out_of_memory_inside_reproduce_names_its_options():
    with less_memory(parts=2), pytest.raises(OutOfMemory) as found:
        config = TrainConfig(steps=3, batch_size=8).per_process()
        train(Greedy(torch.OutOfMemoryError('CUDA')), Named(), config, loss_fn=plain, progress=False)
    text = str(found.value)
    assert text.index('--parts 4') < text.index('--recompute')
    assert 'batch_size=' not in text and 'goes on where it was' in text

def test_another_error_passes():
    model, config = Greedy(RuntimeError('something else')), TrainConfig(steps=1, batch_size=1)
    with pytest.raises(RuntimeError, match='something else'):
        train(model, Named(), config, loss_fn=plain, progress=False)
