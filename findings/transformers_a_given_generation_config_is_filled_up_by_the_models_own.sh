#!/usr/bin/env bash
# transformers 5.23.0: a `GenerationConfig` that is handed to `generate` does not stand in the place of the model's own: what it leaves open is
# taken from there, a repetition penalty and end tokens too. And None means two things: `eos_token_id=None` inside that configuration is what
# is left open, so a row ends at the model's own end token; the keyword `generate(eos_token_id=None)` ends nowhere. Whoever wants plain
# greedy words from any model has to write each neutral value down, and for no end token an id that there is not.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
lm = AutoModelForCausalLM.from_config(AutoConfig.for_model('llama', vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, initializer_range=.5, pad_token_id=0, bos_token_id=None, eos_token_id=None)).eval()
ids = torch.tensor([[5, 6, 7]])
def written(own, given=None, **asked):
    "What the model writes, with its own settings and those that it is given."
    lm.generation_config = GenerationConfig(pad_token_id=0, **own)
    if given is not None: asked['generation_config'] = GenerationConfig(max_new_tokens=6, pad_token_id=0, **given)
    else: asked['max_new_tokens'] = 6
    return lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **asked)[0,3:].tolist()
plain = written({})
end, penalty = dict(eos_token_id=plain[0]), dict(repetition_penalty=50.)
seen = {'its own end token, a configuration without one': len(written(end, {})), 'the same with eos_token_id=None in it': len(written(end, dict(eos_token_id=None))),
        'the keyword eos_token_id=None': len(written(end, eos_token_id=None)), 'an id that there is not': len(written(end, dict(eos_token_id=[-1])))}
for what, n in seen.items(): print(f'transformers {transformers.__version__}, {what}: {n} of 6 tokens written')
repeated = [written(penalty, given) == plain for given in ({}, dict(repetition_penalty=1.))]
print(f'its own repetition penalty, a configuration without one: plain words? {repeated[0]}; one that says 1: {repeated[1]}')
assert list(seen.values()) == [1, 1, 6, 6] and repeated == [False, True], 'this has changed'
PYTHON
