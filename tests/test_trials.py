"Trials of a channel: kills, broken games, and one item's rows under every arm."
from pathlib import Path

import pandas as pd
import pytest

import cast
import interlat.games.batch
from interlat.games.env import GameEnv
from interlat.games.household import informed
from interlat.core.basics import *
from interlat.models.lm import *
from interlat.channels.bench import *
from interlat.evaluation.trials import *
from interlat.audit.items import measures
from interlat.audit.partners import derangements

SHORT = dict(max_new_tokens=5, max_steps=3, progress=False)
KEYS = ['arm', 'partner', 'seed', 'item']


def make_crew(folder, name='kvcomm', n=6, need=True, **options):
    "What `run_channel` needs: a channel, an actor, games and arms."
    games = cast.games(Path(folder)/'games', n)
    if not need: games = [informed(g) for g in games]
    tok = cast.tokenizer(games)
    agent, c = Agent(cast.lm(tok).double(), tok), channel(name, **options)
    sent = c.send(agent, [g.prompt for g in games])
    ids = [g.task_id for g in games]
    others = [[sent[ids.index(i)] for i in round] for round in derangements(ids, 2, 0)]
    return c, agent, games, dict(current=[sent], none=[[None]*n], masked=[sent], other=others)


@pytest.fixture(scope='module')
def crew(tmp_path_factory): return make_crew(tmp_path_factory.mktemp('crew'), layers=(1,))


SLOW = """
import os, sys, time
print(os.getpid(), flush=True)
sys.path.insert(0, {tests!r})
from test_trials import *
def slowly(self, *args, add=TrialLog.add):
    add(self, *args)
    time.sleep(.1)
TrialLog.add = slowly
run_channel(*make_crew({folder!r}, layers=(1,)), {folder!r} + '/killed', batch_size=2, **SHORT)
"""


def test_killed_and_resumed_nothing_is_lost_or_played_twice(crew, tmp_path):
    log = tmp_path/'killed'/'trials.csv'
    cast.kill_after(SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), log, 9, 31) # 8 of 30 rows
    kept = log.read_text().splitlines()[1:-1]
    result = run_channel(*crew, tmp_path/'killed', batch_size=8, **SHORT)
    lines = log.read_text().splitlines()
    assert lines[1:len(kept)+1] == kept and len(lines) == 31 and not read_trials(log).duplicated(KEYS).any()
    whole = run_channel(*crew, tmp_path/'whole', batch_size=1, **SHORT)
    same = lambda t: t.sort_values(KEYS, ignore_index=True).drop(columns=['seconds_read'])
    pd.testing.assert_frame_equal(same(result), same(whole))


def test_a_game_that_breaks_has_no_utility(crew, tmp_path, monkeypatch):
    c, agent, games, arms = crew
    class Breaks(GameEnv):
        def step(self, command):
            if str(self.game_file) == games[1].source: raise RuntimeError('pipe, "closed"\nagain')
            return super().step(command)
    monkeypatch.setattr(interlat.games.batch, 'GameEnv', Breaks)
    trials = run_channel(c, agent, games, arms, tmp_path, **SHORT)
    broken = trials[trials['item'] == games[1].task_id]
    assert broken.utility.isna().all() and set(broken.error) == {'RuntimeError: pipe, "closed" again'} and trials.utility.notna().sum() == 25
    table = measures(trials)
    assert table.loc['OPE'].n == 5 and table.loc['OPE'].not_run == 2 and table.loc['CAG'].not_run == 3


def test_trials_are_what_an_audit_takes(crew, tmp_path):
    "The arms are those of one item: its own message in the other's place changes nothing."
    c, agent, games, arms = crew
    trials = run_channel(c, agent, games, arms | dict(swapped=arms['current']), tmp_path, seconds=[.25]*6, **SHORT)
    table = measures(trials)
    assert table.loc['OPE'].n == table.loc['CAG'].n == 6 and set(trials.channel) == {'kvcomm'} and set(trials.need) == {True}
    said = trials[trials.partner == 0].pivot(index='item', columns='arm', values='said')
    assert (said.current == said.swapped).all() and (said.masked == said.none).all() and (said.current != said.none).any()
    assert trials[trials.arm == 'current'].seconds_make.tolist() == [.25]*6 and trials[trials.arm == 'other'].seconds_make.isna().all()


def test_what_is_trained_of_a_channel_is_part_of_the_folder(crew, tmp_path):
    _, agent, games, _ = crew
    import torch
    matrix = torch.eye(32, dtype=torch.float64)
    def tried(W):
        c = channel('ac', k=-2, j=-2, W=W)
        return run_channel(c, agent, games[:2], dict(current=[c.send(agent, [g.prompt for g in games[:2]])]), tmp_path, **SHORT)
    assert tried(matrix).equals(tried(matrix.clone()))
    with pytest.raises(InterlatError, match='were made with options .*crc32.*; use another folder'): tried(2*matrix)
    with pytest.raises(InterlatError, match="were made with options .*now .*'W': None"): tried(None)


def test_without_need_the_actor_has_the_map(tmp_path):
    c, agent, games, arms = make_crew(tmp_path, 'text', 3, need=False, max_new_tokens=4)
    trials = run_channel(c, agent, games, dict(none=arms['none']), tmp_path/'told', **SHORT)
    _, _, hidden, _ = make_crew(tmp_path, 'text', 3, max_new_tokens=4)
    need = run_channel(c, agent, hidden, dict(none=arms['none']), tmp_path/'need', **SHORT)
    assert set(trials.need) == {False} and set(need.need) == {True} and trials['item'].tolist() == need['item'].tolist()
    assert (trials.said != need.said).any() # it reads something else
    with pytest.raises(InterlatError, match='what the actor reads'): run_channel(c, agent, games, dict(none=arms['none']), tmp_path/'need', **SHORT)
