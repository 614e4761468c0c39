"Tables of one's own, in each container, and what is refused in them."
import json, math

import pytest

from interlat.core.basics import InterlatError
from interlat.maths.problems import Columns, Problem, load_custom

Q = dict(prompt='Which?', answer='this')
MINE = Columns(prompt='question', answer='reply', plan='steps', solution='worked', known='hint', subject='topic', level='grade', id='key')
ROWS = [dict(question='Who?\u2028', reply='Ann', steps='Ask.', worked='It is Ann.', hint='Ann left.', topic='people', grade=2, key='a'),
        dict(question='How many?', reply='3', steps=None, worked=None, hint=None, topic=None, grade=None, key='b')]
PROBLEMS = [Problem('a', 'Who?\u2028', 'Ann', 'It is Ann.', 'people', '2', 'Ask.', 'Ann left.'), Problem('b', 'How many?', '3')]


def table(tmp_path, *rows, **columns):
    (tmp_path/'data.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return load_custom(tmp_path/'data.jsonl', columns=Columns(**columns))


def test_every_container(tmp_path, monkeypatch):
    (tmp_path/'a.json').write_text(json.dumps(ROWS)); (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, ROWS)))
    assert load_custom(tmp_path/'a.json', columns=MINE) == load_custom(str(tmp_path/'a.jsonl'), columns=MINE) == PROBLEMS
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(tmp_path/'two'/'test.parquet'); data.select([1]).to_parquet(tmp_path/'two'/'train.parquet'); data.save_to_disk(tmp_path/'saved')
    assert load_custom(tmp_path/'two'/'test.parquet', columns=MINE) == load_custom(tmp_path/'two', 'test', MINE) == load_custom(tmp_path/'saved', columns=MINE) == PROBLEMS
    assert load_custom(tmp_path/'two', 'train', MINE) == PROBLEMS[1:]
    monkeypatch.setattr(datasets, 'get_dataset_config_names', lambda name: ['default'])
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, config: datasets.DatasetDict(test=data))
    assert load_custom('someone/questions', columns=MINE) == PROBLEMS
    with pytest.raises(InterlatError, match="someone/questions has no column 'prompt' for the prompt; its columns are question, reply, "): load_custom('someone/questions')


def test_pandas_writes_the_same(tmp_path):
    "Where pandas has no value it keeps NaN, and makes integers doubles."
    pytest.importorskip('pyarrow')
    import pandas as pd
    pd.DataFrame(dict(prompt=['a?', 'b?'], answer=[4, 5], level=[1, None], plan=[None, 'p'])).to_parquet(tmp_path/'a.parquet')
    assert load_custom(tmp_path/'a.parquet') == [Problem('0', 'a?', '4', level='1'), Problem('1', 'b?', '5', plan='p')]


@pytest.mark.parametrize('answer, text', [('4', '4'), (4, '4'), (4.0, '4.0'), (-0.5, '-0.5'), (0, '0'), (10**400, str(10**400)), (' x ', ' x ')])
def test_answers(tmp_path, answer, text):
    assert table(tmp_path, dict(Q, answer=answer))[0].answer == text


@pytest.mark.parametrize('value, shown', [(None, 'None'), ('', "''"), (' \n', r"' \\n'"), (True, 'True'), (math.nan, 'nan'), (math.inf, 'inf'), ([4], r'\[4\]'), ({'a': 4}, r"\{'a': 4\}")])
def test_wrong_answers_name_row_field_and_value(tmp_path, value, shown):
    with pytest.raises(InterlatError, match=f"data.jsonl, line 3: field 'answer' is {shown}; wanted a text or a number$") as e: table(tmp_path, Q, Q, dict(Q, answer=value))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ('prompt', 'plan', 'solution', 'known'))
def test_texts_are_texts(tmp_path, name):
    for value in (4, ['a'], False):
        with pytest.raises(InterlatError, match=f"line 2: field '{name}' is .*; wanted a text$"): table(tmp_path, Q, dict(Q, **{name: value}))


@pytest.mark.parametrize('name', ('subject', 'level', 'id'))
def test_names_may_be_numbers(tmp_path, name):
    p, = table(tmp_path, dict(Q, **{name: 7}))
    assert getattr(p, 'problem_id' if name == 'id' else name) == '7'
    assert [getattr(p, 'problem_id' if name == 'id' else name) for p in table(tmp_path, dict(Q, **{name: 2.0}), dict(Q, **{name: 2.5}), dict(Q, **{name: '3.0'}))] == ['2', '2.5', '3.0']
    with pytest.raises(InterlatError, match=f"line 1: field '{name}' is True; wanted a text or a number"): table(tmp_path, dict(Q, **{name: True}))


def test_what_may_be_missing(tmp_path):
    assert table(tmp_path, Q, dict(Q, plan=None, extra=[1]), dict(Q, plan='p')) == [Problem('0', 'Which?', 'this'), Problem('1', 'Which?', 'this'), Problem('2', 'Which?', 'this', plan='p')]
    assert [p.plan for p in table(tmp_path, dict(Q, way='p'), Q, plan='way')] == ['p', ''], 'a named column need not be in each row'
    for name in ('prompt', 'answer'):
        with pytest.raises(InterlatError, match=f"line 2: field '{name}' is missing; its fields are "): table(tmp_path, Q, {k: v for k, v in Q.items() if k != name})
        with pytest.raises(InterlatError, match=f"data.jsonl has no column '{name}' for the {name}; its columns are "): table(tmp_path, {k: v for k, v in Q.items() if k != name})


@pytest.mark.parametrize('role', ('prompt', 'answer', 'plan', 'solution', 'known', 'subject', 'level', 'id'))
def test_a_column_that_is_named_must_be_there(tmp_path, role):
    with pytest.raises(InterlatError, match=f"data.jsonl has no column 'mine' for the {role}; its columns are prompt, answer, more$"): table(tmp_path, Q, dict(Q, more=1), **{role: 'mine'})
    for name in (None, 3):
        with pytest.raises(InterlatError, match=f'the column of the {role} is {name}; wanted a name'): Columns(**{role: name})


def test_an_empty_name_stands_for_no_column(tmp_path):
    assert table(tmp_path, dict(Q, plan=[1], id=True, level={}), plan='', id='', level='') == [Problem('0', 'Which?', 'this')]
    for role in ('prompt', 'answer'):
        with pytest.raises(InterlatError, match=f"the column of the {role} is ''; wanted a name"): Columns(**{role: ''})


def test_ids(tmp_path):
    assert [p.problem_id for p in table(tmp_path, dict(Q, id='b'), dict(Q, id=0))] == ['b', '0']
    with pytest.raises(InterlatError, match=r"data.jsonl, line 3: field 'key' is '1', as in .*data.jsonl, line 1; wanted an id of its own for each row"): table(tmp_path, dict(Q, key=1), dict(Q, key=2), dict(Q, key='1'), id='key')
    for row, said in ((Q, "field 'id' is missing"), (dict(Q, id=None), "field 'id' is None; wanted a text or a number"), (dict(Q, id=''), "field 'id' is ''")):
        with pytest.raises(InterlatError, match=f'line 2: {said}'): table(tmp_path, dict(Q, id='a'), row)


def test_rows_are_counted_through_all_files(tmp_path):
    for name in 'ba': (tmp_path/f'{name}.json').write_text(json.dumps([dict(Q, prompt=f'{name}1'), dict(Q, prompt=f'{name}2')]))
    assert [(p.problem_id, p.text) for p in load_custom(tmp_path)] == [('0', 'a1'), ('1', 'a2'), ('2', 'b1'), ('3', 'b2')]


def test_what_is_known_is_not_in_the_prompt(tmp_path):
    with pytest.raises(InterlatError, match="line 1: field 'prompt' begins with what the sender alone should know, field 'hint', 'Ann left.'"): table(tmp_path, dict(Q, prompt='Ann left. Who left?', hint='Ann left.'), known='hint')
    p, = table(tmp_path, dict(Q, known='Ann left.'))
    assert (p.text, p.known, p.full) == ('Which?', 'Ann left.', 'Ann left. Which?')


@pytest.mark.parametrize('text, said', [('', 'data.jsonl holds no rows; wanted one for each problem'), ('[]', 'holds no rows'), ('{"prompt"', 'data.jsonl, line 1 is not JSON'), ('[1]', 'row 1 is 1; wanted an object')])
def test_files_that_are_no_table(tmp_path, text, said):
    (tmp_path/'data.jsonl').write_text(text)
    with pytest.raises(InterlatError, match=said): load_custom(tmp_path/'data.jsonl')
    with pytest.raises(InterlatError, match='data set not found: none.jsonl'): load_custom('none.jsonl')
