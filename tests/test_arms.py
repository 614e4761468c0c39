"Arms that need models: the receiver's own message, maps, words at equal bytes and time, a message trained for all; gradients through every channel against differences."
import numpy as np, pytest, torch
from cast import random_lm

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.audit import Beside, Case, arm, controlled
from interlat.audit.arms import steps_of
from interlat.channels import channel
from interlat.channels.payloads import Words
from interlat.core.basics import InterlatError
from interlat.core.tasks import Task
from interlat.audit.answers import answer_ids, filled, forced, answer_logprob, learned_constant, read_forced, right_answer
from interlat.evaluation.sending import actor_prompt
from interlat.models.chat import Chat
from interlat.models.lm import Agent
from interlat.models.tiny import *
from interlat.models.lm import load_tokenizer

WORDS = 'go to desk 1', 'take the mug from the desk and put it', 'look', 'open the drawer', 'heat it', 'put it', 'close the drawer and look'
OPTIONS = dict(latentmas=dict(latent_steps=3, realign=True), statebridge=dict(K=6, max_new_tokens=6), own_tokens=dict(K=6, max_new_tokens=6), cipher=dict(n=5),
               sde=dict(layers=(0, 1), max_new_tokens=5), text=dict(max_new_tokens=6), interlat=dict(max_new_tokens=6), kvcomm={}, ac={})
TRAINED = [n for n in OPTIONS if n != 'text']


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama'])
def agent(request):
    tok = load_tokenizer(request.param)
    return Agent(tiny_lm(request.param, tok, num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, initializer_range=.3).eval(), tok)


def task(q, a): return Task(q, 'talk', [dict(role='user', content=f'Map: {a}')], turns=[dict(role='user', content=q), dict(role='assistant', content=a)], known=f'Map: {a}')


TASKS = [task(q, a) for q, a in zip(WORDS, WORDS[1:] + WORDS[:1])]


def case(name, agent, **more):
    c, actor = channel(name, **OPTIONS[name]), agent
    if name == 'interlat':
        actor = Agent(ModelWithInsertedHiddenState(agent.model, 40, 32, num_heads=4).eval(), agent.tokenizer)
        actor.model.processor.adaptive_proj.output_scale.data.fill_(5)
    tasks = TASKS[:5]
    return Case(c, agent, actor, tasks, c.send(agent, [t.prompt for t in tasks]), Beside([t.task_id for t in tasks], k=2, sender=agent), **dict(tokens=8, train=TASKS[5:], steps=4) | more)


# Gradients

@pytest.mark.parametrize('name', TRAINED)
@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_a_gradient_is_the_difference_that_it_says(name, family):
    "Of the answer's log-probability by the numbers of a payload, through each channel, in float64."
    lm = random_lm(family).double()
    sender, actor, c = Agent(lm, None), Agent(lm, None), channel(name, **OPTIONS[name])
    if name == 'interlat': actor = Agent(ModelWithInsertedHiddenState(lm, 40, 16, num_heads=4).double().eval(), None)
    chats, ys = [Chat(ids, [0]*len(ids), 1) for ids in ([4, 8, 21], [3, 9])], [[7, 8], [30, 31, 32]]
    sent = c.send(sender, [[5, 9, 11, 3], [7, 30, 12, 8, 22, 41]])
    from interlat.audit.answers import _parts
    parts = {k: x[..., :3, :].double().clone().requires_grad_() for k, x in _parts(sent[0]).items()}
    def loss(parts):
        said = read_forced(c, actor, chats, [filled(p, parts) for p in sent], ys)
        return sum(x.double().log_softmax(-1).gather(1, torch.tensor(y)[:, None]).sum() for x, y in zip(said, ys))
    grads = torch.autograd.grad(loss(parts), list(parts.values()))
    g = torch.Generator().manual_seed(0)
    for (k, x), slope in zip(parts.items(), grads):
        way = torch.randn(x.shape, generator=g, dtype=torch.float64)
        with torch.no_grad(): up, down = (loss({**parts, k: x + e*way}) for e in (1e-3, -1e-3))
        assert (slope*way).sum().item() == pytest.approx((up - down).item()/2e-3, rel=.02, abs=2e-3), k # logits leave the model in float32


# The receiver's own

@pytest.mark.parametrize('name', OPTIONS)
def test_the_receivers_own_message_is_as_long_and_its_own(agent, name):
    c = case(name, agent)
    own, again = arm('self', c).rounds[0], arm('self', c).rounds[0]
    for p, q, m in zip(own, again, c.payloads):
        assert p.positions == m.positions and type(p) is type(m) and all(torch.equal(x, y) for x, y in zip(p.to_tensors().values(), q.to_tensors().values()))
    made = c.channel.send(c.me, c.conversations) if name != 'ac' else None
    if name == 'text':
        for p, m in zip(own, made):
            n = min(len(p.token_ids), len(m.token_ids))
            assert p.token_ids[:n] == m.token_ids[:n]
    if name == 'latentmas': # the last steps, at the last positions
        assert torch.equal(own[0].values[1][:, -3:], made[0].values[1][:, -3:])
    if name == 'ac':
        plain = c.channel.send(agent, c.conversations)
        assert not torch.equal(own[0].a, plain[0].a) # which would be no message at all


# Words

@pytest.mark.parametrize('name', ['sde', 'ac', 'kvcomm', 'cipher'])
def test_words_take_no_more_bytes_than_the_message(agent, name):
    c = case(name, agent)
    cheap = Case(**{**vars(c), 'payloads': c.payloads})
    cheap.channel.nbytes = lambda p: 9
    whole, cut = arm('text', c).rounds[0], arm('text_equal_bytes', cheap).rounds[0]
    for w, s in zip(whole, cut):
        assert s.nbytes <= 9 and s.token_ids == w.token_ids[:len(s.token_ids)]
        if len(s.token_ids) < len(w.token_ids): assert len(c.beside.spell(w.token_ids[:len(s.token_ids) + 1]).encode()) > 9


def test_words_take_no_longer_than_the_message(agent):
    c = case('latentmas', agent)
    said = arm('text_equal_time', c).rounds[0]
    assert [w.positions for w in said] == [min(3, w.positions) for w in arm('text', c).rounds[0]] and steps_of(c.channel, c.payloads[0]) == 3
    assert [w.positions for w in arm('single_agent', c).rounds[0]] <= [3]*5


# Trained and untrained

@pytest.mark.parametrize('name', TRAINED)
def test_a_constant_is_the_same_for_all_and_learns(agent, name):
    c = case(name, agent, steps=25)
    made, = arm('learned_constant', c).rounds
    first = {k: x for k, x in made[0].to_tensors().items() if k not in ('text', 'token_ids')}
    if name != 'sde': assert all(torch.equal(x, p.to_tensors()[k]) for p in made for k, x in first.items())
    else: assert all(p.token_ids == own.token_ids for p, own in zip(made, c.payloads))
    sent = c.channel.send(agent, [t.prompt for t in c.train])
    _, losses = learned_constant(c.channel, c.actor, c.train, sent, 4, 25, batch=2)
    assert np.mean(losses[-3:]) < losses[0] - .1
    assert c.channel.receive(c.actor, c.conversations, made, 2).logits.isfinite().all()


def test_a_map_of_chance_is_drawn_from_the_seed(agent):
    for name in ('latentmas', 'statebridge', 'interlat', 'ac'):
        one, same, other = (arm('random_map', case(name, agent, seed=s)).rounds[0] for s in (0, 0, 1))
        t = lambda p: p.to_tensors()
        assert all(torch.equal(x, t(q)[k]) for p, q in zip(one, same) for k, x in t(p).items())
        assert not all(torch.equal(x, t(q)[k]) for p, q in zip(one, other) for k, x in t(p).items())


def test_an_untrained_adapter_leaves_the_trained_one_alone(agent):
    c = case('interlat', agent)
    before = {k: v.clone() for k, v in c.actor.model.state_dict().items()}
    a = arm('untrained_map', c)
    assert a.actor.model.base_model is c.actor.model.base_model and all(torch.equal(v, before[k]) for k, v in c.actor.model.state_dict().items())
    said = [c.channel.receive(actor, c.conversations, c.payloads, 0).logits for actor in (c.actor, a.actor)]
    assert (said[0] - said[1]).abs().max() > 1e-3


def test_steps_that_are_words(agent):
    "`own_tokens` of latent steps: the cache is that of the prompt and the words that were written."
    c = case('latentmas', agent)
    made = arm('own_tokens', c).rounds[0]
    from interlat.channels.protocol import as_chat, written
    for p, t in zip(made, c.tasks):
        ids = as_chat(agent, t.prompt).input_ids
        (words, _), = written(Agent(agent.model, None), [ids], 3)
        want, = channel('kvcomm').send(agent, [[*ids, *words]])
        torch.testing.assert_close(torch.stack(p.values), torch.stack(want.values), atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', ['cipher', 'interlat', 'own_tokens'])
def test_an_adversarial_arm_makes_the_right_answer_less_likely(agent, name):
    c = case(name, agent)
    ys = [answer_ids(c.me, actor_prompt(t), right_answer(t)) for t in c.tasks]
    before, after = (answer_logprob(forced(*c.setting, p, ys), ys) for p in (c.payloads, arm('adversarial', c).rounds[0]))
    assert (after <= before + 1e-5).all() and after.mean() < before.mean() - .01


def test_the_oracle_reads_what_the_sender_knows(agent):
    c = case('kvcomm', agent)
    told = arm('oracle', c)
    assert [actor_prompt(t)[0]['content'] for t in told.tasks] == [f"{t.known}\n{t.turns[0]['content']}" for t in c.tasks] and told.rounds == [[None]*5]
    with pytest.raises(InterlatError, match='has nothing to hide'): arm('oracle', Case(**{**vars(c), 'tasks': [Task('a', 'b', [dict(role='user', content='x')], turns=TASKS[0].turns)]}))
