"Tables against the same numbers worked out row by row, and tables with holes."
import math
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from interlat.core.basics import InterlatError
from interlat.evaluation.log import COLUMNS
from interlat.core.stats import detectable_effect, mcnemar, newcombe, wilson
from interlat.evaluation.summary import *


def row(condition, game, won, seed=0, task_type='pick'):
    return dict(zip(COLUMNS, (condition, game, task_type, won, 5 if won else 20, '' if won is not None else 'RuntimeError: x', seed, 0, '[]', '[]')))


def table(*rows): return pd.DataFrame(rows, columns=COLUMNS).astype(dict(won=object))


outcome = st.sampled_from([True, False, False, None])
TYPES = ['pick', 'heat', 'cool']


@st.composite
def evaluations(draw, conditions=('latent', 'no_comm', 'cross_task', 'same_type')):
    "Up to 12 games of up to three types; up to 3 seeds where something is drawn; rows may be missing, and games broken."
    rows = []
    for i in range(draw(st.integers(1, 12))):
        for c in conditions:
            for seed in range(draw(st.integers(0, 3)) if c in ('cross_task', 'same_type') else 1):
                rows.append(row(c, f'g{i}', draw(outcome), seed, TYPES[i % 3]))
    return table(*rows)


def by_hand(games, condition):
    "{game: part of its runs won}, without pandas' help."
    found = {}
    for r in games.to_dict('records'):
        if r['condition'] == condition and r['won'] is not None: found.setdefault(r['game_id'], []).append(r['won'])
    return {g: sum(won)/len(won) for g, won in found.items()}


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_summary_by_hand(games):
    for r in summarise(games).to_dict('records'):
        rates = by_hand(games, r['condition'])
        assert r['n'] == len(rates) and r['errors'] == sum(w is None for w in games.won[games.condition == r['condition']])
        assert r['successes'] == pytest.approx(sum(rates.values()))
        if rates: assert r['success_rate'] == pytest.approx(np.mean(list(rates.values()))) and r['ci_low'] - 1e-9 <= r['success_rate'] <= r['ci_high'] + 1e-9
        else: assert math.isnan(r['success_rate']) and math.isnan(r['ci_low'])
        if set(rates.values()) <= {0, 1}: assert (r['ci_low'], r['ci_high']) == pytest.approx(wilson(int(sum(rates.values())), len(rates)), nan_ok=True)
    alone = {t: summarise(part).set_index('condition') for t, part in games.groupby('task_type')}
    for r in summarise(games, 'task_type').to_dict('records'):
        own = alone[r['task_type']].loc[r['condition']].to_dict()
        assert r == pytest.approx(own | dict(condition=r['condition'], task_type=r['task_type']), nan_ok=True)


@settings(max_examples=12, deadline=None)
@given(evaluations())
def test_effects_by_hand(games):
    found = effects(games, 'task_type')
    assert found[found.task_type == 'all'].drop(columns=['task_type', 'p_holm']).reset_index(drop=True).equals(effects(games).astype(found.dtypes.drop(['task_type', 'p_holm'])))
    for r in found.itertuples():
        part = games if r.task_type == 'all' else games[games.task_type == r.task_type]
        a, b = by_hand(part, r.condition_a), by_hand(part, r.condition_b)
        d = [a[g] - b[g] for g in a if g in b]
        assert (r.n, r.a_only, r.b_only) == (len(d), sum(x > 0 for x in d), sum(x < 0 for x in d)) and 'nan' not in r.sentence
        if not d:
            assert math.isnan(r.difference) and math.isnan(r.mde) and math.isnan(r.p_holm) and 'no game ran both' in r.sentence
            continue
        assert r.difference == pytest.approx(np.mean(d)) and 0 < r.p_value <= 1
        assert r.mde == pytest.approx(detectable_effect(len(d), np.mean(np.square(d))), nan_ok=True)
        if {*a.values(), *b.values()} <= {0, 1}: assert r.p_value == mcnemar(r.a_only, r.b_only)
        if r.task_type != 'all': assert r.p_value - 1e-12 <= r.p_holm <= 1
        else: assert math.isnan(r.p_holm)
        assert ('too few' in r.sentence) == (len(d) < 6) and ('80 % power' in r.sentence) == (len(d) >= 6)


def test_one_seed_is_mcnemar_and_newcombe():
    won = dict(latent=[1]*9 + [0]*3, no_comm=[1]*2 + [0]*8 + [1]*2)
    games = table(*(row(c, f'g{i}', bool(w)) for c, ws in won.items() for i, w in enumerate(ws)))
    r = effects(games).iloc[0]
    assert (r.a_only, r.b_only, r.p_value, r.ci_low, r.ci_high) == (7, 2, mcnemar(7, 2), *newcombe(2, 7, 2, 1))
    again = pd.concat([games, games.assign(seed=1)])  # a second seed that says the same adds nothing
    assert effects(again).equals(effects(games)) and summarise(again).n.tolist() == [12, 12] and summarise(again).ci_low.equals(summarise(games).ci_low)


def test_more_seeds_make_no_more_games():
    "Three seeds narrow the interval by their share of the noise, not as three times the games would."
    rng = np.random.default_rng(0)
    chance = rng.beta(.3, .3, 200)
    games = table(*(row('white_noise', f'g{i}', bool(rng.random() < p), s) for i, p in enumerate(chance) for s in range(3)))
    one, three = (summarise(g).iloc[0] for g in (games[games.seed == 0], games))
    width = lambda r: r.ci_high - r.ci_low
    assert three.n == 200 and .8*width(one) < width(three) < width(one)


def test_by_type_claims_need_holm():
    "Among 13 types one with p = 0.03 is not claimed, one with p = 2/2²⁰ is."
    def games(kind, n): return [row(c, f'{kind}-{i}', c == 'latent', task_type=kind) for i in range(n) for c in ('latent', 'no_comm')]
    dull = [r | dict(won=False) for k in range(11) for r in games(f'dull {k}', 4)]
    found = effects(table(*games('six', 6), *games('twenty', 20), *dull), 'task_type').set_index('task_type')
    assert found.p_value['six'] < .05 < found.p_holm['six'] and found.ci_low['six'] > 0 and 'no clear difference' in found.sentence['six']
    assert found.p_holm['twenty'] == pytest.approx(13*2/2**20) and 'more wins' in found.sentence['twenty']


def test_few_games_make_no_clear_difference_by_their_interval_alone():
    wins = [row('latent', f'g{i}', i < 4) for i in range(6)] + [row('no_comm', f'g{i}', False) for i in range(6)]
    found = effects(table(*wins)).iloc[0]
    assert found.ci_low > 0 and found.p_value > .05 and 'no clear difference in wins' in found.sentence


@st.composite
def trainings(draw):
    "Up to 8 games, two ablations of up to 3 seeds, one that reads states and one that reads text; rows may be missing, and games broken."
    rows = [dict(row('latent', 'g0', True), ablation='full'), dict(row('text', 'g0', False), ablation='text_only')]
    for i in range(1, draw(st.integers(1, 8))):
        for a, conditions in dict(full=('latent', 'no_comm', 'cross_task'), text_only=('text', 'no_comm', 'cross_text')).items():
            rows += [dict(row(c, f'g{i}', draw(outcome), s), ablation=a) for s in range(draw(st.integers(0, 3))) for c in conditions]
    return pd.DataFrame(rows).astype(dict(won=object))


@settings(max_examples=12, deadline=None)
@given(trainings())
def test_ablations_by_hand(games):
    won = {(r['ablation'], r['condition'], r['game_id'], r['seed']): r['won'] for r in games.to_dict('records') if r['won'] is not None}
    def difference(a, b):
        "Mean over games of the mean over seeds, of runs that both have; None if there are none."
        per = {}
        for (ablation, condition, game, seed), w in won.items():
            if (ablation, condition) == a and (*b, game, seed) in won: per.setdefault(game, []).append(w - won[*b, game, seed])
        return np.mean([np.mean(d) for d in per.values()]) if per else None
    full, text = ablation_table(games).to_dict('records')
    wanted = {('presence', 0): (('full', 'latent'), ('full', 'no_comm')), ('content', 0): (('full', 'latent'), ('full', 'cross_task')),
              ('presence', 1): (('text_only', 'text'), ('text_only', 'no_comm')), ('content', 1): (('text_only', 'text'), ('text_only', 'cross_text')),
              ('change', 1): (('text_only', 'text'), ('full', 'latent'))}
    for (name, i), (a, b) in wanted.items():
        r, d = (full, text)[i], difference(a, b)
        if d is None: assert math.isnan(r[name]) and math.isnan(r[f'{name}_p']) and math.isnan(r[f'{name}_holm'])
        else: assert r[name] == pytest.approx(d) and r[f'{name}_low'] - 1e-9 <= d <= r[f'{name}_high'] + 1e-9 and r[f'{name}_p'] <= r[f'{name}_holm'] <= 1
    for r, own in ((full, 'latent'), (text, 'text')):
        same = summarise(games[(games.ablation == r['ablation']) & (games.condition == own)]).iloc[0].drop('condition').to_dict()
        assert {k: r[k] for k in same} == pytest.approx(same, nan_ok=True) and r['seed_low'] <= r['seed_high']


def test_seeds_that_agree_add_no_certainty():
    "Three trainings that win the same games say no more of other games than one."
    one = pd.concat([table(*(row('latent', f'g{i}', i < k) for i in range(20))).assign(ablation=a) for a, k in (('full', 15), ('no_adapter', 8))])
    three = pd.concat([one.assign(seed=s) for s in range(3)])
    assert ablation_table(three).drop(columns=['seeds', 'mean_steps_all']).equals(ablation_table(one).drop(columns=['seeds', 'mean_steps_all']))
    assert ablation_table(one).change_p[1] == mcnemar(0, 7)


def test_pairs_by_the_old_name_are_refused():
    games = table(row('latent', 'g1', True), row('same_type', 'g1', False))
    assert paired(games, [('latent', 'same_type')]).difference.tolist() == [1.]
    with pytest.raises(InterlatError, match="condition 'self_message' is 'same_type' now"): paired(games, [('latent', 'self_message')])
