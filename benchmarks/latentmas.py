"""LatentMAS in a batch against the same method one row at a time, as published: the same caches, in less time.

    python benchmarks/latentmas.py [--model tiny-qwen2 smollm2-135m] [--n 16] [--steps 10] [--agents 1 4] [--rounds 3] [--out FILE]

`--n` prompts of 20 to 60 random tokens for each agent, made with seed 0; one agent, and four in a row, each of which reads its prompt
on top of all that was there and thinks `--steps` latent steps. The clock covers all of that, from the prompts to the caches that are
handed on. `batch` is the channel; `row` is the published loop: one row, one forward pass a prompt and one a step through the model's
own cache, states asked for. Both run by turns in this process, in float32; each number is the best of the rounds.
That the caches are the same is checked before, on the first four rows in float64, where what rounding leaves does not grow from step to
step: keys and values differ by at most 1e-5 of the largest, at least 1. How far float32 takes the sides apart is told beside it."""
import argparse, json, sys, time
from random import Random

import torch
from transformers import DynamicCache

from interlat.channels.latentmas import LatentMAS
from interlat.core.basics import cli, write_atomic
from interlat.models.causal_lm import causal_lm
from interlat.models.lm import Agent, load_lm
from interlat.runs.provenance import git_state, machine

MOST = 1e-5 # difference of the sides, as a part of the largest number, at least 1


@torch.no_grad()
def row(lm, prompts, steps, feed):
    "The published loop for one row: its cache after the last agent."
    cache, how = DynamicCache(config=lm.config), dict(use_cache=True, output_hidden_states=True)
    def read(n, **what):
        mask = torch.ones(1, cache.get_seq_length() + n, dtype=torch.long, device=lm.device)
        return lm(**what, attention_mask=mask, past_key_values=cache, **how).hidden_states[-1][:,-1]
    for ids in prompts:
        h = read(len(ids), input_ids=torch.tensor([ids], device=lm.device))
        for _ in range(steps): h = read(1, inputs_embeds=feed(h)[:,None])
    return cache


def apart(sent, caches):
    "The largest difference of the two sides' keys and values."
    pairs = [(x, y[0]) for p, c in zip(sent, caches, strict=True) for part in ('keys', 'values') for x, y in zip(getattr(p, part), (getattr(l, part) for l in c.layers))]
    return max(((x - y).abs().max()/y.abs().max().clamp(min=1)).item() for x, y in pairs)


def measure(agent, n, steps, agents, rounds):
    "A row of the result: both sides by turns."
    lm, channel, draw = agent.model, LatentMAS(steps), Random(0)
    ids, feed = causal_lm(lm).plain_ids, channel.feed(lm) # which gives states in the number type that they come in
    prompts = [[draw.choices(ids, k=draw.randint(20, 60)) for _ in range(agents)] for _ in range(n)]
    channel.send(agent, [p[:1] for p in prompts[:2]]) # what is tried once is tried before
    def both(some): return dict(batch=lambda: channel.send(agent, some), row=lambda: [row(lm, p, steps, feed) for p in some])
    lm.double()
    off = apart(*(work() for work in both(prompts[:4]).values()))
    lm.float()
    if off > MOST: raise RuntimeError(f'the sides differ by up to {off:.1e} of the largest number')
    best, made = {}, {}
    for _ in range(rounds):
        for side, work in both(prompts).items():
            start = time.perf_counter()
            made[side] = work()
            best[side] = min(best.get(side, float('inf')), time.perf_counter() - start)
    positions, ours, theirs = sum(map(len, sum(prompts, []))) + n*agents*steps, best['batch'], best['row']
    how = dict(agents=agents, n=n, steps=steps, positions=positions)
    return how | dict(seconds=ours, row_seconds=theirs, faster=theirs/ours, apart=off, apart_float32=apart(made['batch'], made['row']))


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', nargs='+', default=['tiny-qwen2', 'smollm2-135m'], help='whose agents think')
    parser.add_argument('--n', type=int, default=16, help='rows of the batch')
    parser.add_argument('--steps', type=int, default=10, help='latent steps of an agent')
    parser.add_argument('--agents', type=int, nargs='+', default=[1, 4], help='in a row')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each side')
    parser.add_argument('--out', default='', help='JSON file for the result')
    a = parser.parse_args(args)
    rows = []
    for name in a.model:
        agent = Agent(load_lm(name, 'float32', 'cpu').model, None)
        for agents in a.agents:
            rows.append(dict(model=name, **measure(agent, a.n, a.steps, agents, a.rounds)))
            print('{model}, {agents} in a row, {n} prompts, {steps} steps: {seconds:.3f} s together, {row_seconds:.3f} s a row at a time: {faster:.2f}x; '
                  'apart {apart:.1e}, in float32 {apart_float32:.1e}'.format(**rows[-1]), flush=True)
    if a.out: write_atomic(a.out, json.dumps(dict(machine=machine(), git=git_state(), rows=rows), indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
