"The channels' pure functions against slow, obvious ones of CHANNELS' formulas, in float64 and one number at a time, over shapes, number types and edges."
import math

import pytest, torch
from torch import tensor

from interlat.core.basics import *
from interlat.channels import *

SEEDS = range(4)
HALVES = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3} # what a number type may cost


def draw(*shape, seed=0, scale=1., dtype=torch.float32): return (scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def meet(found, wanted, most=1e-5):
    "Equal but for a part of the largest value, at least 1."
    assert found.shape == wanted.shape and found.isfinite().all()
    apart = (found.double() - wanted.double()).abs().max()/wanted.double().abs().max().clamp(min=1) if found.numel() else tensor(0.)
    assert apart <= most, f'{apart:.2e}'


# LatentMAS

def slow_realignment(E, U, ridge):
    "The ridge regression's least squares problem, written out: the rows of U predict those of E, and ridge weighs the map's size."
    E, U = E.double(), U.double()
    rows = torch.cat([U, math.sqrt(ridge)*torch.eye(U.shape[1], dtype=torch.float64)])
    wanted = torch.cat([E, torch.zeros(U.shape[1], E.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, wanted, driver='gelsd').solution, sum(math.sqrt(sum(x*x for x in e)) for e in E.tolist())/len(E)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('V, D, U_width, ridge, scale', [(200, 64, 64, 1e-5, .3), (90, 16, 16, 1e-2, .02), (150, 24, 40, 1., 1.), (500, 8, 8, 0., 2.), (20, 32, 32, .5, 1.), (9, 1, 1, 1e-5, 1.)])
def test_realignment_is_a_ridge_regression(seed, V, D, U_width, ridge, scale):
    E, U = draw(V, D, seed=seed, scale=scale), draw(V, U_width, seed=seed+100, scale=scale)
    (W, tau), (slow, size) = latentmas_realignment(E, U, ridge), slow_realignment(E, U, ridge)
    assert W.dtype == tau.dtype == torch.float32
    meet(W, slow, 1e-4)
    meet(tau, tensor(size))
    tied, _ = latentmas_realignment(E, E, ridge) # tied tables: nearly no turn at all, W = I - λ(UᵀU + λI)⁻¹
    meet(tied, torch.eye(D) - ridge*torch.linalg.inv(E.double().T @ E.double() + ridge*torch.eye(D)), 1e-4)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('lead', [(), (5,), (2, 3), (0,)])
def test_states_go_back_at_an_embedding_s_length(lead, dtype):
    h, W = draw(*lead, 12, seed=1, dtype=dtype), draw(12, 7, seed=2)
    for m, tau in ((W, tensor([.7])), (W.double(), 3), (None, tensor(1.5)), (W, 0.)):
        found = latentmas_embed(h, m, tau)
        rows = []
        for x in h.reshape(-1, 12).double().tolist():
            a = x if m is None else [sum(p*q for p, q in zip(x, column)) for column in m.double().T.tolist()]
            size = max(math.sqrt(sum(v*v for v in a)), 1e-6)
            rows.append([float(tau)*v/size for v in a])
        wanted = torch.tensor(rows, dtype=torch.float64).reshape(*lead, 12 if m is None else 7)
        assert found.dtype == dtype
        meet(found, wanted, HALVES[dtype])
    assert latentmas_embed(torch.zeros(2, 12, dtype=dtype), None, 1.).eq(0).all() # no direction, no length
    small = latentmas_embed(torch.full((12,), 1e-8), None, 1.) # below 1e-6 the length is not made up for
    assert small.norm() == pytest.approx(math.sqrt(12)*1e-2, rel=1e-4)


# StateBridge

def root(c, power):
    size, axes = torch.linalg.eigh(c)
    return axes @ torch.diag(size.clamp(min=1e-6)**power) @ axes.T


def slow_align(h, e, reg):
    "Both clouds centred and whitened; the turn between them by the polar factor of their product; the second cloud's spread and middle."
    if len(h) == 1: return h.double()
    h, e = h.double(), e.double()
    H, F = h - h.mean(0), e - e.mean(0)
    C, G = (sum(torch.outer(x, x) for x in X)/len(X) + reg*torch.eye(X.shape[1]) for X in (H, F))
    u, s, vt = torch.linalg.svd((H @ root(C, -.5)).T @ (F @ root(G, -.5)))
    if torch.linalg.det(u @ vt) < 0: u = torch.cat([u[:,:-1], -u[:,-1:]], 1)
    return H @ root(C, -.5) @ u @ vt @ root(G, .5) + e.mean(0)


def slow_prefix(h, e, E, tau, anchor, reg):
    rows = []
    for x in slow_align(h, e, reg):
        x = float(tau)*x/x.norm().clamp(min=1e-8)
        near = torch.cosine_similarity(x[None], E.double()).argmax()
        rows.append((1-anchor)*x + anchor*E[near].double())
    return torch.stack(rows)


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('K, D, V, scale, reg', [(160, 64, 300, 1., 1e-3), (300, 16, 320, .3, 1e-3), (24, 64, 90, 1., 1e-3), (2, 32, 40, 1., 1e-3), (1, 8, 20, 1., 1e-3), (6, 40, 50, .1, 1e-3), (50, 12, 80, 1., .5),
                                                 (3, 5, 12, 2., 1e-2), (64, 48, 200, 1., 1e-1)])
def test_the_bridge_aligns_as_its_formula_says(seed, K, D, V, scale, reg):
    E, h = draw(V, D, seed=seed, scale=scale), draw(K, D, seed=seed+50, scale=3.)
    ids = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:K]
    e, tau = E[ids], E.norm(dim=1).mean()
    meet(statebridge_align(h, e, reg), slow_align(h, e, reg), 1e-4)
    for anchor in (.3, 0., 1.): meet(statebridge_prefix(h, e, E, tau, anchor, reg), slow_prefix(h, e, E, tau, anchor, reg), 1e-4)
    flat = statebridge_prefix(h.double(), e, E, tau[None], reg=reg)
    assert flat.dtype == torch.float64 and statebridge_prefix(h.bfloat16(), e, E, tau).dtype == torch.bfloat16
    meet(flat, slow_prefix(h, e, E, tau, .3, reg), 1e-4)
    two = statebridge_align(torch.stack([h, h.flip(0)]), torch.stack([e, e.flip(0)]), reg) # several messages, each by its own fit
    meet(two[0], slow_align(h, e, reg), 1e-4)
    meet(two[1], slow_align(h, e, reg).flip(0), 1e-4)


@pytest.mark.parametrize('seed', SEEDS)
def test_a_mirror_image_is_no_turn(seed):
    h, e = draw(40, 6, seed=seed), draw(40, 6, seed=seed+9)
    for x in (h, h*tensor([-1., 1, 1, 1, 1, 1])):
        fit = statebridge_fit(x, e)
        assert torch.linalg.det(fit.rotation) == pytest.approx(1, abs=1e-4)
        meet(statebridge_align(x, e), slow_align(x, e, 1e-3), 1e-4)
    assert bool(statebridge_fit(h, e).flipped) != bool(fit.flipped)


# CIPHER

def slow_probs(logits, temperature, top_k, top_p):
    "One row of logits (V,), by sorting and counting."
    hot = [x/(temperature or 1) for x in logits]
    p = [math.exp(x - max(hot)) for x in hot]
    p = [x/sum(p) for x in p]
    if top_k is not None:
        least = sorted(p, reverse=True)[min(top_k, len(p))-1]
        p = [x if x >= least else 0. for x in p]
        p = [x/sum(p) for x in p]
    if top_p is not None:
        before, kept = 0., [0.]*len(p)
        for i in sorted(range(len(p)), key=lambda i: -p[i]):
            if before <= top_p: kept[i] = p[i]
            before += p[i]
        p = [x/sum(kept) for x in kept]
    return p


@pytest.mark.parametrize('temperature', [0, .05, .38, 1., 2.7])
@pytest.mark.parametrize('top_k, top_p', [(None, None), (1, None), (7, None), (1000, None), (None, 0.), (None, 1e-9), (None, .37), (None, 1.), (7, .6), (3, .999)])
def test_a_word_that_is_not_chosen(temperature, top_k, top_p):
    for seed, (lead, V, D) in enumerate([((), 30, 5), ((4,), 160, 48), ((2, 3), 11, 1)]):
        logits, E = draw(*lead, V, seed=seed, scale=3.), draw(V, D, seed=seed+7)
        p = tensor([slow_probs(row, temperature, top_k, top_p) for row in logits.reshape(-1, V).double().tolist()], dtype=torch.float64)
        wanted = (p @ E.double()).reshape(*lead, D)
        meet(cipher_probs(logits, temperature, top_k, top_p), p.reshape(*lead, V))
        meet(cipher_embed(logits, E, temperature, top_k, top_p), wanted)
        for dtype in (torch.bfloat16, torch.float16):
            found = cipher_embed(logits, E.to(dtype), temperature, top_k, top_p)
            assert found.dtype == dtype
            meet(found, (p @ E.to(dtype).double()).reshape(*lead, D), HALVES[dtype])
    assert torch.equal(cipher_embed(logits, E, 0), cipher_embed(logits, E, 1.)) # as published


def test_ties_at_the_last_place_stay():
    logits = tensor([2., 1., 1., 1., 0.])
    assert (cipher_probs(logits, 1., top_k=2) > 0).tolist() == [True]*4 + [False]
    assert (cipher_probs(torch.zeros(6), 1., top_p=.5) > 0).sum() == 4 # 0, 1/6, 2/6 and 3/6 lie before these
    huge = tensor([3e38, 0., -3e38]) # nothing overflows
    assert cipher_probs(huge, 1.).tolist() == [1., 0., 0.] == cipher_probs(tensor([0., -math.inf, -math.inf]), .5).tolist()


# State differences

@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('shape', [(1, 4), (2, 4), (9, 3), (2, 5, 6), (3, 2, 8, 1)])
def test_differences_are_of_neighbours(shape, dtype):
    x = draw(*shape, seed=3, dtype=dtype)
    found, wanted = sde_deltas(x), torch.zeros(*shape[:-2], shape[-2]-1, shape[-1], dtype=torch.float64)
    for i in range(shape[-2]-1): wanted[...,i,:] = x[...,i+1,:].double() - x[...,i,:].double()
    assert found.dtype == dtype
    meet(found, wanted, HALVES[dtype])


# C2C

def block(state, name, i, z):
    "z + W2·gelu(W1·norm(z)) for one vector."
    def part(x): return state[f'{name}.blocks.{i}.{x}.weight'].double()
    y = part('w1') @ (part('norm')*z/((z*z).mean() + 1e-6).sqrt())
    return z + part('w2') @ (y*.5*(1 + torch.erf(y/math.sqrt(2))))


def slow_fuse(state, part, s, t, depth, gate):
    "Keys or values of one layer, a row and a token at a time."
    new = t.double().clone()
    for b in range(len(t)):
        for i in range(t.shape[2]):
            z = torch.cat([s[b,:,i].flatten(), t[b,:,i].flatten()]).double()
            z = state[f'{part}_in.weight'].double() @ z + state[f'{part}_in.bias'].double()
            z = block(state, f'{part}_mlp1', 0, z)
            y = z
            for k in range(depth-2): y = block(state, f'{part}_proj_mlp2', k, y)
            y = state[f'{part}_proj_out.weight'].double() @ y + state[f'{part}_proj_out.bias'].double()
            w = state[f'{part}_scalar_head.weight'].double() @ block(state, f'{part}_scalar_mlp2', 0, z) + state[f'{part}_scalar_head.bias'].double()
            for g in range(t.shape[1]): new[b,g,i] += gate[b,g,i]/(1 + torch.exp(-w[g]))*y.unflatten(0, (t.shape[1], -1))[g]
    return new


def pair(B, T, gs, ds, gt, dt, seed): return tuple([draw(B, g, T, d, seed=seed+i) for i in (j, j+1)] for j, g, d in ((0, gs, ds), (2, gt, dt)))


def random_projector(gs, ds, gt, dt, seed=0, **network):
    "One whose every parameter says something: norms are not 1 and biases not 0."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = C2CProjector(gs, ds, gt, dt, **network).eval()
        for name, p in new.named_parameters():
            if not p.dim(): continue
            with torch.no_grad(): p.add_(.3*torch.randn_like(p))
    return new


@pytest.mark.parametrize('gates', [(1., 1.), (-.5, .7), (.2, 0.), (0., 0.)])
@pytest.mark.parametrize('sizes, B, T, network', [((1, 8, 2, 16), 2, 7, dict(hidden=40, intermediate=56)), ((4, 4, 1, 12), 1, 3, dict(hidden=16, intermediate=8, num_layers=5)), ((2, 6, 3, 2), 3, 1, dict(hidden=5, intermediate=9, num_layers=4)),
                                                  ((3, 16, 3, 16), 1, 0, dict(hidden=8, intermediate=8))])
def test_a_projector_does_what_its_formula_says(sizes, B, T, network, gates):
    made = random_projector(*sizes, **network)
    state = {k: v for k, v in made.state_dict().items() if k != 'gate_temperature'} # without the one number that is not a parameter
    state |= dict(key_gate_logit=tensor(gates[0]), value_gate_logit=tensor(gates[1]))
    projector, (source, target) = C2CProjector.from_state_dict(state, *sizes), pair(B, T, *sizes, seed=5)
    with torch.no_grad(): found = projector(source, target)
    for part, logit, s, t, x in zip(('key', 'value'), gates, source, target, found):
        meet(x, slow_fuse(state, part, s, t, network.get('num_layers', 3), torch.full(t.shape[:3], float(logit > 0))))
        assert logit > 0 or torch.equal(x, t) # a closed gate is no message, to the last bit


@pytest.mark.parametrize('temperature', [1., .5, 1e-3])
def test_gates_in_training_are_soft_and_noisy(temperature):
    sizes, network = (2, 3, 2, 4), dict(hidden=7, intermediate=6, dropout=0.)
    made = random_projector(*sizes, **network).train()
    (source, target), draws = pair(2, 5, *sizes, seed=1), tuple(torch.rand(2, 2, 5, 1, generator=torch.Generator().manual_seed(i)) for i in range(2))
    made.key_gate_logit.data.fill_(.4), made.value_gate_logit.data.fill_(-.3), made.gate_temperature.fill_(temperature)
    found = made(source, target, draws)
    for part, logit, s, t, u, x in zip(('key', 'value'), (.4, -.3), source, target, draws, found):
        gumbel = -torch.log(-torch.log(u.double()))
        gate = 1/(1 + torch.exp(-(tensor(logit).double() + gumbel)/temperature))[...,0]
        meet(x, slow_fuse(made.state_dict(), part, s, t, 3, gate), 1e-4)
