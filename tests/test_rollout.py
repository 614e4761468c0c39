import re

import pytest, torch

import cast
import interlat.games.batch
from interlat.games.env import GameEnv
from interlat.models.sampling import greedy_config, through_end
from interlat.agents.collect import generate_messages
from interlat.core.basics import InterlatError, asset
from interlat.agents.speaker import Speaker, message_embeds
from interlat.models.lm import load_lm
from interlat.models.chat import encode_chat
from interlat.messages.message import LatentMessage
from interlat.models.lm import *
from interlat.evaluation.rollout import *

SHORT = dict(max_new_tokens=6, max_steps=4, progress=False)


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama'])
def table(request, tmp_path_factory):
    "Actor, tokenizer, ten games and their messages."
    games = cast.games(tmp_path_factory.mktemp('games'), n=10)
    tok = cast.tokenizer(games, request.param[5:])
    base = cast.lm(tok, request.param)
    parts = generate_messages(Agent(base, tok), [g.prompt for g in games], max_new_tokens=12)
    return cast.actor(base, tok), tok, games, [LatentMessage(*p, g.task_id, 's') for p,g in zip(parts, games)]


def slowly(actor, tok, games, messages, channel, max_new_tokens, max_steps, progress):
    "The obvious way: one game after the other, the whole conversation through `generate` at every step."
    episodes, config = [], greedy_config(Agent(actor.base_model, tok), max_new_tokens)
    for task, message in zip(games, messages):
        player, env = Player(task, tok), GameEnv(task.source, max_steps=max_steps)
        player.see(env.reset())
        embeds = message_embeds(Agent(actor, tok), message, channel)
        while not player.done:
            chat = encode_chat(tok, player.chat.turns, add_generation_prompt=True)
            ids = torch.tensor([chat.input_ids])
            given = {} if embeds is None else dict(insert_at=torch.tensor([chat.insert_at]), message_embeds=embeds[None])
            new = actor.generate(ids, torch.ones_like(ids), **given, generation_config=config)[0].tolist()
            player.see(env.step(player.say(tok.decode(through_end(new, config.eos_token_id), skip_special_tokens=True))))
        episodes.append(player.episode)
    return episodes


@pytest.mark.parametrize('channel', ['latent', 'text', 'none'])
def test_same_commands_at_batch_size_1_and_8(table, channel):
    actor, tok, games, messages = table
    messages = [*messages[:7], None, *messages[8:]]
    one, eight = (rollout(Agent(actor, tok), games, messages, channel, batch_size=b, **SHORT) for b in (1, 8))
    anew = rollout(Agent(actor, tok), games, messages, channel, batch_size=8, cache=False, **SHORT)
    assert one == eight == anew == slowly(actor, tok, games, messages, channel, **SHORT)
    assert len({tuple(e.outputs) for e in one}) > 5


class Expert:
    "Speaks each game's walkthrough: the ceiling, and a check of everything around the model."
    def __init__(self, games, words=str):
        self.script = {g.turns[0]['content']: [t['content'] for t in g.turns[1::2]] for g in games}
        self.words = words

    def speak(self, seats):
        lines = [(self.script[s.chat.turns[0]['content']], len(s.chat.turns)//2) for s in seats]
        return [self.words(script[n % len(script)]) for script, n in lines]


def expert(table, words=str, **playing):
    "Episodes of the expert, and its script for each game."
    actor, tok, games, _ = table
    e = Expert(games, words)
    return rollout(Agent(actor, tok), games, speaker=e, progress=False, **playing), [e.script[g.turns[0]['content']] for g in games]


@pytest.mark.parametrize('batch_size', [1, 4, 32])
def test_walkthroughs_win_and_seats_are_refilled(table, batch_size):
    episodes, scripts = expert(table, batch_size=batch_size)
    assert all(e.won and not e.error and not e.unparsable for e in episodes)
    assert [e.actions for e in episodes] == scripts
    assert len({e.steps for e in episodes}) > 1


def test_thoughts_and_the_old_grammar_win_too(table):
    old = lambda c: re.sub('^move (.*) to ', r'put \1 in/on ', c)
    episodes, scripts = expert(table, lambda c: f'Thought: I know what to do.\nAction: {old(c)}\nObservation: done!\nAction: look')
    assert [e.actions for e in episodes] == scripts and all(e.won for e in episodes)


def test_words_without_a_command_are_wasted_steps(table):
    episodes, _ = expert(table, 'Thought: perhaps {}?'.format, max_steps=3)
    assert all((e.won, e.steps, e.unparsable, e.actions) == (False, 3, 3, ['']*3) for e in episodes)
    assert all(e.observations[1:] == ['Nothing happens.']*3 for e in episodes)


def test_steps_end_is_not_won(table):
    _, scripts = expert(table)
    need = [len(s) for s in scripts]
    episodes, _ = expert(table, max_steps=min(need))
    assert [e.won for e in episodes] == [n == min(need) for n in need]
    assert all(e.steps == min(need) for e in episodes)


def test_a_broken_game_is_an_error_and_no_loss(table, monkeypatch):
    games = table[2]
    class Breaks(GameEnv):
        moves = 0
        def reset(self):
            if str(self.game_file) == games[2].source: raise OSError('no\nsuch pipe')
            return super().reset()
        def step(self, command):
            if str(self.game_file) == games[5].source and self.moves == 1: raise RuntimeError('engine died')
            self.moves += 1
            return super().step(command)
    monkeypatch.setattr(interlat.games.batch, 'GameEnv', Breaks)
    episodes, _ = expert(table, batch_size=3)
    assert [i for i,e in enumerate(episodes) if e.error] == [2, 5]
    assert (episodes[2].won, episodes[2].error, episodes[2].steps) == (None, 'OSError: no such pipe', 0)
    assert (episodes[5].won, episodes[5].error, episodes[5].steps) == (None, 'RuntimeError: engine died', 2)
    assert all(e.won for i,e in enumerate(episodes) if i not in (2, 5))
    assert 'engine died' in episodes[5]._repr_html_()


def test_all_games_broken(table, monkeypatch):
    class Breaks(GameEnv):
        def reset(self): raise RuntimeError('x')
    monkeypatch.setattr(interlat.games.batch, 'GameEnv', Breaks)
    assert [e.error for e in expert(table)[0]] == ['RuntimeError: x']*10


def test_bad_input_is_refused(table):
    actor, tok, games, messages = table
    def bad(match, *args, **kw):
        with pytest.raises(InterlatError, match=match): rollout(Agent(actor, tok), *args, **{**SHORT, **kw})
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
    a = rollout(Agent(actor, tok), games[:3], messages[:3], **SHORT)
    assert not actor.training and a == rollout(Agent(actor, tok), games[:3], messages[:3], **SHORT)


def test_game_files_do_as_well_as_tasks(table):
    actor, tok, games, _ = table
    assert rollout(Agent(actor, tok), [g.source for g in games[:2]], **SHORT) == rollout(Agent(actor, tok), games[:2], **SHORT)


@pytest.mark.parametrize('preset', ['tiny-qwen2', 'tiny-llama'])
def test_the_shipped_models_play_the_same_at_batch_size_1_and_8(preset, tmp_path):
    if not asset('models', preset, 'config.json').exists(): pytest.skip(f'{preset} is not shipped with this checkout')
    model, tok = load_lm(preset, 'float32', 'cpu')
    games = cast.games(tmp_path, n=8)
    actor = cast.actor(model, tok)
    parts = generate_messages(Agent(model, tok), [g.prompt for g in games], max_new_tokens=40)
    messages = [LatentMessage(*p, g.task_id, preset) for p,g in zip(parts, games)]
    for channel in ('latent', 'none'):
        short = dict(max_steps=5, max_new_tokens=16, progress=False)
        speakers = Speaker(Agent(actor, tok), 16), Speaker(Agent(actor, tok), 16, cache=False)
        one, eight, anew = (rollout(Agent(actor, tok), games, messages, channel, batch_size=b, speaker=s, **short)
                            for b, s in ((1, None), (8, speakers[0]), (8, speakers[1])))
        assert one == eight == anew == slowly(actor, tok, games, messages, channel, **short)
        assert speakers[0].computed < speakers[1].computed / 1.5
