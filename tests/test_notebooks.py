"Every library notebook, and the README's, runs from top to bottom, each in a process of its own."
import os, subprocess, sys

import pytest
from notebooks import LIBRARY, ROOT, room
from warm import warm

RUN = 'import sys; from pathlib import Path; from nbdev.test import test_nb; ok, _ = test_nb(Path(sys.argv[1]), skip_flags=["slow", "gpu", "net"]); sys.exit(not ok)'
COLD = '15_runs/01_provenance', '15_runs/03_notebook' # they measure the processes that they start


@pytest.mark.parametrize('path', [*LIBRARY, ROOT/'nbs'/'index.ipynb'], ids=room)
def test_notebook_runs(path):
    start = [sys.executable] if room(path) in COLD else warm()
    run = subprocess.run([*start, '-c', RUN, str(path)], cwd=path.parent,
                         env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True, capture_output=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
