#!/usr/bin/env bash
# umap-learn 0.5.12: twenty times the same vector is drawn as a cloud of twenty points, spread over several units, without a word. Distances in the
# input are exactly 0; the map shows neighbours and gaps that are the random start's. scikit-learn's PCA puts all of them on one point.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q umap-learn==0.5.12 numpy==2.2.6
"$here/venv/bin/python" - <<'PYTHON'
import warnings
import numpy as np, umap
from sklearn.decomposition import PCA
told = []
x = np.tile(np.random.default_rng(0).normal(size=(1, 8)), (20, 1)).astype(np.float32)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    drawn = umap.UMAP(n_neighbors=15, random_state=0, n_jobs=1).fit_transform(x)
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    flat = PCA(2).fit_transform(x)
about = [str(w.message) for w in told if any(word in str(w.message).lower() for word in ('same', 'identical', 'duplicate', 'equal'))]
wide, plain = np.ptp(drawn, axis=0).max(), np.ptp(flat, axis=0).max()
print(f'umap-learn {umap.__version__}: 20 equal vectors are drawn {wide:.1f} units wide, warnings about it: {about}; PCA: {plain:.1e}')
assert np.isfinite(drawn).all() and wide > 1 and not about and plain < 1e-5, 'this has changed'
PYTHON
