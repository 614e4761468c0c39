#!/usr/bin/env bash
# statsmodels 0.14.6: `multipletests(method='holm')` runs a full garbage collection at every call, however few the p-values; Bonferroni and
# Benjamini-Hochberg do not. In a process that has much loaded (torch, transformers: a million objects) a call takes a third of a second,
# where the arithmetic takes microseconds, and a table of a hundred comparisons half a minute. `gc.freeze()` before and `gc.unfreeze()` after
# the call avoid it.
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
seen = {}
for method in ('holm', 'bonferroni', 'fdr_bh'):
    full.clear()
    for _ in range(3): multipletests([.01, .04], method=method)
    seen[method] = len(full)
print(f'statsmodels {statsmodels.__version__}: full collections in 3 calls with 2 p-values each: {seen}')
assert seen == dict(holm=3, bonferroni=0, fdr_bh=0), 'this has changed'
PYTHON
