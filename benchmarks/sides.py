"What the benchmarks share whose sides run in processes of their own: how a side is run, and what memory it takes. Linux only."
import json, re, subprocess, sys
from pathlib import Path

PYTHON = [sys.executable] # what a side is run by


def run(script, name, **settings):
    "The row that a side prints: `script` with `--side NAME` and these settings."
    words = ['--side', name, *(f'--{k}={v}' for k, v in settings.items())]
    done = subprocess.run([*PYTHON, script, *words], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'the side {name} ended with status {done.returncode}: {done.stderr[-500:]}')
    return dict(side=name, **json.loads(done.stdout.splitlines()[-1]))


def resident(what):
    "Memory of this process in MB: VmRSS is resident now, VmHWM the most so far."
    return int(re.search(rf'{what}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])/1024


def memory_from_here():
    "A function that tells the largest resident set from now on, in MB beyond what is there now."
    Path('/proc/self/clear_refs').write_text('5') # the most so far is what is there now
    before = resident('VmRSS')
    return lambda: resident('VmHWM') - before
