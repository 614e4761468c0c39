"A small cast for the tests of the model-facing rooms: random models, generated games, and what they need to meet."
import os, signal, subprocess, sys, time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from interlat.core.basics import *
from interlat.messages.message import *
from interlat.games.gamefile import *
from interlat.games.find import *
from interlat.games.generate import *
from interlat.games.household import *
from interlat.models.lm import *
from interlat.models.chat import *
from interlat.models.tiny import *
from warm import warm


def questions(n=6, split='test'):
    from interlat.maths.generate import generate_problems
    from interlat.maths.problems import problem_task
    return [problem_task(p) for p in generate_problems(n, split)]


def games(out, n=8, seed=3):
    return [game_task(f) for f in generate_games(out, n, 'train', seed=seed)]


def tokenizer(games, family='qwen2'):
    return train_tokenizer(family, [t['content'] for g in games for t in [*g.prompt, *g.turns]], vocab_size=700)


def lm(tokenizer, preset='tiny-qwen2', **kw):
    return tiny_lm(preset, tokenizer, **{**dict(num_hidden_layers=2, hidden_size=32, intermediate_size=64, initializer_range=.3), **kw}).eval()


def apart(a, b):
    "The largest difference between two tensors, as a part of the largest number in the second: what rounding leaves is small there, whatever the size of the numbers."
    return ((a - b).abs().max()/b.abs().max()).item()


def random_lm(family='qwen2', width=16, vocab=50, seed=0, **kw):
    "A two-layer model of any family, random and loud, without a tokenizer; ids 0 to 2 are kept for padding and marks."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.for_model(family, **{**dict(vocab_size=vocab, hidden_size=width, intermediate_size=2*width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                                    initializer_range=.4, max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=None), **kw})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def actor(base, tokenizer, seed=0):
    from interlat.agents.actor import ModelWithInsertedHiddenState
    bop, eop = message_token_ids(tokenizer)
    width = base.config.hidden_size
    a = ModelWithInsertedHiddenState(base, prepended_length=40, hidden_size=width, bop_id=bop, eop_id=eop, seed=seed)
    a.processor.adaptive_proj.output_scale.data.fill_(5) # loud enough to change what a random model says
    return a.eval()


@contextmanager
def exact():
    "Norms, softmax and losses go down to float32 in whatever model: in here those of a float64 model stay exact, whatever the processor sums in what order."
    import pytest, torch
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch, 'float32', torch.float64)
        m.setattr(torch.Tensor, 'float', torch.Tensor.double)
        yield


def call(main, *argv):
    "Run a command in this process: its exit status, and what it wrote to stdout and stderr."
    import pytest
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as m, redirect_stdout(out), redirect_stderr(err):
        m.setattr(sys, 'argv', ['interlat', *map(str, argv)])
        with pytest.raises(SystemExit) as stop: main()
    return stop.value.code, out.getvalue(), err.getvalue()


END = """
import torch.distributed as dist
if dist.is_initialized(): dist.barrier()
sys.stdout.flush()
os._exit(0) # all is done: torch's FSDP for CPUs now and then aborts while the interpreter is taken down
"""


def pair(script, code, *words):
    "Write `code` to `script` and run it in two processes, which find this folder's modules and assert that they are two: what each said, the first one first."
    start = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\nimport os; assert os.environ['WORLD_SIZE'] == '2'\n"
    script.write_text(start + code + END)
    logs = script.with_suffix('.logs') # a file for each: on one pipe they interrupt each other
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', '--redirects=1', f'--log-dir={logs}', '--no-python']
    run = subprocess.run([*warm(), *torchrun, *warm(), str(script), *words], text=True, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    said = sorted(logs.rglob('stdout.log'))
    assert [p.parent.name for p in said] == ['0', '1']
    return ''.join(p.read_text() for p in said)


def kill_after(code, log, n, whole):
    "Run code that says its pid and adds lines to a table; kill it at `n` of the `whole` lines, and tear the last one."
    def text(): return log.read_text() if log.exists() else ''
    with subprocess.Popen([*warm(), '-c', code], stdout=subprocess.PIPE) as child:
        while text().count('\n') < n and child.poll() is None: time.sleep(.02)
        os.kill(int(child.stdout.readline()), signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL and n <= text().count('\n') and len(text().splitlines()) < whole
    log.write_bytes(log.read_bytes()[:-5])
