"`interlat-audit` from its command line: games, problems and a user's table; killed and started again; its record and its page; need and no need beside each other."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest
from cast import call
from notebooks import ROOT

from interlat.commands.audit import ALL_ARMS
from interlat.commands.cli import main_audit
from interlat.instruments.verdict import SCHEMA, read_audit
from interlat.core.tasks import save_tasks
from interlat.games.generate import generate_games
from interlat.maths.generate import generate_problems
from interlat.maths.problems import problem_task

FEW = '--max_steps 2 --max_new_tokens 6 --constant_steps 2 --check_items 4 --partners 2 --device cpu'.split()
SELF = '--model_name_or_path tiny-qwen2 --sender tiny-qwen2'.split()
KNOWN = ('schema', 'about', 'made_with', 'checks', 'arms', 'refused', 'measures', 'rung', 'identities', 'nld', 'ps', 'norms')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    generate_games(d/'games', 6, 'valid_unseen', seed=1)
    generate_games(d/'games', 4, 'train', seed=2)
    save_tasks([problem_task(p) for p in generate_problems(4, 'test')], d/'other.jsonl')
    (d/'table.jsonl').write_text(''.join(json.dumps(dict(id=f'q{i}', prompt=f'How much is {i} and the number?', known=f'The number is {i+1}.', answer=str(2*i+1))) + '\n' for i in range(9)))
    return d


def games(data, out, *more): return call(main_audit, 'alfworld', *SELF, '--data_path', data/'games', '--output_dir', out, *FEW, *more)


@pytest.fixture(scope='module')
def latent(data):
    code, out, err = games(data, data/'latent', '--channel', 'latentmas:latent_steps=2', '--need', 'true', '--train_items', '4', '--other_tasks', data/'other.jsonl')
    assert code == 0, err
    return data/'latent', out


def test_an_audit_of_games_has_every_arm_or_says_why(latent):
    folder, said = latent
    audit = read_audit(folder)
    assert audit['schema'] == SCHEMA and set(audit) == set(KNOWN) and {*audit['arms']} | {*audit['refused']} == {*ALL_ARMS}
    assert {*audit['refused']} == {'untrained_map', 'adversarial', 'swapped_row', 'other_sender', *({'same_type'} & {*audit['refused']})}
    assert audit['about']['margin'] == .05 and audit['about']['need'] is True and audit['checks']['swapped'] == dict(CIC=0, CAG=0)
    assert all(max(v, 0) < 1e-9 for v in audit['identities'].values()) and audit['rung']['name'] == 'E0' and audit['arms']['other']['rounds'] == 2
    assert all(f'no arm {name}: ' in said for name in audit['refused']) and 'reaches rung E0' in said and audit['arms']['current']['steps'] == 2
    page = (folder/'audit.html').read_text(encoding='utf-8')
    assert page.startswith('<!doctype html>') and 'src=' not in page and 'href=' not in page and all(name in page for name in audit['arms'])
    items = pd.read_csv(folder/'items.csv')
    assert set(items.need) == {True} and items.groupby('arm').partner.nunique().loc[['current', 'other', 'cross_benchmark', 'self']].tolist() == [1, 2, 2, 1]


def test_it_does_nothing_twice_and_keeps_its_margin(data, latent):
    folder, _ = latent
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    same = '--channel', 'latentmas:latent_steps=2', '--need', 'true', '--train_items', '4', '--other_tasks', data/'other.jsonl'
    assert games(data, folder, *same)[0] == 0 and {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before
    code, _, err = games(data, folder, *same, '--margin', '.1')
    assert code == 2 and 'made with margin 0.05, now 0.1; use another folder' in err


def test_without_need_and_beside_each_other(data, latent):
    code, _, err = games(data, data/'told', '--channel', 'latentmas:latent_steps=2', '--need', 'false', '--train_items', '0', '--arms', 'none,other,oracle,learned_constant')
    assert code == 0, err
    audit = read_audit(data/'told')
    assert audit['about']['need'] is False and {*audit['refused']} == {'oracle', 'learned_constant'} and 'need False' in audit['refused']['oracle']
    code, out, err = call(main_audit, 'compare', latent[0], data/'told')
    assert code == 0 and out.splitlines()[0].split()[0] == 'measure' and 'OPE' in out and out.count('rung E') == 2, err
    code, _, err = call(main_audit, 'compare', data/'nowhere', data/'told')
    assert code == 2 and 'audit not found' in err


@pytest.mark.parametrize('channel', ['text:max_new_tokens=6', 'statebridge:max_new_tokens=6:K=4', 'sde:max_new_tokens=4', 'ac', 'cipher:n=4', 'kvcomm'])
def test_every_channel_is_audited_on_problems(data, channel):
    out = data/channel.split(':')[0]
    code, said, err = call(main_audit, 'math', *SELF, '--channel', channel, '--num_problems', 6, '--output_dir', out, '--max_new_tokens', 6, '--constant_steps', 1, '--train_items', 3,
                           '--check_items', 3, '--partners', 1, '--answer_tokens', 6, '--device', 'cpu', '--workers', 1, '--stranger', 'tiny-qwen2')
    assert code == 0, err
    audit = read_audit(out)
    assert {*audit['arms']} >= {'current', 'none', 'masked', 'other', 'self', 'single_agent', 'oracle', 'text'} and {*audit['arms']} | {*audit['refused']} == {*ALL_ARMS}
    assert bool(audit['norms']) == (channel.split(':')[0] in ('statebridge', 'cipher'))
    tables = {arm: pd.read_csv(out/'arms'/arm/'trials.csv', keep_default_na=False).drop(columns='arm') for arm in ('text', 'text_equal_bytes')}
    said = {arm: audit['arms'][arm]['bytes'] for arm in tables}
    taken_over = not (out/'arms'/'text_equal_bytes'/'trials.json').exists() # the very same words are not asked twice
    assert taken_over == (said['text'] == said['text_equal_bytes']) and (not taken_over or tables['text'].equals(tables['text_equal_bytes']))
    assert taken_over or channel in ('ac', 'kvcomm', 'cipher:n=4')


def test_a_users_table(data):
    code, said, err = call(main_audit, 'custom', *SELF, '--channel', 'latentmas:latent_steps=1', '--data_path', data/'table.jsonl', '--num_rows', 5, '--output_dir', data/'custom', '--need', 'true',
                           '--max_new_tokens', 4, '--check_items', 3, '--partners', 1, '--train_items', 3, '--constant_steps', 1, '--device', 'cpu', '--workers', 1,
                           '--arms', 'none,other,cross_benchmark,learned_constant,oracle', '--other_tasks', 'math')
    assert code == 0, err
    arms = read_audit(data/'custom')['arms']
    assert {*arms} == {'current', 'none', 'other', 'cross_benchmark', 'learned_constant', 'oracle'} # rows 6 to 8 train the constant
    assert arms['cross_benchmark']['rounds'] == 1


def test_another_benchmark_needs_somebody_who_sends(data):
    code, _, err = call(main_audit, 'custom', '--model_name_or_path', 'tiny-qwen2', '--hidden_data_path', data/'store', '--data_path', data/'table.jsonl', '--output_dir', data/'unsent',
                        '--other_tasks', 'math', '--device', 'cpu')
    assert code == 2 and "nobody sends about other_tasks 'math'; give --sender" in err
    code, _, err = call(main_audit, 'custom', *SELF, '--data_path', data/'table.jsonl', '--output_dir', data/'unsent', '--other_tasks', 'maths', '--channel', 'text', '--device', 'cpu')
    assert code == 2 and 'task file not found' in err and 'maths' in err


def test_killed_at_any_time_it_goes_on(data, latent):
    "kill -9 in the middle: started again, the same tables."
    out, flags = data/'killed', ['--channel', 'latentmas:latent_steps=2', '--need', 'true', '--train_items', '4', '--other_tasks', str(data/'other.jsonl')]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'interlat-audit'; from interlat.commands.cli import main_audit; main_audit()"
    argv = [sys.executable, '-c', code, 'alfworld', *SELF, '--data_path', str(data/'games'), '--output_dir', str(out), *FEW, *flags]
    for arms in (1, 5):
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        end = time.monotonic() + 240
        while len([*out.glob('arms/*/arm.json')]) < arms and child.poll() is None and time.monotonic() < end: time.sleep(.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert len([*out.glob('arms/*/arm.json')]) >= arms and not (out/'audit.json').exists()
    assert games(data, out, *flags)[0] == 0
    found, whole = read_audit(out), read_audit(latent[0])
    assert found['measures'] == whole['measures'] and found['rung'] == whole['rung'] and {*found['arms']} == {*whole['arms']}


def test_what_cannot_be_audited_is_said_in_a_line(data):
    for match, words in {'nobody sends; give --sender': ['math', '--model_name_or_path', 'tiny-qwen2', '--channel', 'latentmas', '--num_problems', 4], "unknown channel 'loud'": ['math', *SELF, '--channel', 'loud'],
                         'needs an actor with an adapter': ['math', *SELF, '--channel', 'interlat', '--num_problems', 4], 'margin must be in (0, 1], found 2.0': ['math', *SELF, '--margin', 2],
                         "unknown control 'pink'": ['math', *SELF, '--arms', 'pink'], 'checks want at least three items, found 2': ['math', *SELF, '--channel', 'text', '--num_problems', 2],
                         'needs the same weights': ['math', '--model_name_or_path', 'tiny-qwen2', '--sender', 'tiny-llama', '--channel', 'latentmas', '--num_problems', 4]}.items():
        code, _, err = call(main_audit, *words, '--output_dir', data/'refused', '--device', 'cpu')
        assert code == 2 and match in err and len(err.strip().splitlines()) >= 1, (match, err)
