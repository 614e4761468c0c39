#!/usr/bin/env bash
# papermill 2.7.0: `inspect_notebook` (and `--help-notebook`) reads the parameters cell with a pattern for each line, not as Python. It does not
# see parameters with an annotation of more than one word (`int | None`, `Literal['a', 'b']`), text that holds an equals sign, two assignments
# on one line, unpacked or chained ones; for three of these six it says on the log that it cannot parse a line, for the others nothing. What it
# misses can still be set, and is not in the table that a caller checks names against.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install -q papermill==2.7.0
"$here/venv/bin/python" - "$here" <<'PYTHON'
import ast, logging, sys
from pathlib import Path
import nbformat, papermill
told = []
logging.getLogger('papermill').addFilter(lambda r: told.append(r.getMessage()))
for name in ('papermill.translators', 'papermill.translate'): logging.getLogger(name).addFilter(lambda r: told.append(r.getMessage()))
cell = """width: int | None = None
mode: Literal['a', 'b'] = 'a'
prompt = "solve x = 1"
steps = 1; seed = 2
low, high = 3, 4
first = second = 5
rate = 0.1
sizes = [1,
         2]"""
there = {n.id for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell, metadata=dict(tags=['parameters']))])
book.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
path = Path(sys.argv[1])/'a.ipynb'
nbformat.write(book, path)
seen = set(papermill.inspect_notebook(str(path)))
print(f'papermill {papermill.__version__}: of {len(there)} parameters it sees {sorted(seen)}, not {sorted(there - seen)}; told of {len(told)} lines')
assert seen == {'rate', 'sizes'} and len(there) == 11 and len(told) == 3, 'this has changed'
PYTHON
