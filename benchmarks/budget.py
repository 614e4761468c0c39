"""What the estimator says of a time, against the time that it takes on this processor.

    python benchmarks/budget.py [--out FILE]

Writing 32 messages of 64 states with tiny-qwen2 and with a random Qwen2 of 8 layers and width 512, and 2 training steps of each.
`ratio` is measured over told: the estimator is meant to be right within about a factor of two, no better. Memory is held against
in nbs/07_training/10_memory.ipynb."""
import argparse, json, tempfile, time
from pathlib import Path

import torch

from interlat.games.generate import generate_games
from interlat.runs.costs import Training, measured_cpu, train_cost, write_cost
from interlat.agents.collect import collect, generate_messages
from interlat.core.basics import cli, write_atomic
from interlat.games.household import game_task
from interlat.models.lm import load_lm, load_tokenizer
from interlat.models.chat import encode_chat
from interlat.messages.message import MessageStore
from interlat.runs.provenance import machine
from interlat.agents.new_actor import actor_for
from interlat.training.settings import ActorArguments
from interlat.training.actor_trainer import actor_trainer


def clock(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def larger(folder, layers=8, width=512):
    "A random model in a folder, with the tokenizer of tiny-qwen2."
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    tok = load_tokenizer('tiny-qwen2')
    shape = dict(hidden_size=width, intermediate_size=4*width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8)
    config = Qwen2Config(**shape, vocab_size=len(tok), tie_word_embeddings=True, eos_token_id=tok.eos_token_id)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def row(what, told, measured):
    "What was told beside what was measured (seconds)."
    return dict(what=what, told=round(told, 3), measured=round(measured, 3), ratio=round(measured/told, 2))


def write(name, tasks, new, cpu):
    "Write a message of each task."
    n, prompts = len(tasks), [t.prompt for t in tasks]
    sender = load_lm(name, 'float32', 'cpu')
    lm, tok = sender
    lm.generation_config.eos_token_id = None # write all that is allowed
    prompt = sum(len(encode_chat(tok, p, add_generation_prompt=True)) for p in prompts)//n
    _, took = clock(lambda: generate_messages(sender, prompts, new))
    what = f'write {n} x {new} states, {lm.config.num_hidden_layers} layers of width {lm.config.hidden_size}'
    return row(what, write_cost(name, n, prompt, new, n, cpu, 4)['seconds'], took)


def train(name, tasks, store, steps, batch, cpu, folder):
    "Train an actor on messages of the tasks."
    settings = dict(max_steps=steps, per_device_train_batch_size=batch, validation_split=0., probe_steps=0)
    args = ActorArguments(str(folder), save_strategy='no', use_cpu=True, disable_tqdm=True, **settings)
    actor = actor_for(store, name, device='cpu')
    trainer = actor_trainer(actor, tasks, store, args)
    tokens = sum(len(r['input_ids']) for r in trainer.train_dataset.rows)//len(tasks)
    _, took = clock(trainer.train)
    shape = actor.model.base_model.config
    what = f'{steps} training steps of {batch}, {shape.num_hidden_layers} layers of width {shape.hidden_size}'
    return row(what, train_cost(name, Training(steps, batch, tokens, tokens), cpu)['seconds'], took)


def measure(n=32, new=64, steps=2, batch=8):
    "One dict for each thing that was told and measured (seconds)."
    cpu, rows = measured_cpu(), []
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        tasks = [game_task(f) for f in generate_games(d/'games', n, 'train')]
        sender = load_lm('tiny-qwen2', 'float32', 'cpu')
        store = collect(sender, tasks, MessageStore(d/'messages', sender='x'), max_new_tokens=32, progress=False)
        for name in ('tiny-qwen2', larger(d/'larger')):
            rows += [write(name, tasks, new, cpu), train(name, tasks, store, steps, batch, cpu, d/'trainer')]
    return dict(cpu=dict(gflops=round(cpu.flops/1e9, 1), gb_s=round(cpu.bandwidth/1e9, 1)), rows=rows)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='', help='JSON file for the result')
    a = parser.parse_args(args)
    result = dict(machine=machine(), **measure())
    for r in result['rows']: print('{what:52} told {told:8.2f} s, measured {measured:8.2f} s, ratio {ratio:.2f}'.format(**r))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
