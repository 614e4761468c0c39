"""A training step of the actor against the same objective written plainly: time, memory, and the same loss.

    python benchmarks/train.py [--vocab 2048 50000] [--steps 7] [--out FILE]

Four conversations of at most 256 tokens with messages of at most 128 states, of uneven lengths, the first third of each before
the message and a fifth of its positions supervised; a Qwen2 of 4 layers and width 256, in the proportions of the tiny presets;
AdamW; the adapter's dropout off, so that the losses can be compared. `plain` makes three whole passes, takes all logits of each
and adapts each message by itself. `unpacked` is our objective where a model cannot be read packed: one pass a reading, the head
on supervised positions alone. `packed` is what is used.

Each side runs in a process of its own, by turns, twice. Time is the median step. Memory is the largest resident set (VmHWM)
beyond what the process has with model, moments and batch in place, and so what a step takes for itself. Linux only."""
import argparse, json, statistics, sys, time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.core.basics import InterlatError, cli, set_seed, write_atomic
from interlat.training.curriculum import mix, resample_length
from interlat.training.objective import Objective
from interlat.runs.provenance import machine
from sides import memory_from_here, run

WEIGHTS = dict(task=1., separation=1., alignment=.2)


def scene(vocab, B=4, T=256, L=128, D=256, layers=4):
    "An actor, a batch, and the curriculum's rates."
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
    labels = torch.where(after & (order < n[:, None]//5), ids, -100)
    rates = torch.tensor([0., .3, .6, 1.])[torch.arange(B) % 4]
    chat = dict(input_ids=ids, attention_mask=text.long(), insert_at=n//3, labels=labels)
    message = dict(h=torch.randn(B, L, D)*own[..., None], message_mask=own, negative=(torch.arange(B)+1) % B)
    return actor, chat | message | dict(mix_ids=plan, plan_ids=plan, plan_mask=own), rates


def plain(actor, batch, rates):
    "The objective as one would write it first."
    words, own = actor.plan_embeds(batch['mix_ids']), batch['message_mask']
    def adapt(h, n): return F.pad(actor.embed_message(h[None, :n]), (0, 0, 0, own.shape[1]-n))
    adapted = torch.cat([adapt(h, n) for h, n in zip(batch['h'], own.sum(1).tolist())])
    other = resample_length(adapted[batch['negative']], own[batch['negative']], own)
    def logits(message):
        s = actor.embed_chat(batch['input_ids'], batch['attention_mask'], batch['insert_at'], message, own, batch['labels'])
        out = actor.base_model(inputs_embeds=s.embeds, attention_mask=s.attention_mask, position_ids=s.position_ids, use_cache=False)
        return out.logits[:, :-1], s.labels[:, 1:]
    (right, labels), (wrong, _) = (logits(mix(x, words, own, rates)) for x in (adapted, other))
    with torch.no_grad(): told, _ = logits(words)
    said, (p, q, r) = labels != -100, (x.log_softmax(-1) for x in (right, wrong, told))
    middle = ((p.exp() + q.exp())/2).log()
    js = sum(F.kl_div(middle, x, reduction='none', log_target=True).sum(-1) for x in (p, q))/2
    apart = 1 - F.cosine_similarity(right - right.mean(-1, keepdim=True), told - told.mean(-1, keepdim=True), dim=-1)
    align = .7*F.kl_div(r, p, reduction='none', log_target=True).sum(-1) + .3*apart
    parts = dict(task=F.cross_entropy(right.transpose(1, 2), labels), separation=-js[said].mean(), alignment=align[said].mean())
    return sum(w*parts[k] for k, w in WEIGHTS.items())


def ours(objective, batch, rates):
    parts = objective(batch, rates)
    return sum(w*parts[k] for k, w in WEIGHTS.items())/parts['tokens']


def side(name, vocab, steps):
    "In a process of its own: some steps, and print their times, the memory of a step, and the first loss."
    actor, batch, rates = scene(vocab)
    objective = Objective(actor)
    if name == 'unpacked': actor.base_model.set_attn_implementation('sdpa')
    optimizer = torch.optim.AdamW(actor.parameters(), lr=1e-5, fused=True) # Trainer's default
    for p in actor.parameters(): p.grad = torch.zeros_like(p)
    optimizer.step() # its moments are there before the memory is looked at
    most, losses, seconds = memory_from_here(), [], []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=False)
        loss = plain(actor, batch, rates) if name == 'plain' else ours(objective, batch, rates)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    print(json.dumps(dict(seconds=statistics.median(seconds[1:]), peak_mb=most(), loss=losses[0])))


def measure(vocab, steps=7, turns=2):
    "The three sides by turns: a row each, and how `plain` compares with `packed`; raises if the losses differ."
    if not Path('/proc/self/clear_refs').exists(): raise InterlatError('this benchmark reads its memory from /proc: Linux only')
    sides = ('plain', 'unpacked', 'packed')
    found = [run(__file__, name, vocab=vocab, steps=steps) for _ in range(turns) for name in sides]
    if max(r['loss'] for r in found) - min(r['loss'] for r in found) > 1e-3: raise RuntimeError(f'the sides have different losses: {found}')
    def middle(name, what): return round(statistics.median(r[what] for r in found if r['side'] == name), 4)
    rows = {name: {what: middle(name, what) for what in ('seconds', 'peak_mb', 'loss')} for name in sides}
    gains = {}
    for name in ('unpacked', 'packed'):
        for gain, what in (('faster', 'seconds'), ('smaller', 'peak_mb')): gains[f'{gain}_{name}'] = round(rows['plain'][what]/rows[name][what], 2)
    return dict(vocab=vocab, rows=[dict(side=name, **r) for name, r in rows.items()], **gains)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--vocab', type=int, nargs='+', default=[2048, 50_000], help='sizes of the vocabulary')
    parser.add_argument('--steps', type=int, default=7, help='steps of each side, the first one not counted')
    parser.add_argument('--out', default='', help='JSON file for the result')
    parser.add_argument('--side', choices=('plain', 'unpacked', 'packed'), help=argparse.SUPPRESS)
    a = parser.parse_args(args)
    if a.side: return side(a.side, a.vocab[0], a.steps)
    result = dict(machine=machine(), results=[measure(v, a.steps) for v in a.vocab])
    for r in result['results']:
        for row in r['rows']:
            print("V {vocab:7,}  {side:9}{seconds:8.3f} s a step  {peak_mb:8,.0f} MB for it".format(vocab=r['vocab'], **row))
        print("packed: {faster_packed:.1f}x faster, {smaller_packed:.1f}x less memory; ".format(**r)
              + "unpacked: {faster_unpacked:.1f}x and {smaller_unpacked:.1f}x".format(**r))
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': sys.exit(cli(main))
