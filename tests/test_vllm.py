"""vLLM at both ends of the channel, against transformers: in the environment of `make vllm`, by `make test-vllm`.

One engine at a time, each started once: what is written with it is looked at by several tests."""
import json, os, random, signal, subprocess, sys
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest, torch

if not find_spec('vllm'): pytest.skip('vLLM is not installed in this environment; `make test-vllm` runs these in .venv-vllm', allow_module_level=True)

import cast
from interlat.agents.collect import *
from interlat.agents.served import *
from interlat.core.basics import *
from interlat.core.tasks import *
from interlat.messages.message import *
from interlat.models.chat import *
from interlat.models.lm import *
from interlat.models.sampling import *
from interlat.models.tiny import *

pytestmark = pytest.mark.vllm
FAMILIES = 'tiny-qwen2', 'tiny-llama', 'smollm2-135m'
WRITTEN = dict.fromkeys(FAMILIES[:2], 24) | {FAMILIES[2]: 16} # tokens of a plan


@cache
def tokenizer(family): return train_tokenizer(family, ['go to the shelf and look at 12 apples', 'put two keys in a drawer'], vocab_size=320)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "family -> a folder with the model: random weights, loud and four heads of 32; and a real one, unpacked once."
    root, found = tmp_path_factory.mktemp('models'), {}
    for name in FAMILIES[:2]:
        tok = tokenizer(name[5:])
        found[name] = Agent(tiny_lm(name, tok, hidden_size=128, initializer_range=.3), tok).save_pretrained(root/name)
    found[FAMILIES[2]] = load_lm(FAMILIES[2], 'float32', 'cpu').save_pretrained(root/FAMILIES[2])
    return found


def prompts(vocab, n=64, longest=120, seed=0):
    "Rows of ids of very different lengths."
    draw = random.Random(seed)
    return [[draw.randrange(8, vocab) for _ in range(draw.choice([3, 9, 30, longest]) + draw.randrange(8))] for _ in range(n)]


@contextmanager
def running(folder, longest, **how):
    "An engine, which is stopped afterwards."
    engine = Served(folder, 'float32', **dict(batch_size=64) | how)
    try: yield engine.open(longest)
    finally: engine.close()


def far(a, b):
    "The largest distance of two states, row by row, as a part of the second's length."
    return float(((a - b).norm(dim=1)/b.norm(dim=1)).max())


def near_ties(agent, prompt, ours, theirs):
    "By how much the two tokens differ, as logits, where two plans part; None if they are one plan."
    at = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), None)
    if at is None: return None
    with torch.no_grad(): logits = agent.model(input_ids=torch.tensor([prompt + theirs[:at]])).logits[0,-1]
    return float(logits[theirs[at]] - logits[ours[at]])


@pytest.mark.parametrize('family', FAMILIES)
def test_states_and_plans_are_those_of_transformers(folders, family):
    "64 prompts of mixed length, float32: 1e-3 of a state's length; greedy words the same, but for near-ties."
    reference, most = load_lm(folders[family], 'float32', 'cpu'), WRITTEN[family]
    rows, ends = prompts(len(reference.tokenizer)), end_token_ids(reference)
    wanted = [pair for i in range(0, 64, 16) for pair in write_plans(reference, rows[i:i+16], most)]
    with running(folders[family], 160 + most) as engine:
        found, again = (engine.write(rows, most, ends) for _ in range(2))
    assert all(torch.equal(h, z) and x == y for (h, x), (z, y) in zip(found, again)), 'a batch is the same whenever it is run'
    apart = {i: near_ties(reference, rows[i], y, z) for i, ((_, y), (_, z)) in enumerate(zip(found, wanted)) if y != z}
    print(f'{family}: plans that part, and by how much in logits: {apart}')
    assert all(0 <= gap < 1e-3 for gap in apart.values()) and len(apart)*1000 <= sum(len(y) for _, y in wanted)
    same = [(h, z) for i, ((h, y), (z, _)) in enumerate(zip(found, wanted)) if i not in apart]
    assert all(h.shape == z.shape == (len(z), reference.model.config.hidden_size) and h.dtype == torch.float32 for h, z in same)
    assert max(far(h, z) for h, z in same) < 1e-3


def scheduler(engine): return engine.llm.llm_engine.engine_core.engine_core.scheduler


HARD = { # what the engine does to a request, and settings that make it do so
    'prompts read in parts': dict(enable_chunked_prefill=True, max_num_batched_tokens=48),
    'thrown out and read again': dict(num_gpu_blocks_override=24, block_size=32),
    'both, and blocks shared': dict(enable_chunked_prefill=True, max_num_batched_tokens=48, num_gpu_blocks_override=24, block_size=32, enable_prefix_caching=True)}


@pytest.mark.parametrize('what', HARD)
def test_states_stay_with_their_tokens(folders, what, monkeypatch):
    folder, most = folders['tiny-qwen2'], 40
    reference, rows = load_lm(folder, 'float32', 'cpu'), prompts(300, 32, seed=1)
    rows = [rows[i%4][:40] + r for i, r in enumerate(rows)] # beginnings that several have
    out = []
    with running(folder, 256, batch_size=32, **HARD[what]) as engine:
        preempt = scheduler(engine)._preempt_request
        monkeypatch.setattr(scheduler(engine), '_preempt_request', lambda request, *a, **k: (out.append(request.num_output_tokens), preempt(request, *a, **k))[1])
        found = engine.write(rows, most, end_token_ids(reference))
    assert bool(out) == ('num_gpu_blocks_override' in HARD[what]) and (not out or max(out) > 0), 'the engine did what it was to do'
    for (h, y), (z, x) in zip(found, write_plans(reference, rows, most), strict=True):
        assert y == x and far(h, z) < 1e-3


def tasks(n=12):
    return [Task(f'task-{i}', 'find', [dict(role='user', content='go to the shelf and look. '*(1 + 3*(i%5)) + str(i))]) for i in range(n)]


def test_collected_messages_are_those_of_the_other_path(folders, tmp_path):
    folder = folders['tiny-llama']
    reference = load_lm(folder, 'float32', 'cpu')
    whole = collect(reference, tasks(), MessageStore(tmp_path/'torch', sender='s'), max_new_tokens=10, progress=False)
    served = Agent(Served(folder, 'float32', batch_size=5), reference.tokenizer)
    store = collect_served(served, tasks()[:7], MessageStore(tmp_path/'served', sender='s'), max_new_tokens=10, progress=False)
    collect_served(served, tasks(), store, max_new_tokens=10, progress=False)
    assert collect_served(served, tasks(), store, max_new_tokens=10, progress=False) is store
    served.model.close()
    assert store.task_ids() == whole.task_ids() and store.verify() == {}
    for mine, theirs in zip(store, whole):
        assert (mine.token_ids, mine.text, mine.layer) == (theirs.token_ids, theirs.text, -1) and far(mine.h, theirs.h) < 1e-3


def test_a_task_is_sampled_by_its_own_seed(folders, tmp_path):
    "Whoever shares the batch, and in whatever order they come; another seed, another plan."
    folder = folders['tiny-qwen2']
    served = Agent(Served(folder, 'float32', batch_size=8), load_tokenizer(folder))
    def run(name, some, **how):
        s = collect_served(served, some, MessageStore(tmp_path/name, sender='s'), temperature=1., max_new_tokens=10, progress=False, **how)
        return {i: s[i].token_ids for i in s.task_ids()}
    try:
        a = run('a', tasks())
        assert a == run('b', tasks()[::-1]) != run('c', tasks(), seed=1)
        assert run('d', tasks()[3:4]) == {'task-3': a['task-3']} and len({*map(tuple, a.values())}) > 8
    finally: served.model.close()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_vllm import *
class Slow(MessageStore):
    def append(self, messages):
        super().append(messages)
        print(len(self), flush=True)
        time.sleep({pause})
collect_served(Agent(Served({folder!r}, 'float32', batch_size=4), load_tokenizer({folder!r})), tasks(24), Slow({store!r}, sender='s'), max_new_tokens=12, progress=False)
"""


def test_killed_and_started_again_a_store_has_the_same_bytes(folders, tmp_path):
    "With a real model, whose last bits do depend on who shares a batch."
    def start(store, pause): 
        code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folders[FAMILIES[2]]), store=str(tmp_path/store), pause=pause)
        return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    with start('killed', 1.) as child:
        while (line := child.stdout.readline()) and int(line) < 8: pass
        os.kill(child.pid, signal.SIGKILL)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'killed').glob('shard-*')}
    assert child.returncode == -signal.SIGKILL and 2 <= len(before) < 6
    for store in ('killed', 'whole'):
        with start(store, 0) as child: child.communicate()
        assert child.returncode == 0
    killed, whole = ({p.name: p.read_bytes() for p in sorted((tmp_path/name).glob('shard-*'))} for name in ('killed', 'whole'))
    assert killed == whole and len(whole) == 6 and before.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path/'killed').glob('shard-*')}.items()


def refused(match, run):
    with pytest.raises(InterlatError, match=match) as told: run()
    assert '\n' not in str(told.value) and len(str(told.value)) < 500


def test_what_is_not_served_is_said_in_a_line_before_anything_is_written(folders, tmp_path):
    folder, tok = folders['tiny-qwen2'], tokenizer('qwen2')
    def store(name='none', **kw): return MessageStore(tmp_path/name, sender='s', **kw)
    def go(some=tasks(3), into=None, most=10, name=folder, **engine):
        return collect_served(Agent(Served(name, 'float32', batch_size=4, **engine), tok), some, into or store(), max_new_tokens=most, progress=False)
    refused('has width 64, wanted width 128', lambda: go(into=store(width=64)))
    refused(r'task task-\d does not fit into the context window of tiny-qwen2: prompt \d+ .* the window is 4096', lambda: go(most=4090))
    refused(r'a prompt and its plan need \d+ tokens, the engine has 40; give it a larger max_model_len', lambda: go(max_model_len=40))
    refused('max_model_len must be an integer, between 1 and 4096, found 9999', lambda: go(max_model_len=9999))
    refused("vLLM has no setting 'tensor_paralel_size'", lambda: go(tensor_paralel_size=2))
    cast.random_lm('ctrl').save_pretrained(tmp_path/'ctrl')
    refused('vLLM has no implementation of its own for CTRLLMHeadModel', lambda: go(name=tmp_path/'ctrl'))
    refused(r"does not serve .*tiny-llama here: Unsupported CPU attention configuration: head_dim=24", lambda: go(name='tiny-llama'))
    refused('does not serve .* here: .*max seq len', lambda: go(num_gpu_blocks_override=1, block_size=32))
    assert not (tmp_path/'none').exists()
