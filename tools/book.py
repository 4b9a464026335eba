"""Build the book as a static site: chapters, pages, experiments and the interface, with search.

    python tools/book.py [--folder build/site]

Sphinx with `myst-nb` reads the committed notebooks, outputs included, and executes nothing; `furo` draws the pages,
light and dark, wide and narrow. All three install from a package registry, are kept, and build without a network.
(MkDocs has stood still since 2024, and Quarto is no Python package.)
"""
import argparse, json, re, shutil
from pathlib import Path
from sphinx.cmd.build import build_main
from logocentric.core import LogocentricError, project_root
from readme import directives

PARTS = {'0': 'The floor', '1': 'Sound', '2': 'Data made here', '3': 'Data on disk', '4': 'The encoder',
         '5': 'The captioner', '6': 'The reasoner', '7': 'The pipeline', '8': 'Running it', '9': 'Commands'}
PAGES = ('results', 'chapters', 'own_data', 'reproduction', 'many_machines', 'design')
BESIDE = ('CONTRIBUTING', 'CHANGELOG', 'THIRD_PARTY')
HIDDEN = {'hide': 'remove-cell', 'default_exp': 'remove-cell', 'echo: false': 'remove-input',
          'output: false': 'remove-output'}   # directives of nbdev, as tags of myst-nb
COLAB = 'https://colab.research.google.com/github/{repo}/blob/main/{path}'
BADGE = '[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})'

CONF = """
project, author, html_title = 'logocentric', 'The logocentric authors', 'logocentric {version}'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode', 'sphinx_copybutton']
html_theme, root_doc, language = 'furo', 'index', 'en'
html_theme_options = dict(source_repository='https://github.com/{repo}/', source_branch='main', source_directory='')
html_static_path, html_css_files, html_show_sphinx = ['_static'], ['book.css'], False
nb_execution_mode, nb_merge_streams, nb_number_source_lines = 'off', True, False
myst_enable_extensions, myst_heading_anchors = ['dollarmath', 'colon_fence'], 3
autodoc_member_order, autodoc_typehints, autodoc_preserve_defaults = 'bysource', 'signature', True
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header', 'misc.highlighting_failure', 'docutils']
copybutton_exclude = '.linenos, .gp, .go'
"""

CSS = """
.bd-content, .content { overflow-wrap: anywhere; }
.cell_output, .table-wrapper { overflow-x: auto; }
.cell_output img, .content img { max-width: 100%; height: auto; }
body[data-theme='dark'] .cell_output img { background: white; border-radius: 4px; }
@media (prefers-color-scheme: dark) {
  body:not([data-theme='light']) .cell_output img { background: white; border-radius: 4px; }
}
"""


def repository(root: Path) -> str:
    "Owner and name on GitHub."
    return re.search(r'git_url = https://github.com/(\S+)', (root/'settings.ini').read_text())[1]


def _slug(anchor): return re.sub(r'[^\w-]', '', anchor.lower()) # of a heading, as GitHub and MyST make it

def linked(text: str) -> str:
    "Links as the site has them: to notebooks instead of pages, to a list of experiments, to headings by their slugs."
    text = re.sub(r'(\]\((?:\.\./)*)docs/(\w+)\.md', r'\1nbs/docs/\2.ipynb', text)
    text = re.sub(r'(\]\([^)]*\bexperiments)\)', r'\1/all.md)', text)
    return re.sub(r'(\]\([^)#:]*#)([^)]+)\)', lambda m: f'{m[1]}{_slug(m[2])})', text)


def tagged(cell):
    "A cell whose directives of nbdev are tags that `myst-nb` knows."
    marks, source = directives(''.join(cell['source']))
    tags = {tag for mark in marks for name, tag in HIDDEN.items() if mark.startswith(name)}
    if cell['cell_type'] != 'code': return dict(cell, source=linked(''.join(cell['source'])))
    if not source: tags.add('remove-cell')
    return dict(cell, source=source, metadata=dict(cell['metadata'], tags=sorted(tags)))


def staged(notebook: dict, repo: str, path: str) -> dict:
    "A notebook as the site shows it: without directives, with a badge below its title."
    cells = [tagged(c) for c in notebook['cells']]
    badge = BADGE.format(url=COLAB.format(repo=repo, path=path))
    opening = next((c for c in cells if c['cell_type'] == 'markdown'), None)
    if opening:
        first, _, rest = ''.join(opening['source']).partition('\n')
        opening['source'] = f'{first}\n\n{badge}\n{rest}'
    return dict(notebook, cells=cells)


def _contents(caption, names, depth=1): # a table of contents of Sphinx
    return '\n'.join(['```{toctree}', f':caption: {caption}', f':maxdepth: {depth}', ':hidden:', '', *names, '```', ''])


def modules(root: Path) -> list[str]:
    "All modules of the package, by name."
    found = sorted(p.relative_to(root).with_suffix('') for p in (root/'logocentric').rglob('*.py'))
    return ['.'.join(p.parts) for p in found if not p.name.startswith('_')]


def _interface(module): return f'# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n'


def _opening(root): # the README, and contents in reading order
    chapters = [p.stem for p in sorted((root/'nbs').glob('[0-9]*.ipynb'))]
    parts = [_contents('About', [*(f'nbs/docs/{name}' for name in PAGES), *BESIDE])]
    parts += [_contents(title, [f'nbs/{c}' for c in chapters if c[0] == digit]) for digit, title in PARTS.items()]
    parts += [_contents('Experiments', ['nbs/experiments/all']),
              _contents('Interface', [f'api/{m}' for m in modules(root)])]
    return '```{include} README.md\n```\n\n' + '\n'.join(parts)


def _experiments(root): # a page that lists them
    names = sorted(p.stem for p in (root/'nbs'/'experiments').glob('*.ipynb'))
    return '# Experiments\n\nEach is a notebook with parameters, which papermill runs.\n\n' + '\n'.join(
        ['```{toctree}', ':maxdepth: 1', '', *names, '```', ''])


def stage(root: Path, source: Path) -> None:
    "Lay out what Sphinx reads."
    repo = repository(root)
    shutil.rmtree(source, ignore_errors=True)
    for path in [*(root/'nbs').rglob('*.ipynb')]:
        name = str(path.relative_to(root))
        if '.ipynb_checkpoints' in name or name == 'nbs/index.ipynb': continue
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_text(json.dumps(staged(json.loads(path.read_text()), repo, name)))
    for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'THIRD_PARTY.md', 'LICENSE', 'CITATION.cff',
                 'requirements.lock', 'data/demo', 'nbs/images'):
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        if (root/name).is_dir(): shutil.copytree(root/name, source/name)
        elif name.endswith('.md'): (source/name).write_text(linked((root/name).read_text()))
        else: shutil.copy(root/name, source/name)
    version = re.search(r'version = (\S+)', (root/'settings.ini').read_text())[1]
    made = {'index.md': _opening(root), 'conf.py': CONF.format(version=version, repo=repo), '_static/book.css': CSS,
            'nbs/experiments/all.md': _experiments(root),
            **{f'api/{m}.md': _interface(m) for m in modules(root)}}
    for name, text in made.items():
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_text(text)


def build(folder: Path, root: Path | None = None) -> Path: # the first page
    "Build the site."
    root = root or project_root()
    if root is None: raise LogocentricError('the book is made in a checkout')
    stage(root, folder/'source')
    failed = build_main(['-q', '-b', 'html', '-j', 'auto', '-w', str(folder/'warnings.txt'), str(folder/'source'),
                         str(folder/'html')])
    if failed: raise LogocentricError(f'Sphinx failed: see {folder}/warnings.txt')
    return folder/'html'/'index.html'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=Path('build/site'))
    print(build(parser.parse_args().folder))
