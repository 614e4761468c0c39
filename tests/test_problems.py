"Problems and the tasks made of them: who reads what, what is refused, and further samples."
import json
from dataclasses import fields, replace

import pytest

from interlat.core.basics import InterlatError
from interlat.maths.problems import ACTOR_PROMPT, SENDER_PROMPT, Problem, problem_task
from interlat.core.tasks import Task, further_samples, load_tasks, save_tasks

HIDDEN = Problem('test/algebra/1', 'What is $3k + 4$?', '25', r'$3 \cdot 7 + 4 = \boxed{25}$.', 'algebra', '2', 'Three times $k$, then 4 more.', 'Let $k = 7$.')
OPEN = Problem('q', 'Who wrote Emma?', 'Jane Austen')


def said(task): return task.prompt[-1]['content'], task.turns[0]['content'], task.turns[-1]['content']


def test_what_is_known_reaches_the_sender_alone():
    sender, actor, expert = said(problem_task(HIDDEN))
    assert sender == SENDER_PROMPT.replace('{problem}', 'Let $k = 7$. What is $3k + 4$?') and actor == ACTOR_PROMPT.replace('{problem}', 'What is $3k + 4$?')
    assert expert == HIDDEN.solution
    assert said(problem_task(HIDDEN, private=False)) == (sender, ACTOR_PROMPT.replace('{problem}', HIDDEN.full), expert)
    assert said(problem_task(OPEN)) == said(problem_task(OPEN, private=False)), 'nothing is hidden'


def test_what_a_task_keeps_of_its_problem(tmp_path):
    tasks = [problem_task(p) for p in (HIDDEN, OPEN)]
    assert [(t.task_id, t.task_type, t.plan, t.answer, t.level, t.origin) for t in tasks] == [
        ('test/algebra/1', 'algebra', HIDDEN.plan, '25', '2', 'test/algebra/1'), ('q', 'question', '', 'Jane Austen', '', 'q')]
    tasks = further_samples(tasks, 2)
    assert load_tasks(save_tasks(tasks, tmp_path/'t.jsonl')) == tasks


@pytest.mark.parametrize('text', [r'Find \frac{a}{b} in {problem}', r'{} {0} {x!r} %s \1 \g<0> $x$', 'two\nlines'])
def test_no_text_is_special_in_a_prompt(text):
    sender, actor, _ = said(problem_task(replace(OPEN, text=text), 'Think {about} it: {problem}', '{problem}, then {problem}'))
    assert sender == f'Think {{about}} it: {text}' and actor == '{problem}, then {problem}'.replace('{problem}', text)


@pytest.mark.parametrize('kw', [dict(sender_prompt='Plan.'), dict(actor_prompt='Solve { problem }.'), dict(actor_prompt='')])
def test_a_prompt_without_the_problem_is_refused(kw):
    with pytest.raises(InterlatError, match='needs {problem} where the text goes, found'): problem_task(OPEN, **kw)


@pytest.mark.parametrize('name', [f.name for f in fields(Problem)])
@pytest.mark.parametrize('value', [None, 5, ['x']])
def test_a_field_that_is_no_text_is_named(name, value):
    with pytest.raises(InterlatError, match=f"^{name} of problem .* is .*; wanted a text$"): replace(HIDDEN, **{name: value})


@pytest.mark.parametrize('name', ['problem_id', 'text', 'answer'])
def test_what_a_problem_cannot_lack(name):
    for nothing in ('', ' \n'):
        with pytest.raises(InterlatError, match=f'has no {name}'): replace(HIDDEN, **{name: nothing})


@pytest.mark.parametrize('name', ['task_id', 'task_type', 'plan', 'source', 'answer', 'level', 'sample_of'])
def test_a_tasks_field_that_is_no_text_is_named_with_its_line(tmp_path, name):
    row = json.loads(save_tasks([problem_task(OPEN)], tmp_path/'t.jsonl').read_text())
    (tmp_path/'t.jsonl').write_text('\n' + json.dumps({**row, name: 5}))
    with pytest.raises(InterlatError, match=f'line 2: {name} of task .* is 5; wanted a text'): load_tasks(tmp_path/'t.jsonl')


def test_tasks_written_before_there_were_answers_are_read(tmp_path):
    row = json.loads(save_tasks([problem_task(OPEN)], tmp_path/'t.jsonl').read_text())
    for name in ('answer', 'level', 'sample_of'): del row[name]
    (tmp_path/'t.jsonl').write_text(json.dumps(row))
    assert load_tasks(tmp_path/'t.jsonl') == [replace(problem_task(OPEN), answer='')]


def test_further_samples_follow_their_task_and_never_take_anothers_id():
    tasks = [problem_task(HIDDEN), problem_task(OPEN)]
    assert [(t.task_id, t.origin) for t in further_samples(tasks, 3)] == [(p + k, p) for p in ('test/algebra/1', 'q') for k in ('', '#1', '#2')]
    assert further_samples(tasks, 1) == tasks and further_samples([], 3) == []
    assert [t.origin for t in further_samples([replace(tasks[1], task_id='q#9', sample_of='q')], 2)] == ['q', 'q'], 'a sample of a sample is one of the first'
    for given in (tasks*2, further_samples(tasks, 2), [tasks[1], replace(tasks[1], task_id='q#1')]):
        with pytest.raises(InterlatError, match=r"task '.*' would be there \d times"): further_samples(given, 2)
    with pytest.raises(InterlatError, match='samples must be an integer, 1 or more, found 0'): further_samples(tasks, 0)
