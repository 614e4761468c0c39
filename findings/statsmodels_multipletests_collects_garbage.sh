#!/usr/bin/env bash
# statsmodels 0.14.6: `multipletests` runs a full garbage collection at every call, whatever the method and however few the p-values.
# In a process that has much loaded (torch, transformers: a million objects) a call takes a third of a second, where the arithmetic
# takes microseconds; a table of a hundred comparisons then takes half a minute. `gc.freeze()` before and `gc.unfreeze()` after avoid it.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q statsmodels==0.14.6 numpy==2.2.6 scipy==1.15.3 pandas==2.3.3
"$here/venv/bin/python" - <<'PYTHON'
import gc, statsmodels
from statsmodels.stats.multitest import multipletests
full = []
gc.callbacks.append(lambda phase, info: full.append(info) if phase == 'start' and info['generation'] == 2 else None)
for method in ('holm', 'bonferroni', 'fdr_bh'): multipletests([.01, .04], method=method)
print(f'statsmodels {statsmodels.__version__}: {len(full)} full collections in 3 calls with 2 p-values each')
assert len(full) == 3, 'this has changed'
PYTHON
