#!/usr/bin/env bash
# ipykernel 7.4.0: whose child a kernel is comes from the environment (JPY_PARENT_PID), but it is read once, when `ipykernel.kernelapp` is
# imported, as the default of a trait. A program that imports ipykernel first and becomes a kernel later (a fork server, an embedded kernel)
# has the variable set and no parent: the thread that ends an orphaned kernel is never started, and the kernel stays when its parent is
# killed. `--IPKernelApp.parent_handle=PID` on the command line does what the variable should have done.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q ipykernel==7.4.0
ask='import os, sys
if "late" in sys.argv: import ipykernel.kernelapp
os.environ["JPY_PARENT_PID"] = "4242"
from ipykernel.kernelapp import IPKernelApp
print(IPKernelApp().parent_handle)'
early=$("$here/venv/bin/python" -c "$ask") late=$("$here/venv/bin/python" -c "$ask" late)
echo "ipykernel 7.4.0: parent $early where the variable is set before the import, $late where it is set after it"
[ "$early" = 4242 ] && [ "$late" = 0 ]
