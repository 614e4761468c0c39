#!/usr/bin/env bash
# transformers 5.23.0: of a StarCoder 2 GGUF file the base of the rotary positions is not read (`starcoder2.rope.freq_base`), of a Phi 3 file the
# window of its attention (`phi3.attention.sliding_window`). The configuration gets its defaults, 10,000 and no window, where StarCoder2-3B has
# 999,999 and Phi-3-mini-4k 2,047. Nothing is said: every state of the first is off, and of the second all past the window. With both put into the
# configuration by hand the same files give the model that was written.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.2.6
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - "$here" <<'PYTHON'
import sys
import gguf, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
folder, tokens, seen = sys.argv[1], [*bytes_to_unicode().values(), 'ĊĊ', '<s>'], {}
def write(family, model):
    "A model as llama.cpp keeps it."
    c, w = model.config, gguf.GGUFWriter(f'{folder}/{family}.gguf', family)
    for add, n in ((w.add_context_length, c.max_position_embeddings), (w.add_embedding_length, c.hidden_size), (w.add_block_count, c.num_hidden_layers),
                   (w.add_feed_forward_length, c.intermediate_size), (w.add_head_count, c.num_attention_heads), (w.add_head_count_kv, c.num_key_value_heads),
                   (w.add_rope_freq_base, c.rope_parameters['rope_theta']), (w.add_rope_dimension_count, c.hidden_size//c.num_attention_heads),
                   (w.add_tokenizer_model, 'gpt2'), (w.add_tokenizer_pre, 'gpt-2'), (w.add_token_list, tokens), (w.add_token_merges, ['Ċ Ċ']),
                   (w.add_token_types, [1]*(len(tokens) - 1) + [3]), (w.add_bos_token_id, len(tokens) - 1), (w.add_eos_token_id, len(tokens) - 1),
                   (w.add_pad_token_id, 0)): add(n)
    if family == 'starcoder2': w.add_layer_norm_eps(c.norm_epsilon)
    else: w.add_layer_norm_rms_eps(c.rms_norm_eps)
    if c.sliding_window: w.add_sliding_window(c.sliding_window)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], c.num_hidden_layers)
    for name, data in model.base_model.state_dict(prefix='model.').items(): # the head is tied
        stem, end = name.rsplit('.', 1)
        w.add_tensor(f'{names.get_name(stem)}.{end}', data.float().numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
def off(family, model, ids, **how):
    "The largest difference of the logits, by position."
    again = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f'{family}.gguf', dtype=torch.float32, **how).eval()
    with torch.no_grad(): return (again(ids).logits - model(ids).logits).abs().amax((0, 2)), again.config
shape = dict(vocab_size=len(tokens), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
             max_position_embeddings=128, initializer_range=.3, tie_word_embeddings=True, bos_token_id=len(tokens) - 1, eos_token_id=len(tokens) - 1)
base, window = dict(rope_theta=1e6, rope_type='default'), 16
for family, settings in (('starcoder2', dict(rope_parameters=base)), ('phi3', dict(sliding_window=window))):
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape, **settings)).eval(), torch.randint(3, 250, (1, 60))
    write(family, model)
    apart, config = off(family, model, ids)
    told = AutoConfig.from_pretrained(folder, gguf_file=f'{family}.gguf')
    if family == 'phi3': told.sliding_window = window
    else: told.rope_parameters['rope_theta'] = 1e6
    by_hand, _ = off(family, model, ids, config=told)
    print(f'transformers {transformers.__version__}, {family}: base {config.rope_parameters["rope_theta"]:g}, window {config.sliding_window}; logits off by '
          f'{apart[:window].max():.3g} in the first {window} tokens, {apart.max():.3g} in all {ids.shape[1]}; told by hand {by_hand.max():.1g}')
    seen[family] = (apart[:window].max() > .1, apart.max() > .1, by_hand.max() < 1e-4)
assert all(seen['starcoder2']) and [bool(x) for x in seen['phi3']] == [False, True, True], 'this has changed'
PYTHON
