import os, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest

import cast
import interlat.rollout
from interlat.alfworld import GameEnv
from interlat.collect import collect
from interlat.core import InterlatError
from interlat.evaluate import *
from interlat.message import MessageStore

CONDITIONS = ['latent', 'no_comm', 'cross_task', 'white_noise', 'no_cot']
SHORT = dict(max_new_tokens=5, max_steps=3, progress=False)


def crew(folder, n=6):
    "What `evaluate` needs: actor, tokenizer, games, store; and the actor of `no_cot`."
    games = cast.games(Path(folder)/'games', n)
    tok = cast.tokenizer(games)
    base = cast.lm(tok)
    store = collect(base, tok, games, MessageStore(Path(folder)/'store', sender='s'), max_new_tokens=10, progress=False)
    return (cast.actor(base, tok), tok, games, store), dict(no_cot=cast.actor(base, tok, seed=1))


def run(folder, out, conditions=CONDITIONS, **kw):
    args, actors = crew(folder)
    return evaluate(*args, conditions, Path(folder)/out, actors=actors, **{**SHORT, **kw})


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from test_evaluate import *
def slowly(self, *args, append=GameLog.append):
    append(self, *args)
    time.sleep(.1)
GameLog.append = slowly
run({folder!r}, 'killed', batch_size=2)
"""


def rows(path): return path.read_text().count('\n') - 1 if path.exists() else 0


def test_killed_and_resumed_nothing_is_lost_or_played_twice(tmp_path):
    crew(tmp_path)
    log = tmp_path/'killed'/'games.csv'
    child = subprocess.Popen([sys.executable, '-c', SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path))])
    while rows(log) < 8 and child.poll() is None: time.sleep(.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and 8 <= rows(log) < 30
    log.write_bytes(log.read_bytes()[:-5]) # and its last line half written
    kept = log.read_text().splitlines()[1:-1]
    result = run(tmp_path, 'killed', batch_size=8)
    lines = log.read_text().splitlines()
    assert lines[1:len(kept)+1] == kept and len(lines) == 31 and len(set(lines)) == 31
    whole = run(tmp_path, 'whole', batch_size=1)
    order = ['condition', 'game_id']
    pd.testing.assert_frame_equal(result.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True))
    assert summarise(result).equals(summarise(whole)) and paired(result).equals(paired(whole))


def test_same_seed_same_bytes_and_other_seed_other_partners(tmp_path):
    one = run(tmp_path, 'one'), (tmp_path/'one'/'games.csv').read_bytes()
    run(tmp_path, 'two')
    assert one[1] == (tmp_path/'two'/'games.csv').read_bytes()
    with pytest.raises(InterlatError, match='made with seed 0, now 5; use another folder'): run(tmp_path, 'one', seed=5)


def test_a_game_that_breaks_is_an_error_row(tmp_path, monkeypatch):
    (actor, tok, games, store), _ = crew(tmp_path)
    class Breaks(GameEnv):
        def step(self, command):
            if str(self.game_file) == games[1].source: raise RuntimeError('pipe, "closed"\nagain')
            return super().step(command)
    monkeypatch.setattr(interlat.rollout, 'GameEnv', Breaks)
    got = evaluate(actor, tok, games, store, ['latent', 'no_comm'], tmp_path/'out', **SHORT)
    broken = got[got.game_id == games[1].task_id]
    assert broken.error.tolist() == ['RuntimeError: pipe, "closed" again']*2 and broken.won.tolist() == [None, None]
    summary, pairs = write_tables(tmp_path/'out')
    assert summary.errors.tolist() == [1, 1] and summary.n.tolist() == [5, 5] and pairs.n.tolist() == [5]
    disk = pd.read_csv(tmp_path/'out'/'summary.csv'), pd.read_csv(tmp_path/'out'/'paired.csv')
    assert ','.join(disk[0]) == 'condition,n,successes,success_rate,ci_low,ci_high,mean_steps_success,mean_steps_all,errors'
    assert ','.join(disk[1]) == 'condition_a,condition_b,n,a_only,b_only,difference,ci_low,ci_high,p_value'
    assert ','.join(got) == 'condition,game_id,task_type,won,steps,error'


def test_tables_agree_with_pandas_own_reading(tmp_path):
    "Someone who reads games.csv with plain pandas gets the same summary."
    run(tmp_path, 'out', ['latent', 'no_comm'])
    plain = pd.read_csv(tmp_path/'out'/'games.csv')
    pd.testing.assert_frame_equal(summarise(plain), write_tables(tmp_path/'out')[0])


def test_a_store_of_another_width_is_refused_before_anything_is_played(tmp_path):
    (actor, tok, games, _), _ = crew(tmp_path)
    wide = cast.lm(tok, hidden_size=48)
    other = collect(wide, tok, games, MessageStore(tmp_path/'wide', sender='wide'), max_new_tokens=4, progress=False)
    with pytest.raises(InterlatError, match='has width 48, wanted width 32'): evaluate(actor, tok, games, other, ['latent'], tmp_path/'out', **SHORT)
    assert not (tmp_path/'out').exists()


def test_no_cot_alone_needs_no_store_and_can_be_added_later(tmp_path):
    (actor, tok, games, store), actors = crew(tmp_path)
    evaluate(actor, tok, games, None, ['no_cot'], tmp_path/'out', actors=actors, **SHORT)
    got = evaluate(actor, tok, games, store, ['latent', 'no_cot'], tmp_path/'out', actors=actors, **SHORT)
    assert got.condition.value_counts().to_dict() == dict(latent=6, no_cot=6)
    store.sender = 'someone else'
    with pytest.raises(InterlatError, match='made with sender s, now someone else'): evaluate(actor, tok, games, store, ['latent'], tmp_path/'out', **SHORT)


def test_settings_that_played_nothing_bind_nobody(tmp_path):
    with pytest.raises(InterlatError, match='max_steps must be'): run(tmp_path, 'out', ['latent'], max_steps=0)
    assert len(run(tmp_path, 'out', ['latent'])) == 6
    with pytest.raises(InterlatError, match='made with max_steps 3, now 4'): run(tmp_path, 'out', ['latent'], max_steps=4)
    (tmp_path/'file').write_text('')
    with pytest.raises(InterlatError, match='cannot make the folder'): run(tmp_path, 'file/out', ['latent'])
