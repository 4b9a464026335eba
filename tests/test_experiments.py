"End to end at scale smoke: from nothing to tables, figures, a report, and a model that describes a file."
import hashlib, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
from logocentric.core import LogocentricError, load_records, project_root, read_json
from logocentric.pipeline.experiments import EXPERIMENTS, Lab, run_experiment
from logocentric.pipeline.scales import SCALES
from logocentric.pipeline.report import reproduce
from logocentric.memory import less_memory
from logocentric.training import train

ROOT = project_root()


@pytest.fixture(scope='module')
def home(home):
    "With the paper's numbers in it, so that a test run neither finds nor leaves anything in the checkout."
    (home/'data').mkdir()
    (home/'data'/'published.json').write_bytes((ROOT/'data'/'published.json').read_bytes())
    return home


@pytest.fixture(scope='module')
def told(home): return reproduce('smoke', seed=1)


def test_reproduce_tells_tables_and_report(told, home):
    for words in ('Table 1', 'Table 2', 'Figure 2', 'Figure 4', 'not comparable', 'GPT-Neo-1.3B', 'the paper, on recordings'): assert words in told
    page = (home/'data'/'runs'/'smoke-1'/'report.html').read_text()
    assert '<table' in page and page.count('<img') >= 4
    for picture in (home/'data'/'runs'/'smoke-1'/'figures').glob('*.png'): assert picture.name in page


def test_every_experiment_ran_to_its_end(told, home):
    for name in EXPERIMENTS:
        run = read_json(home/'data'/'runs'/'smoke-1'/f'{name}.ipynb')['metadata']['papermill']
        assert run['end_time'] and run['exception'] is None


def test_records_hold_what_a_reader_needs(told, home):
    records = {r.name: r for r in load_records(home/'data'/'runs'/'smoke-1'/'records')}
    assert set(records) == set(EXPERIMENTS)
    for r in records.values(): assert r.params['seed'] == 1 and r.seconds > 0 and r.versions['torch']
    for row in records['table1_reasoner_size'].metrics['rows']:
        for source in ('predicted', 'true'):
            s = row[source]
            assert s['n'] == row['n'] == SCALES['smoke'].test and 0 <= s['low'] <= s['value'] <= s['high'] <= 1
    assert {r['reader'] for r in records['table1_reasoner_size'].metrics['rows']} == set(SCALES['smoke'].readers)
    assert {r['pairs'] for r in records['table2_data_scale'].metrics['rows']} == set(SCALES['smoke'].pairs)


def test_a_second_call_makes_nothing(told, home):
    marks = lambda: {p: p.stat().st_mtime_ns for p in (home/'data').rglob('*') if p.name in ('done.json', 'config.json') or p.suffix == '.ipynb'}
    before = marks()
    again = reproduce('smoke', seed=1)
    assert marks() == before and again.splitlines()[:-1] == told.splitlines()[:-1]


def test_test_sets_share_no_clip_with_training(told):
    lab = Lab.at('smoke', 1)
    seen = set(lab.corpus('train').table.id)
    for split in ('valid', 'heldout', 'gtzan', 'gtzan_shifted', 'fma_shifted'):
        new = lab.corpus(split)
        heard = {lab.corpus('train').features[i].tobytes() for i in range(len(lab.corpus('train')))}
        assert not heard & {new.features[i].tobytes() for i in range(len(new))}


def test_equal_steps_whatever_the_pairs(told):
    lab = Lab.at('smoke', 1)
    configs = [read_json(lab.captioner(n)/'done.json')['config'] for n in lab.scale.pairs]
    assert configs[0]['train'] == configs[1]['train'] and lab.scale.pairs[1] >= 8*lab.scale.pairs[0]
    mini = SCALES['mini']
    assert mini.pairs[1] >= 10*mini.pairs[0] and len(mini.readers) >= 3 and mini.test >= 1000


def test_unknown_parameters_and_scales_are_refused(home):
    with pytest.raises(LogocentricError, match='no parameter colour'): run_experiment('table1_reasoner_size', scale='smoke', colour='red')
    with pytest.raises(LogocentricError, match='unknown scale'): Lab.at('huge')


def test_models_by_name_or_folder(told, home, tmp_path):
    "The way of scale `paper`: decoder and reasoner are loaded by name, here from folders with tiny models of the same architectures."
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM
    tokenizer = Lab.at('smoke', 1).tokenizer()
    ids = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=256, **ids)).save_pretrained(tmp_path/'gpt2')
    GPTNeoForCausalLM(GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                                   max_position_embeddings=256, **ids)).save_pretrained(tmp_path/'neo')
    for name in ('gpt2', 'neo'): tokenizer.save_pretrained(tmp_path/name)
    scale = replace(SCALES['smoke'], decoder=str(tmp_path/'gpt2'), warmup=None, readers=(str(tmp_path/'neo'),))
    row = Lab(scale, 1).row('gtzan', str(tmp_path/'neo'), scale.pairs[-1])
    assert row['n'] == scale.test and 0 <= row['predicted']['value'] <= 1
    missing = Lab(replace(scale, readers=('/no/such/model',)), 1)
    with pytest.raises(LogocentricError, match='no language model'): missing.row('gtzan', '/no/such/model', scale.pairs[-1])
    assert SCALES['paper'].decoder == 'gpt2-medium' and SCALES['paper'].readers == ('gpt2-large', 'EleutherAI/gpt-neo-1.3B')


def test_pairs_beyond_what_is_kept_are_rendered(home, one_thread):
    "As at scale `gpu`: the clips that are rendered while training are those that would have been kept, and there is one sound for four of them."
    scale = replace(SCALES['smoke'], kept=8, pairs=(8, 24))
    lab, whole = Lab(scale, 3), Lab(replace(scale, kept=None), 3)
    assert (len(lab.corpus('train')), len(whole.corpus('train'))) == (8, 24) and not lab.is_live(8) and not whole.is_live(24)
    live = lab.live(24)
    assert len(live) == 30 and live.clips.clip(29)['id'].startswith('sound ')
    for i in (0, 7, 23):
        clip = live.clips.clip(i)
        assert (clip['logmel'] == whole.corpus('train').features[i]).all() and clip['text'] == whole.corpus('train').table.description[i]
    learned = read_json(lab.captioner(24)/'done.json')['config']
    assert learned['pairs'] == 24 and learned['corpora'][0] == lab.corpus('train').folder.name
    assert Lab.at('gpu').is_live(100_000) and not Lab.at('gpu').still


def test_every_model_can_be_learned_in_parts(home, one_thread, monkeypatch):
    "A run whose memory was too small: smaller batches, activations computed again, and the stages that are looked for afterwards."
    lab, asked = Lab(replace(SCALES['smoke'], pairs=(8, 16)), 4), []
    def noted(model, data, config, *args, **kwargs):
        asked.append((config.batch_size, config.accumulation, config.recompute))
        return train(model, data, config, *args, **kwargs)
    for module in ('captioner', 'experiments', 'pretrain', 'reader', 'table3'): monkeypatch.setattr(f'logocentric.{module}.train', noted)
    def models(): return [lab.mae(.15), lab.voice(), lab.captioner(8), lab.ear(), lab.reasoner('small'), lab.table3().tagger('small'), lab.table3().direct()]
    with less_memory(parts=2, recompute=True): made = models()
    assert sorted(asked) == [(4, 2, True)]*6 + [(32, 2, True)]
    assert models() == made and len(asked) == 7


def test_parts_that_cannot_be_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    with pytest.raises(LogocentricError, match='8 clips in a step cannot be shared by 1 process.* with 3 part'): reproduce('smoke', parts=3)
    assert not list(tmp_path.iterdir()) and 'LOGOCENTRIC_PARTS' not in os.environ


@pytest.mark.parametrize('pairs, said', [('2000, x', 'expected numbers of pairs'), ('20, 10', 'from few to many'), ('', '')])
def test_numbers_of_pairs(pairs, said):
    if not said: assert Lab.at('smoke', pairs=pairs).scale.pairs == SCALES['smoke'].pairs and Lab.at('smoke', pairs='4,9').scale.pairs == (4, 9)
    else:
        with pytest.raises(LogocentricError, match=said): Lab.at('smoke', pairs=pairs)


def test_a_curve_of_pairs(told, home, one_thread):
    "Table 2 with three numbers of pairs is a curve, and its record says that they are not the scale's."
    output = run_experiment('table2_data_scale', 'smoke', 1, pairs='8, 32, 64')
    assert (home/'data'/'runs'/'smoke-1'/'figures'/'table2_accuracy.png').exists() and output.exists()
    record, = [r for r in load_records(home/'data'/'runs'/'smoke-1'/'records', name='table2_data_scale') if 'pairs' in r.params]
    assert sorted({r['pairs'] for r in record.metrics['rows']}) == [8, 32, 64]


@pytest.mark.slow
def test_reproduce_under_a_launch(tmp_path):
    "Two processes over gloo: one report, and the stages are made once. `torchrun` starts what `accelerate launch` starts where there are GPUs."
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'published.json').write_bytes((ROOT/'data'/'published.json').read_bytes())
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', '29531', str(Path(sys.executable).with_name('logocentric')), 'reproduce', '--scale', 'smoke', '--seed', '5']
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=os.environ | dict(LOGOCENTRIC_HOME=str(tmp_path), OMP_NUM_THREADS='1'))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count('# logocentric: scale smoke, seed 5') == 1
    captioner, = [p for p in (tmp_path/'data'/'cache'/'captioner').iterdir() if read_json(p/'done.json')['config']['pairs'] == 64]
    assert (captioner/'model.safetensors').exists() and len(read_json(captioner/'history.json')['rows']) == 4


def test_papermill_from_the_root(told, home, tmp_path):
    "The command that the README shows."
    command = [sys.executable, '-m', 'papermill', 'nbs/experiments/table1_reasoner_size.ipynb', str(tmp_path/'out.ipynb'), '-p', 'scale', 'smoke', '-p', 'seed', '1']
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert read_json(tmp_path/'out.ipynb')['metadata']['papermill']['exception'] is None


def test_a_killed_run_continues(tmp_path):
    "Kill a run twice, at different moments; the third call ends with the very weights of a run that was left alone."
    code = "from logocentric.pipeline.experiments import Lab; lab = Lab.at('smoke', 2); print(lab.captioner(lab.scale.pairs[-1]))"
    def start(home, **options):
        env = {**os.environ, 'LOGOCENTRIC_HOME': str(home), 'LOGOCENTRIC_QUIET': '1'}
        return subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options)
    def finish(home): return Path(start(home).communicate(timeout=300)[0].split()[-1])
    for seen in ('corpus', 'mae'):
        run, deadline = start(tmp_path/'killed', start_new_session=True), time.time() + 120
        while not list((tmp_path/'killed'/'data'/'cache'/seen).glob('*/*')) and run.poll() is None and time.time() < deadline: time.sleep(.02)
        assert run.poll() is None, 'the run ended before it could be killed'
        os.killpg(run.pid, signal.SIGKILL); run.wait()
    killed, alone = finish(tmp_path/'killed'), finish(tmp_path/'alone')
    digest = lambda folder: hashlib.sha256((folder/'model.safetensors').read_bytes()).hexdigest() # to compare, and not to describe, megabytes
    assert digest(killed) == digest(alone)
