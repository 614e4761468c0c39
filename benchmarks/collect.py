"""Collecting messages against the two-pass way: `generate` writes the plans of a batch, then prompt and plan are read again for the states.

    python benchmarks/collect.py [--model smollm2-135m] [--n 64] [--tokens 64] [--batch 32] [--out FILE]

Full-size household games of the training scenes, made with seed 0, their maps in the prompt. The end tokens are put out of reach, so
that every plan has `--tokens` words. Each side runs in a process of its own, one after the other, and leaves its messages: the words
must be the same, the states to 1e-5 of their size. Memory is the largest resident set (VmHWM) beyond what the process has with the
model in place. Linux only."""
import argparse, json, sys, tempfile, time
from pathlib import Path

import torch

from interlat.agents.collect import generate_messages, read_states
from interlat.core.basics import cli, write_atomic
from interlat.games.find import find_games
from interlat.games.generate import generate_games
from interlat.games.household import game_task
from interlat.models.chat import encode_chat
from interlat.models.lm import load_lm
from interlat.models.sampling import end_token_ids, pad_left
from interlat.runs.provenance import machine
from sides import memory_from_here, run

SIDES = 'ours', 'twice'


def twice(sender, prompts, tokens):
    "The way that it was done: states (L, D) and L token ids of each prompt."
    model, tokenizer = sender
    rows = [encode_chat(tokenizer, p, add_generation_prompt=True).input_ids for p in prompts]
    ids, mask = pad_left(rows, tokenizer.pad_token_id)
    how = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad(): plans = model.generate(ids, attention_mask=mask, **how)[:,ids.shape[1]:].tolist()
    return list(zip(read_states(model, rows, plans), plans))


def ours(sender, prompts, tokens): return [(h, y) for h, y, _ in generate_messages(sender, prompts, tokens)]


def endless(sender):
    "The same sender, whose plans do not end."
    head, ends = sender.model.get_output_embeddings(), torch.tensor(end_token_ids(sender))
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)).index_fill(0, ends, -1e4))
    return sender


def side(name, a):
    "In a process of its own: all messages; prints seconds and memory, and leaves what was written."
    sender = endless(load_lm(a.model, 'float32', 'cpu'))
    prompts = [game_task(f).prompt for f in find_games(a.games, 'train')][:a.n]
    way, written = globals()[name], []
    way(sender, prompts[:2], 2) # what is tried and imported once is not counted
    most, start = memory_from_here(), time.perf_counter()
    for i in range(0, len(prompts), a.batch): written += way(sender, prompts[i:i+a.batch], a.tokens)
    seconds = time.perf_counter() - start
    torch.save(written, Path(a.games)/f'{name}.pt')
    print(json.dumps(dict(messages=len(written), seconds=seconds, messages_per_second=len(written)/seconds, peak_mb=most())))


def same(folder, sides=SIDES):
    "The largest difference of two sides' states, as a part of the largest state; raises if their words differ."
    a, b = (torch.load(Path(folder)/f'{name}.pt') for name in sides)
    for (_, x), (_, y) in zip(a, b, strict=True):
        if x != y: raise RuntimeError(f'the sides wrote different words: {x} and {y}')
    return max(float((h - z).abs().max()/z.abs().max()) for (h, _), (z, _) in zip(a, b))


def benchmark(a):
    with tempfile.TemporaryDirectory() as a.games:
        generate_games(a.games, a.n, 'train', 0, size='full')
        asked = {k: getattr(a, k) for k in ('model', 'n', 'tokens', 'batch', 'games')}
        rows = [run(__file__, name, **asked) for name in SIDES]
        apart = same(a.games)
    if apart > 1e-5: raise RuntimeError(f'the states of the sides differ by {apart:.1e} of the largest')
    first, second = rows
    return dict(machine=machine(), model=a.model, n=a.n, tokens=a.tokens, batch=a.batch, rows=rows, apart=apart,
                faster=second['seconds']/first['seconds'], smaller=second['peak_mb']/first['peak_mb'])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='smollm2-135m', help='sender')
    parser.add_argument('--n', type=int, default=64, help='games')
    parser.add_argument('--tokens', type=int, default=64, help='words of a plan')
    parser.add_argument('--batch', type=int, default=32, help='prompts at a time')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument('--games', help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side: return side(a.side, a)
    result = benchmark(a)
    for r in result['rows']: print('{side:6}{messages:4} messages in {seconds:7.1f} s: {messages_per_second:.2f} a second, {peak_mb:,.0f} MB'.format(**r))
    print('{faster:.2f}x faster, {smaller:.2f}x less memory; the same words, states to {apart:.0e} of the largest'.format(**result))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
