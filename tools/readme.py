"""Make README.md from nbs/index.ipynb.

    python tools/readme.py

A README that is typed by hand tells of the code as it was on the day of typing. Ours is the first notebook of the book
with its outputs: its example has run, and its tables come from records. A test compares the two, so that neither can
move without the other.

nbconvert does most of it. Four things it does not do: the directives of nbdev mean nothing to it; links are relative to
`nbs/`, and the README stands one folder higher; GitHub shows no picture that is embedded in the text; and since
`nbdev_clean` keeps no language in the notebook, the code would not be coloured.
"""
import posixpath, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config
from logocentric.core import LogocentricError, atomic_write, project_root

NOTICE = '<!-- Made from nbs/index.ipynb by `make readme`. Edit the notebook. -->\n\n'

# Of several forms of an output: Markdown before a picture before HTML, from which GitHub drops the styles of pandas.
FORMS = ['text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/html', 'text/plain']

# A relative target, of a link or a picture; addresses, anchors and absolute paths are left alone.
TARGET = re.compile(r'(\]\(|<img src=")(?![a-z]+:|#|/)([^)"\s]+)')


def directives(source):
    "The directives of a cell, and its source without them."
    lines = source.splitlines()
    marks = [line[2:].strip() for line in lines if line.startswith('#|')]
    return marks, '\n'.join(line for line in lines if not line.startswith('#|')).strip()


def visible(cell):
    "The cell as a reader is to see it; `None` where nothing of it is to be seen."
    if cell.cell_type != 'code': return cell
    marks, source = directives(cell.source)
    if 'hide' in marks or not source: return None
    if 'output: false' in marks: cell.outputs = []
    cell.source = '' if 'echo: false' in marks else source
    return cell


def relink(text, folder='nbs'):
    "The text with its relative targets seen from the folder above."
    return TARGET.sub(lambda m: m[1] + posixpath.normpath(posixpath.join(folder, m[2])), text)


def tidied(text):
    "Without trailing spaces, styles, and the frames of sources that are not echoed."
    text = re.sub(r'[ \t]+\n', '\n', text)
    text = re.sub(r'<style.*?</style>\n?', '', text, flags=re.S)
    text = re.sub(r'```python\n+```\n', '', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def convert(nb: nbformat.NotebookNode # an executed notebook of `nbs/`
           ) -> tuple[str, dict[str, bytes]]: # Markdown; path of each picture -> its bytes
    "Markdown of a notebook as it reads from the root of the repository."
    cells = [c for c in map(visible, nbformat.from_dict(nb).cells) if c is not None]
    for c in cells:
        if c.cell_type == 'markdown': c.source = relink(c.source)
    shown = nbformat.from_dict(dict(nb, cells=cells, metadata=dict(language_info=dict(name='python'))))
    exporter = MarkdownExporter(config=Config(NbConvertBase=dict(display_data_priority=FORMS)))
    text, found = exporter.from_notebook_node(shown, resources=dict(unique_key='index', output_files_dir='nbs/images'))
    return NOTICE + tidied(text), dict(found['outputs'])


def read_index(path=None):
    path = Path(path) if path else project_root() and project_root()/'nbs'/'index.ipynb'
    if path is None or not path.is_file():
        raise LogocentricError('index.ipynb is not here: the README is made in a checkout')
    return nbformat.read(path, as_version=4)


def readme_text(index: str | Path | None = None # a notebook; `nbs/index.ipynb` by default
               ) -> str:
    "The text that `README.md` should have."
    return convert(read_index(index))[0]


def write_readme(index: str | Path | None = None, # a notebook; `nbs/index.ipynb` by default
                 root: str | Path | None = None   # where `README.md` goes; the checkout by default
                ) -> Path:
    "Write `README.md` and its pictures; pictures of an earlier run go."
    text, pictures = convert(read_index(index))
    root = Path(root or project_root())
    for old in (root/'nbs'/'images').glob('index_*'): old.unlink()
    for name, data in {**pictures, 'README.md': text.encode()}.items():
        with atomic_write(root/name) as p: p.write_bytes(data)
    return root/'README.md'


if __name__ == '__main__': print(write_readme())
