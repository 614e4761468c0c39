"Accuracy against the definitions, by brute force: pass@k, votes, denominators, means over seeds."
from fractions import Fraction
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from interlat.evaluation.accuracy import *
from interlat.evaluation.answering import Completion
from interlat.core.basics import InterlatError
from interlat.maths.grade import Grade
from interlat.evaluation.questions import SAMPLES, AnswerLog, read_answers
from interlat.core.stats import wilson
from interlat.evaluation.summary import effects, paired, summarise
from interlat.core.tasks import Task


def frame(*rows, **kw):
    "Samples of (condition, task, seed, answer, right); whatever else is the same for all."
    at, made = {}, []
    for condition, task, seed, answer, right in rows:
        k = at[condition, task, seed] = at.get((condition, task, seed), -1) + 1
        made.append(dict(condition=condition, task_id=task, task_type='sums', level='1', seed=seed, sample=k, gold='1', output='', answer=answer, exact=right, equivalent=right,
                         verdict='graded' if (answer or '').strip() else 'unanswered', tokens=3, ended=True) | kw)
    return pd.DataFrame(made)[SAMPLES]


@pytest.mark.parametrize('n', range(1, 8))
def test_pass_at_k_is_the_part_of_all_subsets_with_a_right_one(n):
    for right in range(n+1):
        for k in range(1, n+1):
            hands = [any(hand) for hand in combinations([True]*right + [False]*(n-right), k)]
            assert pass_at_k(n, right, k) == pytest.approx(float(Fraction(sum(hands), len(hands))), abs=1e-12)


@pytest.mark.parametrize('n,right,k', [(2, 1, 3), (2, 3, 1), (2, -1, 1), (0, 0, 1), (2, 1, 0)])
def test_pass_at_k_refuses(n, right, k):
    with pytest.raises(InterlatError, match=f'found n = {n}, right = {right}, k = {k}'): pass_at_k(n, right, k)


@pytest.mark.parametrize('answers,first', [
    ([], None), ([None], None), (['', ' ', '\n', None], None), ([None, '7'], 1), (['', '7', ''], 1),
    (['3', '7', '7', '3'], 0), (['7', '3', '3'], 1), (['3', '7', '8'], 0), # ties: who spoke first
    ([r'\frac12', '7', r'\dfrac{1}{2}'], 0), (['7', r'\frac{1}{2}', r'\tfrac12'], 1), (['x', ' x '], 0), (['2', r'\$2', '3', '3', '3'], 2),
    (['1/2', '0.5', '3', '3'], 2), # equal in value, but not spelt the same
])
def test_majority(answers, first): assert majority(answers) == first


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=6), st.text(r'\{}$^_ 1x', max_size=8)), max_size=7))
def test_a_vote_over_anything(answers):
    first = majority(answers)
    assert (first is None) == (not any(a and a.strip() for a in answers))
    if first is not None: assert answers[first].strip() and answers.count(answers[first]) >= 1 and majority(answers[first:]) == 0


@pytest.mark.parametrize('seeds,k', [((0,), 1), ((0,), 4), ((0, 1, 5), 3)])
def test_rates_are_means_over_samples_then_seeds(seeds, k):
    rng = np.random.default_rng(1)
    rows = [(c, f'q{i}', s, str(rng.integers(3)) if rng.random() < .7 else None, bool(rng.random() < .4)) for c in ('latent', 'no_comm') for i in range(5) for s in seeds for _ in range(k)]
    samples = frame(*rows)
    rates = question_rates(samples.sample(frac=1, random_state=2).sort_values('sample', kind='stable')).set_index(['condition', 'task_id'])
    for c, i in rates.index:
        parts = [[(a, r) for cc, t, ss, a, r in rows if (cc, t, ss) == (c, i, s)] for s in seeds]
        votes = [majority([a for a, _ in p]) for p in parts]
        wanted = dict(equivalent=np.mean([np.mean([r for _, r in p]) for p in parts]), majority=np.mean([v is not None and p[v][1] for v, p in zip(votes, parts)]),
                      **{'pass': np.mean([pass_at_k(k, sum(r for _, r in p), k) for p in parts])})
        assert {n: rates.loc[(c, i), n] for n in wanted} == pytest.approx(wanted)
    t = accuracy(samples).set_index('condition')
    assert t.n.tolist() == [5, 5] and t.seeds.tolist() == [len(seeds)]*2 and t.samples.tolist() == [k]*2 and ('majority' in t) == (k > 1)
    assert t.equivalent['latent'] == pytest.approx(np.mean([r for c, *_, r in rows if c == 'latent']))
    assert t.unanswered['latent'] == sum(a is None for c, *_, a, _ in rows if c == 'latent')


def test_who_does_not_answer_is_in_the_denominator():
    one = frame(('latent', 'a', 0, '1', True), *(('latent', q, 0, None, False) for q in 'bcd'))
    one.loc[1:, 'verdict'] = ['unanswered', 'unparsable', 'timeout']
    one.loc[3, 'ended'] = False
    row = accuracy(one).iloc[0]
    assert (row.n, row.equivalent, row.unanswered, row.unparsable, row.timeout, row.crashed, row.cut_off) == (4, .25, 1, 1, 1, 0, 1)
    assert (row.equivalent_low, row.equivalent_high) == wilson(1, 4)
    assert summarise(runs_of(one)).loc[0, ['n', 'successes', 'errors']].tolist() == [4, 1, 0]


def test_a_question_that_was_asked_more_often_does_not_count_more():
    "Half of a second seed is there after a kill."
    some = frame(('latent', 'a', 0, '1', True), ('latent', 'b', 0, '2', False), ('latent', 'a', 1, '1', True))
    assert accuracy(some).equivalent[0] == .5 and question_rates(some).equivalent.tolist() == [1, 0]


def test_runs_feed_the_paired_tests_and_the_effects():
    rng = np.random.default_rng(0)
    rows = [(c, f'q{i}', s, '1', bool(rng.random() < p)) for c, p in dict(latent=.8, no_comm=.1, cross_task=.2).items() for i in range(40) for s in (0, 1) for _ in range(2)]
    samples = frame(*rows)
    runs = runs_of(samples)
    pairs, told = paired(runs), effects(runs, 'level', 'question')
    rates = question_rates(samples).pivot(index='task_id', columns='condition', values='equivalent')
    for p in pairs.itertuples():
        d = rates[p.condition_a] - rates[p.condition_b]
        assert (p.n, p.difference, p.a_only, p.b_only) == (40, pytest.approx(d.mean()), (d > 0).sum(), (d < 0).sum())
    assert told.level.tolist() == ['all', '1']*2 and (told.p_value < .01).all()
    exact = samples.assign(exact=False)
    assert summarise(runs_of(exact, 'exact')).successes.sum() == 0 and summarise(runs_of(exact)).successes.sum() > 0


def test_the_tables_are_written_from_what_is_on_disk(tmp_path):
    samples = frame(*((c, f'q{i}', 0, '1', c == 'latent') for c in ('latent', 'no_comm') for i in range(8)))
    samples['level'], samples['task_type'] = ['1', '2']*8, ['a', 'a', 'b', 'b']*4
    log = AnswerLog(tmp_path/'answers.csv')
    for r in samples.itertuples():
        task = Task(r.task_id, r.task_type, [dict(role='user', content='?')], answer=r.gold, level=r.level)
        log.append(r.condition, (task, [Completion('', r.tokens, r.ended)], [Grade(r.answer, r.exact, r.equivalent, r.verdict)]), r.seed)
    assert write_accuracy(tmp_path).equals(accuracy(samples)) and read_answers(log.path).equals(samples)
    by_level, by_subject = (pd.read_csv(tmp_path/f'accuracy_by_{x}.csv') for x in ('level', 'subject'))
    assert by_level.level.tolist() == [1, 2]*2 and by_subject.task_type.tolist() == ['a', 'b']*2 and by_level.n.sum() == by_subject.n.sum() == 16
    with pytest.raises(InterlatError, match='result table not found'): write_accuracy(tmp_path/'nowhere')
    AnswerLog(tmp_path/'empty'/'answers.csv')
    assert len(write_accuracy(tmp_path/'empty')) == 0


def test_as_samples_keeps_one_several_and_seeds(tmp_path):
    log, task = AnswerLog(tmp_path/'answers.csv'), Task('q', 'sums', [dict(role='user', content='?')], answer='1', level='2')
    done = [Completion(str(k), k + 1, bool(k % 2)) for k in range(3)], [Grade(None if k else '1', not k, not k, 'unanswered' if k else 'graded') for k in range(3)]
    for seed in (0, 7): log.append('latent', (task, *done), seed)
    log.append('no_comm', (task, *(x[:1] for x in done)))
    got = read_answers(log.path)
    assert got[['seed', 'sample']].values.tolist() == [[0, 0], [0, 1], [0, 2], [7, 0], [7, 1], [7, 2], [0, 0]]
    assert got.tokens.tolist() == [1, 2, 3, 1, 2, 3, 1] and got.ended.tolist() == [False, True, False]*2 + [False] and got.answer.tolist() == ['1', None, None]*2 + ['1']
    assert [got[c].dtype.kind for c in ('exact', 'equivalent', 'ended', 'tokens', 'sample', 'seed')] == ['b', 'b', 'b', 'i', 'i', 'i']
    empty = AnswerLog(tmp_path/'none'/'answers.csv')
    assert list(read_answers(empty.path)) == SAMPLES and len(read_answers(empty.path)) == 0
