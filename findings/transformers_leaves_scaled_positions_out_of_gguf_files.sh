#!/usr/bin/env bash
# transformers 5.23.0: a GGUF file says how the rotary positions of its model are scaled (`rope.scaling.*`, or the tensor `rope_freqs.weight` of
# Llama 3.1 to 3.3). For Llama and Qwen 2 transformers reads the base and leaves the scaling out: the configuration that comes says `default`, and
# the logits are those of the same file without it, without a word. llama.cpp scales, and a configuration that is told the file's own values
# (`rope_type`, `factor`, `original_max_position_embeddings`) gives llama.cpp's numbers.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.2.6 xllamacpp==2026.10.11549
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - "$here" <<'PYTHON'
import json, random, sys
import gguf, numpy as np, torch, transformers, xllamacpp
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
folder, width, heads, depth = sys.argv[1], 64, 2, 2
tokens = [*bytes_to_unicode().values(), 'ĊĊ', '<s>']
def write(name, family, kind=None, said=(), factors=None):
    "A random model, the same for the same family, whose file scales positions in some way."
    w, rng = gguf.GGUFWriter(f'{folder}/{name}.gguf', family), np.random.default_rng(0)
    for add, n in ((w.add_context_length, 512), (w.add_embedding_length, width), (w.add_block_count, depth), (w.add_feed_forward_length, width),
                   (w.add_head_count, heads), (w.add_head_count_kv, heads), (w.add_rope_dimension_count, width//heads), (w.add_rope_freq_base, 1e4),
                   (w.add_layer_norm_rms_eps, 1e-5), (w.add_tokenizer_model, 'gpt2'), (w.add_tokenizer_pre, 'gpt-2'), (w.add_token_list, tokens),
                   (w.add_token_types, [1]*(len(tokens) - 1) + [3]), (w.add_token_merges, ['Ċ Ċ']), (w.add_bos_token_id, len(tokens) - 1),
                   (w.add_eos_token_id, len(tokens) - 1), (w.add_add_bos_token, False)): add(n)
    if kind: w.add_rope_scaling_type(kind)
    if 'factor' in said: w.add_rope_scaling_factor(said['factor'])
    if 'original_max_position_embeddings' in said: w.add_rope_scaling_orig_ctx_len(said['original_max_position_embeddings'])
    if factors is not None: w.add_tensor('rope_freqs.weight', factors.astype(np.float32))
    def random_tensor(name, *shape): w.add_tensor(name, rng.normal(0, .3, shape).astype(np.float32))
    random_tensor('token_embd.weight', len(tokens), width)
    for block in range(depth):
        for part in ('attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'): random_tensor(f'blk.{block}.{part}.weight', width, width)
        for part in ('attn_q', 'attn_k', 'attn_v') if family == 'qwen2' else (): random_tensor(f'blk.{block}.{part}.bias', width)
        for norm in ('attn_norm', 'ffn_norm'): w.add_tensor(f'blk.{block}.{norm}.weight', np.ones(width, np.float32))
    w.add_tensor('output_norm.weight', np.ones(width, np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
text = ''.join(random.Random(1).choices('abcdefgh', k=100))
def ours(name, told=None):
    "The most probable next token's log-probability, in transformers; with what the configuration is told."
    how = {}
    if told:
        how['config'] = AutoConfig.from_pretrained(folder, gguf_file=f'{name}.gguf')
        how['config'].rope_parameters.update(told)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f'{name}.gguf', dtype=torch.float32, **how).eval()
    with torch.no_grad(): logits = model(torch.tensor([[tokens.index(c) for c in text]])).logits[0, -1]
    return logits.log_softmax(-1).max().item()
def llama_cpp(name):
    "The same in llama.cpp."
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.cpuparams.n_threads = f'{folder}/{name}.gguf', 256, False, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    said = xllamacpp.Server(params).handle_completions(dict(prompt=text, n_predict=1, n_probs=1, temperature=0))
    said = json.loads(said) if isinstance(said, str) else said
    return said['choices'][0]['logprobs']['content'][0]['logprob']
kinds, off = gguf.RopeScalingType, {}
ways = dict(linear=(kinds.LINEAR, dict(factor=4.)), yarn=(kinds.YARN, dict(factor=4., original_max_position_embeddings=64)))
for family in ('qwen2', 'llama'):
    write(f'{family}-plain', family)
    plain = ours(f'{family}-plain')
    for way, (kind, said) in ways.items():
        name = f'{family}-{way}'
        write(name, family, kind, said)
        found, told, theirs = ours(name), ours(name, dict(said, rope_type=way)), llama_cpp(name)
        print(f'transformers {transformers.__version__}, {name}: {found:.3f} (without scaling {plain:.3f}), told by hand {told:.3f}, llama.cpp {theirs:.3f}')
        off[name] = found == plain and abs(found - theirs) > .05 and abs(told - theirs) < .02
write('llama-factors', 'llama', factors=np.linspace(1, 8, width//heads//2))
found, theirs = ours('llama-factors'), llama_cpp('llama-factors')
print(f'transformers {transformers.__version__}, llama with rope_freqs.weight: {found:.3f} (without {plain:.3f}), llama.cpp {theirs:.3f}')
off['factors'] = found == plain and abs(found - theirs) > .05
assert all(off.values()), f'this has changed: {off}'
PYTHON
