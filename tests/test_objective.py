"The whole objective against a slow reference: one row, one reading, one token at a time."
import pytest, torch
from cast import exact, pair
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from interlat.training import fused, objective as room
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.core.basics import InterlatError
from interlat.training.losses import KL_DIRECTIONS, js_rows
from interlat.training.objective import NEGATIVES, Objective, choose_negatives
from interlat.training.layout import pack
from interlat.training.packing import ATTENTION

PARTS = ('task', 'separation', 'alignment')


@pytest.fixture(scope='module', autouse=True)
def float64():
    with exact(): yield


def actor(family='qwen2', width=16, vocab=40, input_size=None, marks=(1, 2), **kw):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=vocab, hidden_size=width, intermediate_size=2*width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                  initializer_range=.4, max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=None, **kw)
    a = ModelWithInsertedHiddenState(AutoModelForCausalLM.from_config(config), 99, width, 4, input_size, *marks).double().eval()
    a.processor.adaptive_proj.output_scale.data.fill_(5.)
    return a


def batch(lengths, sizes, plans=None, width=16, vocab=40, seed=0):
    "Conversations of `lengths` tokens with messages of `sizes` states and plans of `plans` tokens."
    g = torch.Generator().manual_seed(seed)
    n, m, p = (torch.tensor(x)[:, None] for x in (lengths, sizes, plans or sizes))
    B, T, L, P = len(lengths), max(lengths), max(sizes), int(p.max())
    ids, text = torch.randint(3, vocab, (B, T), generator=g), torch.arange(T) < n
    at = torch.tensor([int(torch.randint(1, k-1, (1,), generator=g)) for k in lengths])
    said = text & (torch.arange(T) >= at[:, None]) & ((torch.rand(B, T, generator=g) < .6) | (torch.arange(T) == n-1))
    return dict(input_ids=ids, attention_mask=text.long(), insert_at=at, labels=torch.where(said, ids, -100), h=torch.randn(B, L, width, generator=g, dtype=torch.float64),
                message_mask=torch.arange(L) < m, mix_ids=torch.randint(3, vocab, (B, L), generator=g), plan_ids=torch.randint(3, vocab, (B, P), generator=g),
                plan_mask=torch.arange(P) < p, negative=(torch.arange(B)+1) % B)


def slow(a, b, rates, direction='reverse', alpha=.3, beta=.7):
    "Sums of the three losses, from probabilities in loops over rows and tokens."
    embed, total = a.plan_embeds, [0., 0., 0.]
    for i, r in enumerate(rates):
        n, m, at, j = (int(x) for x in (b['attention_mask'][i].sum(), b['message_mask'][i].sum(), b['insert_at'][i], b['negative'][i]))
        own, other = (a.embed_message(b['h'][k:k+1, :int(b['message_mask'][k].sum())])[0] for k in (i, j))
        k, words = int(r*m + 1e-6), embed(b['mix_ids'][i, :m])
        def read(block):
            marks = [embed(torch.tensor([x])) if x is not None else words[:0] for x in (a.settings['bop_id'], a.settings['eop_id'])]
            block, e = torch.cat([marks[0], block, marks[1]]), embed(b['input_ids'][i, :n])
            z = a.base_model(inputs_embeds=torch.cat([e[:at], block, e[at:]])[None]).logits[0]
            return [z[t-1 + (len(block) if t >= at else 0)] for t in range(n) if b['labels'][i, t] != -100]
        told = read(embed(b['plan_ids'][i, :int(b['plan_mask'][i].sum())]))
        right, wrong = (read(torch.cat([words[:k], x[k:]])) for x in (own, torch.stack([other[l % len(other)] for l in range(m)])))
        for z, w, t, y in zip(right, wrong, told, [y for y in b['labels'][i].tolist() if y != -100]):
            t = t.detach()
            p, q, s = (x.softmax(-1) for x in (z, w, t))
            def kl(u, v): return (u*(u.log() - v.log())).sum()
            z, t = z - z.mean(), t - t.mean()
            total[0] = total[0] - p[y].log()
            total[1] = total[1] - (kl(p, (p+q)/2) + kl(q, (p+q)/2))/2
            total[2] = total[2] + beta*(kl(p, s) if direction == 'reverse' else kl(s, p)) + alpha*(1 - z@t/(z.norm()*t.norm()))
    return dict(zip(PARTS, total))


def gradient(a, parts):
    "Of the weighted sum, in all parameters."
    a.zero_grad()
    (parts['task'] + .7*parts['separation'] + .3*parts['alignment']).backward()
    return {n: p.grad.clone() for n, p in a.named_parameters() if p.grad is not None}


FAMILIES = dict(qwen2={}, llama={}, qwen3=dict(head_dim=8), mistral=dict(sliding_window=6))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('direction', KL_DIRECTIONS)
def test_values_and_gradients_are_those_of_the_reference(family, direction):
    a, b, rates = actor(family, **FAMILIES[family]), batch((14, 5, 9, 11), (7, 3, 1, 5), (4, 3, 2, 6)), torch.tensor([0., .5, 1., .7])
    expected = slow(a, b, rates.tolist(), direction)
    slopes = gradient(a, expected)
    objective = Objective(a, kl_direction=direction)
    assert (a.base_model.config._attn_implementation == ATTENTION) == (family != 'mistral')
    found = objective(b, rates)
    assert_close({k: found[k] for k in PARTS}, expected, atol=1e-9, rtol=0)
    assert_close(gradient(a, found), slopes, atol=1e-9, rtol=1e-9)


def test_twenty_steps_in_float32_follow_the_curve_of_the_reference():
    rates, curves = torch.tensor([0., .5, 1., .7]), []
    b = batch((14, 5, 9, 11), (7, 3, 1, 5), (4, 3, 2, 6))
    b['h'] = b['h'].float()
    for reference in (False, True):
        a = actor().float()
        objective, optimizer, curve = Objective(a), torch.optim.AdamW(a.parameters(), lr=1e-2), []
        for _ in range(20):
            parts = slow(a, b, rates.tolist()) if reference else objective(b, rates, (1., .7, .3))
            loss = (parts['task'] + .7*parts['separation'] + .3*parts['alignment'])/int((b['labels'] != -100).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and curves[0][-1] < curves[0][0]/2


def as_written(b, plans):
    "The batch with the plans that are mixed in; some tokens shorter or longer than the message."
    n, extra = b['mix_ids'].shape[1], max(0, *plans)
    ids = torch.cat([b['mix_ids'], torch.full((len(plans), extra), 7)], 1)
    return b | dict(plan_ids=ids, plan_mask=torch.arange(n + extra) < (b['message_mask'].sum(1) + torch.tensor(plans))[:, None])


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('plans', [(0, 0, 0, 0), (-1, 2, 1, -1)])
@pytest.mark.parametrize('mismatched', [True, False])
def test_what_the_readings_share_is_computed_once_and_changes_nothing(frozen, plans, mismatched):
    "The words of a plan in a message, all of it where the message is words alone; before the message nothing needs a gradient where the model is frozen."
    a, rates = actor(), torch.tensor([0., .5, 1., .7])
    b = as_written(batch((14, 5, 9, 11), (7, 3, 2, 5)), plans)
    a.base_model.requires_grad_(not frozen)
    objective, read = Objective(a, mismatched_gradient=mismatched), []
    expected = slow(a, b, rates.tolist())
    a.door.trunk.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs['inputs_embeds'].shape[1]), with_kwargs=True)
    found = objective(b, rates)
    assert_close({k: found[k] for k in PARTS}, expected, atol=1e-9, rtol=0)
    first, second = read
    assert first + second < sum(len(pack(a.plan_embeds(b['input_ids']), b, [block]).embeds) for block in (*objective.messages(b, rates)[0], objective.text(b))) - (30 if plans[0] == 0 else 20)
    slopes = gradient(a, found)
    assert set(slopes) == {n for n, p in a.named_parameters() if p.requires_grad}
    if mismatched: assert_close(slopes, gradient(a, expected), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('frozen', [False, True])
def test_a_layer_that_is_run_again_looks_up_the_same(frozen):
    "Under activation checkpointing, with the language model trained and frozen."
    b, rates, found = as_written(batch((14, 5, 9, 11), (7, 3, 2, 5)), (0, 0, 0, 0)), torch.tensor([0., .5, 1., .7]), []
    for again in (False, True):
        a = actor().train()
        a.processor.hidden_mha.dropout = 0.
        a.base_model.requires_grad_(not frozen)
        objective = Objective(a)
        if again: a.gradient_checkpointing_enable()
        found.append(gradient(a, objective(b, rates)))
    assert found[0] and found[0].keys() == found[1].keys()
    assert_close(*found, atol=1e-12, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5).flatmap(lambda n: st.tuples(*[st.lists(st.integers(low, high), min_size=n, max_size=n) for low, high in ((3, 20), (1, 12), (1, 12), (0, 10))])), st.booleans())
def test_random_batches_of_uneven_lengths(shape, marked):
    lengths, sizes, plans, tenths = shape
    a, b, rates = actor(marks=(1, 2) if marked else (None, None)), batch(lengths, sizes, plans, seed=sum(lengths)), torch.tensor(tenths)/10
    expected = slow(a, b, [t/10 for t in tenths])
    found = Objective(a)(b, rates)
    assert_close({k: found[k] for k in PARTS}, expected, atol=1e-9, rtol=0)
    a.base_model.requires_grad_(False)
    assert_close({k: Objective(a)(b, rates)[k] for k in PARTS}, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize('part', PARTS)
def test_gradients_of_each_loss_are_finite_differences(part):
    "In the message itself, through adapter, packed model and loss."
    a, b = actor('gpt_neox', width=8, vocab=12), batch((6, 5), (3, 2), width=8, vocab=12) # its norms stay in float64
    objective, real = Objective(a), b['message_mask'][..., None]
    def loss(h): return objective(b | dict(h=torch.where(real, h, 0.)), torch.tensor([0., .5]))[part]
    assert torch.autograd.gradcheck(loss, (b['h'].requires_grad_(),), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize('longest', [6, 11], ids=['as long as the batch', 'longer'])
def test_a_wrong_message_from_another_process_is_one_behind_the_batch(longest):
    a, b, rates = actor(), batch((9, 12, 7), (4, 6, longest)), torch.tensor([.2, .6, .5])
    objective, first = Objective(a), {k: v[:2] for k, v in b.items()}
    own = int(first['message_mask'].sum(1).max())
    away = first | dict(h=b['h'], message_mask=b['message_mask'], mix_ids=first['mix_ids'][:, :own], negative=torch.tensor([2, 0]))
    here = slow(a, b | dict(negative=torch.tensor([2, 0, 0])), rates[:2].tolist())
    assert_close({k: objective(away, rates[:2])[k] for k in PARTS}, here, atol=1e-9, rtol=0)


def test_no_gradient_through_the_wrong_message_where_none_is_wanted():
    a, b, rates = actor(), batch((9, 12), (4, 6)), torch.zeros(2)
    both, one = (gradient(a, Objective(a, mismatched_gradient=m)(b, rates)) for m in (True, False))
    z, targets = room.read_states(a, b, Objective(a).messages(b, rates)[0])
    with torch.no_grad(): plan, _ = room.read_states(a, b, [Objective(a).text(b)])
    head = a.base_model.get_output_embeddings()
    task, _, alignment = room.losses_by_token(z[0], z[1], plan[0], targets, head).sum(0)
    with torch.no_grad(): still = head(z[1]).log_softmax(-1)
    separation = -js_rows(head(z[0]).log_softmax(-1), still).sum()
    assert_close(one, gradient(a, dict(task=task, separation=separation, alignment=alignment)), atol=1e-8, rtol=1e-6)
    assert any(not torch.allclose(one[n], both[n], atol=1e-4) for n in one)


def test_the_head_sees_supervised_positions_alone_and_a_chunk_at_a_time(monkeypatch):
    a, b = actor(), batch((14, 5, 9), (7, 3, 4))
    seen, said = [], int((b['labels'] != -100).sum())
    objective, chunks = Objective(a), -(-said//4)
    a.base_model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape[:-1].numel()))
    def slopes(known=None):
        seen.clear()
        return gradient(a, objective(b, torch.zeros(3), known))
    whole = slopes((1., .7, .3))
    assert seen[1:] == [said]*3 and seen[0] == 1, 'a look at what the head consists of, then each reading once'
    monkeypatch.setattr(fused, 'CHUNK', 4*40)
    assert_close(slopes((1., .7, .3)), whole, atol=1e-10, rtol=1e-8)
    assert max(seen) == 4 and len(seen) == 1 + 3*chunks
    assert_close(slopes(), whole, atol=1e-10, rtol=1e-8)
    assert len(seen) == 1 + 2*3*chunks, 'weights that were not known cost a second pass'


@pytest.mark.parametrize('family, settings', [('qwen2', {}), ('gemma2', dict(head_dim=4, final_logit_softcapping=3.)), ('phi', {}), ('cohere', dict(logit_scale=.3))])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_one_pass_through_the_head_is_the_plain_one(family, settings, tied, dtype):
    "A matrix, a cap, a bias, a scale; bfloat16 to its rounding."
    a = actor(family, tie_word_embeddings=tied, **settings)
    plain, door = a.door.logits, a.door
    targets, readings = torch.arange(30) % 40, [torch.randn(30, 16, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    def run(f, dtype, weights=(1., .7, .3)):
        a.base_model.to(dtype).zero_grad()
        zs = [z.detach().to(dtype).requires_grad_(i < 2) for i, z in enumerate(readings)]
        sums = f(zs)
        (sums @ torch.tensor(weights, dtype=sums.dtype)).backward()
        return [x.double() for x in (sums.detach(), zs[0].grad, zs[1].grad, door.out_table.grad)]
    exact = run(lambda zs: fused.losses_by_token(*zs, targets, plain).sum(0), torch.float64)
    found = run(lambda zs: fused.fused_losses(door, targets, zs, (1., .7, .3)), dtype)
    for x, y in zip(found, exact): assert (x - y).abs().max() <= (1e-5 if dtype == torch.float32 else 3e-2)*y.abs().max()


SHARDED = """
from test_objective import *
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
dist.init_process_group('gloo')
still = exact()
still.__enter__()
rank, (b, rates) = dist.get_rank(), halves()
objective = Objective(actor(tie_word_embeddings=True))
assert objective.actor.base_model.config._attn_implementation == ATTENTION
for layer in objective.actor.base_model.model.layers: fully_shard(layer)
fully_shard(objective)
rows = slice(2*rank, 2*rank + 2)
mine = {k: v[rows] for k, v in b.items()} | dict(negative=torch.tensor([1, 0]))
read = objective(mine)
parts = objective(mine, rates[rows].tolist())
slopes = {n: 2*g.full_tensor() for n, g in gradient(objective.actor, parts).items()} # a mean over the processes
assert type(objective.actor.processor.adaptive_proj.scale).__name__ == 'DTensor'
torch.save((read, {k: parts[k].detach() for k in PARTS}, slopes), f'{sys.argv[1]}/{rank}.pt')
"""


def halves(): return batch((14, 5, 9, 11), (7, 3, 1, 5), (4, 3, 2, 6)) | dict(negative=torch.tensor([1, 0, 3, 2])), torch.tensor([0., .5, 1., .7])


def test_two_processes_that_share_it_piecewise_give_the_parts_and_gradients_of_one(tmp_path):
    "FSDP: every layer in pieces, packed readings, half of the rows each; and the evaluation."
    pair(tmp_path/'run.py', SHARDED, str(tmp_path))
    a, (b, rates) = actor(tie_word_embeddings=True), halves()
    whole = Objective(a)
    read, parts, slopes = zip(*(torch.load(tmp_path/f'{rank}.pt') for rank in (0, 1)))
    assert_close({k: torch.cat([r[k] for r in read]) for k in read[0]}, whole(b), atol=1e-9, rtol=0)
    parts_of_one = whole(b, rates)
    assert_close({k: parts[0][k] + parts[1][k] for k in PARTS}, {k: parts_of_one[k] for k in PARTS}, atol=1e-9, rtol=0)
    for found in slopes: assert_close(found, gradient(a, parts_of_one) if found is slopes[0] else slopes[0], atol=1e-8, rtol=1e-7)


def test_tied_weights_stay_tied_where_fsdp_empties_the_model():
    "accelerate does so with cpu_ram_efficient_loading; without `tie_weights` the head would silently train apart from the embeddings."
    objective = Objective(actor(tie_word_embeddings=True)).to('meta')
    lm = objective.actor.base_model
    assert lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight
    objective.tie_weights()
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12), st.sampled_from(NEGATIVES))
def test_the_wrong_message_is_never_a_sample_of_the_same_problem(rows, rule):
    "Whatever the batch: several samples have one origin, and a problem one kind."
    origin, kind = (torch.tensor([r[0] for r in rows]), torch.tensor([r[0] % 2 for r in rows]))
    if len(set(origin.tolist())) < 2:
        with pytest.raises(InterlatError, match='a batch needs two different tasks'): choose_negatives(origin, kind, rule)
    else:
        wrong = choose_negatives(origin, kind, rule)
        assert (origin[wrong] != origin).all()
        wanted = dict(any=lambda i, j: True, same_type=lambda i, j: kind[i] == kind[j], other_type=lambda i, j: kind[i] != kind[j])[rule]
        for i, j in enumerate(wrong.tolist()): assert wanted(i, j) or not any(wanted(i, k) and origin[k] != origin[i] for k in range(len(rows)))
