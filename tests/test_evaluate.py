"Conditions, contenders and seeds; kills, full disks and read-only folders."
import json, os, resource, tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch

import cast
import interlat.games.batch
from interlat.games.env import GameEnv
from interlat.agents.collect import collect
from interlat.models.lm import *
from interlat.evaluation.delivery import *
from interlat.evaluation.evaluate import *
from interlat.evaluation.summary import *
from interlat.core.basics import InterlatError
from interlat.evaluation.log import GameLog, read_games
from interlat.messages.message import MessageStore
from interlat.messages.perturb import VARIANTS
from interlat.evaluation.rollout import Episode

CONDITIONS = ['latent', 'no_comm', 'cross_task', 'white_noise', 'no_cot']
SHORT = dict(max_new_tokens=5, max_steps=3, progress=False)


def make_crew(folder, n=6):
    "What `evaluate` needs: actor, games, store; and the actor of `no_cot`."
    games = cast.games(Path(folder)/'games', n)
    tok = cast.tokenizer(games)
    base = cast.lm(tok)
    store = collect(Agent(base, tok), games, MessageStore(Path(folder)/'store', sender='s'), max_new_tokens=10, progress=False)
    return (Agent(cast.actor(base, tok), tok), games, store), dict(no_cot=Agent(cast.actor(base, tok, seed=1), tok))


def evaluate_crew(crew, out, conditions=CONDITIONS, **kw):
    args, actors = crew
    return evaluate(*args, conditions, out, actors=actors, **{**SHORT, **kw})


@pytest.fixture(scope='module')
def crew(tmp_path_factory): return make_crew(tmp_path_factory.mktemp('crew'))


@pytest.fixture
def run(crew, tmp_path):
    "A function that evaluates the crew in a folder of this test."
    return lambda out, *args, **kw: evaluate_crew(crew, tmp_path/out, *args, **kw)


SLOW = """
import os, sys, time
print(os.getpid(), flush=True)
sys.path.insert(0, {tests!r})
from test_evaluate import *
def slowly(self, *args, append=GameLog.append):
    append(self, *args)
    time.sleep(.1)
GameLog.append = slowly
evaluate_crew(make_crew({folder!r}), {folder!r} + '/killed', batch_size=2)
"""


def test_killed_and_resumed_nothing_is_lost_or_played_twice(run, tmp_path):
    log = tmp_path/'killed'/'games.csv'
    cast.kill_after(SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), log, 9, 31) # 8 of 30 rows
    kept = log.read_text().splitlines()[1:-1]
    result = run('killed', batch_size=8)
    lines = log.read_text().splitlines()
    assert lines[1:len(kept)+1] == kept and len(lines) == 31 and len(set(lines)) == 31
    whole = run('whole', batch_size=1)
    order = ['condition', 'game_id', 'seed']
    pd.testing.assert_frame_equal(result.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True))
    assert summarise(result).equals(summarise(whole)) and paired(result).equals(paired(whole))


def test_same_seed_same_bytes_and_other_seed_other_partners(crew, run, tmp_path):
    one = run('one'), (tmp_path/'one'/'games.csv').read_bytes()
    run('two')
    assert one[1] == (tmp_path/'two'/'games.csv').read_bytes()
    games = crew[0][1]
    assert partners(games) != partners(games, 5) and partners(games) == partners(games[::-1])


def test_a_game_that_breaks_is_an_error_row(crew, tmp_path, monkeypatch):
    (actor, games, store), _ = crew
    class Breaks(GameEnv):
        def step(self, command):
            if str(self.game_file) == games[1].source: raise RuntimeError('pipe, "closed"\nagain')
            return super().step(command)
    monkeypatch.setattr(interlat.games.batch, 'GameEnv', Breaks)
    got = evaluate(actor, games, store, ['latent', 'no_comm'], tmp_path/'out', **SHORT)
    broken = got[got.game_id == games[1].task_id]
    assert broken.error.tolist() == ['RuntimeError: pipe, "closed" again']*2 and broken.won.tolist() == [None, None]
    summary, pairs = write_tables(tmp_path/'out')
    assert summary.errors.tolist() == [1, 1] and summary.n.tolist() == [5, 5] and pairs.n.tolist() == [5]
    disk = pd.read_csv(tmp_path/'out'/'summary.csv'), pd.read_csv(tmp_path/'out'/'paired.csv')
    assert ','.join(disk[0]) == 'condition,n,successes,success_rate,ci_low,ci_high,mean_steps_success,mean_steps_all,errors,seeds'
    assert ','.join(disk[1]) == 'condition_a,condition_b,n,a_only,b_only,difference,ci_low,ci_high,p_value'
    assert ','.join(got) == 'condition,game_id,task_type,won,steps,error,seed,unparsable,actions,outputs'


def test_tables_agree_with_pandas_own_reading(run, tmp_path):
    "Someone who reads games.csv with plain pandas gets the same summary."
    run('out', ['latent', 'no_comm'])
    plain = pd.read_csv(tmp_path/'out'/'games.csv')
    pd.testing.assert_frame_equal(summarise(plain), write_tables(tmp_path/'out')[0])


def test_a_store_of_another_width_is_refused_before_anything_is_played(crew, tmp_path):
    (actor, games, _), _ = crew
    wide = cast.lm(actor.tokenizer, hidden_size=48)
    other = collect(Agent(wide, actor.tokenizer), games, MessageStore(tmp_path/'wide', sender='wide'), max_new_tokens=4, progress=False)
    with pytest.raises(InterlatError, match='has width 48, wanted width 32'): evaluate(actor, games, other, ['latent'], tmp_path/'out', **SHORT)
    assert not (tmp_path/'out').exists()


def test_no_cot_alone_needs_no_store_and_can_be_added_later(crew, tmp_path):
    (actor, games, store), actors = crew
    evaluate(actor, games, MessageStore(tmp_path/'empty'), ['no_comm'], tmp_path/'out', **SHORT)
    evaluate(actor, games, None, ['no_cot'], tmp_path/'out', actors=actors, **SHORT)
    got = evaluate(actor, games, store, ['latent', 'no_cot'], tmp_path/'out', actors=actors, **SHORT)
    assert got.condition.value_counts().to_dict() == dict(latent=6, no_cot=6)
    renamed = MessageStore(store.path)
    renamed.sender = 'someone else'
    with pytest.raises(InterlatError, match='made with sender s, now someone else'): evaluate(actor, games, renamed, ['latent'], tmp_path/'out', **SHORT)


def test_settings_that_played_nothing_bind_nobody(run, tmp_path):
    with pytest.raises(InterlatError, match='max_steps must be'): run('out', ['latent'], max_steps=0)
    assert len(run('out', ['latent'])) == 6
    with pytest.raises(InterlatError, match='made with max_steps 3, now 4'): run('out', ['latent'], max_steps=4)
    (tmp_path/'file').write_text('')
    with pytest.raises(InterlatError, match='cannot make the folder'): run('file/out', ['latent'])


def test_seeds_are_played_where_something_is_drawn_and_added_later(run):
    first = run('out', ['latent', 'zero_message', 'mean_message', 'white_noise', 'cross_task'])
    assert len(first) == 30 and set(first.seed) == {0}
    both = run('out', ['latent', 'zero_message', 'mean_message', 'white_noise', 'cross_task'], seeds=[3, 0])
    assert both.groupby('condition').seed.unique().map(sorted).to_dict() == dict(latent=[0], zero_message=[0], mean_message=[0], white_noise=[0, 3], cross_task=[0, 3])
    assert not both.duplicated(['condition', 'seed', 'game_id']).any() and len(both) == 42
    for bad in ((), (1, 1), 2):
        with pytest.raises(InterlatError, match='seeds must be different integers, at least one'): run('out', seeds=bad)


def test_every_condition_of_the_paper_plays(tmp_path):
    (actor, games, store), _ = make_crew(tmp_path, 12)
    tok = actor.tokenizer
    other = collect(Agent(cast.lm(tok, hidden_size=48), tok), games, MessageStore(tmp_path/'other', sender='another family'), max_new_tokens=7, progress=False)
    from interlat.agents.actor import ModelWithInsertedHiddenState
    wide = Agent(ModelWithInsertedHiddenState(cast.lm(tok), prepended_length=40, hidden_size=32, input_size=48, seed=2), tok)
    actors = dict(no_cot=Agent(cast.actor(cast.lm(tok), tok, 1), tok), cot_full=wide, cross_family=Contender(wide, 'cross_family', other))
    conditions = [*VARIANTS, 'no_cot', 'cot_full']
    got = evaluate(actor, games, store, conditions, tmp_path/'out', actors, **{**SHORT, 'max_steps': 1, 'batch_size': 12})
    assert got.condition.unique().tolist() == conditions and len(got) == 12*len(conditions) and not (got.error != '').any()
    said = got.groupby('condition').outputs.agg(tuple)
    assert said['truncate_0.0'] == said['no_comm'] and said['first_128'] == said['pool_128'] == said['latent'] # messages of seven tokens
    assert len({said[c] for c in ('latent', 'text', 'no_comm', 'cross_task', 'zero_message', 'cross_family')}) == 6
    assert all(len(json.loads(a)) == n for a, n in zip(got.actions, got.steps)) and (got.unparsable <= got.steps).all()
    settings = json.loads((tmp_path/'out'/'evaluate.json').read_text())
    assert settings['sender of cross_family'] == 'another family' and settings['variant of cot_full'] == 'text' and 'sender of no_cot' not in settings
    with pytest.raises(InterlatError, match="condition 'cross_family' gets variant 'cross_family', found 'latent'"):
        evaluate(actor, games, store, ['cross_family'], tmp_path/'out', dict(cross_family=Contender(wide, store=other)), **SHORT)
    with pytest.raises(InterlatError, match='has width 48, wanted width 32'):
        evaluate(actor, games, store, ['cross_family'], tmp_path/'out', dict(cross_family=Contender(actor, 'cross_family', other)), **SHORT)


def test_a_contender_is_bound_to_its_weights_sender_and_variant(crew, tmp_path):
    (actor, games, store), actors = crew
    def play(who, **kw): return evaluate(actor, games, store, ['mine'], tmp_path/'out', dict(mine=who), **SHORT)
    assert len(play(Contender(actors['no_cot']))) == 6
    with pytest.raises(InterlatError, match='made with actor of mine .*, now'): play(Contender(actor))
    with pytest.raises(InterlatError, match='made with variant of mine latent, now text'): play(Contender(actors['no_cot'], 'text'))
    again = collect(Agent(cast.lm(actor.tokenizer), actor.tokenizer), games, MessageStore(tmp_path/'again', sender='t'), max_new_tokens=4, progress=False)
    with pytest.raises(InterlatError, match='made with sender of mine s, now t'): play(Contender(actors['no_cot'], store=again))


def test_sampling_is_drawn_for_every_condition_and_seed(crew, tmp_path, monkeypatch):
    (actor, games, store), actors = crew
    calls = []
    def play(actor, games, messages, channel, **kw):
        calls.append((channel, kw['temperature'], kw['seed'], kw['batch_size']))
        for i, g in enumerate(games): yield i, Episode(g.task_id, g.task_type, won=True, steps=1, actions=['look'], unparsable=1)
    monkeypatch.setattr(interlat.evaluation.evaluate, 'play', play)
    def go(out, **kw): return evaluate(actor, games, store, ['latent', 'no_cot'], tmp_path/out, actors, seeds=(4, 7), batch_size=3, progress=False, **kw)
    warm = go('warm', temperature=.7)
    assert calls == [(c, .7, s, 3) for c in ('latent', 'none') for s in (4, 7)]
    assert warm.groupby(['condition', 'seed']).size().tolist() == [6]*4 and set(warm.unparsable) == {1} and set(warm.actions) == {'["look"]'}
    calls.clear()
    assert set(go('cold', temperature=0).seed) == set(go('cold').seed) == {4} # 0 is greedy, said or not
    assert calls == [('latent', 0, 4, 3), ('none', 0, 4, 3)]*2
    with pytest.raises(InterlatError, match='made with temperature 0.7, now 0.0'): go('warm')


@pytest.fixture(scope='module')
def pairs(tmp_path_factory): return make_crew(tmp_path_factory.mktemp('pairs'), 12) # two games of a type


def test_a_run_that_was_begun_under_the_old_name_goes_on_as_it_began(pairs, tmp_path):
    conditions, order = ['latent', 'same_type'], ['condition', 'game_id', 'seed']
    def run(out, conditions, **kw): return evaluate_crew(pairs, tmp_path/out, conditions, **kw)
    whole = run('whole', conditions, seeds=(0, 1))
    half = run('begun', conditions, seeds=(0,))
    log = tmp_path/'begun'/'games.csv'
    log.write_text(log.read_text().replace('same_type', 'self_message'))
    kept = log.read_text()
    again = run('begun', conditions, seeds=(0,))
    assert log.read_text() == kept and again.equals(half), 'what is there counts'
    result = run('begun', conditions, seeds=(0, 1))
    assert log.read_text().startswith(kept) and 'same_type' not in log.read_text(), 'one name in a file'
    pd.testing.assert_frame_equal(result.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True))
    assert pd.read_csv(log).shape == (len(whole), 10) and set(read_games(log).condition) == {*conditions}
    write_tables(log.parent)
    assert 'specificity' in set(effects(read_games(log)).effect) and 'self_message' not in (log.parent/'summary.csv').read_text()


def test_a_contender_noted_under_the_old_name_of_its_variant(pairs, tmp_path):
    (actor, games, store), _ = pairs
    def go(): return evaluate(actor, games, store, ['mine'], tmp_path, dict(mine=Contender(actor, 'same_type')), **SHORT)
    played, note = go(), tmp_path/'evaluate.json'
    note.write_text(note.read_text().replace('"same_type"', '"self_message"'))
    assert go().equals(played) and '"variant of mine": "same_type"' in note.read_text()


@pytest.mark.parametrize('how', (dict(conditions=['latent', 'self_message']), dict(conditions=['mine'], variant='self_message'),
                                 dict(conditions=['self_message'], name='self_message')))
def test_the_old_name_is_refused_before_anything_is_written(crew, tmp_path, how):
    (actor, games, store), _ = crew
    actors = {how.get('name', 'mine'): Contender(actor, how.get('variant', 'latent'))}
    with pytest.raises(InterlatError, match="^condition 'self_message' is 'same_type' now: in audits `self` is the receiver's own message$"):
        evaluate(actor, games, store, how['conditions'], tmp_path/'out', actors, **SHORT)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('variant, same', (('cross_task', False), ('same_type', True)))
def test_partners_by_looking_at_every_pair(tmp_path, variant, same):
    games = cast.games(tmp_path, 18)
    kind, seen = {g.task_id: g.task_type for g in games}, {}
    for seed in range(200):
        for a, b in partners(games, seed, variant).items(): seen.setdefault(a, set()).add(b)
    for a in kind: assert seen[a] == {b for b in kind if b != a and (kind[a] == kind[b]) == same}


def test_mean_of_the_others_one_by_one(crew):
    (_, games, store), _ = crew
    mean = others_mean(store, games)
    for g in games:
        slow = torch.cat([store[o.task_id].h for o in games if o is not g]).double().mean(0)
        assert torch.allclose(mean(store[g.task_id]).h[0], slow, atol=1e-9)
        assert torch.allclose(Delivery(store, [g], 'mean_message', 0, mean)[0].h, slow.float().expand_as(store[g.task_id].h))


def test_a_folder_that_cannot_be_written_is_found_out_before_anything_is_played(monkeypatch):
    with tempfile.TemporaryDirectory() as d:
        args, actors = make_crew(d)
        for p in (d, *Path(d).rglob('*')): os.chmod(p, 0o755)
        shut = Path(d)/'shut'
        shut.mkdir()
        shut.chmod(0o555)
        monkeypatch.setattr(interlat.evaluation.evaluate, 'play', lambda *a, **kw: pytest.fail('played'))
        root = os.geteuid() == 0
        if root: os.seteuid(65534) # root may write anywhere
        try:
            for out in (shut, shut/'deeper'):
                with pytest.raises(InterlatError, match=f'cannot (write|make the folder) {out}.*: Permission denied'): evaluate(*args, CONDITIONS, out, actors, **SHORT)
        finally:
            if root: os.seteuid(0)
        assert not list(shut.iterdir())


def test_a_disk_that_fills_up_midway_keeps_what_is_there(run, tmp_path):
    whole = run('whole')
    size = (tmp_path/'whole'/'games.csv').stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size//2, hard))
    try:
        with pytest.raises(InterlatError, match='cannot write .*games.csv: File too large; results so far stay'): run('full')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = (tmp_path/'full'/'games.csv').read_text().splitlines()[:-1] # the last line is torn
    assert 8 < len(kept) < 25
    pd.testing.assert_frame_equal(run('full'), whole)
    assert (tmp_path/'full'/'games.csv').read_text().splitlines()[:len(kept)] == kept
