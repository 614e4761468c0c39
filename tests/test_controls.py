"Every control for every kind of payload that the channels send: shapes, seeds, moments, positions, and what is refused."
import re

import pytest, torch
from cast import random_lm

from interlat.audit import Beside, CONTROLS, controlled, matched, restored, why_not
from interlat.audit.controls import find_control
from interlat.audit.drawn import rows_of, with_rows
from interlat.channels import channel
from interlat.channels.keyvalues import KeyValues, rotation
from interlat.channels.payloads import Deltas
from interlat.core.basics import InterlatError
from interlat.models.lm import Agent

FAMILIES = 'llama', 'qwen2'
CHANNELS = dict(cipher=dict(n=5), statebridge=dict(K=6, max_new_tokens=7), latentmas=dict(latent_steps=3), latentmas_newest=dict(latent_steps=2, keep='newest'), kvcomm={},
                kvcomm_thin=dict(layers=(0,)), kvcomm_back=dict(layers=(0,), short='shift_back'), ac={}, sde=dict(layers=(0, 1), max_new_tokens=6), text=dict(max_new_tokens=6))
PROMPTS = [[5, 9, 11, 3], [7, 30, 12, 8, 22, 41], [6, 6, 14], [13, 40, 2, 7, 19], [25, 8, 9, 31, 4, 17, 28]]
ELSEWHERE = [[33, 4, 9], [2, 41], [8, 7, 6, 5, 4]]
ARGUMENTS = dict(cov_noise='0.5', first='0.5', last='2', layers='1', scale='8', codec='int8')
GIVEN = [name + (f'_{ARGUMENTS[name]}' if name in ARGUMENTS else '') for name in CONTROLS]


def tensors(p): return p.to_tensors()
def same(p, q): return p is q is None or tensors(p).keys() == tensors(q).keys() and all(torch.equal(x, tensors(q)[k]) for k, x in tensors(p).items())


@pytest.fixture(scope='module', params=FAMILIES)
def sender(request): return Agent(random_lm(request.param), None)


@pytest.fixture(scope='module')
def sent(sender):
    "What each channel sends; and of another benchmark, under 'pool'."
    every = {name: channel(name.split('_')[0], **how) for name, how in CHANNELS.items()}
    return {name: c.send(sender, PROMPTS) for name, c in every.items()} | dict(pool={name: c.send(sender, ELSEWHERE) for name, c in every.items()})


def beside(sender, payloads, pool):
    strangers = [controlled('scale_2', [p])[0][0] for p in payloads[1:] + payloads[:1]] if payloads[0].kind == 'states' else []
    return Beside([f'item {i}' for i in range(len(payloads))], list('aabba'), 2, pool, strangers, sender, lambda i, h: (h[:,0]*(i + 1)).sum())


def made(name, payloads, sender, seed=0, pool=()):
    b = beside(sender, payloads, list(pool))
    if name == 'same_type': b.types, b.k = list('aabbb'), 1
    return controlled(name, payloads, b, seed)


@pytest.mark.parametrize('kind', CHANNELS)
@pytest.mark.parametrize('name', GIVEN)
def test_a_control_keeps_shapes_and_types_and_what_it_was_given(sender, sent, kind, name):
    payloads = sent[kind]
    before = [{k: x.clone() for k, x in tensors(p).items()} for p in payloads]
    if why := why_not(name, payloads[0]):
        with pytest.raises(InterlatError, match=re.escape(why)): made(name, payloads, sender)
        return
    rounds, again, other_seed = (made(name, payloads, sender, seed, sent['pool'][kind]) for seed in (0, 0, 1))
    stem, _ = find_control(name)
    assert len(rounds) == (2 if stem in ('other', 'other_with_ids', 'layers', 'cross_benchmark') else 1) and all(len(r) == len(payloads) for r in rounds)
    assert all(same(p, q) for r, s in zip(rounds, again) for p, q in zip(r, s)), 'the same seed gives the same'
    drawn = stem in ('random', 'moment_matched', 'cov_gauss_0', 'random_rot', 'cov_noise', 'shuffle', 'shuffle_places')
    if drawn: assert not all(same(p, q) for p, q in zip(rounds[0], other_seed[0]))
    assert all(torch.equal(x, tensors(p)[k]) for p, old in zip(payloads, before) for k, x in old.items()), 'nothing is changed in place'
    for r in rounds:
        for own, new in zip(payloads, r):
            if new is None: assert name == 'none'; continue
            assert type(new) is type(own)
            if stem in ('first', 'last'): continue
            shapes = {k: (x.shape, x.dtype) for k, x in tensors(own).items() if k != 'text'}
            if not (stem == 'own_tokens' and kind == 'sde'): assert {k: (x.shape, x.dtype) for k, x in tensors(new).items() if k != 'text'} == shapes
            if isinstance(own, KeyValues): assert new.next == own.next and all(torch.equal(a, b) for a, b in zip(new.at, own.at))
            if isinstance(own, Deltas) and name != 'other_with_ids': assert new.token_ids == own.token_ids, 'words stay'
            if name not in ('none', 'current', 'masked', 'own_tokens'): assert not same(new, own) or own.positions == 1, 'something has changed'


@pytest.mark.parametrize('kind', ['cipher', 'latentmas', 'kvcomm_thin', 'sde'])
@pytest.mark.parametrize('name', ['random', 'moment_matched', 'random_rot', 'cov_noise_0.5', 'shuffle', 'cov_gauss_0'])
def test_an_items_noise_is_its_own(sender, sent, kind, name):
    "Who else is in the batch, and in which order, does not count."
    payloads, ids = sent[kind], [f'item {i}' for i in range(len(PROMPTS))]
    whole, = controlled(name, payloads, Beside(ids, sender=sender))
    for i in (3, 1): assert same(controlled(name, [payloads[i]], Beside([ids[i]], sender=sender))[0][0], whole[i])


@pytest.mark.parametrize('kind', [k for k in CHANNELS if k != 'statebridge'])
def test_an_actor_reads_what_a_control_gives(sender, sent, kind):
    "In a batch as alone; and what a control gives says something else than the message, unless it is said to be the same."
    c, chats, payloads = channel(kind.split('_')[0], **CHANNELS[kind]), [[4, 8], [3, 9, 10], [11], [5, 6, 7], [12, 4]], sent[kind]
    heard = c.receive(sender, chats, payloads, 0).logits
    for name in GIVEN:
        if why_not(name, payloads[0]): continue
        for r in made(name, payloads, sender, pool=sent['pool'][kind])[:1]:
            got = c.receive(sender, chats, r, 0, masked=name == 'masked').logits
            for i in (0, 2): torch.testing.assert_close(c.receive(sender, chats[i:i+1], r[i:i+1], 0, masked=name == 'masked').logits, got[i:i+1], atol=1e-4, rtol=0)
            assert got.isfinite().all()
            if name == 'current': assert torch.equal(got, heard)
            elif name not in ('codec_int8', 'own_tokens'): assert (got - heard).abs().max() > 1e-4, name


def test_masked_is_none(sender, sent):
    for kind, how in CHANNELS.items():
        c, chats = channel(kind.split('_')[0], **how), [[4, 8], [3, 9, 10], [11], [5, 6, 7], [12, 4]]
        hidden, = controlled('masked', sent[kind])
        none, = controlled('none', sent[kind])
        torch.testing.assert_close(c.receive(sender, chats, hidden, 0, masked=True).logits, c.receive(sender, chats, none, 0).logits, atol=1e-4, rtol=0)


# A cache

def test_keys_turned_back_are_what_the_projection_made(sender, sent):
    "Of the first layer they are W_k of the normalised embeddings: no position in them."
    layer, table = sender.model.model.layers[0], sender.model.get_input_embeddings().weight
    for ids, p in zip(PROMPTS, sent['kvcomm']):
        with torch.no_grad(): k = layer.self_attn.k_proj(layer.input_layernorm(table[ids])).view(len(ids), -1, p.keys[0].shape[-1]).transpose(0, 1)
        torch.testing.assert_close(rows_of(p, rotation(sender.model))['k0'], k, atol=1e-5, rtol=0)


def test_turning_there_and_back_is_exact_to_rounding(sender, sent):
    turn = rotation(sender.model)
    for p in [*sent['latentmas'], *sent['kvcomm_back'], *sent['latentmas_newest']]:
        far = max(((a - b).abs().max()/b.abs().max()).item() for a, b in zip(with_rows(p, rows_of(p, turn), turn).keys, p.keys))
        assert far < 1e-6


def test_permuting_keys_and_values_together_changes_nothing(sender, sent):
    c, p, g = channel('kvcomm'), sent['kvcomm'][4], torch.Generator().manual_seed(1)
    order = torch.randperm(p.positions, generator=g)
    together = KeyValues([k[:,order] for k in p.keys], [v[:,order] for v in p.values], [a[order] for a in p.at], p.next)
    heard = c.receive(sender, [[4, 8]], [p], 0).logits
    torch.testing.assert_close(c.receive(sender, [[4, 8]], [together], 0).logits, heard, atol=1e-5, rtol=0)
    for name in ('shuffle', 'shuffle_places'):
        assert (c.receive(sender, [[4, 8]], controlled(name, [p], Beside(sender=sender))[0], 0).logits - heard).abs().max() > 1e-3


def test_values_move_alone_and_keys_move_alone(sender, sent):
    for kind in ('latentmas', 'kvcomm_thin', 'kvcomm_back'):
        for p, q in zip(sent[kind], controlled('shuffle', sent[kind])[0]):
            assert all(torch.equal(a, b) for a, b in zip(p.keys, q.keys))
            assert all(torch.equal(a.sort(1)[0], b.sort(1)[0]) for a, b in zip(p.values, q.values))
        for p, q in zip(sent[kind], controlled('zero_values', sent[kind])[0]): assert all(torch.equal(a, b) for a, b in zip(p.keys, q.keys)) and not any(v.any() for v in q.values)


@pytest.mark.parametrize('kind', ['cipher', 'statebridge', 'latentmas', 'kvcomm_thin', 'sde'])
def test_a_rotation_keeps_the_moments_of_every_table(sender, sent, kind):
    turn = rotation(sender.model)
    for p, q in zip(sent[kind], controlled('random_rot', sent[kind], Beside(sender=sender))[0]):
        for name, x in rows_of(p, turn).items():
            for a, b in zip(*(t.double() if t.dim() == 3 else t[None].double() for t in (x, rows_of(q, turn)[name]))):
                torch.testing.assert_close(b.mean(0), a.mean(0), atol=1e-4, rtol=0)
                if len(a) > 1: torch.testing.assert_close(b.T.cov(), a.T.cov(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('kind', ['cipher', 'latentmas', 'sde'])
def test_what_is_drawn_has_the_moments_on_average(sender, sent, kind):
    turn, p = rotation(sender.model), sent[kind][1]
    many = [rows_of(controlled('moment_matched', [p], Beside(sender=sender), seed)[0][0], turn) for seed in range(400)]
    for name, x in rows_of(p, turn).items():
        for h in range(len(x) if x.dim() == 3 else 1):
            a, drawn = (x if x.dim() == 2 else x[h]).double(), torch.stack([m[name] if x.dim() == 2 else m[name][h] for m in many]).double()
            mean, cov = drawn.mean(1), torch.stack([d.T.cov() for d in drawn])
            for found, wanted in ((mean, a.mean(0)), (cov, a.T.cov())):
                assert ((found.mean(0) - wanted).abs() <= 5.5*found.std(0)/20 + 1e-4).all()


def test_the_mean_of_the_others_is_that(sender, sent):
    turn, payloads = rotation(sender.model), sent['kvcomm']
    means, = controlled('mean', payloads, Beside(sender=sender))
    for i, (own, found) in enumerate(zip(payloads, means)):
        others = [p for j, p in enumerate(payloads) if j != i]
        for at in range(own.positions):
            here = [p for p in others if p.positions > at]
            if not here: continue
            torch.testing.assert_close(found.values[1][:,at], torch.stack([p.values[1][:,at] for p in here]).mean(0), atol=1e-5, rtol=0)
            back = torch.stack([turn(p.keys[1][:,at:at+1], torch.tensor([-at])) for p in here]).mean(0)
            torch.testing.assert_close(found.keys[1][:,at:at+1], turn(back, torch.tensor([at])), atol=1e-5, rtol=0)


def test_a_part_leaves_a_hole(sender, sent):
    p = sent['kvcomm'][4]
    (first,), (last,) = controlled('first_3', [p])[0], controlled('last_3', [p])[0]
    assert (first.at[0].tolist(), last.at[0].tolist(), first.next, last.next) == ([0, 1, 2], [4, 5, 6], 7, 7)
    d = sent['sde'][0]
    half, = controlled('first_0.5', [d])[0]
    assert torch.equal(half.deltas[1][:3], d.deltas[1][:3]) and not half.deltas[1][3:].any() and half.token_ids == d.token_ids


# Partners

def test_a_partners_message_is_as_long_and_nobodys_own(sender, sent):
    for kind in ('cipher', 'latentmas', 'latentmas_newest', 'kvcomm_thin', 'kvcomm_back'):
        payloads = sent[kind]
        for r in made('other', payloads, sender):
            for own, new in zip(payloads, r):
                assert new.positions == own.positions and not any(same(new, q) for q in [own])
                if kind.startswith('kvcomm_'): assert new.lengths == own.lengths


def test_a_keys_own_place_is_left_alone(sender, sent):
    "A partner of the same length is itself, bit for bit, and needs nobody to turn it."
    for kind in ('latentmas', 'kvcomm_thin', 'cipher', 'sde', 'text'):
        p = sent[kind][0]
        assert same(matched(p, p), p)


def test_a_pair_and_its_differences(sender, sent):
    d = sent['sde']
    alone, pair = made('other', d, sender), made('other_with_ids', d, sender)
    for own, a, p in zip(d, alone[0], pair[0]):
        assert a.token_ids == own.token_ids != p.token_ids and all(torch.equal(x, p.deltas[l]) for l, x in a.deltas.items())


def test_set_back_layer_by_layer_is_the_own_one(sender, sent):
    for kind in ('latentmas', 'kvcomm_thin', 'sde'):
        payloads = sent[kind]
        other = made('other', payloads, sender)[0]
        for own, o in zip(payloads, other):
            now = o
            for l in range(2): now = restored(own, now, layers={l})
            assert same(now, own)
            now = o
            for i in range(own.positions): now = restored(own, now, positions={i})
            assert same(now, own)


# Number types

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_a_control_keeps_the_number_type(sender, sent, dtype):
    for kind in ('cipher', 'latentmas', 'ac', 'sde'):
        payloads = [type(p).from_tensors({k: x.to(dtype) if x.is_floating_point() else x for k, x in tensors(p).items()}) for p in sent[kind]]
        for name in ('zero', 'mean', 'random', 'moment_matched', 'random_rot', 'cov_noise_0.5', 'shuffle', 'shuffle_places', 'other', 'scale_8', 'sign', 'codec_int8', 'layers_1', 'first_2'):
            if why_not(name, payloads[0]): continue
            for p in made(name, payloads, sender)[0]: assert {x.dtype for x in tensors(p).values() if x.is_floating_point()} == {dtype}, name


def test_a_family_whose_keys_cannot_be_moved_says_so():
    agent = Agent(random_lm('gpt2', max_position_embeddings=64), None)
    payloads = channel('kvcomm').send(agent, PROMPTS)
    b = Beside(sender=agent, k=2)
    for name in ('mean', 'moment_matched', 'random_rot', 'shuffle_places', 'codec_int8'):
        with pytest.raises(InterlatError, match='keys of GPT2LMHeadModel cannot be moved'): controlled(name, payloads, b)
    for name in ('zero', 'zero_values', 'random', 'shuffle', 'scale_8', 'sign', 'first_2'): assert len(controlled(name, payloads, b)[0]) == 5
