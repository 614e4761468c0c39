"""The explorer's pictures for the README: `python tests/screenshots.py [FOLDER]` (default figures/explorer)."""
import shutil, sys, tempfile, time
from pathlib import Path

from browser import chromium, jupyterlab, until
from notebooks import ROOT
from selenium.webdriver.common.keys import Keys


def main(folder):
    home = tempfile.mkdtemp()
    shutil.copy(ROOT/'nbs'/'tutorials'/'explorer.ipynb', home)
    with jupyterlab(home) as lab, chromium(1300, 1440, 1.5) as page:
        page.run_notebook(lab, 'explorer.ipynb')
        page.figure('What the actor would do next')
        page.js("document.querySelectorAll('.jp-Toolbar, #jp-top-panel, #jp-bottom-panel, .jp-SideBar, .jp-InputPrompt, .jp-OutputPrompt, .Toastify').forEach(e => e.style.display = 'none')")
        top = page.all('.widget-dropdown')[0]
        page.slide('part kept', Keys.ARROW_LEFT*12)
        until(lambda: 'latent, tampered with' in page.data('What the actor would do next'), 'the cut message')
        time.sleep(3)
        page.screenshot(Path(folder)/'explorer.png', top)
        page.press('Message as sent')
        page.pick('compare with', 'cross_task')
        page.tab('Attribution')
        page.slide('step', Keys.ARROW_RIGHT*3)
        until(lambda: 'cross_task' in page.data('What the actor would do next'), 'the other condition')
        page.figure('What moves the next action')
        time.sleep(3)
        page.screenshot(Path(folder)/'episode.png', page.all('.widget-tab')[0])


if __name__ == '__main__': main(sys.argv[1] if len(sys.argv) > 1 else ROOT/'figures'/'explorer')
