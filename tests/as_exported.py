"""A notebook run as nbdev does, but for the cells that it exports: in their place stands the module, as guests import it.

    python tests/as_exported.py NOTEBOOK

`test_repo` holds the two against each other; this way the notebook's tests are tests of the package, and its lines are measured.
The status is 1 where a cell fails."""
import re, sys
from pathlib import Path

import nbdev.test


class Shell(nbdev.test.CaptureShell):
    def run_all(self, nb, *args, **kw):
        sources = [c.source for c in nb.cells if c.cell_type == 'code']
        name = next((m[1] for m in (re.match(r'\s*#\|\s*default_exp\s+([\w.]+)', s) for s in sources) if m), None)
        instead = [f'import interlat.{name} as _room', 'globals().update({k: v for k, v in vars(_room).items() if not k.startswith("__")})']
        for c in nb.cells:
            if c.cell_type == 'code' and re.match(r'\s*#\|\s*export\b', c.source):
                c.source, instead = '\n'.join(instead), []
        return super().run_all(nb, *args, **kw)


if __name__ == '__main__':
    nbdev.test.CaptureShell = Shell
    ok, _ = nbdev.test.test_nb(Path(sys.argv[1]), skip_flags=['slow', 'gpu', 'net'])
    sys.exit(not ok)
