#!/usr/bin/env bash
# transformers 5.23.0: Moshi's configuration has a `sliding_window`. The cache that its forward pass makes for itself keeps only what that window
# spans, but its attention mask has no window: a pass over a whole text lets each token see all before it. So steps on a cache give what a pass
# over the text gives up to the window, and other logits after it, without a word (Mistral: the same at every token, as both of its ways keep
# to the window). A cache made without the configuration, `DynamicCache()`, forgets nothing, and the steps are those of the whole pass.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
window, length, seen = 8, 20, {}
families = dict(moshi=dict(ffn_dim=32, audio_vocab_size=20, num_codebooks=2), mistral=dict(intermediate_size=32))
@torch.no_grad()
def stepped(model, ids, cache=None):
    "Logits, by one token a pass."
    logits = []
    for t in range(length):
        out = model(ids[:, t:t+1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, 0])
    return torch.stack(logits)
def apart(a, b): return (a - b).abs().amax(-1) > 1e-3
for family, kw in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        family, vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=64, sliding_window=window, initializer_range=.5, **kw)).eval()
    ids = torch.randint(3, 50, (1, length))
    other = ids.clone()
    other[0, 0] = 3 + (ids[0, 0] - 2)%47 # another first token
    with torch.no_grad(): whole, changed = model(ids).logits[0], model(other).logits[0]
    own, full = apart(stepped(model, ids), whole), apart(stepped(model, ids, DynamicCache()), whole)
    first = own.nonzero().flatten().tolist()
    reach = apart(changed, whole).nonzero().max().item() # the last token that the first one has any effect on
    seen[family] = (first[0] if first else None, full.any().item(), reach)
    print(f'transformers {transformers.__version__}, {family}, window {window}: steps off from token {seen[family][0]} on, at {len(first)} of '
          f'{length}; on a DynamicCache() at {full.sum()}; in the whole pass token 0 reaches token {reach}')
assert seen['moshi'] == (window, False, length - 1) and seen['mistral'] == (None, False, 2*(window - 1)), 'this has changed'
PYTHON
