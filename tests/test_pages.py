"Pages and documents: cells run, links lead somewhere, tests and targets that are named exist, and every command that is printed anywhere is one."
import argparse, re, shlex
from configparser import ConfigParser
from functools import cache
from importlib import import_module

import pytest
from notebooks import ALL, PAGES, ROOT, cells, room
from test_notebooks import test_notebook_runs as run_notebook_quietly

from interlat.core.basics import InterlatError

DOCUMENTS = [ROOT/name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
COMMAND = re.compile(r'(?:^|[\s/])(interlat-[a-z]+)(?=\s|$)')
ids = lambda p: p.stem


def prose(path):
    "A document's text, or that of a notebook's Markdown cells."
    if path.suffix == '.md': return path.read_text(encoding='utf-8')
    return '\n\n'.join(c['source'] for c in cells(path) if c['cell_type'] == 'markdown')


@pytest.mark.parametrize('path', PAGES, ids=ids)
def test_page_runs(path): run_notebook_quietly(path)


@pytest.mark.parametrize('path', PAGES, ids=ids)
def test_page_reads_like_one(path):
    first, *rest = cells(path)
    assert first['cell_type'] == 'markdown' and re.match(r'# \S.*\n\n> \S[^\n]*$', first['source'])
    assert [c['source'][:60] for c in rest if 'default_exp' in c['source'] or c['source'].startswith('#| export')] == [], 'a page exports nothing'


@pytest.mark.parametrize('path', [*DOCUMENTS, *PAGES], ids=ids)
def test_links_lead_somewhere(path):
    links = re.findall(r'\]\(([^)#\s]+)', prose(path))
    assert links and [x for x in links if not x.startswith('http') and not (path.parent/x).exists()] == []


@cache
def names_of(file):
    "The names of the tests in a file."
    return {*re.findall(r'^def (test_\w+)', file.read_text(encoding='utf-8'), re.M)}


@pytest.mark.parametrize('path', [*DOCUMENTS, *PAGES], ids=ids)
def test_tests_and_targets_that_are_named_exist(path):
    text, all_files = prose(path), [*(ROOT/'tests').glob('test_*.py')]
    for line in text.splitlines(): # a line that links to a file of tests names tests in it; any other may name any test
        files = [ROOT/f for f in re.findall(r'\]\(\S*?(tests/test_\w+\.py)\)', line)] or all_files
        known = set().union(*map(names_of, files))
        assert sorted(set(re.findall(r'`(test_\w+)`', line)) - known) == [], line[:200]
    targets = set(re.findall(r'^([a-z0-9]+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))
    assert sorted(set(re.findall(r'(?:^|`)make ([a-z0-9]+)', text, re.M)) - targets) == []


def printed(text):
    "(command, its words, whether it must be complete) for each command line: in a block of code, or in a line of text."
    blocks = re.findall(r'^ *```(\w*)\n(.*?)^ *```', text, re.M | re.S)
    lines = [(line, True) for language, b in blocks if language in ('', 'bash', 'sh') for line in b.replace('\\\n', ' ').splitlines()]
    plain = re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)
    lines += [(code, False) for code in re.findall(r'(?<!`)`([^`\n]+)`(?!`)', plain)]
    for line, whole in lines:
        if not (found := COMMAND.search(line)) or line.lstrip().startswith(('#', '--')): continue
        words = shlex.split(line[found.end():].rstrip().removesuffix('&'), comments=True)
        known = [w for w in words if w != '…' and not w.startswith('${')] # the rest is the reader's
        if known or whole: yield found[1], known, whole and known == words


@pytest.fixture
def command_line(monkeypatch):
    "A function that has a command read its words, and do no more; raises `InterlatError` as the command would."
    from transformers import HfArgumentParser
    class Read(Exception): pass
    def stopping(cls, name):
        original = getattr(cls, name)
        def wrapped(self, *args, **kwargs):
            found = original(self, *args, **kwargs)
            if kwargs.get('return_remaining_strings') and found[-1]: self.error(f"unknown arguments: {' '.join(found[-1])}")
            raise Read(found)
        monkeypatch.setattr(cls, name, wrapped)
    for cls, name in ((HfArgumentParser, 'parse_args_into_dataclasses'), (HfArgumentParser, 'parse_dict'), (argparse.ArgumentParser, 'parse_args')): stopping(cls, name)
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini')
    scripts = dict(line.split('=') for line in config['DEFAULT']['console_scripts'].split())
    def read(name, words):
        assert name in scripts, f'there is no command {name}'
        module, main = scripts[name].split(':')
        work = []
        monkeypatch.setattr(import_module(module), 'command', work.append)
        getattr(import_module(module), main)()
        try: work[0](list(words))
        except Read as e: return e.args[0]
        except SystemExit as e:
            assert '--help' in words and not e.code
    return read


def check_command(read, name, words, whole):
    "Raise `InterlatError`, or fail, for a command that would not start; one in a line of text may lack what it needs."
    if not whole and name != 'interlat-run' and words[0].startswith('--') and name in ('interlat-collect', 'interlat-eval'): words = ['alfworld', *words]
    if len(words) == 1 and words[0].endswith(('.yaml', '.json')): return # a file of the reader's own
    while True:
        try: found = read(name, words)
        except InterlatError as e:
            if not whole and (known := re.search(r"invalid choice: '1' \(choose from '?(\w+)", str(e))): # what was put in below
                words[words.index('1')] = known[1]
                continue
            missing = re.search(r'the following arguments are required: (.*?);', str(e)) or re.match(r'(\w+) is missing;', str(e))
            if whole or not missing: raise
            for flag in missing[1].split(', '): words = [*words, *((flag.split('/')[0], '1') if flag.startswith('-') else (f'--{flag}', '1') if 'missing' in missing[0] else (flag,))]
        else: break
    if notebook := getattr(found, 'notebook', None):
        if not notebook.endswith('.ipynb'): return
        from interlat.runs.parameters import check_parameters, read_parameters
        given = read_parameters(ROOT/found.f) if found.f and 'FILE' not in found.f else {}
        if (ROOT/notebook).exists() or whole: check_parameters(ROOT/notebook, given | dict(found.p))


@pytest.mark.parametrize('path', [*DOCUMENTS, *(p for p in ALL if p.name != 'index.ipynb')], ids=lambda p: p.stem if p in DOCUMENTS else room(p))
def test_commands_parse(path, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words, whole in printed(prose(path)):
        try: check_command(command_line, name, words, whole)
        except InterlatError as e: pytest.fail(f"{name} {' '.join(words)}\n{e}", pytrace=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_found(command_line):
    good = 'interlat-train --model_name_or_path m --output_dir o'
    (name, words, whole), = printed(f'```bash\n{good}\n```')
    check_command(command_line, name, words, whole)
    for text, said in ((f'```bash\n{good} --no_such_flag 1\n```', 'unknown arguments: --no_such_flag 1'), ('```bash\ninterlat-train --output_dir o\n```', 'required: --model_name_or_path'),
                       ('say `interlat-eval --varaints latent`', 'unknown arguments: --varaints'), (f'```bash\ntorchrun --no-python {good} --seed x\n```', "invalid int value: 'x'"),
                       ('`interlat-run nbs/experiments/E02_engine.ipynb -p n_gams 3`', 'has no parameter n_gams')):
        (command,) = printed(text)
        with pytest.raises(InterlatError, match=re.escape(said)): check_command(command_line, *command)
    with pytest.raises(AssertionError, match='no command interlat-tain'): check_command(command_line, *next(printed('`interlat-tain --seed 1`')))
    assert [*printed('see `interlat.instruments.page`, `interlat-train` and\n```python\nx = 1\n```\nand `interlat-train …`')] == []
