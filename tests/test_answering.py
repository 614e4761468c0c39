"Answers do not depend on who else is asked, in which order, how many at a time, or with which kind of cache."
import random

import pytest, torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM, MistralConfig

import cast
from interlat.models.lm import *
from interlat.evaluation.answering import *
from interlat.models.sampling import greedy_config, through_end
from interlat.core.basics import InterlatError
from interlat.agents.speaker import Speaker
from interlat.models.chat import encode_chat
from interlat.messages.message import LatentMessage
from interlat.core.tasks import Task


def sliding(tok):
    "A model whose layers forget what is 16 tokens back."
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MistralConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, sliding_window=16, initializer_range=.3, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)).eval()


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama', 'sliding'])
def asked(request):
    "An actor, its tokenizer, questions of unequal lengths, and messages for most."
    tasks = cast.questions(7)
    tok = cast.tokenizer(tasks, 'qwen2' if request.param == 'sliding' else request.param[5:])
    actor = cast.actor(sliding(tok) if request.param == 'sliding' else cast.lm(tok, request.param), tok)
    messages = [LatentMessage(torch.randn(1 + 2*i, 32, generator=torch.Generator().manual_seed(i)), [*range(9, 10 + 2*i)], '', t.task_id, 's') if i % 3 else None for i, t in enumerate(tasks)]
    return actor, tok, tasks, messages


def said(asked, order=None, **kw):
    "Answers by task_id."
    actor, tok, tasks, messages = asked
    order = range(len(tasks)) if order is None else order
    kw = dict(max_new_tokens=6) | kw
    return {tasks[order[k]].task_id: a for batch in answer(Agent(actor, tok), [tasks[i] for i in order], [messages[i] for i in order], **kw) for k, a in batch}


@pytest.mark.parametrize('how', [{}, dict(temperature=1.), dict(temperature=1., n_samples=3)])
def test_neither_batch_nor_order_matters(asked, how):
    whole = said(asked, **how)
    assert len(whole) == 7 and {len(a) for a in whole.values()} == {how.get('n_samples', 1)}
    assert len({a[0].text for a in whole.values()}) > 3, 'these actors say too little to tell them apart'
    for size in (1, 2, 3, 100): assert said(asked, batch_size=size, **how) == whole
    order = random.Random(0).sample(range(7), 7)
    assert said(asked, order, batch_size=4, **how) == whole and said(asked, [5], **how) == {t: a for t, a in whole.items() if t == asked[2][5].task_id}


def test_several_samples_are_those_that_one_gets_one_by_one(asked):
    "Each sample by `generate` on its own, from nothing but the tokens and its noise."
    from interlat.models.sampling import RowSampler
    from interlat.core.basics import derive_seed
    actor, tok, tasks, messages = asked
    three, ends = said(asked, temperature=.8, n_samples=3, seed=4), greedy_config(Agent(actor.base_model, tok), 6)
    for t, m in zip(tasks, messages):
        chat = encode_chat(tok, t.turns[:1], add_generation_prompt=True)
        x = torch.tensor([chat.input_ids])
        given = {} if m is None else dict(insert_at=torch.tensor([chat.insert_at]), message_embeds=actor.embed_message(m.h[None]))
        for k, got in enumerate(three[t.task_id]):
            new = actor.generate(x, torch.ones_like(x), **given, generation_config=ends, logits_processor=[RowSampler(.8, [derive_seed(4, 'answer', t.task_id, k)])])[0].tolist()
            new = through_end(new, ends.eos_token_id)
            assert got == Completion(tok.decode(new, skip_special_tokens=True), len(new), new[-1] in ends.eos_token_id)
    assert any(len({a.text for a in three[t]}) == 3 for t in three)


def test_the_question_is_read_once_for_all_samples(asked):
    actor, tok, tasks, messages = asked
    speaker = Speaker(Agent(actor, tok), 1, 1.)
    [*answer(Agent(actor, tok), tasks, messages, speaker=speaker, n_samples=4, max_new_tokens=1, temperature=1., batch_size=4)]
    alone = Speaker(Agent(actor, tok), 1, 1.)
    [*answer(Agent(actor, tok), tasks, messages, speaker=alone, max_new_tokens=1, temperature=1., batch_size=1)]
    assert speaker.computed == alone.computed


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_is_asked_together(data):
    "Any tasks, repeated neither nor in order, in any batches of samples."
    if not hasattr(test_whatever_is_asked_together, 'asked'):
        tasks = cast.questions(5)
        tok = cast.tokenizer(tasks)
        base = cast.lm(tok)
        test_whatever_is_asked_together.asked = cast.actor(base, tok), tok, tasks, [None]*5
        test_whatever_is_asked_together.whole = said(test_whatever_is_asked_together.asked, temperature=1., n_samples=2)
    order = data.draw(st.permutations(range(5)))[:data.draw(st.integers(1, 5))]
    asked, whole = test_whatever_is_asked_together.asked, test_whatever_is_asked_together.whole
    got = said(asked, order, temperature=1., n_samples=data.draw(st.integers(1, 2)), batch_size=data.draw(st.integers(1, 11)))
    assert list(got) == [asked[2][i].task_id for i in order] and all(whole[t][:len(a)] == a for t, a in got.items())


def test_nothing_asked_nothing_answered(asked): assert [*answer(Agent(*asked[:2]), [])] == []


def test_what_is_refused(asked):
    actor, tok, tasks, messages = asked
    mute = Task('mute', 'sums', tasks[0].prompt)
    for match, kw in {'max_new_tokens must be 1 or more, found 0': dict(max_new_tokens=0), 'temperature must be 0 or more, found -1': dict(temperature=-1),
                      'temperature must be 0 or more, found nan': dict(temperature=float('nan')), 'n_samples must be 1 or more, found -2': dict(n_samples=-2), 'unknown channel .smoke.': dict(channel='smoke'),
                      '2 samples of a question are all the same': dict(n_samples=2)}.items():
        with pytest.raises(InterlatError, match=match): said(asked, **kw)
    with pytest.raises(InterlatError, match='task mute has no question for the actor'): next(answer(Agent(actor, tok), [*tasks, mute])), 'before the first is answered'
    narrow = [LatentMessage(torch.randn(2, 16), [1, 2], '', t.task_id, 's') for t in tasks]
    with pytest.raises(InterlatError): next(answer(Agent(actor, tok), tasks, narrow))
