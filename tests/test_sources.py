"Where tasks come from, by the first word of a command: the flags of each kind, files of them, names and numbers that are wrong."
import json, re

import pytest
from test_cli import call

from interlat.commands import cli
from interlat.core.arguments import integers, parse, several
from interlat.core.basics import InterlatError
from interlat.core.tasks import load_tasks, save_tasks
from interlat.commands.evaluate import EVALUATED, AnswerArguments, EvalArguments, PlayArguments
from interlat.maths.mathdata import save_problems
from interlat.maths.generate import generate_problems
from interlat.commands.sources import *

OWN = dict(alfworld='--num_games', math='--problem_seed', custom='--answer_column') # a flag of each kind alone


def given(tmp_path, text, kind='math', name='a.yaml'):
    "Arguments of an evaluation from a file."
    (tmp_path/name).write_text(text)
    return parse(EvalArguments, [kind, str(tmp_path/name)], '', EVALUATED)


@pytest.mark.parametrize('kind', OWN)
@pytest.mark.parametrize('main', [cli.main_collect, cli.main_train, cli.main_compress, cli.main_eval])
def test_help_shows_the_flags_of_the_kind(monkeypatch, capsys, main, kind):
    status, out, err = call(main, monkeypatch, capsys, kind, '--help')
    assert status == 0 and not err and OWN[kind] in out and not any(flag in out for k, flag in OWN.items() if k != kind)
    assert '--limit' in out and '--data_path' in out and bool(re.search(r'--mode\b', out)) == (kind == 'math')
    assert main is not cli.main_eval or ('--n_samples' in out) == (kind != 'alfworld') and ('--max_steps' in out) == (kind == 'alfworld')
    if kind == 'alfworld': assert call(main, monkeypatch, capsys, '--help')[1] == out, 'the first kind, where none is named'


def test_each_kind_brings_its_own():
    for kind, types in dict(alfworld=(GameData, PlayArguments), math=(MathData, AnswerArguments), custom=(CustomData, AnswerArguments)).items():
        assert tuple(map(type, parse(EvalArguments, [kind, '--model_name_or_path', 'm', '--limit', '3'], '', EVALUATED))) == (EvalArguments, *types)
    *_, data, how = parse(EvalArguments, 'math --model_name_or_path m --mode valid --subjects algebra,geometry precalculus --levels 4 5 --limit 3 --n_samples 2 --private false'.split(), '', EVALUATED)
    assert (data.split, several(data.subjects), integers(data.levels), data.num_problems, data.private, how.n_samples) == ('valid', ['algebra', 'geometry', 'precalculus'], [4, 5], 3, False, 2)


def test_a_file_is_read_as_the_command_line_is(tmp_path):
    args, data, how = given(tmp_path, 'model_name_or_path: m\nmode: valid\nlimit: "3"\nsubjects: algebra\nlevels: 4\ntemperature: 1e-1\nn_samples: 2\nseeds: 0\nvariants: latent,text\nprivate: "no"\ntime_limit: 3\n')
    assert (data.split, data.num_problems, data.private, args.temperature, how.n_samples, how.time_limit) == ('valid', 3, False, .1, 2, 3)
    assert (several(args.variants), integers(args.seeds), several(data.subjects), integers(data.levels)) == (['latent', 'text'], [0], ['algebra'], [4])
    assert [t.level for t in data.tasks()] == ['4']*3
    assert given(tmp_path, json.dumps(dict(model_name_or_path='m', num_rows=4, answer_column='a')), 'custom', 'a.json')[1].answer_column == 'a'
    assert given(tmp_path, 'model_name_or_path: m\nsplit:\n')[1].split is None


@pytest.mark.parametrize('text,match', [('num_problems: many', "a.yaml: num_problems is 'many'; wanted an integer"), ('n_samples: 1.5', 'n_samples is 1.5; wanted an integer'), ('n_samples: true', 'n_samples is True; wanted an integer'), ('n_samples: yes', "n_samples is 'yes'; wanted an integer"),
    ('temperature: hot', "temperature is 'hot'; wanted a number"), ('temperature: true', 'temperature is True; wanted a number'), ('temperature: yes', "temperature is 'yes'; wanted a number"), ('temperature: [1]', r'temperature is \[1\]; wanted a number'), ('private: maybe', "private is 'maybe'; wanted yes or no"),
    ('num_games: 3', 'num_games'), ('limit: {a: 1}', 'num_problems is .*; wanted an integer'), (': :', 'a.yaml')])
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, match):
    with pytest.raises(InterlatError, match=match): given(tmp_path, f'model_name_or_path: m\n{text}\n')


@pytest.mark.parametrize('argv,match', [([], 'the first word must be alfworld or math or custom, found nothing'), (['Math'], 'found Math'), (['--model_name_or_path', 'm', 'math'], 'found --model_name_or_path'), (['a.yaml'], 'found a.yaml'),
    (['math'], 'required: --model_name_or_path'), (['math', 'nowhere.yaml'], 'argument file not found'), (['math', '--model_name_or_path', 'm', '--limit', 'x'], "--limit: invalid int value: 'x'"),
    (['math', '--model_name_or_path', 'm', '--num_games', '3'], 'unknown arguments: --num_games 3'), (['math', 'math', '--model_name_or_path', 'm'], 'unknown arguments: math'), (['alfworld', '--model_name_or_path', 'm', '--n_samples', '2'], 'unknown arguments: --n_samples')])
def test_a_wrong_command_line_is_one_line(monkeypatch, capsys, argv, match):
    status, out, err = call(cli.main_eval, monkeypatch, capsys, *argv)
    assert status == 2 and not out and len(err.splitlines()) == 1 and match in err


@pytest.mark.parametrize('make,match', [(lambda: MathData(num_problems=0), 'num_problems must be 1 or more, found 0'), (lambda: MathData(subjects=['logic']), "unknown subject 'logic'"), (lambda: MathData(levels=['9']), 'unknown level 9'),
    (lambda: MathData(levels=['high']), "levels must be non-negative integers, found 'high'"), (lambda: MathData(split='dev'), "unknown split 'dev'"), (lambda: MathData(data_path='nowhere'), 'data set not found: nowhere'),
    (lambda: MathData(num_problems=1, sender_prompt='Plan.'), 'needs {problem}'), (lambda: GameData('nowhere', num_games=-1), 'num_games must be 1 or more'), (lambda: GameData('x.jsonl'), 'conversation file not found'),
    (lambda: CustomData(), 'data_path is missing'), (lambda: CustomData(data_path='x.jsonl'), 'data set not found'), (lambda: CustomData(data_path='x', num_rows=0), 'num_rows must be 1 or more'), (lambda: CustomData(data_path='x', answer_column=''), 'the column of the answer')])
def test_bad_data_is_named(make, match):
    with pytest.raises(InterlatError, match=match): make().tasks()


def test_a_table_with_half_a_character_is_refused(tmp_path):
    (tmp_path/'t.jsonl').write_text('{"prompt": "x", "answer": 1}\n{"prompt": "x\\ud800", "answer": 1}\n')
    with pytest.raises(InterlatError, match='of task 1, turn 0: the content holds'): CustomData(data_path=str(tmp_path/'t.jsonl')).tasks()


def test_private_and_prompts():
    def first(**kw): return MathData(num_problems=1, **kw).tasks()[0]
    plain, told, asked = first(), first(private=False), first(actor_prompt='{problem} Go.')
    known = MathData(num_problems=1).problems('train')[0].known
    assert known not in plain.turns[0]['content'] and known in told.turns[0]['content'] and known in plain.prompt[0]['content'] and asked.turns[0]['content'].endswith(' Go.')
    assert MathData().sees == '' and len({MathData(sender_prompt=f'{{problem}} {i}').sees for i in range(3)}) == 3


def test_need_is_one_switch_of_every_source(tmp_path):
    "The same items and the same sender; the actor lacks what it knows, or has it in its first turn; refused where nothing is hidden."
    from interlat.games.generate import generate_games
    generate_games(tmp_path/'games', 3)
    (tmp_path/'t.jsonl').write_text('{"prompt": "Who?", "answer": "Ann", "known": "Ann was last."}\n')
    (tmp_path/'open.jsonl').write_text('{"prompt": "Who?", "answer": "Ann", "known": "Ann was last."}\n{"prompt": "How many?", "answer": 3}\n')
    (tmp_path/'eto.json').write_text('[{"id": "a", "conversations": [{"from": "human", "value": "go"}, {"from": "gpt", "value": "look"}]}]')
    made = [lambda need: GameData(str(tmp_path/'games'), need=need), lambda need: MathData(num_problems=7, need=need), lambda need: CustomData(data_path=str(tmp_path/'t.jsonl'), need=need)]
    for source in made:
        plain, hidden, told = (source(need).tasks() for need in (None, True, False))
        assert plain == hidden and [t.task_id for t in told] == [t.task_id for t in hidden]
        for a, b in zip(hidden, told):
            assert (a.need, b.need, a.prompt, a.plan, a.turns[1:]) == (True, False, b.prompt, b.plan, b.turns[1:])
            assert a.known == b.known == b.told and a.known in b.turns[0]['content'] and a.known not in a.turns[0]['content'] and a.known in a.prompt[0]['content']
            assert b.turns[0]['content'].replace(a.known, '').strip() == a.turns[0]['content']
        assert load_tasks(save_tasks(told, tmp_path/'told.jsonl')) == told
    for need in (True, False):
        for source, name in ((GameData(str(tmp_path/'games'), view='task', need=need), 'train/'), (GameData(str(tmp_path/'eto.json'), need=need), "'a'"), (CustomData(data_path=str(tmp_path/'open.jsonl'), need=need), "'1'")):
            with pytest.raises(InterlatError, match=f'task .*{name}.* has nothing to hide'): source.tasks()
    with pytest.raises(InterlatError, match='need true and private false say the opposite'): MathData(need=True, private=False).tasks()


def test_fewer_tasks_are_among_more(tmp_path):
    save_problems(generate_problems(105), tmp_path, 'train')
    more, few = ([t.task_id for t in MathData(data_path=str(tmp_path), num_problems=n).tasks()] for n in (40, 17))
    assert more[:17] == few and len(set(more)) == 40
    assert len(MathData(data_path=str(tmp_path), num_problems=999).tasks()) == 105
    only = MathData(data_path=str(tmp_path), subjects=['algebra', 'geometry'], levels=['1,2', '5']).tasks()
    assert {(t.task_type, t.level) for t in only} == {(s, n) for s in ('algebra', 'geometry') for n in '125'}


def test_overlaps_with_what_was_trained_on_are_told(tmp_path):
    problems = generate_problems(14)
    save_problems(problems, tmp_path, 'train')
    save_problems(problems[:2] + generate_problems(7, 'test'), tmp_path, 'test')
    assert MathData(data_path=str(tmp_path), split='test').overlap().startswith('2 of the 9 problems of test stand in train (14 problems): ')
    assert MathData(split='test', num_problems=3, against=str(tmp_path)).overlap().startswith('none of the 3 problems of test stands in')
    with pytest.raises(InterlatError, match='nowhere'): MathData(split='test', num_problems=3, against='nowhere').overlap()


def test_what_a_file_lacks_is_named(tmp_path):
    with pytest.raises(InterlatError, match='a.yaml lacks model_name_or_path; see'): given(tmp_path, 'n_samples: 3')
