"Many games at once: what one game would have said, in this process or in workers, whatever happens to them."
import gc, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import psutil
import pytest

import interlat.core.crew
from interlat.games import batch as gamebatch
from interlat.games.gamefile import read_game
from interlat.games.generate import generate_games
from interlat.games.env import ENGINES, GameEnv, GameStep
from interlat.core.basics import InterlatError
from interlat.core.crew import Crew, WorkerDied
from interlat.games.batch import GameBatch, spread
from interlat.games.random_player import RandomPlayer


@pytest.fixture(scope='module')
def files(tmp_path_factory): return generate_games(tmp_path_factory.mktemp('games'), 300, 'train', seed=11)


def scripts(files, steps):
    "For each game, random commands that fit it, and what a `GameEnv` of its own says to them."
    out = []
    for k, file in enumerate(files):
        env, player = GameEnv(file, max_steps=steps), RandomPlayer(read_game(file), seed=k)
        shown, commands = [env.reset()], []
        while not shown[-1].done:
            commands.append(player(shown[-1]))
            shown.append(env.step(commands[-1]))
        out.append((commands, shown))
    return out


def play(batch, played, at=lambda t: None):
    "Play the scripts to their ends; every step has to be the one that was shown."
    assert batch.reset() == [shown[0] for _, shown in played]
    for t in range(max(len(commands) for commands, _ in played)):
        at(t)
        seen = batch.step([commands[t] if t < len(commands) else None for commands, _ in played])
        assert seen == [shown[min(t + 1, len(shown) - 1)] for _, shown in played], f'step {t}'


def test_hundreds_of_games_in_one_process_are_what_each_is_alone(files):
    with GameBatch(files, max_steps=12) as batch:
        play(batch, scripts(files, 12))
        assert len(batch) == 300 and not batch._games, 'a game that is over is let go'
        assert repr(batch).startswith('GameBatch(300 games, native, 0 running, 300 over')


def test_games_open_when_they_begin(files, tmp_path):
    batch = GameBatch([*files, tmp_path/'none.tw-pddl'])
    batch.reset([3, 1])
    assert sorted(batch._games) == [1, 3]
    with pytest.raises(InterlatError, match='game file not found: .*none.tw-pddl'): batch.reset([5, 300])
    assert batch.step(['look'], [5])[0].observation.startswith('You are in the middle')
    with pytest.raises(InterlatError, match=r'game 300 has not begun: call reset\(\[300\]\) first'): batch.step(['look'], [300])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_refused_call_changes_nothing(files, workers):
    with GameBatch(files[:3], max_steps=1, workers=workers) as batch:
        with pytest.raises(InterlatError, match='game 0 has not begun'): batch.step(['look', None, None])
        assert batch.step([None]*3) == [None]*3
        first = batch.reset()
        batch.step(['look'], [2])
        for commands, which, words in [(['look']*3, None, r'game 2 is over \(out of steps\)'), (['look', 3], [0, 1], 'must be text or None, found 3'),
                                       (['look'], None, '1 commands for 3 games'), (['look']*2, [0, 0], 'game 0 is named twice'),
                                       (['look'], [-1], 'no game -1 in a batch of 3')]:
            with pytest.raises(InterlatError, match=words): batch.step(commands, which)
        assert batch.step([None]*2, [0, 1]) == first[:2]
        assert batch.reset([2]) == first[2:]


@pytest.mark.parametrize('settings, words', [(dict(engine='unity'), 'unknown engine'), (dict(max_steps=0), 'max_steps'), (dict(workers=-1), 'workers')])
def test_bad_settings_are_refused_at_once(settings, words):
    with pytest.raises(InterlatError, match=words): GameBatch([], **settings)


@pytest.mark.parametrize('workers', [1, 3])
def test_workers_say_the_same(files, workers):
    with GameBatch(files[:40], max_steps=12, workers=workers) as batch:
        play(batch, scripts(files[:40], 12))
        assert len(batch._crew.pids()) == workers


def test_killed_workers_take_no_game_with_them(files):
    with GameBatch(files[:20], max_steps=15, workers=2) as batch:
        pids = set()
        def kill(t):
            pids.update(batch._crew.pids())
            if t in (2, 3, 9): os.kill(batch._crew.pids()[t % 2], signal.SIGKILL)
            if t == 6: [os.kill(pid, signal.SIGKILL) for pid in batch._crew.pids()]
        play(batch, scripts(files[:20], 15), kill)
        assert len(pids | set(batch._crew.pids())) == 7


def die(state, code): os._exit(code)
def nap(state, seconds): time.sleep(seconds)


def test_a_job_that_kills_its_worker_twice_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import test_gamebatch as me  # by the name under which a worker finds it
    crew = Crew(2)
    answers = dict(crew.each([(0, me.nap, (0,)), (0, me.die, (7,)), (1, me.nap, (0,)), (0, me.nap, (0,))]))
    assert isinstance(answers.pop(1), WorkerDied) and answers == {0: None, 2: None, 3: None}
    assert len(crew.pids()) == 2
    crew.close()


def test_a_game_that_kills_its_worker_twice_is_an_error_step(files, monkeypatch):
    crash = GameBatch(files[:4], workers=2)
    crash.reset()
    started = []
    real = interlat.core.crew._start
    def starts_and_dies(name, *settings): # the worker of game 1 and 3 does not live to answer its next two calls
        worker = real(name, *settings)
        started.append(name)
        if len(started) < 3: worker[0].kill()
        return worker
    monkeypatch.setattr(interlat.core.crew, '_start', starts_and_dies)
    os.kill(crash._crew.pids()[1], signal.SIGKILL)
    psutil.wait_procs([p for p in psutil.Process().children() if p.pid == crash._crew._workers[1][0].pid], 5)
    seen = crash.step(['look']*4)
    assert [bool(s.error) for s in seen] == [False, True, False, False]
    assert seen[1].won is None and seen[1].done and str(files[1]) in seen[1].error and "'look'" in seen[1].error and '\n' not in seen[1].error
    assert '1 broken' in repr(crash)
    with pytest.raises(InterlatError, match=r'game 1 is over \(WorkerDied: the worker process died twice'): crash.step(['look'], [1])
    assert not crash.reset([1])[0].error
    crash.close()


def test_a_broken_engine_ends_one_game(files, monkeypatch):
    class Fragile(type(ENGINES['native'](files[0]))):
        def step(self, command): return 1/0 if command == 'look' else super().step(command)
    monkeypatch.setitem(ENGINES, 'native', lambda file: Fragile(read_game(file)))
    batch = GameBatch(files[:2])
    batch.reset()
    broke, fine = batch.step(['look', 'inventory'])
    assert broke == GameStep('', None, True, (), error='ZeroDivisionError: division by zero')
    assert fine.observation == 'You are not carrying anything.' and not fine.done
    assert not batch.reset([0])[0].done


@pytest.mark.parametrize('workers', [0, 2])
def test_an_interrupted_step_leaves_every_game_where_it_is_known_to_be(files, workers):
    class Interrupted(list):
        def append(self, x): raise KeyboardInterrupt
    with GameBatch(files[:6], workers=workers) as batch:
        first = batch.reset()
        there = [s.admissible_commands[0] for s in first]
        batch._past[3] = Interrupted()
        with pytest.raises(KeyboardInterrupt): batch.step(there)
        batch._past[3] = []
        looked = batch.step(['look']*6)
        for file, gone, past, seen in zip(files, there, batch._past, looked):
            env = GameEnv(file)
            env.reset()
            assert past in (['look'], [gone, 'look']) and [env.step(c) for c in past][-1] == seen
        assert batch._past[3] == ['look']


def test_stopping_early_leaves_no_late_answers():
    crew = Crew(2)
    jobs = [(k % 2, gamebatch._play, (0, ('no', 'native', 20), (), str(k))) for k in range(6)]
    for _ in crew.each(jobs): break
    (j, answer), = crew.each([(0, gamebatch._play, (0, ('other', 'native', 20), (), None))])
    assert 'other' in str(answer)
    crew.close()


def test_refusals_come_back_from_workers(tmp_path):
    cut = tmp_path/'game.tw-pddl'
    cut.write_text('{"grammar": "templ')
    with GameBatch([cut], workers=1) as batch, pytest.raises(InterlatError, match='not a readable game file: .*game.tw-pddl'): batch.reset()
    with pytest.raises(InterlatError, match='not a readable game file'): list(spread(gamebatch._play, [(0, (cut, 'native', 20), (), None)], 1))
    assert not mine()


def mine(): return [p for p in psutil.Process().children() if 'spawn_main' in ' '.join(p.cmdline())]


def test_nothing_is_left_running(files):
    batch = GameBatch(files[:2], workers=2)
    batch.reset()
    assert len(mine()) == 2
    del batch
    gc.collect()
    assert not mine()


@pytest.mark.parametrize('end', ['', 'os.kill(os.getpid(), 9)', '1/0'], ids=['ends', 'is killed', 'raises'])
def test_workers_end_with_the_program_and_do_not_run_it_again(files, tmp_path, end):
    script = tmp_path/'script.py'
    script.write_text(textwrap.dedent(f'''
        import os
        print('once', flush=True)
        from interlat.games.batch import GameBatch
        batch = GameBatch({[str(f) for f in files[:2]]!r}, workers=2)
        batch.reset()
        print(*batch._crew.pids(), flush=True)
        {end}
        '''))
    run = subprocess.run([sys.executable, script], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    once, pids = run.stdout.splitlines()
    assert once == 'once'
    _, left = psutil.wait_procs([psutil.Process(int(p)) for p in pids.split() if psutil.pid_exists(int(p))], timeout=20)
    assert not left
