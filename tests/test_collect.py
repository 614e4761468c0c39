import os, signal, subprocess
from pathlib import Path

import pytest, torch

import cast
from warm import warm
from interlat.models.lm import *
from interlat.models.sampling import *
from interlat.agents.collect import *
from interlat.models.chat import encode_chat
from interlat.messages.message import MessageStore
from interlat.core.tasks import Task

WRITING = dict(max_new_tokens=10, progress=False)


def tasks():
    "Eight prompts of very different lengths."
    return [Task(f'task-{i}', 'find', [dict(role='user', content='go to the shelf and look. '*(1 + 3*(i%5)) + str(i))]) for i in range(8)]


def sender(preset='tiny-qwen2'):
    tok = cast.train_tokenizer(preset[5:], [t.prompt[0]['content'] for t in tasks()], vocab_size=300)
    return Agent(cast.lm(tok, preset).double(), tok) # in float64, what is equal looks equal


def slow_message(model, tok, prompt, n, layer=-1):
    "One chat, no padding, no cache, one token at a time; all from the definition."
    ids, plan = encode_chat(tok, prompt, add_generation_prompt=True).input_ids, []
    m = len(ids)
    while len(plan) < n and tok.eos_token_id not in plan:
        plan.append(int(model(input_ids=torch.tensor([ids + plan])).logits[0,-1].argmax()))
    hidden = model(input_ids=torch.tensor([ids + plan]), output_hidden_states=True).hidden_states[layer][0]
    return hidden[m-1 : m-1+len(plan)], plan


@torch.no_grad()
@pytest.mark.parametrize('preset', ['tiny-qwen2', 'tiny-llama'])
@pytest.mark.parametrize('batch_size', [1, 8])
def test_one_state_per_token_from_the_last_prompt_token_on(preset, batch_size, tmp_path):
    model, tok = sender(preset)
    first = slow_message(model, tok, tasks()[0].prompt, 10)[1]
    ends = model.generation_config.eos_token_id = [tok.eos_token_id, first[3]] # a second end token, so that plans differ in length
    store = collect(Agent(model, tok), tasks(), MessageStore(tmp_path, sender='s'), batch_size=batch_size, **WRITING)
    assert store['task-0'].token_ids == first[:first.index(first[3])+1]
    assert len({len(m) for m in store}) > 1
    for t in tasks():
        message, (h, plan) = store[t.task_id], slow_message(model, tok, t.prompt, 10)
        plan = through_end(plan, ends)
        assert message.token_ids == plan and sum(i in ends for i in plan) <= 1
        assert cast.apart(message.h, h[:len(plan)]) < 1e-6
        assert model.lm_head(message.h).argmax(1).tolist() == plan


def test_sampling_depends_on_seed_and_task_alone(tmp_path):
    model, tok = sender()
    def run(name, tasks, **kw):
        s = collect(Agent(model, tok), tasks, MessageStore(tmp_path/name, sender='s'), temperature=1., **WRITING, **kw)
        return {i: s[i].token_ids for i in s.task_ids()}
    a = run('a', tasks(), batch_size=8)
    assert a == run('b', tasks()[::-1], batch_size=3) != run('c', tasks(), seed=1)


def test_a_sender_in_training_mode_is_put_in_eval_mode(tmp_path):
    model, tok = sender()
    model.config.attention_dropout = .5
    for layer in model.base_model.layers: layer.self_attn.attention_dropout = .5
    stores = [collect(Agent(model.train(), tok), tasks()[:2], MessageStore(tmp_path/n, sender='s'), **WRITING) for n in 'ab']
    assert all(torch.equal(stores[0][i].h, stores[1][i].h) for i in ('task-0', 'task-1'))


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from test_collect import *
import torch.distributed as dist
class Slow(MessageStore):
    def append(self, messages):
        super().append(messages)
        print(len(self), flush=True)
        time.sleep(.3)
collect(sender(), tasks(), Slow({store!r}, sender='s'), batch_size=1, **WRITING)
"""


def test_killed_and_resumed_nothing_is_lost_or_done_twice(tmp_path):
    code = SLOW.format(tests=str(Path(__file__).parent), store=str(tmp_path/'killed'))
    with subprocess.Popen([*warm(), '-c', code], stdout=subprocess.PIPE, text=True) as child:
        while (line := child.stdout.readline()) and int(line) < 3: pass
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and line
    store = MessageStore(tmp_path/'killed', sender='s')
    before = {i: store[i].h for i in store.task_ids()}
    assert 3 <= len(before) < 8
    shards = sorted((tmp_path/'killed').glob('shard-*'))
    stamps = [s.stat().st_mtime_ns for s in shards]
    model, tok = sender()
    collect(Agent(model, tok), tasks(), store, batch_size=2, **WRITING)
    assert [s.stat().st_mtime_ns for s in shards] == stamps
    whole = collect(Agent(model, tok), tasks(), MessageStore(tmp_path/'whole', sender='s'), batch_size=8, **WRITING)
    again = MessageStore(tmp_path/'killed', create=False)
    assert again.task_ids() == whole.task_ids() == [t.task_id for t in tasks()]
    for i in again.task_ids():
        assert again[i].token_ids == whole[i].token_ids
        assert cast.apart(again[i].h, whole[i].h) < 1e-6


SHARE = """
from test_collect import *
import torch.distributed as dist
store = collect(sender(), tasks(), MessageStore(sys.argv[1], sender='s'), batch_size=2, **WRITING)
print(dist.get_world_size(), dist.get_backend(), store.writer, *sorted(store.task_ids()))
"""


def test_two_processes_write_what_one_does_and_go_on_where_one_stopped(tmp_path):
    model, tok = sender()
    whole = collect(Agent(model, tok), tasks(), MessageStore(tmp_path/'whole', sender='s'), batch_size=8, **WRITING)
    collect(Agent(model, tok), tasks()[:3], MessageStore(tmp_path/'shared', sender='s'), **WRITING)
    said = cast.pair(tmp_path/'share.py', SHARE, str(tmp_path/'shared'))
    assert said.splitlines() == ['2 gloo 0 ' + ' '.join(t.task_id for t in tasks())]*2 # each of them has them all
    shards = {p.name for p in (tmp_path/'shared').glob('shard-*')}
    assert shards == {'shard-0-000000.safetensors', 'shard-0.0-000000.safetensors', 'shard-0.0-000001.safetensors', 'shard-0.1-000000.safetensors'}
    store = MessageStore(tmp_path/'shared', create=False)
    assert sorted(store.task_ids()) == whole.task_ids()
    for i in whole.task_ids():
        assert store[i].token_ids == whole[i].token_ids and store[i].text == whole[i].text
        assert cast.apart(store[i].h, whole[i].h) < 1e-6
    names = [p.stat().st_mtime_ns for p in sorted((tmp_path/'shared').glob('shard-*'))]
    collect(Agent(model, tok), tasks(), store, **WRITING) # nothing is left for one process to do
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path/'shared').glob('shard-*'))] == names
