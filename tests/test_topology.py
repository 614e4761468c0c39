"Several agents: what is joined is what was sent, a relay writes what a slow reference writes, and a run that stopped goes on."
import re
from dataclasses import replace

import pytest, torch

import cast
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.instruments.attribution import Decision, leave_out, leave_span_out
from interlat.agents.collect import collect
from interlat.core.basics import InterlatError
from interlat.evaluation.evaluate import Contender, evaluate
from interlat.models.chat import encode_chat, plan_token_ids
from interlat.messages.message import LatentMessage, MessageStore
from interlat.evaluation.rollout import rollout
from interlat.games.household import knowing, share
from interlat.core.tasks import Task
from interlat.models.lm import *
from interlat.agents.joining import *
from interlat.agents.topology import *

WRITING = dict(max_new_tokens=7)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    "Games, their tokenizer, and for each family a sender and an actor that reads states of width 32."
    games = cast.games(tmp_path_factory.mktemp('games'), 7)
    tok = cast.tokenizer(games)
    lms = dict(qwen2=cast.lm(tok).double(), llama=cast.lm(tok, 'tiny-llama', hidden_size=48).double()) # in float64, what is equal looks equal
    return games, tok, lms, {family: reader(lm, tok) for family, lm in lms.items()}


def reader(lm, tok, input_size=32):
    a = ModelWithInsertedHiddenState(lm, 40, lm.config.hidden_size, 8, input_size, *cast.message_token_ids(tok))
    with torch.no_grad(): a.processor.adaptive_proj.output_scale.fill_(5)
    return a.double().eval()


def agents(scene, family='qwen2'):
    games, tok, lms, readers = scene
    left = Node('left', Agent(lms['qwen2'], tok), writing=WRITING)
    right = Node('right', Agent(lms['qwen2'], tok), lambda t: share(t, 1).prompt, writing=WRITING)
    return left, right, Node('middle', Agent(readers[family], tok), lambda t: share(t, 0).prompt, writing=WRITING)


@torch.no_grad()
def slowly(actor, tok, prompt, h, n):
    "One chat, no padding, no cache, one token at a time; the state from which each token is chosen."
    chat, plan, states = encode_chat(tok, prompt, add_generation_prompt=True), [], []
    while len(plan) < n and tok.eos_token_id not in plan:
        ids = torch.tensor([[*chat.input_ids, *plan]])
        s = actor.embed_chat(ids, torch.ones_like(ids), torch.tensor([chat.insert_at]), actor.embed_message(h[None]))
        states.append(actor.base_model.base_model(inputs_embeds=s.embeds)[0][0,-1])
        plan.append(int(actor.base_model.get_output_embeddings()(states[-1]).argmax()))
    return torch.stack(states), plan


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
@pytest.mark.parametrize('batch_size', [1, 3, 32])
def test_a_chain_is_the_slow_chain_at_any_batch_size(scene, family, batch_size, tmp_path):
    games, tok, lms, readers = scene
    left, right, middle = agents(scene, family)
    store = collect_from(chain(tree(left, right), middle), games, tmp_path, batch_size=batch_size, progress=False)
    parts = part_stores(tree(left, right), tmp_path)
    for t in games:
        h = torch.cat([s[t.task_id].h for s in parts])
        states, plan = slowly(readers[family], tok, middle.sees(t), h, 7)
        m = store[t.task_id]
        assert m.token_ids == plan and len(m) == len(plan) and m.width == readers[family].settings['hidden_size']
        assert cast.apart(m.h, states) < 1e-6


def test_the_leaves_are_what_collect_makes_and_the_join_is_bit_for_bit(scene, tmp_path):
    games, tok, lms, readers = scene
    left, right, _ = agents(scene)
    joined = collect_from(tree(left, right), games, tmp_path/'all', progress=False)
    alone = [collect(Agent(lms['qwen2'], tok), [replace(t, prompt=a.sees(t)) for t in games], MessageStore(tmp_path/a.name, sender=a.name), progress=False, **WRITING) for a in (left, right)]
    table = span_table(part_stores(tree(left, right), tmp_path/'all')).set_index(['task_id', 'part'])
    for t in games:
        m, parts = joined[t.task_id], [s[t.task_id] for s in alone]
        assert torch.equal(m.h, torch.cat([p.h for p in parts])) and m.token_ids == sum((p.token_ids for p in parts), []) and m.sender == 'left + right'
        assert plan_token_ids(tok, m.token_ids, m.text) == m.token_ids or any('\n' in p.text or p.text != tok.decode(p.token_ids, skip_special_tokens=True) for p in parts)
        for k, p in enumerate(parts):
            row = table.loc[(t.task_id, k)]
            assert torch.equal(m.h[row.start-1:row.stop], p.h) and row.sender == p.sender


@pytest.mark.parametrize('preset', ['tiny-qwen2', 'tiny-llama'])
def test_the_words_of_a_joined_message_are_known_to_the_presets(preset):
    tok = load_tokenizer(preset)
    def said(text): return LatentMessage(torch.zeros(len(ids := [*tok(text, add_special_tokens=False).input_ids, tok.eos_token_id]), 4), ids, text, 't', text)
    for texts in (('nothing.', 'take apple 1 from shelf 2.'), ('take mug 1 from desk 1, use desklamp 1 on desk 1.', 'nothing.')):
        m = join_messages([said(x) for x in texts])
        assert plan_token_ids(tok, m.token_ids, m.text) == m.token_ids


def test_a_joined_message_plays_like_the_concatenated_one(scene, tmp_path):
    games, tok, _, readers = scene
    left, right, _ = agents(scene)
    joined = collect_from(tree(left, right), games, tmp_path/'m', progress=False)
    by_hand = [LatentMessage(torch.cat([s[t.task_id].h for s in part_stores(tree(left, right), tmp_path/'m')]), joined[t.task_id].token_ids, '', t.task_id, 'x') for t in games]
    played = [rollout(Agent(readers['qwen2'], tok), games, m, progress=False, max_steps=2, max_new_tokens=6) for m in ([joined[t.task_id] for t in games], by_hand)]
    assert [e.outputs for e in played[0]] == [e.outputs for e in played[1]]
    rows = evaluate(Agent(readers['qwen2'], tok), games, joined, ['latent', 'left alone'], tmp_path/'out', max_steps=2, max_new_tokens=6, progress=False,
                    actors={'left alone': Contender(Agent(readers['qwen2'], tok), 'latent', part_stores(left, tmp_path/'m')[0])})
    assert rows.groupby('condition').size().to_dict() == {'latent': 7, 'left alone': 7}


def test_leaving_a_sender_out_by_its_span(scene, tmp_path):
    games, tok, _, readers = scene
    left, right, _ = agents(scene)
    joined = collect_from(tree(left, right), games[:1], tmp_path, progress=False)[games[0].task_id]
    table = span_table(part_stores(tree(left, right), tmp_path))
    decide = Decision(Agent(readers['qwen2'], tok), games[0].turns[:1], ['look', 'inventory', games[0].turns[1]['content']])
    found = leave_span_out(decide, joined, [*zip(table.start-1, table.stop)], 'remove')
    assert found.merge(table, on=['start', 'stop']).sender.tolist() == ['left', 'right'] and (found.js > 0).all()
    assert torch.equal(leave_out(joined, *part_spans([joined[:table.stop[0]], joined[table.stop[0]:]])[0], 'remove').h, part_stores(right, tmp_path)[0][games[0].task_id].h)


def test_what_was_collected_is_kept_and_the_rest_is_made(scene, tmp_path):
    games, tok, lms, _ = scene
    left, right, middle = agents(scene)
    source = chain(tree(left, right), middle)
    collect_from(source, games[:3], tmp_path, progress=False)
    files = {p: p.read_bytes() for p in tmp_path.rglob('*.safetensors')}
    store = collect_from(source, games, tmp_path, progress=False)
    assert len(store) == 7 and all(p.read_bytes() == b for p, b in files.items())
    whole = collect_from(source, games, tmp_path/'anew', progress=False)
    assert all(store[t.task_id].token_ids == whole[t.task_id].token_ids for t in games)
    n = len([*tmp_path.rglob('*.safetensors')])
    collect_from(tree(left, middle if middle.reads else replace(middle, reads=left)), games, tmp_path, progress=False) # `left` is there already
    assert len([*tmp_path.rglob('*.safetensors')]) == n + 2


def test_an_ensemble_has_as_many_voices_and_the_first_stay(scene, tmp_path):
    games, tok, lms, _ = scene
    left, *_ = agents(scene)
    three = collect_from(ensemble(left, 3), games, tmp_path, progress=False, batch_size=2)
    voices = part_stores(ensemble(left, 3), tmp_path)
    assert len({tuple(v[games[0].task_id].token_ids) for v in voices}) > 1
    two = collect_from(ensemble(left, 2), games, tmp_path/'two', progress=False)
    n = len(two[games[0].task_id])
    assert cast.apart(three[games[0].task_id].h[:n], two[games[0].task_id].h) < 1e-6


def test_a_relay_reads_another_width_and_refuses_a_wrong_one(scene, tmp_path):
    games, tok, lms, readers = scene
    llama = Node('other family', Agent(lms['llama'], tok), writing=WRITING)
    with pytest.raises(InterlatError, match='one width, found 32, 48; let a relay read them first'):
        join_messages([LatentMessage(torch.zeros(1, d), [0], '', 't', 's') for d in (32, 48)])
    translator = Node('translator', Agent(reader(lms['qwen2'], tok, 48), tok), writing=WRITING)
    joined = collect_from(tree(agents(scene)[0], chain(llama, translator)), games[:2], tmp_path, progress=False)
    assert joined.width == 32 and joined.sender == 'left + translator, after [other family]'
    with pytest.raises(InterlatError, match='has width 48, wanted width 32'):
        relay(Agent(readers['qwen2'], tok), games[:2], part_stores(llama, tmp_path)[0], MessageStore(tmp_path/'x', sender='x'), progress=False)
    with pytest.raises(InterlatError, match='1 of 3 tasks have no message'):
        relay(Agent(readers['qwen2'], tok), games[:3], joined, MessageStore(tmp_path/'x', sender='x'), progress=False)


def test_bad_input_is_refused_before_anything_is_written(scene, tmp_path):
    games, tok, lms, readers = scene
    left, right, middle = agents(scene)
    for match, bad in {"agent 'right' is a Qwen2ForCausalLM and reads left": chain(left, right), "agent 'middle' .* reads None": tree(left, middle)}.items():
        with pytest.raises(InterlatError, match=match): collect_from(bad, games, tmp_path/'x', progress=False)
        assert not (tmp_path/'x').exists()
    for wrong in (dict(max_new_tokens=0), dict(temperature=-1.)):
        with pytest.raises(InterlatError, match=next(iter(wrong))): collect_from(chain(left, replace(middle, writing=wrong)), games[:1], tmp_path/'y', progress=False)
    with pytest.raises(InterlatError, match='no messages in'): part_stores(tree(left, right), tmp_path/'nowhere')


def test_shares_hold_all_and_each_knows_its_own(scene):
    for t in scene[0]:
        for n in (1, 2, 3):
            said = knowing(t, n)
            for k in range(n):
                mine = share(t, k, n)
                assert mine.task_id == t.task_id and mine.turns == t.turns and all(x in mine.plan for x in said[k])
                assert ('nothing' in mine.plan) == any(f' {kind} ' not in ' '.join(said[k]) for kind in re.findall(r'(?:take|use) (\w+) ', t.plan))
                where = mine.prompt[0]['content'].split('\n')[1]
                assert all(place.split(' from ')[-1].split(' on ')[-1] in where for place in said[k])


def test_a_sampling_relay_depends_on_seed_and_task_alone(scene, tmp_path):
    games, *_ = scene
    left, _, middle = agents(scene)
    def said(name, seed=0, tasks=games, **kw):
        voice = replace(middle, writing=dict(max_new_tokens=7, temperature=1.), seed=seed)
        store = collect_from(chain(left, voice), tasks, tmp_path/name, progress=False, **kw)
        return {i: store[i].token_ids for i in store.task_ids()}
    assert said('a') == said('b', tasks=games[::-1], batch_size=3) == said('c', batch_size=1) != said('d', seed=1)


def test_a_relay_may_be_told_nothing(scene):
    games, tok, lms, readers = scene
    empty = LatentMessage(torch.zeros(0, 32), [], '', 't', 's')
    full = LatentMessage(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), [-1]*5, '', 't', 's')
    prompts = [t.prompt for t in games[:2]]
    mixed = relay_messages(Agent(readers['qwen2'], tok), prompts, [empty, full], max_new_tokens=6)
    for k, m in enumerate((empty, full)):
        h, y, _ = relay_messages(Agent(readers['qwen2'], tok), prompts[k:k+1], [m], max_new_tokens=6)[0]
        assert mixed[k][1] == y
        assert cast.apart(mixed[k][0], h) < 1e-6
    h, y, _ = relay_messages(Agent(readers['qwen2'].train(), tok), prompts[:1], [full], max_new_tokens=6)[0] # whatever mode it is in
    torch.testing.assert_close(h, relay_messages(Agent(readers['qwen2'], tok), prompts[:1], [full], max_new_tokens=6)[0][0])
