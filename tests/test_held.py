"The hard checks hold for every channel and family, and each planted fault is caught by the check that knows of it; what a receiver would say, against the slow way."
from dataclasses import replace

import numpy as np, pytest, torch
from cast import random_lm

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.audit import Arm, Beside, answer_logprob, controlled, distances, forced, hard_checks, measures, moved, set_back
from interlat.channels import CHANNELS, channel
from interlat.channels.c2c import C2C
from interlat.core.basics import InterlatError
from interlat.models.chat import Chat
from interlat.models.lm import Agent

FAMILIES = 'qwen2', 'llama', 'gemma2', 'qwen3', 'mistral'
OPTIONS = dict(latentmas=dict(latent_steps=3), statebridge=dict(K=6, max_new_tokens=6), own_tokens=dict(K=6, max_new_tokens=6), cipher=dict(n=5), sde=dict(layers=(0, 1), max_new_tokens=5),
               text=dict(max_new_tokens=6), interlat=dict(max_new_tokens=6), kvcomm=dict(layers=(0,)))
PROMPTS = [[5, 9, 11, 3], [7, 30, 12, 8, 22, 41], [6, 6, 14], [13, 40, 2, 7, 19], [25, 8, 9, 31, 4, 17, 28]]
CHATS = [Chat(ids, [0]*len(ids), 1) for ids in ([4, 8, 21], [3, 9], [11], [5, 6, 7, 8], [12, 4])]
ANSWERS = [[7, 8], [30, 31, 32], [12], [9, 9, 9], [40, 3]]
IDS = [f'item {i}' for i in range(5)]


def lm(family, seed=0): return random_lm(family, seed=seed, **dict(gemma2=dict(head_dim=4), qwen3=dict(head_dim=4), gpt2=dict(num_key_value_heads=4)).get(family, {}))
def agent(family): return Agent(lm(family), None)


def case(name, family):
    "A channel with what it sends: (channel, actor, conversations), payloads, sender."
    sender, chats = agent(family), CHATS
    if name == 'c2c':
        c, chats = C2C.untrained(sender, sender, hidden=16, intermediate=16), [Chat(ids, [0]*len(ids), 1) for ids in PROMPTS]
        for p in c.projectors: p.key_gate_logit.data.fill_(1); p.value_gate_logit.data.fill_(1)
    else: c = channel(name, **({} if family == 'gpt2' and name == 'kvcomm' else OPTIONS.get(name, {}))) # gpt2 takes no mask a layer
    actor = sender
    if name == 'interlat':
        actor = Agent(ModelWithInsertedHiddenState(lm(family, 1), 40, 16, num_heads=4, bop_id=1, eop_id=2).eval(), None)
        actor.model.processor.adaptive_proj.output_scale.data.fill_(5)
    return (c, actor, chats), c.send(sender, PROMPTS), sender


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', CHANNELS)
def test_the_checks_hold(name, family):
    if family in ('gemma2', 'mistral') and name in ('latentmas', 'c2c', 'kvcomm', 'sde', 'ac'): # layers with a window: these channels say that they cannot
        with pytest.raises(InterlatError, match='use a channel of states or words'): hard_checks(*case(name, family)[:2], ANSWERS)
        return
    setting, payloads, sender = case(name, family)
    found = hard_checks(setting, payloads, ANSWERS, Beside(IDS, sender=sender))
    assert found['swapped'] == dict(CIC=0, CAG=0) and max(found['masked'].values()) <= found['floor'] <= 1e-5 >= found['leaked']['moved']
    ends = [v for v in found['restored'].values() if v is not None]
    assert (len(ends) >= 2 or name == 'ac') and max(ends, default=0) < 1e-4


def test_a_channel_that_says_nothing_passes_and_is_said_to():
    "C2C's projectors begin closed: exactly no message."
    sender = agent('qwen2')
    c = C2C.untrained(sender, sender, hidden=16, intermediate=16)
    chats = [Chat(ids, [0]*len(ids), 1) for ids in PROMPTS]
    sent = c.send(sender, PROMPTS)
    found = hard_checks((c, sender, chats), sent, ANSWERS, Beside(IDS, sender=sender))
    assert set(found['restored'].values()) == {None}
    d = distances((c, sender, chats), dict(current=Arm([sent]), none=Arm([[None]*5]), other=Arm(controlled('other', sent, Beside(IDS, k=2, sender=sender)))), ANSWERS, IDS, 5, 1)
    assert (d.jsd_answer == 0).all()


# Faults

def planted(name, family, fault):
    (c, actor, chats), payloads, sender = case(name, family)
    class Faulty(type(c)):
        last = None
        def opened(self, actor, chats, payloads, masked): return fault(self, super().opened, actor, chats, payloads, masked)
    c.__class__ = Faulty
    with pytest.raises(InterlatError) as e: hard_checks((c, actor, chats), payloads, ANSWERS, Beside(IDS, sender=sender))
    return str(e.value)


def no_mask(self, opened, actor, chats, payloads, masked): return opened(actor, chats, payloads, False)


def half_mask(self, opened, actor, chats, payloads, masked):
    "Hides all but a hundredth."
    if not masked: return opened(actor, chats, payloads, False)
    return opened(actor, chats, [p and controlled('scale_0.01', [p])[0][0] for p in payloads], False)


def used_cache(self, opened, actor, chats, payloads, masked):
    "Each reading writes into the payload, as a cache does."
    found = opened(actor, chats, payloads, masked)
    for p in payloads:
        for x in (p.values if hasattr(p, 'values') else [p.h] if hasattr(p, 'h') else [p.a] if hasattr(p, 'a') else p.deltas.values()) if p else (): x[..., -1:] += .01
    return found


def memory(self, opened, actor, chats, payloads, masked):
    "What was read before is still there, a little."
    last, self.last = self.last, payloads
    if not last or len(last) != len(payloads) or None in last or None in payloads: return opened(actor, chats, payloads, masked)
    from interlat.audit.drawn import STILL, rows_of, with_rows
    mixed = []
    for p, q in zip(payloads, last):
        a, b = rows_of(p, STILL), rows_of(q, STILL)
        mixed.append(with_rows(p, {k: x + .02*(b[k] - x) if b[k].shape == x.shape else x for k, x in a.items()}, STILL))
    return opened(actor, chats, mixed, masked)


NUMBERS = [n for n in CHANNELS if n != 'text']


@pytest.mark.parametrize('name', CHANNELS)
def test_a_mask_that_is_none_is_caught(name):
    assert planted(name, 'qwen2', no_mask).startswith('check masked failed: PL is')


@pytest.mark.parametrize('name', [n for n in NUMBERS if n != 'sde']) # of sde the ids alone would be masked
def test_a_mask_that_lets_a_little_through_is_caught(name):
    assert planted(name, 'llama', half_mask).startswith('check masked failed')


@pytest.mark.parametrize('name', NUMBERS)
def test_a_cache_of_two_conditions_is_caught(name):
    assert planted(name, 'llama', used_cache).startswith('check swapped failed: CIC is')


@pytest.mark.parametrize('name', NUMBERS)
def test_what_is_left_of_the_current_message_is_caught(name):
    assert planted(name, 'llama', memory).startswith('check leaked failed')


@pytest.mark.parametrize('name', NUMBERS)
def test_a_leak_in_the_making_of_partners_is_caught(name):
    setting, payloads, sender = case(name, 'qwen2')
    b = Beside(IDS, k=1, sender=sender)
    from interlat.audit.drawn import STILL, rows_of, with_rows
    def build(own):
        mix = lambda o, p: with_rows(o, {k: .9*x + .1*rows_of(p, STILL)[k] for k, x in rows_of(o, STILL).items()}, STILL)
        return [[mix(o, p) if i == 2 else o for i, (o, p) in enumerate(zip(controlled('other', own, b)[0], own))]] # one item of five
    with pytest.raises(InterlatError, match="check leaked failed: .* at item item 2 where"): hard_checks(setting, payloads, ANSWERS, b, build=build)


# What would be said

@pytest.mark.parametrize('family', ['qwen2', 'llama', 'gpt2'])
@pytest.mark.parametrize('name', CHANNELS)
def test_forced_is_what_a_receiver_says_token_by_token(name, family):
    setting, payloads, _ = case(name, family)
    c, actor, chats = setting
    said = forced(*setting, payloads, ANSWERS)
    for i, (chat, y) in enumerate(zip(chats, ANSWERS)):
        for k in range(len(y) if name not in ('c2c', 'ac', 'sde') else 1): # these read a message into the prompt alone: a longer one is another
            longer = Chat([*chat.input_ids, *y[:k]], [0]*(len(chat) + k), chat.insert_at)
            torch.testing.assert_close(c.receive(actor, [longer], [payloads[i]], 0).logits[0], said[i][k], atol=2e-4, rtol=0)
        torch.testing.assert_close(forced(c, actor, [chat], [payloads[i]], [y])[0], said[i], atol=2e-4, rtol=0)
        greedy = c.receive(actor, [chat], [payloads[i]], 3).token_ids[0]
        own = forced(c, actor, [chat], [payloads[i]], [greedy])[0]
        top = own.topk(2).values
        for k, t in enumerate(greedy): assert own[k].argmax() == t or top[k, 0] - top[k, 1] < 1e-3


def test_distances_do_not_depend_on_the_batch():
    setting, payloads, sender = case('latentmas', 'qwen2')
    b = Beside(IDS, k=2, sender=sender)
    arms = dict(current=Arm([payloads]), none=Arm([[None]*5]), other=Arm(controlled('other', payloads, b), [list('bcdea'), list('cdeab')]))
    one, two = (distances(setting, arms, ANSWERS, IDS, size, 1) for size in (5, 2))
    both = one.merge(two, on=['item', 'arm', 'partner', 'seed'])
    assert len(both) == 20 and np.allclose(both.jsd_answer_x, both.jsd_answer_y, atol=1e-6) and np.allclose(both.logprob_x, both.logprob_y, atol=1e-4)
    table = measures(one.assign(utility=one.logprob.rank()/len(one)))
    assert table.loc['CIC_answer', 'mean'] == pytest.approx(one.query('arm == "other"').jsd_answer.mean())


def test_shares_of_layers_against_the_slow_way():
    setting, payloads, sender = case('kvcomm', 'llama')
    others, = controlled('other', payloads, Beside(IDS, k=1, sender=sender))
    t = set_back(setting, payloads, others, ANSWERS)
    for l in range(2):
        mixed = [replace(o, keys=[p.keys[k] if k == l else o.keys[k] for k in range(2)], values=[p.values[k] if k == l else o.values[k] for k in range(2)]) for p, o in zip(payloads, others)]
        assert np.allclose(t[f'layer {l}'], answer_logprob(forced(*setting, mixed, ANSWERS), ANSWERS))
        assert np.allclose(t[f'nld layer {l}'], (t[f'layer {l}'] - t.other)/(t.current - t.other), equal_nan=True)


def test_divergence_is_that_of_the_book():
    from scipy.spatial.distance import jensenshannon
    g = torch.Generator().manual_seed(0)
    a, b = [torch.randn(3, 50, generator=g) for _ in range(4)], [2*torch.randn(3, 50, generator=g) for _ in range(4)]
    first, whole = moved(a, b)
    want = [[jensenshannon(x.softmax(-1)[k].numpy(), y.softmax(-1)[k].numpy())**2 for k in range(3)] for x, y in zip(a, b)]
    assert np.allclose(first, [w[0] for w in want], atol=1e-6) and np.allclose(whole, np.mean(want, 1), atol=1e-6)
