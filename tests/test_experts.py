"Experts win, ALFWorld's own as it does in its own engine, and thoughts know no more than the player."
import os, random, re, subprocess, sys

import pytest
from stock import less_of_the_same

from interlat.games import experts
from interlat.games.gamefile import read_game
from interlat.games.generate import generate_games
from interlat.games.words import plan_text
from interlat.core.basics import InterlatError
from interlat.games.engine import NativeEngine
from interlat.games.experts import ExpertFailed, abstract_plan, conversation, expert_commands, expert_tasks, thoughts
from interlat.games.household import game_task


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "24 small games and 6 full ones, as many of each type."
    folder = tmp_path_factory.mktemp('games')
    return generate_games(folder/'small', 24, 'train', seed=5) + generate_games(folder/'full', 6, 'valid_unseen', seed=5, size='full')


def of_type(files, word): return [f for f in files if word in f.parent.parent.name]


@pytest.mark.parametrize('expert', ['walkthrough', 'handcoded'])
def test_experts_win_every_kind_of_game(files, expert):
    for f in files:
        engine = NativeEngine(read_game(f))
        for command in expert_commands(f, expert):
            assert command in engine.commands and not engine.won
            engine.step(command)
        assert engine.won


def test_handcoded_expert_explores(files):
    "It does not know where things are: it needs more steps than the walkthrough, and opens what turns out not to matter."
    steps = [(len(expert_commands(f, 'handcoded')), len(read_game(f).walkthrough)) for f in files]
    assert all(mine >= shortest for mine, shortest in steps) and sum(mine for mine, _ in steps) > 1.5 * sum(n for _, n in steps)


def test_handcoded_expert_needs_its_mending(files, monkeypatch):
    "As it comes, it never notices that its hand is empty again, and fails with two objects."
    monkeypatch.setattr(experts.re, 'sub', lambda pattern, new, text: text)
    won = 0
    for f in of_type(files, 'pick_two'):
        try: won += bool(expert_commands(f, 'handcoded'))
        except ExpertFailed: pass
    assert won < len(of_type(files, 'pick_two')) == 5


def test_a_seed_decides_what_is_left_to_chance(files):
    random.seed(1)
    before = random.getstate()
    found = [expert_commands(f, 'handcoded', seed=2) for f in files]
    assert found == [expert_commands(f, 'handcoded', seed=2) for f in files] and random.getstate() == before
    assert any(a != expert_commands(f, 'handcoded', seed=seed) for seed in range(3, 9) for a, f in zip(found, files))


def stock_handcoded(file, seed):
    "The commands of ALFWorld's own wrapper in its own engine; its bug is mended here too."
    from interlat.games.stock import stock_modules
    textworld, envs, alfred, *_ = stock_modules()
    wanted = textworld.EnvInfos(won=True, admissible_commands=True, facts=True)
    env = alfred.AlfredExpert(alfred.AlfredDemangler(envs.PddlEnv(wanted), shuffle=False), 'handcoded')
    env.load(str(file))
    random.seed(seed)
    state, commands = env.reset(), []
    while not state['won']:
        commands.append(state['extra.expert_plan'][0])
        state, *_ = env.step(commands[-1])
    return commands


@pytest.mark.filterwarnings('ignore::ResourceWarning') # textworld leaves its files open
def test_handcoded_expert_does_the_same_in_its_own_engine(files, monkeypatch):
    pytest.importorskip('textworld', reason='the stock engine is not installed: `make test` brings it')
    ours = [expert_commands(f, 'handcoded', seed=2) for f in files[:12]]
    monkeypatch.setattr(sys, 'argv', ['mine'])
    less_of_the_same(monkeypatch)
    from alfworld.agents.expert.handcoded_expert import BasePolicy
    note = BasePolicy.update_state_tracking
    monkeypatch.setattr(BasePolicy, 'update_state_tracking', lambda self, state, last: note(self, state, 'put' + last[4:] if last.startswith('move') else last))
    assert [stock_handcoded(f, 2) for f in files[:12]] == ours


def alone(code, home, **env):
    "A program in a process of its own, in a home of its own."
    env = {k: v for k, v in os.environ.items() if k != 'ALFWORLD_DATA'} | dict(HOME=str(home), **env)
    run = subprocess.run([sys.executable, '-c', code], env=env, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_handcoded_expert_needs_no_textworld_and_leaves_no_trace(files, tmp_path):
    code = (f"import sys; sys.modules['textworld'] = None\nfrom interlat.games.experts import expert_commands\nimport os\n"
            f"print(expert_commands({str(files[0])!r}, 'handcoded'), 'ALFWORLD_DATA' in os.environ, [m for m in sys.modules if m.startswith('textworld')])")
    assert alone(code, tmp_path) == f"{expert_commands(files[0], 'handcoded')} False []"
    assert not any(tmp_path.iterdir())


def test_an_expert_that_is_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'alfworld.agents.expert', None)
    experts._handcoded.cache_clear()
    with pytest.raises(InterlatError, match='the hand-coded expert is not installed .*`pip install --no-deps alfworld`'): expert_commands(files[0], 'handcoded')
    with pytest.raises(InterlatError, match='not installed'): expert_tasks(files, 'handcoded')


def test_planner(files, tmp_path, monkeypatch):
    pytest.importorskip('textworld', reason='the stock engine is not installed: `make test` brings it')
    monkeypatch.setattr(sys, 'argv', ['mine'])
    for f in (*of_type(files, 'simple')[:1], *of_type(files, 'look')[:1]):
        commands = expert_commands(f, 'planner')
        assert len(commands) <= len(read_game(f).walkthrough) and plan_text(f, commands).split()[0] == 'take'
    assert sys.argv == ['mine']
    with pytest.raises(ExpertFailed, match='the planner expert fails in train/pick_heat.*: it has no plan after 0.01 s; give it more seconds'):
        expert_commands(of_type(files, 'heat')[0], 'planner', seconds=.01)
    foreign = tmp_path/'train'/'a'/'b'/'game.tw-pddl'
    foreign.parent.mkdir(parents=True)
    foreign.write_text(files[0].read_text().replace('You are not carrying anything.', '{1}'))
    with pytest.raises(ExpertFailed, match="train/a/b: the game's grammar is not ALFWorld's own"): expert_commands(foreign, 'planner')


def test_a_walkthrough_that_does_not_win(files, tmp_path):
    import json
    data = json.loads(files[0].read_text())
    for walkthrough, said in ((['look'], 'does not win'), (['fly', *data['walkthrough']], "step 1 of the walkthrough, 'fly', is not admissible"),
                              ([*data['walkthrough'], 'look'], 'the goal holds before step')):
        bad = tmp_path/'game.tw-pddl'
        bad.write_text(json.dumps({**data, 'walkthrough': walkthrough}))
        with pytest.raises(ExpertFailed, match=said): expert_commands(bad)
        with pytest.warns(UserWarning, match='1 of 2 games are left out: the walkthrough expert fails in '): assert len(expert_tasks([bad, files[1]])) == 1


@pytest.mark.parametrize('expert', ['walkthrough', 'handcoded'])
def test_thoughts_name_nothing_that_the_player_has_not_seen(files, expert):
    for f in files:
        commands = expert_commands(f, expert)
        turns = conversation(f, commands, 'react')
        for k, turn in enumerate(turns[1::2]):
            thought, action = re.fullmatch('Thought: (.+)\nAction: (.+)', turn['content']).groups()
            known = ' '.join(t['content'] for t in turns[:2*k+1])
            assert action == commands[k]
            assert {*re.findall(r'[a-z]+ \d+', thought)} <= {*re.findall(r'[a-z]+ \d+', f'{known} {action}')}, thought
            if thought.startswith('Here is'): assert re.search(rf"\ba {action.split()[1]} {action.split()[2]}\b", known)
        assert turns[0::2] == conversation(f, commands)[0::2] and [t['content'] for t in conversation(f, commands)[1::2]] == commands


def test_thoughts_about_what_is_not_seen(files):
    "A walkthrough may reach for what shares a place with where one stands, unseen; a detour may carry the wrong thing."
    from test_engine import kitchen
    from interlat.games.gamefile import parse_game
    game = parse_game(kitchen())
    commands = ['go to shelf 1', 'open drawer 1', 'close drawer 1', 'take knife 1 from shelf 2', 'go to sinkbasin 1', 'go to shelf 1', 'move knife 1 to shelf 1',
                'examine shelf 1', 'open drawer 1', 'take mug 2 from drawer 1', 'move mug 2 to shelf 1', 'go to sinkbasin 1']
    assert thoughts(game, commands) == [
        'I look for a mug; next I try shelf 1.', 'I open drawer 1.', 'I am done with drawer 1; I close it.', 'I take knife 1 for now.',
        'I have no use for knife 1; I go to sinkbasin 1.', 'I have no use for knife 1; I go back to shelf 1.', 'I put knife 1 down for now.', 'I look closer at shelf 1.',
        'I open drawer 1.', 'Here is a mug; I take it.', 'This is where mug 2 belongs; I put it down.', 'I look for another mug; I go back to sinkbasin 1.']


def test_tasks_say_what_the_expert_does(files):
    for task, f in zip(expert_tasks(files, 'handcoded', plan='concrete'), files):
        commands = [t['content'] for t in task.turns[1::2]]
        assert commands == expert_commands(f, 'handcoded') and task.plan == plan_text(f, commands)
        assert (task.task_id, task.task_type, task.prompt, task.source) == (game_task(f).task_id, game_task(f).task_type, game_task(f).prompt, str(f))
    assert [t.plan for t in expert_tasks(files, plan='abstract')] == [abstract_plan(f) for f in files]
