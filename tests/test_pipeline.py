"The pipeline cut off and gone on with; budgets that stand in recipes; dry runs that find what would stop a run."
import json, re, subprocess, sys, time
from dataclasses import replace

import pandas as pd, pytest
from browser import draws
from notebooks import ROOT, start_run

from interlat.games.generate import generate_games
from interlat.core.basics import InterlatError
from interlat.runs.costs import KNOWN, Training, count_parameters, device, model_config, train_cost, write_cost
from interlat.runs.budget import budget
from interlat.runs.cli import interlat_run
from interlat.runs.dryrun import check_model, dry_run
from interlat.runs.pipeline import SIZES, TASKS, plan, stages
from interlat.runs.parameters import check_parameters, read_parameters

E03 = ROOT/'nbs'/'experiments'/'E03_table1.ipynb'
TOLD = [f for f in sorted((ROOT/'nbs'/'experiments').glob('*.yaml')) if '# budget on' in f.read_text()]


def test_a_pipeline_that_is_killed_goes_on_at_its_stage(tmp_path):
    words = ('pipeline', '--task', 'math', '--model-size', 'tiny', '--limit', '6', '--channels', 'text,cipher:n=4', 'interlat', '--out', tmp_path/'run')
    first = start_run(*words, cwd=tmp_path, stderr=subprocess.STDOUT)
    mark = tmp_path/'run'/'stages'/'evaluate.json'
    while not mark.exists(): assert first.poll() is None; time.sleep(.1)
    first.kill()
    first.communicate()
    assert not (tmp_path/'run'/'report.html').exists() and json.loads((tmp_path/'run'/'manifest.json').read_text())['state'] == 'running'
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'run'/'actor').rglob('*') if p.is_file()}
    second = start_run(*words, cwd=tmp_path, stderr=subprocess.STDOUT)
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said[-2000:]
    assert said.count('done before') >= 4 and 'report.html: what came out, as a page' in said # data, collect, train, evaluate
    assert {p: p.stat().st_mtime_ns for p in made} == made, 'nothing is trained again'
    page, metrics = (tmp_path/'run'/'report.html').read_text(), json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert {'latent', 'text', 'no_comm', 'cross_task', 'random_rot', 'first_8', 'K=8'} == set(metrics['success'])
    assert page.count('data:image/png;base64') >= 5 if draws() else page.count('.html">') == 5
    assert 'carry_out_stage' not in page and 'done before' not in page and 'presence:' in page and str(tmp_path) not in page
    told, called = metrics['channels'], dict(text='text:max_new_tokens=128', interlat='interlat:max_new_tokens=128', cipher='cipher:n=4')
    assert {name: told[word]['reader'] for name, word in called.items()} == dict(text='actor', interlat='actor', cipher='sender') and all(word in page for word in told)
    assert told[called['interlat']]['success_rate'] == metrics['success']['latent'] and told[called['interlat']]['none'] == metrics['success']['no_comm']
    assert '6 · Other channels' in page and "with another's, %" in page and 'of our own channel alone' in page and len(told) == 3


THROUGH = """import sys
from interlat.runs.pipeline import carry_out_stage, plan, stages
p, out = plan('alfworld', limit=4, channels='latentmas:latent_steps=2,cipher:n=4'), sys.argv[1]
for name in ('data', 'channels'): carry_out_stage(out, name, stages(p, out)[name])"""


def test_other_channels_killed_or_not_come_to_the_same_and_send_once(tmp_path):
    def start(name): return subprocess.Popen([sys.executable, '-c', THROUGH, tmp_path/name], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    def trials(name): return {path.parent.name: pd.read_csv(path) for path in (tmp_path/name/'channels'/'sender').glob('*/trials.csv')}
    killed, begun = start('killed'), tmp_path/'killed'/'channels'/'sender'/'latentmas:latent_steps=2'/'trials.csv'
    while not begun.exists(): assert killed.poll() is None, killed.communicate()[0][-2000:]; time.sleep(.01)
    killed.kill()
    killed.communicate()
    assert not (tmp_path/'killed'/'stages'/'channels.json').exists()
    sent = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path/'killed'/'payloads').rglob('*.payloads')}
    assert len(sent) == 2
    for name in ('killed', 'whole'):
        process = start(name)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said[-2000:]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sent} == sent and (tmp_path/'killed'/'stages'/'channels.json').exists()
    one, other = trials('killed'), trials('whole')
    assert one.keys() == other.keys() == {'latentmas:latent_steps=2', 'cipher:n=4'}
    for name, rows in one.items():
        assert rows.groupby('arm').size().to_dict() == dict(current=4, none=4, other=4)
        timeless = [c for c in rows if not c.startswith('seconds')]
        a, b = (t.sort_values(['arm', 'item'])[timeless].reset_index(drop=True) for t in (rows, other[name]))
        assert a.equals(b), name


@pytest.mark.parametrize('given, why', [
    ('text,c2c', "the channel 'c2c' reads through projectors of this very pair, and a pipeline trains none"), ('c2c:projectors=x', "the channel 'c2c' reads through projectors"),
    ('text,loud', "unknown channel 'loud'"), ('text:n=3', "the channel 'text' has no option 'n'"), ('sde:layers=40', "channel 'sde:layers=40:max_new_tokens=128': layer must be"),
    ('cipher:n=90000', "channel 'cipher:n=90000': "), ('text:max_new_tokens=90000', "channel 'text:max_new_tokens=90000': "), ('latentmas:keep=half', "channel 'latentmas:keep=half': unknown keep 'half'")])
def test_a_channel_that_cannot_serve_is_refused_before_the_first_stage(given, why, tmp_path):
    for more in ((), ('--dry_run',)):
        with pytest.raises(InterlatError) as e: interlat_run(['pipeline', '--task', 'math', '--channels', given, '--out', str(tmp_path/'run'), *more])
        assert why in str(e.value) and len(str(e.value).splitlines()) == 1 and not (tmp_path/'run').exists()


@pytest.mark.parametrize('task, size', [(task, size) for task in TASKS for size in SIZES if (task, size) != ('math', 'small')])
@pytest.mark.parametrize('full', [False, True])
def test_every_stage_is_a_command_that_its_program_takes(task, size, full, monkeypatch, tmp_path):
    "Parsed by the programs' own parsers; nothing is loaded."
    from transformers import HfArgumentParser
    from interlat.commands import launch
    class Read(Exception): pass
    original = HfArgumentParser.parse_args_into_dataclasses
    def read(self, *a, **kw):
        *found, rest = original(self, *a, **kw)
        assert not rest
        raise Read
    monkeypatch.setattr(HfArgumentParser, 'parse_args_into_dataclasses', read)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    for name, commands in stages(plan(task, size, full, processes=2 if size == 'large' else 1, channels='interlat,text,latentmas,kvcomm'), tmp_path).items():
        for command, *argv in commands:
            argv = [*argv, '--use_cpu', 'true', '--bf16', 'false', '--fsdp', ''] if command in ('interlat-train', 'interlat-compress') else argv
            with pytest.raises(Read): launch.COMMANDS[command](list(argv))


@pytest.mark.parametrize('file', TOLD, ids=lambda f: f.stem)
def test_a_recipe_says_what_the_estimator_says(file):
    notebook = next(file.parent.glob(f"{file.stem.split('_')[0]}_*.ipynb"))
    name, told = re.search(r'^# budget on (\w+): (.*)$', file.read_text(), re.M).groups()
    assert str(budget(check_parameters(notebook, read_parameters(file)), device(name))) == told


def test_recipes_are_there_for_the_papers_models_and_fit_their_gpus():
    assert {f.stem for f in TOLD} >= {f'E03_table1_{m}' for m in ('qwen2.5-7b', 'qwen2.5-0.5b', 'llama3.1-8b', 'smollm2-135m', 'cross_family')}
    for file in TOLD: assert float(re.search(r'about (\d+) GB of memory', file.read_text())[1]) < 80


def test_the_known_shapes_are_the_models():
    "Numbers of parameters as their makers tell them, in billions."
    assert {n: round(count_parameters(model_config(n))/1e9, 2) for n in KNOWN} == {'Qwen/Qwen2.5-7B': 7.62, 'Qwen/Qwen2.5-0.5B': .49, 'meta-llama/Llama-3.1-8B': 8.03, 'HuggingFaceTB/SmolLM2-135M': .13}


def test_more_takes_more():
    h100, half_b, seven_b = device('h100'), 'Qwen/Qwen2.5-0.5B', 'Qwen/Qwen2.5-7B'
    lesson, large = Training(10, 4, 500, 900, bf16=True), Training(10, 1, 500, 900, bf16=True)
    small = train_cost(half_b, lesson, h100)
    for more in (dict(steps=20), dict(batch=8), dict(longest=1800), dict(tokens=1000)):
        cost = train_cost(half_b, replace(lesson, **more), h100)
        assert cost['seconds'] >= small['seconds'] and cost['memory'] >= small['memory']
        assert (cost['seconds'], cost['memory']) != (small['seconds'], small['memory'])
    saved = train_cost(half_b, replace(lesson, gradient_checkpointing=True), h100)
    assert saved['memory'] < small['memory'] and saved['seconds'] > small['seconds']
    shared = train_cost(seven_b, replace(large, fsdp=True, processes=8), h100)
    assert shared['memory'] < train_cost(seven_b, large, h100)['memory']/2.5
    assert write_cost(seven_b, 64, 100, 100, 64, h100)['seconds'] < write_cost(seven_b, 64, 100, 100, 8, h100)['seconds']


def test_a_setting_that_no_training_has_is_refused(tmp_path):
    with pytest.raises(TypeError, match='acumulate'): Training(10, 4, 500, 900, acumulate=2)
    for name in ('training', 'model_settings'):
        checks, told = dry_run(E03, {name: dict(bf_16=True)}, tmp_path/'run', 'h100')
        assert told is None and [(c.what, c.found) for c in checks if not c.fine] == [('budget', 'a training has no setting bf_16')]
    of_no_account = dict(training=dict(bf16=True, learning_rate=1e-4, random_contrast_weight=.5), model_settings=dict(chat_template='x'))
    for given in ({}, of_no_account): assert dry_run(E03, given, tmp_path/'run', 'h100')[1] is not None


def test_a_dry_run_finds_what_would_stop_a_run(tmp_path, monkeypatch):
    generate_games(tmp_path/'games', 4, 'train'), generate_games(tmp_path/'games', 2, 'valid_seen'), generate_games(tmp_path/'games', 2, 'valid_unseen')
    given = dict(data_path=str(tmp_path/'games'), n_train=4, n_eval=2)
    checks, told = dry_run(E03, given, tmp_path/'run', 'h100')
    assert all(c.fine for c in checks) and [c.what for c in checks if c.what.startswith('data')] == ['data train', 'data valid_seen', 'data valid_unseen']
    def wrong(**more): return [c.what for c in dry_run(E03, given | more, tmp_path/'run', 'rtx4090')[0] if not c.fine]
    assert wrong(n_train=5) == ['data train'] and wrong(data_path='', n_train=0) == ['data']
    assert wrong(sender='no/model') == ['sender', 'budget'] and 'other_sender' in wrong(other_sender='no/model') and wrong(other_sender='no/model', conditions=['latent']) == []
    monkeypatch.setattr('interlat.runs.dryrun.budget', lambda p, on: budget(dict(p, sender='Qwen/Qwen2.5-7B', actor='Qwen/Qwen2.5-7B', max_new_tokens=10**6), on))
    assert wrong() == ['memory', 'disk'] and not (tmp_path/'run').exists()
    with pytest.raises(InterlatError, match='E03_table1.ipynb has no parameter n_trian'): dry_run(E03, dict(n_trian=1), tmp_path/'run')


def test_a_dry_run_of_the_pipeline(tmp_path, monkeypatch):
    from interlat.runs.dryrun import look_at
    from interlat.runs.pipeline import as_parameters
    monkeypatch.setenv('ALFWORLD_DATA', str(tmp_path/'games'))
    wrong = [c.what for c in look_at(as_parameters(plan('alfworld', 'medium', full=True)), tmp_path, 'h100')[0] if not c.fine]
    assert wrong[:4] == ['sender', 'actor', 'data train', 'data valid_unseen'] # no network, no games
    for task in TASKS:
        assert all(c.fine for c in look_at(as_parameters(plan(task)), tmp_path, 'cpu')[0])
        (checks, more), (_, less) = (look_at(as_parameters(plan(task, 'medium', channels=names)), tmp_path, 'h100') for names in (['text', 'kvcomm'], []))
        assert [c.found.split(':')[0] for c in checks if c.what == 'channels'] == ['text'] and more.disk_gb > less.disk_gb and more.hours > less.hours
        for size, n in (('medium', 1), ('large', 1), ('large', 8)):
            told = budget(as_parameters(plan(task, size, True, processes=n), n), device('h100'))
            assert told.memory_gb < 80, (task, size, n, told)


def test_a_model_that_cannot_chat_can_be_no_actor(tmp_path):
    from interlat.models.lm import load_lm
    mute = load_lm('tiny-qwen2', device='cpu')
    mute.tokenizer.chat_template = None
    mute.save_pretrained(tmp_path)
    for file in tmp_path.glob('chat_template*'): file.unlink()
    assert check_model('sender', str(tmp_path)).fine and not check_model('actor', str(tmp_path)).fine


def test_the_command_says_what_a_dry_run_found(tmp_path):
    for words, status, last in ((('-p', 'n_train', '48'), 0, 'about'), (('-f', E03.with_name('E03_table1_smollm2-135m.yaml')), 1, 'error: ')):
        process = start_run(E03, '--dry_run', '--on', 'h100', '--out', tmp_path/'run', *words, cwd=tmp_path, stderr=subprocess.STDOUT)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == status and said.strip().splitlines()[-1].startswith(last), said
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('words', [[], ['pipeline'], ['sweep'], ['gather']], ids=lambda w: ' '.join(w) or 'a notebook')
def test_help_loads_nothing_heavy(words):
    code = f"""import sys
from interlat.runs.cli import interlat_run
try: interlat_run({[*words, '--help']})
except SystemExit as e: assert e.code == 0
heavy = {{'torch', 'transformers', 'pandas', 'numpy', 'papermill', 'nbformat', 'plotly', 'tqdm'}} & sys.modules.keys()
sys.exit(f'loaded: {{heavy}}' if heavy else 0)"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {' '.join(['interlat-run', *words])}"), done.stderr
