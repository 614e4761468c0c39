"Tasks as JSON lines: odd characters, and files that are not what they should be."
import json

import pytest

from interlat.core.basics import InterlatError
from interlat.core.tasks import Task, load_conversations, load_tasks, save_conversations, save_tasks

ASK = [dict(role='user', content='where?')]


def test_any_text_survives_a_round_trip(tmp_path):
    "Line separators that are not newlines included: they do not end a row."
    tasks = [Task(f't{i}', 'find', ASK, plan=p) for i, p in enumerate(('a\nb', 'a\u2028b\u0085c', '日本 "x"', ''))]
    assert load_tasks(save_tasks(tasks, tmp_path/'t.jsonl')) == tasks


def test_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path):
    row = json.dumps(dict(task_id='a', task_type='find', prompt=ASK))
    (tmp_path/'t.jsonl').write_text(f'\n{row}\r\n\n')
    assert [t.task_id for t in load_tasks(tmp_path/'t.jsonl')] == ['a']
    (tmp_path/'t.jsonl').write_text(f'{row}\n\n{row}\n')
    with pytest.raises(InterlatError, match="line 3: task_id 'a' stands on line 1 already"): load_tasks(tmp_path/'t.jsonl')


@pytest.mark.parametrize('text, said', [
    ('', 'holds no tasks'), ('{"task_id": ', 'line 1: '), ('[1, 2]', 'line 1: '),
    ('{"task_id": "a", "task_type": "t", "prompt": [], "colour": 1}', "line 1: .*unexpected keyword argument 'colour'"),
    ('{"task_id": "a", "task_type": "t", "prompt": []}', 'line 1: prompt of task a is empty'),
    ('{"task_id": "a", "task_type": "t", "prompt": ["hi"]}', 'line 1: prompt of task a, turn 0: wanted a role')])
def test_wrong_files_name_the_line(tmp_path, text, said):
    (tmp_path/'t.jsonl').write_text(text)
    with pytest.raises(InterlatError, match=said): load_tasks(tmp_path/'t.jsonl')
    with pytest.raises(InterlatError, match='task file not found'): load_tasks(tmp_path/'none.jsonl')


def eto(**kw):
    "A row of ETO-style data."
    turns = [('human', 'Your task is to: put a mug in shelf.'), ('gpt', 'look'), ('human', 'nothing'), ('gpt', 'go to shelf 1')]
    return {'id': 'a', 'conversations': [{'from': f, 'value': v} for f, v in turns], **kw}


def loaded(tmp_path, *rows, **kw):
    (tmp_path/'c.json').write_text(json.dumps(rows))
    return load_conversations(tmp_path/'c.json', **kw)


def test_conversations_become_turns_that_end_with_the_expert(tmp_path):
    row = eto()
    row['conversations'] = [{'from': 'system', 'value': 'Play.', 'loss': None}, *row['conversations'], {'from': 'user', 'value': 'You win.'}]
    task, = loaded(tmp_path, row)
    assert [t['role'] for t in task.turns] == ['system', *['user', 'assistant']*2] and task.turns[-1]['content'] == 'go to shelf 1'
    assert task.prompt == task.turns[:2] and (task.plan, task.source) == ('', '')


def test_the_senders_prompt_ends_where_the_task_stands(tmp_path):
    "In ETO's data the task comes after an instruction and an OK; without ALFWorld's words the first human turn is the prompt."
    late, none = eto(), eto(id='b')
    late['conversations'] = [{'from': 'human', 'value': 'Interact.'}, {'from': 'gpt', 'value': 'OK'}, *late['conversations']]
    none['conversations'] = [{'from': t['from'], 'value': t['value'].replace('Your task is to', 'Do')} for t in late['conversations']]
    first, second = loaded(tmp_path, late, none)
    assert [t['content'] for t in first.prompt] == ['Interact.', 'OK', 'Your task is to: put a mug in shelf.']
    assert [t['content'] for t in second.prompt] == ['Interact.']


@pytest.mark.parametrize('row, id, kind', [
    (eto(id=3), '3', 'chat'), (eto(id=None, task_id='t'), 't', 'chat'), ({'conversations': eto()['conversations']}, '1', 'chat'),
    (eto(game_file='json_2.1.1/train/pick_two_obj_and_place-Mug-None-Shelf-20/trial_1/game.tw-pddl'), 'a', 'pick_two_obj_and_place'),
    (eto(id='', game_file='look_at_obj_in_light-Book-None-DeskLamp-301'), 'look_at_obj_in_light-Book-None-DeskLamp-301', 'look_at_obj_in_light'),
    (eto(game_file='elsewhere/my-game/game.tw-pddl'), 'a', 'chat'), (eto(task_type='mine', game_file='look_at_obj_in_light-Book-None-DeskLamp-301'), 'a', 'mine')])
def test_ids_and_types_of_conversations(tmp_path, row, id, kind):
    if row.get('id', 0) is None: del row['id']
    task, = loaded(tmp_path, row, task_type='chat')
    assert (task.task_id, task.task_type, task.source) == (id, kind, row.get('game_file', ''))


def test_conversations_round_trip(tmp_path):
    rows = [eto(), eto(id='b', game_file='train/pick_two_obj_and_place-Mug-None-Shelf-20/trial_1/game.tw-pddl'), eto(id='é\u2028')]
    tasks = loaded(tmp_path, *rows)
    for name in ('back.json', 'back.jsonl'): assert load_conversations(save_conversations(tasks, tmp_path/name)) == tasks
    assert len((tmp_path/'back.jsonl').read_text(encoding='utf-8').split('\n')) == 4
    assert json.loads((tmp_path/'back.json').read_text(encoding='utf-8'))[0]['conversations'] == eto()['conversations']


def spoiled(**fields):
    "A row whose third turn has other fields."
    row = eto()
    row['conversations'][2] = fields
    return row


@pytest.mark.parametrize('rows, said', [
    ([], 'holds no conversations'), (['hi'], "row 1 is 'hi'; wanted an object"), ([{'id': 'a'}], 'row 1: `conversations` is None; wanted a list'),
    ([eto(), eto()], "row 2: id 'a' stands in row 1 already"), ([eto(conversations=[])], 'row 1: `conversations` has no turn of gpt'),
    ([eto(conversations=eto()['conversations'][:1])], 'has no turn of gpt'), ([eto(), spoiled(value='x')], 'row 2, turn 2: `from` is None; wanted one of system, human'),
    ([spoiled(**{'from': 'robot', 'value': 'x'})], "row 1, turn 2: `from` is 'robot'"), ([spoiled(**{'from': 'human', 'value': 5})], 'row 1, turn 2: `value` is 5; wanted a text'),
    ([spoiled(**{'from': 'gpt', 'value': 'x'})], "turn 2: `from` is 'gpt' where the user should speak"),
    ([spoiled(**{'from': 'system', 'value': 'x'})], "turn 2: `from` is 'system' where the user should speak"),
    ([eto(id=[1])], r'row 1: `id` is \[1\]; wanted a text'), ([eto(game_file=3)], 'row 1: `game_file` is 3; wanted a text')])
def test_wrong_conversations_name_row_turn_and_field(tmp_path, rows, said):
    with pytest.raises(InterlatError, match=said): loaded(tmp_path, *rows)


def test_conversation_files_that_are_not_json(tmp_path):
    path = tmp_path/'c.jsonl'
    path.write_text(json.dumps(eto()) + '\n{"id": ')
    with pytest.raises(InterlatError, match='line 2 is not JSON'): load_conversations(path)
    path.write_text('[{')
    with pytest.raises(InterlatError, match='c.jsonl is not JSON'): load_conversations(path)


def test_conversations_are_one_file(tmp_path):
    "Neither a folder, of which nobody says the split, nor a data set on the hub."
    (tmp_path/'eto').mkdir()
    (tmp_path/'eto'/'train.json').write_text(json.dumps([eto()]))
    for path in (tmp_path/'none.json', tmp_path/'eto', 'someone/eto'):
        with pytest.raises(InterlatError, match=f'^conversation file not found: {path}; wanted one JSON, JSONL or Parquet file: of a folder, a split or a data set on the hub, the file that holds the rows$'): load_conversations(path)


def test_conversations_in_parquet(tmp_path):
    "Where a row has no value, Parquet has a null."
    pq, pa = pytest.importorskip('pyarrow.parquet'), pytest.importorskip('pyarrow')
    rows = [eto(), eto(id=None, game_file='look_at_obj_in_light-Book-None-DeskLamp-301', task_type=None), eto(id=None)]
    pq.write_table(pa.Table.from_pylist([dict(r, game_file=r.get('game_file')) for r in rows]), tmp_path/'c.parquet')
    tasks = load_conversations(tmp_path/'c.parquet')
    assert [(t.task_id, t.task_type, t.source) for t in tasks] == [('a', 'conversation', ''), (rows[1]['game_file'], 'look_at_obj_in_light', rows[1]['game_file']), ('3', 'conversation', '')]
    assert tasks[0].turns == loaded(tmp_path, eto())[0].turns
