"Order, lengths and randomness of the curriculum."
import math
import pytest, torch
from interlat.core.basics import InterlatError
from interlat.training.curriculum import RATES, mix, resample_length, sample_rates

def gen(seed=0): return torch.Generator().manual_seed(seed)

def batch(lengths, width=3):
    "Latents and words with distinct values everywhere, and the mask."
    L = max(lengths)
    mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    latents, words = torch.randn(2, len(lengths), L, width, generator=gen())
    return latents*mask[..., None], words, mask

def slow_mix(latents, words, lengths, rates):
    "The definition: e_1 .. e_floor(rL), then h_floor(rL)+1 .. h_L."
    out = latents.clone()
    for i, (L, r) in enumerate(zip(lengths, rates)):
        k = math.floor(round(r*L, 6))
        for j in range(k): out[i, j] = words[i, j]
    return out

@pytest.mark.parametrize('lengths', ([1, 2, 3, 7], [10, 10], [443, 12, 100]))
def test_mix_equals_the_definition_at_every_rate(lengths):
    latents, words, mask = batch(lengths)
    for r in RATES:
        rates = [r, *RATES][:len(lengths)]
        assert torch.equal(mix(latents, words, mask, torch.tensor(rates)), slow_mix(latents, words, lengths, rates))
        assert torch.equal(mix(latents, words, mask, torch.tensor(rates, dtype=torch.float64)), slow_mix(latents, words, lengths, rates))

def test_rate_0_is_pure_latents_and_rate_1_is_the_plan():
    latents, words, mask = batch([5, 3])
    assert torch.equal(mix(latents, words, mask, torch.zeros(2)), latents)
    assert torch.equal(mix(latents, words, mask, torch.ones(2))[mask], words[mask])

def test_words_come_first():
    "The published code has the order the other way round."
    latents, words, mask = batch([10])
    out = mix(latents, words, mask, torch.tensor([.4]))
    assert torch.equal(out[0, :4], words[0, :4]) and torch.equal(out[0, 4:], latents[0, 4:])

@pytest.mark.parametrize('i', range(11))
def test_no_rate_loses_a_position_to_rounding(i):
    L = 10
    latents, words, mask = batch([L]*100)
    for dtype in (torch.float32, torch.float64):
        out = mix(latents, words, mask, torch.full((100,), i/10, dtype=dtype))
        assert ((out == words).all(-1).sum(1) == i).all()

def test_padding_stays():
    latents, words, mask = batch([5, 2])
    assert (mix(latents, words, mask, torch.ones(2))[1, 2:] == 0).all()

def test_inputs_stay_and_gradient_reaches_the_latents_that_are_left():
    latents, words, mask = batch([4])
    latents.requires_grad_()
    before = latents.detach().clone(), words.clone()
    mix(latents, words, mask, torch.tensor([.5])).sum().backward()
    assert torch.equal(latents, before[0]) and torch.equal(words, before[1])
    assert latents.grad[0, :, 0].tolist() == [0, 0, 1, 1]

def test_rates_come_from_their_own_generator():
    torch.manual_seed(0); before = torch.get_rng_state()
    a, b, c = sample_rates(50, gen()), sample_rates(50, gen()), sample_rates(50, gen(1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(torch.get_rng_state(), before)
    assert set(sample_rates(2000, gen()).tolist()) == set(RATES)

def test_pure():
    assert (sample_rates(100, gen(), pure=1.) == 0).all()
    counts = torch.bincount((sample_rates(22_000, gen())*10).round().long(), minlength=11)
    assert ((counts - 2000).abs() < 200).all()
    for bad in (-.1, 1.1):
        with pytest.raises(InterlatError, match='pure must be between 0 and 1, found'): sample_rates(3, gen(), pure=bad)

def test_resampled_message_has_the_matched_length():
    other, _, other_mask = batch([3, 6, 1])
    mask = torch.arange(8) < torch.tensor([[8], [2], [4]])
    out = resample_length(other, other_mask, mask)
    assert out.shape == (3, 8, 3) and (out[~mask] == 0).all()
    for i, (n, target) in enumerate(((3, 8), (6, 2), (1, 4))):
        for j in range(target): assert torch.equal(out[i, j], other[i, j % n])

def test_resampling_to_its_own_length_changes_nothing():
    other, _, mask = batch([3, 6])
    assert torch.equal(resample_length(other, mask, mask), other)

def test_matched_and_mismatched_passes_differ_in_latents_alone():
    "Same rate, same positions, same words: fault 3 of the published code is absent."
    latents, words, mask = batch([6, 4])
    others = resample_length(latents.flip(0), torch.arange(6) < torch.tensor([[4], [6]]), mask)
    rates = torch.tensor([.5, .25])
    a, b = mix(latents, words, mask, rates), mix(others, words, mask, rates)
    same = (a == b).all(-1)
    assert same.tolist() == [[True]*3 + [False]*3, [True] + [False]*3 + [True]*2]
