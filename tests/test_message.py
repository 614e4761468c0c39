"A store of messages that survives kills, concurrent writers and odd content."
import os, signal, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path
import pytest, torch
from safetensors.torch import save_file
from interlat.core import InterlatError
from interlat.message import LatentMessage, MessageStore, pad_messages

ROOT = Path(__file__).parents[1]

def message(task_id='t', n=5, width=8, dtype=torch.float32, seed=0, **kw):
    h = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return LatentMessage(h, list(range(n)), f'plan of {task_id}', task_id, kw.pop('sender', 's'), **kw)

def python(code, *args):
    "A Python process that runs `code` with the package on its path and prints without a buffer."
    return subprocess.Popen([sys.executable, '-uc', textwrap.dedent(code), *map(str, args)], stdout=subprocess.PIPE, text=True,
                            env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))

def test_light_import():
    code = "import sys, interlat.message, interlat.perturb; print(sorted({'transformers', 'pandas', 'plotly'} & set(sys.modules)))"
    assert python(code).communicate()[0].strip() == '[]'

# ---- the store survives a kill

APPEND_FOREVER = '''
    import sys, torch
    from interlat.message import LatentMessage, MessageStore
    store = MessageStore(sys.argv[1])
    for i in range(len(store), 10**6):
        h = torch.full((50, 1024), float(i))
        store.append(LatentMessage(h, [i]*50, str(i), f'task-{i}', 's'))
        print(i)
'''

def test_kill_loses_nothing(tmp_path):
    returned, kept = [], 0
    for after in (3, 17, 30):  # killed at three different moments, resuming each time
        with python(APPEND_FOREVER, tmp_path) as p:
            lines = [p.stdout.readline() for _ in range(after)]
            p.send_signal(signal.SIGKILL)
            lines += p.stdout.readlines()  # what had been printed before the kill arrived
        assert p.returncode == -signal.SIGKILL
        returned += [int(l) for l in lines if l.endswith('\n')]
        store = MessageStore(tmp_path)
        assert {f'task-{i}' for i in returned} <= set(store.task_ids())
        assert len(store) <= len(returned) + 3  # at most the one in flight at each kill
        for i in returned: assert torch.equal(store[f'task-{i}'].h, torch.full((50, 1024), float(i)))
        assert len(store) > kept
        kept = len(store)
    assert store.task_ids() == [f'task-{i}' for i in range(kept)]

def test_death_between_writing_and_renaming(tmp_path, monkeypatch):
    store = MessageStore(tmp_path)
    store.append(message('a'))
    def die(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', die)
        with pytest.raises(KeyboardInterrupt): store.append(message('b'))
    for s in (store, MessageStore(tmp_path)): assert s.task_ids() == ['a']
    store.append(message('b'))
    assert MessageStore(tmp_path).task_ids() == ['a', 'b']

def test_half_written_files_are_ignored_and_a_broken_shard_is_named(tmp_path):
    store = MessageStore(tmp_path)
    store.append(message('a'))
    shard = next(tmp_path.glob('shard-*'))
    (tmp_path/f'.{shard.name}.123.tmp').write_bytes(shard.read_bytes()[:100])
    assert MessageStore(tmp_path).task_ids() == ['a']
    (tmp_path/'shard-0-000001.safetensors').write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InterlatError, match='shard-0-000001.safetensors is not a readable safetensors file'): MessageStore(tmp_path)

def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file(dict(x=torch.zeros(2)), tmp_path/'shard-0-000000.safetensors')
    with pytest.raises(InterlatError, match="holds no messages: format None, wanted 'interlat.messages/1'"): MessageStore(tmp_path)

def test_append_is_all_or_nothing(tmp_path):
    store = MessageStore(tmp_path)
    with pytest.raises(InterlatError, match="a second message for task 'b'"): store.append([message('a'), message('b'), message('b')])
    with pytest.raises(InterlatError, match='cannot share a store'): store.append([message('a'), message('b', width=9)])
    assert len(store) == 0 and not list(tmp_path.iterdir())
    store.append([])
    assert not list(tmp_path.iterdir())

# ---- several writers

def test_two_writers_at_once(tmp_path):
    a, b = MessageStore(tmp_path, writer='a'), MessageStore(tmp_path, writer='b')
    for i in range(3): a.append(message(f'a{i}')); b.append(message(f'b{i}'))
    assert len(a) == len(b) == 3
    a.refresh(); b.refresh()
    assert sorted(a.task_ids()) == sorted(b.task_ids()) == ['a0', 'a1', 'a2', 'b0', 'b1', 'b2']

def test_two_processes_at_once(tmp_path):
    code = '''
        import sys, torch
        from interlat.message import LatentMessage, MessageStore
        store = MessageStore(sys.argv[1], writer=sys.argv[2])
        for i in range(8): store.append(LatentMessage(torch.ones(3, 4), [1, 2, 3], '', f'{sys.argv[2]}-{i}', 's'))
    '''
    with python(code, tmp_path, 'x') as x, python(code, tmp_path, 'y') as y:
        assert [p.wait(60) for p in (x, y)] == [0, 0]
    assert len(MessageStore(tmp_path)) == 16

def test_one_writer_name_used_twice_is_noticed(tmp_path):
    a, b = MessageStore(tmp_path), MessageStore(tmp_path)
    a.append(message('a'))
    with pytest.raises(InterlatError, match='give each its own writer name'): b.append(message('b'))
    assert MessageStore(tmp_path).task_ids() == ['a']

def test_a_task_collected_by_two_writers_is_an_error(tmp_path):
    a, b = MessageStore(tmp_path, writer='a'), MessageStore(tmp_path, writer='b')
    a.append(message('t')); b.append(message('t'))
    with pytest.raises(InterlatError, match="'t' is in both shard-a-000000.safetensors and shard-b-000000.safetensors"): MessageStore(tmp_path)

def test_writer_names_do_not_mix(tmp_path):
    for writer in ('1', '11', '1', '11'):
        MessageStore(tmp_path, writer=writer).append(message(f'{writer}-{len(list(tmp_path.iterdir()))}'))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'shard-{w}-00000{n}.safetensors' for w in ('1', '11') for n in (0, 1)]
    with pytest.raises(InterlatError, match="writer must be letters"): MessageStore(tmp_path, writer='a-b')
    with pytest.raises(InterlatError, match="writer must be letters"): MessageStore(tmp_path, writer='../x')

# ---- reading

def test_reading_one_message_does_not_read_the_shard(tmp_path):
    n, width = 64, 16_384
    MessageStore(tmp_path).append([message(f't{i}', n=16, width=width, seed=i) for i in range(n)])  # one shard of 64 MiB
    code = '''
        import sys, torch
        from interlat.message import MessageStore
        def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096
        MessageStore(sys.argv[1])['t3']                 # load the code paths first
        before = resident()
        m = MessageStore(sys.argv[1])['t7']
        print((resident() - before) // 2**20, m.h.untyped_storage().nbytes())
    '''
    if not Path('/proc/self/statm').exists(): pytest.skip('needs /proc')
    grown, own = map(int, python(code, tmp_path).communicate()[0].split())
    assert grown < 16, f'reading one message of 1 MiB took {grown} MiB'
    assert own == 16*width*4  # its own memory, not a view that keeps the shard alive

@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16))
def test_round_trip_is_exact(tmp_path, dtype):
    sent = message('ünï/<b>', dtype=dtype, layer=3)
    sent = replace(sent, text='a "plan"\nwith 日本 & <tags>', h=sent.h.requires_grad_())
    store = MessageStore(tmp_path/'new'/'folder')
    store.append(sent)
    for got in (MessageStore(tmp_path/'new'/'folder')['ünï/<b>'], LatentMessage.load(sent.save(tmp_path/'one.safetensors'))):
        assert torch.equal(got.h, sent.h) and got.h.dtype == dtype and not got.h.requires_grad
        assert (got.token_ids, got.text, got.task_id, got.sender, got.layer) == (sent.token_ids, sent.text, sent.task_id, 's', 3)
    assert '<b>' not in store._repr_html_().replace('</b>', '') and '<tags>' not in sent._repr_html_()

def test_slices_and_views_are_stored_as_they_are(tmp_path):
    m = message(n=10)
    store = MessageStore(tmp_path)
    store.append([replace(m[2:8:2], task_id='a'), replace(m.truncate(0), task_id='empty')])
    assert torch.equal(store['a'].h, m.h[2:8:2]) and store['a'].token_ids == [2, 4, 6]
    assert store['empty'].h.shape == (0, 8)

def test_order_and_iteration(tmp_path):
    store = MessageStore(tmp_path)
    for batch in (['c', 'a'], ['b']): store.append([message(t) for t in batch])
    assert MessageStore(tmp_path).task_ids() == store.task_ids() == ['c', 'a', 'b'] == [m.task_id for m in store]

# ---- refusals

def test_what_the_store_was_opened_for(tmp_path):
    empty = MessageStore(tmp_path, sender='s', layer=-1, width=8)
    for bad in (dict(sender='other'), dict(layer=2), dict(width=16)):
        with pytest.raises(InterlatError, match=f'has {next(iter(bad))}'): empty.append(message(**bad))
    empty.append(message())
    for bad in (dict(sender='other'), dict(layer=2), dict(width=16)):
        with pytest.raises(InterlatError, match=f'wanted {next(iter(bad))}'): MessageStore(tmp_path, **bad)
    assert MessageStore(tmp_path).check(sender='s', width=8, layer=-1)

def test_a_file_is_not_a_store(tmp_path):
    (tmp_path/'f').write_text('')
    with pytest.raises(InterlatError, match='a message store is a folder'): MessageStore(tmp_path/'f')
    with pytest.raises(InterlatError, match='no messages in'): MessageStore(tmp_path, create=False)

@pytest.mark.parametrize('change, error', (
    (dict(h=torch.zeros(5, 8, dtype=torch.int64)), r'float tensor of shape \(L, D\), found torch.int64'),
    (dict(h=[[0.]*8]*5), r'found list of shape \(\)'),
    (dict(h=torch.zeros(1, 5, 8)), r'of shape \(1, 5, 8\)'),
    (dict(h=torch.full((5, 8), torch.inf)), 'NaN or infinite'),
    (dict(token_ids=[1]), '5 states but 1 token ids'),
    (dict(task_id=''), 'task_id must be a non-empty string'),
    (dict(task_id=7), 'task_id must be a non-empty string, found 7'),
))
def test_parts_that_do_not_fit(change, error):
    with pytest.raises(InterlatError, match=error): replace(message(), **change)

def test_pad_messages():
    hs = [message(n=n, dtype=torch.bfloat16).h for n in (3, 0, 5)]
    h, mask = pad_messages(hs)
    assert h.shape == (3, 5, 8) and h.dtype == torch.bfloat16 and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [3, 0, 5] and (h[~mask] == 0).all()
    for row, m, sent in zip(h, mask, hs): assert torch.equal(row[m], sent)
    assert pad_messages([hs[1]])[0].shape == (1, 0, 8)
