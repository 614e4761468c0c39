#!/usr/bin/env bash
# transformers 5.23.0: a setting that differs between the layers of a model is refused where the whole configuration is asked for it. The error
# (AmbiguousGlobalPerLayerAttributeError) is a RuntimeError, not an AttributeError, so `getattr` does not give its default and `hasattr` does
# not answer: both raise. A text configuration of Gemma 4 has such a setting, `head_dim`, whose full layers have `global_head_dim`. What much
# software asks, `getattr(config, 'head_dim', None) or hidden_size // heads`, ends there. `config.per_layer_config[n].head_dim` tells each layer's;
# `vars(config).get('head_dim')` what the whole one has, which is the sliding layers'. Where both sizes are equal, nothing raises.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q transformers==5.23.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - <<'PYTHON'
import transformers
from transformers import AutoConfig
def config(**kw):
    return AutoConfig.for_model(
        'gemma4_text', vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        layer_types=['sliding_attention', 'full_attention'], num_kv_shared_layers=0, head_dim=8, **kw)
def outcome(f):
    try: return f()
    except Exception as e: return [kind.__name__ for kind in type(e).__mro__[:2]]
refused = ['AmbiguousGlobalPerLayerAttributeError', 'RuntimeError']
differ, same = config(global_head_dim=16), config(global_head_dim=8)
for name, c, expected in (('8 and 16', differ, refused), ('8 and 8', same, None)):
    asked = [outcome(lambda: getattr(c, 'head_dim', None)), outcome(lambda: hasattr(c, 'head_dim'))]
    print(f'transformers {transformers.__version__}, head sizes {name}: getattr with a default gives {asked[0]}, hasattr {asked[1]}')
    assert asked == ([expected]*2 if expected else [8, True]), 'this has changed'
sizes, whole = [layer.head_dim for layer in differ.per_layer_config], vars(differ).get('head_dim')
missing = getattr(differ, 'no_such_setting', None), hasattr(differ, 'no_such_setting')
print(f'by layer {sizes}, in vars {whole}; of a setting that is not there: {missing}')
assert sizes == [8, 16] and whole == 8 and missing == (None, False), 'this has changed'
PYTHON
