"Pictures on a machine without a browser or with one that never answers, without a network, and with blanks in its paths."
import math, os, shutil, struct, subprocess, sys, tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import pytest
from browser import draws
from notebooks import ROOT

from interlat.core.basics import InterlatError
from interlat.messages.perturb import VARIANTS
from interlat.figures import look as look_room
from interlat.figures.look import DARK, GREY, PALETTE, in_dark, look, save_figure
from interlat.figures.labels import CONDITIONS
from interlat.figures.results import effects_by_type, success_by_ablation, success_by_condition, training_dynamics
from interlat.figures.tradeoff import FAMILIES, rate_distortion

SUMMARY = pd.DataFrame([dict(condition=c, n=10, successes=k, success_rate=k/10, ci_low=max(0, k/10 - .2), ci_high=min(1, k/10 + .2))
                        for k, c in enumerate(CONDITIONS)])


def size(png):
    "Width and height in the header of a PNG."
    return struct.unpack('>II', Path(png).read_bytes()[16:24])


def png_of(files):
    "The PNG among the files of a figure; there has to be one where there is a browser."
    assert [f.suffix for f in files] == ['.json', '.html', *(['.png'] if draws() else [])]
    if not draws(): pytest.skip('no browser here: figures are kept without PNGs')
    return files[2]


@pytest.mark.parametrize('does, why', [('sleep 600 & exec sleep 600', 'the browser has not answered in 1 s'), ('exit 3', 'the browser has ended'), (None, 'no browser was found')])
def test_a_browser_that_is_none_costs_a_line_and_no_run(does, why, tmp_path, monkeypatch, caplog):
    "One that never answers is ended with all that it has started, and none is asked again."
    browser = tmp_path/'chrome'
    if does: browser.write_text(f'#!/bin/sh\necho $$ >> "{tmp_path}/started"\n{does}\n'); browser.chmod(0o755)
    monkeypatch.setenv('BROWSER_PATH', str(browser))
    painter = look_room._Painter()
    monkeypatch.setattr(look_room, '_painter', lambda: painter)
    assert painter.png(go.Figure(), 1, patience=1 if 'sleep' in str(does) else 60) is None
    assert [r.getMessage() for r in caplog.records if r.name == 'interlat'] == [f'figures are kept as pages and data, without PNGs: {why}; {look_room._HOW}']
    (tmp_path/'fig.png').write_bytes(b'of other numbers')
    files = save_figure(success_by_condition(SUMMARY), tmp_path/'fig')
    assert [f.name for f in files] == ['fig.json', 'fig.html'] and not (tmp_path/'fig.png').exists() and len(caplog.records) == 1
    if does: assert not any(psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE for pid in (tmp_path/'started').read_text().split())


def test_png_has_the_figure_at_twice_its_size(tmp_path):
    fig = success_by_condition(SUMMARY)
    png = png_of(save_figure(fig, tmp_path/'a'/'fig'))
    assert size(png) == (2*860, 2*fig.layout.height) and png.stat().st_size > 20_000


def test_the_same_figure_gives_the_same_files(tmp_path):
    first, second = ([f.read_bytes() for f in save_figure(success_by_condition(SUMMARY), tmp_path/name)] for name in 'ab')
    assert first == second


def test_png_without_a_network_and_with_blanks_in_paths(tmp_path):
    "In a process of its own, which takes its browser along when it ends."
    site = tmp_path/'with blanks'
    for name in ('kaleido', 'choreographer'): shutil.copytree(Path(import_module(name).__file__).parent, site/name)
    code = "import sys; import plotly.graph_objects as go; from interlat.figures.results import save_figure; save_figure(go.Figure(go.Scatter(y=[1, 2])), sys.argv[1])"
    path = os.pathsep.join(map(str, (site, ROOT, Path(import_module('logistro').__file__).parents[1])))
    with tempfile.TemporaryDirectory(prefix='a b ') as room: # not in `tmp_path`: a browser ends where the path of its socket is longer than 107 letters
        env = dict(os.environ, PYTHONPATH=path, TMPDIR=room, HTTPS_PROXY='http://127.0.0.1:9', HTTP_PROXY='http://127.0.0.1:9')
        subprocess.run([sys.executable, '-c', code, str(tmp_path/'out put'/'fig')], env=env, check=True, timeout=120)
        assert os.listdir(room) == [] and not any(room in ' '.join(p.info['cmdline'] or []) for p in psutil.process_iter(['cmdline']))
    if draws(): assert size(tmp_path/'out put'/'fig.png') == (1400, 1000)


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
    png = png_of(save_figure(fig, tmp_path/'effects'))
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
    png = png_of(save_figure(fig, tmp_path/'training'))
    assert size(png) == (2*fig.layout.width, 2*fig.layout.height)


@pytest.mark.parametrize('parts, drawn', [
    (['loss', 'ce', 'preference', 'direction', 'grad_norm', 'learning_rate', 'eval_loss', 'eval_kept'], None), (['ce'], None), ([f'part {i}' for i in range(25)], None),
    (['grad_norm', 'learning_rate'], None), (['loss', 'grad_norm', 'learning_rate', 'eval_loss'], ['next token of the expert']), (['ce', 'task'], ['next token of the expert'])])
def test_parts_of_another_training_have_panels_of_their_own(parts, drawn, tmp_path):
    "A log that has nothing but what is logged in any training is an actor's: its loss is the task's."
    log = runs(parts, (0, 1), ('full', 'mine'))
    fig = training_dynamics(log)
    assert [a.text for a in fig.layout.annotations] == (drawn or parts)
    panel = fig.data[:len(fig.data)//len(drawn or parts)]
    assert all(list(t.y) == [1, .75, .5, .25, 0] for t in fig.data) and len(panel) == 6 and [t.name for t in fig.data if t.showlegend] == ['full', 'mine']
    png = png_of(save_figure(fig, tmp_path/'training', scale=1))
    assert size(png) == (fig.layout.width, fig.layout.height)


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


def sent(family, label, bytes, rate, ce): return dict(family=family, label=label, bytes=bytes, success_rate=rate, ci_low=rate - .1, ci_high=rate + .1, ce=ce)
SENT = pd.DataFrame([sent('trained', 'trained 1', 100, .5, .5), sent('truncated', 'first 1', 100, .5, .7), sent('mean-pooled', 'pool 1', 100, .3, .6), sent('mine', 'mine', 400, .45, math.nan),
                     sent('yours', 'yours', 900, .8, .2), sent('full', 'full', 1600, .8, .2), sent('none', 'nothing', 0, .4, .45), sent('none', 'less', 0, .4, .9)])


def front(fig): return [(list(t.x), list(t.y)) for t in fig.data if t.name == 'Pareto front']


def test_fronts_go_through_the_points_that_are_on_them(tmp_path):
    "Drawn from a file; ties share a name, what costs nothing opens the line, and shuts out who does worse for more."
    SENT.to_csv(tmp_path/'sizes.csv', index=False)
    fig = rate_distortion(pd.read_csv(tmp_path/'sizes.csv'))
    (x, y), (below_x, below_y) = front(fig)
    low, high = (10**e for e in fig.layout.xaxis.range)
    assert y == pytest.approx([40, 50, 80, 80]) and below_y == [.45, .2, .2] and x[0] == below_x[0] == low and x[-1] == below_x[-1] == high and x[2] == below_x[1] == 900
    assert [a.text for a in fig.layout.annotations if a.textangle] == ['yours', 'trained 1, first 1', 'yours']
    png = png_of(save_figure(fig, tmp_path/'sizes'))
    assert size(png) == (2*fig.layout.width, 2*fig.layout.height)


def test_each_point_says_who_it_is():
    fig = rate_distortion(SENT)
    points = {(t.yaxis, says.split('<br>')[0]): (x, y) for t in fig.data if t.marker.symbol for x, y, says in zip(t.x, t.y, t.text)}
    assert len(points) == 6 + 5 and {name: y for (axis, name), (_, y) in points.items() if axis == 'y2'} == dict(zip(SENT.label[[0, 1, 2, 4, 5]], SENT.ce[[0, 1, 2, 4, 5]]))
    assert points['y', 'mine'] == (400, 45) and len({points['y', name][0] for name in ('trained 1', 'first 1', 'pool 1')}) == 3
    assert all(abs(points['y', name][0]/100 - 1) < .1 for name in ('trained 1', 'first 1', 'pool 1'))
    dotted = [(t.y[0], t.text[0]) for t in fig.data if t.line.dash == 'dot']
    assert [(y, text.split('<br>')[:2]) for y, text in dotted] == [(40, ['nothing', '0 bytes']), (40, ['less', '0 bytes']), (.45, ['nothing', '0 bytes']), (.9, ['less', '0 bytes'])]
    shifts = [a.yshift for a in fig.layout.annotations if a.text in ('nothing', 'less')]
    assert shifts[1] - shifts[0] == pytest.approx(17) and shifts[2:] == [0, 0] # names of lines that meet do not


def test_a_family_looks_the_same_in_both_panels():
    "Also one that has no cross-entropy before another that has; and no two look alike."
    many = pd.concat([SENT, *(SENT[3:4].assign(family=f'f{i}', label=f'f{i}', ce=i/9 if i % 2 else math.nan) for i in range(9))], ignore_index=True)
    for table in (SENT, many, many[~many.family.isin(FAMILIES)]):
        looks = {}
        for t in rate_distortion(table).data:
            if t.marker.symbol: looks.setdefault(t.name, set()).add((t.line.color, t.marker.symbol))
        assert all(len(v) == 1 for v in looks.values()) and len(set.union(*looks.values())) == len(looks) and GREY not in {c for v in looks.values() for c, _ in v}


@pytest.mark.parametrize('table, panels', [(SENT.assign(ce=math.nan), 1), (SENT.assign(success_rate=math.nan), 1), (SENT[:1], 2), (SENT[SENT.bytes == 100], 2), (SENT.assign(label=range(len(SENT))), 2), (SENT.assign(ci_low=math.nan, ci_high=math.nan), 2)])
def test_tables_with_little_in_them_are_drawn(table, panels, tmp_path):
    fig = rate_distortion(table)
    assert len(front(fig)) == panels and all(math.isfinite(a.y) for a in fig.layout.annotations) and all(math.isfinite(v) for xy in front(fig) for column in xy for v in column)
    save_figure(fig, tmp_path/'sizes', scale=1)


def test_bad_sizes_are_named():
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(InterlatError, match=f"bytes must be a number, 0 or more, found {float(bad)} for 'mine'"): rate_distortion(SENT.assign(bytes=SENT.bytes.astype(float).where(SENT.label != 'mine', bad)))
    with pytest.raises(InterlatError, match='nothing to draw: the table has no rows'): rate_distortion(SENT[:0])


def linear(colour):
    "Linear RGB of a hex colour."
    c = np.array([int(colour[i:i+2], 16)/255 for i in (1, 3, 5)])
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4)


def contrast(a, b):
    "WCAG's contrast ratio of two colours."
    la, lb = (linear(c) @ [.2126, .7152, .0722] + .05 for c in (a, b))
    return max(la, lb)/min(la, lb)


def test_words_can_be_read_by_day_and_by_night():
    day = look().layout
    night = in_dark(go.Figure(layout=dict(template=look()))).layout.template.layout
    grey = {'day': GREY, 'night': DARK[GREY]}
    for name, page in dict(day=day, night=night).items():
        paper = '#FFFFFF' if page.paper_bgcolor == 'white' else page.paper_bgcolor
        assert contrast(page.font.color, paper) >= 7 and contrast(grey[name], paper) >= 4.5, name
        assert all(contrast(c, paper) >= 1.2 for c in PALETTE.values()) # marks are seen at all


SEEN_AS = dict( # linear RGB as seen without one kind of cones (Machado et al. 2009)
    protanopia=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    deuteranopia=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    tritanopia=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])


def lab(rgb):
    "CIELAB of linear RGB."
    xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]]) @ np.clip(rgb, 0, 1)/[.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
    return np.array([116*f[1] - 16, 500*(f[0] - f[1]), 200*(f[1] - f[2])])


def test_colours_stay_apart_for_colour_blind_readers():
    for kind, matrix in SEEN_AS.items():
        seen = {n: lab(np.array(matrix) @ linear(c)) for n, c in PALETTE.items()}
        near = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a in seen for b in seen if a < b}
        assert min(near.values()) >= 10, (kind, min(near, key=near.get))


def test_a_page_shares_its_script_and_is_closed_against_its_words(tmp_path):
    fig = go.Figure(go.Scatter(y=[1], text=['</script><b>']), layout=dict(template=look(), title='a & b'))
    for name in 'ab': save_figure(fig, tmp_path/name)
    page = (tmp_path/'a.html').read_text()
    assert page.count('</script>') == 2 and '<title>a &amp; b</title>' in page and len([*tmp_path.glob('*.js')]) == 1
    (tmp_path/'plotly.min.js').write_text('of another release')
    save_figure(fig, tmp_path/'a')
    assert (tmp_path/'plotly.min.js').stat().st_size > 10**6
