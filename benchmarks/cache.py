"""A cache through a mailbox: packed, sent, checked and read, against plain writing and reading of as many bytes on the same disk.

    python benchmarks/cache.py [--tokens 512] [--layers 30] [--heads 3] [--size 64] [--rounds 9] [--out FILE]

The cache is that of SmolLM2-135M for 512 tokens, random, in bfloat16: 11.8 MB. In a round the two sides take turns. The plain side
writes bytes to a file, flushes it to the disk (fsync), and reads them back. Ours packs the payload, writes the packet into the folder of
a mailbox, flushed too, and a receiver reads it: size, checksum, header, shapes and finite numbers are checked, and the payload's
tensors lie in the memory that was read. Before each reading the system is asked to forget the file's pages, so that both sides read
from the disk. Writing and reading are each the best of the rounds, as what else runs on a machine only adds to it. `share` is the plain side's
seconds over ours: 1 would be a mailbox that costs nothing.

Memory is what a process has at most beyond what it had before (VmHWM, cleared just before; Linux only), in sizes of the packet. Sending
and reading are measured in a process each, one run; the sender has the payload already, the receiver nothing."""
import argparse, ctypes, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from interlat.channels.parcels import ExpectedParcels, KeyValues, Parcel
from interlat.core.basics import InterlatError, cli, write_atomic
from interlat.messages.channel import connect, listen
from interlat.runs.provenance import machine

PYTHON = [sys.executable] # what a side is run by


def parcel(tokens, layers, heads, size):
    "A random cache in bfloat16."
    g = torch.Generator().manual_seed(0)
    keys, values = ([torch.randn(heads, tokens, size, generator=g).bfloat16() for _ in range(layers)] for _ in range(2))
    cache = KeyValues(keys, values, [torch.arange(tokens)]*layers, tokens)
    return Parcel(cache, 'task-0', 'SmolLM2-135M', 'latentmas', dict(latent_steps=10))


def forget(path):
    "Ask the system to drop a file's pages."
    fd = os.open(path, os.O_RDONLY)
    try: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally: os.close(fd)


def send(p, folder): connect(folder).send(p)


def read(folder):
    with listen(folder, ExpectedParcels(kinds=('cache',))) as inbox: return next(inbox.receive())


def timed(work, *words):
    start = time.perf_counter()
    found = work(*words)
    return time.perf_counter() - start, found


def plain(raw, folder):
    "Seconds to write bytes, flushed, and to read them."
    folder.mkdir()
    wrote, _ = timed(write_flushed, raw, folder/'bytes')
    forget(folder/'bytes')
    took, found = timed((folder/'bytes').read_bytes)
    if found != raw: raise RuntimeError('the plain side read other bytes')
    return wrote, took


def write_flushed(raw, path):
    with open(path, 'wb') as f:
        f.write(raw)
        f.flush(); os.fsync(f.fileno())


def mailbox(p, folder):
    "Seconds to send a parcel, and to read it."
    sent, _ = timed(send, p, folder)
    for path in folder.glob('*.ilpk'): forget(path)
    took, found = timed(read, folder)
    a, b = (x.payload.to_tensors() for x in (p, found))
    if list(a) != list(b) or not all(torch.equal(a[k], b[k]) for k in a): raise RuntimeError('another payload arrived')
    return sent, took


def status():
    "Memory of this process in bytes: resident now, the most so far."
    text = Path('/proc/self/status').read_text()
    return [1024*int(re.search(rf'{k}:\s+(\d+) kB', text)[1]) for k in ('VmRSS', 'VmHWM')]


def side(name, shape, folder):
    "In a process of its own: send or read, and print what it took beyond what there was."
    p = parcel(*shape) if name == 'send' else None
    with tempfile.TemporaryDirectory(dir=folder.parent) as warm: # the ways through the libraries
        send(parcel(2, 2, 1, 2), Path(warm))
        read(Path(warm))
    ctypes.CDLL(None).malloc_trim(0) # what was freed is given back, or it would be used again unseen
    Path('/proc/self/clear_refs').write_text('5') # the largest resident set counts from here
    before = status()[0]
    kept = send(p, folder/'post') if name == 'send' else read(folder)
    print(json.dumps(status()[1] - before))
    del kept


def memory(name, shape):
    "Bytes that a process takes at most to send or to read."
    with tempfile.TemporaryDirectory(dir='.') as folder:
        if name == 'read': send(parcel(*shape), Path(folder))
        words = ['--side', name, '--folder', folder, '--tokens', shape[0], '--layers', shape[1], '--heads', shape[2], '--size', shape[3]]
        return json.loads(subprocess.run([*PYTHON, __file__, *map(str, words)], check=True, capture_output=True, text=True).stdout)


def measure(tokens=512, layers=30, heads=3, size=64, rounds=9):
    "Both sides by turns: seconds of each part, the share of the disk's bandwidth, and memory in packets."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    shape = tokens, layers, heads, size
    p = parcel(*shape)
    raw, took = bytes(p.pack()), dict(plain=[], mailbox=[])
    with tempfile.TemporaryDirectory(dir='.') as folder:
        for i in range(rounds + 1): # the first one warms up
            took['plain'].append(plain(raw, Path(folder)/f'plain-{i}'))
            took['mailbox'].append(mailbox(p, Path(folder)/f'post-{i}'))
    rows = []
    for name, seconds in took.items():
        wrote, reading = (min(x) for x in zip(*seconds[1:]))
        rows.append(dict(side=name, write_s=round(wrote, 5), read_s=round(reading, 5), seconds=round(wrote + reading, 5), mb_s=round(len(raw)/(wrote + reading)/1e6, 1)))
    share = round(rows[0]['seconds']/rows[1]['seconds'], 3)
    used = {f'{name}_memory': round(memory(name, shape)/len(raw), 3) for name in ('send', 'read')} # in packets
    return dict(tokens=tokens, layers=layers, heads=heads, size=size, rounds=rounds, packet=len(raw), payload=p.nbytes, rows=rows, share=share, **used)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in (('tokens', 512, 'of the cache'), ('layers', 30, 'of the model'), ('heads', 3, 'of keys and values'), ('size', 64, 'of a head')):
        parser.add_argument(f'--{name}', type=int, default=default, help=what)
    parser.add_argument('--rounds', type=int, default=9, help='turns of each side')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=('send', 'read'), help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    shape = a.tokens, a.layers, a.heads, a.size
    if a.side: return side(a.side, shape, a.folder)
    result = dict(machine=machine(), **measure(*shape, a.rounds))
    for r in result['rows']: print('{side:8} {write_s:8.4f} s to write, {read_s:8.4f} s to read, {mb_s:8,.1f} MB/s'.format(**r))
    print("{share:.0%} of the disk's bandwidth; memory {send_memory:.2f} packets to send, {read_memory:.2f} to read".format(**result))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
