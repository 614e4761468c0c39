"""A notebook run as nbdev does, but for the cells that it exports: in their place stands the module, as guests import it.

    python tests/as_exported.py NOTEBOOK

`test_repo` holds the two against each other; this way the notebook's tests are tests of the package, and its lines are measured.
The status is 1 where a cell fails."""
import sys
from pathlib import Path

import nbdev.test


class Shell(nbdev.test.CaptureShell):
    def run_all(self, nb, *args, **kw):
        "nbdev has taken the directives out of the cells' text by now: they stand in `directives_`."
        told = [c for c in nb.cells if c.cell_type == 'code' and c.directives_]
        exported = [c for c in told if 'export' in c.directives_]
        name = next((c.directives_['default_exp'][0] for c in told if 'default_exp' in c.directives_), None)
        for c in exported: c.source = ''
        if exported: exported[0].source = as_guests_import(f'interlat.{name}')
        return super().run_all(nb, *args, **kw)


def as_guests_import(module): return f'import {module} as _room\nglobals().update({{k: v for k, v in vars(_room).items() if not k.startswith("__")}})'


if __name__ == '__main__':
    nbdev.test.CaptureShell = Shell
    ok, _ = nbdev.test.test_nb(Path(sys.argv[1]), skip_flags=['slow', 'gpu', 'net'])
    sys.exit(not ok)
