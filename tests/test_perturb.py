"Each variant keeps what it promises and nothing else."
import math
from dataclasses import replace
import pytest, torch
from hypothesis import example, given, settings, strategies as st
from interlat.core.basics import InterlatError, short_list
from interlat.messages.message import LatentMessage
from interlat.messages.perturb import VARIANTS, haar, mean_pool, perturb, random_rot

NAMES = ['latent', 'text', 'no_comm', 'cross_task', 'white_noise', 'cov_noise_0.5', 'cov_noise_1.0', 'cov_gauss_0', 'cov_gauss_mu', 'random_rot']
NOISY = NAMES[4:]
CUT = [f'truncate_0.{k}' for k in range(9, -1, -1)]
KS = [128, 64, 32, 16, 8, 4, 2, 1]
SHORT = [f'{way}_{k}' for way in ('first', 'pool') for k in KS]
NAMES += ['cross_family', 'zero_message', 'mean_message', 'same_type', *CUT, *SHORT]

def gen(seed=0): return torch.Generator().manual_seed(seed)

def message(n=12, width=32, seed=0, task_id='t', dtype=torch.float32, sender='s'):
    g = gen(seed)
    h = torch.randn(n, width, generator=g) @ torch.randn(width, width, generator=g) + 5*torch.randn(width, generator=g)
    return LatentMessage(h.to(dtype), list(range(n)), 'plan', task_id, sender)

def samples(variant, m, n=4000):
    "Many draws of one variant, (n, L, D) float64."
    g = gen(1)
    return torch.stack([perturb(m, variant, generator=g).h.double() for _ in range(n)])

def test_names_and_channels():
    assert list(VARIANTS) == NAMES and all(v.name == k and v.doc for k, v in VARIANTS.items())
    assert {k: v.channel for k, v in VARIANTS.items() if v.channel != 'latent'} == {'text': 'text', 'no_comm': 'none'}
    assert {k: v.partner for k, v in VARIANTS.items() if v.partner} == dict(cross_task='other_type', same_type='same_type', mean_message='mean')
    assert [k for k, v in VARIANTS.items() if v.drawn] == NOISY

@pytest.mark.parametrize('variant', NAMES)
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
def test_input_is_never_modified(variant, dtype):
    m, other = message(dtype=dtype), message(seed=1, task_id='u', dtype=dtype)
    before = m.h.clone(), other.h.clone(), list(m.token_ids)
    state = torch.get_rng_state()
    out = perturb(m, variant, other=other, generator=gen())
    assert torch.equal(m.h, before[0]) and torch.equal(other.h, before[1]) and m.token_ids == before[2]
    assert torch.equal(torch.get_rng_state(), state)
    if out is None: return
    assert out.h.dtype == dtype and out.h.device == m.h.device
    if variant not in CUT + SHORT: assert out.h.shape == m.h.shape and out.token_ids == m.token_ids

@pytest.mark.parametrize('variant', NOISY)
def test_seeds(variant):
    m = message()
    a, b, c = (perturb(m, variant, generator=gen(s)).h for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, m.h)
    default = perturb(m, variant).h
    assert torch.equal(default, perturb(m, variant).h)
    assert not torch.equal(default, perturb(replace(m, task_id='u'), variant).h)  # another task, other noise

def test_the_door_has_what_it_names():
    import interlat.perturb as door
    assert [name for name in door.__all__ if not hasattr(door, name)] == [] and door.perturb is perturb

def test_what_passes_unchanged():
    m, other = message(), message(seed=1, task_id='u', n=7)
    for variant in ('latent', 'text', 'cross_family'): assert torch.equal(perturb(m, variant).h, m.h)
    assert perturb(m, 'no_comm') is None
    for variant in ('cross_task', 'same_type'): assert perturb(m, variant, other=other) is other

def test_truncation():
    m = message(n=27)
    for k, variant in enumerate(CUT[::-1]):
        out, n = perturb(m, variant), int(2.7*k + 1e-9)
        assert torch.equal(out.h, m.h[:n]) and out.token_ids == m.token_ids[:n] and out.text == m.text

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.integers(1, 8), st.sampled_from(KS), st.sampled_from((torch.float32, torch.bfloat16)), st.integers(0, 2**20))
def test_fixed_length_by_looking_at_every_state(n, width, k, dtype, seed):
    m = message(n, width, seed, dtype=dtype)
    first, pooled = perturb(m, f'first_{k}'), perturb(m, f'pool_{k}')
    assert torch.equal(first.h, m.h[:k]) and first.token_ids == m.token_ids[:k]
    if n <= k: assert torch.equal(pooled.h, m.h) and pooled.token_ids == m.token_ids
    else:
        slow = torch.stack([m.h[j*n//k:math.ceil((j+1)*n/k)].double().mean(0) for j in range(k)])
        assert pooled.h.dtype == dtype and torch.allclose(pooled.h.double(), slow.to(dtype).double(), rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-12)
        assert pooled.token_ids == [-1]*k and slow.shape == pooled.h.shape
    for out in (first, pooled): assert (out.text, out.task_id, out.sender) == (m.text, m.task_id, m.sender)

def test_pooling_sums_in_float64():
    "In bfloat16 a sum of ones stops at 256; in float32 a large state swallows the small ones before its opposite comes."
    m = LatentMessage(torch.ones(1000, 1, dtype=torch.bfloat16), [0]*1000, '', 't', 's')
    assert mean_pool(m, 2).h.tolist() == [[1], [1]]
    m = LatentMessage(torch.tensor([[1e8], [1], [1], [-1e8]]), [0]*4, '', 't', 's')
    assert mean_pool(m, 1).h.tolist() == [[.5]]

def test_pooled_messages_are_stored(tmp_path):
    m = perturb(message(27), 'pool_4')
    again = LatentMessage.load(m.save(tmp_path/'pooled.safetensors'))
    assert torch.equal(again.h, m.h) and again.token_ids == [-1]*4

def test_names_that_differ_in_a_number_are_one_entry():
    assert short_list(['latent', 'x_2', 'v2', 'x_1', 'v3', 'y_1.5_z', '_1']) == 'latent, x_{2|1}, v2, v3, y_1.5_z, _1'

def test_ablations():
    m, other = message(), message(seed=1, task_id='u', n=7)
    out = perturb(m, 'mean_message', other=other)
    assert torch.allclose(out.h.double(), sum(other.h.double())/7) and (out.task_id, out.token_ids) == (m.task_id, m.token_ids)
    assert torch.equal(perturb(m, 'mean_message', other=other[2:3]).h, other.h[2].expand_as(m.h))
    assert torch.equal(perturb(m, 'zero_message').h, torch.zeros_like(m.h))

shapes = st.one_of(*(st.tuples(rows, st.integers(2, 48)) for rows in (st.integers(2, 12), st.integers(30, 80))), st.integers(2, 40).map(lambda d: (d+1, d)))

@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 2**20), st.floats(0, 20), st.floats(.01, 100))
@example((3, 3), 0, 17., 1.)
def test_rotation_preserves_moments_of_any_message(shape, seed, offset, scale):
    "To 1e-4 of the largest entry in float32, whatever the shape (L < D, L > D), the size of the numbers and how far off-centre they are."
    g = gen(seed)
    n, width = shape
    h = scale * (torch.randn(n, width, generator=g) @ torch.randn(width, width, generator=g)/width**.5 + offset)
    m = LatentMessage(h, [0]*n, '', 't', 's')
    out, h = perturb(m, 'random_rot', generator=g).h, h.double()
    assert out.dtype == torch.float32
    mean, cov = h.mean(0), h.T.cov()
    assert (out.double().mean(0) - mean).abs().max() <= 1e-4*mean.abs().max()
    assert (out.double().T.cov() - cov).abs().max() <= 1e-4*cov.abs().max()

@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('offset', (0., 1e2, 1e4))
def test_rotation_of_a_message_in_few_directions_far_from_the_origin(offset, seed):
    "What rounding leaves of the mean is no direction to rotate with."
    g = gen(seed)
    h = torch.randn(12, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 6, generator=g, dtype=torch.float64) + offset*torch.randn(6, generator=g, dtype=torch.float64)
    out = perturb(LatentMessage(h, [0]*12, '', 't', 's'), 'random_rot', generator=g).h
    assert (out.mean(0) - h.mean(0)).abs().max() <= 1e-12*(1 + offset) and (out.T.cov() - h.T.cov()).abs().max() <= 1e-11*(1 + offset)
    assert torch.linalg.matrix_rank(out - out.mean(0), atol=1e-9*(1 + offset)) == 2

@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(4, 9), (10, 3), (6, 5), (2, 4)]), st.integers(0, 2**20), st.sampled_from(NOISY[:-1]))
def test_noise_has_the_stated_moments(shape, seed, variant):
    """Mean and covariance of N draws, each within 6 standard errors: entry (i, j) of a normal sample's covariance has variance
    (C_ii C_jj + C_ij²)/N, and the mean's entry i has C_ii/N. Six of them are passed once in 5·10⁸ entries."""
    m = message(*shape, seed=seed)
    h, draws = m.h.double(), 3000
    x = samples(variant, m, draws)
    strength = dict(white_noise=1., cov_gauss_0=1., cov_gauss_mu=1.).get(variant) or float(variant[-3:])
    cov = torch.eye(shape[1]).double() if variant == 'white_noise' else strength**2*h.T.cov()
    mean = {'white_noise': 0*h, 'cov_gauss_0': 0*h, 'cov_gauss_mu': h.mean(0).expand_as(h)}.get(variant, h)
    x, n = (x - mean).flatten(0, 1), draws*shape[0]
    rounding = 1e-5*h.abs().max()
    assert (x.mean(0).abs() <= 6*(cov.diag()/n).sqrt() + rounding).all()
    error = ((cov.diag()[:, None]*cov.diag() + cov.square())/n).sqrt()
    assert ((x.T @ x/n - cov).abs() <= 6*error + rounding*cov.diag().max().sqrt()).all()

@pytest.mark.parametrize('shape', ((2, 8), (12, 32), (33, 32), (200, 16), (60, 512)))
@pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
def test_rotation_preserves_mean_and_covariance(shape, dtype):
    "The published code's does not (fault 15). L < D, L = D+1 and L > D alike."
    m = message(*shape, dtype=dtype)
    out, h = perturb(m, 'random_rot', generator=gen(3)).h.double(), m.h.double()
    tol = 1e-6 if dtype == torch.float32 else 1e-12
    scale = h.abs().max()
    assert (out.mean(0) - h.mean(0)).abs().max() < tol*scale
    assert (out.T.cov() - h.T.cov()).abs().max() < tol*scale**2
    if shape[0] > 2: assert (out - h).norm() > .5*(h - h.mean(0)).norm()  # and it is another message

def test_rotation_stays_in_the_row_space():
    h = message(6, 32).h.double()
    x, y = h - h.mean(0), random_rot(message(6, 32), gen()) - h.mean(0)
    residual = y - y @ torch.linalg.pinv(x) @ x
    assert residual.abs().max() < 1e-9

def test_rotation_of_a_message_that_repeats_states():
    "Rank far below L-1, down to 0: no division by a vanishing singular value."
    h = message(3, 16).h[[0, 1, 2, 0, 1, 2, 0, 1]]
    for part in (h, h[:1].expand(8, 16)):
        m = LatentMessage(part, [0]*8, '', 't', 's')
        out, part = perturb(m, 'random_rot', generator=gen()).h.double(), part.double()
        scale = part.abs().max()
        assert (out.mean(0) - part.mean(0)).abs().max() < 1e-6*scale
        assert (out.T.cov() - part.T.cov()).abs().max() < 1e-6*scale**2

def test_haar():
    q = torch.stack([haar(3, g) for g in [gen()] for _ in range(6000)])
    assert torch.allclose(q.mT @ q, torch.eye(3, dtype=q.dtype).expand_as(q))
    assert q.mean(0).abs().max() < .03                          # no preferred direction, diagonal included
    assert (q.square().mean(0) - 1/3).abs().max() < .02
    assert abs(torch.linalg.det(q).mean()) < .05                # reflections as often as rotations
    fixed = torch.linalg.qr(torch.randn(3, 3, generator=gen(5), dtype=q.dtype))[0]
    assert ((fixed @ q).diagonal(dim1=1, dim2=2).sum(1).var() - q.diagonal(dim1=1, dim2=2).sum(1).var()).abs() < .1

def test_white_noise_moments():
    x = samples('white_noise', message(), 1000).flatten(0, 1)
    assert x.mean(0).abs().max() < .05 and (x.T.cov() - torch.eye(32)).abs().max() < .06

@pytest.mark.parametrize('variant, strength', (('cov_noise_0.5', .5), ('cov_noise_1.0', 1.)))
def test_added_noise_moments(variant, strength):
    m = message(8, 6)
    noise = samples(variant, m) - m.h.double()
    cov = m.h.double().T.cov()
    x = noise.flatten(0, 1)
    assert (x.mean(0) / cov.diag().sqrt()).abs().max() < .03
    assert (x.T.cov() - strength**2*cov).abs().max() < .05*cov.diag().max()
    assert (noise[:, 0]*noise[:, 1]).mean(0).abs().max() < .06*cov.diag().max()  # states get independent noise

@pytest.mark.parametrize('variant, centred', (('cov_gauss_0', 0), ('cov_gauss_mu', 1)))
def test_resampled_moments(variant, centred):
    m = message(8, 6)
    x, h = samples(variant, m).flatten(0, 1), m.h.double()
    cov = h.T.cov()
    assert ((x.mean(0) - centred*h.mean(0)) / cov.diag().sqrt()).abs().max() < .03
    assert (x.T.cov() - cov).abs().max() < .05*cov.diag().max()

def test_refusals():
    m = message()
    with pytest.raises(InterlatError, match=r"unknown condition 'loud'; use latent, text, no_comm, cross_task, white_noise, .*, truncate_\{0.9\|.*\|1\}$"): perturb(m, 'loud')
    with pytest.raises(InterlatError, match='pass other='): perturb(m, 'cross_task')
    with pytest.raises(InterlatError, match="same task 't'"): perturb(m, 'cross_task', other=message(seed=1))
    with pytest.raises(InterlatError, match="found one of 'x', width 32"): perturb(m, 'cross_task', other=message(task_id='u', sender='x'))
    with pytest.raises(InterlatError, match="found one of 's', width 16"): perturb(m, 'cross_task', other=message(task_id='u', width=16))
    with pytest.raises(InterlatError, match="same_type needs the message of another task of the same type: pass other="): perturb(m, 'same_type')
    with pytest.raises(InterlatError, match="mean_message needs a message with the others' mean state"): perturb(m, 'mean_message')
    with pytest.raises(InterlatError, match="at least one state, found none for 'u'"): perturb(m, 'mean_message', other=message(task_id='u')[:0])
    for variant in NOISY[1:]:
        with pytest.raises(InterlatError, match="message for 't' has 1 state; a covariance needs at least 2"): perturb(m[:1], variant)
    assert len(perturb(m[:1], 'white_noise')) == 1
