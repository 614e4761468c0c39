"The native engine and the stock one on the same games and commands, games side by side, and memory over a thousand games."
import argparse, json, statistics, tempfile, time
from pathlib import Path

import psutil

from interlat.games.gamefile import game_id, read_game
from interlat.games.generate import generate_games
from interlat.games.find import find_games
from interlat.games.env import GameEnv
from interlat.core.basics import cli, write_atomic
from interlat.games.batch import GameBatch
from interlat.games.find import mixed_games
from interlat.games.random_player import RandomPlayer
from interlat.runs.provenance import machine

STEPS = 20 # commands in each game of the comparison


def commands_for(file, seed, steps=STEPS):
    "Random commands that fit a game; they do not win it."
    game, env = read_game(file), GameEnv(file, max_steps=steps)
    player, seen, commands = RandomPlayer(game, seed), env.reset(), []
    while not seen.done:
        commands.append(player(seen))
        seen = env.step(commands[-1])
    return commands if not seen.won else commands_for(file, seed + 1, steps)


def seconds(file, engine, commands):
    "Wall time (s) to open a game, begin it and give the commands."
    start = time.perf_counter()
    env = GameEnv(file, engine, max_steps=len(commands))
    env.reset()
    for command in commands: env.step(command)
    return time.perf_counter() - start


def engines(files, seed):
    "Load + reset + steps (s) on both engines, the middle of three on the native one: one dict a game, and the ratios."
    seconds(files[0], 'textworld', ['look']) # its imports are not a game's
    rows = []
    for file in files:
        commands = commands_for(file, seed)
        native = statistics.median(seconds(file, 'native', commands) for _ in range(3))
        stock = seconds(file, 'textworld', commands)
        rows.append(dict(game=game_id(file), native=native, stock=stock, ratio=stock/native))
        print(f"{stock:8.2f} s stock {1000*native:8.2f} ms native {stock/native:8.0f} x  {game_id(file)}", flush=True)
    return dict(games=rows, median_ratio=statistics.median(r['ratio'] for r in rows),
                total_ratio=sum(r['stock'] for r in rows)/sum(r['native'] for r in rows))


def steps_per_second(files, seed, steps=200):
    "Native steps a second, games open already."
    taken, spent = 0, 0.
    for file in files:
        commands, env = commands_for(file, seed, steps), GameEnv(file, max_steps=steps)
        env.reset()
        start = time.perf_counter()
        for command in commands: env.step(command)
        spent += time.perf_counter() - start
        taken += len(commands)
    return taken/spent


def side_by_side(files, seed, copies=10):
    "Games and steps a second of a `GameBatch`: many games, opened and played to their ends."
    scripts = [commands_for(file, seed) for file in files]*copies
    start = time.perf_counter()
    with GameBatch(list(files)*copies, max_steps=STEPS) as batch:
        batch.reset()
        for commands in zip(*scripts): batch.step(commands)
    spent = time.perf_counter() - start
    return dict(games=len(scripts), games_per_second=len(scripts)/spent, steps_per_second=len(scripts)*STEPS/spent)


def memory(files, n=1000, every=100):
    "Memory (MB) of this process after each hundred native games, played by their walkthroughs in batches of fifty."
    here, at = psutil.Process(), []
    plays = [(file, read_game(file).walkthrough) for file in files]
    for first in range(0, n, 50):
        some = [plays[k % len(plays)] for k in range(first, min(first + 50, n))]
        with GameBatch([file for file, _ in some], max_steps=50) as batch:
            batch.reset()
            for t in range(max(len(plan) for _, plan in some)): seen = batch.step([plan[t] if t < len(plan) else None for _, plan in some])
        assert all(s.won for s in seen), 'a walkthrough did not win'
        if (first + 50) % every == 0 or first + 50 >= n: at.append(here.memory_info().rss/2**20)
    return dict(games=n, start_mb=at[0], end_mb=at[-1], growth_mb=at[-1] - at[0])


def some_games(data_path, n, seed, folder):
    "`n` official games, task types in turn, or `n` made in `folder`."
    if data_path: return mixed_games(find_games(data_path, 'train'), n, seed)
    return generate_games(folder, n, 'train', seed, size='full')


def benchmark(data_path='', n=12, seed=0, n_memory=1000):
    "All of it: prints as it goes, returns what it measured."
    out = dict(machine=machine(), data_path=bool(data_path), n=n, seed=seed, steps=STEPS)
    print(*(f'{k}: {v}' for k, v in out['machine'].items()), sep='\n')
    with tempfile.TemporaryDirectory() as folder:
        files = some_games(data_path, n, seed, Path(folder)/'few')
        print(f"\nload + reset + {STEPS} steps, {n} {'official' if data_path else 'generated'} games")
        out['engines'] = engines(files, seed)
        print('ratio: {median_ratio:.0f} x in the middle, {total_ratio:.0f} x in all'.format(**out['engines']))
        out['steps_per_second'] = steps_per_second(files, seed)
        print(f"\nnative: {out['steps_per_second']:,.0f} steps a second")
        out['side_by_side'] = side_by_side(files, seed)
        print('GameBatch of {games}: {games_per_second:,.0f} games and {steps_per_second:,.0f} steps a second, opening included'.format(**out['side_by_side']))
        out['memory'] = memory(some_games(data_path, n_memory, seed, Path(folder)/'many'), n_memory)
        print('memory: {start_mb:.1f} MB after the first games, {end_mb:.1f} MB after {games}: {growth_mb:+.1f} MB'.format(**out['memory']))
    return out


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data_path', default='', help='folder of games in the official layout; without it, full-size games are generated')
    parser.add_argument('--n', type=int, default=12, help='games to play on both engines')
    parser.add_argument('--seed', type=int, default=0, help='of games and commands')
    parser.add_argument('--out', default='', help='JSON file for what was measured')
    a = parser.parse_args(args)
    result = benchmark(a.data_path, a.n, a.seed)
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
