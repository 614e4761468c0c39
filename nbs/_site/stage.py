"""Write what Sphinx makes the site from: a page for each notebook and for the names of each module, and the table of contents.

`make docs` runs it. All is taken from the files that there are: a new notebook, room or wing is a new page."""
import json
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from api import Module, Reference
from pages import heading, module, parts, read, relink

ROOT = Path(__file__).resolve().parents[2]
FIRST = 'tutorials', 'pages', 'experiments' # folders before the wings
ALSO = dict(contributing='CONTRIBUTING.md', changelog='CHANGELOG.md') # pages that are no notebooks


@cache
def settings():
    "What `settings.ini` says."
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def folders(
    nbs, # folder of the notebooks
):
    "The folders that hold notebooks: those to begin with, then the wings by their numbers."
    found = {p.parent for p in nbs.glob('[!._]*/*.ipynb')}
    return sorted(found, key=lambda p: (FIRST.index(p.name) if p.name in FIRST else len(FIRST), p.name))


def rooms(folder): return sorted(folder.glob('*.ipynb'))


def title(folder): return folder.name.replace('_', ' · ', 1) if folder.name[0].isdigit() else folder.name.capitalize()


def contents(entries, caption='', hidden=True):
    "A part of the table of contents; it stands on the page too if it is not hidden."
    options = [f':caption: {caption}'] if caption else []
    return '\n'.join(['```{toctree}', *options, ':titlesonly:', *([':hidden:'] if hidden else []), '', *entries, '```'])


class Site:
    "The pages by name, as Markdown."
    def __init__(self,
        root=ROOT, # of the repository
    ):
        self.root, self.nbs, self.top = root, root/'nbs', root/'_proc'
        self.folders = folders(self.nbs)
        self.wings = [f for f in self.folders if f.name not in FIRST]
        self.notebooks = [n for f in self.folders for n in rooms(f)]
        self.names = {n: module(n) for n in self.notebooks if module(n)}
        self.modules = {n: self.module(name) for n, name in self.names.items()}
        self.reference = Reference([*self.modules.values()])
        self.known = self.places()

    def module(self, name): return Module(f'interlat.{name}'.removesuffix('.__init__'), self.root/'interlat'/f"{name.replace('.', '/')}.py")

    def docname(self, path): return path.relative_to(self.nbs).with_suffix('').as_posix()

    def places(self):
        "Which page a link to a file or a folder leads to."
        known = {n: self.docname(n) for n in self.notebooks}
        known |= {f: f'{f.name}/index' for f in self.folders}
        known |= {self.root/file: name for name, file in ALSO.items()}
        known |= {p: 'index' for p in (self.nbs, self.nbs/'index.ipynb', self.root/'README.md')}
        known |= {self.root/'interlat': 'api/index'}
        return known | {Path(self.root/'interlat'/f"{name.replace('.', '/')}.py"): self.api(n) for n, name in self.names.items()}

    def api(self, notebook): return f'api/{self.docname(notebook)}'

    def linked(self, text, place, page):
        return relink(text, place, page, self.known, self.top, f"{settings()['git_url']}/tree/{settings()['branch']}")

    def pages(self):
        "Every page: name -> Markdown."
        found = {name: self.linked((self.root/file).read_text(encoding='utf-8'), self.root, name) for name, file in ALSO.items()}
        found |= {self.docname(n): self.notebook(n) for n in [self.nbs/'index.ipynb', *self.notebooks]}
        found |= {f'{f.name}/index': self.folder(f) for f in self.folders}
        found |= {self.api(n): self.names_page(n) for n in self.names}
        found |= {f'api/{w.name}/index': self.api_wing(w) for w in self.wings}
        found['index'] += '\n\n' + self.table_of_contents()
        return found | {'api/index': self.api_index()}

    def table_of_contents(self):
        begin = [f'{f.name}/index' for f in self.folders if f not in self.wings]
        return '\n\n'.join([contents(begin, 'Read'), contents([f'{w.name}/index' for w in self.wings], 'The wings'),
                            contents(['api/index', *ALSO], 'Look up')])

    def notebook(self, path):
        "A notebook's page. Under the title of a room stands its module, at the end of an experiment what a run of it left."
        name = self.docname(path)
        texts = [self.linked(text, path.parent, name) for cell in read(path) for text in parts(cell)]
        if path in self.names:
            module = self.modules[path].name
            texts.insert(1, f'{{.room}}\n`{module}` · [API](/{self.api(path)}.md) · `nbs/{name}.ipynb`')
        return '\n\n'.join(texts) + self.kept_figures(path)

    def kept_figures(self, path):
        "The figures of the runs of an experiment that are kept."
        runs = [m.parent.name for m in sorted((self.root/'data').glob('*/manifest.json'))
                if Path(json.loads(m.read_text(encoding='utf-8')).get('notebook', '')).name == path.name]
        up = '../'*len(Path(self.docname(path)).parts)
        shown = []
        for run in runs:
            figures = sorted((self.root/'figures'/run).glob('*.png'))
            if not figures: continue
            drawn = [f"![{f.stem.replace('_', ' ')}]({up}figures/{run}/{f.name})" for f in figures]
            shown += [f'## Figures of the run that is kept as `{run}`', f'[its manifest]({up}data/{run}/manifest.json)', *drawn]
        return ''.join(f'\n\n{text}' for text in shown)

    def folder(self, path):
        "The page of a folder: its notebooks, a line each."
        lines = [f'- [{name}]({n.stem}.md): {line}' for n in rooms(path) for name, line in [heading(n)]]
        return '\n\n'.join([f'# {title(path)}', '\n'.join(lines), contents([n.stem for n in rooms(path)])])

    def names_page(self, path):
        "The page of the names of a room. It is in no table of contents: a hundred more entries would stand on every page."
        m, (name, line), wing = self.modules[path], heading(path), path.parent
        above = f'[API by wing](/api/index.md) › [{title(wing)}](/api/{wing.name}/index.md) · the room: [{name}](/{self.known[path]}.md)'
        return '\n\n'.join(['---\norphan: true\n---', f'# {m.name}', f'{{.room}}\n{above}', f'> {line}', self.reference.page(m)])

    def api_wing(self, wing):
        "The page of a wing's modules, with their names."
        found = [(n.stem, self.modules[n]) for n in rooms(wing) if n in self.names]
        lines = [f'- [{m.name}]({page}.md): ' + ', '.join(self.reference.link(name, m) for name in m.names) for page, m in found]
        return '\n\n'.join([f'# {title(wing)}: API', '\n'.join(lines)])

    def api_index(self):
        "The page of all modules."
        def line(n): return f'- [{self.modules[n].name}]({n.parent.name}/{n.stem}.md): {heading(n)[1]}'
        parts = [f'## [{title(w)}]({w.name}/index.md)\n\n' + '\n'.join(line(n) for n in rooms(w) if n in self.names) for w in self.wings]
        return '\n\n'.join(['# API by wing', *parts, contents([f'{w.name}/index' for w in self.wings])])

    def write(self):
        "Write the pages that have changed, so that Sphinx makes only those again, and remove those that are gone."
        pages = {self.top/f'{name}.md': text for name, text in self.pages().items()}
        for path, text in pages.items():
            if path.exists() and path.read_text(encoding='utf-8') == text: continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
        for path in {*self.top.rglob('*.md')} - {*pages}: path.unlink()


if __name__ == '__main__': Site().write()
