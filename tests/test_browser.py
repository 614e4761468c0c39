"The explorer as a user meets it: in a real JupyterLab, with a mouse."
import shutil, time
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, chromium, jupyterlab, until
from notebooks import ROOT

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='no browser here: chromium and chromedriver are needed (Debian: chromium, chromium-driver)')


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
    "The explorer's notebook, open and run."
    folder = tmp_path_factory.mktemp('lab')
    shutil.copy(ROOT/'nbs'/'tutorials'/'explorer.ipynb', folder)
    with jupyterlab(folder) as lab, chromium() as page:
        page.run_notebook(lab, 'explorer.ipynb')
        page.figure('What the actor would do next')
        page.folder = folder
        yield page


def test_a_click_on_a_point_shows_its_message(shown):
    before, figure = shown.text('.widget-html'), shown.figure('Messages')
    old = shown.data('What the sender would say', 'z')
    wanted = shown.js('return arguments[0]._fullData[2].customdata[1]', figure)
    start = time.monotonic()
    shown.click_point(figure, 2, 1)
    until(lambda: wanted in shown.text('.widget-html'), f'the message about {wanted}')
    until(lambda: shown.data('What the sender would say', 'z') != old, 'another lens')
    assert wanted not in before
    print(f'from click to page: {time.monotonic() - start:.1f} s')


def test_a_slider_moves_the_actors_distribution(shown):
    from selenium.webdriver.common.keys import Keys
    assert 'latent, tampered with' not in shown.data('What the actor would do next')
    shown.slide('part kept', Keys.ARROW_LEFT*14)
    bars = until(lambda: (b := shown.data('What the actor would do next')).get('latent, tampered with') not in (None, b['latent']) and b, 'other bars of the cut message')
    assert abs(sum(bars['latent']) - 100) < 25
    shown.slide('noise', Keys.ARROW_RIGHT*10)
    until(lambda: shown.data('What the actor would do next')['latent, tampered with'] != bars['latent, tampered with'], 'bars of the noisy message')


def test_steps_and_conditions_change_what_is_shown(shown):
    from selenium.webdriver.common.keys import Keys
    shown.settle()
    shown.press('Message as sent')
    until(lambda: 'latent, tampered with' not in shown.data('What the actor would do next'), 'the message as it was sent')
    line = lambda: shown.js("return arguments[0].layout.shapes[0].x0", shown.figure('The game'))
    at = line()
    shown.slide('step', Keys.ARROW_RIGHT)
    until(lambda: line() == at + 1, 'the next step')
    shown.pick('compare with', 'cross_task')
    until(lambda: 'cross_task' in shown.data('What the actor would do next'), 'the other condition')
    until(lambda: 'cross_task' in shown.text('.widget-html'), 'the transcript of the other condition') # which is played now
    shown.tab('Attribution')
    shown.figure('What moves the next action')


def test_the_view_is_saved(shown):
    shown.press('Save the view')
    until(lambda: '18 files' in shown.text('.widget-html'), 'the files')
    assert sorted(p.name for p in (shown.folder/'view').glob('*.png')) == [f'{n}.png' for n in ('actions', 'attribution', 'lens', 'map', 'norms', 'timeline')]


def test_kept_figures_are_pages_that_draw(shown):
    page = shown.folder/'view'/'actions.html'
    if not page.exists():
        from interlat.instruments.explorer import Explorer
        Explorer(progress=False).save(page.parent)
    with chromium(900, 600) as browser:
        browser.driver.get(page.as_uri())
        assert 'latent' in browser.data('What the actor would do next')


def test_the_page_for_people_without_jupyter(tmp_path):
    from interlat.instruments.page import write_page
    page = write_page(None, tmp_path/'page.html', n=4, steps=2, progress=False)
    bars = lambda b: b.js("return document.getElementById('actions').data[1].x.map(v => Math.round(100*v))")
    with chromium(1300, 1800) as b:
        b.driver.get(page.as_uri())
        until(lambda: bars(b), 'the bars')
        as_sent = bars(b)
        b.js("const s = document.getElementById('level'); s.value = s.max; s.dispatchEvent(new Event('input'))")
        until(lambda: bars(b) != as_sent, 'bars without a message')
        figure, name = b.driver.find_element('id', 'map'), b.text('#name')
        wanted = b.js("return arguments[0].data[1].customdata[0]", figure)
        b.click_point(figure, 1, 0)
        until(lambda: b.text('#name') == wanted, 'the message that was clicked')
        assert wanted != name and len(b.all('#one li')) > 2
        assert [e['message'] for e in b.driver.get_log('browser') if e['level'] == 'SEVERE'] == []
