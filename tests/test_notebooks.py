"Every library notebook, and the README's, runs from top to bottom, each in a process of its own, and what a notebook exports is what guests import."
import os, subprocess, sys
from pathlib import Path

import pytest
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
