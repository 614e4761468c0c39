#!/usr/bin/env bash
# transformers 5.23.0: a GGUF file says by a name, `tokenizer.ggml.pre`, how text is cut before pieces are merged. transformers has a table of some
# of the names that llama.cpp knows; with any other it cuts as GPT-2 does, without a word. So the files of SmolLM and SmolLM2, StarCoder, Refact,
# Command-R, CodeShell, Exaone and Minerva, whose digits are pieces of their own, get other tokens than llama.cpp makes of the same file wherever
# two or more blanks stand before a digit ("\n\n1." in any list), and StableLM 2's at digits, too, though it cuts as Qwen 2 does, which is in the
# table. Nothing fails; the model gets pieces that it has not learned to read there.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.2.6 xllamacpp==2026.10.11549
HF_HUB_OFFLINE=1 "$here/venv/bin/python" - "$here" <<'PYTHON'
import json, sys, urllib.request
import gguf, numpy as np, transformers, xllamacpp
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
folder, width = sys.argv[1], 32
merges = [('Ċ', 'Ċ'), ('Ġ', 'Ġ'), ('1', '2'), ('a', 'b')]
tokens = [*bytes_to_unicode().values(), *(a + b for a, b in merges), '<s>']
def write(name):
    "A random model of one layer, whose tokenizer is byte-level and cuts text by a name."
    w, rng = gguf.GGUFWriter(f'{folder}/{name}.gguf', 'llama'), np.random.default_rng(0)
    for add, n in ((w.add_context_length, 64), (w.add_embedding_length, width), (w.add_block_count, 1), (w.add_feed_forward_length, width),
                   (w.add_head_count, 2), (w.add_head_count_kv, 2), (w.add_rope_dimension_count, width//2), (w.add_layer_norm_rms_eps, 1e-5),
                   (w.add_tokenizer_model, 'gpt2'), (w.add_tokenizer_pre, name), (w.add_token_list, tokens),
                   (w.add_token_types, [1]*(len(tokens) - 1) + [3]), (w.add_token_merges, [' '.join(m) for m in merges]),
                   (w.add_bos_token_id, len(tokens) - 1), (w.add_eos_token_id, len(tokens) - 1), (w.add_add_bos_token, False)): add(n)
    w.add_tensor('token_embd.weight', rng.normal(size=(len(tokens), width)).astype(np.float32))
    for part in ('attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'):
        w.add_tensor(f'blk.0.{part}.weight', rng.normal(size=(width, width)).astype(np.float32))
    for norm in ('blk.0.attn_norm', 'blk.0.ffn_norm', 'output_norm'): w.add_tensor(f'{norm}.weight', np.ones(width, np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
def llama_cpp(name, text):
    "What llama.cpp makes of a text."
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.cpuparams.n_threads = f'{folder}/{name}.gguf', 64, False, 1
    server = xllamacpp.Server(params)
    asked = urllib.request.Request(f'{server.listening_address}/tokenize', json.dumps(dict(content=text)).encode(), {'Content-Type': 'application/json'})
    return [tokens[i] for i in json.load(urllib.request.urlopen(asked))['tokens']]
text, apart = 'ab\n\n12', []
for name in ('gpt-2', 'qwen2', 'smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b', 'stablelm2'):
    write(name)
    ours = AutoTokenizer.from_pretrained(folder, gguf_file=f'{name}.gguf').tokenize(text)
    theirs = llama_cpp(name, text)
    if ours != theirs: apart.append(name)
    print(f"{name:11} {text!r} in transformers {transformers.__version__}: {' '.join(ours):13} in llama.cpp: {' '.join(theirs)}")
assert apart == ['smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b', 'stablelm2'], 'this has changed'
PYTHON
