"The rules of the house, checked on what is committed: notebooks, generated modules, packaging. Nothing is executed."
import ast, configparser, json, re, shutil, statistics, subprocess, sys, tomllib
from pathlib import Path
import papermill, pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'logocentric'
LIBRARY = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
EXPERIMENTS = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))
NOTEBOOKS = [*LIBRARY, *sorted((ROOT/'nbs').glob('index.ipynb')), *EXPERIMENTS]
MODULES = sorted(p for p in PACKAGE.glob('*.py') if not p.name.startswith('_'))
NUMBER = {p.stem[3:]: int(p.stem[:2]) for p in LIBRARY}  # module -> number of its notebook

name = lambda p: p.stem
library = pytest.mark.parametrize('path', LIBRARY, ids=name)
experiments = pytest.mark.parametrize('path', EXPERIMENTS, ids=name)
notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
modules = pytest.mark.parametrize('path', MODULES, ids=name)


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [c for c in found if c['cell_type'] == kind or kind is None]


def source(cell): return ''.join(cell['source'])


def code(path): return [source(c) for c in cells(path, 'code')]


def outputs(path): return [o for c in cells(path, 'code') for o in c['outputs']]


def output_text(output):
    "What a reader sees of an output as text (pictures left out)."
    shown = [output.get('text', '')] + [v for k, v in output.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(''.join(s) for s in shown)


def imported(text):
    "Modules of the package that a piece of Python imports."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: names = [f'logocentric.{node.module}']
        elif isinstance(node, ast.ImportFrom) and node.module == 'logocentric': names = [f'logocentric.{a.name}' for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module]
        else: continue
        found |= {n.split('.')[1] for n in names if n.startswith('logocentric.')}
    return found


# --- notebooks

@notebooks
def test_kernel_and_size(path):
    metadata = json.loads(path.read_text(encoding='utf-8'))['metadata']
    assert metadata['kernelspec']['name'] == 'python3'
    assert path.stat().st_size < 1_000_000


@notebooks
def test_outputs_are_part_of_the_text(path):
    found = outputs(path)
    assert found, 'committed without outputs'
    assert not [o['ename'] for o in found if o['output_type'] == 'error']
    assert not [output_text(o) for o in found if o.get('name') == 'stderr'], 'warnings and logs are not text'


RESIDUE = {
    'audio':       r'<audio|data:audio',
    'progress':    r'\d+%\||\d(it/s|s/it)\b|\r',
    'address':     r'\bat 0x[0-9a-f]+',
    'absolute path': r'(?<![\w.:/])/(root|home|tmp|Users|usr|var|opt|' + 'work' + r')/',
}

@notebooks
@pytest.mark.parametrize('kind', RESIDUE)
def test_outputs_hold_no_residue(path, kind):
    assert not [t for t in map(output_text, outputs(path)) if re.search(RESIDUE[kind], t)]


def cell_lengths(path):
    "Lines of code in each code cell; directives and empty lines do not count."
    lengths = [sum(bool(line.strip()) and not line.startswith('#|') for line in text.splitlines()) for text in code(path)]
    return [n for n in lengths if n]


@notebooks
def test_one_idea_a_cell(path):
    lengths = cell_lengths(path)
    assert max(lengths) <= 40
    if path in LIBRARY:
        assert statistics.median(lengths) <= 8
        assert sum(n <= 16 for n in lengths)/len(lengths) >= .9, sorted(lengths)[-10:]


def test_cells_are_short_on_the_whole():
    assert statistics.median(n for path in LIBRARY for n in cell_lengths(path)) <= 6


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p not in EXPERIMENTS], ids=name)
def test_opens_like_a_book(path):
    first = next(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    assert re.match(r'# \S.*\n+> \S', first), 'a title, then a summary of one sentence'


@experiments
def test_experiment_states_question_and_expectation(path):
    prose = '\n'.join(source(c) for c in cells(path, 'markdown'))
    assert prose.startswith('# ') and '**Question' in prose and '**Expect' in prose


@notebooks
def test_cell_ids_are_unique(path):
    ids = [c['id'] for c in cells(path)]
    assert len(ids) == len(set(ids))


@notebooks
def test_scripts_for_a_queue_begin_as_scripts(path):
    "A round trip through jupytext eats the first character of `#!`."
    blocks = [b for c in cells(path, 'markdown') for b in re.findall(r'```(?:bash|sh)\n(.*?)```', source(c), re.S)]
    assert not [b for b in blocks if '#SBATCH' in b and not b.startswith('#!/')] and not [b for b in blocks if b.startswith('!/')]


# --- the library

@library
def test_notebook_names_its_module(path):
    names = [m[1] for c in code(path)[:2] if (m := re.search(r'^#\| default_exp (\w+)', c, re.M))]
    assert names == [path.stem[3:]] and (PACKAGE/f'{names[0]}.py').is_file()


@library
def test_imports_only_point_down(path):
    for text in code(path):
        if text.lstrip().startswith(('!', '%')): continue
        for module in imported(text): assert NUMBER[module] < NUMBER[path.stem[3:]], f'{path.stem} imports {module}'


@library
def test_notebooks_leave_the_environment_as_they_found_it(path):
    "`nbdev_test` runs many notebooks in one process: what one leaves in `os.environ`, the next one meets."
    whole = '\n'.join(code(path))
    left = {k for k in re.findall(r"^os\.environ\['(\w+)'\] =", whole, re.M)} - {k for k in re.findall(r"^ *del os\.environ\['(\w+)'\]", whole, re.M)}
    assert not left, f'{path.stem} sets {left} and does not delete it'


@library
def test_library_notebooks_do_not_export_themselves(path):
    assert not any('nbdev_export(' in text for text in code(path))


@modules
def test_module_has_its_notebook(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    assert path.stem in NUMBER, 'an orphan: its notebook is gone'
    assert ast.get_docstring(tree)
    listed = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    assert len(listed) == 1
    public = ast.literal_eval(listed[0].value)
    bare = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public and not ast.get_docstring(n)]
    assert not bare, f'no docstring: {bare}'


@pytest.fixture(scope='session')
def regenerated(tmp_path_factory):
    "A copy of the checkout after nbdev_export and nbdev_clean."
    copy = tmp_path_factory.mktemp('checkout')
    shutil.copy(ROOT/'settings.ini', copy)
    shutil.copytree(PACKAGE, copy/'logocentric', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for call in ('from nbdev.doclinks import nbdev_export as f', 'from nbdev.clean import nbdev_clean as f'):
        subprocess.run([sys.executable, '-c', f'{call}; f()'], cwd=copy, check=True, capture_output=True)
    return copy


def test_export_is_up_to_date(regenerated):
    made = {p.name: p.read_text(encoding='utf-8') for p in (regenerated/'logocentric').glob('*.py')}
    kept = {p.name: p.read_text(encoding='utf-8') for p in PACKAGE.glob('*.py')}
    assert [n for n in made if made[n] != kept.get(n)] == [], 'run nbdev_export'


def test_notebooks_are_clean(regenerated):
    changed = [p.stem for p in NOTEBOOKS if p.read_bytes() != (regenerated/p.relative_to(ROOT)).read_bytes()]
    assert changed == [], 'run nbdev_clean'


# --- the experiments

@experiments
def test_experiment_is_a_function_of_its_parameters(path):
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1 and tagged[0]['cell_type'] == 'code'
    found = papermill.inspect_notebook(str(path))
    assert {'scale', 'seed'} <= set(found)
    for p in found.values(): assert p['inferred_type_name'] in 'int float str bool list dict'.split() and p['help'], p


@experiments
def test_experiment_exports_nothing(path):
    assert not [text for text in code(path) if re.search(r'^#\| *(export|exporti|default_exp)', text, re.M) or 'nbdev_export(' in text]


@modules
def test_package_never_imports_an_experiment(path):
    assert not {e.stem for e in EXPERIMENTS} & (imported(path.read_text(encoding='utf-8')) | {path.stem})


def test_nbdev_leaves_experiments_to_papermill():
    assert (ROOT/'nbs'/'experiments'/'.notest').is_file()


# --- the repository

def test_versions_agree():
    settings = configparser.ConfigParser(); settings.read(ROOT/'settings.ini')
    version = settings['DEFAULT']['version']
    assert tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['version'] == version
    assert f'__version__ = "{version}"' in (PACKAGE/'__init__.py').read_text()
    assert f'version: {version}\n' in (ROOT/'CITATION.cff').read_text()
    assert f'## {version}' in (ROOT/'CHANGELOG.md').read_text()


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
    listed = [*project['dependencies'], *(d for extra in project['optional-dependencies'].values() for d in extra)]
    assert [d for d in listed if not re.fullmatch(r'[\w.-]+==[\w.]+', d)] == []


def test_legal_files():
    licence = (ROOT/'LICENSE').read_text()
    assert 'Apache License' in licence and 'Version 2.0, January 2004' in licence and 'END OF TERMS AND CONDITIONS' in licence
    assert 'TimGM6mb' in (ROOT/'THIRD_PARTY.md').read_text()
    assert 'Xingjian' in (ROOT/'CITATION.cff').read_text()


def test_soundfonts_and_sound_are_not_committed():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert not [f for f in tracked if f.endswith(('.sf2', '.wav', '.mp3', '.flac', '.ogg', '.npy', '.bin', '.pt', '.pth'))]
    weights = [f for f in tracked if f.endswith('.safetensors')]
    assert all(f.startswith('logocentric/assets/') for f in weights) and sum((ROOT/f).stat().st_size for f in weights) < 30e6


PUBLISHED = {'table', 'system', 'data', 'metric', 'value', 'pairs'}

def test_published_numbers():
    published = json.loads((ROOT/'data'/'published.json').read_text())
    assert published['source']
    for row in published['rows']:
        assert set(row) == PUBLISHED and isinstance(row['value'], float) and 0 < row['value'] < 100
        assert row['metric'] in ('accuracy', 'mAP') and row['table'] in ('Table 1', 'Table 2', 'Table 3')
    value = {(r['table'], r['system'], r['data'], r['pairs']): r['value'] for r in published['rows']}
    assert len(value) == 8
    assert value['Table 2', 'GPT-Neo-1.3B', 'GTZAN', '1.5M'] == 64.8
    assert value['Table 1', 'GPT2-Large', 'FMA small', None] == 22.7


def test_no_path_of_a_developers_machine():
    here = '/' + 'work/'
    texts = [p for folder in ('nbs', 'logocentric', 'tests', '.ci', '.github') for p in (ROOT/folder).rglob('*')
             if p.suffix in ('.ipynb', '.py', '.toml', '.yml', '') and p.is_file() and '__pycache__' not in p.parts]
    texts += [p for p in ROOT.iterdir() if p.suffix in ('.md', '.toml', '.ini', '.cff') or p.name == 'Makefile']
    assert [str(p.relative_to(ROOT)) for p in texts if re.search(rf'(?<![\w.]){here}', p.read_text(encoding='utf-8'))] == []
