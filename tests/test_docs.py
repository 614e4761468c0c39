"The site of `make docs`: what a reader sees of a notebook and of a module, and that nothing is left out."
import ast, json, re, shutil, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from notebooks import ALL, LIBRARY, ROOT, module, room

sys.path.append(str(ROOT/'nbs'/'_site'))
from api import Module, Parameter, Reference, end_of_header, field_of, parameters, prose, table
from pages import AS_IT_IS, fenced, figure, heading, parts, relink, shown
from stage import FIRST, Site, folders


def cell(source, *outputs, kind='code', tags=()): return dict(cell_type=kind, source=source.splitlines(True), outputs=list(outputs), metadata=dict(tags=list(tags)))


def made(code, tmp_path):
    "A module of this code."
    path = tmp_path/'made.py'
    path.write_text(code, encoding='utf-8')
    return Module('interlat.made', path)


@pytest.fixture(scope='module')
def site(): return Site()


@pytest.fixture(scope='module')
def pages(site): return site.pages()


@pytest.mark.parametrize('source, tags, seen', [
    ('#| export\ndef f(): pass', (), ['```python\ndef f(): pass\n```']), ('#| hide\nimport secret', (), []), ('#|hide\nx', (), []), ('#| default_exp core.x', (), []),
    ('#| slow\n#| gpu\nx = 1', (), ['```python\nx = 1\n```']), ('x = 1', ('hide_input',), []), ('# a comment\nx', (), ['```python\n# a comment\nx\n```'])])
def test_a_reader_sees_the_code_without_the_lines_to_nbdev(source, tags, seen): assert parts(cell(source, tags=tags)) == seen


def test_text_stays_as_it_is(): assert parts(cell('# Title\n\n> line', kind='markdown')) == ['# Title\n\n> line']


@pytest.mark.parametrize('output, seen', [
    (dict(output_type='stream', name='stdout', text=['a\n', 'b\n']), '```text\na\nb\n```'),
    (dict(output_type='execute_result', data={'text/plain': ['Message(3)']}), '```text\nMessage(3)\n```'),
    (dict(output_type='execute_result', data={'text/plain': 'x', 'text/html': '<b>x</b>'}), '```{raw} html\n<b>x</b>\n```'),
    (dict(output_type='execute_result', data={'text/plain': 'x', 'text/markdown': ['| a |\n', '| --- |']}), '| a |\n| --- |')])
def test_an_output_is_shown_in_its_best_form(output, seen): assert shown(output) == fenced('{container} output', seen)


def test_a_figure_is_kept_whole():
    spec = dict(data=[dict(y=[1, 2], text='</script><b>')], layout=dict(height=300))
    text = shown(dict(output_type='display_data', data={'application/vnd.plotly.v1+json': spec}))
    (kept,) = re.findall(r'<script type="application/json" class="figure">(.*?)</script>', text)
    assert json.loads(kept) == spec and kept in figure(spec)


def test_no_text_closes_its_block():
    assert fenced('text', 'a ``` b') == '````text\na ``` b\n````'
    assert fenced('{container} x', fenced('text', '`````')).startswith('```````{container} x\n``````text')


def test_links_lead_to_pages(tmp_path):
    nbs, top = tmp_path/'nbs', tmp_path/'_proc'
    for folder in ('01_core', 'pages'): (nbs/folder).mkdir(parents=True)
    (tmp_path/'tests').mkdir()
    known = {nbs/'01_core'/'a.ipynb': '01_core/a', nbs/'01_core': '01_core/index'}
    def led(text): return relink(text, nbs/'pages', 'pages/b', known, top, 'https://x.y/tree/main')
    assert led('[a](../01_core/a.ipynb) [core](../01_core)') == '[a](../01_core/a.md) [core](../01_core/index.md)'
    assert led('[`a`](../01_core/a.ipynb#how) [b](#b)') == '[`a`](../01_core/a.md#how) [b](#b)'
    assert led('![f](../../figures/f.png)') == '![f](../../figures/f.png)', 'a file comes along'
    assert led('[tests](../../tests)') == '[tests](https://x.y/tree/main/tests)'
    assert led('```{container} output\n[a](../01_core/a.ipynb)\n```') == '```{container} output\n[a](../01_core/a.md)\n```', 'an output is text'
    plain = '````{container} output\n```text\ne[0](../01_core)\n```\n````'
    for text in (plain, '[x](https://a.b/c)', '`e[0](../01_core/a.ipynb)`', '```python\ne[0](../01_core)\n```'): assert led(text) == text


def test_every_link_of_the_site_leads_somewhere(site, pages):
    code = re.compile(AS_IT_IS, re.M | re.S)
    for name, text in pages.items():
        for target in re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', code.sub('', text)):
            place = site.top if target.startswith('/') else (site.top/name).parent
            path = (place/target.lstrip('/')).resolve()
            assert str(path.relative_to(site.top).with_suffix('')) in pages if path.is_relative_to(site.top) else path.exists(), f'{name}: {target}'


CODE = '''
from dataclasses import dataclass, field

@dataclass
class Base:
    "What is below."
    a:int # the first

@dataclass(frozen=True)
class Made(Base):
    "Made of `Base`."
    b:list[int]=field(default_factory=list) # the second
    c:float = field(default=.5, metadata=dict(help='the third', aliases=['--d']))
    @property
    def width(self)->int: # D
        "How wide."
        return 1
    def cut(self,
        part:'Made', # how much
    )->'Made':
        "A part."
    def _hidden(self): pass

def play(
    game:str|None, # what is played; a|b
    *more, # others
    seed:int=0, # of the draw
    **how,
)->bool: # was it won
    "Play `game`, once."

LEVELS = (1, 2) # of `play`
__all__ = ['Base', 'Made', 'play', 'LEVELS']
'''


def test_a_parameter_has_its_comment(tmp_path):
    m = made(CODE, tmp_path)
    given = parameters(m.defined['play'], m.comments)
    assert [(p.name, p.type, p.default, p.about) for p in given] == [('game', 'str | None', '', 'what is played; a|b'), ('*more', '', '', 'others'),
        ('seed', 'int', '0', 'of the draw'), ('**how', '', '', '')]
    assert m.comments[end_of_header(m.defined['play'])] == 'was it won'
    assert r'| `game` | `str \| None` |  | what is played; a\|b |' in table(given)
    assert table([Parameter('x', None, None, '')]) == '', 'nothing to say'


@pytest.mark.parametrize('code, seen', [('def f(a, *, b=1): pass', ['a', '*', 'b = 1']), ('def f(self, a, /, b): pass', ['a', 'b']), ('def f(*a, b): pass', ['*a', 'b']),
                                        ("def f(a:'X'=None): pass", ['a: X = None']), ('def f(): pass', [])])
def test_a_signature_says_what_is_given(code, seen): assert [*map(str, parameters(ast.parse(code).body[0], {}))] == seen


def test_a_comment_on_a_whole_header_is_about_what_comes_back(tmp_path):
    m = made('def f(a:int): # what comes\n    pass', tmp_path)
    assert [p.about for p in parameters(m.defined['f'], m.comments)] == [''] and end_of_header(m.defined['f']) == 1


def test_a_class_has_its_fields_and_methods(tmp_path):
    m = made(CODE, tmp_path)
    page = Reference([m]).page(m)
    assert '{py:class} Made(a: int, b: list[int] = list(), c: float = 0.5)' in page, 'fields of the base come first'
    for row in ('| `a` | `int` |  | the first |', '| `b` | `list[int]` | `list()` | the second |', '| `c` | `float` | `0.5` | the third |'): assert row in page
    assert '{py:property} width' in page and '`int`: D' in page and '{py:method} cut(part: Made) -> Made' in page and '_hidden' not in page
    assert '{py:data} LEVELS\nof `play`' in page and '{py:function} play(game: str | None, *more, seed: int = 0, **how) -> bool' in page


def test_an_option_says_what_it_is():
    assert vars(field_of(ast.parse("n:int = option(3, 'how many', '--count')").body[0], {})) == dict(name='n', type='int', default='3', about='how many')


def test_plain_words_are_no_markup(): assert prose('a *b* [c] <bop> `x_[0]` $1') == r'a \*b\* \[c\] \<bop\> `x_[0]` \$1'


def test_every_notebook_has_a_page_and_a_place_in_the_contents(site, pages):
    assert {room(p) for p in ALL} <= {*pages}
    led = {(Path(name).parent/entry).as_posix() for name, text in pages.items() for block in re.findall(r'```\{toctree\}\n(.*?)```', text, re.S)
           for entry in block.splitlines() if entry and not entry.startswith(':')}
    assert {room(p) for p in ALL} - {'index'} <= led
    assert {name for name in pages if 'orphan: true' not in pages[name]} - {'index'} == led


def test_the_order_is_of_the_house(site):
    names = [f.name for f in folders(ROOT/'nbs')]
    assert names[:len(FIRST)] == [*FIRST] and names[len(FIRST):] == sorted({p.parent.name for p in LIBRARY}) and len(site.wings) > 10


@pytest.mark.parametrize('path', LIBRARY, ids=room)
def test_every_name_of_a_room_is_described(path, site, pages):
    page, m = pages[f'api/{room(path)}'], site.modules[path]
    assert page.splitlines()[4] == f"# interlat.{module(path).removesuffix('.__init__')}"
    described = re.findall(r'\{py:(?:class|function|data)\} (\w+)', page)
    assert sorted(described) == sorted(n for n in m.names if n in m.defined)
    assert [n for n in m.names if n not in m.defined and f'.{n}`' not in page and f'`{n}`' not in page] == []


def test_lines_to_nbdev_are_on_no_page(pages): assert [name for name, text in pages.items() if re.search(r'^#\| ?\w', text, re.M)] == []


def test_pages_that_did_not_change_are_not_written_again(tmp_path):
    for part in ('nbs', 'interlat', 'data', 'figures'): (tmp_path/part).mkdir()
    for file in ('CONTRIBUTING.md', 'CHANGELOG.md'): shutil.copy(ROOT/file, tmp_path/file)
    shutil.copy(ROOT/'nbs'/'index.ipynb', tmp_path/'nbs')
    first = LIBRARY[0].relative_to(ROOT)
    code = Path('interlat', module(LIBRARY[0]).replace('.', '/') + '.py')
    for file in (first, code):
        (tmp_path/file).parent.mkdir()
        shutil.copy(ROOT/file, tmp_path/file)
    Site(tmp_path).write()
    page = tmp_path/'_proc'/f'{room(LIBRARY[0])}.md'
    then = page.stat().st_mtime_ns
    Site(tmp_path).write()
    assert page.stat().st_mtime_ns == then
    (tmp_path/first).unlink()
    Site(tmp_path).write()
    assert not page.exists() and (tmp_path/'_proc'/'index.md').exists()


@pytest.mark.skipif(not all(map(find_spec, ('sphinx', 'myst_parser', 'furo'))), reason='the site is built with the packages of `make docs`, which are not installed')
def test_a_small_site_is_built(tmp_path):
    "A front page, a room with a figure, and its names: what Sphinx makes of them."
    (tmp_path/'_proc').mkdir()
    spec = dict(data=[dict(y=[1, 2])], layout={})
    (tmp_path/'f.json').write_text(json.dumps(spec))
    shutil.copy(next((ROOT/'figures').rglob('*.png')), tmp_path/'f.png')
    m = made(CODE, tmp_path)
    front = '\n\n'.join(['# Home', '![a figure](../f.png)', '$$L_{task} + 1$$', *parts(cell('#| export\nx', dict(output_type='stream', text='fern')))])
    (tmp_path/'_proc'/'index.md').write_text(front + '\n\n```{toctree}\nnames\n```')
    (tmp_path/'_proc'/'names.md').write_text('# Names\n\n' + Reference([m]).page(m))
    told = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '-c', ROOT/'nbs'/'_site', tmp_path/'_proc', tmp_path/'_docs'], text=True, capture_output=True)
    assert told.returncode == 0, told.stderr
    index, names = [(tmp_path/'_docs'/f'{n}.html').read_text(encoding='utf-8') for n in ('index', 'names')]
    assert json.loads(re.search(r'class="figure">(.*?)</script>', index)[1]) == spec and 'alt="a figure"' in index
    assert '<i>L</i><sub>' in index and 'fern' in index and 'class="output' in index
    assert 'id="interlat.made.Made.cut"' in names and 'href="#interlat.made.Made"' in names
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', index + names), 'nothing comes from the network'
    assert (tmp_path/'_docs'/'_static'/'plotly.min.js').stat().st_size > 1e6
    search = (tmp_path/'_docs'/'searchindex.js').read_text(encoding='utf-8')
    assert '"fern"' in search and '"play"' in search
