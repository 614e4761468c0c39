"Answers on disk: kills, odd characters, and what may share a folder."
import json, os, re, signal, subprocess, time
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import cast
from warm import warm
import interlat.evaluation.questions
from interlat.evaluation.answering import Completion
from interlat.agents.collect import collect
from interlat.models.lm import *
from interlat.evaluation.questions import *
from interlat.core.basics import InterlatError
from interlat.evaluation.evaluate import evaluate
from interlat.evaluation.log import GameLog, read_log
from interlat.maths.grade import Grade, Grader
from interlat.messages.message import MessageStore
from interlat.core.tasks import NO_TEXT, Task, further_samples

CONDITIONS = ['latent', 'no_comm', 'cross_task', 'white_noise', 'no_cot']
SHORT = dict(max_new_tokens=5, workers=1, progress=False)
SAMPLED = dict(n_samples=3, temperature=.9)


def make_crew(folder, family='qwen2', n=6):
    "What `evaluate_answers` needs: actor, tasks, store; and the actor of `no_cot`."
    tasks = cast.questions(n)
    tok = cast.tokenizer(tasks, family)
    base = cast.lm(tok, f'tiny-{family}')
    store = collect(Agent(base, tok), tasks, MessageStore(Path(folder)/f'store-{family}', sender='s'), max_new_tokens=8, progress=False)
    return (Agent(cast.actor(base, tok), tok), tasks, store), dict(no_cot=Agent(cast.actor(base, tok, seed=1), tok))


def ask_crew(crew, out, conditions=CONDITIONS, change=lambda tasks: tasks, **kw):
    (actor, tasks, store), actors = crew
    return evaluate_answers(actor, change(tasks), store, conditions, out, actors=actors, **SHORT | kw)


@pytest.fixture(scope='module')
def crews(tmp_path_factory):
    "A function that gives the crew of a family, the same one each time."
    return cache(lambda family: make_crew(tmp_path_factory.mktemp('crew'), family))


@pytest.fixture(scope='module', autouse=True)
def graders():
    "Workers take seconds to start: evaluations of this file with as many, and as much time, have the same ones."
    made = cache(lambda *how: Grader(*how))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(interlat.evaluation.questions, 'Grader', lambda *how: nullcontext(made(*how)))
        yield


@pytest.fixture
def run(crews, tmp_path):
    "A function that asks a crew in a folder of this test."
    return lambda out, *args, family='qwen2', **kw: ask_crew(crews(family), tmp_path/out, *args, **kw)


SLOW = """
import os, sys, time
sys.path.insert(0, {tests!r})
import test_questions as t
def slowly(self, *args, append=t.AnswerLog.append):
    append(self, *args)
    time.sleep(.1)
t.AnswerLog.append = slowly
if __name__ == '__main__':
    print(os.getpid(), flush=True)
    t.ask_crew(t.make_crew({folder!r}), {folder!r} + '/killed', seeds=(0, 1), batch_size=4, **t.SAMPLED)
"""


def rows(path): return path.read_text().count('\n') - 1 if path.exists() else 0


def test_killed_and_resumed_the_bytes_are_the_same(run, tmp_path):
    log, script = tmp_path/'killed'/'answers.csv', tmp_path/'slow.py'
    script.write_text(SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    with subprocess.Popen([*warm(), str(script)], stdout=subprocess.PIPE) as child:
        while rows(log) < 9 and child.poll() is None: time.sleep(.02)
        os.kill(int(child.stdout.readline()), signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL and 9 <= rows(log) < 60
    log.write_bytes(log.read_bytes()[:-5]) # and its last line half written
    kept = log.read_bytes().rsplit(b'\n', 1)[0]
    result = run('killed', seeds=(0, 1), batch_size=7, **SAMPLED)
    whole = run('whole', seeds=(0, 1), batch_size=100, **SAMPLED)
    done = log.read_bytes()
    assert done.startswith(kept) and done == (tmp_path/'whole'/'answers.csv').read_bytes() and rows(log) == 60
    pd.testing.assert_frame_equal(result, whole)
    assert len(result) == 5*2*6*3 and not result.duplicated(['condition', 'task_id', 'seed', 'sample']).any()


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
def test_neither_batch_nor_order_nor_company_matters(run, family):
    pattern = r'(?s).'
    def sorted_run(out, **kw): return run(out, family=family, pattern=pattern, **SAMPLED | kw).sort_values(['condition', 'task_id', 'sample'], ignore_index=True)
    whole = sorted_run('whole', batch_size=100)
    assert whole.answer.notna().all() and whole.output.nunique() > 30
    pd.testing.assert_frame_equal(whole, sorted_run('one', batch_size=1))
    pd.testing.assert_frame_equal(whole, sorted_run('back', batch_size=4, change=lambda tasks: tasks[::-1], conditions=CONDITIONS[::-1]))
    few = run('few', ['latent', 'white_noise'], lambda tasks: tasks[2:4], family=family, pattern=pattern, **SAMPLED)
    wanted = whole.merge(few[['condition', 'task_id', 'sample']])
    pd.testing.assert_frame_equal(few.sort_values(['condition', 'task_id', 'sample'], ignore_index=True), wanted)


def test_seeds_where_something_is_drawn(run):
    greedy = run('greedy', seeds=(3, 4))
    assert greedy.groupby('condition', sort=False).seed.agg(lambda s: sorted(set(s))).to_dict() == dict(latent=[3], no_comm=[3], cross_task=[3, 4], white_noise=[3, 4], no_cot=[3])
    sampled = run('sampled', ['latent'], seeds=(3, 4), **SAMPLED)
    assert sampled.groupby('seed').output.agg(tuple).nunique() == 2 and sorted(set(sampled.seed)) == [3, 4]


TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12)
ODD = ['a\nb', 'a\rb', 'a\r\nb', '\r', '\n', '"', '""', 'a","b', "a'b", '√é🙂', '', ' ', 'NA', 'nan', 'None', 'null', '\u2028', '\x1a', '\ufeff', '=1+1', '\\', r'\n', 'True', '[]', '01', '1e5']


def wrote(log, text, raw, condition='latent'):
    "Append an answer whose every field is odd; `raw` may be what no file takes, for outputs are escaped."
    task = Task(f'id {text}', text or 't', [dict(role='user', content='?')], answer=text or 'x', level=text)
    log.append(condition, (task, [Completion(raw, 1, True)]*2, [Grade(raw, False, False, 'graded'), Grade(None, False, False, 'unanswered')]))
    return task


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.sampled_from(ODD), TEXT), st.text(max_size=12)), min_size=1, max_size=4, unique_by=lambda x: x[0]))
def test_any_text_survives(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp('log')/'answers.csv'
    log = AnswerLog(path)
    tasks = [wrote(log, *t) for t in texts]
    again, got = AnswerLog(path), read_answers(path)
    assert again.done == log.done == {('latent', 0, t.task_id) for t in tasks}
    assert got.output.tolist() == [raw for _, raw in texts for _ in 'ab'] and got.answer.tolist() == [x for _, raw in texts for x in (raw, None)]
    for column, name in dict(task_id='task_id', task_type='task_type', level='level', gold='answer').items(): assert got[column].tolist() == [getattr(t, name) for t in tasks for _ in 'ab']


@pytest.mark.parametrize('text', ['a\nb', 'a"\n"b', '\n\n', 'a\r\nb', '"'])
def test_a_line_that_was_cut_off_anywhere_is_written_again(tmp_path, text):
    "Also within a text of several lines."
    log = AnswerLog(tmp_path/'answers.csv')
    wrote(log, 'first', 'x')
    start = log.path.read_bytes()
    wrote(log, text, 'x', 'no_comm')
    whole = log.path.read_bytes()
    for n in range(len(start), len(whole)):
        log.path.write_bytes(whole[:n])
        again = AnswerLog(log.path)
        assert log.path.read_bytes() == start and again.done == {('latent', 0, 'id first')}, whole[:n]
    wrote(again, text, 'x', 'no_comm')
    assert log.path.read_bytes() == whole


def test_what_no_table_can_keep_is_refused_at_the_door():
    ask = [dict(role='user', content='?')]
    for name in ('task_id', 'task_type', 'answer', 'level', 'plan', 'source', 'sample_of'):
        for bad in ('a\0b', 'a\ud800'):
            with pytest.raises(InterlatError, match=f'{name} of task .* holds '): Task(**dict(task_id='q', task_type='t', prompt=ask) | {name: bad})
    with pytest.raises(InterlatError, match='turn 1: the content holds'): Task('q', 't', ask, turns=[*ask, dict(role='assistant', content='\udfff')])
    assert not NO_TEXT.search('🙂\x01\ufffe')


def test_a_changed_question_is_noticed(run, tmp_path):
    "Under the same ids: another prompt, what was private told, another answer, another expert's question."
    base = run('out', ['latent'], change=lambda tasks: tasks[:4])
    before = (tmp_path/'out'/'answers.csv').read_bytes()
    def told(tasks, **kw): return [*tasks[:2], replace(tasks[2], **kw), *tasks[3:]]
    ask = [dict(role='user', content='Otherwise?'), dict(role='assistant', content='So.')]
    for kw in (dict(turns=ask), dict(answer='12345')):
        with pytest.raises(InterlatError, match=r"results in .* were made with another task 'test/[a-z_]+/2': .*; use another folder"): run('out', ['latent'], change=lambda tasks: told(tasks, **kw))
    with pytest.raises(InterlatError, match='another task'): run('out', ['no_comm'], change=lambda tasks: told(tasks, answer='12345')), 'in another condition, too'
    assert (tmp_path/'out'/'answers.csv').read_bytes() == before
    more = run('out', ['latent', 'no_comm'], change=lambda tasks: told(tasks, plan='Otherwise.')) # what the sender reads is in its messages
    assert len(more) == 12 and more[:4].equals(base)
    settings = json.loads((tmp_path/'out'/'evaluate.json').read_text())
    assert len(settings['tasks']) == 6 and all(re.fullmatch('[0-9a-f]{8}', d) for d in settings['tasks'].values())


def test_results_from_before_tasks_were_noted_are_completed(run, tmp_path):
    run('out', ['latent'], change=lambda tasks: tasks[:3])
    path = tmp_path/'out'/'evaluate.json'
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'tasks'}))
    assert len(run('out', ['latent'])) == 6 and len(json.loads(path.read_text())['tasks']) == 6


@pytest.mark.parametrize('name,kw', [('n_samples', dict(n_samples=2, temperature=.9)), ('pattern', dict(pattern='x')), ('temperature', dict(temperature=.5)), ('max_new_tokens', dict(max_new_tokens=9)), ('time_limit', dict(time_limit=2.))])
def test_other_ways_to_ask_need_another_folder(run, name, kw):
    run('out', ['latent'], **SAMPLED if name == 'n_samples' else {})
    with pytest.raises(InterlatError, match=f'were made with {name} '): run('out', ['latent'], **kw)
    run('out', ['latent'], **(SAMPLED if name == 'n_samples' else {}) | dict(workers=2, batch_size=3))


def test_games_and_questions_do_not_share_a_folder(crews, run, tmp_path):
    (actor, tasks, store), _ = crews('qwen2')
    run('questions', ['no_comm'])
    noted = (tmp_path/'questions'/'evaluate.json').read_text()
    games = cast.games(tmp_path/'games', 2)
    with pytest.raises(InterlatError, match='questions holds the results of another kind of evaluation, answers.csv; use another folder'):
        evaluate(actor, games, None, ['no_comm'], tmp_path/'questions', max_steps=1, max_new_tokens=2, progress=False)
    assert (tmp_path/'questions'/'evaluate.json').read_text() == noted and not (tmp_path/'questions'/'games.csv').exists()
    evaluate(actor, games, None, ['no_comm'], tmp_path/'played', max_steps=1, max_new_tokens=2, progress=False)
    with pytest.raises(InterlatError, match='another kind of evaluation, games.csv'): run('played', ['no_comm'])
    with pytest.raises(InterlatError, match='has columns condition,game_id'): read_answers(tmp_path/'played'/'games.csv')
    with pytest.raises(InterlatError, match='has columns condition,task_id'): GameLog(tmp_path/'questions'/'answers.csv')


def test_refused_before_anything_is_asked(crews, tmp_path):
    (actor, tasks, store), _ = crews('qwen2')
    def bad(match, tasks=tasks, conditions=['latent'], store=store, **kw):
        with pytest.raises(InterlatError, match=match): evaluate_answers(actor, tasks, store, conditions, tmp_path/'out', **SHORT | kw)
    mute = Task('mute', 'sums', tasks[0].prompt, answer='1')
    bad('no tasks', tasks=[])
    bad('task mute has no question for the actor', tasks=[*tasks, mute])
    bad('1 of 7 tasks have no reference answer, mute', tasks=[*tasks, replace(mute, answer='')])
    bad('must be different, found', tasks=tasks + tasks[:1])
    bad("12 of 18 tasks have no message", tasks=further_samples(tasks, 3))
    bad('conditions must be different names, at least one', conditions=[])
    bad('conditions must be different names', conditions=['latent', 'latent'])
    bad("condition 'latent' needs messages; give a store", store=None)
    bad('cross_task needs tasks of at least two types', tasks=tasks[:1], conditions=['cross_task'])
    bad('max_new_tokens must be 1 or more', max_new_tokens=0)
    bad('temperature must be 0 or more', temperature=-.5)
    bad('n_samples must be 1 or more', n_samples=0)
    bad('are all the same at temperature 0', n_samples=2)
    bad('seeds must be different integers', seeds=())
    bad('seeds must be different integers', seeds=(1, 1))
    other = MessageStore(tmp_path/'other', sender='s')
    bad('6 of 6 tasks have no message', store=other)
    assert not (tmp_path/'out').exists() or not rows(tmp_path/'out'/'answers.csv')


def test_the_finder():
    for pattern, text, found in [('', r'\boxed{1} \boxed{2}', '2'), ('', 'none', None), (r'#### (.*)', '#### 4 \n#### 5 ', '5'), (r'(a)|b', 'a b', ''), (r'(?P<x>\d)', '1 2', '2'), (r'A: (.+?)\.', 'A: x. A: y.', 'y'), ('x', '', None)]:
        assert answer_finder(pattern)(text) == found
    for bad in ('(', '*', '[', r'(?P<1>x)'):
        with pytest.raises(InterlatError, match='is not a regular expression'): answer_finder(bad)


@pytest.mark.parametrize('change,match', [(lambda s: s.replace(',0,', ',zero,', 1), "the seed in row 1 is 'zero'"), (lambda s: s.replace('[false]', 'false', 1), "exact is 'false', wanted a JSON list"),
    (lambda s: s.replace('[false]', '[false, true]', 1), 'their lists differ in length'), (lambda s: s.replace('"[""', '"[', 1), 'outputs is .*, wanted a JSON list'), (lambda s: s.replace(',', ';'), 'has columns'),
    (lambda s: s + 'a,b,c,d,e,f,g,h,i,j,k,l,m,n\n', 'is damaged: Error tokenizing')])
def test_a_table_that_was_edited_is_named(tmp_path, change, match):
    path = tmp_path/'answers.csv'
    wrote(AnswerLog(path), '1', 'x')
    path.write_text(change(path.read_text().replace('[false, false]', '[false]').replace('[""x"", ""x""]', '[""x""]').replace('[""x"", null]', '[""x""]').replace('[""graded"", ""unanswered""]', '[""graded""]').replace('[1, 1]', '[1]').replace('[true, true]', '[true]')))
    with pytest.raises(InterlatError, match=match): read_answers(path)


def test_a_binary_file_is_no_table(tmp_path):
    (tmp_path/'answers.csv').write_bytes(b'\xff\xfe\n')
    with pytest.raises(InterlatError, match='answers.csv is damaged'): read_answers(tmp_path/'answers.csv')


def test_more_that_is_refused(crews, tmp_path):
    (actor, tasks, store), _ = crews('qwen2')
    def bad(match, tasks=tasks, **kw):
        with pytest.raises(InterlatError, match=match): evaluate_answers(actor, tasks, store, ['white_noise'], tmp_path/'out', **SHORT | kw)
    bad('6 of 6 tasks have no reference answer', tasks=[replace(t, answer=' ') for t in tasks])
    bad('has no question for the actor', tasks=[replace(t, turns=[dict(role='system', content='x'), t.turns[-1]]) for t in tasks])
    bad('seeds must be different integers, at least one, found', seeds=(1.5,))
    bad('seeds must be different integers, at least one, found 01', seeds='01')
    assert not rows(tmp_path/'out'/'answers.csv')
    evaluate_answers(actor, tasks, store, ['no_comm'], tmp_path/'out', **SHORT)
    for text in ('{', '[1]', ''):
        (tmp_path/'out'/'evaluate.json').write_text(text)
        bad('evaluate.json is damaged')
