"The explorer on other runs than the one that comes along."
import pytest
from cast import actor, questions

from interlat.core.basics import *
from interlat.messages.message import *
from interlat.models.lm import *
from interlat.agents.collect import *
from interlat.channels.bench import channel
from interlat.channels.parcels import *
from interlat.evaluation.questions import *
from interlat.evaluation.sending import make_messages
from interlat.instruments.session import *
from interlat.instruments.view import *
from interlat.instruments.explorer import *
from interlat.instruments.page import *


def shown(x, panel): return str(x.outputs[panel].outputs)


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "A session of questions."
    folder, tasks = tmp_path_factory.mktemp('asked'), questions(6)
    sender = load_lm('tiny-math', 'float32')
    store = collect(sender, tasks, MessageStore(folder/'messages', sender='tiny-math'), max_new_tokens=12, progress=False)
    reader = Agent(actor(load_lm('tiny-math', 'float32').model, sender.tokenizer), sender.tokenizer)
    reader.save_pretrained(folder/'actor')
    evaluate_answers(reader, tasks, store, ['latent', 'no_comm'], folder, max_new_tokens=6, workers=1, progress=False)
    save_session(folder, tasks, store, folder/'actor', 'tiny-math', folder/'answers.csv')
    return folder


def test_questions_are_explored_word_by_word(asked):
    x = Explorer(asked, by='outcome', progress=False)
    task = x.session.by_id[x.view.task_id]
    assert task.turns[-2]['content'][:20] in x.transcript.value and {t.name for t in x.map.data[:-1]} <= {'right', 'wrong'}
    before = shown(x, 'actions')
    x.step.value = 1
    assert shown(x, 'actions') != before and 'a question is answered in one turn' in shown(x, 'timeline')
    x.share.value = .5
    assert 'tampered with' in shown(x, 'actions') and x.status.value == ''
    x.tabs.selected_index = 1
    assert 'JS divergence' in shown(x, 'attribution')
    with pytest.raises(InterlatError, match='a page shows games'): page_data(x.session)


def test_quick_fingers_change_nothing_of_the_result():
    "Moved in any order, the same widgets show the same."
    one, two = Explorer(progress=False), Explorer(progress=False)
    last = one.session.tasks[-1].task_id
    one.choose(last); one.against.value = 'cross_task'; one.noise.value = .5; one.step.value = 1
    two.noise.value = 1.; two.step.value = 2; two.condition.value = 'text'; two.condition.value = 'first_4'; two.choose(last); two.against.value = 'cross_task'
    two.condition.value = 'latent'; two.step.value = 1; two.noise.value = .5
    assert one.view == two.view and one.text.value == two.text.value and one.transcript.value == two.transcript.value
    for p in ('actions', 'timeline', 'lens'): assert shown(one, p) == shown(two, p)


def test_what_cannot_be_opened_is_said_in_a_line(tmp_path):
    with pytest.raises(InterlatError, match='session not found'): Explorer(tmp_path)
    few = copy_session(open_fixture(), tmp_path/'few', 2)
    with pytest.raises(InterlatError, match='a map needs at least 4 messages, found 2'): Explorer(few)


KINDS = { # channel -> its options, what is seen where a map would lie, a condition of its kind, one that it has not and why
    'latentmas': (dict(latent_steps=2), 'keys, layer', 'shuffle_places', 'own_tokens', 'a cache keeps no words'),
    'sde': (dict(layers=(-2,), max_new_tokens=8), 'differences, layer', 'other_with_ids', 'zero_values', 'it has no values beside keys'),
    'ac': (dict(k=-2, j=-2), 'dimension', 'scale_2', 'first_0.5', 'one vector has no order and no parts'),
    'text': (dict(max_new_tokens=8), 'holds no numbers', 'shuffle', 'zero', 'words are no numbers'),
    'cipher': (dict(n=4), None, 'moment_matched', 'zero_values', 'it has no values beside keys')}


@pytest.mark.parametrize('name', KINDS)
def test_payloads_of_any_kind_are_explored(tmp_path, name):
    options, seen, mine, none, why = KINDS[name]
    sender, way, tasks = load_lm('tiny-math', 'float32'), channel(name, **options), questions(4)
    store = PayloadStore(tmp_path/'payloads', 'tiny-math', name, channel_options(way))
    store.put([Parcel(p, t.task_id, *store.kind) for p, t in zip(make_messages(way, sender, tasks, progress=False).payloads, tasks)])
    save_session(tmp_path, tasks, store, 'tiny-math', 'tiny-math', how=dict(max_new_tokens=4))
    x = Explorer(tmp_path, progress=False)
    s = x.session
    assert (x.view.condition, x.view.against) == ('current', 'none') and x.keep.disabled and x.status.value == '' and 'bytes' in x.text.value
    for p in ('lens', 'attribution', 'norms'):
        x.tabs.selected_index = ['lens', 'attribution', 'norms'].index(p)
        assert ('does not apply to' in shown(x, p)) == bool(s.sent.not_for(p))
    assert bool(seen) == bool(s.sent.not_for('map')) == x.method.disabled and (not seen or seen in shown(x, 'payload'))
    before = shown(x, 'actions')
    x.condition.value = mine
    assert x.status.value == '' and mine in shown(x, 'actions') and shown(x, 'actions') != before and mine in x.text.value
    x.condition.value = 'none'
    assert 'nothing is sent' in x.text.value and x.status.value == ''
    assert none not in s.conditions and not set(x.condition.options) - set(s.conditions)
    with pytest.raises(InterlatError, match=why): s.message(tasks[0].task_id, none)
    with pytest.raises(InterlatError, match=f'a page shows messages.*payloads of kind {s.sent.kind!r} from the channel {name!r}'): page_data(s)
    if seen:
        with pytest.raises(InterlatError, match=f'map does not apply to a payload of kind {s.sent.kind!r}'): map_table(s)


def test_spans_of_a_payload_of_states_are_those_of_its_message(tmp_path):
    "The session that comes along, its messages as payloads of `interlat`: the same views, whichever way they are kept."
    from interlat.channels.payloads import States
    s, way = open_fixture(), channel('interlat')
    store = PayloadStore(tmp_path/'payloads', s.store.sender, 'interlat', channel_options(way))
    store.put([Parcel(States.of(s.store[t.task_id]), t.task_id, *store.kind) for t in s.tasks[:5]])
    save_session(tmp_path, s.tasks[:5], store, s.folder/'actor', 'tiny-qwen2')
    sent, task = open_session(tmp_path), s.tasks[1].task_id
    assert sent.moments(task)[1].outputs == s.moments(task)[1].outputs and sent.moments(task, 'none')[1].outputs == s.moments(task, 'no_comm')[1].outputs
    ours, theirs = (attribution_view(x, first_view(x, task)) for x in (sent, s))
    assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.js.tolist() == pytest.approx(theirs.js.tolist(), abs=1e-4)
    assert lens_view(sent, first_view(sent, task)).equals(lens_view(s, first_view(s, task)))
    same = [action_view(x, first_view(x, task)).probability.tolist() for x in (sent, s)]
    assert same[0] == pytest.approx(same[1], abs=1e-4)
