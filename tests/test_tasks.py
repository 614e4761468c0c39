"Tasks as JSON lines: odd characters, and files that are not what they should be."
import json

import pytest

from interlat.core import InterlatError
from interlat.tasks import Task, load_tasks, save_tasks

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
