#!/usr/bin/env bash
# papermill 2.7.0: a value that it has no rule for is put into the notebook as text, without a word. A parameter (3, 5) arrives in the kernel
# as the string "(3, 5)", also inside a list or a mapping, and the keys of a mapping become text: {1: 'a'} arrives as {"1": "a"}. A loop over
# such a parameter goes over the letters of it. Lists, numbers, None and infinity arrive as they are.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q papermill==2.7.0 ipykernel==7.4.0
"$here/venv/bin/python" - "$here" <<'PYTHON'
import sys, warnings
from pathlib import Path
import nbformat, papermill
warnings.simplefilter('ignore')
here = Path(sys.argv[1])
first = nbformat.v4.new_code_cell('given = None', metadata=dict(tags=['parameters']))
book = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell('print(repr(given))')])
book.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
nbformat.write(book, here/'a.ipynb')
seen = {}
for given in ((3, 5), [(3, 5)], {1: 'a'}, [3, 5], float('inf')):
    ran = papermill.execute_notebook(here/'a.ipynb', here/'b.ipynb', dict(given=given), progress_bar=False)
    seen[repr(given)] = ran.cells[-1].outputs[0].text.strip()
    print(f'papermill {papermill.__version__}: {given!r} arrives as {seen[repr(given)]}')
assert seen == {'(3, 5)': "'(3, 5)'", '[(3, 5)]': "['(3, 5)']", "{1: 'a'}": "{'1': 'a'}", '[3, 5]': '[3, 5]', 'inf': 'inf'}, 'this has changed'
PYTHON
