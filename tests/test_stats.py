"Published values, and properties that hold for all inputs."
import math
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from interlat.core import InterlatError
from interlat.stats import bootstrap_ci, mcnemar, minimum_detectable_effect, newcombe, paired_difference, wilson

counts = st.integers(0, 40)

# Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3
@pytest.mark.parametrize('successes, n, low, high', ((81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)))
def test_wilson_published(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5.1e-5)

@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([.8, .95, .99]))
def test_wilson_properties(sn, level):
    s, n = sn
    low, high = wilson(s, n, level)
    assert 0 <= low <= s/n <= high <= 1 and high - low > 0
    assert wilson(n-s, n, level) == pytest.approx((1-high, 1-low), abs=1e-12)

@pytest.mark.parametrize('args', ((-1, 3), (4, 3), (0, -1)))
def test_wilson_refuses(args):
    with pytest.raises(InterlatError, match='between 0 and n'): wilson(*args)

@given(counts, counts)
def test_mcnemar_equals_counting_and_statsmodels(a, b):
    "Twice the smaller tail of a fair coin, at most 1."
    slow = min(1, 2*sum(math.comb(a+b, k) for k in range(min(a, b)+1)) / 2**(a+b))
    assert mcnemar(a, b) == pytest.approx(slow, abs=1e-12)
    assert mcnemar(a, b) == pytest.approx(statsmodels_mcnemar([[3, a], [b, 5]], exact=True).pvalue, abs=1e-9)

# Altman et al., Statistics with Confidence (2000), table 6.2; Cavo et al. (2012) as in Fagerland et al., ch. 8
@pytest.mark.parametrize('table, low, high', (((14, 5, 0, 22), .011, .226), ((59, 6, 16, 80), -.1186, -.0046)))
def test_newcombe_published(table, low, high):
    digits = 5e-4 if abs(low) == .011 else 5.1e-5
    assert newcombe(*table) == pytest.approx((low, high), abs=digits)

@settings(max_examples=300)
@given(counts, counts, counts, counts)
def test_newcombe_properties(both, a_only, b_only, neither):
    n = both + a_only + b_only + neither
    low, high = newcombe(both, a_only, b_only, neither)
    if n == 0:
        assert math.isnan(low) and math.isnan(high)
        return
    assert -1 - 1e-9 <= low <= (a_only-b_only)/n <= high <= 1 + 1e-9
    assert newcombe(both, b_only, a_only, neither) == pytest.approx((-high, -low), abs=1e-12)
    assert newcombe(neither, b_only, a_only, both) == pytest.approx((-high, -low), abs=1e-12)  # counting losses for wins

def test_newcombe_covers():
    "Of simulated experiments with a known difference, about 95 % have it in their interval."
    rng = np.random.default_rng(0)
    p = np.array([.3, .25, .1, .35])
    hits = [low <= p[1]-p[2] <= high for low, high in (newcombe(*map(int, t)) for t in rng.multinomial(120, p, size=2000))]
    assert .93 < np.mean(hits) < .975

def test_paired_difference_row():
    a, b = [True, True, False, True, False], [True, False, False, False, True]
    row = paired_difference(a, b)
    assert list(row) == ['n', 'a_only', 'b_only', 'difference', 'ci_low', 'ci_high', 'p_value']
    assert (row['n'], row['a_only'], row['b_only'], row['difference'], row['p_value']) == (5, 2, 1, .2, 1.)
    assert (row['ci_low'], row['ci_high']) == newcombe(1, 2, 1, 1)
    assert paired_difference(np.array(a), np.array(b)) == row

def test_paired_difference_of_nothing():
    row = paired_difference([], [])
    assert row['n'] == 0 and math.isnan(row['difference']) and math.isnan(row['ci_low']) and row['p_value'] == 1

@pytest.mark.parametrize('bad', (None, float('nan'), 2, 'won'))
def test_a_missing_outcome_is_never_a_loss(bad):
    with pytest.raises(InterlatError, match='outcomes of a must be true or false'): paired_difference([True, bad], [True, True])

def test_bootstrap():
    x = np.random.default_rng(1).exponential(size=400)
    low, high = bootstrap_ci(x)
    half = 1.96*x.std(ddof=1)/20
    assert (low, high) == pytest.approx((x.mean()-half, x.mean()+half), abs=.03)
    assert bootstrap_ci(x, seed=1) != (low, high) == bootstrap_ci(x)
    wide = bootstrap_ci(x, np.median, level=.99)
    assert wide[0] < np.median(x) < wide[1]
    for bad in ([1.], [[1., 2.]], [1., math.inf]):
        with pytest.raises(InterlatError, match='at least two finite numbers'): bootstrap_ci(bad)

@pytest.mark.parametrize('n, discordant', ((134, .3), (274, .2), (500, .5)))
def test_minimum_detectable_effect_has_its_power(n, discordant):
    "Exact power of the test at that effect, over all outcomes: a little under the promised 80 %, as exact tests are."
    d = minimum_detectable_effect(n, discordant)
    up, power = (discordant+d)/2/discordant, 0.
    for m in range(n+1):
        if (weight := binom.pmf(m, n, discordant)) < 1e-9: continue
        least = next((k for k in range(m//2 + 1, m+1) if mcnemar(k, m-k) < .05), m+1)
        power += weight * (binom.sf(least-1, m, up) + binom.cdf(m-least, m, up))
    assert .74 < power < .83

def test_minimum_detectable_effect_moves_the_right_way():
    mde = minimum_detectable_effect
    assert mde(100, .3) > mde(400, .3) and mde(100, .3) < mde(100, .6)
    assert mde(100, .3, power=.9) > mde(100, .3) and mde(100, .3, level=.99) > mde(100, .3)
    assert math.isnan(mde(5, .2))
    with pytest.raises(InterlatError, match='discordant in'): mde(10, 0.)
    with pytest.raises(InterlatError, match='probabilities between 0 and 1, found 95 and 0.8'): mde(10, .3, level=95)
