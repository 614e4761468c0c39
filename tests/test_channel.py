"Channels between processes: what arrives is what was sent, and whoever else knocks does no harm."
import os, pickle, signal, socket, struct, subprocess, sys, threading, time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil, pytest, torch
from hypothesis import given, settings, strategies as st
from notebooks import ROOT
from warm import warm

from interlat.messages.basis import fit_basis
from interlat.messages.channel import connect, listen
from interlat.core.basics import InterlatError
from interlat.messages.mailbox import Expected, Inbox, Outbox
from interlat.messages.message import LatentMessage, MessageStore
from interlat.messages.packet import CODECS, END_PACKET, _seal

SMALL = 8 # width of the messages here


def message(task='game-0', n=3, width=SMALL, seed=0, **kw):
    return LatentMessage(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), list(range(n)), 'go to shelf 1', task, **{**dict(sender='tiny'), **kw})


@contextmanager
def receiving(at='127.0.0.1:0', expected=Expected(), timeout=20., senders=1, key=None):
    "A receiver in a thread: (it, what it takes)."
    inbox, got = listen(at, expected, timeout, key), []
    def work():
        with inbox: got.extend(inbox.receive(senders))
    thread = threading.Thread(target=work)
    thread.start()
    try: yield inbox, got
    finally: thread.join(60)
    assert not thread.is_alive()


def call(address):
    host, port = address.rsplit(':', 1)
    return socket.create_connection((host, int(port)), 20)


def knock(address, words, end=False):
    "The answer to some bytes; '' if there is none before the end, which is said by closing one side."
    with call(address) as s:
        try:
            s.sendall(words)
            if end: s.shutdown(socket.SHUT_WR)
            return s.makefile(errors='replace').readline().strip()
        except ConnectionError: return 'reset'


def wait(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(.01)


def process(code, *words):
    "Python code in a process of its own, its output in a pipe."
    start = 'import sys, time, torch\nfrom interlat.messages.channel import *\nfrom interlat.messages.mailbox import *\nfrom interlat.messages.message import *\nfrom test_channel import message\n'
    env = os.environ | dict(PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT/'tests'}")
    return subprocess.Popen([*warm(), '-c', start + code, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(p):
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    return out.split()


# ---- two processes

SENDER = """
with connect(sys.argv[1], sys.argv[2]) as out:
    for i in range(4): print(out.send(message(f'game-{i}', 3 + i, seed=i)), flush=True)
"""

@pytest.mark.parametrize('way, codec', (('socket', 'float32'), ('folder', 'bfloat16')))
def test_a_sender_in_another_process(way, codec, tmp_path):
    with listen('127.0.0.1:0' if way == 'socket' else tmp_path/'post', Expected('tiny', -1, SMALL, {f'game-{i}' for i in range(4)})) as inbox:
        p = process(SENDER, inbox.address, codec)
        for i, m in enumerate(inbox.receive()):
            assert torch.equal(m.h, message(m.task_id, 3 + i, seed=i).h.to(getattr(torch, codec))) and m.task_id == f'game-{i}'
            assert (m.token_ids, m.text, m.sender) == (list(range(3 + i)), 'go to shelf 1', 'tiny')
    assert said(p) == ['True']*4 and i == 3 and not inbox.refused


def test_a_sender_that_is_killed_is_named_and_started_again(tmp_path):
    "Two messages and half of one; a second process sends the rest."
    half = """
out = connect(sys.argv[1])
for i in range(2): out.send(message(f'game-{i}', seed=i))
out._socket.sendall(message('game-2').pack()[:100])
print('half', flush=True)
time.sleep(600)
"""
    store = MessageStore(tmp_path/'store')
    with listen(expected=Expected(have=store)) as inbox:
        def keep():
            for m in inbox.receive(): store.append(m)
        thread = threading.Thread(target=keep)
        thread.start()
        with process(half, inbox.address) as p:
            assert p.stdout.readline() == 'half\n'
            p.send_signal(signal.SIGKILL)
        wait(lambda: inbox.refused)
        assert "('tiny', 2 messages): was lost after 100 of 2" in inbox.refused[0] and inbox.refused[0].startswith('127.0.0.1:')
        assert said(process(SENDER, inbox.address, 'float32')) == ['False', 'False', 'True', 'True']
        thread.join(20)
    assert store.task_ids() == [f'game-{i}' for i in range(4)] and inbox.count == dict(taken=4, there=2, refused=1)


def test_a_receiver_that_dies_has_promised_nothing(tmp_path):
    "It falls while it works on the second message: only the first was acknowledged, and only the rest is sent again."
    receiver = """
import os
store = MessageStore(sys.argv[1])
with listen(expected=Expected(have=store)) as inbox:
    print(inbox.address, flush=True)
    for m in inbox.receive():
        if m.task_id == sys.argv[2]: os._exit(9)
        store.append(m)
print(*store.task_ids())
"""
    p = process(receiver, tmp_path/'store', 'game-1')
    out = connect(p.stdout.readline().strip())
    assert out.send(message('game-0'))
    with pytest.raises(InterlatError, match='receiver at 127.0.0.1:.* was lost: .* not sent twice'): out.send(message('game-1'))
    p.communicate()
    p = process(receiver, tmp_path/'store', '')
    with connect(p.stdout.readline().strip()) as out: assert [out.send(message(f'game-{i}')) for i in range(3)] == [False, True, True]
    assert said(p) == ['game-0', 'game-1', 'game-2']


# ---- what is not a packet

def test_cut_at_every_place():
    raw = message().pack()
    with receiving() as (inbox, got):
        for n in range(len(raw)): assert knock(inbox.address, raw[:n], end=True) in ('', 'reset')
        wait(lambda: inbox.count == dict(refused=len(raw) - 1, lost=1))
        assert all('was lost after' in why or 'has gone without' in why for why in inbox.refused)
        with connect(inbox.address) as out: assert out.send(message())
    assert len(got) == 1


def test_cut_and_lengthened_files(tmp_path):
    raw = message().pack()
    for n in range(len(raw)): Inbox(tmp_path/'post')._folder.joinpath(f'0-{n:08d}-x.ilpk').write_bytes(raw[:n])
    (tmp_path/'post'/'0-99999998-x.ilpk').write_bytes(raw + b'x')
    (tmp_path/'post'/'0-99999999-end.ilpk').write_bytes(END_PACKET)
    inbox = Inbox(tmp_path/'post')
    assert list(inbox.receive()) == [] and inbox.count == dict(refused=len(raw) + 1)
    aside = sorted((tmp_path/'post'/'refused').glob('*.ilpk'))
    assert [p.read_bytes() for p in aside] == [*(raw[:n] for n in range(len(raw))), raw + b'x'], 'nothing is deleted'
    assert 'damaged packet' in (tmp_path/'post'/'refused'/'0-00000020-x.ilpk.txt').read_text()


@settings(max_examples=60, deadline=None)
@given(words=st.binary(max_size=200))
def test_any_bytes(words):
    with receiving() as (inbox, got):
        answer = knock(inbox.address, words, end=True)
        assert answer[:1] in ('-', '!') or answer in ('', 'reset')
        with connect(inbox.address) as out: assert out.send(message())
    assert len(got) == 1 and len(inbox.refused) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_a_packet(data, tmp_path_factory):
    "A bit, a byte more, a piece less: through a folder, where it is refused or the same message."
    raw = bytearray(message().pack(data.draw(st.sampled_from(list(CODECS)))))
    at = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(('flip', 'cut', 'add')))
    if how == 'flip': raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == 'cut': del raw[at:at + data.draw(st.integers(1, 20))]
    else: raw[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    folder = tmp_path_factory.mktemp('post')
    with Outbox(folder): (folder/'0-00000000-x.ilpk').write_bytes(raw)
    inbox = Inbox(folder)
    assert list(inbox.receive()) == [] and inbox.count == dict(refused=1)


HEAD = dict(sender='s', task_id='t', layer=-1, codec='float32', shape=[1, 2])

@pytest.mark.parametrize('raw, why', (
    (b'GET / HTTP/1.1\r\nHost: x\r\n\r\n', 'not an interlat packet'),
    (b'\x16\x03\x01\x02\x00', 'not an interlat packet'),
    (pickle.dumps(dict(h=[1.])), 'not an interlat packet'),
    (b'ILPL' + message().pack()[4:], 'not an interlat packet'),
    (message().pack()[:-1] + b'\xff', 'does not match its checksum'),
    (message().pack()[:9] + struct.pack('<Q', 2**60) + b'x', 'packet of 1,152,921,504,606,846,976 bytes, at most 268,435,456'),
    (message().pack()[:9] + struct.pack('<Q', 2**28 + 1), 'packet of 268,435,457 bytes'),
    (message().pack()[:9] + bytes(8), 'where 0 were sent'),
    (_seal({}, b''), 'header that cannot be read'),
    (_seal(HEAD | dict(shape=[10**15, 0]), b''), '1,000,000,000,000,000 states, at most 65,536'),
    (_seal(HEAD | dict(shape=[60_000, 60_000], rank=1, basis='x', codec='int4'), bytes(60_000//2 + 4*938)), 'takes 14,400,000,000 bytes of memory'),
    (_seal(HEAD | dict(sender=['x']), bytes(8)), 'header that cannot be read: sender'),
    (_seal(HEAD | dict(text=5), bytes(8)), 'header that cannot be read: text'),
    (_seal(HEAD | dict(token_ids=['x']), bytes(8)), 'header that cannot be read: token_ids'),
    (_seal(HEAD | dict(task_id=''), bytes(8)), 'task_id must be a non-empty string'),
    (_seal(HEAD | {'\ud800' + 'x'*3000: 1}, bytes(8)), 'header that cannot be read'),
    (_seal(HEAD, struct.pack('<2f', 1, float('nan'))), 'NaN or infinite'),
    (_seal(HEAD, struct.pack('<2f', 1, float('-inf'))), 'NaN or infinite'),
))
def test_refused_with_its_reason(raw, why, tmp_path):
    "On a socket, and as a file; and the next one comes through."
    with receiving() as (inbox, got):
        answer = knock(inbox.address, raw)
        assert answer[:1] in ('-', '!') and why in answer and len(answer) < 1100
        with connect(inbox.address) as out: assert out.send(message())
    assert len(got) == 1 and why in inbox.refused[0]
    with Outbox(tmp_path): (tmp_path/'0-00000000-x.ilpk').write_bytes(raw)
    files = Inbox(tmp_path)
    assert list(files.receive()) == [] and (tmp_path/'refused'/'0-00000000-x.ilpk').read_bytes() == raw
    assert any(w in files.refused[0] for w in (why, 'bytes where', 'cut short'))


def test_memory_is_not_taken_for_what_is_only_announced():
    prefix = message().pack()[:9]
    with receiving() as (inbox, got):
        before = psutil.Process().memory_info().rss
        for _ in range(50): assert '1,152,921,504,606,846,976 bytes' in knock(inbox.address, prefix + struct.pack('<Q', 2**60))
        calls = [call(inbox.address) for _ in range(20)]
        for s in calls: s.sendall(prefix + struct.pack('<Q', 2**28) + bytes(1000))
        with connect(inbox.address) as out: assert out.send(message())
        grown = psutil.Process().memory_info().rss - before
        for s in calls: s.close()
    assert len(got) == 1 and grown < 64*2**20


# ---- what is not expected

@pytest.mark.parametrize('wanted, other, why', (
    (dict(sender='tiny'), dict(sender='mighty'), "has sender 'mighty', wanted 'tiny'"),
    (dict(layer=-1), dict(layer=7), 'has layer 7, wanted -1'),
    (dict(width=SMALL), dict(width=5), 'has width 5, wanted 8'),
    (dict(task_ids={'game-0'}), dict(task='game-1'), 'no such task here'),
    (dict(max_length=3), dict(n=4, task='game-1'), 'has 4 states, at most 3'),
    (dict(max_bytes=400), dict(n=30, task='game-1'), 'bytes, at most 400'),
    (dict(), dict(sender='mighty', task='game-1'), "has sender 'mighty', wanted 'tiny'"), # settled by the first
    (dict(), dict(width=5, task='game-1'), 'has width 5, wanted 8'),
    (dict(), dict(layer=2, task='game-1'), 'has layer 2, wanted -1'),
))
@pytest.mark.parametrize('way', ('socket', 'folder'))
def test_not_what_is_expected(wanted, other, why, way, tmp_path):
    first, odd, last = message(), message(**other), message(task='game-0' if 'task_ids' in wanted else 'game-9')
    with receiving('127.0.0.1:0' if way == 'socket' else tmp_path/'post', Expected(**wanted)) as (inbox, got), connect(inbox.address) as out:
        assert out.send(first)
        if way == 'folder': Outbox(tmp_path/'post', writer='1').send(replace(odd, task_id=odd.task_id + ('' if 'task' in other else '-odd')))
        else:
            with pytest.raises(InterlatError, match=f'refused by 127.0.0.1:.*{why}'): out.send(odd)
        out.send(last)
        if way == 'folder': wait(lambda: inbox.count['refused'])
    assert [m.task_id for m in got] == list(dict.fromkeys([first.task_id, last.task_id])) and why in inbox.refused[0] and inbox.count['refused'] == 1


def test_a_second_message_for_a_task(tmp_path):
    store = MessageStore(tmp_path/'store')
    store.append(message('game-5'))
    with receiving(expected=Expected(have=store)) as (inbox, got), connect(inbox.address) as out:
        assert [out.send(message(t)) for t in ('game-5', 'game-1', 'game-1', 'game-2')] == [False, True, False, True]
    assert [m.task_id for m in got] == ['game-1', 'game-2'] and inbox.count == dict(taken=2, there=2)


def test_a_packet_larger_than_allowed_is_not_sent_to_its_end():
    big = message('big', 6000, 1000)
    with receiving(expected=Expected(max_bytes=2**20)) as (inbox, got), connect(inbox.address) as out:
        with pytest.raises(InterlatError, match='refused by .*: packet of 24,.* bytes, at most 1,048,576'): out.send(big)
        assert out.send(message())
    assert [m.task_id for m in got] == ['game-0']


# ---- whatever is sent, arrives

@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6)), min_size=1, max_size=5), width=st.integers(1, 40), codec=st.sampled_from(list(CODECS)),
       words=st.booleans(), rank=st.sampled_from((None, 1)), text=st.text(max_size=20), way=st.sampled_from(('socket', 'folder')))
def test_what_is_sent_arrives(shapes, width, codec, words, rank, text, way, tmp_path_factory):
    basis = rank and fit_basis([torch.randn(9, width)], rank)
    ms = [replace(message(f'{text}-{i}', n, width, seed), text=text) for i, (n, seed) in enumerate(shapes)]
    at = '127.0.0.1:0' if way == 'socket' else tmp_path_factory.mktemp('post')
    with receiving(at, Expected(basis=basis)) as (inbox, got), connect(inbox.address, codec, basis, words) as out:
        for m in ms: assert out.send(m)
    assert len(got) == len(ms)
    for a, b in zip((LatentMessage.unpack(m.pack(codec, basis, words), basis) for m in ms), got):
        assert torch.equal(a.h, b.h) and a.h.dtype == b.h.dtype and vars(a) | dict(h=0) == vars(b) | dict(h=0)


# ---- time, and several at once

def test_silent_and_slow_ones_hold_up_nobody():
    raw = message('slow').pack()
    with receiving(timeout=1.5) as (inbox, got):
        silent, slow = call(inbox.address), call(inbox.address)
        slow.sendall(raw[:5])
        with connect(inbox.address) as out:
            assert out.send(message('game-0')) and not inbox.refused
            for i in range(5, 400):
                if len(inbox.refused) == 2: break
                try: slow.sendall(raw[i:i+1] if i < 100 else b'')
                except ConnectionError: pass
                time.sleep(.05)
                out.send(message('game-0'))
            assert out.send(message('game-1'))
        assert silent.recv(1) == b'' and {why.split(': ')[1] for why in inbox.refused} == {'was silent for 1.5 s', 'sent only part of a packet in 1.5 s'}
        for s in (silent, slow): s.close()
    assert len(got) == 2


def test_the_time_of_the_loops_body_is_not_counted():
    with listen(timeout=1.) as inbox:
        with connect(inbox.address) as a, connect(inbox.address) as b:
            def send():
                for out, tasks in ((a, '01'), (b, '23')):
                    for t in tasks: out.send(message(f'game-{t}'))
                for out in (a, b): out.close()
                a.close = b.close = lambda done: None
            thread = threading.Thread(target=send)
            thread.start()
            for m in inbox.receive(senders=2): time.sleep(1.2 if m.task_id == 'game-1' else 0)
            thread.join()
    assert inbox.count == dict(taken=4)


def test_two_senders_at_once_and_one_after_another():
    with receiving(senders=3) as (inbox, got):
        with connect(inbox.address) as a, connect(inbox.address) as b:
            assert a.send(message('a')) and b.send(message('b')) and a.send(message('c'))
        with connect(inbox.address) as c: assert c.send(message('d')) and not c.send(message('a'))
    assert [m.task_id for m in got] == ['a', 'b', 'c', 'd']


def test_a_channel_is_read_on_where_a_loop_was_left():
    with listen() as inbox:
        def send():
            with connect(inbox.address) as out:
                for i in range(4): out.send(message(f'game-{i}'))
        thread = threading.Thread(target=send)
        thread.start()
        got = [next(inbox.receive()).task_id]
        for m in inbox.receive():
            got.append(m.task_id)
            if len(got) == 3: break
        got += [m.task_id for m in inbox.receive()]
        thread.join()
    assert got == [f'game-{i}' for i in range(4)]


def test_no_more_than_32_connections():
    with receiving(timeout=30.) as (inbox, got):
        calls = [call(inbox.address) for _ in range(32)]
        time.sleep(.1)
        assert 'too many connections' in knock(inbox.address, b'')
        for s in calls: s.close()
        wait(lambda: inbox.count == dict(refused=1, lost=32))
        with connect(inbox.address) as out: assert out.send(message())
    assert len(got) == 1


def test_an_idle_connection_that_was_given_up_is_opened_anew():
    with receiving(timeout=.5) as (inbox, got), connect(inbox.address) as keeps_it_open, connect(inbox.address) as out:
        assert out.send(message('game-0'))
        for i in range(10):
            keeps_it_open.send(message('game-0'))
            time.sleep(.1)
        assert any('was silent' in why for why in inbox.refused)
        assert out.send(message('game-1'))
        keeps_it_open.close(done=False)
        keeps_it_open.close = lambda done: None
    assert len(got) == 2


# ---- other ends

def test_an_http_server_is_no_receiver():
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_): pass
    with HTTPServer(('127.0.0.1', 0), Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        out = connect('127.0.0.1:{}'.format(server.server_port), timeout=5.)
        with pytest.raises(InterlatError, match='is no receiver of messages: it answers|was lost: '): out.send(replace(message(), text='\n\n'))
        out.close(done=False)
        thread.join(10)


def test_a_receiver_that_never_answers():
    with socket.create_server(('127.0.0.1', 0)) as server:
        out = connect('127.0.0.1:{}'.format(server.getsockname()[1]), timeout=.2)
        with pytest.raises(InterlatError, match='was lost: timed out'): out.send(message())
        with pytest.raises(InterlatError, match='was lost: it took nothing for 0.2 s'): out.send(message('big', 3000, 3000))


@pytest.mark.parametrize('at, why', (('192.0.2.1:5000', 'stays on this machine'), ('127.0.0.1:99999', 'ports up to 65535'), ('no such host.invalid:80', None)))
def test_addresses(at, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if why is None: # it has blanks: a folder
        assert isinstance(connect(at), Outbox)
        return
    for door in (connect, listen):
        with pytest.raises(InterlatError, match=why): door(at)


# ---- folders

def test_odd_files_in_a_folder(tmp_path):
    post, outside = tmp_path/'post', tmp_path/'outside'
    outside.write_bytes(message('stolen').pack())
    with Outbox(post) as out: out.send(message())
    (post/'0-a.ilpk').mkdir()
    (post/'0-b.ilpk').symlink_to(outside)
    os.mkfifo(post/'0-c.ilpk')
    with open(post/'0-d.ilpk', 'wb') as f: f.truncate(2**40) # takes no room
    (post/'0-e.ilpk').write_bytes(b'')
    (post/'notes.txt').write_text('mine')
    (post/'.0-f.ilpk.99.tmp').write_bytes(b'half')
    inbox = Inbox(post)
    assert [m.task_id for m in inbox.receive()] == ['game-0']
    assert [why.split(': ', 1)[1][:30] for why in inbox.refused] == ['is not a file']*3 + ['file of 1,099,511,627,776 byte', 'damaged packet: cut short afte']
    assert {p.name for p in post.iterdir()} == {'taken', 'refused', 'notes.txt', '.0-f.ilpk.99.tmp'} and (post/'refused'/'0-b.ilpk').is_symlink()
    for door in (Inbox, connect):
        with pytest.raises(InterlatError, match='cannot make the folder'): door(outside/'x') if door is Inbox else door(outside/'x').send(message())


def test_a_name_is_never_written_over(tmp_path):
    Inbox(tmp_path)
    for content in (b'one', b'two', b'three'):
        (tmp_path/'x.ilpk').write_bytes(content)
        with Outbox(tmp_path): pass
        assert list(Inbox(tmp_path).receive()) == []
    assert {p.read_bytes() for p in (tmp_path/'refused').glob('x.ilpk*') if p.suffix != '.txt'} == {b'one', b'two', b'three'}


def test_a_folder_is_resumed_by_both_sides(tmp_path):
    "The sender stops after two of four, the receiver in the second; neither loses or repeats one."
    out = Outbox(tmp_path)
    for i in range(2): out.send(message(f'game-{i}'))
    with pytest.raises(RuntimeError, match='power cut'):
        with Inbox(tmp_path) as inbox:
            for m in inbox.receive():
                if m.task_id == 'game-1': raise RuntimeError('power cut')
    with Outbox(tmp_path) as out: assert [out.send(message(f'game-{i}')) for i in range(4)] == [False, False, True, True]
    with Outbox(tmp_path) as out: assert not out.send(message('game-3')) # says the end once more
    with Inbox(tmp_path) as inbox: assert [m.task_id for m in inbox.receive()] == ['game-1', 'game-2', 'game-3']
    with pytest.raises(InterlatError, match='none that is done'): list(Inbox(tmp_path, timeout=.05).receive())


def test_two_writers_of_a_folder(tmp_path):
    with Outbox(tmp_path, writer='a') as a, Outbox(tmp_path, writer='b') as b:
        for i in range(3): assert a.send(message(f'a{i}')) and b.send(message(f'b{i}'))
    assert sorted(m.task_id for m in Inbox(tmp_path).receive(senders=2)) == ['a0', 'a1', 'a2', 'b0', 'b1', 'b2']
    with pytest.raises(InterlatError, match="writer must be letters, digits or '_', found '../x'"): Outbox(tmp_path, writer='../x')
