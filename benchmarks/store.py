"""A store of messages against the nested-list Parquet of the published code: open it and read every message once.

    python benchmarks/store.py [--n 1000] [--length 400] [--width 896] [--out FILE]

The same bfloat16 states on both sides (checked). The store is opened and read with every checksum verified. The Parquet file
(list<list<float>>) is read as the published code reads it: the whole table into nested Python lists, then a tensor a message.
Each side runs in a process of its own, its libraries loaded and one message of another file read before the clock starts; both
files have just been written, so neither waits for the disk.

Memory is what the process has more than at that moment: `peak_mb` is its largest resident set (VmHWM, what ru_maxrss reports;
pages of mapped files count), `anon_mb` its largest anonymous part (RssAnon, sampled every 5 ms; mapped files do not count). Linux
only."""
import argparse, json, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from interlat.core.basics import InterlatError, cli, write_atomic
from interlat.messages.message import LatentMessage, MessageStore
from interlat.runs.provenance import machine

PYTHON = [sys.executable] # what a side is run by

STATES = pa.list_(pa.list_(pa.float32()))


def message(i, length, width):
    "Message `i`: random states in bfloat16."
    g = torch.Generator().manual_seed(i)
    return LatentMessage(torch.randn(length, width, generator=g).bfloat16(), list(range(length)), f'plan {i}', f'task-{i}', 'sender')


def write(folder, n, length, width, shard):
    "`n` messages in `folder`: a store with `shard` messages a file, and one Parquet file."
    store = MessageStore(folder/'store')
    folder.mkdir()
    schema = pa.schema(dict(task_id=pa.string(), hidden_state=STATES, plan=pa.string()))
    rows, one = pa.array(range(0, length*width + 1, width), pa.int32()), pa.array([0, length], pa.int32())
    with pq.ParquetWriter(folder/'nested.parquet', schema) as out:
        for first in range(0, n, shard):
            batch = [message(i, length, width) for i in range(first, min(first + shard, n))]
            store.append(batch)
            for m in batch:
                states = pa.ListArray.from_arrays(rows, pa.array(m.h.float().flatten().numpy()))
                out.write_table(pa.table([[m.task_id], pa.ListArray.from_arrays(one, states), [m.text]], schema))


def read_store(folder):
    "(task id, states) of every message, each checked against its checksum."
    for m in MessageStore(folder/'store', create=False): yield m.task_id, m.h


def read_nested(folder):
    "(task id, states) of every message, the whole table in lists first."
    rows = pq.read_table(folder/'nested.parquet').to_pylist()
    for row in rows: yield row['task_id'], torch.tensor(row['hidden_state'], dtype=torch.bfloat16)


SIDES = dict(store=read_store, nested=read_nested)


def status(pid='self'):
    "Memory of a process in MB: resident now, the most so far, anonymous now."
    text = Path(f'/proc/{pid}/status').read_text()
    return {k: int(found[1])/1024 for k in ('VmRSS', 'VmHWM', 'RssAnon') if (found := re.search(rf'{k}:\s+(\d+) kB', text))}


def side(name, folder):
    "In a process of its own: read, and print seconds, memory and what was read."
    for _ in SIDES[name](folder/'warm'): pass
    Path('/proc/self/clear_refs').write_text('5') # the largest resident set counts from here
    before = status()
    print('ready', flush=True)
    start = time.perf_counter()
    read = {task_id: h[0].double().sum().item() for task_id, h in SIDES[name](folder/'all')}
    seconds = time.perf_counter() - start
    print(json.dumps(dict(seconds=seconds, peak_mb=status()['VmHWM'] - before['VmRSS'], anon_start=before['RssAnon'], read=read)))


def run(name, folder):
    "One side in a process of its own, its anonymous memory watched from here."
    with subprocess.Popen([*PYTHON, __file__, '--side', name, '--folder', folder], stdout=subprocess.PIPE, text=True) as p:
        if p.stdout.readline().strip() != 'ready': raise RuntimeError(f'the side {name} did not start')
        most = 0.
        while p.poll() is None:
            most = max(most, status(p.pid).get('RssAnon', 0.)) # gone once the process has ended
            time.sleep(0.005)
        if p.returncode: raise RuntimeError(f'the side {name} ended with status {p.returncode}')
        r = json.loads(p.stdout.read())
    anon = max(most - r['anon_start'], 0.)
    return dict(side=name, seconds=round(r['seconds'], 4), peak_mb=round(r['peak_mb'], 2), anon_mb=round(anon, 2)), r['read']


def measure(n=1000, length=400, width=896, shard=32, repeats=3):
    "Both sides on the same messages, the store the middle of `repeats`: rows, sizes on disk, ratios; raises if the states differ."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    with tempfile.TemporaryDirectory() as folder:
        warm, whole = Path(folder)/'warm', Path(folder)/'all'
        for there, count in ((warm, 1), (whole, n)): write(there, count, length, width, shard)
        files = dict(store=whole.glob('store/*'), nested=whole.glob('*.parquet'))
        disk = {k: round(sum(f.stat().st_size for f in found)/2**20, 1) for k, found in files.items()}
        stores, (nested, theirs) = [run('store', folder) for _ in range(repeats)], run('nested', folder)
    if any(read != theirs or len(read) != n for _, read in stores): raise RuntimeError('the two sides read different states')
    ours = {k: statistics.median(r[k] for r, _ in stores) for k in ('seconds', 'peak_mb', 'anon_mb')}
    page = 4096/2**20 # less than a page cannot be told from nothing
    share = {k: round(max(ours[k], page)/max(nested[k], page), 5) for k in ('peak_mb', 'anon_mb')}
    return dict(n=n, length=length, width=width, shard=shard, repeats=repeats, disk_mb=disk, rows=[dict(side='store', **ours), nested],
                faster=round(nested['seconds']/ours['seconds'], 1), peak_share=share['peak_mb'], anon_share=share['anon_mb'])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=1000, help='messages; the nested side takes 17 MB for each of 400 x 896')
    parser.add_argument('--length', type=int, default=400, help='states a message')
    parser.add_argument('--width', type=int, default=896, help='of a state')
    parser.add_argument('--shard', type=int, default=32, help='messages a shard')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side: return side(a.side, a.folder)
    result = dict(machine=machine(), **measure(a.n, a.length, a.width, a.shard))
    for r in result['rows']:
        print("{side:8}{seconds:10.3f} s  {peak_mb:10,.1f} MB at the most, {anon_mb:10,.1f} MB of it anonymous".format(**r))
    print("the store: {faster:.0f}x faster, {peak_share:.2%} of the memory ({anon_share:.2%} of the anonymous)".format(**result))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
