"Tables whose measures and rungs are known, planted faults, derangements wherever they exist, and how often intervals hold what is true."
import io, math
from collections import Counter
from itertools import product

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.weightstats import ttost_paired

import interlat.audit as audit
from interlat.core import stats
from interlat.audit import derangements, items_to_equate, items_to_see, length_matched, measures, nld, rung
from interlat.audit.items import ARMS, MEASURES, _equivalence, _paired, by_item, check_identities, item_measures
from interlat.core.basics import InterlatError
from interlat.stats import discordant_interval, mcnemar, tost_paired


def table(seed=0, partner=None, **arms):
    "A row an item for each arm, from lists of utilities; a matrix is a column a partner."
    rows = []
    for arm, values in arms.items():
        values = np.asarray(values, dtype=float)
        for (i, p), u in np.ndenumerate(values[:, None] if values.ndim == 1 else values):
            rows.append(dict(item=i, arm=arm, partner=(i + p + 1) % len(values) if values.ndim > 1 else partner, seed=seed, utility=u))
    return pd.DataFrame(rows)


def wins(n, k): return np.arange(n) < k


# Measures

def test_each_measure_is_the_difference_that_it_is_named_for():
    items = table(current=wins(100, 90), none=wins(100, 20), self=wins(100, 60), cross_benchmark=wins(100, 25),
                  other=np.column_stack([wins(100, 30), wins(100, 50)]))
    t = measures(items)
    assert [*t.measure] == [*t.index] == [*MEASURES, 'current - cross_benchmark']
    t = t[t.kind == 'measure']
    assert t['mean'].to_dict() == pytest.approx(dict(OPE=.7, OME=.2, CAG=.5, SSG=.3, DSC=.2, BME=.15))
    assert (t.n == 100).all() and (t.missing == 0).all() and (t.ci_low < t['mean']).all() and (t['mean'] < t.ci_high).all()
    assert t.loc['OPE', ['a_only', 'b_only', 'test']].tolist() == [70, 0, 'McNemar'] and t.loc['OPE', 'p_value'] == mcnemar(70, 0)
    assert t.loc['CAG', ['a_only', 'b_only', 'test']].tolist() == [60, 0, 'sign-flip']
    assert (t.p_holm >= t.p_value).all() and t.p_holm.max() <= 1


def test_seeds_and_partners_are_not_items():
    "An item played ten times speaks once: the interval does not shrink, and no seed or partner weighs more for having more rows."
    once = table(current=wins(20, 12), none=wins(20, 6))
    often = pd.concat([once.assign(seed=s) for s in range(10)])
    columns = ['n', 'mean', 'ci_low', 'ci_high', 'p_value']
    assert measures(often)[columns].equals(measures(once)[columns])
    rows = [dict(item=0, arm='other', partner=p, seed=s, utility=u) for p, s, u in ((1, 0, 1.), (2, 0, 1.), (3, 0, 0.), (1, 1, 0.))]
    assert by_item(pd.DataFrame(rows)).loc[0, 'other'] == pytest.approx((2/3 + 0)/2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_identities_hold_for_any_table(seed):
    rng = np.random.default_rng(seed)
    items = table(**{arm: rng.integers(0, 4, (7, 3))/3 for arm in ('current', 'none', 'other', 'self', 'cross_benchmark')})
    items = items.sample(frac=1, random_state=seed)
    items.loc[rng.random(len(items)) < .2, 'utility'] = math.nan
    found = item_measures(by_item(items))
    assert np.allclose((found.OPE - found.OME - found.CAG).dropna(), 0) and np.allclose((found.CAG - found.DSC - found.SSG).dropna(), 0)


@pytest.mark.parametrize('measure, said', (('OPE', 'OPE = OME [+] CAG is broken at item 2'), ('SSG', 'CAG = DSC [+] SSG is broken at item 2')))
def test_a_broken_identity_is_named(measure, said):
    found = item_measures(by_item(table(**{arm: wins(5, k) for k, arm in enumerate(('none', 'other', 'self', 'current'))})))
    found.loc[2, measure] += 1
    with pytest.raises(InterlatError, match=said): check_identities(found)


def test_what_did_not_run_is_counted_and_is_no_loss():
    items = table(current=wins(30, 20), none=wins(30, 10))
    items.loc[[0, 1, 35], 'utility'] = math.nan
    lost = measures(items).loc['OPE']
    assert lost[['n', 'missing', 'not_run']].tolist() == [27, 3, 3] and lost['mean'] == pytest.approx((20-2-1)/27 - (10-3)/27)
    lacking = measures(items[items.arm != 'none']).loc['OPE']
    assert lacking.n == 0 and lacking.missing == 30 and np.isnan(lacking[['mean', 'ci_low', 'p_value', 'p_holm']].astype(float)).all()


def test_every_arm_has_its_row_unknown_ones_too():
    rest = [a for a in ARMS if a not in {x for a, b, _ in MEASURES.values() for x in (a, b)}]
    items = table(current=wins(12, 9), **{a: wins(12, 3) for a in [*rest, 'our_new_arm']})
    t = measures(items)
    assert {*t[t.kind == 'arm'].b} == {*rest, 'our_new_arm'}
    assert t[t.kind == 'arm']['mean'].tolist() == [.5]*(len(rest) + 1)
    assert 'an arm of your own' in t.loc['current - our_new_arm', 'what']


def far(items, seed=0, **by):
    "A distance for each arm, the same for all its rows but for some spread."
    return items.assign(jsd_first=items.arm.map(by) * np.random.default_rng(seed).uniform(.8, 1.2, len(items)))


def test_distances_count_above_the_floor():
    played = table(current=wins(40, 30), none=wins(40, 10), other=np.column_stack([wins(40, 15)]*3))
    again = table(seed=1, partner=math.nan, current=wins(40, 30))
    items = pd.concat([far(played, current=0, none=.3, other=.2), far(again, 1, current=.2)])
    t = measures(items)
    assert t.loc['PL', 'mean'] == pytest.approx(.3, abs=.02) and t.loc['CIC', 'mean'] == pytest.approx(.2, abs=.01)
    assert t.loc['CIC', 'floor'] == t.loc['PL', 'floor'] == pytest.approx(.2, abs=.01) # of the second seed alone: the first is what all is measured from
    assert t.loc['PL', 'p_value'] < .001 and t.loc['CIC', 'p_value'] > .05 # as far as another seed moves it, CIC is noise
    assert 'PL_answer' not in t.index and {*measures(items.assign(jsd_answer=.1)).index} >= {'PL_answer', 'CIC_answer'}
    alone = measures(items[items.seed == 0])
    assert np.isnan(alone.loc['CIC', 'floor']) and np.isnan(alone.loc['CIC', 'p_value']) and alone.loc['CIC', 'mean'] == t.loc['CIC', 'mean']


@pytest.mark.parametrize('change, said', (
    (lambda t: t.drop(columns='arm'), "need a column 'arm'"), (lambda t: t.drop(columns='partner'), "need a column 'partner'"),
    (lambda t: pd.concat([t, t.tail(1)]), 'the same trial twice, item 9, arm none, seed 0'), (lambda t: t.assign(utility=1.5), r'utility must be between 0 and 1, found 1.5 \(item 0, arm current\)'),
    (lambda t: t.assign(utility=-1), 'found -1'), (lambda t: t.assign(utility=math.inf), 'found inf'), (lambda t: t.assign(jsd_answer=.7), 'jsd_answer must be between 0 and 0.6931'),
    (lambda t: t.assign(arm='self_message'), "'same_type' now"), (lambda t: t.head(0), 'no rows'), (lambda t: t.assign(seed=None), 'a row without seed'),
    (lambda t: t.assign(need='yes'), "need is True or False, found 'yes'")))
def test_tables_that_are_refused(change, said):
    with pytest.raises(InterlatError, match=said): measures(change(table(current=wins(10, 5), none=wins(10, 3))))


@pytest.mark.parametrize('written', (lambda t: t.astype(dict(item='category', arm='category')), lambda t: pd.read_csv(io.StringIO(t.to_csv(index=False))),
                                     lambda t: t.assign(utility=t.utility == 1), lambda t: t.convert_dtypes(), lambda t: t.to_dict('records')))
def test_how_a_table_is_written_does_not_matter(written):
    t = table(current=wins(20, 15), none=wins(20, 5), mine=wins(20, 9)).assign(item=lambda t: 'q' + t['item'].astype(str).str.zfill(2))
    assert measures(written(t), margin=.1).equals(measures(t, margin=.1))


def test_need_and_family_take_measures_apart():
    items = table(current=wins(20, 18), none=wins(20, 2))
    parts = [items.assign(need=need, family=f, utility=items.utility if need else 1.) for need, f in product((True, False), 'ab')]
    t = measures(pd.concat(parts))
    assert t[t.measure == 'OPE'][['need', 'family', 'mean']].values.tolist() == [[True, 'a', .8], [True, 'b', .8], [False, 'a', 0.], [False, 'b', 0.]]


# The ladder

BEATEN = [{}, dict(none=10), dict(text=20), dict(text_equal_bytes=20, text_equal_time=25), dict(zero=10, random=10), dict(other=20)]


def climbed(level, worse=None):
    "Items that reach a rung: arms up to it are beaten, and the next one's are as good as the message (`worse`) or were not played."
    arms = {arm: wins(60, k) for rung in BEATEN[:level + 1] for arm, k in rung.items()}
    if worse: arms |= {arm: wins(60, worse) for arm in BEATEN[level + 1]}
    return table(current=wins(60, 50), **arms)


@pytest.mark.parametrize('level, worse, why', [(level, worse, why) for level in range(6)
    for worse, why in ((None, 'not measured'), (50, 'crosses 0'), (60, 'worse')) if level < 5 or not worse]) # E6 has no arm to be worse than
def test_each_rung(level, worse, why):
    items = climbed(level, worse)
    found, said = rung(measures(items))
    assert found == level and said.startswith(f'E{level + 1}, ') and why in said and rung(items) == (found, said)


def test_a_rung_above_one_that_fails_does_not_count():
    items = climbed(5).assign(need=True)
    for level in range(1, 6):
        arm = next(iter(BEATEN[level]))
        found, said = rung(items.assign(utility=items.utility.where(items.arm != arm, 1.)))
        assert found == level - 1 and f'`{arm}`' in said


def test_need_and_reproduction():
    items = climbed(5)
    assert rung(items)[0] == rung(items.assign(need=False))[0] == 5 and rung(items.assign(need=True))[0] == 6
    assert rung(items.assign(need=True, family='a'))[0] == 6
    a, b = (items.assign(need=True, family=f) for f in 'ab')
    assert rung(pd.concat([a, b])) == (7, 'all rungs hold, in 2 families: a, b')
    assert rung(pd.concat([a, climbed(3, 50).assign(need=True, family='b')])) == (3, rung(climbed(3, 50))[1] + ' (family b)')
    same = items.assign(need=False, utility=1.) # without need everything is right: says nothing against the channel
    assert rung(pd.concat([items.assign(need=True), same])) == rung(items.assign(need=True))
    assert rung(items.drop(items.index[items.arm == 'text']), text='text')[1] == 'E2, better than the text arm `text`: not measured: no item has both `current` and `text`'


def test_few_items_need_the_test_too():
    "Five of five won: McNemar's p is 0.06, so nothing is shown."
    assert rung(table(current=wins(5, 5), none=wins(5, 0)))[0] == 0 and rung(table(current=wins(6, 6), none=wins(6, 0)))[0] == 1


# Partners

@pytest.mark.parametrize('n', range(1, 13))
def test_derangements_wherever_there_are_any(n):
    for k in range(1, n):
        rounds = derangements(range(n), k, seed=n + k)
        pairs = [(a, b) for r in rounds for a, b in zip(range(n), r)]
        assert len(rounds) == k and all(sorted(r) == [*range(n)] for r in rounds) and all(a != b for a, b in pairs) and len({*pairs}) == n*k
    with pytest.raises(InterlatError, match=f"^{n} items?: each can meet {n-1} others, not k={n}; "): derangements(range(n), n, 0)


@pytest.mark.parametrize('sizes', [*product(range(2, 6), repeat=3)])
def test_derangements_by_group(sizes):
    ids = [f'{g}{i}' for g, n in zip('abc', sizes) for i in range(n)]
    np.random.default_rng(0).shuffle(ids)
    for k in range(1, max(sizes) + 1):
        if k >= min(sizes):
            with pytest.raises(InterlatError, match=f"^{min(n for n in sizes if n <= k)}|items in group '[abc]': .* not k={k}"): derangements(ids, k, 0, {i: i[0] for i in ids})
            continue
        rounds = derangements(ids, k, 0, [i[0] for i in ids])
        pairs = {(a, b) for r in rounds for a, b in zip(ids, r)}
        assert len(pairs) == len(ids)*k and all(a != b and a[0] == b[0] for a, b in pairs) and all(sorted(r) == sorted(ids) for r in rounds)


def test_derangements_hang_on_the_seed_alone():
    ids = [f'q{i}' for i in range(40)]
    assert derangements(ids, 4, 7) == derangements(ids, 4, 7) != derangements(ids, 4, 8)
    grouped = derangements(ids, 2, 7, [i < 'q2' for i in ids])
    longer = derangements([*ids, 'x1', 'x2', 'x3'], 2, 7, [*(i < 'q2' for i in ids), *'xxx'])
    assert [r[:40] for r in longer] == grouped # a group more changes nothing in the others


def test_partners_of_like_length_are_the_closest_that_there_are():
    "Against trying all derangements of six items."
    from itertools import permutations
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(0, 30, 6).tolist()
        best = min(sum(abs(lengths[i] - lengths[j]) for i, j in enumerate(p)) for p in permutations(range(6)) if all(i != j for i, j in enumerate(p)))
        rounds, achieved = length_matched(range(6), lengths, 1, 0)
        assert sum(abs(lengths[i] - lengths[j]) for i, j in enumerate(rounds[0])) == best and achieved['mean'] == pytest.approx(best/6)
        rounds, achieved = length_matched(range(6), lengths, 5, 0)
        assert len({(i, j) for r in rounds for i, j in enumerate(r)}) == 30 and achieved['largest'] == max(lengths) - min(lengths)


# Checks

def test_nld_and_its_ends():
    assert nld(-2., -1., -5.) == .75 and nld(-1., -1., -5.) == 1 and nld(-5., -1., -5.) == 0 and nld(0., -1., -5.) == 1.25
    assert np.isnan(nld(-2., -1., -1.)) and np.isnan(nld(-2., -1., -1.1, noise=.2)) and not np.isnan(nld(-2., -1., -1.1))
    with pytest.raises(InterlatError, match='noise must be 0 or more'): nld(-2., -1., -5., noise=-1)


@pytest.mark.parametrize('check, args, said', (
    ('check_masked', ([0, 1e-3], [0, 0]), 'check masked failed: PL is 0.001 nats at item 1'), ('check_masked', (0, .2), 'check masked failed: CIC'),
    ('check_swapped', ([0, 1e-15], [0, 0]), 'check swapped failed: CIC'), ('check_swapped', ([0, 0], [0, .25]), 'check swapped failed: CAG is 0.25 at item 1'),
    ('check_restored', ([1, .99],), 'check restored failed: NLD is 0.99 at item 1 with everything'), ('check_restored', (1, .2), 'NLD is 0.2 at item 0 with nothing')))
def test_a_planted_fault_is_named(check, args, said):
    with pytest.raises(InterlatError, match=said) as e: getattr(audit, check)(*args)
    assert '\n' not in str(e.value)


# Equivalence

@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.floats(.01, .6), st.integers(0, 10_000), st.booleans())
def test_tost_is_that_of_statsmodels(n, margin, seed, won):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, n)).round(0 if won else 3)
    if np.ptp(a - b) == 0: return
    p, low, high = tost_paired(a, b, margin)
    assert p == pytest.approx(ttost_paired(a, b, -margin, margin)[0], abs=1e-12)
    if abs(p - .05) > 1e-9: assert (p < .05) == (-margin < low and high < margin)


def test_ten_items_without_a_difference_show_little():
    assert tost_paired([1]*10, [1]*10, .05)[0] == pytest.approx(.95**10) and tost_paired([0]*59, [0]*59, .05)[0] < .05 < tost_paired([0]*58, [0]*58, .05)[0]
    t = measures(table(current=wins(10, 10), other=wins(10, 10)), margin=.05)
    assert not t.loc['CAG', 'equivalent'] and t.loc['CAG', ['tost_low', 'tost_high']].tolist() == pytest.approx([.05**.1 - 1, 1 - .05**.1])


@pytest.mark.parametrize('n, margin', ((20, .2), (50, .1), (100, .05), (100, .2), (200, .05), (500, .028)))
@pytest.mark.parametrize('more', (1, 1.1, 1.5, 3))
def test_false_equivalence_of_wins_is_at_most_five_percent(n, margin, more):
    "Items that truly differ by the margin, the pairs that differ all one way or not: where the t-test alone is wrong in up to 12 %."
    a_only = margin*(1 + more)/2
    counts, times = np.unique(np.random.default_rng(0).multinomial(n, [a_only, a_only - margin, 1 - 2*a_only + margin], size=4000), axis=0, return_counts=True)
    called = [-margin < low and high < margin for low, high in (discordant_interval(*map(int, c[:2]), n) for c in counts)]
    assert times[np.array(called, dtype=bool)].sum()/4000 <= .05 + .0068 # two standard errors of 4,000


def test_false_equivalence_of_fractions_is_at_most_five_percent():
    rng = np.random.default_rng(0)
    for n, margin in ((10, .1), (30, .1), (100, .05)):
        d = np.clip(margin + .4*rng.beta(2, 2, (2000, n)) - .2, -1, 1)
        called = [_equivalence(.3 + x, np.full(n, .3), margin)['equivalent'] for x in d]
        assert np.mean(called) <= .05 + .0098


# Intervals

def coverage(draw, true, n, runs=2000):
    "The part of `runs` audits whose interval holds the truth; `draw(rng, n)` gives the utilities of two arms. Equal counts are asked once."
    rng, hits = np.random.default_rng(0), 0
    few = lambda values, level, seed, whole=stats.bootstrap_ci: whole(values, level=level, n_resamples=499, seed=seed)
    with pytest.MonkeyPatch.context() as patch: # the same interval of fewer resamples, and nothing else, or this would take minutes
        patch.setattr(stats, 'bootstrap_ci', few)
        patch.setattr(stats, 'sign_flip', lambda *a, **k: math.nan)
        pairs = Counter(tuple(sorted(zip(*draw(rng, n)))) for _ in range(runs))
        for seed, (pair, times) in enumerate(pairs.items()):
            row = _paired(*np.transpose(pair), .95, seed)
            hits += times*(row['ci_low'] <= true <= row['ci_high'])
    return hits/runs


def fractions(rng, n):
    "Right with the message, and how often right with four others'."
    easy = rng.random(n)
    return (rng.random(n) < .4 + .5*easy).astype(float), rng.binomial(4, .5*easy)/4


def wins_of_both(rng, n): return np.array([(1, 1), (1, 0), (0, 1), (0, 0)], dtype=float)[rng.choice(4, n, p=[.3, .25, .1, .35])].T


@pytest.mark.parametrize('draw, true', ((fractions, .4), (wins_of_both, .15)))
@pytest.mark.parametrize('n', (20, 100))
def test_intervals_hold_the_truth_in_95_percent(draw, true, n):
    assert abs(coverage(draw, true, n) - .95) <= .01


# The plan

def test_plan_of_the_channels_page():
    assert items_to_see(.05, .2) == pytest.approx(620, abs=15) and items_to_see(.1, .2) == pytest.approx(150, abs=8)
    assert items_to_equate(.05, .2) > items_to_see(.05, .2) and items_to_see(.05, .05) > 100


@pytest.mark.parametrize('difference, discordant', ((.1, .2), (.2, .3), (.3, .3)))
def test_planned_audits_see_what_they_were_planned_for(difference, discordant):
    n, up = items_to_see(difference, discordant), (discordant + difference)/2
    draws = np.random.default_rng(0).multinomial(n, [up, discordant - up, 1 - discordant], size=2000)
    seen, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    power = sum(t for (a, b), t in zip(seen.tolist(), times) if mcnemar(a, b) < .05)/2000
    assert .74 < power < .88 # McNemar's exact test is a little careful
