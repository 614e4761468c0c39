"Attribution, and runs that are opened: what the notebooks would not show."
import copy, json
from dataclasses import replace

import pytest
import torch
from cast import actor, games, lm, questions, tokenizer

from interlat.core.basics import *
from interlat.messages.message import *
from interlat.models.lm import *
from interlat.models.decoding import steps as decoded
from interlat.models.chat import decode_turn
from interlat.agents.collect import *
from interlat.channels.protocol import chooser, ends_of
from interlat.channels.parcels import *
from interlat.channels.bench import channel
from interlat.channels.c2c import C2C
from interlat.evaluation.questions import *
from interlat.evaluation.sending import make_messages
from interlat.evaluation.trials import run_channel
from interlat.instruments.attribution import *
from interlat.instruments.session import *


@pytest.fixture(scope='module')
def session(): return open_fixture()


@pytest.fixture(scope='module')
def exact(session):
    "The session's actor in float64."
    return Agent(copy.deepcopy(session.actor.model).double(), session.actor.tokenizer)


def test_a_decision_is_the_same_at_any_batch_size(session, exact):
    t = session.tasks[3]
    moment = session.moments(t.task_id)[0][2]
    messages = [session.message(t.task_id, c)[0] for c in ('latent', 'no_comm', 'cross_task', 'first_4')]
    whole = moment.decision(exact)(messages)
    for size in (1, 7, 1000):
        again = Decision(exact, moment.turns, moment.offers, size)(messages)
        assert torch.allclose(whole, again, rtol=0, atol=1e-5)
    alone = torch.cat([moment.decision(exact)([m]) for m in messages])
    assert torch.allclose(whole, alone, rtol=0, atol=1e-5)


def test_what_the_actor_did_is_what_it_finds_likeliest(session):
    done = [(d(([session.message(t.task_id)[0]]))[0].argmax().item(), list(d.candidates), m.said)
            for t in session.tasks[:8] for m in session.moments(t.task_id)[0] for d in [m.decision(session.actor)] if m.said in m.offers]
    assert len(done) > 30 and sum(c[i] == said for i, c, said in done) >= .95*len(done) # greedy word by word is nearly always the likeliest whole


def test_the_trained_actor_reads_the_first_step_of_the_plan_first(session):
    top = []
    for t in session.tasks:
        message = session.store[t.task_id]
        found = leave_span_out(session.moments(t.task_id)[0][0].decision(session.actor), message, steps(message, session.sender.tokenizer))
        top.append(int(found.js.idxmax()))
    assert top.count(0) >= 18, top


def test_a_session_of_questions(tmp_path):
    tasks = questions(4)
    sender = load_lm('tiny-math', 'float32')
    store = collect(sender, tasks, MessageStore(tmp_path/'messages', sender='tiny-math'), max_new_tokens=12, progress=False)
    reader = Agent(actor(load_lm('tiny-math', 'float32').model, sender.tokenizer), sender.tokenizer)
    reader.save_pretrained(tmp_path/'actor')
    evaluate_answers(reader, tasks, store, ['latent', 'no_comm'], tmp_path, max_new_tokens=6, workers=1, progress=False)
    save_session(tmp_path, tasks, store, tmp_path/'actor', 'tiny-math', tmp_path/'answers.csv')
    s = open_session(tmp_path)
    moments, text = s.moments(tasks[0].task_id)
    assert not s.plays and set(s.outcomes().values()) <= {'right', 'wrong'} and len(s.outcomes()) == 4
    assert ''.join(m.said for m in moments) == text == s.recorded(tasks[0].task_id, 'latent').output
    decide = moments[1].decision(s.actor)
    p = decide([s.message(tasks[0].task_id)[0], None]).exp()
    assert p.shape == (2, len(decide.candidates)) and torch.allclose(p.sum(1), torch.ones(2), atol=1e-4)
    assert s.moments(tasks[0].task_id, 'first_2')[1] is not None # answered now
    small = copy_session(s, tmp_path/'small', 2)
    assert len(small.tasks) == 2 and len(small.results) == 4 and small.message(tasks[1].task_id)[0].text == store[tasks[1].task_id].text
    with pytest.raises(InterlatError, match='not empty'): copy_session(s, tmp_path/'small')


def test_a_broken_game_is_played_again(session, tmp_path):
    small = copy_session(session, tmp_path/'part', 2)
    rows = (tmp_path/'part'/'games.csv').read_text().splitlines()
    broke = [r if ',latent' not in r and not r.startswith('latent') else r.replace(',True,', ',,').replace(',False,', ',,') for r in rows]
    (tmp_path/'part'/'games.csv').write_text('\n'.join(broke) + '\n')
    s = open_session(tmp_path/'part')
    assert set(s.outcomes().values()) == {'error'} and s.moments(s.tasks[0].task_id)[1].won is not None


def test_a_session_that_was_kept_under_an_old_name(session, tmp_path):
    small = copy_session(session, tmp_path/'kept', 12)
    log, task = tmp_path/'kept'/'games.csv', small.tasks[0].task_id
    rows = log.read_text().splitlines()
    log.write_text('\n'.join([*rows, *(r.replace('latent,', 'self_message,', 1) for r in rows if r.startswith('latent,'))]) + '\n')
    kept, s = log.read_bytes(), open_session(tmp_path/'kept')
    assert s.recorded(task, 'same_type').outputs == s.recorded(task, 'latent').outputs and s.outcomes('same_type') == s.outcomes('latent')
    assert 'self_message' not in s.conditions and s.message(task, 'same_type')[0].task_id != task and log.read_bytes() == kept
    for ask in (s.message, s.moments):
        with pytest.raises(InterlatError, match="condition 'self_message' is 'same_type' now"): ask(task, 'self_message')
    with pytest.raises(InterlatError, match="condition 'self_message' is 'same_type' now"): copy_session(s, tmp_path/'two', 2, ['self_message'])


def test_conditions_follow_the_tasks(session, tmp_path):
    one = copy_session(session, tmp_path/'one', 1)
    assert not {'cross_task', 'same_type', 'mean_message'} & set(one.conditions) and 'latent' in one.conditions
    assert {'cross_task', 'same_type', 'mean_message'} <= set(session.conditions) and 'no_cot' not in session.conditions


def test_mean_and_removal_agree_on_a_planted_span():
    g = torch.Generator().manual_seed(0)
    message = LatentMessage(torch.randn(12, 8, generator=g), [0]*12, '', 't', 's')
    def reader(messages): return torch.stack([torch.stack([5*m.h.norm(dim=1).max(), torch.tensor(5*4.)]) for m in messages]) # looks for one long state
    message = replace(message, h=message.h.index_put((torch.tensor(5),), 10*torch.ones(8)))
    for how in WAYS: assert leave_span_out(reader, message, windows(12, 2), how).js.idxmax() == 2


SENT = dict(latentmas=dict(latent_steps=3), text=dict(max_new_tokens=12), cipher=dict(n=6), sde=dict(layers=(-2,), max_new_tokens=8), ac=dict(k=-2, j=-2), kvcomm=dict(layers=(0, 2)), own_tokens=dict(K=6, max_new_tokens=8), statebridge=dict(K=6, max_new_tokens=8), c2c={})


def payload_session(folder, sender, tasks, way, log=None, model='tiny-qwen2', how=dict(max_steps=3, max_new_tokens=8)):
    "A session of what a preset sends, read by itself."
    store = PayloadStore(folder/'payloads', 'a preset', way.name, channel_options(way))
    store.put([Parcel(p, t.task_id, *store.kind) for p, t in zip(make_messages(way, sender, tasks, progress=False).payloads, tasks)])
    save_session(folder, tasks, store, model, model, log or '', how=how)
    return folder


def opened_c2c(sender):
    "Projectors between copies of a model, their gates open."
    way = C2C.untrained(sender, sender)
    with torch.no_grad():
        for name, p in way.projectors.named_parameters():
            if 'gate_logit' in name: p.fill_(5)
    return way


@pytest.mark.parametrize('name', SENT)
def test_a_session_of_payloads_asks_again_what_was_played(session, tmp_path, name):
    "At every moment of a game the actor that is asked again goes on as it did, whatever it was given."
    sent = channel(name, **SENT[name]) if name != 'c2c' else opened_c2c(session.sender)
    s = open_session(payload_session(tmp_path, session.sender, session.tasks[:3], sent), channel=sent if name == 'c2c' else None)
    assert vars(s.way) == vars(sent) and s.conditions[:2] == ['current', 'none'] and s.plays and s.results is None
    task, apart = s.tasks[1].task_id, 0
    for c in ('current', 'none', 'other'):
        payload, way = s.message(task, c)
        moments, episode = s.moments(task, c)
        assert way is s.way and (payload is None) == (c == 'none') and len(moments) == episode.steps == 3
        for m in moments:
            with torch.inference_mode():
                rows, z = heard(s.actor, way, m.turns, [payload])
                new = [t.item() for _, t, _ in decoded(rows, z, ends_of(s.actor), 8, chooser(0, None, 1))]
            assert decode_turn(s.actor.tokenizer, new) == m.said
        asked = moments[1].decision(s.actor)
        both = asked([payload, None, payload], way)
        assert torch.allclose(both[0], both[2], atol=1e-5) and torch.allclose(asked([payload], way), both[:1], rtol=0, atol=1e-4)
        if c != 'none': apart = max(apart, (both[0] - both[1]).abs().max().item())
    assert apart > 1e-3 # it is heard
    for c in s.conditions: assert s.message(task, c)[0] is None or s.message(task, c)[0].kind == s.sent.kind, c


def test_questions_with_payloads(session, tmp_path):
    tasks = questions(4)
    sender = load_lm('tiny-math', 'float32')
    s = open_session(payload_session(tmp_path, sender, tasks, channel('latentmas', latent_steps=2), model='tiny-math', how=dict(max_new_tokens=6)))
    for c in ('current', 'none', 'first_0.5'):
        payload, way = s.message(tasks[0].task_id, c)
        moments, text = s.moments(tasks[0].task_id, c)
        assert ''.join(m.said for m in moments) == text
        for m in moments[:3]:
            decide = m.decision(s.actor)
            assert decide.candidates[decide([payload], way)[0].argmax()] == m.said


def test_trials_are_the_results_of_a_session_of_payloads(session, tmp_path):
    tasks, way = session.tasks[:3], channel('text', max_new_tokens=12)
    made = make_messages(way, session.sender, tasks, progress=False).payloads
    arms = dict(current=[made], none=[[None]*3], other=[made[1:] + made[:1]])
    rows = run_channel(way, session.sender, tasks, arms, tmp_path/'run', max_steps=3, max_new_tokens=8, progress=False)
    s = open_session(payload_session(tmp_path, session.sender, tasks, way, tmp_path/'run'/'trials.csv', how=None))
    assert set(s.results.condition) == {'current', 'none'} and len(s.results) == 6 and set(s.outcomes()) == set(s.by_id) # whose message 'other' was is not known
    t = tasks[0].task_id
    assert json.dumps(s.moments(t)[1].outputs) == rows.said[(rows.item == t) & (rows.arm == 'current')].iloc[0] and s.moments(t, 'other')[1].steps == 3
    fresh = open_session(payload_session(tmp_path/'again', session.sender, tasks, way))
    assert fresh.moments(t)[1].outputs == s.moments(t)[1].outputs
    other = payload_session(tmp_path/'mixed', session.sender, tasks, channel('text', max_new_tokens=11), tmp_path/'run'/'trials.csv')
    with pytest.raises(InterlatError, match="trials.csv have options .*'max_new_tokens': 12.*the payloads .*'max_new_tokens': 11"): open_session(other).results


def test_what_a_session_of_payloads_lacks_is_said_in_a_line(session, tmp_path):
    tasks, W = session.tasks[:2], torch.eye(session.sender.model.config.hidden_size)
    mapped = payload_session(tmp_path/'mapped', session.sender, tasks, channel('ac', k=-2, j=-2, W=W))
    with pytest.raises(InterlatError, match="W of the channel 'ac' is no word or number and was not kept; give the channel itself, as open_session"): open_session(mapped)
    with pytest.raises(InterlatError, match="kept with W 'crc32"): open_session(mapped, channel=channel('ac', k=-2, j=-2, W=2*W))
    assert open_session(mapped, channel=channel('ac', k=-2, j=-2, W=W)).moments(tasks[0].task_id)[1].steps == 3
    plain = payload_session(tmp_path/'plain', session.sender, tasks, channel('latentmas', latent_steps=2))
    known = json.loads((plain/'session.json').read_text())
    assert known['channel'] == 'latentmas' and known['options']['latent_steps'] == 2
    def wrong(**changes): (plain/'session.json').write_text(json.dumps(known | changes))
    for match, changes in {"has options .*'latent_steps': 2.*wanted options .*'latent_steps': 3": dict(options=known['options'] | dict(latent_steps=3)),
                           "unknown channel 'mine'": dict(channel='mine', options={}), 'no payloads in': dict(messages='nowhere'),
                           "payload store, wanted a message store": dict(channel=None)}.items():
        wrong(**changes)
        with pytest.raises(InterlatError, match=match) as e: open_session(plain)
        assert '\n' not in str(e.value)
    wrong(sender='tiny-llama')
    with pytest.raises(InterlatError, match="'latentmas' needs the same weights on both sides"): open_session(plain).actor
    wrong()
    (plain/'session_tasks.jsonl').write_text((session.folder/'session_tasks.jsonl').read_text())
    with pytest.raises(InterlatError, match="22 of 24 tasks have no payload in 'payloads'"): open_session(plain)
    with pytest.raises(InterlatError, match="1 of 1 tasks have no payload"): save_session(tmp_path, session.tasks[5:6], PayloadStore(plain/'payloads'), 'a', 'b')
    rows = payload_session(tmp_path/'rows', session.sender, tasks, channel('interlat', max_new_tokens=8))
    with pytest.raises(InterlatError, match="'interlat' needs an actor with an adapter"): open_session(rows).actor
