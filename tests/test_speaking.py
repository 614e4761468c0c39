"Any channel in many turns: a payload is taken in once, and in a batch, alone, and read anew at each turn the actor says the same."
from dataclasses import replace

import pytest, torch
from transformers import AutoModelForCausalLM, MistralConfig

import cast
from interlat.core.basics import *
from interlat.models.lm import *
from interlat.models.chat import *
from interlat.agents.speaker import *
from interlat.channels.protocol import *
from interlat.channels.bench import *
from interlat.evaluation.speaking import *
from interlat.evaluation.rollout import *
from interlat.evaluation.answering import *
from test_template import REWRITES, SYSTEM, assistant, thinking, tokenizer, user

OPTIONS = dict(interlat=dict(max_new_tokens=5), text=dict(max_new_tokens=6), latentmas=dict(latent_steps=3), statebridge=dict(K=4, max_new_tokens=6),
               own_tokens=dict(K=4, max_new_tokens=6), kvcomm=dict(layers=(1,)), cipher=dict(n=4), sde=dict(layers=(0,), max_new_tokens=5), ac=dict(k=-2, j=-2), c2c={})


def made(name, agent):
    "A channel; the projectors of C2C are untrained, their gates open."
    if name != 'c2c': return channel(name, **OPTIONS[name])
    c = CHANNELS[name].untrained(agent, agent, hidden=16, intermediate=16)
    for p in c.projectors.to(agent.model.dtype): p.key_gate_logit.data.fill_(1), p.value_gate_logit.data.fill_(1)
    return c


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama'])
def table(request, tmp_path_factory):
    "Games, an agent, and its copy with an adapter."
    games = cast.games(tmp_path_factory.mktemp('games'), n=6)
    tok = cast.tokenizer(games, request.param[5:])
    agent = Agent(cast.lm(tok, request.param, num_hidden_layers=3).double(), tok)
    return games, agent, Agent(cast.actor(agent.model, tok).double(), tok)


@pytest.mark.parametrize('name', OPTIONS)
def test_games_and_questions_are_the_same_at_any_batch_size(table, name):
    games, agent, adapted = table
    c, actor = made(name, agent), adapted if name == 'interlat' else agent
    sent = c.send(agent, [g.turns[:1] if name == 'c2c' else g.prompt for g in games])
    payloads, before = [*sent[:2], None, *sent[3:]], [p.to_tensors() for p in sent]
    for temperature in (0., 1.):
        how = dict(max_new_tokens=6, temperature=temperature)
        play = dict(how, max_steps=3, progress=False)
        one, four = (rollout(actor, games, payloads, c, batch_size=b, **play) for b in (1, 4))
        assert one == four == rollout(actor, games, payloads, c, batch_size=4, cache=False, **play)
        assert all(e.reading > 0 for e in four) and not any(e.error for e in four)
    masked = rollout(actor, games, payloads, speaker=ChannelSpeaker(actor, c, 6, 1., masked=True), **play)
    none = rollout(actor, games, None, c, **play)
    assert masked == none and sum(a != b for a, b in zip(one, none)) >= 3 and one[2] == none[2]
    asked = [replace(g, turns=g.turns[:2]) for g in games]
    def answers(size): return {i: a for batch in answer(actor, asked, payloads, c, batch_size=size, n_samples=2, **how) for i, a in batch}
    assert answers(1) == answers(5)
    heard = c.receive(actor, [asked[0].turns[:1]], payloads[:1], 6, 1., [derive_seed(0, 'answer', games[0].task_id, 1)])
    assert answers(3)[0][1].text.strip() == heard.texts[0]
    assert all(torch.equal(x, old[k]) for p, old in zip(sent, before) for k, x in p.to_tensors().items()), 'a condition wrote in a payload that others share'


def talk(speaker, payloads, tok, asked, n=4):
    "What is said over some turns; templates take the thoughts out that the actor is said to have had."
    seats, said = [Seat(Conversation(tok, turns), payload=p, seed=i) for i, (turns, p) in enumerate(zip(asked, payloads))], []
    for turn in range(n):
        said.append(speaker.speak(seats))
        for k, (s, words) in enumerate(zip(seats, said[-1])):
            s.chat.add(thinking(words.strip(), 'a mug') if (turn + k) % 2 else assistant(words[:9].strip()))
            s.chat.add(user('You see a desk 1. What next?'))
    return said


@pytest.mark.parametrize('template', ['plain', *REWRITES])
@pytest.mark.parametrize('name', OPTIONS)
def test_a_template_that_writes_turns_anew_loses_no_message(name, template):
    tok = tokenizer(template)
    agent = Agent(cast.lm(tok, num_hidden_layers=3).double(), tok)
    actor = Agent(cast.actor(agent.model, tok).double(), tok) if name == 'interlat' else agent
    c, asked = made(name, agent), [[*([SYSTEM] if k else []), user(f'find the mug {k}')] for k in range(3)]
    told = [[user(f'the mug is on shelf {k}, and the pen is not')] for k in range(3)]
    sent = c.send(agent, asked if name == 'c2c' else told)
    kept, anew = ChannelSpeaker(actor, c, 6), ChannelSpeaker(actor, c, 6, cache=False)
    said = talk(kept, sent, tok, asked)
    assert said == talk(anew, sent, tok, asked)
    assert said != talk(ChannelSpeaker(actor, c, 6), [None]*3, tok, asked)
    if template not in ('late_system', 'opens_thought'): assert kept.computed < .8*anew.computed # what is the same is not read again


@pytest.mark.parametrize('name', ['text', 'cipher', 'interlat'])
def test_a_model_that_reads_all_anew_hears_a_prefix(table, name):
    games, agent, _ = table
    tok = agent.tokenizer
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(MistralConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, sliding_window=16, initializer_range=.3, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)).double().eval()
    windowed = Agent(lm, tok)
    c, actor = made(name, windowed), Agent(cast.actor(lm, tok).double(), tok) if name == 'interlat' else windowed
    sent = c.send(windowed, [g.prompt for g in games[:3]])
    one, three = (rollout(actor, games[:3], sent, c, batch_size=b, max_new_tokens=6, max_steps=2, progress=False) for b in (1, 3))
    assert one == three != rollout(actor, games[:3], None, c, max_new_tokens=6, max_steps=2, progress=False)


def test_fused_with_another_tokenizer(tmp_path):
    "C2C between two tokenizers: what is said is fused token by token, the marks of the template are not; in many turns as at once."
    games = cast.games(tmp_path, n=3)
    tok, other = (cast.tokenizer(games, family) for family in ('qwen2', 'llama'))
    actor, sender = Agent(cast.lm(tok, num_hidden_layers=3).double(), tok), Agent(cast.lm(other, 'tiny-llama').double(), other)
    c = CHANNELS['c2c'].untrained(sender, actor, align='first', hidden=16, intermediate=16)
    for p in c.projectors.double(): p.key_gate_logit.data.fill_(1), p.value_gate_logit.data.fill_(1)
    asked = [g.turns[:1] for g in games]
    sent = c.send(sender, asked)
    said = talk(ChannelSpeaker(actor, c, 6), sent, tok, asked)
    assert said == talk(ChannelSpeaker(actor, c, 6, cache=False), sent, tok, asked) != talk(ChannelSpeaker(actor, c, 6), [None]*3, tok, asked)
    for i in (0, 2): assert [turn[i] for turn in said] == [turn[0] for turn in talk(ChannelSpeaker(actor, c, 6), sent[i:i+1], tok, asked[i:i+1])]
    assert [t.strip() for t in said[0]] == c.receive(actor, asked, sent, 6).texts


def test_two_conditions_share_payloads_and_nothing_else(table):
    "Two speakers take turns over the same payloads; each says what it says when it is alone, and the payloads stay as they were, byte by byte."
    games, agent, _ = table
    for name in ('latentmas', 'kvcomm', 'sde', 'text'):
        c = made(name, agent)
        sent = c.send(agent, [g.prompt for g in games[:3]])
        before = [{k: x.clone() for k, x in p.to_tensors().items()} for p in sent]
        asked = [g.turns[:1] for g in games[:3]]
        wanted = [talk(ChannelSpeaker(agent, c, 6), p, agent.tokenizer, asked) for p in (sent, sent[::-1])]
        speakers = [ChannelSpeaker(agent, c, 6) for _ in range(2)]
        seats = [[Seat(Conversation(agent.tokenizer, t), payload=p, seed=i) for i, (t, p) in enumerate(zip(asked, ps))] for ps in (sent, sent[::-1])]
        for turn in range(4):
            for speaker, own, right in zip(speakers, seats, wanted):
                words = speaker.speak(own)
                assert words == right[turn]
                for k, (s, w) in enumerate(zip(own, words)):
                    s.chat.add(thinking(w.strip(), 'a mug') if (turn + k) % 2 else assistant(w[:9].strip()))
                    s.chat.add(user('You see a desk 1. What next?'))
        storages = [{x.untyped_storage().data_ptr() for layer in s.rows.cache.layers for x in (layer.keys, layer.values)} for s in speakers]
        mine = {x.untyped_storage().data_ptr() for p in sent for x in p.to_tensors().values()}
        assert not storages[0] & storages[1] and not (storages[0] | storages[1]) & mine
        assert all(torch.equal(x, old[k]) for p, old in zip(sent, before) for k, x in p.to_tensors().items())
