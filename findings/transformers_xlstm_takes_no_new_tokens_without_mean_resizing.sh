#!/usr/bin/env bash
# transformers 5.23.0: `resize_token_embeddings` with `mean_resizing=False` has the class draw the new rows, and xLSTM's does not draw the table
# that it is given but `self.embeddings`. A language model has none (its backbone does): AttributeError. On the bare model it is worse: the
# table that is there is drawn anew, all of it, before its rows are copied, and what was learned is lost without a word. With the default,
# `mean_resizing=True`, the class is not asked, and old rows stay as they are; rows of one's own can be written over the new ones after it.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
transformers.logging.set_verbosity_error()
families = dict(
    llama=dict(num_hidden_layers=2, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2),
    xlstm=dict(num_blocks=2, num_hidden_layers=2, num_heads=2, qk_dim_factor=1., v_dim_factor=1., chunk_size=8, autocast_kernel_dtype='float32'))
seen = {}
for family, kw in families.items():
    for kind in (AutoModelForCausalLM, AutoModel):
        for mean in (True, False):
            torch.manual_seed(0)
            model = kind.from_config(AutoConfig.for_model(family, vocab_size=50, hidden_size=64, **kw)).eval()
            before = model.get_input_embeddings().weight.detach().clone()
            try:
                after = model.resize_token_embeddings(52, mean_resizing=mean).weight.detach()
                what = 'old rows kept' if torch.equal(after[:50], before) else 'old rows drawn anew'
            except AttributeError as e: what = f'AttributeError, {e}'
            seen[type(model).__name__, mean] = what
for (name, mean), what in seen.items(): print(f'transformers {transformers.__version__}, {name}, mean_resizing={mean}: {what}')
other = {key: what for key, what in seen.items() if what != 'old rows kept'}
assert len(seen) == 8 and other == {
    ('xLSTMForCausalLM', False): "AttributeError, 'xLSTMForCausalLM' object has no attribute 'embeddings'",
    ('xLSTMModel', False): 'old rows drawn anew'}, 'this has changed'
PYTHON
