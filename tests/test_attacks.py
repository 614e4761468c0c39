"Attacks on messages of a tiny random actor: the answer gets worse, the norms do not tell, and a signature does."
import pytest, torch

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.audit.attacks import ATTACKS, attack, norm_check, turned
from interlat.channels.payloads import States
from interlat.core.basics import InterlatError
from interlat.messages.message import LatentMessage
from interlat.messages.signing import BadSignature, Signer, Verifier, new_key

from cast import random_lm

WIDTH, PROMPT, ANSWER = 16, [5, 9, 11, 3], [7, 30, 12]


def draw(n, seed, scale=1.):
    return States(scale*torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope='module', params=('qwen2', 'gpt2'))
def actor(request):
    a = ModelWithInsertedHiddenState(random_lm(request.param, WIDTH), 40, WIDTH, num_heads=4, bop_id=1, eop_id=2).eval()
    a.processor.adaptive_proj.output_scale.data.fill_(5)
    return a.requires_grad_(False)


@pytest.fixture
def loss(actor):
    "Of the answer's tokens, under a message between the prompt's first two tokens and the rest; nats."
    ids = torch.tensor([PROMPT + ANSWER])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(PROMPT), -100)
    return lambda h: actor(ids, torch.ones_like(ids), labels, torch.tensor([2]), actor.embed_message(h[None])).loss


def test_an_adversarial_message_is_worse_than_a_random_turn_and_as_long(actor, loss):
    sent = draw(6, 0)
    bad = attack('adversarial', sent, loss)
    assert torch.allclose(bad.h.norm(dim=1), sent.h.norm(dim=1), rtol=1e-5)
    def chance(seed): # as far from the message, row by row, in a direction of chance
        turn, far = draw(6, seed).h, (bad.h - sent.h).norm(dim=1, keepdim=True)
        turn -= (turn*sent.h).sum(1, keepdim=True)/sent.h.square().sum(1, keepdim=True)*sent.h
        there = sent.h + far*turn/turn.norm(dim=1, keepdim=True)
        return loss(there*sent.h.norm(dim=1, keepdim=True)/there.norm(dim=1, keepdim=True)).item()
    by_chance = [chance(seed) for seed in range(1, 21)]
    assert loss(bad.h).item() > max(by_chance) > loss(sent.h).item() - 1e-6
    honest = [draw(6, s) for s in range(2, 9)]
    assert norm_check(bad, honest) == pytest.approx(norm_check(sent, honest)) # it sees what it saw before
    assert sent.h.grad is None and not any(p.grad is not None for p in actor.parameters())


def test_more_steps_are_never_milder(loss):
    sent = draw(5, 3)
    losses = [loss(sent.h).item(), *(loss(turned(sent.h, loss, n)).item() for n in (1, 3, 10, 30))]
    assert losses == sorted(losses) and losses[-1] > losses[0]


def test_bfloat16_keeps_its_type_and_its_norms(loss):
    sent = States(draw(5, 3).h.bfloat16())
    bad = attack('adversarial', sent, lambda h: loss(h.float()))
    assert bad.h.dtype == torch.bfloat16 and torch.allclose(bad.h.float().norm(dim=1), sent.h.float().norm(dim=1), rtol=.01)
    assert loss(bad.h.float()) > loss(sent.h.float())


def test_the_same_attack_twice(loss):
    sent, other = draw(6, 0), draw(9, 1)
    for name in ATTACKS:
        a, b = (attack(name, sent, loss, other, seed=4) for _ in range(2))
        assert torch.equal(a.h, b.h) and not torch.equal(a.h, sent.h) and (a.token_ids, a.text) == (sent.token_ids, sent.text)
    rows = {int((attack('swapped_row', sent, other=other, seed=s).h != sent.h).any(1).nonzero()) for s in range(40)}
    assert rows == set(range(6))


def test_what_a_norm_check_sees_of_each(loss):
    "A loud stranger, whole or in one row; of one that is as loud as the sender, nothing."
    sent, honest = draw(6, 0), [draw(6, s) for s in range(10, 40)]
    for name, scale, seen in (('other_sender', 8, 6), ('swapped_row', 8, 1), ('other_sender', 1, 0), ('swapped_row', 1, 0)):
        found = norm_check(attack(name, sent, other=draw(6, 2, scale)), [*honest, sent, draw(6, 2)], 0)
        assert found['outside'] == seen and found['conspicuous'] == bool(seen), name


def test_a_zero_row_stays_zero(loss):
    "It has no direction to be turned in, and no length to be moved by."
    sent = States(torch.cat([draw(3, 0).h, torch.zeros(1, WIDTH)]))
    bad = attack('adversarial', sent, loss)
    assert bad.h.isfinite().all() and not bad.h[3].any()


def test_what_a_norm_does_not_tell_a_signature_does(loss, tmp_path):
    key, sent = new_key(tmp_path/'key'), draw(6, 0)
    def packed(payload): return LatentMessage(payload.h, [-1]*6, '', 'game-0', 'tiny').pack()
    honest, verifier = Signer(key).sign(packed(sent)), Verifier(key)
    for name in ATTACKS:
        forged = packed(attack(name, sent, loss, draw(6, 2)))
        with pytest.raises(BadSignature): verifier.open(honest[:37] + forged + honest[-32:])
    assert torch.equal(LatentMessage.unpack(verifier.open(honest)[0]).h, sent.h)
    verifier.close()


def test_refusals(loss):
    with pytest.raises(InterlatError, match='the message has no rows'): attack('adversarial', draw(0, 0), loss)
    with pytest.raises(InterlatError, match='size must be 0 or more'): attack('adversarial', draw(2, 0), loss, size=-1)
    with pytest.raises(InterlatError, match=r'other message is \(2, 16\), this one \(3, 16\)'): attack('swapped_row', draw(3, 0), other=draw(2, 1))
