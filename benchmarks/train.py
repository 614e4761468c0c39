"""A training step of the actor against the same objective written plainly: time, memory, and the same loss.

    python benchmarks/train.py [--vocab 2048 50000] [--share .11 .61] [--steps 7] [--out FILE]

Four conversations of at most 256 tokens with messages of at most 128 states, of uneven lengths, the first third of each before
the message; of its tokens a share is supervised: 11 % in a game, 61 % in a long answer. A Qwen2 of 4 layers and width 256, in the
proportions of the tiny presets; AdamW; the adapter's dropout off, so that the losses can be compared. `plain` makes three whole
passes, takes all logits of each and adapts each message by itself. `unpacked` is our objective where a model cannot be read
packed: one pass a reading, the head on supervised positions alone. `packed` is what is used. Two readings have a gradient, of the
right and of the wrong message, or one: that is the original's work.

Each side runs in a process of its own, by turns, twice. Time is the median step. Memory is the largest resident set (VmHWM)
beyond what the process has with model, moments and batch in place, and so what a step takes for itself. `head` is the head with
the three losses and all their gradients, against the matrix products in it alone: three with the states, two back to them, two
into its own gradient. Linux only."""
import argparse, itertools, json, statistics, sys, time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.models.causal_lm import causal_lm
from interlat.core.basics import InterlatError, cli, set_seed, write_atomic
from interlat.training.curriculum import mix, resample_length
from interlat.training.fused import CHUNK, fused_losses
from interlat.training.objective import Objective
from interlat.runs.provenance import machine
from sides import memory_from_here, run

WEIGHTS = dict(task=1., separation=1., alignment=.2)


def scene(vocab, share=.2, B=4, T=256, L=128, D=256, layers=4):
    "An actor, a batch with a share of its tokens supervised, and the curriculum's rates."
    set_seed(0)
    shape = dict(vocab_size=vocab, hidden_size=D, intermediate_size=5*D//2, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8)
    config = AutoConfig.for_model('qwen2', **shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    actor = ModelWithInsertedHiddenState(AutoModelForCausalLM.from_config(config), L, D, 8, None, 1, 2).train()
    actor.processor.hidden_mha.dropout = 0.
    n, m = (torch.cat([torch.tensor([top]), torch.randint(top//2, top, (B-1,))]) for top in (T, L))
    ids, text, own = torch.randint(3, vocab, (B, T)), torch.arange(T) < n[:, None], torch.arange(L) < m[:, None]
    after = text & (torch.arange(T) >= n[:, None]//3)
    order = torch.where(after, torch.rand(B, T), 2.).argsort(1).argsort(1)
    plan = torch.randint(3, vocab, (B, L))
    labels = torch.where(after & (order < (share*n)[:, None].long()), ids, -100)
    rates = torch.tensor([0., .3, .6, 1.])[torch.arange(B) % 4]
    chat = dict(input_ids=ids, attention_mask=text.long(), insert_at=n//3, labels=labels)
    message = dict(h=torch.randn(B, L, D)*own[..., None], message_mask=own, negative=(torch.arange(B)+1) % B)
    return actor, chat | message | dict(mix_ids=plan, plan_ids=plan, plan_mask=own), rates


def plain(actor, batch, rates, gradients=2):
    "The objective as one would write it first; the reading of the wrong message may go without a gradient."
    words, own = actor.plan_embeds(batch['mix_ids']), batch['message_mask']
    def adapt(h, n): return F.pad(actor.embed_message(h[None, :n]), (0, 0, 0, own.shape[1]-n))
    adapted = torch.cat([adapt(h, n) for h, n in zip(batch['h'], own.sum(1).tolist())])
    other = resample_length(adapted[batch['negative']], own[batch['negative']], own)
    def logits(message):
        s = actor.embed_chat(batch['input_ids'], batch['attention_mask'], batch['insert_at'], message, own, batch['labels'])
        out = actor.base_model(inputs_embeds=s.embeds, attention_mask=s.attention_mask, position_ids=s.position_ids, use_cache=False)
        return out.logits[:, :-1], s.labels[:, 1:]
    right, labels = logits(mix(adapted, words, own, rates))
    with torch.set_grad_enabled(gradients == 2): wrong, _ = logits(mix(other, words, own, rates))
    with torch.no_grad(): told, _ = logits(words)
    said, (p, q, r) = labels != -100, (x.log_softmax(-1) for x in (right, wrong, told))
    middle = ((p.exp() + q.exp())/2).log()
    js = sum(F.kl_div(middle, x, reduction='none', log_target=True).sum(-1) for x in (p, q))/2
    apart = 1 - F.cosine_similarity(right - right.mean(-1, keepdim=True), told - told.mean(-1, keepdim=True), dim=-1)
    align = .7*F.kl_div(r, p, reduction='none', log_target=True).sum(-1) + .3*apart
    parts = dict(task=F.cross_entropy(right.transpose(1, 2), labels), separation=-js[said].mean(), alignment=align[said].mean())
    return sum(w*parts[k] for k, w in WEIGHTS.items())


def ours(objective, batch, rates):
    "Ours; what the parts weigh is known beforehand, as in training."
    parts = objective(batch, rates, tuple(WEIGHTS.values()))
    return sum(w*parts[k] for k, w in WEIGHTS.items())/parts['tokens']


def side(name, vocab, share, gradients, steps):
    "In a process of its own: some steps, and print their times, the memory of a step, and the first loss."
    actor, batch, rates = scene(vocab, share)
    loss_of = partial(plain, actor, gradients=gradients) if name == 'plain' else partial(ours, Objective(actor, mismatched_gradient=gradients == 2))
    if name == 'unpacked': actor.base_model.set_attn_implementation('sdpa')
    optimizer = torch.optim.AdamW(actor.parameters(), lr=1e-5, fused=True) # Trainer's default
    for p in actor.parameters(): p.grad = torch.zeros_like(p)
    optimizer.step() # its moments are there before the memory is looked at
    most, losses, seconds = memory_from_here(), [], []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(batch, rates)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    print(json.dumps(dict(seconds=statistics.median(seconds[1:]), peak_mb=most(), loss=losses[0])))


def products(readings, weight, slope):
    "The matrix products of a head that is one matrix, chunk by chunk, and nothing else."
    rows = max(1, CHUNK//len(weight))
    logits = weight.new_empty(rows, len(weight))
    for parts in zip(*(z.split(rows) for z in readings)):
        for k, z in enumerate(parts):
            out = torch.mm(z, weight.T, out=logits[:len(z)])
            if k < 2: slope.addmm_(out.T, z), out @ weight


def head(vocab, share, steps):
    "In a process of its own: print the times of the head with its losses, and of their products alone, by turns."
    actor, batch, _ = scene(vocab, share)
    door, targets = causal_lm(actor.base_model), batch['labels'][batch['labels'] != -100]
    readings, weight, seconds = [torch.randn(len(targets), 256, requires_grad=k < 2) for k in range(3)], door.head_matrix, dict(head=[], products=[])
    def whole(): (fused_losses(door, targets, readings, tuple(WEIGHTS.values()))*torch.tensor([*WEIGHTS.values()])).sum().backward()
    def alone(): products([z.detach() for z in readings], weight.detach(), torch.zeros_like(weight))
    for _ in range(steps):
        for name, work in dict(head=whole, products=alone).items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    print(json.dumps({name: statistics.median(found[1:]) for name, found in seconds.items()}))


SIDES = ('plain', 2), ('unpacked', 2), ('packed', 2), ('plain', 1), ('packed', 1) # which, and how many readings have a gradient


def measure(vocab, share, steps=7, turns=2):
    "The sides by turns: a row each, how `plain` compares with `packed`, and the head; raises if the losses differ."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    how = dict(vocab=vocab, share=share, steps=steps)
    found = [run(__file__, name, gradients=n, **how) | dict(gradients=n) for _ in range(turns) for name, n in SIDES]
    if max(r['loss'] for r in found) - min(r['loss'] for r in found) > 1e-3: raise RuntimeError(f'the sides have different losses: {found}')
    def middle(name, n, what): return round(statistics.median(r[what] for r in found if (r['side'], r['gradients']) == (name, n)), 4)
    rows = [dict(side=name, gradients=n, **{what: middle(name, n, what) for what in ('seconds', 'peak_mb', 'loss')}) for name, n in SIDES]
    first = {r['gradients']: r for r in rows if r['side'] == 'plain'}
    for r in rows: r |= {gain: round(first[r['gradients']][what]/r[what], 2) for gain, what in (('faster', 'seconds'), ('smaller', 'peak_mb'))}
    of_head = run(__file__, 'head', **how)
    return dict(vocab=vocab, share=share, rows=rows, head=of_head | dict(over_products=round(of_head['head']/of_head['products'], 2)))


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--vocab', type=int, nargs='+', default=[2048, 50_000], help='sizes of the vocabulary')
    parser.add_argument('--share', type=float, nargs='+', default=[.11, .61], help='of the tokens that is supervised')
    parser.add_argument('--steps', type=int, default=7, help='steps of each side, the first one not counted')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=('plain', 'unpacked', 'packed', 'head'), help=argparse.SUPPRESS)
    parser.add_argument('--gradients', type=int, default=2, help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side == 'head': return head(a.vocab[0], a.share[0], a.steps)
    if a.side: return side(a.side, a.vocab[0], a.share[0], a.gradients, a.steps)
    result = dict(machine=machine(), results=[measure(v, share, a.steps) for v, share in itertools.product(a.vocab, a.share)])
    for r in result['results']:
        print(f"V {r['vocab']:,}, {r['share']:.0%} of the tokens supervised")
        for row in r['rows']:
            print("  {side:9}{gradients} with gradient {seconds:8.3f} s a step {peak_mb:8,.0f} MB for it, {faster:.1f}x faster than plain, {smaller:.1f}x less memory".format(**row))
        print("  head and losses {head:.3f} s, their matrix products alone {products:.3f} s: {over_products:.1f}x".format(**r['head']))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
