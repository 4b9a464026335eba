"README.md and docs are notebooks, converted; and the conversion does what nbconvert alone does not."
import re
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from logocentric.core import LogocentricError, project_root
from readme import convert, kept_pages, page_of, page_sources, pages, write_pages

ROOT = project_root()
PNG = 'iVBORw0KGgo='


def page(*cells): return new_notebook(cells=list(cells))


@pytest.fixture(scope='module')
def made(): return pages()


def test_pages_are_up_to_date(made):
    assert kept_pages(ROOT) == made.keys(), 'run `make readme`'
    for name, data in made.items(): assert (ROOT/name).read_bytes() == data, f'{name}: run `make readme`'


def test_the_readme_is_short(made): assert len(made['README.md']) <= 8192


@pytest.mark.parametrize('source', page_sources(ROOT))
def test_links_and_pictures_exist(made, source):
    path, text = ROOT/page_of(source), made[page_of(source)].decode()
    for target in re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', text):
        target, _, anchor = ''.join(target).partition('#')
        if target and not re.match(r'[a-z]+:', target): assert (path.parent/target).exists(), target
    assert 'data:image' not in text and '#|' not in text


@pytest.mark.parametrize('source, written, read', [
    ('nbs/index.ipynb', '[a](010_metrics.ipynb)', '[a](nbs/010_metrics.ipynb)'),
    ('nbs/index.ipynb', '[a](../LICENSE)', '[a](LICENSE)'),
    ('nbs/index.ipynb', '![a](images/a.png)', '![a](nbs/images/a.png)'),
    ('nbs/index.ipynb', '<img src="images/a.png">', '<img src="nbs/images/a.png">'),
    ('nbs/index.ipynb', '[a](docs/results.ipynb)', '[a](docs/results.md)'),
    ('nbs/index.ipynb', *['[a](https://x.org/y) [b](#c) [d](mailto:e@f.g)']*2),
    ('nbs/docs/design.ipynb', '[a](../010_metrics.ipynb)', '[a](../nbs/010_metrics.ipynb)'),
    ('nbs/docs/design.ipynb', '[a](results.ipynb) [b](../index.ipynb)', '[a](results.md) [b](../README.md)'),
    ('nbs/docs/design.ipynb', '[a](../../LICENSE)', '[a](../LICENSE)'),
])
def test_links(source, written, read):
    "Of a text, and of what a cell shows."
    shown = new_code_cell('#| echo: false\nx', outputs=[new_output('display_data', data={'text/markdown': written})])
    for cell in (new_markdown_cell(written), shown): assert read in convert(page(cell), source)[0]


def test_directives():
    out = lambda s: [new_output('execute_result', data={'text/plain': s})]
    text, _ = convert(page(
        new_code_cell('#| hide\nhidden = 1', outputs=out('never')), new_code_cell('#| default_exp x'),
        new_code_cell('#| echo: false\nunseen = 2', outputs=out('seen')),
        new_code_cell('#| output: false\nsource_only = 3', outputs=out('dropped')),
        new_code_cell('#| export\nplain = 4')))
    for there in ('seen', 'source_only = 3', '```python\nplain = 4\n```'): assert there in text
    for gone in ('hidden', 'never', 'unseen', 'dropped', '#|', 'default_exp', '```python\n\n'): assert gone not in text


def test_markdown_before_html_and_no_style():
    shown = lambda **data: new_output('display_data', data={f'text/{kind}': text for kind, text in data.items()})
    table = shown(html='<p>x</p>', markdown='| a |\n|---|\n| 1 |', plain='z')
    frame = shown(html='<style scoped>\n.a {}\n</style>\n<table></table>', plain='z')
    text, _ = convert(page(new_code_cell('t', outputs=[table]), new_code_cell('f', outputs=[frame])))
    assert '| 1 |' in text and '<table>' in text and '<p>' not in text and 'style' not in text


def test_conversion_leaves_the_notebook_as_it_was():
    nb = page(new_markdown_cell('[a](b.ipynb)'), new_code_cell('#| echo: false\nx', outputs=[]))
    before = nbformat.writes(nb)
    assert convert(nb) == convert(nb) and nbformat.writes(nb) == before


def test_old_pages_and_pictures_go(tmp_path):
    drawn = new_code_cell('x', outputs=[new_output('display_data', data={'image/png': PNG})])
    (tmp_path/'nbs'/'docs').mkdir(parents=True)
    for folder, name in ((tmp_path/'nbs', 'index'), (tmp_path/'nbs'/'docs', 'more')):
        nbformat.write(page(drawn), folder/f'{name}.ipynb')
    pictures = {'nbs/images/index_0_0.png', 'docs/images/more_0_0.png'}
    assert set(write_pages(tmp_path)) == kept_pages(tmp_path) == {'README.md', 'docs/more.md', *pictures}
    assert '](images/more_0_0.png)' in (tmp_path/'docs'/'more.md').read_text()
    (tmp_path/'nbs'/'docs'/'more.ipynb').unlink()
    write_pages(tmp_path)
    assert kept_pages(tmp_path) == {'README.md', 'nbs/images/index_0_0.png'}
    with pytest.raises(LogocentricError): pages(tmp_path/'none')
