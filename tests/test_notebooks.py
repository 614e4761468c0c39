"Every library notebook, and the README's, runs from top to bottom, each in a process of its own, and what a notebook exports is what guests import."
import os, subprocess, sys
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from notebooks import LIBRARY, ROOT, room
from warm import warm

RUN = str(Path(__file__).parent/'as_exported.py')
COLD = '15_runs/01_provenance', '15_runs/03_notebook' # they measure the processes that they start


@pytest.mark.parametrize('path', [*LIBRARY, ROOT/'nbs'/'index.ipynb'], ids=room)
def test_notebook_runs(path):
    start = [sys.executable] if room(path) in COLD else warm()
    run = subprocess.run([*start, RUN, str(path)], cwd=path.parent,
                         env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True, capture_output=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_in_the_place_of_exported_cells_stands_the_module(tmp_path):
    "Exported cells that would fail are not run, and what they export is the module's own; a cell that fails is told."
    cells = '#| default_exp core.basics', '#| export\nraise RuntimeError', '#| export\nraise RuntimeError', 'assert set_seed.__module__ == "interlat.core.basics"'
    for more, status in ((), 0), (['assert not set_seed'], 1):
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in [*cells, *more]]), tmp_path/'nb.ipynb')
        run = subprocess.run([*warm(), RUN, str(tmp_path/'nb.ipynb')], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True, capture_output=True)
        assert run.returncode == status, run.stdout[-3000:] + run.stderr[-3000:]
