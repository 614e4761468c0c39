"""What a change needs, as words for pytest: the repository's checks; and of every file that differs from the last commit, or with `--base REVISION`
from that one, its notebook, and the tests that import it.

    python tests/quick.py [--base REVISION]"""
import argparse, subprocess
from pathlib import Path

from house import House

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ['tests/test_repo.py', '--deselect=tests/test_repo.py::test_pages_show_what_is_kept']


def changed(base):
    "Files that are not as they are in `base`, new ones included."
    git = lambda *words: subprocess.run(['git', *words], cwd=ROOT, text=True, check=True, capture_output=True).stdout.splitlines()
    return {*git('diff', '--name-only', base), *git('ls-files', '-o', '--exclude-standard')}


def wanted(files, house):
    "Test files, and names of notebooks, for these files."
    notebooks = {m: f'nbs/{room}.ipynb' for m, room in house.rooms.items()}
    modules = {m for m in house.rooms if {notebooks[m], f"interlat/{m.replace('.', '/')}.py"} & files}
    tests = {p for p in (ROOT/'tests').glob('test_*.py') if f'tests/{p.name}' in files}
    for p in (ROOT/'tests').glob('test_*.py'):
        if any(f'from interlat.{m} import' in p.read_text(encoding='utf-8') for m in modules): tests.add(p)
    return sorted(f'tests/{p.name}' for p in tests), sorted(house.rooms[m] for m in modules)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', default='HEAD')
    tests, notebooks = wanted(changed(parser.parse_args().base), House(ROOT))
    print(*CHECKS, *tests, *(f'tests/test_notebooks.py::test_notebook_runs[{n}]' for n in notebooks), sep='\n')
