"A sweep that is killed, fails, is changed or is handed to a cluster; and what is gathered of it."
import signal, sys, time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from warm import warm_python
from browser import draws
from notebooks import ROOT, start_run, write_experiment

from interlat.core.basics import InterlatError
from interlat.runs.gather import gather
from interlat.runs.notebook import read_manifest
from interlat.runs.sweep import lay_out, point_name, read_sweep, run_pool, run_sweep, slots

SLOW = "import json, time\nfrom pathlib import Path\ntime.sleep({seconds})\nPath(out, 'metrics.json').write_text(json.dumps(dict(score=seed*lr, parts=dict(a=lr))))"


@pytest.fixture(autouse=True)
def runs_start_warm(request, monkeypatch):
    if 'cluster' not in request.node.name: monkeypatch.setattr(sys, 'executable', warm_python()) # submitit watches the processes that it starts


@pytest.fixture
def sweep_file(tmp_path):
    "Make a sweep of six runs of a small experiment."
    def make(body=SLOW.format(seconds=0), text='grid: {lr: [0.1, 0.2, 0.3], seed: [1, 2]}'):
        write_experiment(tmp_path/'E00_x.ipynb', body, "seed = 0\nlr = 0.1\nout = 'run'")
        (tmp_path/'sweep.yaml').write_text(f'notebook: E00_x.ipynb\n{text}\n')
        return tmp_path/'sweep.yaml'
    return make


def finished(out): return [p.parent.name for p in out.glob('*/manifest.json') if read_manifest(p.parent).get('state') == 'done']


def test_killed_half_way_and_started_again_it_finishes_only_the_rest(sweep_file, tmp_path):
    file, out = sweep_file(SLOW.format(seconds=1)), tmp_path/'out'
    first = start_run('sweep', file, '--out', out, '--jobs', '2', cwd=tmp_path)
    while len(finished(out)) < 2: assert first.poll() is None; time.sleep(.1)
    first.kill()
    first.communicate(timeout=60)
    done = {name: (out/name/'manifest.json').read_bytes() for name in finished(out)}
    assert 2 <= len(done) < 6 and first.returncode != 0
    second = start_run('sweep', file, '--out', out, '--jobs', '2', cwd=tmp_path)
    said, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert f'{len(done)} finished, {6 - len(done)} to run' in said and said.count(': done in') == 6 - len(done)
    assert all((out/name/'manifest.json').read_bytes() == raw for name, raw in done.items()) and len(finished(out)) == 6
    run_sweep(read_sweep(file), tmp_path/'whole', jobs=2)
    gather(tmp_path/'whole')
    assert (out/'results.csv').read_bytes() == (tmp_path/'whole'/'results.csv').read_bytes()
    assert len(pd.read_csv(out/'results.csv')) == 12
    raw, drawn = (out/'results.csv').read_bytes(), {f.suffix: f.read_bytes() for f in out.glob('results.*') if f.suffix != '.csv'}
    assert set(drawn) == {'.json', '.html', *(['.png'] if draws() else [])}
    third = start_run('gather', out, '--metric', 'parts/a', cwd=tmp_path) # again, with another number in the figure
    said, err = third.communicate(timeout=120)
    assert third.returncode == 0 and 'results.html: parts/a, by lr' in said, err
    assert (out/'results.csv').read_bytes() == raw and not any((out/f'results{suffix}').read_bytes() == old for suffix, old in drawn.items())


@pytest.mark.parametrize('blow', [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_sweep_takes_its_runs_along(sweep_file, tmp_path, blow):
    out = tmp_path/'out'
    process = start_run('sweep', sweep_file(SLOW.format(seconds=600), 'grid: {seed: [1]}'), '--out', out, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (out/'seed=1'/'stages.jsonl').exists() and read_manifest(out/'seed=1').get('state') != 'running': assert process.poll() is None; time.sleep(.1)
    time.sleep(2)
    process.send_signal(blow)
    process.communicate(timeout=60)
    end = time.time() + 60
    while read_manifest(out/'seed=1')['state'] == 'running' and time.time() < end: time.sleep(.2)
    assert process.returncode != 0 and read_manifest(out/'seed=1')['state'] == 'failed'


def test_a_failed_run_is_told_and_run_again(sweep_file, tmp_path):
    file = sweep_file(text='grid: {lr: [0.1, 0.3], seed: [2]}', body=f"from pathlib import Path\nif lr > .25 and seed == 2 and not (Path(out).parent.parent/'cure').exists(): 1/0\n{SLOW.format(seconds=0)}")
    for status, told in ((1, 'error: 1 of 2 runs are not done, lr=0.3,seed=2 the first'), (0, '')):
        process = start_run('sweep', file, '--out', tmp_path/'out', cwd=tmp_path)
        said, err = process.communicate(timeout=300)
        assert process.returncode == status and told in err
        assert len(pd.read_csv(tmp_path/'out'/'results.csv')) == (2 if status else 4)
        if status: assert 'lr=0.3,seed=2: failed: RunFailed: ZeroDivisionError: division by zero; see lr=0.3,seed=2/log.txt' in said
        (tmp_path/'cure').touch()
    assert '1 finished, 1 to run' in said


def test_more_runs_join_and_other_settings_do_not(sweep_file, tmp_path):
    run_sweep(read_sweep(sweep_file(text='grid: {lr: [0.1]}')), tmp_path/'out')
    states = run_sweep(read_sweep(sweep_file(text='grid: {lr: [0.1, 0.2]}')), tmp_path/'out')
    assert states.state.tolist() == ['done', 'done']
    with pytest.raises(InterlatError, match='holds a run with seed 0, this one has seed 5; choose another folder'):
        run_sweep(read_sweep(sweep_file(text='base: {seed: 5}\ngrid: {lr: [0.1]}')), tmp_path/'out')


def test_each_run_has_its_own_gpus_and_no_more_run_than_there_are(sweep_file, tmp_path):
    body = "import os, time\nfrom pathlib import Path\nstart = time.time(); time.sleep(.5)\nPath(out, 'seen').write_text(f\"{os.environ['CUDA_VISIBLE_DEVICES']} {start} {time.time()}\")"
    folders = lay_out(read_sweep(sweep_file(body, 'grid: {seed: [1, 2, 3, 4]}')), tmp_path/'out')
    ended = list(run_pool(folders, slots(gpus=['4', '5'])))
    assert sorted(ended) == sorted(folders)
    seen = [(f/'seen').read_text().split() for f in folders]
    for gpu in ('4', '5'):
        spans = sorted((float(a), float(b)) for g, a, b in seen if g == gpu)
        assert spans and all(b <= c for (_, b), (c, _) in zip(spans, spans[1:])), 'two runs on one GPU'


def test_a_cluster_gives_what_the_pool_gives(sweep_file, tmp_path):
    if not find_spec('submitit'): pytest.skip('needs submitit')
    file = sweep_file(text='grid: {lr: [0.1, 0.2]}\nslurm: {timeout_min: 5}')
    states = run_sweep(read_sweep(file), tmp_path/'cluster', 'local')
    assert states.state.tolist() == ['done', 'done'] and list((tmp_path/'cluster'/'submitit').glob('*.out'))
    run_sweep(read_sweep(file), tmp_path/'pool')
    assert gather(tmp_path/'cluster').equals(gather(tmp_path/'pool'))
    assert 'nothing' not in states.error.tolist() and run_sweep(read_sweep(file), tmp_path/'cluster', 'local').equals(states) # nothing is run twice


def test_what_a_cluster_does_not_know_is_one_line(sweep_file, tmp_path):
    if not find_spec('submitit'): pytest.skip('needs submitit')
    with pytest.raises(InterlatError, match="cluster 'local' takes no runs"):
        run_sweep(read_sweep(sweep_file(text='grid: {lr: [0.1]}\nslurm: {flavour: 5}')), tmp_path/'out', 'local')


def test_the_sweep_that_comes_along_is_one():
    sweep = read_sweep(ROOT/'nbs'/'experiments'/'E01_sweep.yaml')
    assert len(sweep) == 6 and sweep.varied == ['sender', 'seed']


def test_every_file_that_a_command_names_is_there():
    "In README and pages: notebooks, parameter files and sweeps."
    import re
    text = '\n'.join(p.read_text(encoding='utf-8') for p in (ROOT/'README.md', ROOT/'CONTRIBUTING.md', *(ROOT/'nbs'/'pages').glob('*.ipynb')))
    named = set(re.findall(r'nbs/experiments/[\w.-]+\.(?:ipynb|yaml)', text))
    assert len(named) > 10 and [n for n in named if not (ROOT/n).exists()] == []


def test_names_of_runs_are_theirs_alone():
    points = [dict(a=a, b=b) for a in ('x', 'x/y', 'x y', 'x'*300, 'x'*301) for b in (1, None, [1, 2])]
    names = [point_name(p) for p in points]
    assert len(set(names)) == len(names) and all(Path(n).name == n and len(n) < 120 for n in names)
