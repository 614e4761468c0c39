"A store of messages that survives kills, concurrent writers and odd content."
import os, pickle, signal, subprocess, sys, textwrap, warnings
from dataclasses import replace
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from safetensors.torch import save_file
from interlat.core.basics import InterlatError
from interlat.messages.message import LatentMessage, MessageStore, pad_messages
from interlat.messages.shard import DamagedShard, Shard, encode_shard

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
    from interlat.messages.message import LatentMessage, MessageStore
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

def test_half_written_files_are_ignored(tmp_path):
    store = MessageStore(tmp_path)
    store.append(message('a'))
    shard = next(tmp_path.glob('shard-*'))
    (tmp_path/f'.{shard.name}.123.tmp').write_bytes(shard.read_bytes()[:100])
    assert MessageStore(tmp_path).task_ids() == ['a']

def test_append_is_all_or_nothing(tmp_path):
    store = MessageStore(tmp_path)
    with pytest.raises(InterlatError, match="a second message for task 'b'"): store.append([message('a'), message('b'), message('b')])
    with pytest.raises(InterlatError, match='cannot share a store'): store.append([message('a'), message('b', width=9)])
    assert len(store) == 0 and not list(tmp_path.iterdir())
    store.append([])
    assert not list(tmp_path.iterdir())

# ---- damage

def names(n): return f'shard-0-{n:06d}.safetensors'

@pytest.fixture
def three(tmp_path):
    "A store of three shards of two messages each."
    store = MessageStore(tmp_path)
    for n in range(3): store.append([message(f't{n}{x}', seed=n) for x in 'ab'])
    return tmp_path

DAMAGE = dict(empty=lambda raw: b'', zeroed=lambda raw: bytes(len(raw)), cut=lambda raw: raw[:-1], cut_in_the_header=lambda raw: raw[:90],
              seven_bytes=lambda raw: raw[:7], longer=lambda raw: raw + b'x', garbled=lambda raw: raw[:8] + b'?'*50 + raw[58:],
              text=lambda raw: b'<html>404 Not Found</html>', one_bit=lambda raw: raw.replace(b't1a', b't1c', 1),
              nested=lambda raw: (10**5).to_bytes(8, 'little') + b'['*10**5)

@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_shard_is_named_and_the_rest_stays_readable(three, how):
    shard = three/names(1)
    shard.write_bytes(DAMAGE[how](shard.read_bytes()))
    with pytest.warns(UserWarning) as said: store = MessageStore(three, create=False)
    text = str(said[0].message)
    assert len(said) == 1 and '\n' not in text and f'{shard}: {store.damaged[names(1)]}; ' in text and 'collect its messages again' in text
    assert list(store.damaged) == [names(1)] and store.damaged == store.verify()
    assert [m.task_id for m in store] == store.task_ids() == ['t0a', 't0b', 't2a', 't2b']
    assert '1 more damaged' in repr(store) and names(1) in store._repr_html_()
    with pytest.raises(InterlatError, match=f"no message for task 't1a'; damaged: {names(1)} "): store['t1a']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        store.refresh()  # it has been said
    store.append([message('t1a'), message('t1b')])
    with pytest.warns(UserWarning): assert len(MessageStore(three)) == 6
    assert sorted(p.name for p in three.iterdir()) == [names(n) for n in range(4)]

def test_the_last_shard_damaged_leaves_its_number_taken(three):
    before = (three/names(2)).read_bytes()[:50]
    (three/names(2)).write_bytes(before)
    with pytest.warns(UserWarning): store = MessageStore(three)
    store.append(message('new'))
    assert (three/names(3)).exists() and (three/names(2)).read_bytes() == before

def test_nothing_but_damage(three):
    for p in three.iterdir(): p.write_bytes(b'')
    with pytest.warns(UserWarning) as said, pytest.raises(InterlatError, match='no readable messages in') as e: MessageStore(three, create=False)
    assert len(said) == 3 and all(f'{names(n)} (the file is empty)' in str(e.value) for n in range(3))
    with pytest.warns(UserWarning): assert len(MessageStore(three)) == 0

def test_healthy_stores_do_not_warn(three):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        store = MessageStore(three)
    assert store.verify() == store.damaged == {} and 'damaged' not in repr(store) + store._repr_html_()

def test_no_flipped_bit_goes_unnoticed(tmp_path):
    good = encode_shard([message('a', n=2, width=2, dtype=torch.bfloat16), message('b', n=1, width=2)])
    path, start = tmp_path/names(0), 8 + int.from_bytes(good[:8], 'little')
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at+1:])
        if at < start:
            with pytest.raises(DamagedShard): Shard.open(path)
        else: assert Shard.open(path).verify(), f'byte {at} of {len(good)}'
    path.write_bytes(good)
    assert Shard.open(path).verify() == ''

def test_a_flipped_byte_costs_one_message(three):
    shard = three/names(1)
    raw = bytearray(shard.read_bytes())
    with safe_open(shard, 'pt') as f: states = f.get_tensor('h.0').numpy().tobytes()
    raw[raw.index(states) + 7] ^= 64
    shard.write_bytes(raw)
    store = MessageStore(three)
    with pytest.raises(InterlatError, match=f"{names(1)}: the message for task 't1a' does not match its checksum"): store['t1a']
    assert all(torch.equal(store[t].h, message(seed=int(t[1])).h) for t in store.task_ids() if t != 't1a')
    assert list(store.verify()) == [names(1)] and "1 of 2 messages" in store.verify()[names(1)] and "'t1a'" in store.verify()[names(1)]

def test_a_shard_cut_short_under_an_open_store(three):
    store = MessageStore(three)
    os.truncate(three/names(1), (three/names(1)).stat().st_size - 100)
    with pytest.raises(InterlatError, match="cut short: the message for task 't1b' is not all there"): store['t1b']
    (three/names(2)).unlink()
    with pytest.raises(InterlatError, match='cannot be read'): store['t2a']
    assert set(store.verify()) == {names(1), names(2)} and len(store['t0b']) == 5

def test_a_damaged_single_message(tmp_path):
    path = message('a').save(tmp_path/'one.safetensors')
    path.write_bytes(path.read_bytes()[:-1] + b'!')
    with pytest.raises(InterlatError, match="one.safetensors: the message for task 'a' does not match its checksum"): LatentMessage.load(path)
    path.write_bytes(encode_shard([message('a'), message('b')]))
    with pytest.raises(InterlatError, match='holds 2 messages; open its folder'): LatentMessage.load(path)

def test_healthy_files_of_another_kind_are_refused(tmp_path):
    save_file(dict(x=torch.zeros(2)), tmp_path/names(0))
    for metadata, found in ((None, 'None'), (dict(interlat='{"format": "interlat.messages/1"}'), "'interlat.messages/1'")):
        save_file(dict(x=torch.zeros(2)), tmp_path/names(0), metadata)
        with pytest.raises(InterlatError, match=f"format {found}, wanted 'interlat.messages/2'") as e: MessageStore(tmp_path)
        assert not isinstance(e.value, DamagedShard)

def test_any_safetensors_reader_opens_a_shard(three):
    with safe_open(three/names(0), 'pt') as f: assert torch.equal(f.get_tensor('h.1'), message(seed=0).h) and f.get_tensor('token_ids.1').tolist() == [*range(5)]

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
        from interlat.messages.message import LatentMessage, MessageStore
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
        from interlat.messages.message import MessageStore
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

def test_each_header_is_read_once(three, monkeypatch):
    store, opened = MessageStore(three), []
    monkeypatch.setattr(Shard, 'open', opened.append)
    assert len(list(store)) == len(list(pickle.loads(pickle.dumps(store)))) == 6  # a worker process gets the index too
    store.refresh()
    assert opened == []

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
