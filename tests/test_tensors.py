"Packets of tensors: what arrives is what was sent, nothing damaged is taken for whole, and a header that lies asks for no memory."
import json, struct
from math import prod

import psutil, pytest, torch
from hypothesis import given, settings, strategies as st

from interlat.core.basics import InterlatError
from interlat.messages.codec import CODECS, FORMATS
from interlat.messages.message import LatentMessage
from interlat.messages.packet import DamagedPacket, PACKET_PREFIX, _seal, _sealed
from interlat.messages.signing import BadSignature, open_envelope, sign_packet
from interlat.messages.tensors import MAPPED, Limits, TensorHeader, decode_tensors, encode_tensors, open_tensors, part_of_file, tensor_header, tensors_size

DTYPES = {name: f.gives for name, f in FORMATS.items() if name not in ('int8', 'int4')}
META = dict(task_id='ünï/<b>', options=dict(layers=[0, 2], short='causal', ridge=1e-5, more=None), text='a "plan"\nwith 日本 & \ud83d')


def tensor(shape, dtype, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype) if dtype.is_floating_point else (100*x).abs().clamp(max=255).to(dtype)


def several(n=3): return {f't.{i}': tensor((2, i, 3), dtype, i) for i, dtype in enumerate(list(DTYPES.values())[:n])}


def same(a, b): return list(a) == list(b) and all(x.dtype == b[k].dtype and x.shape == b[k].shape and torch.equal(x, b[k]) for k, x in a.items())


@settings(max_examples=100, deadline=None)
@given(shapes=st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)), max_size=6), kind=st.text(max_size=9), words=st.text(max_size=30))
def test_any_tensors_arrive(shapes, kind, words):
    tensors = {f'{words}{i}': tensor(shape, DTYPES[name], i) for i, (name, shape) in enumerate(shapes)}
    raw = encode_tensors(tensors, kind, META | dict(words=words))
    head, back = decode_tensors(raw)
    assert same(back, tensors) and head.kind == kind and head.meta == META | dict(words=words)
    assert len(raw) == tensors_size(head) == tensors_size(tensor_header(tensors, kind, head.meta)) and len(raw) % 8 == 0
    assert encode_tensors(back, kind, head.meta) == raw


@pytest.mark.parametrize('codec', CODECS)
def test_a_codec_is_for_the_floats(codec):
    tensors = {'k.0': tensor((3, 5, 70), torch.float32), 'v.0': tensor((2, 33), torch.bfloat16), 'at.0': torch.arange(9), 'ids': torch.arange(3).int()}
    head, back = decode_tensors(encode_tensors(tensors, 'cache', {}, codec))
    assert head.memory == sum(x.nbytes for x in back.values())
    for name, x in tensors.items():
        if not x.is_floating_point(): assert torch.equal(back[name], x) and back[name].dtype == x.dtype
        else: # as a message of such states arrives
            rows = x.reshape(-1, x.shape[-1])
            there = LatentMessage.unpack(LatentMessage(rows, range(len(rows)), '', 't', 's').pack(codec))
            assert torch.equal(back[name].view(rows.shape), there.h) and back[name].dtype == there.h.dtype


def test_any_layout():
    base = torch.randn(8, 6, 4)
    for x in (base.mT, base[::3, 1::2], base[:1].expand(4, 6, 4), base.requires_grad_()):
        back = decode_tensors(encode_tensors(dict(x=x), 'x'))[1]['x']
        assert torch.equal(back, x) and back.is_contiguous() and not back.requires_grad


@pytest.mark.parametrize('codec', (None, 'int4'))
def test_every_flipped_bit_every_cut_and_every_byte_more_is_refused(codec):
    raw = encode_tensors(several(2), 'cache', dict(task_id='t'), codec)
    for bit in range(8*len(raw)):
        bad = bytearray(raw)
        bad[bit//8] ^= 1 << bit % 8
        with pytest.raises(InterlatError) as e: decode_tensors(bad)
        assert (e.type is DamagedPacket) == (bit >= 32) and '\n' not in str(e.value)
    for n in range(len(raw)):
        with pytest.raises(DamagedPacket, match='cut short after|bytes where'): decode_tensors(raw[:n])
    for more in (b'\0', b'x', bytes(8), raw):
        with pytest.raises(DamagedPacket, match='bytes where'): decode_tensors(raw + more)


def test_every_byte_of_the_header_changed_under_a_new_checksum():
    "Whoever can write a checksum: it is refused in one line, or means what it says."
    tensors = several()
    raw = encode_tensors(tensors, 'cache', dict(task_id='t'))
    line = bytes(raw[PACKET_PREFIX:raw.index(b'\n')])
    taken = 0
    for i in range(len(line) + 1):
        for to in {*b'\n"{}[],:0129tx\\ -.e', 0, 255, (*line, 10)[i] ^ 1}:
            changed = bytearray(line + b'\n')
            changed[i] = to
            try: head, back = decode_tensors(_sealed(bytes(changed), raw[PACKET_PREFIX+len(line)+1:]))
            except InterlatError as e: assert '\n' not in str(e) and len(str(e)) < 500
            else:
                taken += 1
                assert all(tuple(shape) == back[name].shape and FORMATS[form].gives == back[name].dtype for name, form, shape in head.tensors)
    assert taken > 100 # other names and words, digits of shapes that need as many bytes


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-10, 10**20) | st.floats() | st.text(max_size=5) | st.sampled_from(list(FORMATS)),
                    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.sampled_from(['kind', 'tensors', 'meta', 'x']), inside, max_size=4)), st.binary(max_size=64))
def test_any_header(fields, body):
    try: head, back = decode_tensors(_seal(fields, body))
    except InterlatError as e: assert len(str(e)) < 500
    else: assert head.nbytes == len(body) and sum(x.nbytes for x in back.values()) == head.memory


def test_what_is_signed_is_all_of_it():
    "Another kind, name, shape, word or number, in a packet that is whole, under the signature of the true one."
    secret, run, tensors = bytes(32), b'0123456789abcdef', {'k.0': tensor((2, 3), torch.float32), 'v.0': tensor((2, 3), torch.float32)}
    packet = encode_tensors(tensors, 'cache', dict(task_id='game-0', sender='tiny'))
    raw = sign_packet(packet, secret, run, 1)
    inside, *mark = open_envelope(raw, secret)
    assert mark == [run, 1] and same(decode_tensors(inside)[1], tensors)
    for forged in (encode_tensors(tensors, 'cachE', dict(task_id='game-0', sender='tiny')), encode_tensors(tensors, 'cache', dict(task_id='game-1', sender='tiny')),
                   encode_tensors(tensors, 'cache', dict(task_id='game-0', sender='tinY')), encode_tensors({k: x.view(3, 2) for k, x in tensors.items()}, 'cache', dict(task_id='game-0', sender='tiny')),
                   encode_tensors({'v.0': tensors['k.0'], 'k.0': tensors['v.0']}, 'cache', dict(task_id='game-0', sender='tiny'))):
        assert len(forged) == len(packet)
        with pytest.raises(BadSignature): open_envelope(raw[:37] + forged + raw[-32:], secret)


@pytest.mark.parametrize('bad', (float('nan'), float('inf'), -float('inf')))
@pytest.mark.parametrize('name', [name for name, dtype in DTYPES.items() if dtype.is_floating_point])
def test_what_is_not_finite_is_refused_at_both_ends(bad, name):
    x = tensor((3, 4), DTYPES[name])
    raw = encode_tensors(dict(a=tensor((2,), torch.int64), h=x), 'states')
    for i in range(12):
        y = x.clone()
        y.view(-1)[i] = bad
        with pytest.raises(InterlatError, match="tensor 'h' holds NaN or infinite"): encode_tensors(dict(h=y), 'states')
        forged = _sealed(bytes(raw[PACKET_PREFIX:-len(y.view(torch.uint8).flatten()) + (-x.nbytes % 8) * -1]), y.contiguous().view(torch.uint8).numpy().tobytes(), bytes(-x.nbytes % 8))
        with pytest.raises(InterlatError, match="tensor 'h' holds NaN or infinite"): decode_tensors(forged)


def test_bounds_are_known_beforehand():
    raw = encode_tensors(several(4), 'cache')
    for limits, why in ((Limits(max_tensors=3), '4 tensors, at most 3'), (Limits(max_dims=2), '3 dimensions in a tensor'), (Limits(max_length=2), '3 rows along'), (Limits(max_bytes=9), 'bytes of tensors, at most 9')):
        with pytest.raises(InterlatError, match=f"a packet of kind 'cache' has .*{why}"): decode_tensors(raw, limits.check)
    assert same(decode_tensors(raw, Limits(2**10, 4, 3, 3).check)[1], several(4))
    grows = encode_tensors(dict(h=torch.ones(64, 64)), 'states', {}, 'int4') # 2,304 bytes that become 16,384
    with pytest.raises(InterlatError, match='has 16,384 bytes of tensors, at most 10,000'): decode_tensors(grows, Limits(10_000).check)


@pytest.mark.parametrize('entry, body', ((['h', 'float32', [2**40]], b''), (['h', 'int4', [2**62]], bytes(99)), (['h', 'float32', [2**24, 2**24, 2**24, 0]], b''), (['h', 'uint8', [10**30]], b'')))
def test_memory_is_not_taken_for_what_is_only_announced(entry, body):
    before = psutil.Process().memory_info().rss
    with pytest.raises(InterlatError): decode_tensors(_seal(dict(kind='x', tensors=[entry], meta={}), body), Limits(max_length=2**20).check)
    assert psutil.Process().memory_info().rss - before < 2**25


def test_the_header_is_a_line_of_json():
    raw = encode_tensors(several(), 'cache', META)
    line = bytes(raw[PACKET_PREFIX:raw.index(b'\n')])
    assert json.loads(line) == vars(open_tensors(raw)[0]) and (PACKET_PREFIX + len(line) + 1) % 8 == 0
    at = raw.index(b'\n') + 1
    for (name, form, shape), size in zip(open_tensors(raw)[0].tensors, open_tensors(raw)[0].sizes): # by the description alone
        assert bytes(raw[at:at+size]) == several()[name].contiguous().view(torch.uint8).numpy().tobytes() and size == prod(shape)*DTYPES[form].itemsize
        at += -(-size//8)*8
    assert at == len(raw) == struct.unpack('<Q', raw[9:17])[0]


def test_a_mapped_file_is_ours_to_change_and_stays_as_it_is(tmp_path):
    x = dict(h=torch.randn(MAPPED//8, 4))
    raw = encode_tensors(x, 'states')
    path = tmp_path/'x'
    path.write_bytes(bytes(64) + raw)
    before = len(psutil.Process().open_files())
    found = [decode_tensors(part_of_file(path, 64, len(raw)))[1]['h'] for _ in range(20)]
    for i, h in enumerate(found): h[0] = i
    assert len(psutil.Process().open_files()) == before, 'a mapping keeps no file open'
    assert all(torch.equal(h[1:], x['h'][1:]) and (h[0] == i).all() for i, h in enumerate(found)) and path.read_bytes() == bytes(64) + raw


def test_packing_and_reading_take_no_second_copy(tmp_path):
    "Over the memory of the process: the packet and a layer, not a packet for each step."
    tensors = {f'k.{i}': torch.randn(2**18) for i in range(32)} # 32 MB
    raw = encode_tensors(tensors, 'cache', {}, 'bfloat16')
    (tmp_path/'x').write_bytes(raw)
    def back(x): return [y.data_ptr() for y in decode_tensors(x)[1].values()]
    buffer = torch.frombuffer(raw, dtype=torch.uint8)
    assert all(buffer.data_ptr() <= p < buffer.data_ptr() + len(raw) for p in back(raw))
