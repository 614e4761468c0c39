"The native engine against ALFWorld's own: same text, admissible commands, won and done, command for command."
import json, os, re, signal, subprocess, sys, tarfile
from pathlib import Path

import pytest
from stock import less_of_the_same

from interlat.games.gamefile import TASK_TYPES, load_json, read_game
from interlat.games.generate import generate_games
from interlat.games.find import find_games, task_type
from interlat.games.engine import NativeEngine
from interlat.games.env import GameEnv
from interlat.games.stock import StockEngine, own_argv, stock_modules
from interlat.core.basics import InterlatError
from interlat.games.batch import GameBatch
from interlat.games.random_player import KINDS
from interlat.games.oracle import compare, replay_rows

pytest.importorskip('textworld', reason='the stock engine is not installed: `make test` brings it')
pytest.importorskip('alfworld', reason='the stock engine is not installed: `make test` brings it')

ARCHIVE = Path(__file__).resolve().parents[2]/'shared'/'data'/'alfworld_json_2.1.1.tar.xz'

# (where the games come from, how many, random steps in each); without the archive, other full scenes stand in for the official games
SOURCES = [('official' if ARCHIVE.exists() else 'full/train', 12, 40), ('full/valid_unseen', 6, 36), ('small/train', 24, 81),
           ('small/valid_unseen', 18, 81)]
PLAN = [(source, k, steps) for source, n, steps in SOURCES for k in range(n)]


def official_games(folder):
    "Twelve official games, two of each type, from all over the archive."
    with tarfile.open(ARCHIVE) as archive:
        names = sorted(archive.getnames())
        of_type = [[n for n in names if f'/{kind}-' in n] for kind in TASK_TYPES]
        wanted = {n for mine in of_type for n in (mine[len(mine)//4], mine[-1])}
        for member in archive:
            if member.name in wanted:
                (folder/member.name).parent.mkdir(parents=True)
                (folder/member.name).write_bytes(archive.extractfile(member).read())
    return [f for split in ('train', 'valid_seen') for f in find_games(folder, split)]


@pytest.fixture(scope='module')
def games(tmp_path_factory):
    "The files of every source, made or extracted when first asked for."
    made, folder = {}, tmp_path_factory.mktemp('games')

    def files(source):
        if source not in made:
            size, _, split = source.partition('/')
            n = next(n for s, n, _ in SOURCES if s == source)
            made[source] = official_games(folder) if size == 'official' else generate_games(folder/size, n, split, seed=7, size=size)
        return made[source]
    return files


@pytest.fixture(scope='module', autouse=True)
def as_it_comes():
    "In here the stock engine does less of the same; this undoes it."
    with pytest.MonkeyPatch.context() as patch: yield less_of_the_same(patch)


def test_less_of_the_same_is_the_same(games, as_it_comes, monkeypatch):
    "The stock engine as it comes, against itself with a memory and shallow copies."
    file = games('small/train')[1]
    def shown():
        env = GameEnv(file, 'textworld')
        return [env.reset(), *(env.step(c) for c in ('inventory', 'sing', *read_game(file).walkthrough[:2]))]
    fast = shown()
    as_it_comes(monkeypatch)
    assert shown() == fast


@pytest.mark.parametrize('source, k, steps', PLAN, ids=[f'{s}-{k}' for s, k, _ in PLAN])
def test_engines_agree(games, source, k, steps):
    row = compare(games(source)[k], steps, seed=k)
    assert row['differences'] == 0, row['first']
    assert row['won'] and row['steps'] > steps


def test_the_plan_is_large_enough(games):
    assert len(PLAN) >= 60 and sum(steps for *_, steps in PLAN) >= 4000
    for source, n, _ in SOURCES:
        kinds = [task_type(f) for f in games(source)]
        assert len(kinds) == n and {*kinds} == {*TASK_TYPES}


def test_every_kind_of_command_is_tried_in_every_source(games):
    for source, *_ in SOURCES:
        rows = [compare(games(source)[k], steps, k, ('native', 'native')) for s, k, steps in PLAN if s == source]
        assert [kind for kind in KINDS if not any(row[kind] for row in rows)] == []


def test_stock_tools_find_generated_games(games, tmp_path, monkeypatch):
    monkeypatch.setenv('ALFWORLD_DATA', str(tmp_path))
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv
    files = games('small/valid_unseen')
    config = dict(dataset=dict(eval_ood_data_path=str(files[0].parents[2]), num_eval_games=-1),
                  env=dict(goal_desc_human_anns_prob=0, task_types=[1, 2, 3, 4, 5, 6]))
    found = AlfredTWEnv(config, train_eval='eval_out_of_distribution').game_files
    assert sorted(found) == sorted(map(str, files))


def test_stock_engine_leaves_no_trace(games, tmp_path, monkeypatch):
    import os, sys
    monkeypatch.setattr(sys, 'argv', ['mine', '--flag'])
    monkeypatch.setenv('HOME', str(tmp_path))
    data = os.environ.get('ALFWORLD_DATA')
    env = GameEnv(games('small/train')[0], 'textworld')
    env.reset()
    assert sys.argv == ['mine', '--flag'] and os.environ.get('ALFWORLD_DATA') == data and not (tmp_path/'.cache').exists()


def test_stock_engine_gets_no_foreign_grammar(games, tmp_path):
    file, marker = tmp_path/'game.tw-pddl', tmp_path/'ran'
    text = games('small/train')[0].read_text()
    code = "{open('" + str(marker) + "', 'w')}"
    file.write_text(text.replace('You are not carrying anything.', code))
    with pytest.raises(InterlatError, match="not ALFWorld's own, and the stock engine would run it as code"): GameEnv(file, 'textworld')
    env = GameEnv(file)
    env.reset()
    assert env.step('inventory').observation == 'You are not carrying anything.' and not marker.exists()


@pytest.mark.parametrize('text', ['', '{"grammar": "templ', '[]', '{}'], ids=['empty', 'cut short', 'a list', 'no parts'])
@pytest.mark.parametrize('engine', ['native', 'textworld'])
def test_broken_game_file_is_named(tmp_path, engine, text):
    file = tmp_path/'game.tw-pddl'
    file.write_text(text)
    with pytest.raises(InterlatError) as refused: GameEnv(file, engine)
    assert str(file) in str(refused.value) and '\n' not in str(refused.value)


def test_stock_games_side_by_side_in_workers(games, capfd):
    files = games('small/train')[:3]
    plans = [[*read_game(f).walkthrough[:2], 'inventory', 'sing'] for f in files]
    with GameBatch(files, 'textworld', workers=2) as stock, GameBatch(files, 'textworld') as here, GameBatch(files) as native:
        assert stock.reset() == here.reset() == native.reset()
        for commands in zip(*plans):
            if commands[0] == 'inventory': os.kill(stock._crew.pids()[0], signal.SIGKILL)
            assert stock.step(commands) == here.step(commands) == native.step(commands)
    assert capfd.readouterr() == ('', '')


def test_finished_games_win_again(games):
    records = [(f, read_game(f).walkthrough, True) for f in games('small/train')[:2]] + [(games('small/train')[2], ['look', ''], False)]
    rows = sorted(replay_rows(records, workers=1), key=lambda r: r['record'])
    assert [(r['replayed'], r['agree']) for r in rows] == [(True, True), (True, True), (False, True)]


def test_a_finished_game_beside_running_ones_and_one_game_twice(games):
    "TextWorld's own batch shows a finished game's last words again, whatever it is told; here it is told None."
    from textworld.envs.wrappers import Filter
    textworld, envs, alfred, *_ = stock_modules()
    wanted = textworld.EnvInfos(won=True, admissible_commands=True)
    files = [games('small/train')[k] for k in (1, 1, 0)]
    plans = [read_game(f).walkthrough for f in files]
    scripts = [[*plans[0], *['look']*4], ['look', *plans[1][:2], 'inventory', 'sing', *plans[1][2:], 'look'], [*plans[2][:-1], 'inventory', 'look', 'help', 'look']]
    batch = envs.batch.SyncBatchEnv([lambda: Filter(alfred.AlfredDemangler(envs.PddlEnv(wanted), shuffle=False))]*3)
    with own_argv():
        batch.load([load_json(f) for f in files])
        shown, infos = batch.reset()
    over = [False]*3
    with GameBatch(files) as native:
        seen = native.reset()
        for commands in zip(*scripts):
            assert [s.observation for s in seen] == list(shown) and [list(s.admissible_commands) for s in seen] == infos['admissible_commands']
            assert [s.won for s in seen] == infos['won']
            seen = native.step([None if s.done else c for s, c in zip(seen, commands)])
            shown, _, over, infos = batch.step(list(commands))
    assert over[0] and not over[2] and [s.won for s in seen] == list(over)


def test_beginning_again_with_a_full_hand_and_going_on_after_the_win(games):
    file = games('small/train')[0]
    engines, plan = (NativeEngine(read_game(file)), StockEngine(file)), read_game(file).walkthrough
    held = 1 + next(k for k, c in enumerate(plan) if c.startswith('take'))
    away = [f'take {plan[-1][5:].replace(" to ", " from ")}', 'inventory', 'look', plan[-1]]
    for command in [None, *plan[:held], 'inventory', None, None, 'inventory', *plan, *away, None, 'look', *plan]:
        said = [e.reset() if command is None else e.step(command) for e in engines]
        assert said[0] == said[1] and engines[0].commands == list(engines[1].commands) and engines[0].won == engines[1].won, command
    assert engines[0].won


def test_another_hash_seed_changes_nothing(games):
    file = games('small/train')[4]
    program = """import json, sys
from interlat.games.env import GameEnv
from interlat.games.gamefile import read_game
def told(engine):
    env = GameEnv(sys.argv[1], engine)
    return [(s.observation, s.won, s.admissible_commands) for s in [env.reset(), *map(env.step, ('look', *read_game(sys.argv[1]).walkthrough))]]
print(json.dumps([told('native'), told('textworld')]))"""
    texts = {subprocess.run([sys.executable, '-c', program, str(file)], capture_output=True, text=True, check=True,
                            env={**os.environ, 'PYTHONHASHSEED': seed}).stdout for seed in ('1', '4242')}
    native, stock = json.loads(texts.pop())
    assert native == stock and len(native) > 4 and not texts


def another_start(text):
    "The player stands at a receptacle."
    return re.sub(r'\(atLocation agent1 \S+\)', f"(atLocation agent1 {re.findall('receptacleAtLocation [^ ]+ ([^)]+)', text)[2]})", text)

def held(text):
    "The player has something in the hand."
    o = next(o for o in re.findall(r'\(pickupable (\S+)\)', text) if not o.startswith('CreditCard')) # what the task is about
    text = re.sub(rf'\((?:inReceptacle|objectAtLocation) {o} \S+\)', '', text)
    return text.replace('(:init', f'(:init (holds agent1 {o}) (holdsAny agent1)', 1)

def floor_lamp(text):
    "A lamp stands in no receptacle."
    there = re.findall('receptacleAtLocation [^ ]+ ([^)]+)', text)[2]
    lamp = f'(:init (objectType DeskLamp_bar_9 DeskLampType) (toggleable DeskLamp_bar_9) (objectAtLocation DeskLamp_bar_9 {there})'
    return text.replace('(:objects', '(:objects DeskLamp_bar_9 - object', 1).replace('(:init', lamp, 1)

def in_two(text):
    "Everything lies in another receptacle too."
    where = re.findall(r'\(inReceptacle (\S+) (\S+)\)', text)
    return text.replace('(:init', '(:init ' + ' '.join(f'(inReceptacle {o} {r})' for (o, _), (_, r) in zip(where, where[1:])), 1)

@pytest.mark.parametrize('change', [another_start, held, floor_lamp, in_two])
def test_engines_agree_on_a_game_that_begins_otherwise(games, tmp_path, change):
    data = load_json(games('small/train')[0])
    problem, goal = data['pddl_problem'].split('(:goal')
    file = tmp_path/'game.tw-pddl'
    file.write_text(json.dumps(dict(data, pddl_problem=f'{change(problem)}(:goal{goal}')))
    assert change(problem) != problem
    row = compare(file, 40)
    assert row['differences'] == 0, row['first']
