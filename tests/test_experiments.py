"Every experiment runs with its default parameters, which are small enough for a minute on a CPU."
from importlib.util import find_spec

import pytest
from notebooks import EXPERIMENTS, ROOT, warm_kernels

from interlat.runs import notebook as room
from interlat.runs.notebook import run_notebook
from interlat.runs.parameters import notebook_parameters


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs_with_its_defaults(path, tmp_path, monkeypatch):
    if path.stem == 'E02_engine' and not find_spec('textworld'): pytest.skip('the stock engine is not installed: `make test` brings it')
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(room, '_kernel_manager', warm_kernels)
    figures = tmp_path/'figures' if 'figures' in notebook_parameters(path) else None
    manifest = run_notebook(path, {}, tmp_path/'run', figures)
    assert manifest['state'] == 'done' and manifest['stages'], 'an experiment times its stages'
    assert all(s['state'] == 'done' for s in manifest['stages'])


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_parameter_files_fit_their_notebook(path):
    from interlat.runs.parameters import check_parameters, read_parameters
    for file in path.parent.glob(f'{path.stem}*.yaml'): check_parameters(path, read_parameters(file))
