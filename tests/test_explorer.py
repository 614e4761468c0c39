"The explorer on other runs than the one that comes along."
import pytest
from cast import actor, questions

from interlat.core.basics import *
from interlat.messages.message import *
from interlat.models.lm import *
from interlat.agents.collect import *
from interlat.evaluation.questions import *
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
