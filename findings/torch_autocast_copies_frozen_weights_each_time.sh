#!/usr/bin/env bash
# torch 2.13.0: under autocast a float32 weight is cast to bfloat16 where a matrix product wants it, and the copy is cached for the next
# product; but only a leaf that requires a gradient is cached. A frozen weight is cast anew at each use, and as the backward pass to the
# inputs needs it, every pass keeps a copy of its own. Freezing a model's weights can so take more memory than training them would save:
# two passes through a frozen float32 model hold two bfloat16 copies of it. Load what is frozen in bfloat16.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 numpy
"$here/venv/bin/python" - <<'PY'
import torch
def copies(trained, passes):
    "How many bfloat16 copies of one weight autograd holds."
    layer, held = torch.nn.Linear(512, 512, bias=False).requires_grad_(trained), {}
    def pack(t):
        held[t.untyped_storage().data_ptr()] = t
        return t
    x = torch.randn(1, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast('cpu', torch.bfloat16):
        y = [layer(x) for _ in range(passes)]
    return sum(t.numel() == 512*512 for t in held.values())
found = {('trained' if t else 'frozen'): [copies(t, n) for n in (1, 2, 3)] for t in (True, False)}
print('torch', torch.__version__, 'copies of a weight after 1, 2 and 3 passes:', found)
assert found == dict(trained=[1, 1, 1], frozen=[1, 2, 3])
PY
