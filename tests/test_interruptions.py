"What a run survives: kills, Ctrl-C, another run in the same home, a full disk, a home it may not write, damaged files."
import errno, hashlib, json, multiprocessing, os, random, signal, subprocess, sys, threading, time, warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import numpy as np, psutil, pytest, torch
from safetensors.torch import save_model
from logocentric.cache import cached_folder, discard_damaged, is_finished, result_fault
from logocentric.core import LogocentricError, atomic_write, new_array, project_root, read_json, write_json
from logocentric.pipeline import experiments
from logocentric.pipeline.experiments import EXPERIMENTS, NotebookRun, output_path, run_experiment
from logocentric.pipeline.report import published, reproduce
from logocentric.pipeline.stage import Stage

ROOT = project_root()


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A home of the test's own."
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    return tmp_path


@contextmanager
def small_disk(place, options): # such as `size=1m`
    "A file system in memory, or the test is skipped."
    place.mkdir(exist_ok=True)
    tried = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(place)], capture_output=True, text=True)
    if tried.returncode: pytest.skip(f'no small file system can be mounted here: {tried.stderr.strip()}')
    try: yield place
    finally: subprocess.run(['umount', '--lazy', str(place)])


# --- a full disk

def test_an_array_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    "Instead of a bus error when its last part is written."
    array = new_array(tmp_path/'fits.npy', np.float16, (3, 5))
    array[2] = 7
    array.flush()
    assert np.load(tmp_path/'fits.npy').tolist() == [[0]*5, [0]*5, [7]*5]
    assert os.stat(tmp_path/'fits.npy').st_blocks, 'its room is taken'
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(LogocentricError, match=r'large\.npy needs 0\.16 GB, and .* GB are free there'):
        new_array(tmp_path/'large.npy', np.float16, (1000, 1000, 80))
    assert [p.name for p in tmp_path.iterdir()] == ['fits.npy']


@pytest.mark.parametrize('system', ['cannot', 'refuses'])
def test_where_no_room_can_be_set_aside_it_is_compared(tmp_path, monkeypatch, system):
    def refuses(*args): raise OSError(errno.EOPNOTSUPP, 'Operation not supported')
    if system == 'cannot': monkeypatch.delattr(os, 'posix_fallocate')
    else: monkeypatch.setattr(os, 'posix_fallocate', refuses)
    assert new_array(tmp_path/'fits.npy', bool, (8,)).sum() == 0
    monkeypatch.setattr('logocentric.core.free_bytes', lambda place: 1000)
    with pytest.raises(LogocentricError, match='needs 1e-05 GB, and 1e-06 GB are free'):
        new_array(tmp_path/'large.npy', np.int8, (10_000,))


def write_weights(path):
    with atomic_write(path) as p: save_model(torch.nn.Linear(1000, 1000), str(p))

def write_checkpoint(path):
    with atomic_write(path) as p: torch.save(torch.zeros(10**6), p)

FILLERS = dict(json=lambda path: write_json(path, 'a'*2_000_000), weights=write_weights, checkpoint=write_checkpoint,
               array=lambda path: new_array(path, np.float16, (1000, 1000)),
               stage=lambda path: cached_folder('much', {}, lambda folder: np.save(folder/'x.npy', np.ones(10**6))))


@pytest.fixture(scope='module')
def full_disk(tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp('full'), 'size=1m') as place: yield place


@pytest.mark.parametrize('what', FILLERS)
def test_whatever_fills_a_disk_says_where(full_disk, monkeypatch, what):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(full_disk))
    with pytest.raises(LogocentricError, match=f'{full_disk}.* GB are free|no room .*{full_disk}') as e:
        FILLERS[what](full_disk/'file')
    assert 'make room' in str(e.value) and list(full_disk.glob('*file*')) == []


def test_an_error_on_a_disk_with_room_stays_what_it_is(own):
    def make(folder): raise OSError(errno.EIO, 'Input/output error')
    with pytest.raises(OSError, match='Input/output error'): cached_folder('ill', {}, make)
    def read(folder): raise PermissionError(errno.EACCES, 'Permission denied', '/somewhere/else/song.wav')
    with pytest.raises(PermissionError, match='song.wav'): cached_folder('closed', {}, read)


# --- a home that may not be written

@pytest.mark.parametrize('home', ['file', 'file/below'])
def test_a_home_that_cannot_be_one_is_named(tmp_path, monkeypatch, home):
    (tmp_path/'file').touch()
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/home))
    said = f'{tmp_path/home}.* cannot be written .*let .LOGOCENTRIC_HOME name another folder'
    with pytest.raises(LogocentricError, match=said): cached_folder('some', {}, lambda folder: None)
    with pytest.raises(LogocentricError, match=said): reproduce('smoke')


def test_a_read_only_home_is_named(tmp_path, monkeypatch):
    with small_disk(tmp_path/'home', 'ro') as home:
        monkeypatch.setenv('LOGOCENTRIC_HOME', str(home))
        said = 'cannot be written .Read-only file system.*let .LOGOCENTRIC_HOME name another folder'
        with pytest.raises(LogocentricError, match=said): reproduce('smoke')
        with pytest.raises(LogocentricError, match=said): write_json(home/'data'/'x.json', 1)


def test_published_numbers_do_not_depend_on_the_home(own):
    assert published('Table 1')['system'].tolist() == ['GPT2-Large', 'GPT-Neo-1.3B'] and not (own/'data').exists()


# --- damaged results

@dataclass(frozen=True)
class Poem(Stage):
    "Two files, and how often they were made, outside of the folder."
    kind = 'poem'
    text: str = 'roses are red'
    misread: bool = False

    def make(self, folder):
        write_json(folder/'poem.json', self.text)
        (folder/'deep').mkdir(exist_ok=True)
        (folder/'deep'/'rest.txt').write_text('violets are blue')
        with open(folder.parent/'made', 'a') as log: log.write('.')

    def read(self, folder):
        if self.misread: raise KeyError('a mistake in the code')
        return read_json(folder/'poem.json')

    @property
    def times(self): return len((self.folder().parent/'made').read_text())


def same_size(path): path.write_bytes(b'\xff'*path.stat().st_size)

DAMAGES = {
    'poem.json is missing': lambda folder: (folder/'poem.json').unlink(),
    'deep/rest.txt is missing': lambda folder: (folder/'deep'/'rest.txt').unlink(),
    'poem.json has 0 bytes instead of 16': lambda folder: os.truncate(folder/'poem.json', 0),
    'poem.json has 5 bytes instead of 16': lambda folder: os.truncate(folder/'poem.json', 5),
    'poem.json is damaged': lambda folder: same_size(folder/'poem.json'),
    'done.json is damaged': lambda folder: os.truncate(folder/'done.json', 40),
}


@pytest.mark.parametrize('fault', DAMAGES)
def test_a_damaged_result_is_named_and_made_again_once(own, fault):
    poem = Poem()
    folder = poem.folder()
    assert poem.load() == 'roses are red' and poem.is_made() and poem.times == 1
    DAMAGES[fault](folder)
    assert result_fault(folder, contents=True) == fault
    with pytest.warns(UserWarning, match=f'{folder}: {fault}: this result is made again'):
        assert poem.load() == 'roses are red'
    assert poem.times == 2 and result_fault(folder, contents=True) == ''
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert poem.load() == 'roses are red' and poem.times == 2


def test_a_mistake_in_reading_costs_no_result(own):
    poem = Poem(misread=True)
    with pytest.raises(KeyError, match='a mistake in the code') as e: poem.load()
    assert poem.key in e.value.__notes__[0] and str(poem.folder()) in e.value.__notes__[0]
    assert poem.is_made() and poem.times == 1


def test_what_is_damaged_anew_at_every_making_ends(own, monkeypatch):
    "A disk that spoils what it is given: made again once, then the error, which names the file."
    spoiled = lambda self, folder: same_size(folder/'poem.json') or read_json(folder/'poem.json')
    monkeypatch.setattr(Poem, 'read', spoiled)
    with pytest.warns(UserWarning), pytest.raises(LogocentricError, match=r'poem\.json is not JSON'): Poem().load()
    assert (Poem().folder().parent/'made').read_text() == '..'


def test_a_killed_discarding_is_still_a_damaged_result(own, monkeypatch):
    "The proof goes last: what is left is never taken for a whole result, nor for a beginning."
    poem = Poem()
    folder = poem.folder()
    (folder/'poem.json').unlink()
    def killed(self, *args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.warns(UserWarning), pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, 'unlink', killed) # `deep` is gone, `done.json` is not
        discard_damaged(folder)
    assert (folder/'done.json').exists() and not is_finished(folder) and not poem.is_made()
    with pytest.warns(UserWarning): assert poem.load() == 'roses are red'


def test_results_of_earlier_versions_count(own):
    "Their `done.json` lists no files."
    folder = Poem().folder()
    done = read_json(folder/'done.json')
    assert set(done.pop('files')) == {'poem.json', 'deep/rest.txt'}
    write_json(folder/'done.json', done)
    assert Poem().load() == 'roses are red' and Poem().times == 1


# --- notebooks

def notebook(folder, *cells):
    "A notebook with the parameters of an experiment."
    parameters = dict(cell_type='code', id='a', metadata=dict(tags=['parameters']), outputs=[], execution_count=None,
                      source="scale:str = 'mini' # scale\nseed:int = 1 # seed")
    rest = [dict(parameters, id=f'b{i}', metadata={}, source=source) for i, source in enumerate(cells)]
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    path = folder/'tiny.ipynb'
    path.write_text(json.dumps(dict(cells=[parameters, *rest], metadata=kernel, nbformat=4, nbformat_minor=5)))
    return path

GIVEN = dict(scale='smoke', seed=1)

SLOW_CELL = """
import os, pathlib, time
home = pathlib.Path(os.environ['LOGOCENTRIC_HOME'])
with open(home/'begun', 'a') as log: log.write('.')
while (home/'wait').exists(): time.sleep(.05)
"""

def run_alone(*what):
    "An experiment, in a process group of its own."
    os.setsid()
    run_experiment(*what)


def until(seen, seconds=120):
    deadline = time.time() + seconds
    while not seen():
        assert time.time() < deadline, 'not in time'
        time.sleep(.02)


def family(run):
    "A process with all that it started: kernels are in sessions of their own."
    try: return [run, *psutil.Process(run.pid).children(recursive=True)]
    except psutil.NoSuchProcess: return [run]


def test_a_run_killed_inside_a_notebook_runs_it_again(own, monkeypatch):
    "The kernel lives in another session and another folder: it ends by itself, and knows a home relative to ours."
    monkeypatch.chdir(own.parent)
    monkeypatch.setenv('LOGOCENTRIC_HOME', own.name)
    path = notebook(own, SLOW_CELL, "(home/'end').touch()")
    monkeypatch.setattr(experiments, 'notebook_path', lambda name: path)
    (own/'wait').touch()
    run = multiprocessing.get_context('fork').Process(target=run_alone, args=('tiny', 'smoke', 1))
    run.start()
    until(lambda: (own/'begun').exists() or not run.is_alive())
    kernels = family(run)[1:]
    assert kernels, 'it is inside the notebook'
    os.killpg(run.pid, signal.SIGKILL)
    run.join()
    until(lambda: not any(k.is_running() and k.status() != psutil.STATUS_ZOMBIE for k in kernels), 20)
    (own/'wait').unlink()
    output = output_path('tiny', GIVEN)
    assert not output.exists() and not (own/'end').exists()
    assert run_experiment('tiny', 'smoke', 1) == output
    assert read_json(output)['metadata']['papermill']['exception'] is None and (own/'end').exists()
    assert (own/'begun').read_text() == '..' and not list(output.parent.glob('unfinished*'))


def test_an_error_inside_a_notebook_says_where_it_can_be_read(own, monkeypatch):
    path = notebook(own, "raise ValueError('no such clip')")
    monkeypatch.setattr(experiments, 'notebook_path', lambda name: path)
    with pytest.raises(LogocentricError, match=r'tiny failed with ValueError: no such clip; .*unfinished-tiny\.ipynb'):
        run_experiment('tiny', 'smoke', 1)
    assert not output_path('tiny', GIVEN).exists()


def test_two_runs_that_meet_at_a_notebook_execute_it_once(own, monkeypatch):
    path, executed = notebook(own, '1'), []
    monkeypatch.setattr(experiments, 'notebook_path', lambda name: path)
    def execute(name, parameters, output, mark):
        executed.append(name)
        time.sleep(.3)
        write_json(output, dict(metadata=dict(papermill=dict(end_time='noon', exception=None), logocentric=mark)))
    monkeypatch.setattr(experiments, '_execute', execute)
    both = [threading.Thread(target=run_experiment, args=('tiny', 'smoke', 1)) for _ in range(2)]
    for run in both: run.start()
    for run in both: run.join()
    assert executed == ['tiny']


def test_a_notebook_whose_record_is_gone_runs_again(own, monkeypatch):
    path, run = notebook(own, '1'), NotebookRun('tiny', 'smoke', 1)
    monkeypatch.setattr(experiments, 'notebook_path', lambda name: path)
    def execute(name, parameters, output, mark):
        write_json(output.parent/'records'/'tiny-smoke.json', dict(metrics={}))
        write_json(output, dict(metadata=dict(papermill=dict(end_time='noon', exception=None), logocentric=mark)))
    monkeypatch.setattr(experiments, '_execute', execute)
    record = run.folder()/'records'/'tiny-smoke.json'
    damages = record.unlink, lambda: os.truncate(record, 9), lambda: os.truncate(output_path('tiny', GIVEN), 9)
    for damage in damages:
        assert run.is_made()
        damage()
        assert not run.is_made()
        run.folder()
    assert run.is_made() and read_json(record) == dict(metrics={})


# --- workers

def heed_ctrl_c(): # tests that run in the background of a shell inherit that it is ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)


WORKERS = """
import os, time
from pathlib import Path
from logocentric.cache import worker_processes
from logocentric.core import LogocentricError

def work(place):
    (place/str(os.getpid())).touch()
    time.sleep(600)

if __name__ == '__main__':
    try:
        with worker_processes(1) as pool: pool.submit(os._exit, 9).result()
    except LogocentricError as e: print(e, flush=True)
    with worker_processes(1) as pool:
        for result in [pool.submit(work, Path(os.environ['PLACE'])) for _ in range(9)]: result.result()
"""


def test_workers_end_with_a_sentence_and_at_once(tmp_path):
    "One that is ended from outside is explained; Ctrl-C, which reaches all of a terminal, ends all of them."
    (tmp_path/'program.py').write_text(WORKERS)
    place = tmp_path/'place'
    place.mkdir()
    env = os.environ | dict(PLACE=str(place), PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    run = subprocess.Popen([sys.executable, str(tmp_path/'program.py')], env=env, start_new_session=True, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)
    until(lambda: list(place.iterdir()) or run.poll() is not None)
    workers = family(run)[1:]
    os.killpg(run.pid, signal.SIGINT)
    said, errors = run.communicate(timeout=30)
    assert 'ended from outside, perhaps because the memory was too small: the same command continues' in said
    assert errors.count('Traceback') == 1 and errors.rstrip().endswith('KeyboardInterrupt'), 'the main process alone'
    until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), 20)


# --- whole runs

PROGRAM = 'import sys; from logocentric.cli import main; sys.argv[0] = "logocentric"; main()'

def start(home, log):
    "`logocentric reproduce --scale smoke` in a process group of its own."
    env = os.environ | dict(LOGOCENTRIC_HOME=str(home))
    with open(log, 'ab') as out:
        return subprocess.Popen([sys.executable, '-c', PROGRAM, 'reproduce', '--scale', 'smoke'], cwd=ROOT, env=env,
                                start_new_session=True, stdout=out, stderr=subprocess.STDOUT,
                                preexec_fn=heed_ctrl_c)


def found_in(home):
    "Everything that a run leaves for its reader, but for clocks."
    run = home/'data'/'runs'/'smoke-1'
    records = {p.name: dict(read_json(p), seconds=0) for name in EXPERIMENTS
               for p in (run/'records').glob(f'{name}-smoke-*.json') if 'pairs' not in read_json(p)['params']}
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    models = {p.parent.name: digest(p) for p in (home/'data'/'runs'/'models'/'smoke').rglob('*.safetensors')}
    assert len(records) == len(EXPERIMENTS) and set(models) == {'captioner', 'reasoner'}
    return records, models


def differences(a, b, where=''):
    "Where two findings differ, for a reader of a failed test."
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}): yield from differences(a.get(key), b.get(key), f'{where}/{key}')
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b)): yield from differences(*pair, f'{where}/{i}')
    elif a != b: yield f'{where}: {a!r}, and not {b!r}'


@pytest.fixture(scope='module')
def undisturbed(smoke_home):
    "What a run that is left alone finds."
    reproduce('smoke', seed=1)
    return found_in(smoke_home)


def progress_of(home):
    "How far a run is: finished stages, checkpoints of others, rendered shards."
    cache = home/'data'/'cache'
    return sum(len(list(cache.glob(f'*/*/{name}'))) for name in ('done.json', 'training/last.pt', 'shards/*.json'))


def inside_notebook(home, since):
    "A notebook that is executed now; what an earlier kill left does not count."
    return any(p.stat().st_mtime > since for p in (home/'data'/'runs').glob('*/unfinished-*.ipynb'))


def kill(run, whole): # with the kernels, or without
    others = family(run)[1:]
    os.killpg(run.pid, signal.SIGKILL)
    for process in others if whole else []:
        try: process.kill()
        except psutil.NoSuchProcess: pass
    run.wait()


@pytest.mark.slow
def test_a_run_killed_twelve_times_finds_what_an_undisturbed_one_finds(undisturbed, tmp_path):
    "Eight times in stages, four times inside notebooks, at random moments, with or without the kernels; then it ends."
    chance, log = random.Random(17), tmp_path/'log'
    stages = sorted(chance.sample(range(2, 90), 8)) # of about 118
    for number in range(12):
        begun, run = time.time(), start(tmp_path, log)
        if number < 8: until(lambda: progress_of(tmp_path) >= stages[number] or run.poll() is not None, 1200)
        else: until(lambda: inside_notebook(tmp_path, begun) or run.poll() is not None, 1200)
        time.sleep(chance.random()*4)
        assert run.poll() is None, log.read_text()[-3000:]
        kill(run, whole=number % 2)
    run = start(tmp_path, log)
    assert run.wait(1500) == 0, log.read_text()[-3000:]
    assert 'Traceback' not in log.read_text() and not [*differences(found_in(tmp_path), undisturbed)]


@pytest.mark.slow
def test_a_run_can_be_interrupted_inside_a_notebook_and_ends_at_once(smoke_home, undisturbed, tmp_path):
    "Ctrl-C, in a home where all stages are made: no process stays, and the next call does the rest."
    before = found_in(smoke_home)
    first = smoke_home/'data'/'runs'/'smoke-1'/f'{EXPERIMENTS[0]}.ipynb'
    first.unlink()
    begun, run = time.time(), start(smoke_home, tmp_path/'log')
    until(lambda: inside_notebook(smoke_home, begun) or run.poll() is not None, 900)
    others = family(run)[1:]
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) != 0 and 'Traceback' not in (tmp_path/'log').read_text()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in others), 20)
    assert not first.exists()
    reproduce('smoke', seed=1)
    assert not [*differences(found_in(smoke_home), before)]


@pytest.mark.slow
def test_two_runs_in_one_home_find_what_one_finds(undisturbed, tmp_path):
    both = [start(tmp_path, tmp_path/f'log{n}') for n in range(2)]
    said = [(run.wait(3000), (tmp_path/f'log{n}').read_text()) for n, run in enumerate(both)]
    for code, log in said: assert code == 0 and 'Traceback' not in log and '## Table 1' in log, log[-3000:]
    assert not [*differences(found_in(tmp_path), undisturbed)]


@pytest.mark.slow
def test_a_run_whose_disk_fills_says_so_and_goes_on_when_there_is_room(undisturbed, tmp_path):
    "At first not even the clips fit; each time there is a little more room, and in the end enough."
    with small_disk(tmp_path/'home', 'size=3m') as home:
        for size in (3, 20, 40, 70, 110):
            subprocess.run(['mount', '-o', f'remount,size={size}m', str(home)], check=True)
            log = tmp_path/f'log{size}'
            assert start(home, log).wait(1500) == 2, log.read_text()[-3000:]
            last = log.read_text().splitlines()[-1]
            assert last.startswith('logocentric: ') and str(home) in last and 'make room' in last
            assert 'Traceback' not in log.read_text() and 'Bus error' not in log.read_text()
        subprocess.run(['mount', '-o', 'remount,size=600m', str(home)], check=True)
        assert start(home, log).wait(1500) == 0, log.read_text()[-3000:]
        assert not [*differences(found_in(home), undisturbed)]
