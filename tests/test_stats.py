"Published values, and properties that hold for all inputs."
import math
from itertools import product
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from interlat.core import stats
from interlat.core.basics import InterlatError
from interlat.core.stats import bootstrap_ci, detectable_effect, holm, mcnemar, minimum_detectable_effect, newcombe, paired_difference, paired_rates, pareto_front, rate_interval, sign_flip, wilson

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

@pytest.mark.parametrize('args, said', (((-1, 3), 'successes must be between 0 and 3, found -1'), ((4, 3), 'successes must be between 0 and 3, found 4'),
                                        ((0, -1), 'n must be 0 or more, found -1')))
def test_wilson_refuses(args, said):
    with pytest.raises(InterlatError, match=said): wilson(*args)

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
    with pytest.raises(InterlatError, match='discordant must be in'): mde(10, 0.)
    with pytest.raises(InterlatError, match='level is a probability between 0 and 1, found 95'): mde(10, .3, level=95)


thirds = st.integers(0, 3).map(lambda k: k/3)

@settings(deadline=None)
@given(st.lists(st.integers(-3, 3).map(lambda k: k/3), max_size=9))
def test_sign_flip_equals_trying_every_sign(d):
    means = [float(np.dot(s, d)) for s in product((-1, 1), repeat=len(d))]
    slow = 2*min(np.mean([m >= sum(d) - 1e-9 for m in means]), np.mean([m <= sum(d) + 1e-9 for m in means]))
    assert sign_flip(d) == pytest.approx(min(1, slow))

@settings(deadline=None, max_examples=50)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
def test_sign_flip_of_wins_and_losses_is_mcnemar(a, b, same):
    assert sign_flip([1]*a + [-1]*b + [0]*same) == pytest.approx(mcnemar(a, b))

def test_sign_flip_of_many_games():
    d = np.random.default_rng(0).choice([-1, -1/3, 0, 1/3, 1], 140, p=[.1, .1, .5, .1, .2])
    z = d.sum()/math.sqrt((d**2).sum())
    assert sign_flip(d) == pytest.approx(math.erfc(abs(z)/math.sqrt(2)), abs=.02) and sign_flip(d) == sign_flip(d)
    assert sign_flip([1/3]*100) == pytest.approx(2/10000)

@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(thirds, thirds), max_size=30))
def test_paired_rates_properties(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    row = paired_rates(a, b)
    assert list(row) == list(paired_difference([1], [0])) and row['n'] == len(a)
    if not pairs:
        assert math.isnan(row['difference']) and math.isnan(row['ci_low'])
        return
    assert row['difference'] == pytest.approx(np.mean(a) - np.mean(b))
    assert -1 - 1e-9 <= row['ci_low'] <= row['difference'] + 1e-9 and row['difference'] - 1e-9 <= row['ci_high'] <= 1 + 1e-9
    assert row['ci_high'] > row['ci_low'] or set(np.round(np.subtract(a, b), 9)) == {round(a[0]-b[0], 9)}
    assert (row['a_only'], row['b_only']) == (sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)) and 0 < row['p_value'] <= 1
    low, high = rate_interval(a)
    assert 0 <= low <= np.mean(a) + 1e-9 and np.mean(a) - 1e-9 <= high <= 1

def experiments(rng, n, seeds, times):
    "Rates of n games under two conditions, the second played with several seeds, whose chances differ from game to game."
    for _ in range(times):
        p = rng.beta(.4, .6, n) # .4 on average
        yield (rng.random(n) < .1 + .8*p).astype(float), rng.binomial(seeds, p)/seeds

def test_intervals_over_seeds_cover(monkeypatch):
    "Of simulated experiments about 95 % have the true rate and the true difference in their interval: seeds of a game are no games."
    monkeypatch.setattr(stats, 'sign_flip', lambda *_, **__: 1.) # most of the time, and not asked for here
    rates, differences = [], []
    for a, b in experiments(np.random.default_rng(0), 100, 3, 300):
        low, high = rate_interval(b)
        rates.append(low <= .4 <= high)
        row = paired_rates(a, b)
        differences.append(row['ci_low'] <= .1 + .8*.4 - .4 <= row['ci_high'])
    assert .91 < np.mean(rates) < .985 and .91 < np.mean(differences) < .985

def test_rate_interval_where_few_games_speak():
    "A bootstrap of 0 wins would say 0 to 0."
    assert rate_interval([0]*140) == wilson(0, 140) and rate_interval([1]*9) == wilson(9, 9)
    low, high = rate_interval([0]*139 + [2/3])
    assert low > 0 and wilson(0, 140)[1] < high < wilson(1, 140)[1]
    for bad in (-.1, 1.1, math.nan):
        with pytest.raises(InterlatError, match=r'rates of games must lie in \[0, 1\]'): rate_interval([.5, bad])
    with pytest.raises(InterlatError, match='of b must lie'): paired_rates([.5], [2])

@pytest.mark.parametrize('n', (6, 20, 140, 1000))
def test_detectable_effect_of_games_that_all_go_one_way(n):
    "By counting: the exact test's power at that effect, and just below it, around 80 %."
    def power(d): return sum(binom.pmf(m, n, d) for m in range(n+1) if mcnemar(m, 0) < .05)
    d = detectable_effect(n, 0)
    assert power(d) == pytest.approx(.8, abs=1e-6) and power(.9*d) < .8
    assert detectable_effect(n, 1/n) == d and detectable_effect(n, .9) >= d

@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1))
def test_detectable_effect_is_a_difference_or_says_that_there_is_none(n, discordant):
    d = detectable_effect(n, discordant)
    assert math.isnan(d) if n < 6 else 0 < d <= 1
    if discordant > 0 and d > discordant: assert n < 6 or d == detectable_effect(n, 0)

@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_hand(p):
    order, worst, slow = np.argsort(p), 0., [0.]*len(p)
    for rank, i in enumerate(order):
        worst = max(worst, min(1, (len(p)-rank)*p[i]))
        slow[i] = worst
    assert holm(p).tolist() == pytest.approx(slow)
    assert holm([*p, math.nan])[:-1].tolist() == pytest.approx(slow) and math.isnan(holm([*p, math.nan])[-1])

few = st.sampled_from([-math.inf, -1., 0., .5, 1., math.inf, math.nan])

@settings(max_examples=500)
@given(st.lists(st.tuples(st.one_of(few, st.floats()), st.one_of(few, st.floats())), max_size=12))
def test_pareto_front_by_all_pairs(points):
    "Also that what is off the front is beaten by a point that is on it."
    beats = lambda p, q: p[0] <= q[0] and p[1] >= q[1] and p != q
    front = pareto_front(*np.array(points, dtype=float).reshape(-1, 2).T)
    known = [not (math.isnan(c) or math.isnan(v)) for c, v in points]
    assert front.tolist() == [k and not any(beats(p, q) for p in points) for k, q in zip(known, points)]
    kept = [p for p, on in zip(points, front) if on]
    assert all(any(beats(p, q) for p in kept) for k, q, on in zip(known, points, front) if k and not on)

def test_pareto_front_is_the_same_in_any_unit_and_order():
    rng = np.random.default_rng(0)
    cost, value = rng.integers(0, 30, (2, 200))
    front, order = pareto_front(cost, value), rng.permutation(200)
    assert 0 < front.sum() < 30 and (pareto_front(cost[order], value[order]) == front[order]).all()
    assert (pareto_front(1024*cost, np.exp(value/30)) == front).all() and (pareto_front(-value, -cost) == front).all()

def test_pareto_front_refuses():
    assert pareto_front([], []).tolist() == [] and pareto_front([3], [1]).tolist() == [True] and pareto_front([3], [math.nan]).tolist() == [False]
    for bad in ([1, 2], [[1]]):
        with pytest.raises(InterlatError, match='two columns of one length, found shapes'): pareto_front(bad, [1])
