"Message data sets of others: read in any of their forms, refused with row and column, and given back unchanged."
import sys
from pathlib import Path

import pytest, torch
pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')
datasets = pytest.importorskip('datasets')

from interlat.messages import exchange
from interlat.core.basics import InterlatError
from interlat.messages.exchange import export_messages, import_messages, read_messages
from interlat.messages.message import LatentMessage, MessageStore

from test_message import python

NESTED = pa.list_(pa.list_(pa.float64()))


def rows(n=5, width=4, first=0, seed=0):
    "Columns as the original code writes them: messages of 3, 4, … states in doubles that hold bfloat16 numbers."
    g = torch.Generator().manual_seed(seed)
    hs = [torch.randn(3+i, width, generator=g).bfloat16().double().tolist() for i in range(n)]
    return dict(task_id=[f'game-{first+i}' for i in range(n)], hidden_state=hs, plan=[f'plan {first+i}.' for i in range(n)])


def parquet(path, columns, types=None, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, types and pa.schema(types)), path, **kw)
    return path


def same(store, columns):
    "Does the store hold the columns' messages, exactly and in order?"
    return store.task_ids() == columns['task_id'] and all(m.h.double().tolist() == h and m.text == plan
                                                          for m, h, plan in zip(store, columns['hidden_state'], columns['plan']))


# ---- the forms that they come in

def with_batch_axis(c): return dict(c, hidden_state=[[h] for h in c['hidden_state']])
def arrow(c, numbers): return dict(c, hidden_state=pa.array(c['hidden_state'], numbers))

FORMS = dict(
    doubles=lambda c: c, batch_axis=with_batch_axis,
    floats=lambda c: arrow(c, pa.list_(pa.list_(pa.float32()))),
    large_lists=lambda c: arrow(c, pa.large_list(pa.large_list(pa.float64()))), fixed=lambda c: arrow(c, pa.list_(pa.list_(pa.float64(), 4))))

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_forms_of_parquet(tmp_path, form, dtype):
    c = rows()
    store = import_messages(parquet(tmp_path/'a.parquet', FORMS[form](c)), tmp_path/'store', 'theirs', dtype=dtype, batch_size=2)
    assert same(store, c) and store.sender == 'theirs' and store.layer == -1 and len(list(store.path.iterdir())) == 3
    assert {m.h.dtype for m in store} == {getattr(torch, dtype)} and {i for m in store for i in m.token_ids} == {-1}


def test_pandas_writes_the_same(tmp_path):
    import pandas as pd
    c = rows()
    pd.DataFrame(dict(c, extra=range(5))).to_parquet(tmp_path/'a.parquet')
    assert same(import_messages(tmp_path/'a.parquet', tmp_path/'store', 's', layer=7), c) and MessageStore(tmp_path/'store').layer == 7


def test_a_folder_of_parquet_files(tmp_path):
    a, b = rows(3), rows(2, first=3, seed=1)
    parquet(tmp_path/'data'/'part-0.parquet', a); parquet(tmp_path/'data'/'sub'/'part-0.parquet', b)
    assert same(import_messages(tmp_path/'data', tmp_path/'store', 's'), {k: a[k]+b[k] for k in a})


@pytest.mark.parametrize('array2d', (False, True))
def test_a_saved_data_set(tmp_path, array2d):
    c = rows()
    kinds = dict(task_id=datasets.Value('string'), hidden_state=datasets.Array2D((None, 4), 'float64'), plan=datasets.Value('string'))
    datasets.Dataset.from_dict(c, features=datasets.Features(kinds) if array2d else None).save_to_disk(tmp_path/'set')
    assert same(import_messages(tmp_path/'set', tmp_path/'store', 's'), c)
    with pytest.raises(InterlatError, match="one data set without splits, found split='test'"): import_messages(tmp_path/'set', tmp_path/'x', 's', split='test')


def test_splits(tmp_path):
    train, test = rows(3), rows(2, first=3)
    datasets.DatasetDict({k: datasets.Dataset.from_dict(c) for k, c in dict(train=train, test=test).items()}).save_to_disk(tmp_path/'set')
    assert same(import_messages(tmp_path/'set', tmp_path/'store', 's', split='test'), test)
    for split in (None, 'dev'):
        with pytest.raises(InterlatError, match=f'has the splits train, test; choose one with split, found {split!r}'): import_messages(tmp_path/'set', tmp_path/'x', 's', split=split)


def test_the_hub(tmp_path, monkeypatch):
    c, asked = rows(), []
    def load(name, streaming):
        asked.append((name, streaming))
        return datasets.IterableDatasetDict(train=datasets.load_dataset.real('parquet', data_files=str(parquet(tmp_path/'a.parquet', c)), split='train', streaming=True))
    load.real = datasets.load_dataset
    with pytest.raises(InterlatError, match='cannot load the data set nobody/messages: '): import_messages('nobody/messages', tmp_path/'x', 's')
    monkeypatch.setattr(datasets, 'load_dataset', load)
    assert same(import_messages('nobody/messages', tmp_path/'store', 's'), c) and asked == [('nobody/messages', True)]


def test_token_ids_and_their_absence(tmp_path):
    c = rows(2)
    parquet(tmp_path/'a.parquet', dict(c, token_ids=[[5, 6, 2], None]))
    assert [m.token_ids for m in read_messages(tmp_path/'a.parquet', 's')] == [[5, 6, 2], [-1]*4]


# ---- refusals, by row and column

def broken(column, row, value):
    c = rows(12)
    c[column][row] = value
    return c

@pytest.mark.parametrize('columns, error', (
    (broken('hidden_state', 9, [[1., 2.], [3.]]), r"row 9 \(task 'game-9'\): hidden_state must have rows of one width, found 2, 1"),
    (broken('hidden_state', 9, [[], [1.]*4]), r"row 9 \(task 'game-9'\): hidden_state must have rows of one width, found 0, 4"),
    (broken('hidden_state', 1, [None, [1.]*4]), r"row 1 \(task 'game-1'\): hidden_state must have rows of one width, found None, 4"),
    (broken('hidden_state', 0, [[float('nan')]*4]), r"row 0 \(task 'game-0'\): hidden_state holds missing, NaN or infinite values \(as float32\)"),
    (broken('hidden_state', 0, [[1e300]*4]), 'row 0 .*infinite values'),
    (broken('hidden_state', 0, [[None]*4]), 'row 0 .*missing'),
    (broken('hidden_state', 11, [[1.]*5]), r"row 11 \(task 'game-11'\): hidden_state has width 5, the rows before it 4"),
    (dict(rows(2), hidden_state=[[1., 2.], [3.]]), r"row 0 \(task 'game-0'\): hidden_state must be of shape \(L, D\) or \(1, L, D\), found one axis of 2"),
    (dict(rows(1), hidden_state=[[[[1.]], [[2.]]]]), 'row 0 .*found 2 along the first of three axes'),
    (dict(rows(1), hidden_state=[[[[[1.]]]]]), 'row 0 .*must hold numbers, found list'),
    (dict(rows(2), hidden_state=['x', 'y']), 'row 0 .*must be nested lists of numbers, found string'),
    (dict(rows(1), hidden_state=[[['x']]]), 'row 0 .*must hold numbers, found string'),
    (broken('plan', 3, None), r"row 3 \(task 'game-3'\): plan must be a non-empty string, found None"),
    (broken('task_id', 3, ''), "row 3: task_id must be a non-empty string, found ''"),
    (dict(rows(2), task_id=[7, 8]), 'row 0: task_id must be a non-empty string, found 7'),
    (broken('task_id', 11, 'game-2'), "row 11: task_id 'game-2' is there a second time"),
    (dict(rows(1), token_ids=[[1, 2]]), 'row 0 .*: token_ids must have one id for each of the 3 states, found 2'),
    (dict(rows(1), token_ids=[[1, 2, -2]]), 'row 0 .*: token_ids must be a list of token ids'),
    (dict(rows(1), token_ids=['1 2 3']), 'row 0 .*: token_ids must be a list of token ids'),
    (dict(rows(1), layer=pa.array([None], pa.int32())), 'row 0 .*: layer must be an integer, found None'),
    (dict(rows(1), layer=['last']), "row 0 .*: layer must be an integer, found 'last'"),
    (dict(a=[1], task_id=['x']), 'a.parquet has no column hidden_state, plan; its columns are a, task_id'),
))
def test_what_is_refused(tmp_path, columns, error):
    with pytest.raises(InterlatError, match=error) as e: import_messages(parquet(tmp_path/'a.parquet', columns), tmp_path/'store', 's')
    assert '\n' not in str(e.value) and str(e.value).startswith('a.parquet')


@pytest.mark.parametrize('nothing', (None, [], [[]], [None]))
def test_rows_without_states_are_left_out_and_told(tmp_path, nothing):
    c = rows(12)
    for i in (0, 9): c['hidden_state'][i] = nothing
    source = parquet(tmp_path/'a.parquet', c)
    told = r"^2 of 12 rows have no states and are left out: a.parquet, row 0 \(task 'game-0'\) is the first$"
    with pytest.warns(match=told): store = import_messages(source, tmp_path/'store', 's', batch_size=3)
    assert store.task_ids() == [t for i, t in enumerate(c['task_id']) if i not in (0, 9)]
    with pytest.warns(match=told): assert len(import_messages(source, tmp_path/'store', 's')) == 10  # once more
    parquet(source, rows(12))  # the sender has gone on
    assert len(import_messages(source, tmp_path/'store', 's')) == 12


def test_a_set_without_any_states(tmp_path):
    c = dict(rows(2), hidden_state=pa.array([None, None], NESTED))
    with pytest.warns(match='^2 of 2 rows have no states'), pytest.raises(InterlatError, match='it has no rows with states'):
        import_messages(parquet(tmp_path/'a.parquet', c), tmp_path/'store', 's')


def test_other_refusals(tmp_path):
    whole = parquet(tmp_path/'a.parquet', rows())
    with pytest.raises(InterlatError, match='no column sender; say whose messages these are'): import_messages(whole, tmp_path/'x')
    with pytest.raises(InterlatError, match='batch_size must be an integer, 1 or more, found 0'): import_messages(whole, tmp_path/'x', 's', batch_size=0)
    with pytest.raises(InterlatError, match="unknown dtype 'int8'"): import_messages(whole, tmp_path/'x', 's', dtype='int8')
    with pytest.raises(InterlatError, match="no splits, found split='train'"): import_messages(whole, tmp_path/'x', 's', split='train')
    with pytest.raises(InterlatError, match='message data set not found: .*no.parquet'): import_messages(tmp_path/'no.parquet', tmp_path/'x', 's')
    (tmp_path/'empty').mkdir()
    with pytest.raises(InterlatError, match='holds neither Parquet files nor a data set'): import_messages(tmp_path/'empty', tmp_path/'x', 's')
    with pytest.raises(InterlatError, match='holds no messages: it has no rows'):
        import_messages(parquet(tmp_path/'none.parquet', {k: [] for k in rows()}, dict(task_id=pa.string(), hidden_state=NESTED, plan=pa.string())), tmp_path/'x', 's')
    with pytest.raises(InterlatError, match='x has no messages to export'): export_messages(MessageStore(tmp_path/'x'), tmp_path/'y.parquet')
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(InterlatError, match='cannot read .*a.parquet as Parquet: '): import_messages(whole, tmp_path/'x', 's')
    assert not (tmp_path/'x').exists() and not (tmp_path/'y.parquet').exists()


def test_without_the_libraries(tmp_path, monkeypatch):
    whole = parquet(tmp_path/'a.parquet', rows())
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(InterlatError, match=r"pip install 'interlat\[data\]'"): import_messages(whole, tmp_path/'store', 's')


def test_the_import_is_light():
    code = "import sys, interlat.messages.exchange; print(sorted({'datasets', 'pyarrow', 'pandas', 'transformers'} & set(sys.modules)))"
    assert python(code).communicate()[0].strip() == '[]'


# ---- resuming, streaming

def test_a_stopped_import_goes_on(tmp_path, monkeypatch):
    c = rows(7)
    source, read = parquet(tmp_path/'a.parquet', broken := dict(c, plan=[*c['plan'][:5], None, 'x'])), []
    with pytest.raises(InterlatError, match='row 5 .*plan'): import_messages(source, tmp_path/'store', 's', batch_size=2)
    assert MessageStore(tmp_path/'store').task_ids() == c['task_id'][:4] and broken['plan'][5] is None
    states = exchange._states
    monkeypatch.setattr(exchange, '_states', lambda cell, dtype: read.append(1) or states(cell, dtype))
    assert same(import_messages(parquet(source, c), tmp_path/'store', 's', batch_size=2), c) and len(read) == 3
    assert same(import_messages(source, tmp_path/'store', 's'), c) and len(read) == 3
    with pytest.raises(InterlatError, match="has sender 's', wanted sender 'other'"): import_messages(source, tmp_path/'store', 'other')


def test_a_single_row_group_is_not_taken_into_memory(tmp_path):
    if not Path('/proc/self/status').exists(): pytest.skip('needs /proc')
    length, width = 200, 512
    def table(n):
        numbers = torch.randn(n*length*width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()  # nothing can compress them
        states = pa.ListArray.from_arrays(pa.array(range(0, n*length+1, length), pa.int32()),
                                          pa.ListArray.from_arrays(pa.array(range(0, n*length*width+1, width), pa.int32()), pa.array(numbers)))
        return parquet(tmp_path/f'{n}.parquet', dict(task_id=[f't{i}' for i in range(n)], hidden_state=states, plan=['x']*n), use_dictionary=False)
    small, large = table(2), table(120)
    assert pq.ParquetFile(large).num_row_groups == 1 and large.stat().st_size > 93*2**20
    code = '''
        import re, sys
        from interlat.messages.exchange import read_messages
        def mib(key): return int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024
        list(read_messages(sys.argv[1], 's')) # load the code paths first
        before = mib('VmHWM')
        print(sum(len(m) for m in read_messages(sys.argv[2], 's')), mib('VmHWM') - before)
    '''
    states_read, grown = map(int, python(code, small, large).communicate()[0].split())
    assert states_read == 120*length and grown < 80, f'{grown} MiB more, for a table of 94 MiB'


# ---- there and back

@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16))
def test_round_trip(tmp_path, dtype):
    store, g = MessageStore(tmp_path/'store'), torch.Generator().manual_seed(0)
    for i in range(5): store.append(LatentMessage(torch.randn(2+i, 3, generator=g).to(dtype), [*range(1+i), -1], f'plan "{i}"\nünï', f'task/{i}', 'a sender', 12))
    path = export_messages(store, tmp_path/'new'/'out.parquet', batch_size=2)
    assert pq.read_schema(path).names == ['task_id', 'hidden_state', 'plan', 'token_ids', 'sender', 'layer'] and [p.name for p in path.parent.iterdir()] == ['out.parquet']
    back = import_messages(path, tmp_path/'back', dtype=str(dtype).removeprefix('torch.'))
    assert (back.task_ids(), back.sender, back.layer, back.width) == (store.task_ids(), 'a sender', 12, 3)
    for a, b in zip(store, back): assert torch.equal(a.h, b.h) and a.h.dtype == b.h.dtype and (a.token_ids, a.text) == (b.token_ids, b.text)
    assert datasets.load_dataset('parquet', data_files=str(path), split='train', cache_dir=tmp_path/'cache')[1]['plan'] == 'plan "1"\nünï'


def test_a_damaged_message_leaves_no_half_export(tmp_path):
    store = MessageStore(tmp_path/'store')
    store.append([LatentMessage(torch.ones(2, 3), [1, 2], 'x', t, 's') for t in 'ab'])
    shard = next(store.path.iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + b'!')
    with pytest.raises(InterlatError, match="the message for task 'b' does not match its checksum"): export_messages(store, tmp_path/'out.parquet', batch_size=1)
    assert [p.name for p in tmp_path.iterdir()] == ['store']
