"MATH in each of its forms gives the same problems; what does not fit is named by file or row, and field; and the official problems, where they are."
import json, tarfile
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from interlat.maths import mathdata
from interlat.core.basics import InterlatError
from interlat.maths.mathdata import SUBJECTS, overlap_sentence, overlaps, read_problems, save_problems
from interlat.maths.problems import Problem

ARCHIVE = Path(__file__).resolve().parents[2]/'shared'/'data'/'MATH.tar.xz'
NAMES = list(SUBJECTS.values())


def row(n=1, **kw):
    "A row as the original has it; None leaves a field out."
    fields = dict(problem=f'What is ${n} + {n}$?', level='Level 1', type='Prealgebra', solution=rf'It is $\boxed{{{2*n}}}$.') | kw
    return {k: v for k, v in fields.items() if v is not None}


def newer(n=1, **kw):
    "A row as MATH-500 has it."
    return row(n, type=None, subject='Prealgebra', level=1, answer=str(2*n), unique_id=f'test/prealgebra/{n}.json') | kw


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows[0]) if path.stem.isdecimal() else '\n'.join(map(json.dumps, rows)))
    return path


def test_all_forms_give_the_same_problems(tmp_path, monkeypatch):
    for n in (2, 10, 9): write(tmp_path/'MATH'/'test'/'prealgebra'/f'{n}.json', row(n))
    write(tmp_path/'MATH'/'test'/'algebra'/'30.json', row(30, type='Algebra'))
    problems = read_problems(tmp_path)
    assert [p.problem_id for p in problems] == ['test/algebra/30', 'test/prealgebra/2', 'test/prealgebra/9', 'test/prealgebra/10'], 'by subject and number'
    assert problems[3] == Problem('test/prealgebra/10', 'What is $10 + 10$?', '20', r'It is $\boxed{20}$.', 'prealgebra', '1')
    rows = [newer(n) for n in (10, 2, 9)] + [newer(30, subject='Algebra', unique_id='test/algebra/30.json')]
    assert read_problems(write(tmp_path/'a.jsonl', *rows)) == problems == read_problems(tmp_path/'MATH', 'test') == read_problems(str(tmp_path))
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    table = lambda *rows: datasets.Dataset.from_list(list(rows))
    hub = {'algebra': datasets.DatasetDict(train=table(row(1, type='Algebra')), test=table(row(30, type='Algebra'))),
           'prealgebra': datasets.DatasetDict(train=table(row(1)), test=table(*map(row, (2, 9, 10))))}
    monkeypatch.setattr(datasets, 'get_dataset_config_names', lambda name: list(hub))
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, config: hub[config])
    counted = ['test/algebra/0', 'test/prealgebra/0', 'test/prealgebra/1', 'test/prealgebra/2']
    assert read_problems('someone/math') == [replace(p, problem_id=i) for p, i in zip(problems, counted)], 'rows without a place are counted'
    datasets.DatasetDict(test=table(*rows)).save_to_disk(tmp_path/'saved'); table(*rows).save_to_disk(tmp_path/'one')
    assert read_problems(tmp_path/'saved') == read_problems(tmp_path/'one', '') == problems
    with pytest.raises(InterlatError, match="one data set without splits, found split='test'; wanted split=''"): read_problems(tmp_path/'one')


def test_the_split(tmp_path):
    for split in ('train', 'test'): write(tmp_path/split/'algebra'/'0.json', row(type='Algebra'))
    assert [p.problem_id for split in ('train', 'test') for p in read_problems(tmp_path, split)] == ['train/algebra/0', 'test/algebra/0']
    for split in ('', 'dev'):
        with pytest.raises(InterlatError, match=f'has the splits test, train; choose one with split, found {split!r}'): read_problems(tmp_path, split)
    path = write(tmp_path/'rows.jsonl', row())
    assert read_problems(path, 'train')[0].problem_id == 'train/prealgebra/0' and read_problems(path, '')[0].problem_id == 'prealgebra/0'
    with pytest.raises(InterlatError, match='data set not found: '): read_problems(tmp_path/'none')


@pytest.mark.parametrize('level, kept', [('Level 1', '1'), ('Level 5', '5'), ('Level ?', ''), (3, '3'), ('3', '3'), (5.0, '5'), (float('nan'), '')])
def test_levels(tmp_path, level, kept):
    assert read_problems(write(tmp_path/'a.jsonl', row(level=level)))[0].level == kept


def test_levels_with_gaps(tmp_path):
    "Pandas makes doubles of integers where one is missing, and Parquet keeps a null for it."
    pytest.importorskip('pyarrow')
    import pandas as pd
    pd.DataFrame([newer(1, level=5), newer(2, level=None), newer(3, level=2)]).to_parquet(tmp_path/'a.parquet')
    assert [p.level for p in read_problems(tmp_path/'a.parquet')] == ['5', '', '2'] and [p.level for p in read_problems(tmp_path/'a.parquet', levels=2)] == ['2']


def test_numbers_of_files(tmp_path):
    "01.json is problem 1, which may not be there twice."
    write(tmp_path/'test'/'prealgebra'/'01.json', row(1)); write(tmp_path/'test'/'prealgebra'/'10.json', row(10))
    assert [p.problem_id for p in read_problems(tmp_path)] == ['test/prealgebra/1', 'test/prealgebra/10']
    write(tmp_path/'test'/'prealgebra'/'1.json', row(2))
    with pytest.raises(InterlatError, match="prealgebra/0?1.json: problem 'test/prealgebra/1' stands in .*prealgebra/0?1.json already"): read_problems(tmp_path)
    write(tmp_path/'test'/'algebra'/'²x.json', row(2))
    with pytest.raises(InterlatError, match='²x.json is not named by a number'): read_problems(tmp_path)


def test_an_archive_has_to_be_unpacked(tmp_path):
    (tmp_path/'MATH.tar.xz').write_bytes(b'\xfd7zXZ\x00')
    with pytest.raises(InterlatError, match='MATH.tar.xz is packed; unpack it'): read_problems(tmp_path/'MATH.tar.xz')


@pytest.mark.parametrize('solution, answer', [(r'$\boxed{1}$, no: $\boxed{\frac{1}{2}}$', r'\frac{1}{2}'), (r'\fbox{7}', '7'), (r'$\boxed 9$', '9')])
def test_the_answer_is_the_last_box(tmp_path, solution, answer):
    assert read_problems(write(tmp_path/'a.jsonl', row(solution=solution)))[0].answer == answer
    assert read_problems(write(tmp_path/'a.jsonl', newer(solution=solution, answer='3')))[0].answer == '3', 'a field of its own is believed'
    assert read_problems(write(tmp_path/'a.jsonl', newer(solution=None)))[0].solution == ''


WRONG = [(row(problem=None), "field 'problem' is missing; the fields are level, type, solution$"), (row(problem=' '), "field 'problem' is ' '; wanted a text"),
         (row(problem=7), "field 'problem' is 7; wanted a text"), (row(solution=None), "field 'solution' is missing"), (row(solution=''), "field 'solution' is ''"),
         (row(solution='It is\n2.'), r"field 'solution' has no answer in a \\boxed{}, found '…It is 2.'$"), (row(solution=r'$\boxed{}$'), "field 'solution' has no answer"),
         (row(type=None), "field 'type' is missing"), (row(type='Topology'), "field 'type' is 'Topology'; wanted one of Algebra, Counting & Probability, "),
         (row(type=None, subject=['a']), r"field 'subject' is \['a'\]; wanted a text"),
         (row(level=None), "field 'level' is missing"), *((row(level=v), f"field 'level' is {v!r}; wanted 'Level 1' to 'Level 5', 'Level \\?', or a number")
                                                        for v in ('Level 6', 0, 6, True, 2.5, 'hard', 'Level 12')),
         (newer(type='Prealgebra', answer=2), "field 'answer' is 2; wanted a text"), (newer(type='Prealgebra', answer=' '), "field 'answer' is ' '"),
         (row(known=3), "field 'known' is 3; wanted a text"), (row(plan=['a']), r"field 'plan' is \['a'\]; wanted a text"),
         (row(known='Let $a = 1$.'), r"field 'known' is 'Let \$a = 1\$\.'; wanted what the problem begins with, found 'What is"),
         (row(problem='Let it.  ', known='Let it.'), "field 'problem' is 'Let it.  '; wanted more than what is known")]

@pytest.mark.parametrize('wrong, said', WRONG)
def test_wrong_rows_and_files_are_named(tmp_path, wrong, said):
    for place, path in (('a.jsonl, line 2: ', write(tmp_path/'a.jsonl', row(), wrong)), ('test/prealgebra/7.json: ', write(tmp_path/'test'/'prealgebra'/'7.json', wrong).parents[2])):
        with pytest.raises(InterlatError, match=place + said) as e: read_problems(path)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, content, said', [
    ('prealgebra/1.json', '{"problem": ', 'prealgebra/1.json is not JSON: '), ('prealgebra/1.json', '[1]', r'prealgebra/1.json is \[1\]; wanted an object'),
    ('prealgebra/1.json', '{"problem": "\\ud8', 'prealgebra/1.json is not JSON: '), ('prealgebra/one.json', '{}', 'one.json is not named by a number'),
    ('topology/1.json', '{}', 'topology is no subject of MATH; wanted algebra, '),
    ('geometry/1.json', json.dumps(row()), 'geometry/1.json: the problem is of Prealgebra; wanted Geometry, as the folder says')])
def test_folders_that_are_not_maths(tmp_path, name, content, said):
    write(tmp_path/'test'/'algebra'/'1.json', row(type='Algebra'))
    for hidden in ('algebra/._1.json', '.git/1.json', 'README.md'): write(tmp_path/'test'/hidden, {})
    assert len(read_problems(tmp_path)) == 1, 'hidden files and what is no problem are passed over'
    (tmp_path/'test'/name).parent.mkdir(exist_ok=True)
    (tmp_path/'test'/name).write_text(content)
    with pytest.raises(InterlatError, match=said): read_problems(tmp_path)


def test_an_answer_that_was_lost_is_put_back(tmp_path, monkeypatch):
    lost = row(problem='How many are there of $X$?', solution=r'None, so $\boxed{}$.')
    monkeypatch.setitem(mathdata.LOST_ANSWERS, blake2b(b'howmanyarethereofx?', digest_size=8).hexdigest(), '0')
    problem, other = read_problems(write(tmp_path/'a.jsonl', lost, dict(lost, solution=r'\boxed{4}')))
    assert (problem.answer, problem.solution, other.answer) == ('0', r'None, so $\boxed{0}$.', '4')


def test_ids_are_unique(tmp_path):
    with pytest.raises(InterlatError, match=r"a.jsonl, line 3: problem 'test/prealgebra/1' stands in .*a.jsonl, line 1 already"): read_problems(write(tmp_path/'a.jsonl', newer(1), newer(2), newer(1)))
    assert [p.problem_id for p in read_problems(write(tmp_path/'a.jsonl', newer(1, unique_id='mine'), newer(2, unique_id='also mine')))] == ['mine', 'also mine']


@pytest.fixture
def mixed(tmp_path):
    "One problem of each subject and level, and one of level '?'."
    return write(tmp_path/'a.jsonl', *(row(10*i + n, type=name, level=f'Level {n}') for i, name in enumerate(NAMES) for n in range(1, 6)), row(99, level='Level ?'))


@pytest.mark.parametrize('kw, n', [(dict(), 36), (dict(subjects=['algebra']), 5), (dict(subjects='algebra'), 5), (dict(subjects=['Counting & Probability', 'geometry']), 10),
                                   (dict(levels=[1, 5]), 14), (dict(levels=(3,), subjects=('prealgebra',)), 1), (dict(subjects=['prealgebra']), 6), (dict(levels=range(1, 6)), 35), (dict(levels=4), 7), (dict(levels=[4.0], subjects='Geometry'), 1)])
def test_filters(mixed, kw, n):
    problems = read_problems(mixed, **kw)
    assert len(problems) == n and [p.subject for p in problems] == sorted((p.subject for p in problems), key=list(SUBJECTS).index)
    wanted = kw.get('levels', range(1, 6))
    wanted = [wanted] if isinstance(wanted, int) else wanted
    chosen = {s if s in SUBJECTS else list(SUBJECTS)[NAMES.index(s)] for s in ([kw['subjects']] if isinstance(kw.get('subjects'), str) else kw.get('subjects', SUBJECTS))}
    assert {p.subject for p in problems} == chosen and {p.level for p in problems} <= {*(str(int(n)) for n in wanted), *([] if 'levels' in kw else [''])}


@pytest.mark.parametrize('kw, said', [
    (dict(subjects=['topology']), "unknown subject 'topology'; MATH has algebra, counting_and_probability, "), (dict(subjects=['algebra', 3]), 'unknown subject 3'),
    (dict(levels=[0]), 'unknown level 0; MATH has 1, 2, 3, 4, 5'), (dict(levels=['5']), "unknown level '5'"), (dict(levels='5'), "unknown level '5'"), (dict(levels=True), 'unknown level True'), (dict(levels=[1, True]), 'unknown level True'),
    (dict(levels=7), 'unknown level 7'), (dict(levels=[2.5]), 'unknown level 2.5'), (dict(subjects=3), 'unknown subject 3'), (dict(subjects=[['algebra']]), r"unknown subject \['algebra'\]"),
    (dict(levels=[4]), 'no problems of algebra, .* at level 4; there is prealgebra 1, \\?$'), (dict(subjects=['geometry']), 'no problems of geometry at level 1, 2, 3, 4, 5; there is prealgebra'),
    (dict(subjects=[]), 'no problems of no subject at level'), (dict(levels=[]), 'at level none; there is')])
def test_filters_that_leave_nothing_or_ask_for_what_is_not(tmp_path, kw, said):
    path = write(tmp_path/'a.jsonl', row(1), row(2, level='Level ?'))
    with pytest.raises(InterlatError, match=said): read_problems(path, **kw)
    path.write_text('')
    with pytest.raises(InterlatError, match='there is nothing'): read_problems(path)


def made(n=6):
    "Problems with all that a problem may have, ids in our form, by subject and number."
    return [Problem(f'train/{s}/{3*i}', f'  What\nis ${i}$ é\u2028 ', rf'\frac{{{i}}}{{2}}', rf'\boxed{{{i}}}' if i % 2 else '', s, str(i) if i else '', 'Plan. ' if i % 3 else '', 'Let $k = 2$.' if i % 4 else '')
            for s in ('algebra', 'precalculus') for i in range(n)]


def test_saved_problems_come_back(tmp_path):
    problems = made()
    assert read_problems(save_problems(problems[::-1], tmp_path/'new'/'data', 'train'), 'train') == problems
    assert sorted(p.name for p in tmp_path.rglob('*') if p.is_dir()) == ['algebra', 'data', 'new', 'precalculus', 'train']
    row = json.loads((tmp_path/'new'/'data'/'train'/'algebra'/'3.json').read_text())
    assert row == dict(problem=problems[1].full, level='Level 1', type='Algebra', solution=r'\boxed{1}', answer=r'\frac{1}{2}', known='Let $k = 2$.', plan='Plan. ')


def test_ids_of_other_forms_become_numbers_that_are_free(tmp_path):
    ids = ['x', 'train/algebra/0', 'train/algebra/01', 'test/algebra/7', 'train/geometry/4', 'train/algebra/2']
    problems = [Problem(i, f'Question {n}', '1', subject='algebra') for n, i in enumerate(ids)]
    back = read_problems(save_problems(problems, tmp_path, 'train'), 'train')
    assert {p.problem_id: p.text for p in back} == {f'train/algebra/{n}': f'Question {q}' for n, q in ((1, 0), (0, 1), (3, 2), (4, 3), (5, 4), (2, 5))}


@pytest.mark.parametrize('problems, split, said', [
    (made()[:1]*2, 'train', "problem 'train/algebra/0' is there more than once"), ([], 'train', 'no problems to save'), (made(), '', "named like a folder, e.g. 'train', found ''"),
    (made(), '../x', "found '../x'"), (made(), '.x', "found '.x'"), ([*made(), Problem('x', 'q', '1')], 'train', "problem 'x' is of no subject; wanted one of algebra"),
    ([Problem('x', 'q', '1', subject='algebra', level='6')], 'train', "problem 'x' has level '6'; wanted 1 to 5, or none")])
def test_what_cannot_be_saved_leaves_nothing(tmp_path, problems, split, said):
    with pytest.raises(InterlatError, match=said): save_problems(problems, tmp_path/'new', split)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == []


def test_a_split_is_not_written_over(tmp_path):
    save_problems(made(), tmp_path, 'train')
    with pytest.raises(InterlatError, match='train exists; choose another folder, or remove it'): save_problems(made(1), tmp_path, 'train')
    assert len(read_problems(save_problems(made(1), tmp_path, 'test'), 'test')) == 2 and read_problems(tmp_path, 'train') == made()


def test_overlaps():
    p = lambda i, text, **kw: Problem(i, text, '1', **kw)
    a = [p('a0', 'What is $x + 1$?'), p('a1', 'Other'), p('a2', 'Twice')]
    b = [p('b0', 'twice '), p('b1', 'x', known='What\nis $'), p('b2', 'WHAT is x+1 ?'), p('b3', '$x + 1$?', known='What is'), p('b4', 'Twice'), p('b5', 'Others')]
    assert overlaps(a, b) == [('a0', 'b2'), ('a0', 'b3'), ('a2', 'b0'), ('a2', 'b4')] and overlaps(a[1:2], b) == []
    assert overlap_sentence(a, b, 'test', 'train') == '2 of the 3 problems of test stand in train (6 problems): a0 = b2, a0 = b3, a2 = b0, a2 = b4'
    assert overlap_sentence(a[1:2], b*200, 'test', 'train') == 'none of the 1 problems of test stands in train (1,200 problems)'
    assert overlap_sentence(a[:1]*1200, b[2:3]*6, 'x', 'y').startswith('1 of the 1,200 problems of x stands in y (6 problems): a0 = b2, a0 = b2, a0 = b2, a0 = b2, a0 = b2, …')


@pytest.mark.skipif(not ARCHIVE.exists(), reason='no MATH problems here')
def test_the_official_problems(tmp_path):
    with tarfile.open(ARCHIVE) as f: f.extractall(tmp_path, filter='data')
    train, test = read_problems(tmp_path, 'train'), read_problems(tmp_path/'MATH')
    assert (len(train), len(test)) == (7500, 998)
    assert Counter(p.subject for p in test) == dict(algebra=237, counting_and_probability=95, geometry=95, intermediate_algebra=181, number_theory=107, prealgebra=174, precalculus=109)
    assert Counter(p.level for p in train) == {'': 2, '1': 564, '2': 1348, '3': 1592, '4': 1690, '5': 2304}
    assert {p.problem_id: (p.answer, p.solution.count(r'\boxed{0}')) for p in train if p.problem_id in ('train/number_theory/7115', 'train/number_theory/7117')} == {f'train/number_theory/{n}': ('0', 1) for n in (7115, 7117)}
    assert overlap_sentence(test, train, 'test', 'train') == 'none of the 998 problems of test stands in train (7,500 problems)'
    assert len([1 for x, y in overlaps(train, train) if x < y]) == 3 and len(overlaps(test, test)) == 998
    assert read_problems(save_problems(test, tmp_path/'saved', 'test')) == test
