"The oracle sees what it should see, and counts what it plays."
from collections import Counter

import pytest

from interlat.games.gamefile import TASK_TYPES, read_game
from interlat.games.generate import generate_games
from interlat.games.find import task_type
from interlat.games.env import ENGINES, GameEnv
from interlat.core.basics import InterlatError
from interlat.core.crew import WorkerDied
from interlat.games import oracle
from interlat.games.find import mixed_games
from interlat.games.random_player import KINDS, RandomPlayer, kind_of
from interlat.games.oracle import compare, compare_games, replay, replay_rows


@pytest.fixture(scope='module')
def files(tmp_path_factory): return generate_games(tmp_path_factory.mktemp('games'), 12, 'train', seed=5, size='full')


def spoiled(monkeypatch, **methods):
    "An engine 'spoiled' that is the native one but for some methods."
    kind = type('Spoiled', (type(ENGINES['native'](methods.pop('file'))),), methods)
    monkeypatch.setitem(ENGINES, 'spoiled', lambda file: kind(read_game(file)))
    return 'native', 'spoiled'


def test_player_gives_every_kind_of_command_and_is_its_seeds(files):
    rows = [compare(f, 70, 3, ('native', 'native')) for f in files]
    assert [k for k in KINDS if not any(r[k] for r in rows)] == []
    assert all(r['won'] and not r['differences'] and r['steps'] == 70 + len(read_game(f).walkthrough) for f, r in zip(files, rows))
    assert compare(files[0], 70, 3, ('native', 'native')) == rows[0] != compare(files[0], 70, 4, ('native', 'native'))


def test_player_does_the_rare_doings_often(files):
    done = Counter()
    for f in files: done.update({k: v for k, v in compare(f, 70, 1, ('native', 'native')).items() if k in KINDS})
    assert min(done[k] for k in ('clean', 'heat', 'cool', 'use', 'slice')) >= 8 and min(done['examine object'], done['move'], done['take']) >= 40
    assert done['inadmissible'] < done.total()/4


@pytest.mark.parametrize('field, methods', [
    ('observation', dict(step=lambda self, c: type(self).__mro__[1].step(self, c).replace('You pick up', 'You take'))),
    ('admissible commands', dict(commands=property(lambda self: [c for c in type(self).__mro__[1].commands.fget(self) if not c.startswith('close')]))),
    ('won', dict(won=property(lambda self: False)))])
def test_each_kind_of_difference_is_noticed(files, monkeypatch, field, methods):
    rows = [compare(f, 60, 0, spoiled(monkeypatch, file=f, **methods)) for f in files[:3]]
    assert all(r['differences'] and r['first'].startswith('step ') for r in rows) and any(f': {field}: native ' in f"{r['first']}" or field in r['first'] for r in rows)
    if field == 'won': assert not any(r['won'] for r in rows)


def test_a_game_that_breaks_is_a_row_with_an_error(files, monkeypatch):
    def step(self, command): raise OSError('disk\ngone')
    engines = spoiled(monkeypatch, file=files[0], step=step)
    row = oracle._compare({}, files[0], 5, 0, engines)
    assert row['error'] == 'OSError: disk gone' and row['steps'] == 0 and not row['won'] and [*row] == [*compare(files[0], 5, 0, ('native', 'native'))]
    def dead(function, jobs, workers): yield 0, WorkerDied('it died')
    monkeypatch.setattr(oracle, 'spread', dead)
    assert [r['error'] for r in compare_games(files[:1])] == ['WorkerDied: it died']
    row, = replay_rows([(files[0], ['look'], False)])
    assert row['error'] == 'WorkerDied: it died' and row['replayed'] is None and not row['agree']


def test_mixed_games_take_the_types_in_turn(files):
    assert Counter(map(task_type, mixed_games(files, 6, seed=2))) == {t: 1 for t in TASK_TYPES}
    assert mixed_games(files, 99) != files and sorted(mixed_games(files, 99)) == sorted(files)
    assert mixed_games(files[:1]*3, 2) == files[:1]*2


def test_kinds(files):
    game, seen = read_game(files[0]), GameEnv(files[0]).reset()
    kinds = {' look ': 'look', 'LOOK': 'nonsense', '': 'nonsense', 'put a in/on b': 'put', 'put': 'put', 'go to mars 1': 'inadmissible',
             'examine mars 1': 'inadmissible', 'goto mars': 'nonsense'}
    assert {c: kind_of(c, seen, game) for c in kinds} == kinds


def test_replay_knows_a_false_record(files):
    plan = list(read_game(files[0]).walkthrough)
    assert replay(files[0], plan, engine='native') is True and replay(files[0], plan[:-1], engine='native') is False
    assert replay(files[0], [], engine='native') is False
    records = [(files[0], plan, True), (files[0], plan, False), (files[0], [*plan, 'look'], True), (files[0], plan[:-1], False), (files[0], plan, None)]
    rows = list(replay_rows(records, engine='native', workers=2))
    assert [r['agree'] for r in sorted(rows, key=lambda r: r['record'])] == [True, False, False, True, False]
    with pytest.raises(InterlatError, match='game file not found'): list(replay_rows([('nowhere', [], True)], engine='native'))
