"Pictures on a machine without a browser, without a network, and with blanks in its paths."
import os, shutil, struct, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from notebooks import ROOT

from interlat.perturb import VARIANTS
from interlat.viz import CONDITIONS, effects_by_type, save_figure, success_by_condition

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
    assert many.layout.height < 1000 and len({t.y[0] for t in many.data}) == len(CONDITIONS)
