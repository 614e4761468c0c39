"""`interlat-serve` and `--backend URL`, with a real server of vLLM: in the environment of `make vllm`, by `make test-vllm`."""
import os, signal, socket, subprocess, sys, time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest, torch

if not find_spec('vllm'): pytest.skip('vLLM is not installed in this environment; `make test-vllm` runs these in .venv-vllm', allow_module_level=True)

from test_vllm import PLAYED, far, make_crew, tasks, tokenizer
from interlat.agents.collect import *
from interlat.agents.remote import *
from interlat.agents.served import *
from interlat.agents.served_speaker import *
from interlat.core.basics import *
from interlat.evaluation.evaluate import *
from interlat.messages.message import *
from interlat.models.lm import *
from interlat.models.tiny import *

pytestmark = pytest.mark.vllm
SERVE = 'import sys; from interlat.commands.cli import main_serve; sys.argv[0] = "interlat-serve"; sys.exit(main_serve())'
ROOT = Path(__file__).parent


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Server:
    "A process of `interlat-serve` that can be killed and started again at the same address."
    def __init__(self, role, model, log, *words):
        self.port, self.log = free_port(), log
        self.url = f'http://127.0.0.1:{self.port}'
        self.command = [sys.executable, '-c', SERVE, role, '--model_name_or_path', str(model), '--port', str(self.port), '--dtype', 'float32', *words]

    def start(self):
        with open(self.log, 'ab') as log:
            self.child = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True, env=os.environ | dict(VLLM_CPU_KVCACHE_SPACE='1'))
        for _ in range(240):
            if self.child.poll() is not None: raise RuntimeError(self.log.read_text()[-3000:])
            try: return ask(f'{self.url}/v1/models', timeout=2) and self
            except NoAnswer: time.sleep(1)
        raise RuntimeError(self.log.read_text()[-3000:])

    def kill(self):
        "All of its processes at once, as when a machine goes down."
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@contextmanager
def serving(role, model, log, *words):
    server = Server(role, model, log, *words)
    try: yield server.start()
    finally: server.kill()


@pytest.fixture(scope='module')
def sender(tmp_path_factory):
    "A folder with a model of random weights, loud and with heads that vLLM's kernels for CPUs take; and what it writes in transformers."
    root, tok = tmp_path_factory.mktemp('sender'), tokenizer('qwen2')
    agent = Agent(tiny_lm('tiny-qwen2', tok, hidden_size=128, initializer_range=.3), tok)
    folder = agent.save_pretrained(root/'model')
    return folder, collect(load_lm(folder, 'float32', 'cpu'), tasks(), MessageStore(root/'torch', sender='s'), max_new_tokens=10, progress=False)


def collecting(url, folder, store, batch_size=4, pause=.1):
    "As the command does it, without its flags."
    served = Agent(Remote(url, folder, 'float32', batch_size, pause=pause), load_tokenizer(folder))
    return collect_served(served, tasks(), MessageStore(store, sender='s'), max_new_tokens=10, progress=False)


def same_messages(store, wanted):
    assert store.task_ids() == wanted.task_ids() and store.verify() == {}
    for mine, theirs in zip(store, wanted): assert (mine.token_ids, mine.text) == (theirs.token_ids, theirs.text) and far(mine.h, theirs.h) < 1e-3


CLIENT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_serve import *
def slowly(self, messages, append=MessageStore.append):
    append(self, messages)
    print(len(self), flush=True)
    time.sleep(.5)
MessageStore.append = slowly
collecting({url!r}, {folder!r}, {store!r}, {batch_size})
"""


def test_a_sender_somewhere_else(sender, tmp_path):
    "The same words and states; a client that is killed and a server that is killed lose nothing, and nothing is done twice."
    folder, wanted = sender
    def client(store, batch_size): return subprocess.Popen([sys.executable, '-c', CLIENT.format(tests=str(ROOT), url=server.url, folder=str(folder), store=str(tmp_path/store),
                                                                                                batch_size=batch_size)], stdout=subprocess.PIPE, text=True)
    def killed(store, batch_size):
        with client(store, batch_size) as child:
            while (line := child.stdout.readline()) and int(line) < 5: pass
            os.kill(child.pid, signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        before = {p.name: p.read_bytes() for p in (tmp_path/store).glob('shard-*')}
        assert 2 <= len(before) and len(MessageStore(tmp_path/store)) < 12
        return before
    def bytes_of(store): return {p.name: p.read_bytes() for p in sorted((tmp_path/store).glob('shard-*'))}
    with serving('sender', folder, tmp_path/'log') as server:
        said = (tmp_path/'log').read_text()
        assert 'vllm serve' in said and '--worker-extension-cls interlat.agents.tap.StatesTap' in said, 'the command that does the same is printed'
        same_messages(collecting(server.url, folder, tmp_path/'whole'), wanted)
        before = killed('client', 4)
        same_messages(collecting(server.url, folder, tmp_path/'client'), wanted)
        assert before.items() <= bytes_of('client').items()
        killed('one', 1) # each request alone: then the last bits are the same, too
        for store in ('one', 'another'): collecting(server.url, folder, tmp_path/store, 1)
        assert bytes_of('one') == bytes_of('another') and len(bytes_of('one')) == 12

        with client('server', 4) as child:
            assert int(child.stdout.readline()) == 4
            server.kill()
            assert child.wait() == 1
        with pytest.raises(NoAnswer, match='no answer from .*refused'): collecting(server.url, folder, tmp_path/'server')
        before = bytes_of('server')
        assert 4 <= len(MessageStore(tmp_path/'server')) < 12
        server.start()
        same_messages(collecting(server.url, folder, tmp_path/'server'), wanted)
        assert before.items() <= bytes_of('server').items()

        with pytest.raises(InterlatError, match='takes no vectors; start it with interlat-serve actor'): Remote(server.url, folder, embeds=True)
        with pytest.raises(InterlatError, match='in float32, wanted bfloat16'): Remote(server.url, folder, 'bfloat16')
        with pytest.raises(InterlatError, match='wanted .*elsewhere; give the model the name'): Remote(server.url, tmp_path/'elsewhere')
        with pytest.raises(InterlatError, match='completions says 400: .*maximum context length'): Remote(server.url, folder).write([[5]*5000], 8)


def test_an_actor_somewhere_else(tmp_path):
    "The same games; a server that dies costs a row that says so and no result, and started again the rest is played."
    games, actor, store = make_crew(tmp_path)
    wanted = evaluate(actor, games, store, ['latent', 'no_comm'], tmp_path/'torch', **PLAYED)
    def play(out, server):
        actors = ServedActors('auto', 4, url=server.url, pause=.1)
        there = actors.load(tmp_path/'actor')
        assert there.model.base_model.dtype == torch.float32
        return actors, lambda: evaluate(there, games, store, ['latent', 'no_comm'], tmp_path/out, speakers=actors, **PLAYED)
    def rows(out): return sorted((tmp_path/out/'games.csv').read_bytes().splitlines())
    with serving('actor', tmp_path/'actor', tmp_path/'log') as server:
        found = play('whole', server)[1]()
        assert found.outputs.tolist() == wanted.outputs.tolist() and found.won.tolist() == wanted.won.tolist()

        actors, run = play('dies', server)
        served, turns = next(iter(actors.served.values())), []
        write = served.write
        def dies(*args, **how):
            turns.append(1)
            if len(turns) == 12: server.kill()
            return write(*args, **how)
        served.write = dies
        with pytest.raises(NoAnswer, match=r'no answer from .*refused.*: \d+ of what was asked for has no result, .*unanswered.csv says which; start again'): run()
        kept, missing = rows('dies'), (tmp_path/'dies'/'unanswered.csv').read_text().splitlines()
        assert 1 < len(kept) < 25 and len(kept) + len(missing) == 26 and all('no answer from' in row for row in missing[1:])
        server.start()
        served.write = write
        run()
        assert rows('dies') == rows('whole') and not (tmp_path/'dies'/'unanswered.csv').exists()
