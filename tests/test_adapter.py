"The adapter does what the original does, whatever the padding."
from pathlib import Path
import pytest, torch
from cast import apart
from safetensors.torch import load_file
from interlat.agents.adapter import AdaptiveProjection, HiddenStateProcessor

FIXTURE = Path(__file__).parent/'fixtures'/'adapter.safetensors'
SHARED = Path(__file__).parents[2]/'shared'/'golden'

@pytest.fixture(params=[FIXTURE, SHARED/'adapter.safetensors'], ids=['fixture', 'shared'])
def golden(request):
    if not request.param.exists(): pytest.skip(f'{request.param} is not here')
    return load_file(request.param)

def load(golden, num_heads=4):
    "The adapter with the original's weights: width 48, which has 4 heads (the original's prepended_config.json says so)."
    m = HiddenStateProcessor(48, num_heads=num_heads)
    m.load_state_dict({k: v for k, v in golden.items() if '.' in k})  # strict: the names are the original's
    return m.eval()

def test_golden(golden):
    with torch.no_grad():
        out = load(golden)(golden['input'][None])[0]
        projected = load(golden).adaptive_proj(golden['input'])
    assert apart(out, golden['processed']) < 1e-5
    assert apart(projected, golden['adaptive_projection_of_input']) < 1e-5

def test_golden_tells_head_counts_apart(golden):
    with torch.no_grad(): out = load(golden, num_heads=8)(golden['input'][None])[0]
    assert (out - golden['processed']).abs().max() > 1e-3

def test_golden_in_a_padded_batch(golden):
    x = golden['input']
    batch = torch.full((3, 20, 48), 1e4)
    lengths = torch.tensor([12, 20, 5])
    batch[0, :12], batch[1], batch[2, :5] = x, torch.randn(20, 48, generator=torch.Generator().manual_seed(0)), x[:5]
    mask = torch.arange(20) < lengths[:, None]
    with torch.no_grad(): out, short = load(golden)(batch, mask), load(golden)(x[None, :5])
    assert apart(out[0, :12], golden['processed']) < 1e-5
    assert apart(out[2, :5], short[0]) < 5e-6
    assert (out[~mask] == 0).all()

def test_original_checkpoint_loads():
    path = SHARED/'original_checkpoint'/'hidden_mha_state.pt'
    if not path.exists(): pytest.skip(f'{path} is not here')
    state = torch.load(path, weights_only=True)
    ours = HiddenStateProcessor(48, num_heads=4).state_dict()
    theirs = {f'{part}.{k}': v for part, tensors in state.items() if isinstance(tensors, dict) for k, v in tensors.items()}
    numbers = {'adaptive_proj.scale', 'adaptive_proj.output_scale'} # ours are vectors of one
    assert {k: v.shape for k, v in ours.items() if k not in numbers} == {k: v.shape for k, v in theirs.items() if k not in numbers}
    assert {k: v.numel() for k, v in ours.items()} == {k: v.numel() for k, v in theirs.items()}
    assert abs(theirs['adaptive_proj.scale'] - state['scale']) < 1e-6

@pytest.mark.parametrize('train', (False, True))
def test_padding_and_gradients(train):
    "Garbage in the padding, and rows of nothing else, leave outputs and gradients finite and right."
    torch.manual_seed(0)
    m = HiddenStateProcessor(32, input_size=16).train(train)
    h = torch.randn(3, 6, 16)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    h[~mask] = float('nan')
    h.requires_grad_()
    out = m(h, mask)
    assert (out[~mask] == 0).all() and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for n, p in m.named_parameters() if n != 'hidden_mha.in_proj_bias')
    assert h.grad[mask].isfinite().all() and (h.grad[~mask] == 0).all()

def test_one_batch_equals_one_by_one():
    torch.manual_seed(0)
    m = HiddenStateProcessor(32).eval().double()
    h, lengths = torch.randn(5, 9, 32), [9, 1, 4, 7, 2]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together, alone = m(h, mask), [m(h[i:i+1, :n]) for i, n in enumerate(lengths)]
    for row, one, n in zip(together, alone, lengths): assert apart(row[:n], one[0]) < 1e-12

def test_types_and_empty_messages():
    m = HiddenStateProcessor(32).eval()
    h = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    assert m(h.bfloat16()).dtype == torch.float32 and m.bfloat16()(h).dtype == torch.bfloat16
    assert m(h[:, :0].bfloat16()).shape == (1, 0, 32)

def test_initial_values():
    torch.manual_seed(0)
    p = AdaptiveProjection(256)
    assert (p.scale.item(), p.output_scale.item()) == (pytest.approx(.2), pytest.approx(.1))
    assert p.proj[0].weight.std().item() == pytest.approx(.02, rel=.05)
    bound = .01 * (6/512)**.5  # Xavier-uniform with gain 0.01
    assert bound*.99 < p.proj[3].weight.abs().max() <= bound
    assert not p.proj[0].bias.any() and not p.proj[3].bias.any()

def test_same_width_needs_no_projector_and_another_saves_it():
    assert not any('input_proj' in k for k in HiddenStateProcessor(32, input_size=32).state_dict())
    torch.manual_seed(0)
    a, b = HiddenStateProcessor(32, input_size=48).eval(), HiddenStateProcessor(32, input_size=48).eval()
    b.load_state_dict(a.state_dict())
    h = torch.randn(2, 3, 48)
    assert torch.equal(a(h), b(h))
