"""What a signature costs: packets sealed and opened with a key and without, against SHA-256 over the same bytes.

    python benchmarks/signing.py [--out FILE]

One message of each size as float32; each number is the best of the rounds, in which all take turns. `pack` and `unpack` are what a
message takes without a key, checksum and finite states checked; `sign` and `open` are what a key adds at the two ends; `hash` is Python's
hashlib over the packet. MB is 10^6 bytes of the packet. What a channel takes besides is in benchmarks/channel.py;
`remember_ms` is what the receiver's memory of what it has seen takes, one small write to the disk a message."""
import argparse, hashlib, json, tempfile, time
from pathlib import Path

import torch

from interlat.core.basics import cli, write_atomic
from interlat.messages.message import LatentMessage
from interlat.messages.signing import Seen, open_envelope, sign_packet
from interlat.runs.provenance import machine

SIZES = ((444, 3584), (16, 128)) # states, width: the paper's and ours
LINE = '  {side:10}{ms:10.4f} ms  {mb_s:10,.0f} MB/s'


def measure(length, width, rounds=20):
    "A row for each part, and what signing costs as a share of hashing and of packing."
    states = torch.randn(length, width, generator=torch.Generator().manual_seed(0))
    m, secret, run = LatentMessage(states, list(range(length)), 'go to shelf 1. '*4, 'task', 'sender'), bytes(32), bytes(16)
    packet = m.pack()
    raw, numbers = sign_packet(packet, secret, run, 1), iter(range(1, rounds + 1))
    with tempfile.TemporaryDirectory() as folder:
        seen = Seen(Path(folder)/'seen')
        sides = dict(pack=m.pack, unpack=lambda: LatentMessage.unpack(packet), hash=lambda: hashlib.sha256(packet).digest(),
                     sign=lambda: sign_packet(packet, secret, run, 1), open=lambda: open_envelope(raw, secret), remember=lambda: seen.add(run, next(numbers)))
        best = dict.fromkeys(sides, float('inf'))
        for _ in range(rounds):
            for side, work in sides.items():
                start = time.perf_counter()
                work()
                best[side] = min(best[side], time.perf_counter() - start)
        seen.close()
    remember, mb, both = best.pop('remember'), len(packet)/1e6, best['sign'] + best['open']
    rows = [dict(side=side, ms=round(1e3*s, 4), mb_s=round(mb/s, 1)) for side, s in best.items()]
    share = dict(of_hashing=round(both/(2*best['hash']), 2), of_packing=round(both/(best['pack'] + best['unpack']), 2))
    return dict(length=length, width=width, mb=round(mb, 4), rounds=rounds, rows=rows, remember_ms=round(1e3*remember, 4), **share)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs=2, type=int, action='append', metavar=('LENGTH', 'WIDTH'), help="states, their width; the paper's and ours if there is none")
    parser.add_argument('--rounds', type=int, default=20, help='runs of each part')
    parser.add_argument('--out', default='', help='JSON file for the result')
    a = parser.parse_args(args)
    result = dict(machine=machine(), sizes=[measure(*size, a.rounds) for size in a.size or SIZES])
    for s in result['sizes']:
        print(f"{s['length']} states of width {s['width']}, {s['mb']:g} MB")
        for r in s['rows']: print(LINE.format(**r))
        print('  to sign and to open: {of_hashing:.2f}x hashing the packet twice, {of_packing:.2f}x packing and unpacking it; to remember: {remember_ms:.2f} ms'.format(**s))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
