"The rules of the house, checked on what is committed: notebooks, generated modules, packaging. Nothing is executed."
import ast, configparser, io, json, re, shutil, statistics, subprocess, sys, tokenize, tomllib
from collections import defaultdict
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
import papermill, pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'logocentric'
LIBRARY = sorted((ROOT/'nbs').glob('[0-9][0-9][0-9]_*.ipynb'))
EXPERIMENTS = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))
PAGES = [ROOT/'nbs'/'index.ipynb', *sorted((ROOT/'nbs'/'docs').glob('*.ipynb'))]
NOTEBOOKS = [*LIBRARY, *PAGES, *EXPERIMENTS]
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if not p.name.startswith('_'))
SCRIPTS = [*sorted((ROOT/'tools').glob('*.py')), *sorted((ROOT/'tests').glob('*.py'))]
GROUPS = {0: '', 1: 'audio', 2: 'data', 3: 'data', 4: 'encoder', 5: 'captioner', 6: 'reasoner', 7: 'pipeline',
          8: 'pipeline', 9: ''} # first digit of a notebook -> folder of its module; floor and commands have none
WIDTH = 120

name = lambda p: p.stem
library = pytest.mark.parametrize('path', LIBRARY, ids=name)
experiments = pytest.mark.parametrize('path', EXPERIMENTS, ids=name)
notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=name)


def dotted(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts) # `audio.frontend`


modules = pytest.mark.parametrize('path', MODULES, ids=dotted)


@cache
def _notebook(path): return json.loads(path.read_text(encoding='utf-8'))


def cells(path, kind=None): return [c for c in _notebook(path)['cells'] if c['cell_type'] == kind or kind is None]


def source(cell): return ''.join(cell['source'])


def code(path): return [source(c) for c in cells(path, 'code')]


def exported(path): return [text for text in code(path) if re.search(r'^#\| *exporti?\b', text, re.M)]


def python(text): # magics are not Python
    return '\n'.join('pass' if line.lstrip().startswith(('!', '%')) else line for line in text.splitlines())


@cache
def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def outputs(path): return [o for c in cells(path, 'code') for o in c['outputs']]


def output_text(output):
    "What a reader sees of an output as text (pictures left out)."
    shown = [output.get('text', '')] + [v for k, v in output.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(''.join(s) for s in shown)


def default_exp(path):
    "The module that a notebook exports, as `group.name`."
    names = [m[1] for text in code(path)[:2] if (m := re.search(r'^#\| *default_exp +([\w.]+)', text, re.M))]
    return names[0] if len(names) == 1 else None


NUMBER = {default_exp(p): int(p.stem[:3]) for p in LIBRARY} # module -> number of its notebook


def named_by(node, package=()): # the modules of the package that an import statement may mean
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    above = package[:len(package) - node.level + 1] if node.level else ()
    whole = '.'.join([*above, *filter(None, [node.module])])
    return [whole, *(f'{whole}.{a.name}' for a in node.names)]


def imported(tree, package=()):
    "Modules of the package that a piece of Python imports, at its top or inside a function."
    found = {n.removeprefix('logocentric.') for node in ast.walk(tree) for n in named_by(node, package)}
    return found & set(NUMBER)


# --- notebooks

@notebooks
def test_kernel_and_size(path):
    assert _notebook(path)['metadata']['kernelspec']['name'] == 'python3'
    assert path.stat().st_size < 1_000_000


@notebooks
def test_outputs_are_part_of_the_text(path):
    found = outputs(path)
    assert found or not list(cells(path, 'code')), 'committed without outputs'
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
    counted = lambda text: sum(bool(line.strip()) and not line.startswith('#|') for line in text.splitlines())
    lengths = [counted(text) for text in code(path)]
    return [n for n in lengths if n]


@notebooks
def test_one_idea_a_cell(path):
    lengths = cell_lengths(path)
    assert max(lengths, default=0) <= 40
    if path in LIBRARY:
        assert statistics.median(lengths) <= 8
        assert sum(n <= 16 for n in lengths)/len(lengths) >= .9, sorted(lengths)[-10:]


def test_cells_are_short_on_the_whole():
    assert statistics.median(n for path in LIBRARY for n in cell_lengths(path)) <= 6


@notebooks
def test_lines_of_code_end_in_time(path):
    assert not [line for text in code(path) for line in text.splitlines() if len(line) > WIDTH]


def characters(text): return len('\n'.join(line for line in text.splitlines() if not line.startswith('#|')).strip())


@library
def test_exported_cells_are_short(path):
    "A cell of nine wide lines is a long cell. A longer one says why, in a comment `# long: ...`."
    texts = exported(path)
    assert statistics.median(map(characters, texts)) <= 500
    assert not [(characters(t), t[:80]) for t in texts if characters(t) > 900 and not re.search(r'# long: \w+', t)]
    assert sum('# long:' in t for t in texts) <= 2


def test_exported_cells_are_short_on_the_whole():
    assert statistics.median(characters(text) for path in LIBRARY for text in exported(path)) <= 350


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p not in EXPERIMENTS], ids=name)
def test_opens_like_a_book(path):
    first = next(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    assert re.match(r'# \S.*\n+> \S', first), 'a title, then a summary of one sentence'


PLUMBING = re.compile(r'IProgress|filterwarnings|simplefilter|disable_progress_bar|set_verbosity|basicConfig')

@notebooks
def test_opens_without_plumbing(path):
    "What keeps a machine quiet is no way to begin a chapter. The filter for `IProgress` stands in one place."
    assert not [text for text in code(path)[:4] if PLUMBING.search(text)]
    assert path.stem == '000_core' or not any('IProgress' in text for text in code(path))


@experiments
def test_experiment_states_question_and_expectation(path):
    prose = '\n'.join(source(c) for c in cells(path, 'markdown'))
    assert prose.startswith('# ') and '**Question' in prose and '**Expect' in prose


@notebooks
def test_cell_ids_are_unique(path):
    ids = [c['id'] for c in cells(path)]
    assert len(ids) == len(set(ids))


@notebooks
def test_links_between_notebooks_lead_somewhere(path):
    prose = '\n'.join(source(c) for c in cells(path, 'markdown'))
    targets = re.findall(r'\]\(([^)\s#]+\.(?:ipynb|md))(?:#[^)]*)?\)', prose)
    assert not [t for t in targets if not re.match(r'[a-z]+:', t) and not (path.parent/t).exists()]


@notebooks
def test_scripts_for_a_queue_begin_as_scripts(path):
    "A round trip through jupytext eats the first character of `#!`."
    blocks = [b for c in cells(path, 'markdown') for b in re.findall(r'```(?:bash|sh)\n(.*?)```', source(c), re.S)]
    assert not [b for b in blocks if '#SBATCH' in b and not b.startswith('#!/')]
    assert not [b for b in blocks if b.startswith('!/')]


# --- the reading path

PLACE = re.compile(r'^\*\*The paper in eight chapters, (\d) of 8\*\*(?: · before: \[(\w+)\]\((\w+)\.ipynb\))?'
                   r'(?: · next: \[(\w+)\]\((\w+)\.ipynb\))?$', re.M)

def opening(path): return next(source(c) for c in cells(path) if c['cell_type'] == 'markdown')


def part_of(page, title): # the text of a page below a heading
    text = '\n'.join(source(c) for c in cells(ROOT/'nbs'/f'{page}.ipynb', 'markdown'))
    return text.partition(f'{title}\n')[2].partition('\n## ')[0]


def test_the_paper_in_eight_chapters_is_a_chain():
    "Each says its place in its opening; the neighbours agree, and two pages list them in this order."
    places = {p.stem: m.groups() for p in LIBRARY if (m := PLACE.search(opening(p)))}
    order = sorted(places, key=lambda n: places[n][0])
    assert [places[n][0] for n in order] == list('12345678') and order == sorted(order)
    for n, before, after in zip(order, [None, *order], [*order[1:], None]):
        assert places[n][1:] == (before, before, after, after), n
    for page, title in (('index', '## Read it'), ('docs/chapters', '## The paper in eight chapters')):
        assert re.findall(r'^\| \[(\w+)\]\((?:\.\./)?\1\.ipynb\) \|', part_of(page, title), re.M) == order


def test_all_chapters_are_listed_in_order():
    table = part_of('docs/chapters', '## All chapters')
    assert re.findall(r'^\| \**\[(\w+)\]\(\.\./\1\.ipynb\)\** \|', table, re.M) == [p.stem for p in LIBRARY]


# --- the library: groups, arrows, walls

@library
def test_notebook_names_its_module(path):
    module = default_exp(path)
    group, _, own = module.rpartition('.')
    assert path.stem[4:] in {own, group if own == 'model' else own} # `captioner.model` is told in `510_captioner`
    assert group == GROUPS[int(path.stem[0])]
    assert (PACKAGE/f'{module.replace(".", "/")}.py').is_file()


def test_numbers_and_modules_are_told_apart():
    numbers = [p.stem[:3] for p in LIBRARY]
    assert len(set(numbers)) == len(numbers) and len(NUMBER) == len(LIBRARY)


@library
def test_imports_only_point_down(path):
    for text in code(path):
        for module in imported(ast.parse(python(text))):
            assert NUMBER[module] < int(path.stem[:3]), f'{path.stem} imports {module}'


@cache
def arrows(): # module -> modules that it imports
    return {dotted(p): imported(tree(p), ('logocentric', *p.relative_to(PACKAGE).parts[:-1])) for p in MODULES}


def reached(module):
    "All modules that come along when one is imported."
    found, ahead = set(), [module]
    while ahead:
        new = arrows()[ahead.pop()] - found
        found |= new; ahead += new
    return found


STANDS_ABOVE = {'reasoner.tagging'} # asks a captioner for every label, by the reasoner's trie: it needs both
WALLS = {                           # group -> groups that none of its modules may reach
    'data': {'encoder', 'captioner', 'reasoner', 'pipeline'},      # data knows no model
    'encoder': {'captioner', 'reasoner', 'pipeline'},              # an encoder needs no words
    'reasoner': {'encoder', 'captioner', 'pipeline'},              # the reasoner never hears
    'captioner': {'reasoner', 'pipeline'},                         # the captioner does not reason
    '': {'audio', 'data', 'encoder', 'captioner', 'reasoner', 'pipeline'}, # the floor stands alone
    'audio': {'data', 'encoder', 'captioner', 'reasoner', 'pipeline'},
}
FLOOR = {m for m, number in NUMBER.items() if number < 10}


def behind(group): return FLOOR if group == '' else {m for m in NUMBER if m.startswith(f'{group}.')} - STANDS_ABOVE


@pytest.mark.parametrize('group', WALLS, ids=lambda g: g or 'floor')
def test_walls(group):
    "The paper's claim in imports: hearing and reasoning are two things."
    for module in behind(group):
        over = {m for m in reached(module) if m.split('.')[0] in WALLS[group]}
        assert not over, f'{module} reaches {sorted(over)}'


def test_walls_would_notice(monkeypatch):
    "A wall between groups that do not exist stands by itself."
    assert {m.rpartition('.')[0] for m in NUMBER} == set(GROUPS.values()) and STANDS_ABOVE <= set(NUMBER)
    assert any(m.startswith('captioner.') for m in reached('reasoner.tagging'))
    assert imported(ast.parse('from ..core import stage'), ('logocentric', 'audio')) == {'core'}
    assert imported(ast.parse('from . import core'), ('logocentric',)) == {'core'}
    assert imported(ast.parse('def f():\n    import logocentric.core as c')) == {'core'}


@library
def test_notebooks_leave_the_environment_as_they_found_it(path):
    "`nbdev_test` runs many notebooks in one process: what one leaves in `os.environ`, the next one meets."
    whole = '\n'.join(code(path))
    made = set(re.findall(r"^os\.environ\['(\w+)'\] =", whole, re.M))
    left = made - set(re.findall(r"^ *del os\.environ\['(\w+)'\]", whole, re.M))
    assert not left, f'{path.stem} sets {left} and does not delete it'


@library
def test_library_notebooks_do_not_export_themselves(path):
    assert not any('nbdev_export(' in text for text in code(path))


# --- the library: names and sizes

def public(path):
    listed = [n for n in tree(path).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    assert len(listed) == 1, f'{path.name} has no __all__'
    return ast.literal_eval(listed[0].value)


@modules
def test_module_has_its_notebook(path):
    assert dotted(path) in NUMBER, 'an orphan: its notebook is gone'
    assert ast.get_docstring(tree(path))
    names = set(public(path))
    own = [n for n in tree(path).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names]
    assert not [n.name for n in own if not ast.get_docstring(n)], 'no docstring'


COMMANDS = 'cli' # a command carries the name of what it calls

def test_a_public_name_means_one_thing():
    homes = defaultdict(list)
    for path in MODULES:
        if dotted(path) != COMMANDS:
            for n in public(path): homes[n].append(dotted(path))
    assert not {n: where for n, where in homes.items() if len(where) > 1}


def test_folders_of_the_package_are_packages():
    assert not [p for p in {m.parent for m in MODULES} if not (p/'__init__.py').is_file()]


def is_patch(decorator): return 'patch' in ast.unparse(decorator).split('(')[0].split('.')


@cache
def methods(path):
    "Methods of each class of a module, patched ones too."
    found = defaultdict(set)
    for n in tree(path).body:
        if isinstance(n, ast.ClassDef): found[n.name] |= {m.name for m in n.body if isinstance(m, ast.FunctionDef)}
        elif isinstance(n, ast.FunctionDef) and any(map(is_patch, n.decorator_list)):
            for kind in re.findall(r'\w+', ast.unparse(n.args.args[0].annotation)): found[kind].add(n.name)
    return found


LONG_MODULES = {}  # module -> why it has more than 600 lines
LARGE_CLASSES = {  # class -> why it has more than 20 methods
    'Captioner': 'eight of them are what `transformers` and the training loop call'}

@modules
def test_a_module_can_be_held_in_mind(path):
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= 600 or LONG_MODULES.get(dotted(path)), f'{lines} lines'


def test_a_class_can_be_held_in_mind():
    total = defaultdict(set) # a class may be patched from another chapter
    for path in MODULES:
        for kind, own in methods(path).items(): total[kind] |= own
    assert not {kind: len(own) for kind, own in total.items() if len(own) > 20 and not LARGE_CLASSES.get(kind)}


@pytest.mark.parametrize('path', [PACKAGE/'__init__.py', *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_of_files_end_in_time(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert not [i for i, line in enumerate(lines, 1) if len(line) > WIDTH]


def retired():
    "Old identifiers and what stands for them, from `retired.txt`."
    rows = [line.split() for line in (ROOT/'tests'/'retired.txt').read_text(encoding='utf-8').splitlines()]
    return {row[0]: ' '.join(row[1:]) for row in rows if row and not row[0].startswith('#')}


def identifiers(text):
    try: return {t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME}
    except (tokenize.TokenError, IndentationError): return set(re.findall(r'\b[A-Za-z_]\w*', text))


def in_backticks(text):
    return {word for span in re.findall(r'`([^`\n]+)`', text) for word in re.findall(r'[A-Za-z_]\w*', span)}


@pytest.mark.parametrize('path', [*NOTEBOOKS, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_retired_names_do_not_return(path):
    "One vocabulary. Strings are left alone: keys of records, names of commands and of folders may be old."
    if path.suffix == '.ipynb':
        used = set().union(*(identifiers(python(text)) for text in code(path)))
        used |= set().union(*(in_backticks(source(c)) for c in cells(path, 'markdown')))
    else: used = identifiers(path.read_text(encoding='utf-8'))
    assert not {old: new for old, new in retired().items() if old in used}


@pytest.fixture(scope='session')
def regenerated(tmp_path_factory):
    "A copy of the checkout after nbdev_export and nbdev_clean."
    copy = tmp_path_factory.mktemp('checkout')
    shutil.copy(ROOT/'settings.ini', copy)
    shutil.copytree(PACKAGE, copy/'logocentric', ignore=shutil.ignore_patterns('__pycache__', 'assets'))
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    call = 'from nbdev.doclinks import nbdev_export; nbdev_export(); from nbdev.clean import nbdev_clean; nbdev_clean()'
    subprocess.run([sys.executable, '-c', call], cwd=copy, check=True, capture_output=True)
    return copy


def texts(folder): return {str(p.relative_to(folder)): p.read_text(encoding='utf-8') for p in folder.rglob('*.py')}


def test_export_is_up_to_date(regenerated):
    made, kept = texts(regenerated/'logocentric'), texts(PACKAGE)
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
    assert not exported(path)
    assert not [text for text in code(path) if '#| default_exp' in text or 'nbdev_export(' in text]


@modules
def test_package_never_imports_an_experiment(path):
    found = [node.module or '' for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    found += [a.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for a in node.names]
    assert not {part for n in found for part in n.split('.')} & {'nbs', 'tools', *(e.stem for e in EXPERIMENTS)}


def defined(module):
    "Names at the top of a module of the package, with what they are."
    found = {}
    for n in tree(PACKAGE/f'{module.replace(".", "/")}.py').body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found[n.name] = n
        for target in getattr(n, 'targets', [getattr(n, 'target', None)]):
            found |= {t.id: n for t in ast.walk(target) if isinstance(t, ast.Name)} if target else {}
    return found


def keywords(node):
    "Names that a function or a dataclass can be given; `None` where a look at the code does not tell."
    decorators = [ast.unparse(d) for d in node.decorator_list] if hasattr(node, 'decorator_list') else []
    if isinstance(node, ast.FunctionDef) and not decorators and not node.args.kwarg:
        return {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
    if isinstance(node, ast.ClassDef) and not node.bases and any(d.startswith('dataclass') for d in decorators):
        return {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}


def of_the_package(path):
    "What a notebook imports from the package: the name that it uses -> the name, and where it should be defined."
    nodes = [n for text in code(path) for n in ast.walk(ast.parse(python(text))) if isinstance(n, ast.ImportFrom)]
    return {a.asname or a.name: (n.module.removeprefix('logocentric.'), a.name) for n in nodes for a in n.names
            if n.module.startswith('logocentric.')}


@pytest.mark.parametrize('path', [*EXPERIMENTS, *PAGES], ids=name)
def test_what_an_experiment_asks_of_the_package_is_there(path):
    "Some studies run only in `make test-full`. Here what they import is looked for, and the keywords of their calls."
    known = {}
    for alias, (module, n) in of_the_package(path).items():
        if f'{module}.{n}' in NUMBER: continue # a module
        assert n in defined(module), f'{module} has no {n}'
        known[alias] = keywords(defined(module)[n])
    calls = [n for text in code(path) for n in ast.walk(ast.parse(python(text))) if isinstance(n, ast.Call)]
    for call in calls:
        allowed = known.get(getattr(call.func, 'id', None))
        given = {k.arg for k in call.keywords} - {None}
        assert allowed is None or given <= allowed, f'{call.func.id} does not take {given - allowed}'


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


PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
LOCK = {canonicalize_name(name): version for name, version
        in (line.split('==') for line in (ROOT/'requirements.lock').read_text().splitlines())}

def test_the_lock_keeps_to_the_ranges():
    asked = map(Requirement, [*PROJECT['dependencies'], *(d for extra in EXTRAS.values() for d in extra)])
    locked = {str(r): bool(r.specifier) and LOCK.get(canonicalize_name(r.name), '0') in r.specifier for r in asked}
    assert all(locked.values()), [r for r, kept in locked.items() if not kept]


def _required(listed, found): # names of all that these packages need, on this machine
    for r in map(Requirement, listed):
        if (name := canonicalize_name(r.name)) in found or r.marker and not r.marker.evaluate(dict(extra='')): continue
        found.add(name)
        _required(distribution(name).requires or [], found)
    return found


def test_the_lock_has_all_that_is_required():
    required = _required([*PROJECT['dependencies'], *EXTRAS['dev']], set())
    assert required - LOCK.keys() - {'pip', 'setuptools', 'wheel'} == set() # which pip leaves out


def test_a_newer_torch_is_not_refused():
    torch, = (r for r in map(Requirement, PROJECT['dependencies']) if r.name == 'torch')
    assert '2.13.0' in torch.specifier and '2.20.1' in torch.specifier


def test_legal_files():
    licence = (ROOT/'LICENSE').read_text()
    for words in ('Apache License', 'Version 2.0, January 2004', 'END OF TERMS AND CONDITIONS'): assert words in licence
    assert 'TimGM6mb' in (ROOT/'THIRD_PARTY.md').read_text()
    assert 'Xingjian' in (ROOT/'CITATION.cff').read_text()


SOUND = ('.sf2', '.wav', '.mp3', '.flac', '.ogg')
WEIGHTS = ('.npy', '.bin', '.pt', '.pth')

def test_soundfonts_sound_and_weights_are_not_committed():
    "But for what ships with the package, and the excerpts that the book carries along."
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    demo = [f for f in tracked if re.fullmatch(r'data/demo/[^/]+\.ogg', f)]
    assert not [f for f in tracked if f.endswith(SOUND + WEIGHTS) and f not in demo]
    assert sum((ROOT/f).stat().st_size for f in demo) <= 1e6
    listed = (ROOT/'data'/'demo'/'sources.csv').read_text(encoding='utf-8').splitlines()[1:] if demo else []
    assert {f.removeprefix('data/demo/') for f in demo} == {line.partition(',')[0] for line in listed}
    weights = [f for f in tracked if f.endswith('.safetensors')]
    assert all(f.startswith('logocentric/assets/') for f in weights)
    assert sum((ROOT/f).stat().st_size for f in weights) < 35e6


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


def test_places_that_contributing_names_are_there():
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    named = re.findall(r'`((?:nbs|tests|tools|data|logocentric)/[\w./-]*\w\.(?:ipynb|py|toml|txt|md))`', text)
    assert named and not [place for place in named if not (ROOT/place).exists()]


def test_no_path_of_a_developers_machine():
    here = '/' + 'work/'
    folders = ('nbs', 'logocentric', 'tests', 'tools', '.ci', '.github')
    found = [p for folder in folders for p in (ROOT/folder).rglob('*')
             if p.suffix in ('.ipynb', '.py', '.toml', '.yml', '') and p.is_file() and '__pycache__' not in p.parts]
    found += [p for p in ROOT.iterdir() if p.suffix in ('.md', '.toml', '.ini', '.cff') or p.name == 'Makefile']
    pattern = re.compile(rf'(?<![\w.]){here}')
    assert [str(p.relative_to(ROOT)) for p in found if pattern.search(p.read_text(encoding='utf-8'))] == []
