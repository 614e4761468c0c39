"Rows from every container that they come in, each with its place; and containers that are not what they should be."
import json, sys

import pytest

from interlat.core import rows as room
from interlat.core.basics import InterlatError
from interlat.core.rows import read_rows

ROWS = [{'question': 'where?\u2028here', 'answer': 4}, {'question': '日本 "x"', 'answer': 5}, {'question': '', 'answer': 6}]


def lines(rows): return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)


def write(path, rows):
    "Rows in the form that the file's name tells."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.parquet':
        pq, pa = pytest.importorskip('pyarrow.parquet'), pytest.importorskip('pyarrow')
        pq.write_table(pa.Table.from_pylist(rows), path)
    else: path.write_text(lines(rows) if path.suffix == '.jsonl' else json.dumps(rows, indent=1), encoding='utf-8')
    return path


def fields(found): return [row for _, row in found]


@pytest.mark.parametrize('name, unit', [('a.json', 'row'), ('a.jsonl', 'line'), ('a.parquet', 'row')])
def test_files(tmp_path, name, unit):
    path = write(tmp_path/name, ROWS)
    assert read_rows(path) == read_rows(str(path)) == [(f'{path}, {unit} {n}', row) for n, row in enumerate(ROWS, 1)]
    with pytest.raises(InterlatError, match=f"{name} is one file without splits, found split='test'; wanted split=''"): read_rows(path, 'test')


def test_blank_lines_count_and_other_systems_files_are_read(tmp_path):
    (tmp_path/'a.jsonl').write_bytes(b'\xef\xbb\xbf\r\n{"a": 1}\r\n\r\n  {"a": 2}')
    assert read_rows(tmp_path/'a.jsonl') == [(f'{tmp_path}/a.jsonl, line 2', {'a': 1}), (f'{tmp_path}/a.jsonl, line 4', {'a': 2})]
    (tmp_path/'b.txt').write_text(' [{"a": 1}]')
    assert fields(read_rows(tmp_path/'b.txt')) == [{'a': 1}], 'the content tells a list, not the name'


@pytest.mark.parametrize('text', ['', '\n \n', '[]'])
def test_no_rows_are_no_error_here(tmp_path, text):
    (tmp_path/'a.json').write_text(text)
    assert read_rows(tmp_path/'a.json') == []


@pytest.mark.parametrize('content, said', [
    (b'{"a": 1}\n{"a"', 'a.json, line 2 is not JSON: '), (b'[{"a": 1}, ', 'a.json is not JSON: '), (b'[1]', 'a.json, row 1 is 1; wanted an object'),
    (b'{"a": 1}\n\nnull', 'a.json, line 3 is None; wanted an object'), (b'{"a": "\xff"}', 'a.json is not text in UTF-8: .*; wanted JSON, or a file whose name ends in .parquet$'),
    (b'{"a": ' + b'9'*5000 + b'}', 'a.json, line 1 is not JSON: ')])
def test_broken_files(tmp_path, content, said):
    (tmp_path/'a.json').write_bytes(content)
    with pytest.raises(InterlatError, match=said): read_rows(tmp_path/'a.json')


def test_broken_parquet(tmp_path):
    path = write(tmp_path/'a.parquet', ROWS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InterlatError, match='cannot read .*a.parquet as Parquet: ') as e: read_rows(path)
    assert '\n' not in str(e.value)


def test_folders_are_read_by_split(tmp_path):
    for name, part in (('train.jsonl', ROWS[:2]), ('test.json', ROWS[2:]), ('notes.json', [{'b': 1}])): write(tmp_path/name, part)
    assert fields(read_rows(tmp_path, 'train')) == ROWS[:2] and fields(read_rows(tmp_path, 'test')) == ROWS[2:] and fields(read_rows(tmp_path, 'notes')) == [{'b': 1}]
    for split in ('', 'dev'):
        with pytest.raises(InterlatError, match=f'has the splits test, train; choose one with split, found {split!r}'): read_rows(tmp_path, split)
    (tmp_path/'train.jsonl').unlink()
    assert fields(read_rows(tmp_path)) == ROWS[2:], 'one split needs no choice'


def test_a_folder_as_on_the_hub(tmp_path):
    "Configurations in folders, splits in numbered parts, and what git and the hub's cache keep beside them."
    for name, part in (('algebra/train-00000-of-00001.parquet', ROWS[:1]), ('geometry/train-00000-of-00002.parquet', ROWS[1:2]),
                       ('geometry/train-00001-of-00002.parquet', ROWS[2:]), ('geometry/test-00000-of-00001.parquet', ROWS)): write(tmp_path/name, part)
    write(tmp_path/'.cache'/'train.json', [{'b': 1}])
    assert fields(read_rows(tmp_path, 'train')) == ROWS and read_rows(tmp_path, 'train')[0][0] == f'{tmp_path}/algebra/train-00000-of-00001.parquet, row 1'


def test_a_folder_of_parts(tmp_path):
    write(tmp_path/'b'/'part-1.parquet', ROWS[1:]); write(tmp_path/'a=1'/'part-0.parquet', ROWS[:1])
    assert fields(read_rows(tmp_path)) == ROWS, 'nothing is made of the names of folders'
    with pytest.raises(InterlatError, match="no files of split 'test'; its files are part-0.parquet, part-1.parquet"): read_rows(tmp_path, 'test')


@pytest.mark.parametrize('name, other, split', [('train.json', 'train.jsonl', 'train'), ('train.jsonl', 'train.parquet', ''), ('train-00000-of-00001.parquet', 'train.parquet', 'train'),
                                                ('data/test-00000-of-00001.json', 'data/test.jsonl', 'test'), ('mine.json', 'mine.jsonl', 'mine'), ('mine.json', 'mine.jsonl', '')])
def test_rows_that_are_there_twice_are_refused(tmp_path, name, other, split):
    first, second = (write(tmp_path/n, ROWS) for n in (name, other))
    with pytest.raises(InterlatError, match=f'{first.parent} holds both {first.name} and {second.name}, the same rows twice; wanted one of them: ') as e: read_rows(tmp_path, split)
    assert '\n' not in str(e.value) and fields(read_rows(first)) == ROWS
    second.unlink()
    assert fields(read_rows(tmp_path, split)) == ROWS


def test_one_kind_of_file_a_folder(tmp_path):
    "Configurations may be of several kinds, and another split's files are its own affair."
    for name, part in (('a/train.json', ROWS[:1]), ('b/train.jsonl', ROWS[1:]), ('a/test.json', ROWS), ('a/test.jsonl', ROWS)): write(tmp_path/name, part)
    assert fields(read_rows(tmp_path, 'train')) == ROWS
    with pytest.raises(InterlatError, match='a holds both test.json and test.jsonl'): read_rows(tmp_path, 'test')


@pytest.mark.parametrize('name', ['MATH.tar.xz', 'MATH.tar', 'data.jsonl.gz', 'DATA.ZIP', 'x.tgz'])
def test_archives_have_to_be_unpacked(tmp_path, name):
    (tmp_path/name).write_text('{"a": 1}')
    with pytest.raises(InterlatError, match=f'{name} is packed; unpack it, and give the file or folder that comes out$'): read_rows(tmp_path/name)


def test_nothing_there(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'README.md').write_text('x')
    with pytest.raises(InterlatError, match='holds no rows: neither files of .json, .jsonl, .parquet nor'): read_rows(tmp_path/'a')
    for name in ('none.json', 'my/none.parquet', 'no/such/folder', 'nothing'):
        with pytest.raises(InterlatError, match=f'data set not found: {name}; neither a file, a folder nor a hub id'): read_rows(name)


def test_saved_data_sets(tmp_path):
    datasets = pytest.importorskip('datasets')
    table = lambda rows: datasets.Dataset.from_list(rows)
    table(ROWS).save_to_disk(tmp_path/'one')
    datasets.DatasetDict(train=table(ROWS[:2]), test=table(ROWS[2:])).save_to_disk(tmp_path/'two')
    assert read_rows(tmp_path/'one') == [(f'{tmp_path}/one, row {n}', row) for n, row in enumerate(ROWS, 1)]
    assert fields(read_rows(tmp_path/'two', 'test')) == ROWS[2:]
    with pytest.raises(InterlatError, match="one is one data set without splits, found split='test'"): read_rows(tmp_path/'one', 'test')
    with pytest.raises(InterlatError, match="two has the splits train, test; choose one with split, found ''"): read_rows(tmp_path/'two')
    (tmp_path/'one'/'state.json').write_text('{')
    with pytest.raises(InterlatError, match='cannot load the data set .*one: '): read_rows(tmp_path/'one')


def test_the_hub(monkeypatch):
    "All configurations, in their order, the split of each."
    datasets = pytest.importorskip('datasets')
    table = lambda *rows: datasets.Dataset.from_list(list(rows))
    hub = {'someone/one': {'default': datasets.DatasetDict(test=table(*ROWS))},
           'someone/two': {c: datasets.DatasetDict(train=table({'c': c}), test=table({'c': c, 'n': 1}, {'c': c, 'n': 2})) for c in ('algebra', 'geometry')}}
    monkeypatch.setattr(datasets, 'get_dataset_config_names', lambda name: list(hub[name]))
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, config: hub[name][config])
    assert read_rows('someone/one')[2] == ('someone/one, row 3', ROWS[2])
    assert read_rows('someone/two', 'test') == [(f'someone/two, {c}, row {n}', {'c': c, 'n': n}) for c in ('algebra', 'geometry') for n in (1, 2)]
    with pytest.raises(InterlatError, match="someone/two, algebra has the splits train, test; choose one with split, found ''"): read_rows('someone/two')


def test_no_hub_and_no_library(monkeypatch):
    pytest.importorskip('datasets')
    with pytest.raises(InterlatError, match='cannot load the data set nobody/nothing: ') as e: read_rows('nobody/nothing')
    assert '\n' not in str(e.value)
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(InterlatError, match=r"reading nobody/nothing needs datasets \(.*\): pip install 'interlat\[data\]'"): read_rows('nobody/nothing')


def test_the_room_is_light():
    assert not {'datasets', 'pyarrow', 'torch'} & set(vars(room))
