#!/usr/bin/env bash
# transformers 5.23.0: with `output_hidden_states=True`, `hidden_states[n]` of Llama, GPT-2 and most others is what layer n made, and `[0]` what goes
# into the first: the embeddings. (The last is taken behind the final norm.) Mamba, Mamba 2, Falcon Mamba and RWKV return as many states, but
# `[0]` is what the first layer made, the embeddings are in none, and the last two are the last layer's output, without and with the norm. A
# probe, a lens or a message read at "layer n" is so of a layer deeper in these families, with equal shapes and no word. Forward hooks on the
# layers read the same place in all of them.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
transformers.logging.set_verbosity_error()
sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=3, bos_token_id=1, eos_token_id=2)
scan = dict(state_size=4, conv_kernel=4, expand=2)
families = dict(
    llama=dict(intermediate_size=32, num_attention_heads=2, num_key_value_heads=2), gpt2=dict(n_head=2, n_positions=32),
    mamba=scan, falcon_mamba=scan, mamba2=scan | dict(num_heads=4, head_dim=8, n_groups=2, chunk_size=8),
    rwkv=dict(attention_hidden_size=16, context_length=32))
ids, seen = torch.arange(3, 9)[None], {}
for family, kw in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **kw)).eval()
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    places = {} # 0: into the first layer; n: out of layer n
    def keep_input(module, args, kwargs): places[0] = (args[0] if args else kwargs['hidden_states']).clone()
    layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    for n, layer in enumerate(layers, 1):
        def keep_output(module, args, out, n=n): places[n] = (out if isinstance(out, torch.Tensor) else out[0]).clone()
        layer.register_forward_hook(keep_output)
    with torch.no_grad(): out = model(ids, output_hidden_states=True, use_cache=False)
    def where(state):
        if torch.allclose(model.get_output_embeddings()(state), out.logits, atol=1e-5): return 'normed'
        return next((n for n, place in places.items() if torch.allclose(place, state)), None)
    seen[family] = [where(state) for state in out.hidden_states]
for family, at in seen.items(): print(f'transformers {transformers.__version__}, {family}: hidden_states are behind layers {at}')
early, late = [0, 1, 2, 'normed'], [1, 2, 3, 'normed']
assert seen == dict(llama=early, gpt2=early, mamba=late, falcon_mamba=late, mamba2=late, rwkv=late), 'this has changed'
PYTHON
