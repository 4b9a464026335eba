"The training loop: killed in earnest, continued bit for bit."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler
from logocentric.core import project_root, set_seed
from logocentric.runs import TrainConfig, decay_groups
from logocentric.steps import TrainingDiverged, evaluate
from logocentric.batches import batch_indices, derived_seed, fetch
from logocentric.training import train

SCRIPT = '''
import sys, time, torch
from logocentric.core import set_seed
from logocentric.encoder.mae import MAEConfig, MAEModel
from logocentric.runs import TrainConfig
from logocentric.training import train
torch.set_num_threads(1)
folder, pause, precision = sys.argv[1], float(sys.argv[2]), sys.argv[3]

class Clips:
    logmel = torch.randn(40, 64, 80, generator=torch.Generator().manual_seed(3))
    def __len__(self): return 40
    def batch(self, indices, rng):
        time.sleep(pause)
        start = int(rng.integers(0, 17))
        return dict(logmel=self.logmel[indices, start:start + 48])

set_seed(0)
model = MAEModel(MAEConfig.preset('tiny'))
config = TrainConfig(steps=40, batch_size=8, accumulation=2, eval_every=7, checkpoint_every=5,
                     mixed_precision=precision)
history = train(model, Clips(), config, Clips(), folder=folder)
losses = history.frame[['step', 'loss', 'valid_loss']].to_numpy()
torch.save(dict(weights=model.state_dict(), losses=losses), folder + '/final.pt')
'''

def start(folder, pause, precision):
    env = os.environ | dict(LOGOCENTRIC_QUIET='1', PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), str(pause), precision], env=env)

def saved_step(folder):
    return torch.load(folder/'last.pt', weights_only=True)['step'] if (folder/'last.pt').exists() else 0

@pytest.mark.parametrize('precision', ['no', pytest.param('bf16', marks=pytest.mark.slow)])
def test_killed_run_ends_at_the_same_bits(tmp_path, precision):
    whole, broken = tmp_path/'whole', tmp_path/'broken'
    whole.mkdir(); broken.mkdir()
    uninterrupted, victim = start(whole, 0, precision), start(broken, .03, precision)
    deadline = time.time() + 120
    while saved_step(broken) < 10 and time.time() < deadline: time.sleep(.02)
    time.sleep(.1)                                                        # somewhere between two checkpoints
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and 10 <= saved_step(broken) < 40
    assert start(broken, 0, precision).wait() == 0 and uninterrupted.wait() == 0
    a, b = (torch.load(f/'final.pt', weights_only=False) for f in (whole, broken))
    assert all(torch.equal(a['weights'][k], b['weights'][k]) for k in a['weights'])
    np.testing.assert_array_equal(a['losses'], b['losses'])

class Line(torch.nn.Module):
    def __init__(self): super().__init__(); set_seed(0); self.layer = torch.nn.Linear(3, 1)
    def forward(self, x): return dict(loss=self.layer(x).square().mean())

class Vectors:
    def __init__(self, n=20): self.x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    def __len__(self): return len(self.x)
    def __getitems__(self, indices): return dict(id=[f'v{i}' for i in indices], x=self.x[indices])

loss = lambda model, batch: model(**batch)['loss']

def test_equals_a_plain_torch_loop():
    ours, theirs = Line(), Line()
    config = TrainConfig(steps=12, batch_size=4, lr=1e-2, clip=.5)
    train(ours, Vectors(), config, loss_fn=loss)
    optimizer = torch.optim.AdamW(decay_groups(theirs, .05), lr=1e-2, betas=(.9, .95))
    schedule = get_scheduler('cosine', optimizer, num_warmup_steps=1, num_training_steps=12)
    for step in range(12):
        optimizer.zero_grad()
        theirs(Vectors().x[batch_indices(20, 4, step)])['loss'].backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), .5)
        optimizer.step(); schedule.step()
    torch.testing.assert_close(ours.layer.weight, theirs.layer.weight)

def test_each_epoch_sees_each_clip_once():
    line = [i for batch in range(9) for i in batch_indices(12, 4, batch, seed=5)]
    assert all(sorted(line[e:e + 12]) == list(range(12)) for e in (0, 12, 24)) and line[:12] != line[12:24]
    assert batch_indices(3, 7, 0) == batch_indices(3, 7, 0) and len(batch_indices(3, 7, 0)) == 7

def test_nan_names_step_and_clips_and_spares_the_weights():
    data, model = Vectors(), Line()
    data.x[6] = torch.nan
    with pytest.raises(TrainingDiverged, match=r'step \d+; clips of the batch: .*v6'):
        train(model, data, TrainConfig(steps=10, batch_size=4), loss_fn=loss)
    assert model.layer.weight.isfinite().all()

@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_model_comes_back_as_it_was(precision):
    model, before = Line(), torch.get_rng_state()
    train(model, Vectors(), TrainConfig(steps=2, batch_size=4, mixed_precision=precision), loss_fn=loss)
    assert torch.equal(before, torch.get_rng_state()) and 'forward' not in vars(model) and not model.training
    assert model(torch.randn(2, 3))['loss'].dtype == torch.float32
    assert model.layer(torch.randn(2, 3)).dtype == torch.float32

def test_best_weights_and_patience(tmp_path):
    model, valid = Line(), Vectors(8)
    valid.x = valid.x + 3.                                                # another distribution: gets worse in the end
    config = TrainConfig(steps=200, batch_size=4, lr=.3, eval_every=2, patience=3, schedule='constant', warmup=0.)
    history = train(model, Vectors(), config, valid, loss_fn=loss, folder=tmp_path)
    assert history.rows[-1]['step'] < 200
    assert evaluate(model, valid, 4, loss) == pytest.approx(history.best_loss, rel=1e-6)
    again = Line()
    assert train(again, Vectors(), config, valid, loss_fn=loss, folder=tmp_path).rows == history.rows
    assert torch.equal(again.layer.weight, model.layer.weight)

def test_workers_fetch_the_same_batches():
    models = [Line(), Line()]
    for model, workers in zip(models, (0, 2)):
        train(model, Vectors(), TrainConfig(steps=6, batch_size=4, num_workers=workers), loss_fn=loss)
    assert torch.equal(models[0].layer.weight, models[1].layer.weight)

def test_tied_weights_of_a_language_model_survive_a_folder(tmp_path):
    class Text(Vectors):
        def __getitems__(self, indices):
            ids = torch.tensor([[i, 1, 2, 3] for i in indices])
            return dict(input_ids=ids, labels=ids)
    size = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    models = [GPT2LMHeadModel(size) for _ in range(2)]
    for model in models: history = train(model, Text(), TrainConfig(steps=6, batch_size=4), Text(8), folder=tmp_path)
    assert history.best_step and models[1].lm_head.weight is models[1].transformer.wte.weight
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models)))

def test_fetch_prefers_whole_batches():
    class Crops(Vectors):
        def batch(self, indices, rng): return dict(x=self.x[indices].numpy(), start=rng.integers(0, 99, len(indices)))
    one, two = (fetch(Crops(), [1, 2], seed=derived_seed(0, 1, step))['start'] for step in (0, 1))
    assert torch.equal(one, fetch(Crops(), [1, 2], seed=derived_seed(0, 1, 0))['start']) and not torch.equal(one, two)

def test_every_run_has_its_own_precision():
    "A model that was trained before is trained in the precision that is asked for now."
    class Seen(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            if self.training: seen.append(y.dtype)
            return SimpleNamespace(loss=y.float().square().mean())
    class Data:
        def __len__(self): return 4
        def batch(self, indices, rng): return dict(x=torch.ones(len(indices), 2))
    model, seen = Seen(2, 2), []
    for precision in ('bf16', 'bf16', 'no'):
        train(model, Data(), TrainConfig(steps=1, batch_size=2, mixed_precision=precision), progress=False)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_the_script_for_a_queue_puts_the_job_back(tmp_path):
    "As printed in the chapter, among programs that pretend to be Slurm: five minutes before the end comes a signal."
    chapter = json.loads((project_root()/'nbs'/'090_training.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in chapter['cells'])
    script, = [b for b in re.findall(r'```bash\n(.*?)```', text, re.S) if '#SBATCH' in b]
    assert script.startswith('#!/bin/bash\n') and 'train.py' in script and '--signal=B:USR1@' in script
    srun = f'#!/bin/bash\necho "$FIRST $3" > {tmp_path}/started\nexec sleep 60\n'
    scontrol = f'#!/bin/bash\n[ "$1" = show ] && printf "first\\nsecond\\n" || echo "$*" > {tmp_path}/asked\n'
    for name, does in dict(script=script, srun=srun, scontrol=scontrol).items():
        (tmp_path/name).write_text(does); (tmp_path/name).chmod(0o755)
    env = os.environ | dict(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID='17', SLURM_NNODES='2')
    job = subprocess.Popen([tmp_path/'script'], env=env, start_new_session=True)
    try:
        for _ in range(1000):
            if (tmp_path/'started').exists(): break
            time.sleep(.01)
        job.send_signal(signal.SIGUSR1); job.wait(20)
    finally: os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path/'asked').read_text() == 'requeue 17\n'
    assert (tmp_path/'started').read_text().startswith('first')
