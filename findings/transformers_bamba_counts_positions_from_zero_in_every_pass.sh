#!/usr/bin/env bash
# transformers 5.23.0: without `position_ids`, Bamba counts positions from 0 in every forward pass, however much its cache holds; Llama and
# most others go on from there. In a loop of one's own each new token so stands at position 0 for its attention layers: other logits than those
# of the whole text, without a word, and wherever the attention layer is. With `position_ids` the steps are exact; `generate` gives them, and
# writes with a cache what it writes without. (The default configuration has mamba layers alone and raises a ValueError where it makes a cache.)
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
transformers.logging.set_verbosity_error()
sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=.5)
scan = dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_chunk_size=8)
length, seen = 12, {}
for family, kw in (('llama', {}), ('bamba', scan | dict(attn_layer_indices=[0])), ('bamba', scan | dict(attn_layer_indices=[1]))):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **kw)).eval()
    ids = torch.randint(3, 50, (1, length))
    with torch.no_grad():
        whole, off = model(ids).logits[0], {}
        for given in (False, True):
            cache, logits = None, []
            for t in range(length):
                where = dict(position_ids=torch.tensor([[t]])) if given else {}
                out = model(ids[:, t:t+1], past_key_values=cache, use_cache=True, **where)
                cache = out.past_key_values
                logits.append(out.logits[0, 0])
            off[given] = ((torch.stack(logits) - whole).abs().amax(-1) > 1e-3).sum().item()
        written = [model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use, eos_token_id=None) for use in (True, False)]
    assert torch.equal(*written), 'generate has changed'
    name = ' '.join([family, *map(str, kw.get('attn_layer_indices', []))])
    seen[name] = off
    print(f'transformers {transformers.__version__}, {name}: of {length} steps {off[False]} off without position_ids, {off[True]} with them')
assert seen == {'llama': {False: 0, True: 0}, 'bamba 0': {False: 11, True: 0}, 'bamba 1': {False: 11, True: 0}}, 'this has changed'
PYTHON
