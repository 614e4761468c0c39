"A real JupyterLab in a headless Chromium, for the tests that click."
import json, os, shutil, socket, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

from notebooks import warm_kernels

CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
DRIVER = shutil.which('chromedriver')
def draws():
    "Whether Kaleido finds a browser here; without one, figures are kept without PNGs."
    from choreographer.browsers.chromium import Chromium
    return bool((found := Chromium.find_browser(skip_local=False)) and Path(found).is_file())


WAIT = 120 # seconds that anything may take on a busy machine

QUIET = ('--headless=new', '--no-sandbox', '--disable-gpu', '--enable-unsafe-swiftshader', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars')

OPEN = """const [path, done] = [arguments[0], arguments[arguments.length - 1]]; (async () => {
  const app = window.jupyterapp; await app.restored
  const panel = await app.commands.execute('docmanager:open', {path}); await panel.context.ready; await panel.sessionContext.ready
  for (const side of ['left', 'right']) if (app.shell[side + 'Collapsed'] === false) app.commands.execute('application:toggle-' + side + '-area')
  window.panel = panel; done('') })().catch(e => done(String(e)))"""

START = """const app = window.jupyterapp; if (app.shell.currentWidget !== window.panel) { app.shell.activateById(window.panel.id); return false }
app.commands.execute('notebook:run-all-cells'); return true"""

STATE = """const cells = window.panel.content.model.cells, ran = [...Array(cells.length).keys()].map(i => cells.get(i).toJSON()).filter(c => c.cell_type === 'code' && c.source.length)
const waiting = ran.filter(c => c.execution_count === null).length, idle = window.panel.sessionContext.session.kernel.status === 'idle'
return {stuck: idle && waiting > 0, done: idle && !waiting, errors: ran.flatMap(c => c.outputs).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)}"""

POINT = """const d = arguments[0], [k, i] = [arguments[1], arguments[2]]; d.scrollIntoView({block: 'center'})
const at = a => Array.from(a._inputArray || a), r = d.getBoundingClientRect(), {xaxis: x, yaxis: y} = d._fullLayout, t = d._fullData[k]
return [r.left + x._offset + x.d2p(at(t.x)[i]), r.top + y._offset + y.d2p(at(t.y)[i])]"""


def until(found, what, seconds=WAIT):
    "What `found()` gives once it is true; fails with `what` was waited for."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := found(): return value
        except Exception as e: last = e # the page is being drawn anew
        else: last = None
        time.sleep(.1)
    raise AssertionError(f'waited {seconds} s for {what}' + (f'; last: {last}' if last else ''))


@contextmanager
def jupyterlab(folder):
    "A JupyterLab that shows `folder`, with nobody's settings and kernels that are warm; yields its address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    home = tempfile.mkdtemp(prefix='interlat-lab-')
    own = {f'JUPYTER_{n}_DIR': f'{home}/{n}' for n in ('CONFIG', 'DATA', 'RUNTIME')} | {f'JUPYTERLAB_{n}_DIR': f'{home}/lab_{n}' for n in ('SETTINGS', 'WORKSPACES')}
    flags = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=interlat', f'--ServerApp.root_dir={folder}',
             '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    kernel = Path(home, 'first', 'kernels', 'python3', 'kernel.json')
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(warm_kernels().kernel_spec.to_dict()))
    log = open(f'{home}/log', 'w')
    lab = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *flags], env=dict(os.environ, IPYTHONDIR=f'{home}/ipython', JUPYTER_PATH=f'{home}/first', **own), stdout=log, stderr=log)
    try: yield f'http://127.0.0.1:{port}'
    finally:
        lab.terminate()
        lab.wait()
        log.close()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def chromium(width=1400, height=2000, scale=1):
    "A headless browser with a profile of its own; `scale`: pixels of a screenshot for each of the page."
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options, profile = webdriver.ChromeOptions(), tempfile.mkdtemp(prefix='interlat-chromium-')
    options.binary_location = CHROMIUM
    for flag in (*QUIET, f'--window-size={width},{height}', f'--force-device-scale-factor={scale}', f'--user-data-dir={profile}'): options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(WAIT - 20) # selenium itself gives up after 120 s
    driver.execute_cdp_cmd('Emulation.setFocusEmulationEnabled', dict(enabled=True)) # JupyterLab's current document is the one with the focus
    try: yield Page(driver)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


class Page:
    "What a user can do and see."
    def __init__(self, driver): self.driver = driver

    def js(self, code, *args): return self.driver.execute_script(code, *args)

    def run_notebook(self, lab, path):
        "Open a notebook in JupyterLab and run all its cells; fails with the errors that they raised."
        def begun(): return until(lambda: self.js('return !!window.jupyterapp'), 'its page', WAIT/3)
        until(lambda: self.driver.get(f'{lab}/lab?token=interlat') is None and begun(), 'JupyterLab', 2*WAIT) # raises while nobody answers; what came in parts is loaded anew
        assert (wrong := self.driver.execute_async_script(OPEN, str(path))) == '', wrong
        heard = 0. # when it was last told to run, or was seen running
        def ran(): # a notebook that has just been opened may not hear: an idle kernel with cells left to run is told again
            nonlocal heard
            state = self.js(STATE)
            if not state['stuck']: heard = time.monotonic()
            elif time.monotonic() - heard > 8 and self.js(START): heard = time.monotonic()
            return state['done']
        until(ran, 'the last cell', 2*WAIT)
        assert (errors := self.js(STATE)['errors']) == [], errors

    def all(self, css): return self.driver.find_elements('css selector', css)

    def text(self, css='body'): return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join(' ')", css)

    def figure(self, title):
        "The Plotly figure whose title begins so."
        return until(lambda: self.js("return [...document.querySelectorAll('.js-plotly-plot')].find(d => d._fullLayout?.title?.text?.startsWith(arguments[0]) && d.offsetParent)", title), f'the figure {title!r}')

    def data(self, title, what='x'):
        "That array of each of the figure's traces, by the trace's name."
        return self.js("return Object.fromEntries(arguments[0]._fullData.map((t, i) => [t.name, Array.from((t[arguments[1]] || {})._inputArray || t[arguments[1]] || [])]))", self.figure(title), what)

    def click_point(self, figure, trace, i):
        "A click of the mouse on point `i` of a figure's trace."
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        x, y = self.js(POINT, figure, trace, i)
        for dx in (-6, 0): # a mouse comes from somewhere
            move = ActionBuilder(self.driver)
            move.pointer_action.move_to_location(round(x) + dx, round(y))
            move.perform()
            time.sleep(.2)
        click = ActionBuilder(self.driver)
        click.pointer_action.move_to_location(round(x), round(y)).click()
        click.perform()

    def slide(self, label, keys):
        "Press keys on the slider that is called so."
        slider = next(s for s in self.all('.widget-slider') if s.text.startswith(label))
        handle = slider.find_element('css selector', '.noUi-handle')
        self.js("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", handle)
        handle.send_keys(keys)

    def pick(self, label, text):
        "Choose from the dropdown that is called so."
        from selenium.webdriver.support.ui import Select
        box = next(d for d in self.all('.widget-dropdown') if d.text.startswith(label))
        Select(box.find_element('css selector', 'select')).select_by_visible_text(text)

    def tab(self, label): next(t for t in self.all('.widget-tab [role=tab]') if t.text.strip() == label).click()

    def press(self, label): self.js('arguments[0].click()', next(b for b in self.all('button') if b.text.strip().startswith(label))) # wherever it has moved to

    def settle(self):
        "Wait until the kernel has answered all that it was asked; a slider sends its last value when an earlier one is answered."
        idle = lambda: self.js('return window.panel.sessionContext.session.kernel.status') == 'idle'
        until(lambda: idle() and not time.sleep(.5) and idle(), 'a kernel with nothing left to do')

    def screenshot(self, path, top=None):
        "A PNG of the window, with the element `top` at its top."
        if top is not None: self.js("arguments[0].scrollIntoView({block: 'start'})", top)
        time.sleep(1)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(path))
