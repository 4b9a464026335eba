"README.md is index.ipynb, converted; and the conversion does what nbconvert alone does not."
import re
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from logocentric.core import LogocentricError, project_root
from readme import convert, readme_text, write_readme

INDEX = project_root()/'nbs'/'index.ipynb'
PNG = 'iVBORw0KGgo='


def page(*cells): return new_notebook(cells=list(cells))


def test_readme_is_up_to_date():
    text, pictures = convert(nbformat.read(INDEX, as_version=4))
    assert (project_root()/'README.md').read_text(encoding='utf-8') == text == readme_text(), 'run `make readme`'
    for name, data in pictures.items(): assert (project_root()/name).read_bytes() == data, 'run `make readme`'
    kept = {f'nbs/images/{p.name}' for p in (project_root()/'nbs'/'images').glob('index_*')}
    assert kept == set(pictures)


def test_links_and_pictures_of_the_readme_exist():
    text = readme_text()
    for target in re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', text):
        target = ''.join(target).split('#')[0]
        if target and not re.match(r'[a-z]+:', target): assert (project_root()/target).exists(), target
    assert 'data:image' not in text and '#|' not in text


@pytest.mark.parametrize('written, read', [
    ('[a](010_metrics.ipynb)', '[a](nbs/010_metrics.ipynb)'),
    ('[a](../LICENSE)', '[a](LICENSE)'),
    ('![a](images/a.png)', '![a](nbs/images/a.png)'),
    ('<img src="images/a.png">', '<img src="nbs/images/a.png">'),
    ('[a](https://x.org/y) [b](#c) [d](mailto:e@f.g)', '[a](https://x.org/y) [b](#c) [d](mailto:e@f.g)'),
])
def test_links(written, read):
    assert read in convert(page(new_markdown_cell(written)))[0]


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


def test_old_pictures_go(tmp_path):
    figure = new_output('display_data', data={'image/png': PNG})
    drawn = new_code_cell('x', outputs=[figure])
    for cells in ([new_markdown_cell('# T'), drawn], [drawn]):
        nbformat.write(page(*cells), tmp_path/'index.ipynb')
        write_readme(tmp_path/'index.ipynb', tmp_path)
    assert [p.name for p in (tmp_path/'nbs'/'images').iterdir()] == ['index_0_0.png']
    with pytest.raises(LogocentricError): readme_text(tmp_path/'none.ipynb')
