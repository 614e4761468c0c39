"""Messages from one process to another: a socket and a folder of packets, against text JSON of nested lists over the same kind of socket.

    python benchmarks/channel.py [--out FILE]

This process sends, a child receives. The clock runs from the first message until the child has the last one as a tensor;
libraries are loaded, and a message has gone through, before it starts. Packets are checked in full (size, checksum, header,
finite states) and answered one by one; files are flushed to the disk. The plain side does what the published code's files do:
states as nested lists in JSON, here a line a message, parsed into lists and a tensor, with no check and one answer at the end.
Sums of the states are compared. MB is 10^6 bytes; `mb` is what a message has on the wire, `states_mb_s` counts its states as
float32. Each number is the median of the rounds; in a round each side runs once."""
import argparse, json, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from interlat.messages.channel import connect, listen
from interlat.core.basics import cli, write_atomic
from interlat.messages.mailbox import Expected
from interlat.messages.message import LatentMessage
from interlat.runs.provenance import machine

PYTHON = [sys.executable] # what a side is run by

CODECS = ('float32', 'bfloat16', 'int8')
SIDES = ('plain', *(f'{way} {codec}' for way in ('socket', 'folder') for codec in CODECS))
SIZES = ((444, 3584, 6), (16, 128, 400)) # states, width, messages: the paper's and ours


def message(i, length, width):
    states = torch.randn(length, width, generator=torch.Generator().manual_seed(i))
    return LatentMessage(states, list(range(length)), 'go to shelf 1. '*4, f'task-{i}', 'sender')


def plain_bytes(m):
    "A message as a line of JSON."
    return json.dumps(dict(task_id=m.task_id, hidden_state=m.h.tolist(), plan=m.text)).encode() + b'\n'


def plain_receiver():
    "Parses line after line; yields tensors."
    server = socket.create_server(('127.0.0.1', 0))
    print('{}:{}'.format(*server.getsockname()), flush=True)
    call, _ = server.accept()
    for line in call.makefile('rb'):
        if line == b'\n': break
        yield torch.tensor(json.loads(line)['hidden_state'])
    call.sendall(b'.')


def packet_receiver(at):
    with listen(at, Expected(sender='sender'), timeout=300.) as inbox:
        print(inbox.address, flush=True)
        for m in inbox.receive(): yield m.h


def receive(way, folder):
    "The child: says where it listens, then what the states add up to, the warming message left out."
    sums = [h[0].double().sum().item() for h in (plain_receiver() if way == 'plain' else packet_receiver('127.0.0.1:0' if way == 'socket' else folder))]
    print(json.dumps(sums[1:]), flush=True)


class Plain:
    "The sender of JSON."
    def __init__(self, address):
        host, port = address.split(':')
        self.call = socket.create_connection((host, int(port)))
    def send(self, m): self.call.sendall(plain_bytes(m))
    def close(self):
        self.call.sendall(b'\n')
        self.call.recv(1)
        self.call.close()


LINE = ('  {side:16}{ms:10.2f} ms a message ({ms_least:.2f} to {ms_most:.2f}) {messages_s:10,.1f} /s  {mb:8.3f} MB  {mb_s:8,.1f} MB/s  '
        '{faster:6.1f}x faster, {smaller:.1f}x smaller than plain')


def run(side, messages, warm):
    "Seconds until the child has all of them; what their states add up to there."
    way, _, codec = side.partition(' ')
    def receiver(folder):
        words = ['--receive', way, '--folder', folder]
        return subprocess.Popen([*PYTHON, __file__, *words], stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as folder, receiver(folder) as child:
        address = child.stdout.readline().strip()
        out = Plain(address) if way == 'plain' else connect(address, codec)
        out.send(warm)
        time.sleep(.1)
        start = time.perf_counter()
        for m in messages: out.send(m)
        out.close()
        sums = json.loads(child.stdout.readline())
        seconds = time.perf_counter() - start
    return seconds, sums


def check(side, messages, sums):
    "Raise if what arrived is not what was sent: exactly in float32, nearly in fewer bits."
    wanted = torch.tensor([m.h[0].double().sum().item() for m in messages])
    off = (torch.tensor(sums) - wanted).abs().max().item() if len(sums) == len(wanted) else float('inf')
    allowed = 1. if side.endswith(('bfloat16', 'int8')) else 0.
    if off > allowed: raise RuntimeError(f'{side}: {len(sums)} of {len(wanted)} messages, sums off by {off}')


def measure(length, width, n, rounds=3):
    "All sides with messages of one size: a row each."
    messages, warm = [message(i, length, width) for i in range(n)], message(-1, length, width)
    took = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            seconds, sums = run(side, messages, warm)
            check(side, messages, sums)
            took[side].append(seconds)
    rows, states = [], 4e-6*length*width # MB of a message in float32
    for side, seconds in took.items():
        each, mb = statistics.median(seconds)/n, len(plain_bytes(warm) if side == 'plain' else warm.pack(side.split()[1]))/1e6
        times = {name: round(1000*s, 3) for name, s in (('ms', each), ('ms_least', min(seconds)/n), ('ms_most', max(seconds)/n))}
        rates = dict(messages_s=round(1/each, 1), mb=round(mb, 4), mb_s=round(mb/each, 1), states_mb_s=round(states/each, 1))
        rows.append(dict(side=side, **times, **rates))
    for r in rows: r.update(faster=round(rows[0]['ms']/r['ms'], 1), smaller=round(rows[0]['mb']/r['mb'], 1))
    return dict(length=length, width=width, n=n, rounds=rounds, rows=rows)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', nargs=3, type=int, action='append', metavar=('LENGTH', 'WIDTH', 'N'),
                        help="states, their width, messages; the paper's size and ours if there is none")
    parser.add_argument('--rounds', type=int, default=3, help='runs of each side')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--receive', choices=('plain', 'socket', 'folder'), help=argparse.SUPPRESS)
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.receive: return receive(a.receive, a.folder)
    result = dict(machine=machine(), sizes=[measure(*size, a.rounds) for size in a.size or SIZES])
    for s in result['sizes']:
        print(f"{s['n']} messages of {s['length']} states of width {s['width']}")
        for r in s['rows']: print(LINE.format(**r))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
