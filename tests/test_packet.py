"Packets: nothing damaged is taken for whole, and nothing is lost beyond what a codec or a basis says."
import json
from dataclasses import replace
import pytest, torch
from hypothesis import given, settings, strategies as st
from interlat.messages.basis import Basis, fit_basis
from interlat.core.basics import InterlatError
from interlat.messages.message import LatentMessage
from interlat.messages.packet import CODECS, DamagedPacket, _seal, open_packet, packet_bytes

FLOATS = ('float32', 'float16', 'bfloat16')
INTS = dict(int8=127, int4=7)

def gen(seed=0): return torch.Generator().manual_seed(seed)

def message(n=5, width=8, seed=0, scale=1., **kw):
    return LatentMessage(scale*torch.randn(n, width, generator=gen(seed)), list(range(n)), 'a "plan"\nwith 日本 & \ud83d', 'ünï/<b>', 's', **kw)

def fields(m): return m.token_ids, m.text, m.task_id, m.sender, m.layer

# ---- damage

@pytest.mark.parametrize('words', (True, False))
@pytest.mark.parametrize('codec, with_basis', (('float32', False), ('int4', False), ('int8', True)))
def test_every_flipped_bit_every_cut_and_every_byte_more_is_refused(codec, with_basis, words):
    m = message(n=3, width=5)
    basis = fit_basis([m.h], 2) if with_basis else None
    raw = m.pack(codec, basis, words)
    assert len(LatentMessage.unpack(raw, basis)) == 3
    for bit in range(8*len(raw)):
        bad = bytearray(raw)
        bad[bit//8] ^= 1 << bit % 8
        with pytest.raises(InterlatError) as e: LatentMessage.unpack(bytes(bad), basis)
        assert (e.type is DamagedPacket) == (bit >= 32), bit # without its first four bytes it is no packet
        assert '\n' not in str(e.value)
    for n in range(len(raw)):
        with pytest.raises(DamagedPacket, match='cut short after|bytes where'): LatentMessage.unpack(raw[:n], basis)
    for byte in range(256):
        with pytest.raises(DamagedPacket, match='bytes where'): LatentMessage.unpack(raw + bytes([byte]), basis)
    with pytest.raises(DamagedPacket, match='bytes where'): LatentMessage.unpack(raw + raw, basis)

@given(st.binary(max_size=80))
def test_bytes_of_another_kind(raw):
    with pytest.raises(InterlatError, match='not an interlat packet|cut short after'): LatentMessage.unpack(raw)

def test_what_is_not_bytes():
    for bad in ('ILPK', None, 5):
        with pytest.raises(InterlatError, match=f'a packet is bytes, found {type(bad).__name__}'): LatentMessage.unpack(bad)
    raw = message().pack()
    for kind in (bytearray, memoryview): assert torch.equal(LatentMessage.unpack(kind(raw)).h, message().h)

HEAD = dict(sender='s', task_id='t', layer=-1, codec='float32', shape=[1, 2])

@pytest.mark.parametrize('head, error', (
    ([], 'header that cannot be read'),
    (HEAD | dict(extra=1), "header that cannot be read: .*'extra'"),
    ({k: v for k, v in HEAD.items() if k != 'layer'}, "header that cannot be read: .*'layer'"),
    (HEAD | dict(codec='int3'), "unknown codec 'int3'; use float32"),
    (HEAD | dict(codec=[]), 'header that cannot be read'),
    (HEAD | dict(shape=[1]), 'width of a message must be a whole number'),
    (HEAD | dict(shape=[1, 2, 3]), 'header that cannot be read'),
    (HEAD | dict(shape=[-1, -2]), 'length of a message must be .* found -1'),
    (HEAD | dict(shape=[1, 3]), '8 bytes of states where its header says 12'),
    (HEAD | dict(rank=3), 'must be in 1..2, found 3'),
    (HEAD | dict(rank=2), 'written in the basis None'),
    (HEAD | dict(token_ids=[1, 2]), '1 states but 2 token ids'),
))
def test_a_whole_packet_with_an_odd_header(head, error):
    with pytest.raises(InterlatError, match=error) as e: LatentMessage.unpack(_seal(head, bytes(8)))
    assert e.type is InterlatError
    assert LatentMessage.unpack(_seal(HEAD, bytes(8))).h.tolist() == [[0, 0]]

# ---- codecs

SHAPES = ((0, 8), (1, 1), (1, 64), (1, 63), (3, 7), (5, 13), (2, 65), (7, 96), (4, 0))

@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('codec', CODECS)
def test_sizes(codec, shape):
    m = message(*shape)
    assert len(open_packet(m.pack(codec))[1]) == len(open_packet(m.pack(codec, words=False))[1]) == packet_bytes(*shape, codec)
    for rank in range(1, min(shape[1], 4) + 1):
        basis = Basis(torch.zeros(shape[1]), torch.eye(shape[1])[:rank])
        assert len(open_packet(m.pack(codec, basis))[1]) == packet_bytes(*shape, codec, rank) == packet_bytes(shape[0], rank, codec)

@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('codec', FLOATS)
def test_float_codecs_convert_and_no_more(codec, shape):
    m = message(*shape)
    wanted = m.h.to(getattr(torch, codec))
    back, bare = (LatentMessage.unpack(m.pack(codec, words=w)) for w in (True, False))
    assert torch.equal(back.h, wanted) and back.h.dtype == wanted.dtype and fields(back) == fields(m)
    assert torch.equal(bare.h, wanted) and fields(bare) == ([-1]*len(m), '', m.task_id, 's', -1)
    again = replace(m, h=wanted)
    assert torch.equal(LatentMessage.unpack(again.pack(codec)).h, wanted) and torch.equal(LatentMessage.unpack(again.pack()).h, wanted.float())

@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), width=st.integers(1, 150), seed=st.integers(0, 10**6), scale=st.sampled_from((1e-30, 1e-3, 1., 100., 1e30)), codec=st.sampled_from(list(INTS)))
def test_quantised_numbers_are_off_by_half_a_step_at_most(n, width, seed, scale, codec):
    m = message(n, width, seed, scale)
    m.h[:, width//2:width//2+20] = 0
    back = LatentMessage.unpack(m.pack(codec)).h
    assert back.dtype == torch.float32 and back.shape == m.h.shape
    for x, y in zip(m.h.flatten().split(64), back.flatten().split(64)): # the blocks of the row-major order
        assert (x - y).abs().max() <= x.abs().max() / INTS[codec] / 2 * (1 + 1e-4)
        assert y[x.abs().argmax()] == x[x.abs().argmax()] and (y[x == 0] == 0).all() # a block's largest and its zeros arrive as they are

@pytest.mark.parametrize('codec', CODECS)
def test_empty_messages(codec):
    basis = Basis(torch.ones(8), torch.eye(8)[:3])
    for b in (None, basis):
        back = LatentMessage.unpack(message(0, 8).pack(codec, b), b)
        assert back.h.shape == (0, 8) and fields(back) == fields(message(0, 8))

@pytest.mark.parametrize('codec', INTS)
def test_the_ends_of_float32(codec):
    huge, tiny = torch.finfo(torch.float32).max, 2.**-149
    h = torch.tensor([[huge, -huge, 0., huge/2], [tiny, 0., 0., -tiny]])
    for row in h:
        back = LatentMessage.unpack(replace(message(1, 4), h=row[None]).pack(codec)).h[0]
        assert torch.equal(back[:3], row[:3])

@pytest.mark.parametrize('codec, h', (('float16', 65_520.), ('bfloat16', 3.4e38), ('float32', 1e39), ('int8', -1e39), ('int4', 1e39)))
def test_numbers_beyond_the_range_are_refused(codec, h):
    m = replace(message(1, 2), h=torch.tensor([[0, h]], dtype=torch.float64))
    name = codec if codec in FLOATS else 'float32'
    with pytest.raises(InterlatError, match=f"message for 'ünï/<b>': numbers up to .* are beyond the range of {name}"): m.pack(codec)

def test_float16_takes_all_that_it_can_hold():
    m = replace(message(1, 2), h=torch.tensor([[-65_504., 65_519.]])) # the last one rounds down
    assert LatentMessage.unpack(m.pack('float16')).h.tolist() == [[-65_504, 65_504]]

@pytest.mark.parametrize('codec', CODECS)
@pytest.mark.parametrize('dtype', (torch.float64, torch.bfloat16, torch.float16))
def test_any_layout_and_type_of_states(codec, dtype):
    base = torch.randn(16, 12, generator=gen()).to(dtype).requires_grad_()
    for h in (base.T, base[::3, 1::2], base[:1].expand(4, 12)):
        m = LatentMessage(h, list(range(len(h))), '', 't', 's', layer=3)
        plain = replace(m, h=h.detach().clone(memory_format=torch.contiguous_format).float())
        back = LatentMessage.unpack(m.pack(codec))
        assert m.pack(codec) == plain.pack(codec) and back.h.shape == h.shape and back.layer == 3
        back.h[0] = 0 # memory of its own, and writable

# ---- bases

@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 40), lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5), seed=st.integers(0, 10**6), shift=st.sampled_from((0., 10.)))
def test_full_rank_is_lossless(width, lengths, seed, shift):
    hs = [torch.randn(n, width, generator=gen(seed + i)) + shift for i, n in enumerate([*lengths, 1])]
    basis = fit_basis(iter(hs), width)
    new = message(6, width, seed + 99)
    back = LatentMessage.unpack(new.pack(basis=basis), basis).h
    longest = torch.cat([new.h, basis.mean[None]]).double().norm(dim=1).max() # float32 rounds in proportion to the states and their mean
    assert (back.double() - new.h.double()).abs().max() <= 1e-6*longest
    assert basis.explained == pytest.approx(1) and 0 <= basis.explained <= 1

def test_pca():
    h = (torch.randn(300, 10, generator=gen()) * torch.arange(1, 11) + 1e4).double()
    parts, whole = fit_basis(h.split(7), 4), fit_basis([h], 4)
    _, s, v = torch.linalg.svd(h - h.mean(0), full_matrices=False)
    assert torch.allclose((parts.directions.double() @ v[:4].T).abs(), torch.eye(4).double(), atol=1e-5)
    assert torch.allclose(parts.directions, whole.directions, atol=1e-6) and torch.allclose(parts.mean, h.mean(0).float())
    assert parts.explained == pytest.approx((s[:4].square().sum() / s.square().sum()).item())
    for d in parts.directions: assert d[d.abs().argmax()] > 0
    shares = [fit_basis([h], r).explained for r in range(1, 11)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert fit_basis([h], 4).checksum == whole.checksum == Basis(whole.mean, whole.directions).checksum

def test_fewer_numbers_lose_what_the_basis_leaves_out():
    h = torch.randn(200, 12, generator=gen()) * torch.tensor([9., 5., *[.1]*10])
    basis = fit_basis([h], 2)
    m = replace(message(200, 12), h=h)
    lost = (LatentMessage.unpack(m.pack(basis=basis), basis).h - h).double().square().sum() / (h - h.mean(0)).double().square().sum()
    assert lost.item() == pytest.approx(1 - basis.explained, rel=1e-3)
    for codec in CODECS: assert LatentMessage.unpack(m.pack(codec, basis), basis).h.dtype == torch.float32

def test_states_that_are_all_the_same():
    basis = fit_basis([torch.ones(4, 3)], 1)
    assert basis.explained == 1 and torch.equal(basis.decode(basis.encode(torch.ones(2, 3))), torch.ones(2, 3))

@pytest.mark.parametrize('hs, rank, error', (
    ([torch.ones(2, 3)], 0, 'must be in 1..3, found 0'),
    ([torch.ones(2, 3)], 4, 'must be in 1..3, found 4'),
    ([torch.ones(2, 3)], -1, 'must be in 1..3, found -1'),
    ([torch.ones(2, 3)], None, 'must be in 1..3, found None'),
    ([], 1, 'no states to fit'),
    ([torch.ones(0, 3)], 1, 'no states to fit'),
    ([torch.ones(2, 3), torch.ones(2, 4)], 1, r'shape \(L, 3\), found \(2, 4\)'),
    ([torch.ones(3)], 1, r'shape \(L, D\), found \(3,\)'),
    ([torch.full((2, 3), torch.inf)], 1, 'NaN or infinite'),
))
def test_no_basis_for_that(hs, rank, error):
    with pytest.raises(InterlatError, match=error): fit_basis(hs, rank)

@pytest.mark.parametrize('mean, directions, error', (
    (torch.zeros(3), torch.eye(4), r'found \(3,\) and \(4, 4\)'),
    (torch.zeros(2), torch.zeros(3, 2), r'found \(2,\) and \(3, 2\)'),
    (torch.zeros(2), torch.zeros(0, 2), r'found \(2,\) and \(0, 2\)'),
    (torch.zeros(2), torch.zeros(2), r'found \(2,\) and \(2,\)'),
    (torch.zeros(2), torch.full((1, 2), torch.nan), 'NaN or infinite'),
))
def test_parts_that_are_no_basis(mean, directions, error):
    with pytest.raises(InterlatError, match=error): Basis(mean, directions)

def test_the_right_basis_or_none():
    m = message(6, 8)
    right, wrong = fit_basis([m.h], 3), fit_basis([m.h[:4]], 3)
    raw = m.pack(basis=right)
    assert torch.allclose(LatentMessage.unpack(raw, right).h, right.decode(right.encode(m.h)))
    for bad, found in ((None, 'none'), (wrong, wrong.checksum), (fit_basis([m.h], 2), 'rank 2')):
        with pytest.raises(InterlatError, match=f"'ünï/<b>' is written in the basis {right.checksum} .* found .*{found}") as e: LatentMessage.unpack(raw, bad)
        assert e.type is InterlatError
    with pytest.raises(InterlatError, match=r"takes states of shape \(L, 8\), found \(6, 7\)"): replace(m, h=m.h[:, :7]).pack(basis=right)
    assert torch.equal(LatentMessage.unpack(m.pack(), right).h, m.h) # states as they are need no basis

def test_bases_with_the_same_numbers_in_another_shape():
    x = torch.arange(8.)
    a, b = Basis(x[:4], x[4:][None]), Basis(x[:2], x[2:6].view(2, 2))
    assert a.checksum != b.checksum
    c, d = Basis(torch.zeros(4), torch.zeros(2, 4)), Basis(torch.zeros(3), torch.zeros(3, 3))
    assert c.checksum == d.checksum and c.rank*c.width + c.width == d.rank*d.width + d.width
    with pytest.raises(InterlatError, match='rank 2 of width 4'): LatentMessage.unpack(message(2, 4).pack(basis=c), d)

def test_a_basis_file_and_its_damage(tmp_path):
    basis = fit_basis([torch.randn(20, 3, generator=gen())], 2)
    path = basis.save(tmp_path/'new'/'b.safetensors')
    back, raw = Basis.load(path), path.read_bytes()
    assert torch.equal(back.mean, basis.mean) and torch.equal(back.directions, basis.directions) and back.explained == basis.explained
    for bit in range(8*len(raw)):
        bad = bytearray(raw)
        bad[bit//8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(InterlatError): Basis.load(path)
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(InterlatError, match='cannot be read'): Basis.load(path)
    path.write_bytes(message().save(tmp_path/'m').read_bytes())
    with pytest.raises(InterlatError, match='holds no basis: found h.0, token_ids.0'): Basis.load(path)
    with pytest.raises(InterlatError, match='cannot be read'): Basis.load(tmp_path)

def test_overhead_is_small_and_does_not_grow():
    m = LatentMessage(torch.zeros(40, 896), [151_000]*40, 'x'*300, 'valid_seen-0001', 'Qwen/Qwen2.5-0.5B-Instruct')
    over = [len(m[:n].pack('int8', words=False)) - packet_bytes(n, 896, 'int8') for n in (10, 40)]
    assert over[0] == over[1] < 150

def test_the_header_is_a_line_of_json():
    raw = message().pack('int8')
    assert json.loads(raw[17:].partition(b'\n')[0]) == {k: v for k, v in vars(open_packet(raw)[0]).items() if v is not None}
