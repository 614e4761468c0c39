"""What is trained of an actor: the whole of it, LoRA matrices and the adapter, or the adapter alone; time and memory of a step.

    python benchmarks/trainable.py [--model smollm2-135m] [--n 4] [--steps 3] [--out FILE]

Experts' conversations of `--n` full-size household games of the training scenes, made with seed 0, as `interlat-train` reads them;
the messages are random states, one for each word of the plan. The objective with both readings with a gradient, and AdamW. Each
side runs in a process of its own, one after the other. Time is the median step, the first one not counted; tokens are those of the
conversations. Memory is the largest resident set (VmHWM) beyond what the process has before the model is loaded: weights,
gradients, moments, and what a step takes for itself. Linux only."""
import argparse, json, statistics, sys, tempfile, time
from pathlib import Path

import torch

from interlat.agents.new_actor import TRAINABLE, new_actor
from interlat.core.basics import InterlatError, cli, set_seed, write_atomic
from interlat.games.generate import generate_games
from interlat.games.household import game_task
from interlat.messages.message import LatentMessage, MessageStore
from interlat.models.lm import load_lm, sizes
from interlat.runs.provenance import machine
from interlat.training.lessons import ActorCollator, ActorDataset
from interlat.training.objective import Objective
from sides import memory_from_here, run
from train import ours


def lessons(agent, folder, n):
    "A batch of experts' conversations with random messages."
    tasks, width = [game_task(f) for f in generate_games(Path(folder)/'games', n, 'train', 0, size='full')], sizes(agent.model.config).width
    store = MessageStore(Path(folder)/'messages', 'random')
    plans = [agent.tokenizer(t.plan)['input_ids'] for t in tasks]
    store.append([LatentMessage(torch.randn(len(ids), width), ids, t.plan, t.task_id, "random") for t, ids in zip(tasks, plans)])
    rows = ActorDataset(tasks, agent.tokenizer, store)
    batch = ActorCollator(agent.tokenizer.pad_token_id)([rows[i] for i in range(n)])
    return batch | dict(negative=torch.arange(n).roll(1))


def side(name, model, n, steps):
    "In a process of its own: some steps, and print their time and memory."
    most = memory_from_here()
    set_seed(0)
    agent = new_actor(model, trainable=name, device='cpu')
    actor = agent.model.train()
    with tempfile.TemporaryDirectory() as folder: batch = lessons(agent, folder, n)
    objective, rates, seconds = Objective(actor), [0.]*n, []
    trained = [p for p in actor.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        ours(objective, batch, rates).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    tokens, said = int(batch['attention_mask'].sum()), int((batch['labels'] != -100).sum())
    middle = statistics.median(seconds[1:])
    print(json.dumps(dict(trained=sum(p.numel() for p in trained), tokens=tokens, supervised=said/tokens, seconds=middle,
                          tokens_per_second=tokens/middle, peak_mb=most())))


def benchmark(model, n, steps):
    "A row for each side, and how it compares with training the whole."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    rows = [run(__file__, name, model=model, n=n, steps=steps) for name in TRAINABLE]
    whole = rows[0]
    return [r | dict(faster=whole['seconds']/r['seconds'], memory=r['peak_mb']/whole['peak_mb']) for r in rows]


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='smollm2-135m', help='what the actor is made from')
    parser.add_argument('--n', type=int, default=4, help='conversations in a batch')
    parser.add_argument('--steps', type=int, default=3, help='of each side, and one more that is not counted')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=TRAINABLE, help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side: return side(a.side, a.model, a.n, a.steps)
    rows = benchmark(a.model, a.n, a.steps)
    for r in rows:
        print('{side:8}{trained:12,} trained {seconds:8.2f} s a step, {tokens_per_second:6.0f} tokens a second ({faster:.2f}x), '
              '{peak_mb:7,.0f} MB ({memory:.2f}x); {tokens:,} tokens, {supervised:.0%} supervised'.format(**r))
    if a.out: write_atomic(a.out, json.dumps(dict(machine=machine(), model=a.model, n=a.n, rows=rows), indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
