"Reading the repository's notebooks, and making and running small ones, for the tests."
import json, os, re, subprocess
from pathlib import Path

from warm import warm

from interlat.runs.notebook import _kernel_manager

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT/'nbs').glob('[0-9]*/*.ipynb'))
EXPERIMENTS = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))
TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('T*.ipynb'))
PAGES = sorted((ROOT/'nbs'/'pages').glob('*.ipynb'))
ALL = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def cells(path):
    "The notebook's cells, each with its source as one string."
    return [dict(c, source=''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def module(path):
    "Name of the module that a library notebook exports: `'games.engine'`."
    m = re.match(r'#\| default_exp ([\w.]+)\s*$', cells(path)[0]['source'])
    return m and m[1]


def room(path):
    "What orders the notebooks, and names one: `'03_games/02_engine'`."
    return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()


def warm_kernels():
    "A kernel manager class for papermill and nbclient whose kernels need not import what is slow to import."
    manager = _kernel_manager()
    manager.kernel_spec.argv[:1] = warm()
    return manager


def write_experiment(path, body, params="seed = 0\nout = 'run'", kernel='python3'):
    "An experiment of two cells: its parameters, and what it does."
    import nbformat.v4 as nbf
    cells = [nbf.new_code_cell(params, metadata=dict(tags=['parameters'])), nbf.new_code_cell(body)]
    path.write_text(json.dumps(nbf.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name=kernel, display_name=kernel, language='python')))))
    return path


def start_run(*args, cwd, stderr=subprocess.PIPE, **how):
    "`interlat-run` with these words, in a process of its own."
    code = 'from interlat.runs.cli import main_run; main_run()'
    return subprocess.Popen([*warm(), '-c', code, *map(str, args)], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=stderr, env=dict(os.environ, PYTHONPATH=str(ROOT)), **how)
