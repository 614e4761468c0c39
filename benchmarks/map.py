"""The explorer on many messages: how long until the map is there, and how long a click takes.

    python benchmarks/map.py [--n 10000] [--width 256] [--length 20] [--browser] [--out FILE]

A session of `n` made-up messages of eight kinds, with sender and actor of that width (three layers, random weights, the tokenizer
of tiny-qwen2). Timed in one process, libraries loaded by what is timed: opening the session, the map by PCA and by UMAP (messages
read and verified, pooled, projected, drawn), and then clicks on 20 messages: text, lens, norms, attribution, next-token
distribution and transcript drawn anew. With `--browser` the clicks are a mouse's in a real JupyterLab, from the press of the
button to the other message's text on the screen. Progress bars are shown."""
import argparse, json, statistics, sys, tempfile, time
from pathlib import Path

import pandas as pd
import torch

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.evaluation.answering import Completion
from interlat.core.basics import cli, write_atomic
from interlat.models.lm import load_tokenizer
from interlat.models.chat import message_token_ids
from interlat.maths.grade import Grade
from interlat.messages.message import LatentMessage, MessageStore
from interlat.evaluation.questions import AnswerLog
from interlat.runs.provenance import machine
from interlat.instruments.session import save_session
from interlat.core.tasks import Task
from interlat.models.tiny import tiny_lm

PLAN = 'take mug 1 from shelf 2, clean mug 1 with sinkbasin 1, move mug 1 to desk 1, take pen 1 from bed 1, move pen 1 to desk 1.'
ASKED = [dict(role='user', content='Write the plan.')]
SAID = [dict(role='user', content='What now?'), dict(role='assistant', content='go to shelf 2')]


def make(folder, n, width, length):
    "A session of `n` messages of `length` states."
    tokenizer = load_tokenizer('tiny-qwen2')
    ids = (tokenizer(PLAN).input_ids*length)[:length]
    text, kinds = tokenizer.decode(ids), torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    store, tasks = MessageStore(folder/'messages', sender='made-up'), []
    for first in range(0, n, 500):
        some = range(first, min(first + 500, n))
        g = torch.Generator().manual_seed(first)
        states = {i: kinds[i % 8] + torch.randn(length, width, generator=g) for i in some}
        store.append([LatentMessage(h, ids, text, f'message-{i}', 'made-up') for i, h in states.items()])
        tasks += [Task(f'message-{i}', f'kind {i % 8}', ASKED, turns=SAID) for i in some]
    lm = tiny_lm('tiny-qwen2', tokenizer, hidden_size=width)
    for name in ('sender', 'actor'): tokenizer.save_pretrained(folder/name)
    lm.save_pretrained(folder/'sender')
    bop, eop = message_token_ids(tokenizer)
    ModelWithInsertedHiddenState(lm, 128, width, bop_id=bop, eop_id=eop).eval().save_pretrained(folder/'actor')
    log, said, grade = AnswerLog(folder/'answers.csv'), Completion('go to shelf 2', 5, True), Grade('go to shelf 2', False, False, 'graded')
    with open(log.path, 'a', encoding='utf-8') as file: # as the log writes them, but not flushed to the disk one by one
        for c in ('latent', 'no_comm'):
            rows = pd.DataFrame([dict(condition=c, seed=0, **log.values((t, [said], [grade]))) for t in tasks])
            rows[log.columns].to_csv(file, header=False, index=False)
    save_session(folder, tasks, store, folder/'actor', str(folder/'sender'), log.path)
    return folder


def measure(folder, clicks=20):
    "Seconds of each part, in this process."
    t, found = time.perf_counter, {}
    start = t()
    from interlat.instruments.explorer import Explorer
    from interlat.instruments.session import open_session
    session = open_session(folder)
    found['open'] = t() - start
    start = t()
    explorer = Explorer(session)
    found['explorer with a map by PCA'] = t() - start
    start = t()
    explorer.method.value = 'umap'
    found['another map, by UMAP'] = t() - start
    took = []
    for k in range(clicks):
        start = t()
        explorer.choose(session.tasks[(37*k + 5) % len(session.tasks)].task_id)
        took.append(t() - start)
    return found | {'click, median': statistics.median(took), 'click, slowest': max(took)}


NOTEBOOK = "from interlat.instruments.explorer import Explorer\nexplorer = Explorer({folder!r}, method='pca')\nexplorer"


CLOCK = """window.took = null; let pressed = 0; addEventListener('mousedown', () => pressed = performance.now(), {capture: true, once: true})
const names = () => [...document.querySelectorAll('.widget-html b')].map(b => b.textContent).join(), old = names()
const look = new MutationObserver(() => { if (pressed && names() !== old) requestAnimationFrame(() => { window.took = window.took || performance.now() - pressed; look.disconnect() }) })
look.observe(document.body, {subtree: true, childList: true, characterData: true})"""


def in_browser(folder, clicks=8):
    "Seconds from the mouse's click to the other message's text on the screen."
    import nbformat.v4 as nbf
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
    from browser import chromium, jupyterlab, until
    home, took = Path(tempfile.mkdtemp()), []
    cell, kernel = nbf.new_code_cell(NOTEBOOK.format(folder=str(folder))), dict(name='python3', display_name='python3', language='python')
    (home/'map.ipynb').write_text(json.dumps(nbf.new_notebook(cells=[cell], metadata=dict(kernelspec=kernel))))
    with jupyterlab(home) as lab, chromium() as page:
        start = time.perf_counter()
        page.run_notebook(lab, 'map.ipynb')
        figure = page.figure('Messages')
        drawn = time.perf_counter() - start
        for k in range(clicks):
            page.js(CLOCK)
            page.click_point(figure, k % 8, 31*k + 7)
            took.append(until(lambda: page.js('return window.took'), 'another message')/1000)
            time.sleep(3) # the rest is drawn
    return {'JupyterLab opened, notebook run, map on the screen': drawn,
            'click to text on the screen, median': statistics.median(took), 'click to text on the screen, slowest': max(took)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=10_000, help='messages')
    parser.add_argument('--width', type=int, default=256, help='of their states')
    parser.add_argument('--length', type=int, default=20, help='states of each')
    parser.add_argument('--browser', action='store_true', help='click in a real JupyterLab, too')
    parser.add_argument('--out', help='JSON file for the results')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        folder = make(Path(d)/'session', args.n, args.width, args.length)
        found = measure(folder) | (in_browser(folder) if args.browser else {})
    found = {k: round(v, 3) for k, v in found.items()}
    for what, seconds in found.items(): print(f'{what}: {seconds:.2f} s')
    result = dict(messages=args.n, width=args.width, length=args.length, seconds=found, machine=machine())
    if args.out: write_atomic(args.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
