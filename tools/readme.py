"""Make README.md from nbs/index.ipynb, and docs/*.md from nbs/docs/*.ipynb.

    python tools/readme.py

A page that is typed by hand tells of the code as it was on the day of typing. Ours are notebooks with their outputs:
their examples have run, and their tables come from records. A test compares the two, so that neither can move without
the other.

nbconvert does most of it. Four things it does not do: the directives of nbdev mean nothing to it; links are relative to
the notebook, and the page lies elsewhere; GitHub shows no picture that is embedded in the text; and since `nbdev_clean`
keeps no language in the notebook, the code would not be coloured.
"""
import posixpath, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config
from logocentric.core import LogocentricError, atomic_write, project_root

NOTICE = '<!-- Made from {source} by `make readme`. Edit the notebook. -->\n\n'

# Of several forms of an output: Markdown before a picture before HTML, from which GitHub drops the styles of pandas.
FORMS = ['text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/html', 'text/plain']

# A relative target, of a link or a picture; addresses, anchors and absolute paths are left alone.
TARGET = re.compile(r'(\]\(|<img src=")(?![a-z]+:|#|/)([^)"\s]+)')


def page_of(source: str # path of a notebook in the repository
           ) -> str:    # path of the page that is made from it, or the notebook itself
    "Where a reader of pages finds a notebook."
    if source == 'nbs/index.ipynb': return 'README.md'
    return re.sub(r'^nbs/docs/(\w+)\.ipynb', r'docs/\1.md', source)


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


def relink(text, source='nbs/index.ipynb'):
    "The text with its relative targets seen from where the page of a notebook lies."
    folder, place = posixpath.dirname(source), posixpath.dirname(page_of(source)) or '.'
    seen = lambda target: posixpath.relpath(page_of(posixpath.normpath(posixpath.join(folder, target))), place)
    return TARGET.sub(lambda m: m[1] + seen(m[2]), text)


def relinked(cell, source):
    "A cell with the links of its text, or of the text that it shows."
    if cell.cell_type == 'markdown': cell.source = relink(cell.source, source)
    for data in (o.data for o in cell.get('outputs', []) if 'data' in o):
        if 'text/markdown' in data: data['text/markdown'] = relink(data['text/markdown'], source)
    return cell


def tidied(text):
    "Without trailing spaces, styles, and the frames of sources that are not echoed."
    text = re.sub(r'[ \t]+\n', '\n', text)
    text = re.sub(r'<style.*?</style>\n?', '', text, flags=re.S)
    text = re.sub(r'```python\n+```\n', '', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def convert(nb: nbformat.NotebookNode, # an executed notebook
            source: str = 'nbs/index.ipynb' # its path in the repository
           ) -> tuple[str, dict[str, bytes]]: # Markdown; path of each picture in the repository -> its bytes
    "A notebook as a page of Markdown."
    place = posixpath.dirname(page_of(source))
    folder = posixpath.join(place, 'images') if place else 'nbs/images'
    cells = [relinked(c, source) for c in map(visible, nbformat.from_dict(nb).cells) if c is not None]
    shown = nbformat.from_dict(dict(nb, cells=cells, metadata=dict(language_info=dict(name='python'))))
    exporter = MarkdownExporter(config=Config(NbConvertBase=dict(display_data_priority=FORMS)))
    seen = posixpath.relpath(folder, place or '.')
    text, found = exporter.from_notebook_node(
        shown, resources=dict(unique_key=Path(source).stem, output_files_dir=seen))
    pictures = {posixpath.normpath(posixpath.join(place, name)): data for name, data in found['outputs'].items()}
    return NOTICE.format(source=source) + tidied(text), pictures


def page_sources(root: Path) -> list[str]:
    "The notebooks that become pages."
    return ['nbs/index.ipynb', *sorted(str(p.relative_to(root)) for p in (root/'nbs'/'docs').glob('*.ipynb'))]


def pages(root: str | Path | None = None # the checkout by default
         ) -> dict[str, bytes]: # path -> content
    "All pages and their pictures, as they should be."
    root = Path(root) if root else project_root()
    if root is None or not (root/'nbs'/'index.ipynb').is_file():
        raise LogocentricError('index.ipynb is not here: the README is made in a checkout')
    found = {}
    for source in page_sources(root):
        text, pictures = convert(nbformat.read(root/source, as_version=4), source)
        found |= {page_of(source): text.encode(), **pictures}
    return found


def kept_pages(root: Path) -> set[str]:
    "The pages and pictures that lie there."
    patterns = ('README.md', 'docs/*.md', 'docs/images/*', 'nbs/images/index_*')
    return {str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern)}


def write_pages(root: str | Path | None = None # the checkout by default
               ) -> list[str]:
    "Write all pages; those of an earlier run that are no more go."
    found, root = pages(root), Path(root or project_root())
    for old in kept_pages(root) - found.keys(): (root/old).unlink()
    for name, data in found.items():
        with atomic_write(root/name) as p: p.write_bytes(data)
    return list(found)


if __name__ == '__main__': print('\n'.join(write_pages()))
