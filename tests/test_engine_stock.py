"The native engine against ALFWorld's own: same text, admissible commands, won and done, command for command."
import os, signal, tarfile
from pathlib import Path

import pytest
from stock import less_of_the_same

from interlat.games.gamefile import TASK_TYPES, read_game
from interlat.games.generate import generate_games
from interlat.games.find import find_games, task_type
from interlat.games.env import GameEnv
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
