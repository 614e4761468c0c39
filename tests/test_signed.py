"Signed packets: whoever has no key can alter, forge, repeat or reorder nothing, over a socket and a folder, also after a restart."
import hashlib, os, shutil, sys, time
from dataclasses import replace

import pytest, torch
from hypothesis import given, settings, strategies as st

from interlat.commands import cli
from interlat.core.basics import InterlatError
from interlat.messages.channel import connect, listen
from interlat.messages.mailbox import Expected, Inbox, Outbox
from interlat.messages.message import MessageStore
from interlat.messages.packet import END_PACKET, _sealed
from interlat.messages.signing import BadSignature, Replayed, Seen, Signer, Verifier, new_key, open_envelope, read_key, sign_packet, wire_size

from test_channel import knock, message, process, receiving, wait

RUN = bytes(16)


@pytest.fixture
def key(tmp_path): return new_key(tmp_path/'key')

@pytest.fixture
def other(tmp_path): return new_key(tmp_path/'other')


# ---- bytes

def test_every_change_of_one_byte_is_refused():
    secret, raw = bytes(range(32)), sign_packet(message(n=2, width=3).pack('int8'), bytes(range(32)), RUN, 1)
    altered = bytearray(raw)
    for i, there in enumerate(raw):
        for byte in (set(range(256)) if i < 37 or i >= len(raw) - 32 else {there ^ 1, there ^ 128, 0, 255}) - {there}:
            altered[i] = byte
            with pytest.raises(InterlatError): open_envelope(bytes(altered), secret)
        altered[i] = there
    assert open_envelope(bytes(altered), secret)[0] == message(n=2, width=3).pack('int8')
    for n in range(len(raw)):
        with pytest.raises(InterlatError): open_envelope(raw[:n], secret)
        with pytest.raises(InterlatError): open_envelope(raw + raw[:n+1], secret)


@settings(max_examples=60, deadline=None)
@given(inside=st.binary(max_size=2000), secret=st.binary(min_size=32, max_size=200), run=st.binary(min_size=16, max_size=16), number=st.integers(0, 2**63 - 1), data=st.data())
def test_any_bytes_travel_and_any_other_bytes_do_not(inside, secret, run, number, data):
    "Also a packet of a kind that this release does not know: the envelope does not look into it."
    raw = sign_packet(packet := _sealed(b'{"kind":"of tomorrow"}', b'\n', inside), secret, run, number)
    assert open_envelope(raw, secret) == (packet, run, number) and {wire_size(raw[:n], True) for n in range(13, 20)} == {len(raw)}
    i, flip = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(1, 255))
    with pytest.raises(InterlatError): open_envelope(raw[:i] + bytes([raw[i] ^ flip]) + raw[i+1:], secret)
    with pytest.raises(BadSignature): open_envelope(raw, secret + b'!')


def test_what_is_signed_is_all_of_it():
    "Sender, task and shape put in the place of others, each in a packet that is whole, under the signature of the true one."
    secret, m = bytes(32), message()
    raw = sign_packet(m.pack(), secret, RUN, 1)
    for forged in (replace(m, sender='tinY'), replace(m, task_id='game-1'), replace(m, h=m.h.flip(0)), replace(m, text='go to shelf 2')):
        packet = forged.pack()
        assert len(packet) == len(m.pack())
        with pytest.raises(BadSignature): open_envelope(raw[:37] + packet + raw[-32:], secret)


def test_reordered_numbers(tmp_path):
    "Only rising ones, each run by itself."
    seen, a, b = Seen(tmp_path/'seen'), b'a'*16, b'b'*16
    def take(run, n):
        try: seen.check(run, n)
        except Replayed: return False
        seen.add(run, n)
        return True
    assert [take(r, n) for r, n in ((a, 1), (a, 3), (b, 1), (a, 2), (a, 3), (b, 2), (a, 4), (b, 1))] == [True, True, True, False, False, True, True, False]
    seen.close()


def test_the_signature_is_hmac_sha256(tmp_path):
    "By the definition of RFC 2104, on hashlib alone."
    secret = bytes(range(100)) # longer than SHA-256's block of 64: hashed first
    raw, block = sign_packet(END_PACKET, secret, RUN, 1), hashlib.sha256(secret).digest().ljust(64, b'\0')
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + raw[:-32]).digest()
    assert raw[-32:] == hashlib.sha256(bytes(b ^ 0x5c for b in block) + inner).digest()


# ---- over a socket

@pytest.fixture(params=('socket', 'folder'))
def at(request, tmp_path): return '127.0.0.1:0' if request.param == 'socket' else tmp_path/'post'

def test_signed_messages_arrive(at, key):
    with receiving(at, key=key) as (inbox, got), connect(inbox.address, key=key) as out:
        assert [out.send(message(f'game-{i}', seed=i)) for i in range(5)] == [True]*5
    assert all(torch.equal(m.h, message(seed=i).h) for i, m in enumerate(got)) and len(got) == 5 and inbox.count == dict(taken=5)


def test_two_senders_of_one_key(at, key):
    with receiving(at, senders=2, key=key) as (inbox, got):
        folder = {} if ':' in str(at) else dict(writer='1')
        with connect(inbox.address, key=key) as a, (Outbox(at, key=key, **folder) if folder else connect(inbox.address, key=key)) as b:
            for i in range(3):
                for name, out in (('a', a), ('b', b)): assert out.send(message(f'game-{name}{i}'))
    assert {m.task_id for m in got} == {f'game-{name}{i}' for name in 'ab' for i in range(3)} and not inbox.refused


@pytest.mark.parametrize('ours, theirs, why', (('key', None, 'packet is not signed'), ('key', 'other', 'signature does not fit'), (None, 'key', 'packet is signed, and there is no key')))
def test_another_key_or_none(ours, theirs, why, at, key, other, tmp_path):
    "The sender is told by name, also of its end; the receiver goes on."
    keys = dict(key=key, other=other)
    with receiving(at, key=keys.get(ours)) as (inbox, got):
        out = connect(inbox.address, key=keys.get(theirs))
        if ':' in str(at):
            with pytest.raises(InterlatError, match=f'refused by 127.0.0.1:.*{why}'): out.send(message())
            with pytest.raises(InterlatError, match=f'the end was refused by 127.0.0.1:.*{why}'): out.close()
        else:
            out = Outbox(at, writer='z', key=keys.get(theirs))
            out.send(message())
            out.close()
            wait(lambda: inbox.count['refused'] == 2)
        with connect(inbox.address, key=keys.get(ours)) as out: assert out.send(message('game-9'))
    assert [m.task_id for m in got] == ['game-9'] and sum(why in line for line in inbox.refused) == 2 == inbox.count['refused']


def test_a_recorded_transmission_is_worth_nothing(key, tmp_path):
    "Played again at once, to a receiver that was restarted, and out of order: neither messages nor the end are taken."
    signer = Signer(key)
    first, second, third, end = (signer.sign(raw) for raw in (message('game-0').pack(), message('game-1').pack(), message('game-2').pack(), END_PACKET))
    with receiving(senders=2, key=key) as (inbox, got):
        for raw, answer in ((first, '+'), (first, '-'), (third, '+'), (second, '-'), (end, '.'), (end, '-')):
            said = knock(inbox.address, raw)
            assert said[:1] == answer and ('a replay, or out of order' in said) == (answer == '-')
        connect(inbox.address, key=key).close()
    assert [m.task_id for m in got] == ['game-0', 'game-2'] and inbox.count['refused'] == 3
    with receiving(key=key) as (inbox, got):
        for raw in (first, second, third, end): assert 'a replay, or out of order' in knock(inbox.address, raw)
        with connect(inbox.address, key=key) as out: assert out.send(message('game-1'))
    assert [m.task_id for m in got] == ['game-1'] and inbox.count['refused'] == 4


def test_an_altered_packet_harms_no_other(key):
    signer = Signer(key)
    first, second = (signer.sign(message(f'game-{i}').pack()) for i in range(2))
    with receiving(key=key) as (inbox, got):
        for i in range(13, len(first), 7): assert 'signature does not fit' in knock(inbox.address, first[:i] + bytes([first[i] ^ 4]) + first[i+1:])
        assert knock(inbox.address, first)[:1] == '+'
        with connect(inbox.address, key=key) as out: assert out.send(message('game-2'))
    assert [m.task_id for m in got] == ['game-0', 'game-2'] and second


def test_a_refused_packet_cannot_be_kept_for_later(key):
    "One that was verified and not wanted is remembered too: another receiver, with other expectations, refuses it."
    raw = Signer(key).sign(message(sender='mighty').pack())
    with receiving(expected=Expected(sender='tiny'), key=key) as (inbox, _):
        assert "has sender 'mighty', wanted 'tiny'" in knock(inbox.address, raw)
        connect(inbox.address, key=key).close()
    with receiving(key=key) as (inbox, got):
        assert 'a replay' in knock(inbox.address, raw)
        connect(inbox.address, key=key).close()
    assert got == []


def test_a_key_has_one_receiver_at_a_time(key, other, tmp_path):
    with listen(key=key) as inbox:
        with pytest.raises(InterlatError, match='cannot keep in .*key.seen what has been seen: database is locked; a key has one receiver at a time'): listen(tmp_path/'post', key=key)
        with pytest.raises(InterlatError, match='cannot listen at'): listen(inbox.address, key=other)
        with listen(tmp_path/'post', key=other) as second: assert second # nothing was left open by the one that could not listen
    with listen(key=key): pass


# ---- through a folder

def drain(folder, key, **how):
    "What a receiver takes from a folder until its timeout or its end, and the receiver."
    got = []
    with Inbox(folder, timeout=.2, key=key, **how) as inbox:
        try: got.extend(m.task_id for m in inbox.receive())
        except InterlatError as e: assert 'no sender in' in str(e)
    return got, inbox


def test_files_that_come_again(key, tmp_path):
    "What was taken, copied back under another name; the end as well; after a restart, since each call is one."
    post = tmp_path/'post'
    with Outbox(post, key=key) as out:
        for i in range(3): out.send(message(f'game-{i}'))
    assert drain(post, key)[0] == ['game-0', 'game-1', 'game-2']
    for path in list((post/'taken').glob('*.ilpk')): shutil.copy(path, post/f'9{path.name}')
    got, inbox = drain(post, key)
    assert got == [] and inbox.count == dict(refused=4) and len(list((post/'refused').glob('*.txt'))) == 4


def test_files_altered_forged_and_renamed(key, tmp_path):
    post = tmp_path/'post'
    out = Outbox(post, key=key)
    for i in range(4): out.send(message(f'game-{i}'))
    files = sorted(post.glob('*.ilpk'))
    raw = bytearray(files[1].read_bytes())
    raw[-40] ^= 1
    files[1].write_bytes(raw)
    files[0].rename(post/'0-00000099-x.ilpk') # after the others: out of order
    Outbox(post, writer='1').send(message('game-5')) # not signed
    Outbox(post, writer='2').close() # an end that nobody with the key has said
    got, inbox = drain(post, key)
    assert got == ['game-2', 'game-3'] and inbox.count == dict(taken=2, refused=4)
    assert sorted(why.split(': ')[1].split(',')[0] for why in inbox.refused) == ['packet 1 of a run of which packet 4 has been seen', 'packet is not signed', 'packet is not signed', 'signature does not fit']
    with Outbox(post, key=key) as again: assert [again.send(message(f'game-{i}')) for i in range(4)] == [True, True, False, False] # what was refused is sent anew
    assert drain(post, key)[0] == ['game-0', 'game-1']


def test_an_end_is_believed_only_with_a_signature(key, tmp_path):
    "An unsigned one under the same writer's name does not hide the true one; one that was set aside is remembered too."
    post = tmp_path/'post'
    with Outbox(post, key=key) as out: out.send(message())
    for _ in range(2): Outbox(post, key=key).close() # said again: one sender all the same
    ends = sorted(post.glob('*-end.ilpk'))
    kept = [path.read_bytes() for path in ends]
    Outbox(post).close()
    got, inbox = drain(post, key)
    assert got == ['game-0'] and inbox.count == dict(taken=1) and len(ends) == 3
    got, inbox = drain(post, key)
    assert got == [] and inbox.count == dict(refused=1) and 'packet is not signed' in inbox.refused[0]
    for i, raw in enumerate(kept): (post/f'w{i}-00000000-end.ilpk').write_bytes(raw)
    assert drain(post, key)[1].count == dict(refused=3)


def test_a_receiver_that_dies_has_remembered_nothing_that_it_has_not_dealt_with(key, tmp_path):
    "It falls in the loop's body: the packet is there still, and a new receiver takes it."
    receiver = """
import os
for m in listen(sys.argv[1], key=sys.argv[2]).receive():
    if m.task_id == 'game-1': os._exit(9)
"""
    post = tmp_path/'post'
    with Outbox(post, key=key) as out:
        for i in range(3): out.send(message(f'game-{i}'))
    p = process(receiver, post, key)
    p.communicate()
    assert p.returncode == 9
    got, inbox = drain(post, key)
    assert got == ['game-1', 'game-2'] and not inbox.refused


def test_between_remembering_and_answering(key, tmp_path):
    "The one moment in which a crash shows: the message is kept, its file is refused at the next start."
    post = tmp_path/'post'
    with Outbox(post, key=key) as out: out.send(message())
    path, _ = sorted(post.glob('*.ilpk'))
    verifier = Verifier(key)
    verifier.remember(verifier.open(path.read_bytes())[1])
    verifier.close()
    got, inbox = drain(post, key)
    assert got == [] and inbox.count == dict(refused=1) and 'a replay' in inbox.refused[0]


# ---- keys and commands

@pytest.mark.skipif(os.name != 'posix', reason='files have no modes here')
def test_an_open_key_is_refused_at_both_ends(key, tmp_path):
    for mode in (0o604, 0o640, 0o602):
        key.chmod(mode)
        for end in (connect, listen):
            with pytest.raises(InterlatError, match=rf'open to others \(mode {mode:o}\), refused as ssh refuses such a key; chmod 600'): end(tmp_path/'post', key=key)


@pytest.fixture
def said_by(monkeypatch, capsys):
    "A function that runs a command: (status, stdout, stderr)."
    def run(main, *words):
        monkeypatch.setattr(sys, 'argv', [main.__name__, *map(str, words)])
        with pytest.raises(SystemExit) as end: main()
        return end.value.code, *capsys.readouterr()
    return run


def test_commands_with_a_key(key, other, tmp_path, said_by):
    store = MessageStore(tmp_path/'ours')
    store.append([message(f'game-{i}', seed=i) for i in range(3)])
    send, receive = ['--messages', store.path, '--to', tmp_path/'post'], ['--at', tmp_path/'post', '--output_dir', tmp_path/'theirs']
    assert said_by(cli.main_send, *send, '--key', key)[0] == 0
    status, _, err = said_by(cli.main_receive, *receive, '--timeout', 0.1)
    assert status == 2 and err.count('packet is signed, and there is no key here to verify it') == 4
    assert said_by(cli.main_send, *send)[0] == 0
    status, _, err = said_by(cli.main_receive, *receive, '--timeout', 0.1, '--key', key)
    assert status == 2 and err.count('packet is not signed, and only signed ones are taken here') == 4
    assert said_by(cli.main_send, *send, '--key', key)[0] == 0
    status, out, err = said_by(cli.main_receive, *receive, '--key', key, '--strict', 'true')
    assert (status, err) == (0, '') and '3 messages received, 0 were there already, 0 refused' in out
    for main, words in ((cli.main_send, send), (cli.main_receive, receive)):
        assert said_by(main, *words, '--key', tmp_path/'none')[2].startswith(f'error: key file not found: {tmp_path}/none; make one with new_key of interlat.messages.signing')


# ---- what it costs

def best(work, repeats=7):
    "Seconds of the fastest of some runs."
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)


def test_signing_costs_what_hashing_costs(capsys):
    "8 MB: a hash over them and a copy, and nothing that grows faster. The bound is wide, since other work may run beside it."
    secret, packet = bytes(32), _sealed(b'{}', b'\n', bytes(2**23))
    raw, mb = sign_packet(packet, secret, RUN, 1), len(packet)/1e6
    took = {name: best(work) for name, work in (('hash', lambda: hashlib.sha256(packet).digest()), ('copy', lambda: bytes(bytearray(packet))),
                                                ('sign', lambda: sign_packet(packet, secret, RUN, 1)), ('open', lambda: open_envelope(raw, secret)))}
    with capsys.disabled(): print('\n' + ', '.join(f'{name} {mb/s:,.0f} MB/s' for name, s in took.items()))
    assert max(took['sign'], took['open']) < 2*(took['hash'] + took['copy'])
