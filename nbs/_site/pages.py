"A notebook as a page: what a reader needs of it, as Markdown for Sphinx (MyST). Nothing is run."
import json, re
from functools import cache
from os.path import relpath
from pathlib import Path

DIRECTIVE = re.compile(r'^#\|\s*(\w+).*\n?', re.M) # a line to nbdev, e.g. `#| export`


def fenced(
    kind, # what follows the backticks: a language, or a directive in braces
    text, # what stands inside, fences of its own included
):
    "A block that nothing in `text` can close."
    longest = max(map(len, re.findall(r'`{3,}', text)), default=2)
    marks = '`'*(longest + 1)
    return f'{marks}{kind}\n{text}\n{marks}'


def figure(
    spec, # of a Plotly figure: `{'data': …, 'layout': …}`
):
    "What `static/figures.js` draws."
    text = json.dumps(spec, ensure_ascii=False, separators=(',', ':'))
    return '<script type="application/json" class="figure">' + text.replace('</', '<\\/') + '</script>'


def html(text): return fenced('{raw} html', text)


DRAWN = { # kind of output -> its Markdown; the first that an output has is shown
    'application/vnd.plotly.v1+json': lambda spec: html(figure(spec)),
    'text/html': html,
    'text/markdown': lambda text: text,
    'text/plain': lambda text: fenced('text', text)}


def joined(text): return ''.join(text) if isinstance(text, list) else text # a notebook has a text as its lines


def shown(output):
    "The Markdown of one output of a cell."
    data = {'text/plain': output['text']} if output['output_type'] == 'stream' else output['data']
    kind = next(kind for kind in DRAWN if kind in data)
    return fenced('{container} output', DRAWN[kind](joined(data[kind]).rstrip('\n') if kind.startswith('text') else data[kind]))


def parts(cell):
    "What a reader is shown of a cell: nothing if it is hidden, never a line to nbdev."
    source = joined(cell['source'])
    if cell['cell_type'] == 'markdown': return [source]
    if cell['cell_type'] != 'code' or {'hide', 'default_exp'} & {*DIRECTIVE.findall(source)}: return []
    code = '' if 'hide_input' in cell['metadata'].get('tags', ()) else DIRECTIVE.sub('', source).strip('\n')
    return [*([fenced('python', code)] if code else []), *map(shown, cell['outputs'])]


@cache
def read(path):
    "The cells of a notebook."
    return json.loads(Path(path).read_text(encoding='utf-8'))['cells']


def heading(path):
    "What a notebook begins with: its title, and the line below it in plain words ('' if it has none)."
    opening = next(joined(c['source']) for c in read(path) if c['cell_type'] == 'markdown')
    title, line = re.match(r'# ([^\n]+)(?:\n+> ([^\n]+))?', opening).groups('')
    return title, re.sub(r'\[([^\]]+)\]\([^)]+\)', r'\1', line) # without its links


def module(path):
    "The module that a notebook is the source of, e.g. 'games.engine'; None if it is of none."
    found = re.match(r'#\| default_exp ([\w.]+)', joined(read(path)[0]['source']))
    return found and found[1]


AS_IT_IS = r'^(?P<fence>`{3,})(?!`|\{container\}).*?^(?P=fence)|(?<!`)`[^`\n]+`(?!`)' # code, where no link is followed; an output in a container is text


def relink(
    text, # Markdown
    place, # folder that its links start from
    page, # where the page will lie, from the top of the site
    known, # file or folder -> its page, from the top of the site
    top, # folder of the site's pages
    elsewhere, # address of the repository's files, for folders that the site does not have
):
    "`text` with each link to what the site has made into one to its page; other files come along as they are."
    def led(m):
        target, mark, anchor = m['target'].partition('#')
        if not m['target'] or not target or re.match(r'\w+:', target): return m[0]
        path = (place/target).resolve()
        if path in known: to = relpath(top/f'{known[path]}.md', (top/page).parent)
        elif path.is_dir(): to = f"{elsewhere}/{relpath(path, top.parent)}"
        else: to = relpath(path, (top/page).parent)
        return f"]({to}{mark}{anchor})"
    return re.sub(AS_IT_IS + r'|\]\((?P<target>[^)\s]+)\)', lambda m: led(m) if m['target'] else m[0], text, flags=re.M | re.S)
