"""Batched play with a cache against the obvious way: one game at a time, its whole history read anew at every step.

    python benchmarks/rollout.py [--games 16] [--model tiny-qwen2] [--size small|full] [--out FILE]

The same games, the same actor, the same greedy commands (checked); times are ratios within one run."""
import argparse, json, tempfile, time

import torch

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.games.generate import generate_games
from interlat.models.sampling import greedy_config
from interlat.agents.collect import generate_messages
from interlat.core.basics import write_atomic
from interlat.agents.speaker import Speaker
from interlat.games.household import game_task
from interlat.models.lm import Agent, load_lm
from interlat.models.chat import add_message_tokens, encode_chat
from interlat.messages.message import LatentMessage
from interlat.evaluation.rollout import rollout
from interlat.runs.provenance import machine

class Generate(Speaker):
    "What everybody writes first: encode the whole conversation and call `generate`, one game after the other."
    def speak(self, seats):
        said, config = [], greedy_config(Agent(self.model, self.tokenizer), self.max_new_tokens)
        for s in seats:
            chat = encode_chat(self.tokenizer, s.chat.turns, add_generation_prompt=True)
            ids, at = torch.tensor([chat.input_ids]), torch.tensor([chat.insert_at])
            new = self.actor.generate(ids, torch.ones_like(ids), at, s.embeds[None], generation_config=config)[0].tolist()
            self.computed += ids.shape[1] + s.embeds.shape[0] + 2 + len(new) - 1
            said.append(self.tokenizer.decode(new, skip_special_tokens=True))
        self.padded = self.computed
        return said


WAYS = { # name -> (who speaks, games at a time, keep what was read)
    'generate, one at a time': (Generate, 1, False),
    'one at a time, read anew': (Speaker, 1, False), 'together, read anew': (Speaker, None, False),
    'one at a time, cached': (Speaker, 1, True), 'together, cached': (Speaker, None, True)}


def cast(model, n, size, folder):
    "An actor that has learned nothing about messages, games and their messages."
    sender = load_lm(model, 'float32')
    bop, eop = add_message_tokens(sender)
    tasks = [game_task(f) for f in generate_games(folder, n, 'valid_seen', size=size)]
    parts = generate_messages(sender, [t.prompt for t in tasks], max_new_tokens=64)
    actor = ModelWithInsertedHiddenState(sender.model, 128, sender.model.config.hidden_size, bop_id=bop, eop_id=eop)
    return Agent(actor, sender.tokenizer), tasks, [LatentMessage(*p, t.task_id, model) for p, t in zip(parts, tasks)]


def measure(model='tiny-qwen2', n=16, size='small', max_steps=20):
    "One dict a way: seconds, positions computed, ratios to the first; raises if the commands differ."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        actor, tasks, messages = cast(model, n, size, folder)
        for way, (kind, together, cache) in WAYS.items():
            speaker, start = kind(actor, cache=cache), time.perf_counter()
            episodes = rollout(actor, tasks, messages, speaker=speaker, batch_size=together or n, max_steps=max_steps, progress=False)
            seconds, said = time.perf_counter() - start, [e.outputs for e in episodes]
            if rows and said != first: raise RuntimeError(f'{way}: other commands than {rows[0]["way"]}')
            first = said if not rows else first
            steps = sum(e.steps for e in episodes)
            rows.append(dict(way=way, seconds=round(seconds, 3), computed=speaker.computed, padded=speaker.padded, steps=steps))
    return [dict(r, faster=round(rows[0]['seconds']/r['seconds'], 2), fewer=round(rows[0]['computed']/r['computed'], 2)) for r in rows]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--games', type=int, default=16)
    parser.add_argument('--model', default='tiny-qwen2')
    parser.add_argument('--size', default='small')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', help='JSON file for the result')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure(args.model, 2, args.size, 2) # warm up
    asked, rows = dict(model=args.model, games=args.games, size=args.size), measure(args.model, args.games, args.size)
    result = dict(machine=machine(), **asked, threads=args.threads, rows=rows)
    for r in rows:
        positions = f"{r['computed']:8,} positions ({r['padded']:,} with padding), {r['fewer']:.2f}x fewer"
        print(f"{r['way']:26} {r['seconds']:8.2f} s  {r['faster']:6.2f}x faster  {positions}")
    if args.out: write_atomic(args.out, json.dumps(result, indent=1) + '\n')
