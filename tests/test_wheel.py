"The wheel: what somebody gets who installs the package and has no checkout."
import json, os, shutil, subprocess, sys
from pathlib import Path
from zipfile import ZipFile
import pytest, soundfile as sf
from logocentric.data.sound_corpus import draw_sound, render_sound

ROOT = Path(__file__).resolve().parents[1]
INDEX_NEEDED = 'a wheel is built with packages from an index, and none can be reached'


def _pip(*words, python=sys.executable):
    return subprocess.run([python, '-m', 'pip', '-q', '--disable-pip-version-check', *map(str, words)], text=True,
                          capture_output=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from what is committed or lies beside it, and not in the checkout: a build leaves folders behind."
    source, made = (tmp_path_factory.mktemp(name) for name in ('source', 'wheel'))
    listed = ['git', 'ls-files', '-co', '--exclude-standard', 'logocentric', '*.toml', 'LICENSE', '*.md']
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for name in filter(None, tracked):
        if not (ROOT/name).exists(): continue
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, source/name)
    built = _pip('wheel', '--no-deps', '-w', made, source)
    if 'No matching distribution' in built.stderr: pytest.skip(INDEX_NEEDED)
    assert built.returncode == 0, built.stderr
    path, = made.glob('*.whl')
    return path


@pytest.fixture
def sound(tmp_path):
    sf.write(tmp_path/'rain.wav', render_sound(draw_sound(98, 3, 'rain')).wave, 16_000)
    return tmp_path/'rain.wav'


def _describes(command, sound, env): # with the models inside the package
    alone = {k: v for k, v in os.environ.items() if not k.startswith('LOGOCENTRIC')} | env
    done = subprocess.run([*map(str, command), 'describe', sound, '--json', '-'], cwd=sound.parent, text=True,
                          env=alone | dict(LOGOCENTRIC_HOME=str(sound.parent)), capture_output=True)
    assert done.returncode == 0, done.stderr
    row, = json.loads(done.stdout)['files']
    assert row['summary'] and row['windows'][-1]['stop'] == pytest.approx(10)


def test_models_and_tables_are_in_the_wheel(wheel):
    names = set(ZipFile(wheel).namelist())
    models = ('captioner', 'reasoner', 'heads', 'ear')
    assert {f'logocentric/assets/{model}/model.safetensors' for model in models} <= names
    assets = {str(p.relative_to(ROOT)) for p in (ROOT/'logocentric'/'assets').rglob('*') if p.is_file()}
    assert assets <= names and not [n for n in names if n.startswith(('tests', 'nbs', 'data'))]
    assert wheel.stat().st_size < 45e6


def test_the_wheel_describes_where_there_is_no_checkout(wheel, sound, tmp_path):
    "With the packages of this environment, but not with its checkout."
    target = tmp_path/'packages'
    assert _pip('install', '--no-deps', '--target', target, wheel).returncode == 0
    start = ('import sys, logocentric.cli as cli; assert cli.__file__.startswith(sys.argv.pop(1)), cli.__file__; '
             'cli.main()')
    _describes([sys.executable, '-c', start, target], sound, dict(PYTHONPATH=str(target)))


def _interpreter(version): # of pyenv or of the system, where there is one that works
    pyenv = sorted(Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv')).glob(f'versions/{version}.*/bin/python'))
    for python in [*map(str, pyenv), shutil.which(f'python{version}')]:
        if python and not subprocess.run([python, '-c', 'import venv, ensurepip'], capture_output=True).returncode:
            return python


@pytest.mark.slow
@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
def test_the_wheel_installs_and_describes(version, wheel, sound, tmp_path):
    "With the locked packages, which it asks for itself."
    if not (python := _interpreter(version)): pytest.skip(f'no Python {version} is at hand')
    subprocess.run([python, '-m', 'venv', tmp_path/'venv'], check=True)
    installed = _pip('install', '-c', ROOT/'requirements.lock', wheel, python=tmp_path/'venv/bin/python')
    assert installed.returncode == 0, installed.stderr[-2000:]
    _describes([tmp_path/'venv/bin/logocentric'], sound, {})
