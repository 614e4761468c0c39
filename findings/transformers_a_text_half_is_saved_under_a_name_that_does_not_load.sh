#!/usr/bin/env bash
# transformers 5.23.0: given the configuration of a model of text and images, `AutoModelForCausalLM` makes a language model of its text half.
# Saved, it has the text half's own `model_type`, and for some families (Emu3, Mllama) that name is in no list of language models: what
# `AutoModelForCausalLM.from_config` made and `save_pretrained` wrote, `AutoModelForCausalLM.from_pretrained` refuses with a ValueError, though
# `AutoConfig` reads it. Llama 4's text half comes back. The class that `architectures` in config.json names loads them all.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import json, tempfile
from pathlib import Path
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
text = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
families = dict(emu3={}, mllama=dict(cross_attention_layers=[1]), llama4=dict(
    intermediate_size_mlp=32, head_dim=8, num_local_experts=2, interleave_moe_layer_step=1))
def loaded(kind, folder, model):
    try: again = kind.from_pretrained(folder)
    except ValueError as e: return 'ValueError, ' + str(e).split(' <')[0]
    ours, theirs = model.state_dict(), again.state_dict()
    return 'the same' if ours.keys() == theirs.keys() and all(torch.equal(w, theirs[name]) for name, w in ours.items()) else 'another'
seen = {}
for family, kw in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, text_config=text | kw)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = json.loads((Path(folder)/'config.json').read_text())
        own = getattr(transformers, saved['architectures'][0])
        auto, named = loaded(AutoModelForCausalLM, folder, model), loaded(own, folder, model)
        read = type(AutoConfig.from_pretrained(folder)).__name__
    seen[family] = saved['model_type'], read, auto, named
    print(f"transformers {transformers.__version__}, {family}: saved as {saved['model_type']}; AutoConfig reads {read}; "
          f"AutoModelForCausalLM: {auto}; {own.__name__}: {named}")
refused = 'ValueError, Unrecognized configuration class'
assert seen == dict(
    emu3=('emu3_text_model', 'Emu3TextConfig', refused, 'the same'), mllama=('mllama_text_model', 'MllamaTextConfig', refused, 'the same'),
    llama4=('llama4_text', 'Llama4TextConfig', 'the same', 'the same')), 'this has changed'
PYTHON
