import pytest, torch

import cast
import interlat.rollout
from interlat.alfworld import GameEnv
from interlat.collect import generate_messages
from interlat.core import InterlatError, asset
from interlat.lm import load_lm
from interlat.message import LatentMessage
from interlat.rollout import *

SHORT = dict(max_new_tokens=6, max_steps=4, progress=False)


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama'])
def table(request, tmp_path_factory):
    "Actor, tokenizer, ten games and their messages."
    games = cast.games(tmp_path_factory.mktemp('games'), n=10)
    tok = cast.tokenizer(games, request.param[5:])
    base = cast.lm(tok, request.param)
    parts = generate_messages(base, tok, [g.prompt for g in games], max_new_tokens=12)
    return cast.actor(base, tok), tok, games, [LatentMessage(*p, g.task_id, 's') for p,g in zip(parts, games)]


@pytest.mark.parametrize('channel', ['latent', 'text', 'none'])
def test_same_commands_at_batch_size_1_and_8(table, channel):
    actor, tok, games, messages = table
    messages = [*messages[:7], None, *messages[8:]]
    one, eight = (rollout(actor, tok, games, messages, channel, batch_size=b, **SHORT) for b in (1, 8))
    assert [e.actions for e in one] == [e.actions for e in eight] and one == eight
    assert len({tuple(e.actions) for e in one}) > 5


class Expert:
    "An actor that knows each game's walkthrough: the ceiling, and a check of everything around the model."
    def __init__(self, table, broken=()):
        self.actor, self.tok, self.games, _ = table
        self.base_model = self.actor.base_model
        self.script = {g.turns[0]['content']: [t['content'] for t in g.turns[1::2]] for g in self.games}

    def eval(self): return self
    def parameters(self): return self.actor.parameters()
    def generate(self, input_ids, attention_mask, insert_at, *message, generation_config):
        rows = [row[mask.bool()] for row,mask in zip(input_ids, attention_mask)]
        opener = self.tok('user', add_special_tokens=False).input_ids
        said = []
        for row in rows:
            text = self.tok.decode(row, skip_special_tokens=True)
            script = next(s for first,s in self.script.items() if first in text)
            turns = text.count('assistant')
            said.append(self.tok(script[turns-1]).input_ids + [self.tok.eos_token_id])
        n = max(map(len, said))
        return torch.tensor([s + [self.tok.pad_token_id]*(n-len(s)) for s in said])


@pytest.mark.parametrize('batch_size', [1, 4, 32])
def test_walkthroughs_win_and_seats_are_refilled(table, batch_size):
    expert = Expert(table)
    episodes = rollout(expert, expert.tok, expert.games, batch_size=batch_size, max_steps=20, progress=False)
    assert all(e.won and not e.error for e in episodes)
    assert [e.actions for e in episodes] == [expert.script[g.turns[0]['content']] for g in expert.games]
    assert len({e.steps for e in episodes}) > 1


def test_steps_end_is_not_won(table):
    expert = Expert(table)
    need = [len(g.turns)//2 for g in expert.games]
    episodes = rollout(expert, expert.tok, expert.games, max_steps=min(need), progress=False)
    assert [e.won for e in episodes] == [n == min(need) for n in need]
    assert all(e.steps == min(need) for e in episodes)


def test_a_broken_game_is_an_error_and_no_loss(table, monkeypatch):
    expert = Expert(table)
    class Breaks(GameEnv):
        moves = 0
        def reset(self):
            if str(self.game_file) == expert.games[2].source: raise OSError('no\nsuch pipe')
            return super().reset()
        def step(self, command):
            if str(self.game_file) == expert.games[5].source and self.moves == 1: raise RuntimeError('engine died')
            self.moves += 1
            return super().step(command)
    monkeypatch.setattr(interlat.rollout, 'GameEnv', Breaks)
    episodes = rollout(expert, expert.tok, expert.games, batch_size=3, progress=False)
    assert [i for i,e in enumerate(episodes) if e.error] == [2, 5]
    assert (episodes[2].won, episodes[2].error, episodes[2].steps) == (None, 'OSError: no such pipe', 0)
    assert (episodes[5].won, episodes[5].error, episodes[5].steps) == (None, 'RuntimeError: engine died', 2)
    assert all(e.won for i,e in enumerate(episodes) if i not in (2, 5))
    assert 'engine died' in episodes[5]._repr_html_()


def test_all_games_broken(table, monkeypatch):
    expert = Expert(table)
    class Breaks(GameEnv):
        def reset(self): raise RuntimeError('x')
    monkeypatch.setattr(interlat.rollout, 'GameEnv', Breaks)
    assert [e.error for e in rollout(expert, expert.tok, expert.games, progress=False)] == ['RuntimeError: x']*10


def test_bad_input_is_refused(table):
    actor, tok, games, messages = table
    def bad(match, *args, **kw):
        with pytest.raises(InterlatError, match=match): rollout(actor, tok, *args, **{**SHORT, **kw})
    bad('game file not found', ['nowhere'])
    bad("unknown engine 'quick'", games, engine='quick')
    bad('max_steps must be', games, max_steps=0)
    bad('batch_size must be 1 or more, found 0', games, batch_size=0)
    bad('max_new_tokens must be 1 or more, found 0', games, max_new_tokens=0)
    bad("unknown channel 'smoke'", games, messages, channel='smoke')
    wide = [LatentMessage(torch.zeros(3, 48), [1, 2, 3], 'x', g.task_id, 's') for g in games]
    bad('message of width 48, but this adapter reads width 32', games, wide)


def test_a_dropping_actor_is_put_in_eval_mode(table):
    actor, tok, games, messages = table
    actor.train()
    a = rollout(actor, tok, games[:3], messages[:3], **SHORT)
    assert not actor.training and a == rollout(actor, tok, games[:3], messages[:3], **SHORT)


def test_game_files_do_as_well_as_tasks(table):
    actor, tok, games, _ = table
    assert rollout(actor, tok, [g.source for g in games[:2]], **SHORT) == rollout(actor, tok, games[:2], **SHORT)


@pytest.mark.parametrize('preset', ['tiny-qwen2', 'tiny-llama'])
def test_the_shipped_models_play_the_same_at_batch_size_1_and_8(preset, tmp_path):
    if not asset('models', preset, 'config.json').exists(): pytest.skip(f'{preset} is not shipped with this checkout')
    model, tok = load_lm(preset, 'float32', 'cpu')
    games = cast.games(tmp_path, n=8)
    actor = cast.actor(model, tok)
    parts = generate_messages(model, tok, [g.prompt for g in games], max_new_tokens=40)
    messages = [LatentMessage(*p, g.task_id, preset) for p,g in zip(parts, games)]
    for channel in ('latent', 'none'):
        one, eight = (rollout(actor, tok, games, messages, channel, batch_size=b, max_steps=5, max_new_tokens=16, progress=False) for b in (1, 8))
        assert one == eight
