"The book as a site: what is laid out for Sphinx, and what comes out."
import json, re
from html.parser import HTMLParser
from urllib.parse import unquote
import pytest
from logocentric.core import project_root

pytest.importorskip('sphinx', reason='the book is built with the packages of the extra `site`')
from book import build, linked, modules, stage, staged  # noqa: E402

ROOT = project_root()


@pytest.mark.parametrize('written, seen', [
    ('[a](docs/results.md)', '[a](nbs/docs/results.ipynb)'),
    ('[a](../docs/design.md#map)', '[a](../nbs/docs/design.ipynb#map)'),
    ('[a](../experiments)', '[a](../experiments/all.md)'),
    ('[a](090_training.ipynb#Several-processes)', '[a](090_training.ipynb#several-processes)'),
    ('[a](#The-logarithm,-and-more)', '[a](#the-logarithm-and-more)'), *[('[a](https://x.org/Y#Z)',)*2]])
def test_links_are_those_of_the_site(written, seen): assert linked(written) == seen


def test_directives_become_tags_and_a_badge_opens_the_chapter():
    cell = lambda kind, text: dict(cell_type=kind, metadata={}, source=text.splitlines(keepends=True), outputs=[])
    cells = [cell('markdown', '# Title\n\n> more'), cell('code', '#| default_exp a.b'),
             cell('code', '#| export\nx = 1'), cell('code', '#| echo: false\ny')]
    first, *code = staged(dict(cells=cells), 'me/it', 'nbs/a.ipynb')['cells']
    assert first['source'].startswith('# Title\n\n[![Open in Colab]')
    assert 'me/it/blob/main/nbs/a.ipynb' in first['source']
    assert [c['metadata']['tags'] for c in code] == [['remove-cell'], [], ['remove-input']]
    assert [c['source'] for c in code] == ['', 'x = 1', 'y']


@pytest.fixture(scope='module')
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('book')
    stage(ROOT, folder)
    return folder


def _texts(path): # Markdown of a page or a notebook
    if path.suffix == '.md': return [path.read_text()]
    return [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown']


def _without_code(text): return re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.S)


def test_what_is_linked_is_laid_out(laid_out):
    sources = [*laid_out.rglob('*.md'), *laid_out.rglob('*.ipynb')]
    assert len(sources) > 200
    broken = [(path.name, target) for path in sources for text in _texts(path)
              for target in re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', _without_code(text))
              if not (path.parent/target).exists()]
    assert broken == []


def test_every_chapter_and_module_is_in_the_contents(laid_out):
    contents = (laid_out/'index.md').read_text() + (laid_out/'nbs'/'experiments'/'all.md').read_text()
    for path in (ROOT/'nbs').rglob('[0-9a-z]*.ipynb'):
        if path.name != 'index.ipynb' and '.ipynb_checkpoints' not in path.parts: assert path.stem in contents
    assert all(f'api/{m}' in contents for m in modules(ROOT))


class _Targets(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.targets += [given[a] for a in ('href', 'src') if given.get(a)]
        self.ids |= {given[a] for a in ('id', 'name') if given.get(a)}


@pytest.mark.slow
def test_no_link_of_the_site_is_broken(tmp_path):
    top = build(tmp_path).parent
    pages = {p.resolve(): _Targets(p.read_text()) for p in top.rglob('*.html')}
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            if re.match(r'[a-z]+:|//', target): continue
            name, _, anchor = unquote(target).partition('#')
            to = (path.parent/name).resolve() if name else path
            there = to.exists() and not (anchor and to in pages and anchor not in pages[to].ids)
            if not there: broken.append((path.name, target))
    assert broken == [] and len(pages) > 200
