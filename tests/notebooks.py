"Reading the repository's notebooks, for the tests."
import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if p.name != 'index.ipynb')
EXPERIMENTS = sorted((ROOT/'nbs'/'experiments').glob('*.ipynb'))
TUTORIALS = sorted((ROOT/'nbs'/'tutorials').glob('T*.ipynb'))
PAGES = sorted((ROOT/'nbs'/'pages').glob('*.ipynb'))
ALL = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def cells(path):
    "The notebook's cells, each with its source as one string."
    return [dict(c, source=''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def module(path):
    "Name of the module that a library notebook exports."
    m = re.match(r'#\| default_exp (\w+)\s*$', cells(path)[0]['source'])
    return m and m[1]


def number(path):
    "The part of a notebook's name that orders it: `'04a'` of `04a_gamefile.ipynb`."
    return path.stem.split('_')[0]
