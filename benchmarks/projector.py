"""C2C's projector over a whole cache, against the matrix products in it alone.

    python benchmarks/projector.py [--pair smollm2 qwen] [--tokens 512] [--rounds 5] [--out FILE]

A projector of the recipe's sizes (width 1,024) for each layer of the receiver, gates open, over random keys and values of `--tokens`
tokens: `smollm2` is a pair of SmolLM2-135M's shapes (30 layers, 3 heads of 64, fused with as many), `qwen` has those of Qwen2.5-0.5B
and Qwen3-0.6B (2 heads of 64 into 8 of 128, 28 layers). `products` are the same linear layers' matrix products on random inputs of
the same shapes, without biases, norms, activations and copies. Both run by turns, layer by layer, in this process; the sum over the
layers is compared, each layer's number the best of the rounds. The network is one, used for all layers: nothing in it depends on
which layer it is, and 28 of them would take 1.9 GB."""
import argparse, json, sys, time

import torch
from torch import nn

from interlat.agents.projector import C2CProjector
from interlat.core.basics import check_choice, cli, write_atomic
from interlat.runs.provenance import git_state, machine

PAIRS = dict(smollm2=(30, (3, 64), (3, 64)), qwen=(28, (2, 64), (8, 128))) # layers of the receiver; heads and sizes of both


def products(projector, tokens, draw):
    "A function that does the matrix products of a projector, and nothing else."
    linear = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    pairs = [(torch.randn(tokens, m.in_features, generator=draw), m.weight.detach().T) for m in linear]
    return lambda: [x @ w for x, w in pairs]


def measure(name, tokens, rounds, **network):
    "A row of the result: both sides by turns, layer by layer."
    (layers, source, target), draw = PAIRS[name], torch.Generator().manual_seed(0)
    projector = C2CProjector(*source, *target, **network).eval()
    for part in ('key', 'value'): getattr(projector, f'{part}_gate_logit').data.fill_(1)
    caches = [[tuple(torch.randn(1, heads, tokens, size, generator=draw) for _ in 'kv') for heads, size in (source, target)] for _ in range(layers)]
    only, best = products(projector, tokens, draw), [dict(projector=float('inf'), products=float('inf')) for _ in caches]
    with torch.no_grad():
        for _ in range(rounds):
            for found, (s, t) in zip(best, caches):
                for side, work in (('projector', lambda: projector(s, t)), ('products', only)):
                    start = time.perf_counter()
                    work()
                    found[side] = min(found[side], time.perf_counter() - start)
    seconds = {side: sum(found[side] for found in best) for side in best[0]}
    return dict(pair=name, layers=layers, tokens=tokens, seconds=seconds['projector'], products=seconds['products'], over_products=seconds['projector']/seconds['products'])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pair', nargs='+', default=list(PAIRS), help=f"of {', '.join(PAIRS)}")
    parser.add_argument('--tokens', type=int, default=512, help='of the cache')
    parser.add_argument('--width', type=int, default=1024, help='of the network')
    parser.add_argument('--rounds', type=int, default=5, help='runs of each side')
    parser.add_argument('--out', default='', help='JSON file for the result')
    a = parser.parse_args(args)
    for name in a.pair: check_choice(PAIRS, pair=name)
    rows = []
    for name in a.pair:
        rows.append(measure(name, a.tokens, a.rounds, hidden=a.width, intermediate=a.width))
        print('{pair}: {layers} layers, {tokens} tokens: {seconds:.3f} s, its matrix products alone {products:.3f} s: {over_products:.3f} times'.format(**rows[-1]), flush=True)
    if a.out: write_atomic(a.out, json.dumps(dict(machine=machine(), git=git_state(), width=a.width, rows=rows), indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
