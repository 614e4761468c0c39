"The student's loss: what its weights must not depend on, and the whole against a slow reference."
import math

import cast, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from interlat.training import objective as room
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.core.basics import InterlatError
from interlat.compression.distill import Distillation, direction_rows, entropy, information_weights, preference_rows
from interlat.training.losses import log_probs
from interlat.training.packing import ATTENTION
from interlat.compression.reason import LatentStudent

PARTS = ('ce', 'preference', 'direction')


@pytest.fixture(scope='module', autouse=True)
def float64():
    with cast.exact(): yield


# entropies of one conversation's tokens, without a message and with it, in steps of 1/128 nat
conversation = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=12)
conversations = st.lists(conversation, min_size=1, max_size=5).filter(any)


def weights(rows, clip):
    none, full = (torch.tensor(x, dtype=torch.float64)/128 for x in zip(*(pair for row in rows for pair in row)))
    return information_weights(none, full, [len(r) for r in rows], clip).split([len(r) for r in rows])


@settings(deadline=None)
@given(conversations, st.sampled_from([.3, .95, 1.]))
def test_weights_have_unit_mean_in_each_conversation_and_are_zero_where_nothing_is_gained(rows, clip):
    for w, row in zip(weights(rows, clip), rows):
        gain = torch.tensor([max(n - f, 0) for n, f in row])
        assert (w[gain == 0] == 0).all() and (w >= 0).all()
        if not gain.any(): continue
        assert (w[gain > 0] > 0).all() and w.mean().item() == pytest.approx(1, abs=1e-12)
        order = gain.argsort()
        assert (w[order].diff() >= 0).all(), 'who gains more weighs no less'
        if clip == 1: assert_close(w, gain/gain.double().mean(), atol=1e-12, rtol=1e-12)
        top = np.quantile(gain[gain > 0].numpy(), clip)
        assert_close(w/w.max(), (gain.double()/top).clamp(max=1), atol=1e-12, rtol=1e-12)


@settings(deadline=None)
@given(conversations, st.sampled_from([.3, 1.]), st.randoms())
def test_weights_do_not_depend_on_order_or_company(rows, clip, random):
    whole = weights(rows, clip)
    order = random.sample(range(len(rows)), len(rows))
    for i, w in zip(order, weights([rows[i] for i in order], clip)): assert torch.equal(w, whole[i])
    for row, w in zip(rows, whole):
        if row: assert torch.equal(weights([row], clip)[0], w)


logits = st.integers(0, 2**31).map(lambda seed: 3*torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@settings(deadline=None)
@given(logits, st.sampled_from([1., 2., 4.]), st.floats(-9, 9))
def test_preference_is_a_divergence_at_a_temperature(pair, T, c):
    a, d = pair
    p, q = (torch.distributions.Categorical(logits=x/T) for x in (d, a))
    assert_close(preference_rows(a, d, T), T*T*torch.distributions.kl_divergence(p, q), atol=1e-12, rtol=1e-9)
    assert (preference_rows(a, d, T) > 0).all() and preference_rows(d + c, d, T).abs().max() < 1e-12 # the same probabilities
    assert_close(entropy(log_probs(a)), torch.distributions.Categorical(logits=a).entropy())


@settings(deadline=None)
@given(logits)
def test_preference_at_a_high_temperature_is_half_the_variance_of_the_difference(pair):
    "The limit of Hinton et al. 2015: matching logits. Near T = 1 it is not that."
    a, d = pair
    limit = (d - a).var(-1, unbiased=False)/2
    assert_close(preference_rows(a, d, 1e4), limit, atol=1e-6, rtol=1e-2)
    assert_close(preference_rows(a, d, 1e5), limit, atol=1e-6, rtol=1e-3)


@settings(deadline=None)
@given(logits, st.sampled_from([1., 4.]))
def test_gradient_of_the_preference_is_the_difference_of_the_probabilities(pair, T):
    a, d = (x.requires_grad_() for x in pair.clone().unbind())
    preference_rows(a, d, T).sum().backward()
    assert_close(a.grad, T*((a/T).softmax(-1) - (d/T).softmax(-1)).detach(), atol=1e-9, rtol=1e-6)
    assert d.grad is None, 'the target gets none'


def test_impossible_words_leave_preference_and_entropy_finite():
    a, d = torch.tensor([[0., 1., -math.inf]]), torch.tensor([[1., 0., -math.inf]])
    assert_close(preference_rows(a, d), preference_rows(a[:, :2], d[:, :2])) and entropy(log_probs(a)).isfinite().all()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(.1, 10), st.integers(1, 4))
def test_direction_is_that_of_the_mean_whatever_the_length(seed, scale, times):
    g = torch.Generator().manual_seed(seed)
    z, h = (torch.randn(3, n, 6, generator=g, dtype=torch.float64) for n in (4, 5))
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    found = direction_rows(z, h, mask)
    for row, n in enumerate((5, 1, 3)):
        u, v = z[row].numpy().mean(0), h[row, :n].numpy().mean(0)
        assert found[row].item() == pytest.approx(1 - u@v/np.linalg.norm(u)/np.linalg.norm(v), abs=1e-12)
    assert (0 <= found + 1e-12).all() and (found <= 2 + 1e-12).all()
    assert_close(direction_rows(scale*z.flip(1), h.repeat(1, times, 1), mask.repeat(1, times)), found, atol=1e-12, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_direction_of_a_long_message_in_half_precision(dtype):
    "The sum of 900 states with a coordinate of 200 is more than float16 holds."
    g = torch.Generator().manual_seed(0)
    h = torch.randn(2, 900, 8, generator=g) + torch.tensor([200., *[0.]*7])
    z, mask = torch.randn(2, 3, 8, generator=g), torch.ones(2, 900, dtype=torch.bool)
    assert_close(direction_rows(z, h.to(dtype), mask), direction_rows(z, h.to(dtype).float(), mask), atol=1e-5, rtol=0)


def pair_of(family='qwen2', size=16, student='llama', width=12, K=3, marks=(1, 2), room=6, adapter=True, **kw):
    "A random student of states of `width`, and an actor of width `size` that reads up to `room` of them; loud, and in float64."
    actor = ModelWithInsertedHiddenState(cast.random_lm(family, size, **kw), room, size, 4, width, *marks, adapter=adapter)
    if adapter: actor.processor.adaptive_proj.output_scale.data.fill_(5.)
    torch.manual_seed(1)
    return LatentStudent(cast.random_lm(student, 8, seed=1).double(), output_size=width, K=K).double(), actor.double().eval()


def batch(lengths=(14, 5, 9, 11), sizes=(7, 3, 1, 5), prompts=(4, 9, 2, 6), width=12, seed=0):
    "Conversations of `lengths` tokens with messages of `sizes` states and prompts of `prompts` tokens."
    g = torch.Generator().manual_seed(seed)
    (ids, text), (h, own), (asked, real) = ((torch.randint(3, 50, (len(n), max(n)), generator=g), torch.arange(max(n)) < torch.tensor(n)[:, None]) for n in (lengths, sizes, prompts))
    at = torch.tensor([int(torch.randint(1, n-1, (1,), generator=g)) for n in lengths])
    said = text & (torch.arange(max(lengths)) >= at[:, None]) & ((torch.rand(ids.shape, generator=g) < .6) | (torch.arange(max(lengths)) == torch.tensor(lengths)[:, None] - 1))
    return dict(input_ids=ids, attention_mask=text.long(), insert_at=at, labels=torch.where(said, ids, -100), message_mask=own, prompt_ids=asked, prompt_mask=real,
                h=torch.randn(len(h), max(sizes), width, generator=g, dtype=torch.float64))


def slow(objective, b, K):
    "Sums of the three losses: one conversation and one reading at a time, from the logits of every position."
    student, actor, T, total = objective.student, objective.actor, objective.temperature, torch.zeros(3, dtype=torch.float64)
    for i in range(len(b['labels'])):
        n, m, p, at = (int(x) for x in (b['attention_mask'][i].sum(), b['message_mask'][i].sum(), b['prompt_mask'][i].sum(), b['insert_at'][i]))
        x = student.lm.get_input_embeddings()(b['prompt_ids'][i:i+1, :p])
        for _ in range(K): x = torch.cat([x, student.feed(student.lm.base_model(inputs_embeds=x, use_cache=False)[0][:, -1])[:, None]], 1)
        z = student.lm.base_model(inputs_embeds=x, use_cache=False)[0][:, -K:]
        z = z if student.output_proj is None else student.output_proj(z)
        def read(h):
            e, room, ends = actor.plan_embeds(b['input_ids'][i, :n]), actor.settings['prepended_length'], [actor.settings[k] for k in ('bop_id', 'eop_id')]
            first, last = ([] if k is None or h is None else [actor.plan_embeds(torch.tensor([k]))] for k in ends)
            inside = [] if h is None else [*first, actor.processor(h[:, :room])[0], *last]
            out = actor.base_model(inputs_embeds=torch.cat([e[:at], *inside, e[at:]])[None]).logits[0]
            more = len(out) - n
            return torch.stack([out[t - 1 + (more if t >= at else 0)] for t in range(n) if b['labels'][i, t] != -100])
        A, D, B = read(z), read(b['h'][i:i+1, :m]).detach(), read(None).detach()
        gain = [max(sum(-q*math.log(q) for q in u.tolist()) - sum(-q*math.log(q) for q in v.tolist()), 0.) for u, v in zip(B.softmax(-1), D.softmax(-1))]
        if any(gain):
            top = np.quantile([w for w in gain if w], objective.clip)
            gain = [min(w, top) for w in gain]
            gain = [w*len(gain)/sum(gain) for w in gain]
        kl = ((D/T).softmax(-1)*((D/T).log_softmax(-1) - (A/T).log_softmax(-1))).sum(-1)
        y = b['labels'][i, b['labels'][i] != -100]
        apart = 1 - F.cosine_similarity(z[0].mean(0), b['h'][i, :m].mean(0), dim=0)
        total = total + torch.stack([F.cross_entropy(A, y, reduction='sum'), T*T*(torch.tensor(gain)*kl).sum(), len(y)*apart])
    return dict(zip(PARTS, total))


def gradient(objective, parts):
    "Of the weighted sum, in all parameters that have one."
    objective.zero_grad()
    (parts['ce'] + .7*parts['preference'] + .3*parts['direction']).backward()
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


KINDS = dict(packed={}, window=dict(family='mistral', sliding_window=5), no_marks=dict(marks=(None, None)), no_adapter=dict(adapter=False, width=16), tied=dict(tie_word_embeddings=True),
             one_state=dict(K=1), own_width=dict(width=8, student='qwen2'), learned_places=dict(family='gpt2', student='gpt2'))


@pytest.mark.parametrize('kind', KINDS)
def test_values_and_gradients_are_those_of_the_reference(kind):
    "Messages longer than the actor reads among them."
    how = dict(temperature=4., clip=.5) if kind == 'packed' else {}
    student, actor = pair_of(**KINDS[kind])
    objective, b = Distillation(student, actor, **how), batch(width=actor.settings['input_size'])
    assert (actor.base_model.config._attn_implementation == ATTENTION) == (kind != 'window')
    found, expected = objective(b), slow(objective, b, student.settings['K'])
    assert found['tokens'] == (b['labels'] != -100).sum()
    assert_close({k: found[k] for k in PARTS}, expected, atol=1e-9, rtol=1e-9)
    mine, wanted = gradient(objective, found), gradient(objective, expected)
    assert mine.keys() == wanted.keys() and all(n.startswith('student.') for n in mine)
    for n in mine: assert_close(mine[n], wanted[n], atol=1e-9*wanted[n].abs().max().item() + 1e-12, rtol=0)
    assert min(expected.values()) > .1


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(*[st.lists(st.integers(low, high), min_size=n, max_size=n) for low, high in ((3, 16), (1, 9), (1, 9))])))
def test_a_conversation_counts_alike_in_any_batch(shape):
    objective, b = Distillation(*pair_of(), temperature=2.), batch(*shape, seed=sum(shape[0]))
    with torch.no_grad(): whole, rows = objective(b), [objective({k: v[i:i+1] for k, v in b.items()}) for i in range(len(b['labels']))]
    for k in (*PARTS, 'tokens'): assert_close(torch.as_tensor(whole[k]).double(), torch.as_tensor(sum(r[k] for r in rows)).double(), atol=1e-9, rtol=1e-9)


def test_slices_change_nothing(monkeypatch):
    objective, b, seen = Distillation(*pair_of()), batch(), []
    said = int((b['labels'] != -100).sum())
    objective.actor.base_model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape[:-1].numel()))
    whole = gradient(objective, objective(b))
    with torch.no_grad(): rows = objective(b, rows=True)
    assert seen == [said]*6, 'three readings each time, supervised positions alone'
    seen.clear()
    monkeypatch.setattr(room, 'SLICE', 4*50)
    assert_close(gradient(objective, objective(b)), whole, atol=1e-10, rtol=1e-7)
    assert max(seen) == 4 and len(seen) == 2*3*-(-said//4), 'forward, and once more in the backward pass'
    with torch.no_grad(): assert_close(objective(b, rows=True), rows, atol=1e-10, rtol=0)


def test_the_actor_is_read_twice_and_two_of_three_readings_keep_nothing():
    objective, b, passes = Distillation(*pair_of()), batch(), []
    objective.actor.base_model.base_model.register_forward_hook(lambda m, i, o: passes.append(o[0].requires_grad))
    objective(b)
    assert passes == [False, True] # the one that keeps nothing leaves to the other what both begin with


def test_training_mode_does_not_reach_the_actor():
    "Its adapter drops a tenth of its attention in training mode: here never, whoever wraps the objective."
    student, actor = pair_of(family='gpt2', student='gpt2') # with dropout of its own
    objective, b = Distillation(student, actor.train()), batch()
    assert not actor.training
    whole = torch.nn.ModuleList([objective]).train()
    assert whole.training and objective.training and student.lm.training and not any(m.training for m in actor.modules())
    student.eval()
    assert_close(objective(b), objective(b), atol=0, rtol=0)
    actor.train()
    assert not torch.equal(objective(b)['ce'], objective(b)['ce']), 'or this test could not fail'
    gradient(objective.eval(), objective(b))
    assert not any(p.requires_grad or p.grad is not None for p in actor.parameters()) and all(p.grad is not None for p in student.parameters() if p.requires_grad)


@torch.no_grad()
def test_what_is_measured_is_the_actors_own_loss():
    objective, b = Distillation(*pair_of()), batch()
    found, chat = objective(b, rows=True), ('input_ids', 'attention_mask', 'labels', 'insert_at')
    z = objective.student(dict(input_ids=b['prompt_ids'], attention_mask=b['prompt_mask']))
    for i in range(4):
        row, n = {k: b[k][i:i+1] for k in chat}, int(b['message_mask'][i].sum())
        for name, h in dict(student=z[i:i+1], full=b['h'][i:i+1, :n], none=None).items():
            told = {} if h is None else dict(message_embeds=objective.actor.embed_message(h))
            assert_close(found[name][i], objective.actor(**row, **told).loss, atol=1e-9, rtol=0)


def test_one_language_model_cannot_be_student_and_actor():
    "The student would be frozen with the actor, without a word."
    _, actor = pair_of(width=16)
    with pytest.raises(InterlatError, match='student and actor are one language model'): Distillation(LatentStudent(actor.base_model, K=3), actor)
