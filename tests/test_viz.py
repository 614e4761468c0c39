"Pictures on a machine without a browser, without a network, and with blanks in its paths."
import os, shutil, struct, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from notebooks import ROOT

from interlat.perturb import VARIANTS
from interlat.viz import CONDITIONS, effects_by_type, save_figure, success_by_ablation, success_by_condition, training_dynamics

SUMMARY = pd.DataFrame([dict(condition=c, n=10, successes=k, success_rate=k/10, ci_low=max(0, k/10 - .2), ci_high=min(1, k/10 + .2))
                        for k, c in enumerate(CONDITIONS)])


def size(png):
    "Width and height in the header of a PNG."
    return struct.unpack('>II', Path(png).read_bytes()[16:24])


def test_png_has_the_figure_at_twice_its_size(tmp_path):
    fig = success_by_condition(SUMMARY)
    _, png = save_figure(fig, tmp_path/'a'/'fig')
    assert size(png) == (2*860, 2*fig.layout.height) and png.stat().st_size > 20_000


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = ([f.read_bytes() for f in save_figure(success_by_condition(SUMMARY), tmp_path/name)] for name in 'ab')
    assert first == second


def test_png_without_browser_and_with_blanks_in_paths(tmp_path):
    kaleido = pytest.importorskip('kaleido')
    site = tmp_path/'with blanks'
    shutil.copytree(Path(kaleido.__file__).parent, site/'kaleido')
    code = "import sys; import plotly.graph_objects as go; from interlat.viz import save_figure; save_figure(go.Figure(go.Scatter(y=[1, 2])), sys.argv[1])"
    env = dict(os.environ, PYTHONPATH=f'{site}{os.pathsep}{ROOT}', PATH='/usr/bin:/bin', HTTPS_PROXY='http://127.0.0.1:9', HTTP_PROXY='http://127.0.0.1:9')
    subprocess.run([sys.executable, '-c', code, str(tmp_path/'out put'/'fig')], env=env, check=True, timeout=120)
    assert size(tmp_path/'out put'/'fig.png') == (1400, 1000)


def test_unknown_conditions_are_drawn_too():
    fig = success_by_condition(SUMMARY.assign(condition=[f'mine_{i}' for i in range(len(SUMMARY))]))
    assert len(fig.data) == len(SUMMARY)


def test_effects_are_drawn_from_the_table_as_it_is_written(tmp_path):
    "effects.csv read back with plain pandas: empty cells where a type had no game or no adjusted p."
    rows = [dict(effect=e, task_type=t, n=n, difference=d, ci_low=d and d - .2, ci_high=d and d + .2, p_value=p, p_holm=h)
            for e in ('presence', 'content') for t, n, d, p, h in (('all', 40, .3, .01, None), ('heat', 40, .2, .04, .04), ('pick', 0, None, 1, None))]
    pd.DataFrame(rows).to_csv(tmp_path/'effects.csv', index=False)
    fig = effects_by_type(pd.read_csv(tmp_path/'effects.csv'))
    assert [(t.xaxis, t.text) for t in fig.data] == [('x', '+30'), ('x', '+20'), ('x2', '+30'), ('x2', '+20')]
    _, png = save_figure(fig, tmp_path/'effects')
    assert size(png) == (2*fig.layout.width, 2*fig.layout.height)


def test_every_condition_has_its_words_and_colour():
    assert set(CONDITIONS) == {*VARIANTS, 'no_cot', 'cot_full'}


def test_many_conditions_have_one_line_each():
    few, many = success_by_condition(SUMMARY[:12]), success_by_condition(SUMMARY)
    assert all('<br>' in t.y[0] for t in few.data) and not any('<br>' in t.y[0] for t in many.data)
    assert many.layout.height == 120 + 30*len(CONDITIONS) and len({t.y[0] for t in many.data}) == len(CONDITIONS)


def runs(parts, seeds=(0,), ablations=('full',)):
    "A log of 40 steps in which every part goes from 1 to 0 (`separation`: from 0 to −1)."
    return pd.DataFrame([dict(ablation=a, seed=s, step=t, part=p, value=-t/40 if p == 'separation' else 1 - t/40)
                         for a in ablations for s in seeds for t in range(0, 41, 10) for p in parts])


@pytest.mark.parametrize('parts, panels', [(['loss'], 1), (['loss', 'task', 'separation', 'alignment'], 3), (['presence_gain'], 1),
                                           (['task', 'separation', 'alignment', 'content_gain', 'separation_weight', 'learning_rate'], 4)])
def test_a_panel_for_each_part_that_was_logged(parts, panels, tmp_path):
    fig = training_dynamics(runs(parts))
    assert len({t.xaxis for t in fig.data}) == panels
    _, png = save_figure(fig, tmp_path/'training')
    assert size(png) == (2*fig.layout.width, 2*fig.layout.height)


def test_dynamics_from_a_file_with_unknown_ablations(tmp_path):
    "logs.csv read back with plain pandas; the mean runs over the steps that all seeds logged."
    log = runs(['task', 'content_gain'], (0, 1), ('mine', 'yours'))
    log[(log.seed == 0) | (log.step < 40)].to_csv(tmp_path/'logs.csv', index=False)
    fig = training_dynamics(pd.read_csv(tmp_path/'logs.csv'))
    means = [t for t in fig.data if t.opacity == 1]
    assert [t.name for t in fig.data if t.showlegend] == ['mine', 'yours'] and len({t.line.color for t in fig.data}) == 2
    assert [list(t.x) for t in means] == [[0, 10, 20, 30]]*4 and max(len(t.x) for t in fig.data) == 5


def test_a_wrong_message_that_says_the_same_is_drawn_at_the_bottom():
    "JS may be 0, or below by rounding; a logarithmic axis would drop it."
    log = runs(['separation']).assign(value=[0., 1e-9, -1e-9, -.01, -.5])
    assert list(training_dynamics(log).data[0].y) == [1e-4, 1e-4, 1e-4, .01, .5]


def test_ablations_without_a_control_are_drawn():
    table = pd.DataFrame([dict(ablation=a, condition='latent', success_rate=r, ci_low=r - .1, ci_high=r + .1) for a, r in (('full', .9), ('mine', .5))])
    fig = success_by_ablation(table, table.assign(seed=0))
    assert [len(t.x) for t in fig.data] == [2, 2, 0, 0, 0, 0] and fig.layout.yaxis.ticktext[1] == '<b>mine</b>'
