"The losses against slow references, their bounds, directions and gradients."
import json, math
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from interlat.core.basics import InterlatError
from interlat.training.losses import adaptive_weights, alignment_loss, js_divergence, separation_loss

LN2 = math.log(2)

def slow_js(p_logits, q_logits):
    "The definition, one probability at a time."
    def softmax(z):
        top = max(z); e = [math.exp(x-top) for x in z]
        return [x/sum(e) for x in e]
    total = 0.
    for p, q in zip(softmax(p_logits), softmax(q_logits)):
        m = (p+q)/2
        if p: total += p*math.log(p/m)/2
        if q: total += q*math.log(q/m)/2
    return total

def randn(*shape, scale=1., seed=0): return scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()

numbers = st.one_of(st.floats(-30, 30), st.floats(-1e4, 1e4), st.sampled_from([0., 1e30, -1e30, 3e38, -3e38, -math.inf]))
rows = st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n).filter(lambda z: max(z) > -math.inf)]*2))

@settings(max_examples=400, deadline=None)
@given(rows, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_js_is_bounded_symmetric_and_finite(pq, dtype):
    p, q = (torch.tensor(z, dtype=torch.float64).clamp(max=torch.finfo(dtype).max).to(dtype) for z in pq)
    js = js_divergence(p, q).item()
    assert 0 <= js <= LN2
    assert js == js_divergence(q, p).item()
    assert js_divergence(p, p).item() == 0

@settings(max_examples=300, deadline=None)
@given(st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-60, 60, width=32), min_size=n, max_size=n)]*2)))
def test_js_equals_the_slow_loop(pq):
    "For logits that float32 holds exactly, and then in float32 too."
    p, q = (torch.tensor(z, dtype=torch.float64) for z in pq)
    assert js_divergence(p, q).item() == pytest.approx(slow_js(*pq), abs=1e-12)
    assert js_divergence(p.float(), q.float()).item() == pytest.approx(slow_js(*pq), abs=1e-5)

@pytest.mark.parametrize('scale', (.1, 1., 10., 100.))
def test_js_on_a_vocabulary(scale):
    p, q = randn(6, 500, scale=scale), randn(6, 500, scale=scale, seed=1)
    assert torch.allclose(js_divergence(p, q), torch.tensor([slow_js(a, b) for a, b in zip(p.tolist(), q.tolist())], dtype=p.dtype), rtol=0, atol=1e-12)
    assert torch.allclose(js_divergence(p.view(2, 3, 500), q.view(2, 3, 500)), js_divergence(p, q).view(2, 3))

def test_js_is_not_the_original_codes_kl():
    "The published code's KL(m‖p) has no bound; ours stays under ln 2 where that one explodes."
    p, q = torch.tensor([[0., 50.], [50., 0.]], dtype=torch.float64)
    m = (p.softmax(-1) + q.softmax(-1))/2
    assert (m*(m.log() - p.log_softmax(-1))).sum() > 20
    assert js_divergence(p, q).item() == pytest.approx(LN2, abs=1e-12)

def test_gradients_against_finite_differences():
    p, q = (randn(3, 6, scale=2., seed=s).requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(js_divergence, (p, q))
    assert torch.autograd.gradcheck(lambda x: alignment_loss(x, q), (p,), atol=1e-4, rtol=1e-3, eps=1e-3)

@pytest.mark.parametrize('scale', (0., 1., 1e4, 1e30))
def test_gradients_are_finite(scale):
    p, q = (randn(4, 9, scale=scale, seed=s).float().requires_grad_() for s in (0, 1))
    (separation_loss(p, q) + alignment_loss(p, q.detach())).backward()
    assert p.grad.isfinite().all() and q.grad.isfinite().all()

def test_gradient_of_separation_reaches_both_sides():
    p, q = (randn(4, 9, seed=s).requires_grad_() for s in (0, 1))
    separation_loss(p, q).backward()
    assert p.grad.abs().min() > 0 and q.grad.abs().min() > 0

def test_masked_vocabulary_entries():
    p, q = randn(2, 5), randn(2, 5, seed=1)
    wide = [F.pad(x, (0, 3), value=-math.inf) for x in (p, q)]
    assert torch.allclose(js_divergence(*wide), js_divergence(p, q))

def test_separation_is_a_mean_over_tokens():
    "Not over sequences: a batch of a long and a short one weighs each token alike."
    p, q = randn(7, 9), randn(7, 9, seed=1)
    assert separation_loss(p, q).item() == pytest.approx(-sum(slow_js(a, b) for a, b in zip(p.tolist(), q.tolist()))/7, abs=1e-12)

def test_alignment_direction():
    "KL(p_theta ‖ p_plan): weight where the actor puts mass. The reverse has another value."
    z, plan = randn(5, 9, scale=2.), randn(5, 9, scale=2., seed=1)
    kl = lambda a, b: (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1).mean().item()
    assert alignment_loss(z, plan, alpha=0., beta=1.).item() == pytest.approx(kl(z, plan), abs=1e-12)
    assert abs(kl(z, plan) - kl(plan, z)) > .1

def test_alignment_cosine_is_per_token():
    z, plan = randn(3, 9), randn(3, 9, seed=1)
    per_token = [1 - F.cosine_similarity(a - a.mean(), b - b.mean(), dim=0).item() for a, b in zip(z, plan)]
    assert alignment_loss(z, plan, alpha=1., beta=0.).item() == pytest.approx(sum(per_token)/3, abs=1e-12)
    flat = 1 - F.cosine_similarity(z.flatten(), plan.flatten(), dim=0).item()  # as the published code does
    assert abs(flat - sum(per_token)/3) > 1e-3

def test_alignment_ignores_a_constant_added_to_all_logits():
    z, plan = randn(3, 9), randn(3, 9, seed=1)
    assert alignment_loss(z + 100, plan - 7).item() == pytest.approx(alignment_loss(z, plan).item(), abs=1e-10)

def test_the_plan_side_gets_no_gradient():
    z, plan = randn(3, 9).requires_grad_(), randn(3, 9, seed=1).requires_grad_()
    alignment_loss(z, plan).backward()
    assert plan.grad is None and z.grad.abs().sum() > 0

def test_alignment_pulls_towards_the_plan():
    z, plan = randn(2, 6, seed=1).requires_grad_(), randn(2, 6, scale=2.)
    for _ in range(500):
        grad, = torch.autograd.grad(alignment_loss(z, plan), z)
        z = (z - grad).detach().requires_grad_()
    assert alignment_loss(z, plan) < .01 and torch.allclose(z.softmax(-1), plan.softmax(-1), atol=.03)

def test_bf16_logits_are_compared_in_float32():
    p, q = randn(4, 64).bfloat16(), randn(4, 64, seed=1).bfloat16()
    for f in (js_divergence, separation_loss, alignment_loss):
        assert f(p, q).dtype == torch.float32 and torch.equal(f(p, q), f(p.float(), q.float()))

def test_refusals():
    z = randn(3, 9)
    for f in (js_divergence, separation_loss, alignment_loss):
        with pytest.raises(InterlatError, match='same supervised positions'): f(z, z[:1])
    for f in (separation_loss, alignment_loss):
        with pytest.raises(InterlatError, match='no supervised positions'): f(z[:0], z[:0])

# the original's table, from its code: contrast loss, plan loss -> contrast weight, plan weight
WEIGHTS = ((0, 0, .01, .01), (.1, 1., .0810144927536232, .02), (.345, 2., .255, .03), (.69, 4., .5, .05), (1., 7., .5, .05),
           (.2, .3, .15202898550724642, .013000000000000001))

@pytest.mark.parametrize('contrast, plan, contrast_weight, plan_weight', WEIGHTS)
def test_adaptive_weights(contrast, plan, contrast_weight, plan_weight):
    assert adaptive_weights(plan, contrast) == pytest.approx((plan_weight, contrast_weight), abs=1e-12)
    tensors = [torch.tensor(float(x), dtype=torch.float64, requires_grad=True) for x in (plan, contrast)]
    weights = adaptive_weights(*tensors)
    assert all(type(w) is float for w in weights) and weights == pytest.approx((plan_weight, contrast_weight), abs=1e-12)

GOLDEN = Path(__file__).resolve().parents[2]/'shared'/'golden'/'adaptive_weights.json'

@pytest.mark.skipif(not GOLDEN.exists(), reason='golden files not at hand')
def test_adaptive_weights_are_those_of_the_original_code():
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) > 3
    for r in rows:
        assert adaptive_weights(r['plan_similarity_loss'], r['random_contrast_loss']) == pytest.approx((r['plan_similarity_weight'], r['random_contrast_weight']), abs=1e-9)
