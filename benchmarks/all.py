"""Every speed claim of the project, measured again by one command on this machine, one benchmark after the other.

    python benchmarks/all.py [--only NAME ...] [--out data/benchmarks]

About an hour on two quiet cores; leave the machine alone meanwhile. Each benchmark leaves its own file in `--out`, and all
together `claims.csv`: what is faster than what, by how much, and the two times where there are two. A ratio compares two things
that were run by turns in one process or one script; times of different machines are not compared. `run.json` has the machine, the
code and how long each benchmark took. What cannot be measured here (no stock engine, too little memory) is said and left out."""
import argparse, json, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil

from interlat.core.basics import InterlatError, check_choice, cli, write_atomic
from interlat.runs.provenance import git_state, machine, package_versions

HERE = Path(__file__).parent


def read(path): return json.loads(path.read_text(encoding='utf-8'))


def engine(out):
    d = read(out/'engine.json')['engines']
    game = d['games'][0]
    what, against = 'load a game, reset it, play 20 steps: native engine', 'stock TextWorld, the same commands (median game)'
    yield what, against, d['median_ratio'], game['native'], game['stock']


def rollout(out):
    rows = {r['way']: r for r in read(out/'rollout.json')['rows']}
    ours, slow = rows['together, cached'], rows['generate, one at a time']
    what, against = '16 games together, message and history in one cache', 'one game at a time, its history read anew at each step'
    yield what, against, ours['faster'], ours['seconds'], slow['seconds']


def store(out):
    d = read(out/'store.json')
    ours, theirs = d['rows']
    what = f"open a store of {d['n']:,} messages of {d['length']} states and read each, checksums verified"
    yield what, 'nested lists in Parquet, as in the published code', d['faster'], ours['seconds'], theirs['seconds']


def train(out):
    for d in read(out/'train.json')['results']:
        seconds = {(r['side'], r['gradients']): r['seconds'] for r in d['rows']}
        for n, how in {1: 'one reading with gradient', 2: 'two readings with gradient'}.items():
            ours, plain = seconds['packed', n], seconds['plain', n]
            what = f"a training step of the actor, vocabulary {d['vocab']:,}, {d['share']:.0%} of the tokens supervised, {how}"
            yield what, 'the same objective in three whole passes with all logits', plain/ours, ours, plain


def trainable(out):
    d = read(out/'trainable.json')
    whole, *others = d['rows']
    for r in others:
        what = f"a training step of {d['model']}, {d['n']} conversations of {r['tokens']/d['n']:.0f} tokens: trainable {r['side']}"
        yield what, 'the whole model trained', r['faster'], r['seconds'], whole['seconds']


def collect(out):
    d = read(out/'collect.json')
    ours, twice = d['rows']
    what, against = f"write {ours['messages']} messages of up to {d['tokens']} states with {d['model']}", 'write, then read prompt and plan again for the states'
    yield what, against, twice['seconds']/ours['seconds'], ours['seconds'], twice['seconds']


def compress(out):
    t = pd.read_csv(out/'compress_latency.csv')
    one = t[t.batch == t.batch.min()]
    full = one[one.way == 'full: write'].iloc[0]
    for r in one[one.way == 'latent'].itertuples():
        what = f"from the prompt to the actor's next word: {r.states} latent steps"
        yield what, f'{full.states} written tokens', r.faster, r.seconds, full.seconds
    rows = pd.read_csv(out/'compress_step.csv').set_index('side')
    for side, against in (('loop', 'one conversation after the other'), ('loop, no cache', 'the same without a cache')):
        yield f"a student's training step, K = {rows.K.iloc[0]}", against, rows.ours_faster[side], rows.seconds['ours'], rows.seconds[side]


def channel(out):
    for size in read(out/'channel.json')['sizes']:
        rows = {r['side']: r for r in size['rows']}
        for side in ('socket float32', 'folder float32'):
            what = f"a message of {size['length']} x {size['width']} to another process, checked: {side}"
            ours, plain = rows[side], rows['plain']
            yield what, 'JSON of nested lists over a socket, unchecked', ours['faster'], ours['ms']/1e3, plain['ms']/1e3


def cache(out):
    d = read(out/'cache.json')
    plain, ours = d['rows']
    what = f"a cache of {d['packet']/1e6:.1f} MB packed, sent through the mailbox, checked and read"
    yield what, 'as many bytes written, flushed and read', d['share'], ours['seconds'], plain['seconds']


def room(): return int(min(1000, psutil.virtual_memory().available/2**20//20)) # the nested side takes 17 MB a message


BENCHMARKS = { # name -> words after the script, what it leaves, how its claims are read
    'engine': (lambda out: ['--n', '12', '--out', out/'engine.json'], engine),
    'rollout': (lambda out: ['--out', out/'rollout.json'], rollout),
    'store': (lambda out: ['--n', room(), '--out', out/'store.json'], store),
    'train': (lambda out: ['--out', out/'train.json'], train),
    'trainable': (lambda out: ['--out', out/'trainable.json'], trainable),
    'collect': (lambda out: ['--out', out/'collect.json'], collect),
    'compress': (lambda out: ['--out', out], compress),
    'channel': (lambda out: ['--out', out/'channel.json'], channel),
    'cache': (lambda out: ['--out', out/'cache.json'], cache)}


def run(name, words):
    "A benchmark in a process of its own; the seconds that it took."
    start = time.perf_counter()
    status = subprocess.run([sys.executable, HERE/f'{name}.py', *map(str, words)]).returncode
    if status: raise InterlatError(f'benchmarks/{name}.py ended with status {status}; what it said stands above')
    return round(time.perf_counter() - start, 1)


def claim(name, what, against, ratio, ours, theirs):
    "A row of `claims.csv`."
    seconds = dict(seconds=round(float(ours), 5), against_seconds=round(float(theirs), 5))
    return dict(benchmark=name, what=what, against=against, faster=round(float(ratio), 2), **seconds)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', default=list(BENCHMARKS), metavar='NAME', help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument('--out', type=Path, default=Path('data/benchmarks'), help='folder of the results')
    a = parser.parse_args(args)
    for name in a.only: check_choice(BENCHMARKS, benchmark=name)
    if 'engine' in a.only and not find_spec('textworld'):
        print('engine: left out, the stock engine is not installed; `make test` brings it')
        a.only.remove('engine')
    a.out.mkdir(parents=True, exist_ok=True)
    took, claims, code = {}, [], git_state(HERE) # the code as it is now: what is measured goes into the working tree
    for name in a.only:
        words, told = BENCHMARKS[name]
        print(f'── {name}', flush=True)
        took[name] = run(name, words(a.out))
        claims += [claim(name, *found) for found in told(a.out)]
    table, made = pd.DataFrame(claims), dict(machine=machine(), git=code, packages=package_versions(), seconds=took)
    write_atomic(a.out/'claims.csv', table.to_csv(index=False))
    write_atomic(a.out/'run.json', json.dumps(made, indent=1) + '\n')
    print(table.drop(columns='benchmark').to_string(index=False), f'{a.out}/claims.csv', sep='\n')


if __name__ == '__main__': raise SystemExit(cli(main))
