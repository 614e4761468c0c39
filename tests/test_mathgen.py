"Generated problems: the same id is the same problem, whatever else is asked for; their answers are their own equals."
import random

import pytest
from hypothesis import given, settings, strategies as st

from interlat.maths.boxed import extract_boxed
from interlat.maths.generate import generate_problems
from interlat.maths.makers import MAKERS
from interlat.maths.grade import Grader, is_equiv

SUBJECTS = list(MAKERS)


@pytest.fixture(scope='module')
def whole(): return {p.problem_id: p for p in generate_problems(350, 'test')}


def test_ids_say_subject_and_place(whole):
    assert len(whole) == 350
    for i, p in enumerate(whole.values()): assert p.problem_id == f'test/{p.subject}/{i}' and p.subject == SUBJECTS[i % 7] and p.level == str(1 + i//7 % 5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=4, unique=True), st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True), st.integers(1, 12))
def test_some_subjects_and_levels_are_a_part_of_all(whole, subjects, levels, n):
    "Messages that were collected for all problems are about these, too."
    some = generate_problems(n, 'test', subjects=subjects, levels=levels)
    assert [(p.subject, p.level) for p in some] == [(subjects[i % len(subjects)], str(levels[i//len(subjects) % len(levels)])) for i in range(n)]
    assert len({p.problem_id for p in some}) == n and all(whole.get(p.problem_id, p) == p for p in some)
    assert n > 10 or all(p.problem_id in whole for p in some)
    assert some == generate_problems(n + 3, 'test', subjects=subjects, levels=levels)[:n]


def test_another_seed_has_other_problems_and_other_ids(whole):
    "Or messages about the one would pass for messages about the other."
    seeds = [generate_problems(35, 'test', seed=s) for s in (0, 1, 2)]
    assert seeds[0] == [*whole.values()][:35]
    for what in ('problem_id', 'full'):
        names = [{getattr(p, what) for p in s} for s in seeds]
        assert len(names[1] | names[2]) >= 65 and (what == 'full' or len(set.union(*names)) == 105)
    assert seeds[1][0].problem_id == 'test-1/prealgebra/0'


def test_answers_are_equal_to_themselves_and_seldom_to_others(whole):
    problems = list(whole.values())
    with Grader(1) as grader:
        grades = grader.outputs([p.answer for p in problems], [p.solution for p in problems])
        assert all(g.exact and g.equivalent and g.verdict == 'graded' for g in grades)
        pairs = [(a.answer, b.answer) for a, b in zip(problems, random.Random(0).sample(problems, 350))]
        same = [p for p, g in zip(pairs, grader.grade(pairs)) if g.equivalent]
    assert all(a == b for a, b in same)
    assert is_equiv(problems[0].answer, problems[0].answer)


def test_the_plan_names_no_box_and_the_solution_one(whole):
    for p in whole.values(): assert extract_boxed(p.plan) is None and extract_boxed(p.solution) == p.answer and p.solution.startswith(p.plan) and p.known.startswith('Let ')
