"What a run leaves behind when it is killed, fails or is run twice, and whose kernel it uses."
import json, signal, subprocess, sys, time

import pytest
from warm import warm_python
from notebooks import start_run, write_experiment

from interlat.core.basics import InterlatError
from interlat.runs.notebook import RunFailed, run_notebook
from interlat.runs.parameters import check_parameters


COLD = 'test_the_kernel_is_this_python_whatever_is_registered', 'test_the_trainer_draws_a_plain_bar_too' # they ask how the kernel starts


@pytest.fixture(autouse=True)
def kernels_start_warm(request, monkeypatch):
    if request.node.name not in COLD: monkeypatch.setattr(sys, 'executable', warm_python())


@pytest.fixture
def experiment(tmp_path):
    "Make an experiment notebook with the given body."
    def make(body, params="seed = 0\nout = 'run'", kernel='python3'):
        return write_experiment(tmp_path/'E00_x.ipynb', body, params, kernel)
    return make


def test_the_kernel_is_this_python_whatever_is_registered(experiment, tmp_path, monkeypatch):
    spec = tmp_path/'jupyter'/'kernels'/'python3'
    spec.mkdir(parents=True)
    (spec/'kernel.json').write_text(json.dumps(dict(argv=['false'], display_name='trap', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    code = "import sys; from pathlib import Path; Path(out, 'python.txt').write_text(sys.executable)"
    run_notebook(experiment(code, kernel='somebody-elses'), {}, tmp_path/'run')
    assert (tmp_path/'run'/'python.txt').read_text() == sys.executable


def test_progress_bars_reach_the_terminal(experiment, tmp_path, capfd):
    run_notebook(experiment("from tqdm.auto import tqdm\nfor _ in tqdm(range(3), 'steps'): pass\nprint('the end')"), {}, tmp_path/'run')
    seen = capfd.readouterr()
    assert 'steps: 100%' in seen.err and '3/3' in seen.err and 'the end' in seen.out
    bars = ''.join(''.join(o['text']) for c in json.loads((tmp_path/'run'/'E00_x.ipynb').read_text())['cells'] for o in c.get('outputs', []) if o['name'] == 'stderr')
    assert bars.count('steps:') == 1 and 'steps: 100%' in bars # the copy keeps a bar as it was at the end


def test_the_trainer_draws_a_plain_bar_too(experiment, tmp_path):
    body = "from pathlib import Path; from transformers.trainer import DEFAULT_PROGRESS_CALLBACK as c; Path(out, 'bar.txt').write_text(c.__name__)"
    run_notebook(experiment(body), {}, tmp_path/'run')
    assert (tmp_path/'run'/'bar.txt').read_text() == 'ProgressCallback'


def test_a_second_run_starts_its_stages_afresh(experiment, tmp_path):
    path = experiment("from interlat.runs.notebook import stage\nwith stage(out, 'one'): pass")
    for _ in range(2): manifest = run_notebook(path, {}, tmp_path/'run')
    assert [s['stage'] for s in manifest['stages']] == ['one']


def test_a_kernel_that_is_through_is_not_interrupted(experiment, tmp_path, monkeypatch):
    """Jupyter sends it a Ctrl-C first; one that is still putting its last answer away then calls that an error.
    One kernel in forty of ipykernel 7.4.0 hangs at its end (its output is closed as it sends the last of it), and has to be ended: not three of three."""
    from jupyter_client.provisioning import LocalProvisioner
    send_signal = LocalProvisioner.send_signal
    def ends_by_itself(run):
        sent = []
        async def send(self, number): sent.append(number); await send_signal(self, number)
        monkeypatch.setattr(LocalProvisioner, 'send_signal', send)
        assert run_notebook(experiment("print('the end')"), {}, tmp_path/run)['state'] == 'done'
        return not sent
    assert any(ends_by_itself(run) for run in 'abc')


def test_a_failure_keeps_the_copy_and_the_stages(experiment, tmp_path):
    with pytest.raises(RunFailed, match='KeyError.*nowhere.*E00_x.ipynb'):
        run_notebook(experiment("print('so far')\n{}['nowhere']"), {}, tmp_path/'run')
    assert 'so far' in (tmp_path/'run'/'E00_x.ipynb').read_text()
    assert json.loads((tmp_path/'run'/'manifest.json').read_text())['state'] == 'failed'


def test_a_cell_of_many_kinds_runs(experiment, tmp_path):
    "The kernel evaluates the annotations; a file of an editor that names no kernel, and no cell; in a folder with brackets."
    cell = "from typing import Literal\nwidth: int | None = None\nmode: Literal['a', 'b'] = 'a'\nprompt = \"solve x = 1\"\na = 1; b = 2\nshape = (1, 2)\nout = 'run'"
    path = experiment("import json; from pathlib import Path; Path(out, 'seen.json').write_text(json.dumps([width, mode, prompt, a, b, shape]))", cell)
    nb = json.loads(path.read_text())
    path.write_text(json.dumps(dict(nb, metadata={}, nbformat_minor=4, cells=[{k: v for k, v in c.items() if k != 'id'} for c in nb['cells']])))
    out = tmp_path/'a {run}'
    for _ in range(2): manifest = run_notebook(path, dict(width='010', mode='b', shape='[3, 4]'), out) # the same parameters as JSON has them
    assert json.loads((out/'seen.json').read_text()) == [10, 'b', 'solve x = 1', 1, 2, [3, 4]] and manifest['parameters']['shape'] == (3, 4)
    assert json.loads((out/'E00_x.ipynb').read_text())['metadata']['kernelspec']['language'] == 'python'
    again = run_notebook(out/'E00_x.ipynb', dict(mode='a'), tmp_path/'again') # an executed copy is an experiment too
    assert again['parameters']['mode'] == 'a' and json.loads((tmp_path/'again'/'seen.json').read_text())[0] is None


def test_parameters_must_be_literals(experiment):
    with pytest.raises(InterlatError, match='must be literals'): check_parameters(experiment('1', 'seed = 1 + len([])'), {})


def test_command_line(experiment, tmp_path):
    path = experiment("print('seed', seed)")
    done = start_run(path, '-p', 'seed', '7', '--out', tmp_path/'run', cwd=tmp_path)
    said, _ = done.communicate()
    assert done.returncode == 0 and 'seed 7' in said and 'manifest.json' in said
    assert json.loads((tmp_path/'run'/'manifest.json').read_text())['parameters']['seed'] == 7


def test_command_line_reports_a_failed_notebook_in_one_line(experiment, tmp_path):
    failed = start_run(experiment('1/0'), '--out', tmp_path/'run', cwd=tmp_path)
    _, err = failed.communicate()
    assert failed.returncode == 1
    assert err.strip().splitlines()[-1].startswith('error: ZeroDivisionError: division by zero')


def test_an_interrupted_run_says_so(experiment, tmp_path):
    path = experiment("import time\nfrom pathlib import Path\nfrom interlat.runs.notebook import stage\nwith stage(out, 'sleep'):\n    Path(out, 'started').touch()\n    time.sleep(60)")
    ctrl_c_works = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # a background job of a shell ignores it
    process = start_run(path, '--out', tmp_path/'run', cwd=tmp_path, stderr=subprocess.STDOUT, preexec_fn=ctrl_c_works)
    while not (tmp_path/'run'/'started').exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    manifest = json.loads((tmp_path/'run'/'manifest.json').read_text())
    assert manifest['state'] == 'failed' and [(s['stage'], s['state']) for s in manifest['stages']] == [('sleep', 'failed')] # the cell was interrupted, not killed


def test_a_recipe_with_the_old_name_of_a_condition_is_refused_and_a_run_that_was_begun_with_it_goes_on(experiment, tmp_path):
    from interlat.runs.notebook import plan_run
    notebook, run = experiment("pass", "conditions = ['latent']\nout = 'run'"), tmp_path/'run'
    for given in (['latent', 'self_message'], '[latent, self_message]'):
        with pytest.raises(InterlatError, match="^condition 'self_message' is 'same_type' now"): plan_run(notebook, dict(conditions=given), run)
    plan = plan_run(notebook, dict(conditions=['latent', 'same_type']), run)
    run.mkdir()
    (run/'manifest.json').write_text(json.dumps(plan).replace('same_type', 'self_message'))
    assert plan_run(notebook, dict(conditions=['latent', 'same_type']), run) == plan
    with pytest.raises(InterlatError, match='holds a run with conditions'): plan_run(notebook, dict(conditions=['same_type']), run)
