#!/usr/bin/env bash
# transformers 5.23.0: what a forward pass is given in further keyword arguments goes through the layers to the attention function, also to one
# of your own, registered with `AttentionInterface`; in most families. Nemotron's layers take them and pass none on: its attention function gets
# what the layer names (the mask, the position ids) and nothing else, without a word. Whatever is steered that way (a bias, a mark of whose tokens
# these are, bounds of packed texts) has no effect in this family. Bind it to the function instead, or set it on the modules.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
heard = []
def listening(module, query, key, value, mask, note=None, **kwargs):
    heard.append(note)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
AttentionInterface.register('listening', listening)
AttentionMaskInterface.register('listening', sdpa_mask)
seen = {}
for family in ('llama', 'mistral', 'nemotron'):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        family, vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=32), attn_implementation='listening').eval()
    heard.clear()
    with torch.no_grad(): model(torch.arange(3, 9)[None], note='read me')
    seen[family] = list(heard)
    print(f'transformers {transformers.__version__}, {family}: the attention function of its two layers was given {seen[family]}')
assert seen == dict(llama=['read me']*2, mistral=['read me']*2, nemotron=[None]*2), 'this has changed'
PYTHON
