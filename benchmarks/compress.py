"""What a compressed message saves: the time until the actor has read it, and a training step of the student.

    python benchmarks/compress.py [--model tiny-qwen2] [--tokens 444] [--runs 5] [--only latency|step] [--threads N] [--out data/benchmarks]

Some four minutes on two quiet cores. The folder `--out` gets compress_latency.csv and compress_step.csv, with the machine in each row.

Latency, from the prompt to the actor's next-token logits. One sender (`--model`, in float32) says the same prompts in `--tokens` tokens (its end token
never comes) or in K latent steps; then an actor of the same kind adapts the states and reads the first turn of its conversation with them inside, in one
pass. All ways are run by turns.
- `full: write` is `generate_messages`: the plan is written, and its states are kept meanwhile. `faster` compares with it.
- `full: bare loop` does no more than it must: the sender's passes, one position each after the prompt, the argmax of the logits. `than the loop` compares with it.
- `bare` is the same for latent steps: K + 1 passes and nothing else.
The floors say what `faster` would be if each of the sender's passes took the same time (`in passes`), and if latent steps cost no more than `bare` ones.

A training step of the student: four conversations of at most 256 tokens, full messages of at most 128 states, prompts of at most
64 tokens, all of uneven lengths, a fifth of the positions after the message supervised; K 32; student and actor each a random
Qwen2 of 4 layers and width 256 with 2,048 tokens; AdamW. `ours` is `Distillation`. `loop` is the same loss written plainly,
conversation by conversation: the prompt, then K positions one at a time with a cache, then three passes of the actor, one of them
with a gradient; models are called whole, so that every position has its logits. `loop, no cache` reads prompt and states anew at
every step. The parts of the loss and the student's gradients are compared before anything is timed. Each side runs in a process
of its own, by turns, twice. Time is the median step; memory is the largest resident set (VmHWM) beyond what the process has with
models, moments and batch in place. Linux only."""
import argparse, copy, json, statistics, sys, tempfile, time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.games.generate import generate_games
from interlat.models.sampling import end_token_ids, pad_left
from interlat.agents.collect import generate_messages
from interlat.core.basics import InterlatError, cli, set_seed, write_atomic
from interlat.compression.distill import Distillation
from interlat.games.household import game_task
from interlat.models.lm import load_lm
from interlat.models.chat import add_message_tokens, encode_chat
from interlat.compression.reason import LatentStudent, latent_reason
from interlat.runs.provenance import machine
from sides import memory_from_here, run

WEIGHTS = dict(ce=1., preference=1., direction=1.)
SIDES = ('loop, no cache', 'loop', 'ours')


class Talk:
    "A sender and an actor of one kind, and what they talk about."
    def __init__(self, model, tokens, n):
        self.sender, self.tokens = load_lm(model, 'float32'), tokens
        self.lm, self.tok = self.sender
        bop, eop = add_message_tokens(self.sender)
        width, head = self.lm.config.hidden_size, self.lm.get_output_embeddings()
        self.actor = ModelWithInsertedHiddenState(copy.deepcopy(self.lm), tokens, width, bop_id=bop, eop_id=eop).eval()
        self.student = LatentStudent(self.lm).eval()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]).to(head.weight))
        head.bias.data[end_token_ids(self.sender)] = -torch.inf # the plan does not end
        with tempfile.TemporaryDirectory() as folder: tasks = [game_task(f) for f in generate_games(folder, n, 'valid_seen')]
        self.prompts, self.chats = [t.prompt for t in tasks], [encode_chat(self.tok, t.turns[:1], add_generation_prompt=True) for t in tasks]
        if (found := {len(h) for h in self.write()}) != {tokens}: raise RuntimeError(f'the sender wrote {found} tokens, wanted {tokens}')

    def ids(self): return [encode_chat(self.tok, p, add_generation_prompt=True).input_ids for p in self.prompts]

    def write(self): return torch.stack([h for h,_,_ in generate_messages(self.sender, self.prompts, self.tokens)])

    def reason(self, K): return latent_reason(self.student, self.ids(), K)

    def bare(self, passes, words=False):
        "The prompt in one pass and then a position a pass, of the most probable token or of the last state; the states of all passes, without the prompt's for latent steps."
        cache, feed, states = DynamicCache(config=self.lm.config), dict(input_ids=pad_left(self.ids(), 0, self.lm.device)[0]), []
        for _ in range(passes):
            states.append(self.lm.base_model(**feed, past_key_values=cache, use_cache=True)[0][:,-1:])
            feed = dict(input_ids=self.lm.get_output_embeddings()(states[-1]).argmax(-1)) if words else dict(inputs_embeds=states[-1])
        return torch.cat(states if words else states[1:], 1)

    def read(self, h):
        "The actor's next-token logits."
        ids = pad_left([c.input_ids for c in self.chats], 0, self.actor.base_model.device)
        at = torch.tensor([c.insert_at for c in self.chats], device=ids[0].device)
        return self.actor(*ids, insert_at=at, message_embeds=self.actor.embed_message(h.to(ids[0].device))).logits.cpu()

    def passes(self, way):
        "How many forward passes of the sender a way takes."
        seen = []
        hook = self.lm.base_model.register_forward_pre_hook(lambda *_: seen.append(1))
        way()
        hook.remove()
        return len(seen)


@torch.no_grad()
def clock(talk, way):
    "Seconds until there is a message, and until it is read."
    start = time.perf_counter()
    h = way()
    made = time.perf_counter()
    talk.read(h)
    return made - start, time.perf_counter() - start


def latency(model='tiny-qwen2', tokens=444, Ks=(8, 16, 32, 64, 128), batch=1, runs=5):
    "A row for each way to say something: seconds, passes, and how much faster than the full message."
    talk = Talk(model, tokens, batch)
    full = {'full: write': talk.write, 'full: bare loop': partial(talk.bare, tokens, True)}
    ways = [*((n, tokens, w) for n,w in full.items()), *((n, K, w) for K in Ks for n,w in (('latent', partial(talk.reason, K)), ('bare', partial(talk.bare, K+1))))]
    with torch.no_grad(): passes = [talk.passes(w) for _,_,w in ways] # warms up, too
    found = list(zip(*([clock(talk, w) for _,_,w in ways] for _ in range(runs))))
    rows = [dict(batch=batch, way=n, states=k, passes=p, made=statistics.median(x[0] for x in s), seconds=statistics.median(x[1] for x in s), least=min(x[1] for x in s),
                 most=max(x[1] for x in s)) for (n,k,_),p,s in zip(ways, passes, found)]
    best, loop, bare = *rows[:2], {r['states']: r for r in rows if r['way'] == 'bare'}
    for r in (r for r in rows if r['way'] == 'latent'):
        r.update(faster=best['seconds']/r['seconds'], faster_than_loop=loop['seconds']/r['seconds'], floor_passes=best['passes']/r['passes'], floor_bare=best['seconds']/bare[r['states']]['seconds'])
    shape = '{num_hidden_layers} layers, width {hidden_size}, {vocab_size:,} tokens'.format(**talk.lm.config.to_dict())
    prompt, chat = (statistics.mean(map(len, x)) for x in (talk.ids(), [c.input_ids for c in talk.chats]))
    return dict(model=f'{model}, {shape}', batch=batch, prompt=prompt, chat=chat, rows=rows)


def show_latency(r):
    print(f"\n{r['model']}; batch {r['batch']}, prompts of {r['prompt']:.0f} tokens, conversations of {r['chat']:.0f}")
    print(f"{'':18}{'states':>7}{'passes':>8}{'seconds':>10}{'least':>9}{'most':>9}{'made in':>9}{'faster':>9}{'than the loop':>15}{'floor in passes':>17}{'floor bare':>12}")
    for row in r['rows']:
        times = ' '.join(f'{row[k]:8.4f}' for k in ('seconds', 'least', 'most', 'made'))
        print(f"{row['way']:18}{row['states']:7}{row['passes']:8}  {times}", *([f"{row['faster']:7.1f}x{row['faster_than_loop']:14.1f}x{row['floor_passes']:16.1f}x{row['floor_bare']:11.1f}x"] if 'faster' in row else []))


def scene(K=32, vocab=2048, B=4, T=256, L=128, P=64, D=256, layers=4):
    "A student with its actor, and a batch."
    set_seed(0)
    config = AutoConfig.for_model('qwen2', vocab_size=vocab, hidden_size=D, intermediate_size=5*D//2, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8,
                                  tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    lms = [AutoModelForCausalLM.from_config(config) for _ in range(2)]
    actor = ModelWithInsertedHiddenState(lms[1], L, D, 8, None, 1, 2)
    actor.processor.adaptive_proj.output_scale.data.fill_(5) # loud enough to change what a random model says
    n, m, p = (torch.cat([torch.tensor([top]), torch.randint(top//2, top, (B-1,))]) for top in (T, L, P))
    ids, text, own, prompt = torch.randint(3, vocab, (B, T)), torch.arange(T) < n[:, None], torch.arange(L) < m[:, None], torch.arange(P) >= P - p[:, None]
    after = text & (torch.arange(T) >= n[:, None]//3)
    order = torch.where(after, torch.rand(B, T), 2.).argsort(1).argsort(1)
    batch = dict(input_ids=ids, attention_mask=text.long(), insert_at=n//3, labels=torch.where(after & (order < n[:, None]//5), ids, -100), h=torch.randn(B, L, D)*own[..., None],
                 message_mask=own, prompt_ids=torch.randint(3, vocab, (B, P)), prompt_mask=prompt.long())
    return Distillation(LatentStudent(lms[0], K=K).train(), actor), batch


def think(student, ids, cache):
    "The student's K states after one prompt (1, P)."
    lm, states, past, new = student.lm, [], DynamicCache(config=student.lm.config) if cache else None, student.lm.get_input_embeddings()(ids)
    for _ in range(student.settings['K'] + 1):
        z = lm(inputs_embeds=new, past_key_values=past, use_cache=cache, output_hidden_states=True).hidden_states[-1][:, -1:]
        states.append(z)
        new = student.feed(z) if cache else torch.cat([new, student.feed(z)], 1)
    return torch.cat(states[1:], 1)


def plain(distillation, batch, cache=True):
    "The objective as one would write it first: one conversation after the other, every logit."
    student, actor, parts = distillation.student, distillation.actor, []
    for i, mask in enumerate(batch['attention_mask'].bool()):
        ids, labels, at, h = batch['input_ids'][i, mask][None], batch['labels'][i, mask][None], batch['insert_at'][i:i+1], batch['h'][i, batch['message_mask'][i]][None]
        z = think(student, batch['prompt_ids'][i, batch['prompt_mask'][i].bool()][None], cache)
        def read(message):
            s = actor.embed_chat(ids, torch.ones_like(ids), at, message, None, labels)
            return actor.base_model(inputs_embeds=s.embeds, use_cache=False).logits[0, :-1].log_softmax(-1)[s.labels[0, 1:] != -100]
        p, y = read(actor.embed_message(z)), labels[labels != -100]
        with torch.no_grad(): q, r = read(actor.embed_message(h)), read(None)
        weights = ((q.exp()*q).sum(-1) - (r.exp()*r).sum(-1)).clamp(min=0) # entropy without a message less that with the full one
        if (weights > 0).any(): weights = weights.clamp(max=weights[weights > 0].quantile(.95))
        if (weights > 0).any(): weights = weights/weights.mean()
        kl = (q.exp()*(q - p)).sum(-1)
        direction = 1 - F.cosine_similarity(z.mean(1), h.mean(1))[0]
        parts.append(dict(ce=F.nll_loss(p, y, reduction='sum'), preference=(weights*kl).sum(), direction=len(y)*direction, tokens=len(y)))
    return {k: sum(x[k] for x in parts) for k in parts[0]}


def loss_of(side, distillation, batch):
    "The loss of a side and its parts."
    parts = distillation(batch) if side == 'ours' else plain(distillation, batch, side == 'loop')
    return sum(w*parts[k] for k, w in WEIGHTS.items())/parts['tokens'], {k: parts[k].item() for k in WEIGHTS}


def check(K, vocab):
    "The largest relative difference of loss parts and of the student's gradients between `ours` and the loops; raises above 1e-4."
    distillation, batch = scene(K, vocab)
    def gradients(side):
        distillation.zero_grad()
        loss, parts = loss_of(side, distillation, batch)
        loss.backward()
        return parts, {n: p.grad.clone() for n, p in distillation.student.named_parameters() if p.grad is not None}
    (ours, g), *others = (gradients(side) for side in SIDES[::-1])
    if any(g.keys() != h.keys() for _, h in others): raise RuntimeError('the sides give gradients to different parameters')
    differences = [abs(ours[k]-p[k])/abs(ours[k]) for p, _ in others for k in ours] + [((g[n]-h[n]).norm()/g[n].norm()).item() for _, h in others for n in g]
    if max(differences) > 1e-4: raise RuntimeError(f'the sides differ by up to {max(differences):.1e} of their loss or gradients')
    return max(differences)


def side(name, K, vocab, steps):
    "In a process of its own: some steps, and print their time and memory."
    distillation, batch = scene(K, vocab)
    trained = list(distillation.student.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) # Trainer's default
    for p in trained: p.grad = torch.zeros_like(p)
    optimizer.step() # its moments are there before the memory is looked at
    most, seconds = memory_from_here(), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        loss_of(name, distillation, batch)[0].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(dict(seconds=statistics.median(seconds[1:]), peak_mb=most())))


def step(K=32, vocab=2048, steps=4, turns=2, threads=None):
    "A row for each side: seconds and memory of a training step, and how `ours` compares with it."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    difference, found = check(K, vocab), {name: [] for name in SIDES}
    for _ in range(turns):
        for name in SIDES: found[name].append(run(__file__, name, K=K, vocab=vocab, steps=steps, threads=threads or torch.get_num_threads()))
    rows = [dict(side=n, K=K, vocab=vocab, **{k: statistics.median(x[k] for x in r) for k in ('seconds', 'peak_mb')}) for n, r in found.items()]
    return dict(difference=difference, rows=[dict(r, ours_faster=r['seconds']/rows[-1]['seconds'], ours_smaller=r['peak_mb']/rows[-1]['peak_mb']) for r in rows])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='tiny-qwen2', help='the sender, and what the actor is made from')
    parser.add_argument('--tokens', type=int, default=444, help='of the full message')
    parser.add_argument('--states', type=int, nargs='+', default=[8, 16, 32, 64, 128], help='latent steps')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 16], help='messages made at a time')
    parser.add_argument('--runs', type=int, default=5, help='of each way')
    parser.add_argument('--K', type=int, default=32, help='latent steps in training')
    parser.add_argument('--vocab', type=int, default=2048, help='of the models in training')
    parser.add_argument('--steps', type=int, default=4, help='training steps of each side and turn, and one more that is not counted')
    parser.add_argument('--only', choices=('latency', 'step'), help='one of the two measurements')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', default='', help='folder for the two tables')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    torch.set_num_threads(a.threads)
    if a.side: return side(a.side, a.K, a.vocab, a.steps)
    here = dict(machine(), threads=a.threads, torch=torch.__version__)
    def keep(name, rows):
        if a.out: write_atomic(Path(a.out)/f'compress_{name}.csv', pd.DataFrame(rows).assign(**here).round(4).to_csv(index=False))
    if a.only != 'step':
        found = [latency(a.model, a.tokens, a.states, b, a.runs) for b in a.batch]
        for r in found: show_latency(r)
        keep('latency', [dict(model=r['model'], prompt=r['prompt'], **row) for r in found for row in r['rows']])
    if a.only != 'latency':
        result = step(a.K, a.vocab, a.steps, threads=a.threads)
        print(f"\nA training step, K {a.K}. Loss parts and the student's gradients are equal on all sides: they differ by {result['difference']:.0e} of their size at the most")
        for r in result['rows']: print("{side:16}{seconds:8.3f} s a step  {peak_mb:8,.0f} MB for it;  ours: {ours_faster:.2f}x faster, {ours_smaller:.2f}x less memory".format(**r))
        keep('step', result['rows'])


if __name__ == '__main__': sys.exit(cli(main))
