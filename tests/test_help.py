"What the commands say to --help: kept as their parsers say it, and there at once."
import re, subprocess, sys
from importlib.metadata import version

import pytest
from notebooks import ROOT

from interlat.commands.help import HELPED, HELPED_BY_KIND, spoken_help
from interlat.commands.sources import SOURCES
from interlat.core.arguments import kept_help
from interlat.core.basics import asset

COMMANDS = [*((name,) for name in HELPED), *((name, kind) for name in HELPED_BY_KIND for kind in SOURCES)]
RENEW = 'what --help says has changed, or transformers has: `make helptexts` keeps it anew'
SCRIPTS = dict(line.split('=') for line in (ROOT/'settings.ini').read_text(encoding='utf-8').split() if line.startswith('interlat-'))
PROGRAM = """
import atexit, sys
sys.argv[0] = {name!r}
atexit.register(lambda: print(*{{'torch', 'transformers', 'numpy', 'pandas', 'yaml'}} & {{*sys.modules}}, file=sys.stderr))
from {module} import {main}
{main}()
"""


def made_with(name): return asset('help', f'{name}.txt').read_text(encoding='utf-8').split('\n', 1)[0].split()[1]


here = pytest.mark.skipif(made_with('interlat-train') != version('transformers'), reason='the help is kept for another version of transformers; the parsers speak')


def test_help_is_kept_for_the_version_that_is_pinned():
    pins = re.findall(r'^transformers==([\d.]+)', (ROOT/'constraints.txt').read_text(encoding='utf-8'), re.M)
    assert {made_with(name) for name in (*HELPED, *HELPED_BY_KIND)} <= {*pins}, RENEW


def words(text):
    "To compare with: the text, or from Python 3.13 on, where a flag's value is named once, its words."
    return text if sys.version_info < (3, 13) else set(text.split())


@here
@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_kept_help_is_what_the_parser_says(command):
    name, *kind = command
    spoken = spoken_help(name, *kind)
    assert words(kept_help(name, [*kind, '--help'])) == words(kept_help(name, [*kind, '-h'])) == words(spoken), RENEW
    if kind == [*SOURCES][:1]: assert kept_help(name, ['--help']) == kept_help(name, [*kind, '--help']), 'the first kind, where none is named'


def test_each_command_has_its_file_and_no_other():
    assert {p.stem for p in asset('help').iterdir()} == {*HELPED, *HELPED_BY_KIND} == {*SCRIPTS} - {'interlat-run', 'interlat-check'}


@here
@pytest.mark.parametrize('name', [*HELPED, *HELPED_BY_KIND])
def test_help_imports_nothing_that_takes_seconds(name):
    "In a process of its own, as the installed program starts."
    module, main = SCRIPTS[name].split(':')
    program = [sys.executable, '-c', PROGRAM.format(name=name, module=module, main=main), '--help']
    done = subprocess.run(program, env={'PYTHONPATH': str(ROOT)}, text=True, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.split()) == (0, kept_help(name, ['--help']), [])


@here
def test_another_version_of_transformers_lets_the_parser_speak(monkeypatch):
    assert kept_help('interlat-train', ['--help']) and kept_help('interlat-games', ['-h'])
    monkeypatch.setattr('importlib.metadata.version', lambda name: '0.1')
    assert all(kept_help(name, [*kind, '--help']) == '' for name, *kind in COMMANDS)


@pytest.mark.parametrize('argv', [[], ['chess', '--help'], ['math'], ['--seed', '1', '--help'], ['--help', '--seed', '1'], ['math', '--seed=1', '-h'], ['a.yaml'], ['../x', '-h'], ['=== ', '--help'], ['\n', '--help']])
def test_only_a_plain_question_gets_the_kept_text(argv):
    assert kept_help('interlat-eval', argv) == '' and kept_help('python', ['--help']) == '' and kept_help('', ['--help']) == ''
