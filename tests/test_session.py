"Attribution, and runs that are opened: what the notebooks would not show."
import copy, json
from dataclasses import replace

import pytest
import torch
from cast import actor, games, lm, questions, tokenizer

from interlat.core.basics import *
from interlat.messages.message import *
from interlat.models.lm import *
from interlat.agents.collect import *
from interlat.evaluation.questions import *
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
