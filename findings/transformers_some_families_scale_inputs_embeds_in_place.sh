#!/usr/bin/env bash
# transformers 5.23.0: the forward passes of some families change the tensor that is given as `inputs_embeds`. CTRL multiplies it by the root
# of the width, in place. Whoever reads the same embeddings again (a longer text, a second message in the same place, a reference without a
# cache) reads others, without a word: the second of two equal calls gives other logits. A clone of what is given avoids it.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
sizes = dict(ctrl=dict(n_embd=16, n_layer=2, n_head=4, dff=32), gpt2=dict(n_embd=16, n_layer=2, n_head=4))
changed = {}
for family, kw in sizes.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=50, n_positions=32, **kw)).eval()
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.arange(3, 9)[None])
        before = embeds.clone()
        first, second = (model(inputs_embeds=embeds).logits for _ in range(2))
    changed[family] = not torch.equal(embeds, before)
    factor = (embeds/before).mean().item()
    print(f'transformers {transformers.__version__}, {family}: embeddings times {factor:.0f} after two calls, logits apart {(first - second).abs().max():.3f}')
assert changed == dict(ctrl=True, gpt2=False), 'this has changed'
PYTHON
