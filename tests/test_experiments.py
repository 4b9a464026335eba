"End to end at scale smoke: from nothing to tables, figures, a report, and a model that describes a file."
import hashlib, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
from logocentric.core import LogocentricError, load_records, project_root, read_json, run_path
from logocentric.memory import less_memory
from logocentric.pipeline.captioner_stages import lazy_clips, text_decoder, trained_captioner
from logocentric.pipeline.data_stages import rendered_clips, tokenizer, training_clips
from logocentric.pipeline.encoder_stages import masked_autoencoder, multitask_encoder
from logocentric.pipeline.experiments import EXPERIMENTS, run_experiment
from logocentric.pipeline.reasoner_stages import reasoner_stage
from logocentric.pipeline.report import reproduce
from logocentric.pipeline.results import genre_row
from logocentric.pipeline.scales import SCALES, ReasonerScale, Setup
from logocentric.pipeline.schedule import answering_stages, training_stages
from logocentric.pipeline.stage import in_order
from logocentric.pipeline.tagging_stages import tagging_setup, trained_classifier, trained_tagger
from logocentric.runs import TrainConfig
from logocentric.training import train

ROOT, SMOKE = project_root(), SCALES['smoke']


@pytest.fixture(scope='module')
def run(smoke_home):
    "The folder of a whole run."
    return smoke_home/'data'/'runs'/'smoke-1'


@pytest.fixture(scope='module')
def report(run): return reproduce('smoke', seed=1)


def test_reproduce_gives_tables_and_report(report, run):
    for words in ('Table 1', 'Table 2', 'Figure 2', 'Figure 4', 'not comparable', 'GPT-Neo-1.3B',
                  'the paper, on recordings'): assert words in report
    page = (run/'report.html').read_text()
    assert '<table' in page and page.count('<img') >= 4
    pictures = [p for name in EXPERIMENTS for p in (run/'figures').glob(f"{name.split('_')[0]}*.png")]
    assert len(pictures) >= 4 and all(picture.name in page for picture in pictures)


def test_every_experiment_ran_to_its_end(report, run):
    for name in EXPERIMENTS:
        meta = read_json(run/f'{name}.ipynb')['metadata']['papermill']
        assert meta['end_time'] and meta['exception'] is None


def test_records_hold_what_a_reader_needs(report, run):
    records = {r.name: r for r in load_records(run/'records') if r.name in EXPERIMENTS}
    assert set(records) == set(EXPERIMENTS)
    for r in records.values(): assert r.params['seed'] == 1 and r.seconds > 0 and r.versions['torch']
    first, second = (records[name].metrics['rows'] for name in ('table1_reasoner_size', 'table2_data_scale'))
    for row in first:
        for source in ('predicted', 'true'):
            s = row[source]
            assert s['n'] == row['n'] == SMOKE.data.test and 0 <= s['low'] <= s['value'] <= s['high'] <= 1
    assert {r['reasoner'] for r in first} == set(SMOKE.reasoner.names)
    assert {r['pairs'] for r in second} == set(SMOKE.data.pairs)


def test_a_second_call_makes_nothing(report, run):
    setup = Setup.at('smoke', 1)
    stages = in_order([*training_stages(setup), *answering_stages(setup)])
    made = [stage.folder()/'done.json' for stage in stages if (stage.folder()/'done.json').exists()]
    executed = [run/f'{name}.ipynb' for name in EXPERIMENTS]
    published = list(run_path('models', 'smoke').rglob('*.json'))
    assert len(made) > 50 and len(published) > 4
    marks = lambda: {p: p.stat().st_mtime_ns for p in (*made, *executed, *published)}
    before = marks()
    again = reproduce('smoke', seed=1)
    assert marks() == before and again.splitlines()[:-1] == report.splitlines()[:-1]


def test_test_sets_share_no_clip_with_training(report):
    setup = Setup.at('smoke', 1)
    train_set = training_clips(setup, 'train').load()
    seen = {train_set.features[i].tobytes() for i in range(len(train_set))}
    for split in ('valid', 'heldout', 'gtzan', 'gtzan_shifted', 'fma_shifted'):
        new = rendered_clips(setup, split).load()
        assert not seen & {new.features[i].tobytes() for i in range(len(new))}


def test_equal_steps_whatever_the_pairs(report):
    setup = Setup.at('smoke', 1)
    few, many = pairs = setup.scale.data.pairs
    configs = [read_json(trained_captioner(setup, n).folder()/'done.json')['config'] for n in pairs]
    assert [c['n'] for c in configs] == [few, many] and many >= 8*few
    assert configs[0]['train'] == configs[1]['train']
    mini = SCALES['mini']
    assert mini.data.pairs[1] >= 10*mini.data.pairs[0] and len(mini.reasoner.names) >= 3 and mini.data.test >= 1000


def test_unknown_parameters_and_scales_are_refused(smoke_home):
    with pytest.raises(LogocentricError, match='no parameter colour'):
        run_experiment('table1_reasoner_size', scale='smoke', colour='red')
    with pytest.raises(LogocentricError, match='unknown scale'): Setup.at('huge')


def tiny_models(folder, tokenizer):
    "A decoder and a reasoner of the paper's architectures, as they would lie on a disk."
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM
    ids = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    gpt2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=256, **ids)
    neo = GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                       max_position_embeddings=256, **ids)
    GPT2LMHeadModel(gpt2).save_pretrained(folder/'gpt2')
    GPTNeoForCausalLM(neo).save_pretrained(folder/'neo')
    for name in ('gpt2', 'neo'): tokenizer.save_pretrained(folder/name)
    return str(folder/'gpt2'), str(folder/'neo')


def test_models_by_name_or_folder(report, tmp_path):
    "The way of scale `paper`: decoder and reasoner are loaded by name, here from folders with tiny models."
    gpt2, neo = tiny_models(tmp_path, tokenizer(Setup.at('smoke', 1)).load())
    captioner = replace(SMOKE.captioner, decoder=gpt2, warmup=None)
    setup = Setup(replace(SMOKE, captioner=captioner, reasoner=ReasonerScale((neo,))), 1)
    most = SMOKE.data.pairs[-1]
    row = genre_row(setup, 'gtzan', neo, most)
    assert row['n'] == SMOKE.data.test and 0 <= row['predicted']['value'] <= 1
    missing = Setup(replace(setup.scale, reasoner=ReasonerScale(('/no/such/model',))), 1)
    with pytest.raises(LogocentricError, match='no language model'): genre_row(missing, 'gtzan', '/no/such/model', most)
    paper = SCALES['paper']
    assert paper.captioner.decoder == 'gpt2-medium'
    assert paper.reasoner.names == ('gpt2-large', 'EleutherAI/gpt-neo-1.3B')


def test_pairs_beyond_what_is_kept_are_rendered(smoke_home):
    "As at scale `gpu`: what is rendered while training is what would have been kept, with one sound for four clips."
    def sized(kept): return Setup(replace(SMOKE, data=replace(SMOKE.data, kept=kept, pairs=(8, 24))), 1)
    setup, whole = sized(8), sized(None)
    kept, every = (training_clips(s, 'train').load() for s in (setup, whole))
    assert (len(kept), len(every)) == (8, 24) and lazy_clips(setup, 8) is None and lazy_clips(whole, 24) is None
    lazy = trained_captioner(setup, 24).lazy_pairs()
    assert len(lazy) == 30 and lazy.clips.clip(29)['id'].startswith('sound ')
    for i in (0, 7, 23):
        clip = lazy.clips.clip(i)
        assert (clip['logmel'] == every.features[i]).all() and clip['text'] == every.table.description[i]
    learned = read_json(trained_captioner(setup, 24).folder()/'done.json')['config']
    assert learned['n'] == 24 and learned['pairs']['clips'] == training_clips(setup, 'train').key
    gpu = Setup.at('gpu')
    assert lazy_clips(gpu, 100_000) is not None and not gpu.scale.captioner.is_frozen


def test_every_model_can_be_learned_in_parts(smoke_home, monkeypatch):
    "A run whose memory was too small: smaller batches, activations computed again, the same stages looked for later."
    other, seen = TrainConfig(steps=3, batch_size=8), [] # of models that are not made yet, on clips that are
    setup = Setup(replace(
        SMOKE, encoder=replace(SMOKE.encoder, mae=other, multitask=other), reasoner=ReasonerScale(('small',), steps=3),
        captioner=replace(SMOKE.captioner, train=other, warmup=other), tagging=replace(SMOKE.tagging, train=other)), 1)
    def noted(model, data, config, *args, **kwargs):
        seen.append((config.batch_size, config.accumulation, config.recompute))
        return train(model, data, config, *args, **kwargs)
    package = [module for name, module in sys.modules.items() if name.startswith('logocentric.')]
    for module in package:
        if vars(module).get('train') is train: monkeypatch.setattr(module, 'train', noted)
    def stages():
        tags = tagging_setup(setup)
        yield from (masked_autoencoder(setup, .15), text_decoder(setup), trained_captioner(setup, 8))
        yield from (multitask_encoder(setup), reasoner_stage(setup, 'small'))
        yield from (trained_tagger(tags, 'small'), trained_classifier(tags))
    with less_memory(parts=2, recompute=True): made = [stage.folder() for stage in stages()]
    assert sorted(seen) == [(4, 2, True)]*6 + [(32, 2, True)]
    assert [stage.folder() for stage in stages()] == made and len(seen) == 7


def test_parts_that_cannot_be_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    said = '8 clips in a step cannot be shared by 1 process.* with 3 part'
    with pytest.raises(LogocentricError, match=said): reproduce('smoke', parts=3)
    assert not list(tmp_path.iterdir()) and 'LOGOCENTRIC_PARTS' not in os.environ


@pytest.mark.parametrize('pairs, said', [('2000, x', 'expected numbers of pairs'), ('20, 10', 'from few to many')])
def test_numbers_of_pairs_that_are_none_are_refused(pairs, said):
    with pytest.raises(LogocentricError, match=said): Setup.at('smoke', pairs=pairs)


def test_numbers_of_pairs():
    assert Setup.at('smoke', pairs='').scale.data.pairs == SMOKE.data.pairs
    assert Setup.at('smoke', pairs='4,9').scale.data.pairs == (4, 9)


@pytest.mark.slow
def test_reproduce_under_a_launch(tmp_path):
    "Two processes over gloo: one report, stages made once. (On GPUs `accelerate launch` does what `torchrun` does.)"
    launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', '29531']
    program = str(Path(sys.executable).with_name('logocentric'))
    command = [*launch, program, 'reproduce', '--scale', 'smoke', '--seed', '5']
    env = os.environ | dict(LOGOCENTRIC_HOME=str(tmp_path), OMP_NUM_THREADS='1')
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=env)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count('# logocentric: scale smoke, seed 5') == 1
    made = list((tmp_path/'data'/'cache'/'captioner').iterdir())
    captioner, = [p for p in made if read_json(p/'done.json')['config']['n'] == 64]
    assert (captioner/'model.safetensors').exists() and len(read_json(captioner/'history.json')['rows']) == 4


def test_papermill_from_the_root(report, run, tmp_path):
    "The command that the README shows. Table 2 with three numbers of pairs is a curve, and its record says so."
    notebook, output = 'nbs/experiments/table2_data_scale.ipynb', tmp_path/'out.ipynb'
    command = [sys.executable, '-m', 'papermill', notebook, str(output), '-p', 'scale', 'smoke', '-p', 'seed', '1']
    subprocess.run([*command, '-p', 'pairs', '8, 32, 64'], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert read_json(output)['metadata']['papermill']['exception'] is None
    assert (run/'figures'/'table2_accuracy.png').exists()
    record, = [r for r in load_records(run/'records', name='table2_data_scale') if 'pairs' in r.params]
    assert sorted({r['pairs'] for r in record.metrics['rows']}) == [8, 32, 64]


def learn_alone(home):
    "Train a captioner in a process group of its own."
    os.setsid()
    os.environ['LOGOCENTRIC_HOME'] = str(home)
    trained_captioner(Setup.at('smoke', 2)).folder()


def kill_when_seen(process, home, kind):
    "Kill a run as soon as a stage of this kind has a file."
    run = process(target=learn_alone, args=(home,))
    run.start()
    deadline = time.time() + 120
    seen = lambda: list((home/'data'/'cache'/kind).glob('*/*'))
    while not seen() and run.is_alive() and time.time() < deadline: time.sleep(.02)
    assert run.is_alive(), 'the run ended before it could be killed'
    os.killpg(run.pid, signal.SIGKILL)
    run.join()


def test_a_killed_run_continues(tmp_path, fresh_process, monkeypatch):
    "Killed twice, at different moments; the third call ends with the very weights of a run that was left alone."
    for kind in ('corpus', 'mae'): kill_when_seen(fresh_process, tmp_path/'killed', kind)
    def digest(home): # to compare, and not to describe, megabytes
        monkeypatch.setenv('LOGOCENTRIC_HOME', str(home))
        model = trained_captioner(Setup.at('smoke', 2)).folder()/'model.safetensors'
        assert model.is_relative_to(home)
        return hashlib.sha256(model.read_bytes()).hexdigest()
    assert digest(tmp_path/'killed') == digest(tmp_path/'alone')
