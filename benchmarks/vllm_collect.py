"""Collecting messages in vLLM against collecting them with transformers: as now, and as it was at revision 6d1dad3, which wrote a batch
and then read prompt and plan again for the states. In the environment of `make vllm`:

    .venv-vllm/bin/python benchmarks/vllm_collect.py [--model smollm2-135m] [--n 64] [--tokens 64] [--batch 32] [--at_once 64] [--many 512] [--out FILE]

Full-size household games of the training scenes, made with seed 0, their maps in the prompt; every plan has `--tokens` words, as nothing
ends one. Each side runs in a process of its own, one after the other, in float32, and leaves its messages: the words must be the same, the
states to 1e-4 of their size. Seconds are those of the clock, CPU seconds those of all threads. transformers gets `--batch` prompts at a time,
vLLM `--at_once`. Last, a store of `--many` messages is filled in vLLM, and the resident memory of the process is held against what it
was after the first batch. Linux only."""
import argparse, json, sys, tempfile, time
from pathlib import Path

import torch

import collect as plain
from interlat.agents.served import Served, collect_served, need_vllm
from interlat.core.basics import cli, write_atomic
from interlat.core.tasks import further_samples
from interlat.games.find import find_games
from interlat.games.generate import generate_games
from interlat.games.household import game_task
from interlat.messages.message import MessageStore
from interlat.models.chat import encode_chat
from interlat.models.lm import Agent, load_lm, load_tokenizer
from interlat.models.sampling import end_token_ids
from interlat.runs.provenance import machine
from sides import memory_from_here, resident, run

SIDES = 'vllm', 'ours', 'twice'


class Endless(Served):
    "An engine in which no plan ends before its length."
    def _params(self, ends, most, *how):
        params = super()._params(ends, most, *how)
        for p in params: p.min_tokens = most
        return params


def tasks(a): return [game_task(f) for f in find_games(a.games, 'train')]


def writer(name, a, prompts):
    "A function of some of the prompts and a length: (states, ids) of each; and how many it is given at a time."
    if name != 'vllm':
        sender = plain.endless(load_lm(a.model, 'float32', 'cpu'))
        return lambda some, tokens: getattr(plain, name)(sender, some, tokens), a.batch
    tokenizer = load_tokenizer(a.model)
    def ids(prompt): return encode_chat(tokenizer, prompt, add_generation_prompt=True).input_ids
    engine = Endless(a.model, 'float32', a.at_once)
    ends = end_token_ids(Agent(engine, tokenizer))
    engine.open(max(len(ids(p)) for p in prompts) + a.tokens)
    return lambda some, tokens: engine.write([ids(p) for p in some], tokens, ends), a.at_once


def side(name, a):
    "In a process of its own: all messages; prints seconds and memory, and leaves what was written."
    prompts, written = [t.prompt for t in tasks(a)][:a.n], []
    write, batch = writer(name, a, prompts)
    write(prompts[:2], 2) # what is tried and imported once is not counted
    most, start, cpu = memory_from_here(), time.perf_counter(), time.process_time()
    for i in range(0, len(prompts), batch): written += write(prompts[i:i+batch], a.tokens)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    torch.save(written, Path(a.games)/f'{name}.pt')
    print(json.dumps(dict(messages=len(written), seconds=seconds, cpu_seconds=cpu, messages_per_second=len(written)/seconds, peak_mb=most())))


def memory(name, a):
    "In a process of its own: a store is filled; prints the memory after the first batch and after the last."
    seen = []
    class Watched(MessageStore):
        def append(self, messages):
            super().append(messages)
            seen.append(resident('VmRSS'))
    asked = further_samples(tasks(a)[:a.n], -(-a.many//a.n))[:a.many]
    sender = Agent(Endless(a.model, 'float32', a.at_once), load_tokenizer(a.model))
    collect_served(sender, asked, Watched(Path(a.games)/'store', sender=a.model), max_new_tokens=a.tokens, progress=False)
    print(json.dumps(dict(messages=len(asked), first_mb=seen[0], last_mb=seen[-1], most_mb=max(seen), grew=seen[-1]/seen[0] - 1)))


def benchmark(a):
    with tempfile.TemporaryDirectory() as a.games:
        generate_games(a.games, a.n, 'train', 0, size='full')
        asked = {k: getattr(a, k) for k in ('model', 'n', 'tokens', 'batch', 'at_once', 'many', 'games')}
        rows = [run(__file__, name, **asked) for name in SIDES]
        apart = max(plain.same(a.games, ('vllm', name)) for name in SIDES[1:])
        if apart > 1e-4: raise RuntimeError(f'the states of the sides differ by {apart:.1e} of the largest')
        kept = run(__file__, 'memory', **asked) if a.many else None
    first, *others = rows
    return dict(machine=machine(), model=a.model, n=a.n, tokens=a.tokens, batch=a.batch, at_once=a.at_once, rows=rows, apart=apart,
                faster={r['side']: r['seconds']/first['seconds'] for r in others}, memory=kept)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='smollm2-135m', help='sender')
    parser.add_argument('--n', type=int, default=64, help='games')
    parser.add_argument('--tokens', type=int, default=64, help='words of a plan')
    parser.add_argument('--batch', type=int, default=32, help='prompts at a time, for transformers')
    parser.add_argument('--at_once', type=int, default=64, help='prompts at a time, for vLLM')
    parser.add_argument('--many', type=int, default=512, help='messages of the store whose filling is watched; 0: none')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=(*SIDES, 'memory'), help=argparse.SUPPRESS)
    parser.add_argument('--games', help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side: return memory(a.side, a) if a.side == 'memory' else side(a.side, a)
    need_vllm('this benchmark')
    result = benchmark(a)
    for r in result['rows']: print('{side:6}{messages:4} messages in {seconds:7.1f} s ({cpu_seconds:.1f} of CPU): {messages_per_second:.2f} a second, {peak_mb:,.0f} MB'.format(**r))
    print('vLLM is {ours:.2f}x faster than transformers now, {twice:.2f}x than reading twice; the same words, states to {apart:.0e} of the largest'.format(**result['faster'], apart=result['apart']))
    if result['memory']: print('a store of {messages}: {first_mb:,.0f} MB after the first batch, {last_mb:,.0f} MB at the end ({grew:+.1%})'.format(**result['memory']))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
