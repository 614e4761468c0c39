"The channels meet the numbers that were recorded from the published code, and say in a batch what they say alone."
import json
from contextlib import contextmanager
from pathlib import Path

import pytest, torch
from cast import random_lm
from safetensors import safe_open
from safetensors.torch import load, load_file, save
from transformers import DynamicCache

from interlat.core.basics import *
from interlat.models.lm import *
from interlat.models.causal_lm import *
from interlat.models.chat import *
from interlat.models.cache import *
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.compression.reason import embedding_table
from interlat.channels.payloads import *
from interlat.channels.keyvalues import *
from interlat.channels.protocol import *
from interlat.channels.latentmas import *
from interlat.channels.statebridge import *
from interlat.channels.kvcomm import *
from interlat.channels import cipher, kvcomm
from interlat.channels.cipher import *
from interlat.channels.ac import *
from interlat.channels.sde import *
from interlat.agents.projector import *
from interlat.channels.c2c import *
from interlat.channels.bench import *

GOLDEN = Path(__file__).resolve().parents[2]/'shared'/'golden'/'channels'
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason='recorded numbers of the channels (shared/golden/channels) not at hand')


def recorded(name): return load_file(GOLDEN/f'{name}.safetensors')


def tiny(name):
    "A recorded model, without a tokenizer: ids in, ids out."
    from transformers import AutoConfig, AutoModelForCausalLM
    path = GOLDEN/f'tiny_{name}.safetensors'
    with safe_open(path, 'pt') as f: config = json.loads(f.metadata()['config'])
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    lm.load_state_dict(load_file(path))
    return Agent(lm, None)


WORST = {} # what was compared -> the largest difference found, and what is allowed


@contextmanager
def passing(lm):
    "Within the block: what each layer reads, and what the final norm makes, the last time that the model read."
    parts, said = [*lm.model.layers, lm.model.norm], {}
    def reads(i): return lambda module, args, kwargs: said.update({i: args[0] if args else kwargs['hidden_states']})
    hooks = [m.register_forward_pre_hook(reads(i), with_kwargs=True) for i, m in enumerate(parts[:-1])]
    hooks.append(parts[-1].register_forward_hook(lambda module, args, out: said.update({len(parts)-1: out})))
    try: yield said
    finally:
        for h in hooks: h.remove()


def meet(found, wanted, what, most=1e-5):
    "Hold a number against a recorded one: relative to the largest value, at least 1."
    assert found.shape == wanted.shape, (what, found.shape, wanted.shape)
    apart = ((found.double() - wanted.double()).abs().max()/wanted.double().abs().max().clamp(min=1)).item()
    WORST[what] = max(WORST.get(what, (0, 0))[0], apart), most
    assert apart <= most, f'{what}: {apart:.2e}'


@pytest.fixture(scope='module', autouse=True)
def said():
    "After all: what was met, and how well (pytest -s)."
    yield
    for what, (apart, most) in WORST.items(): print(f'{what:50} {apart:.1e} of {most:.0e}')


@needs_golden
def test_latentmas_embeds_as_recorded():
    g, lm = recorded('latentmas'), tiny('qwen2').model
    W, tau = latentmas_realignment(lm.get_input_embeddings().weight, lm.get_output_embeddings().weight)
    meet(W, g['realign.matrix'], 'latentmas W')
    meet(tau[None], g['realign.target_norm'], 'latentmas tau')
    meet(g['realign.input'] @ W, g['realign.on_before_norm'], 'latentmas hW')
    meet(latentmas_embed(g['realign.input'], W, tau), g['realign.on'], 'latentmas on')
    meet(latentmas_embed(g['realign.input'], None, tau), g['realign.off'], 'latentmas off')


class Watched(LatentMAS):
    "Keeps what goes in and out of `feed`."
    def feed(self, lm):
        feed, self.fed = super().feed(lm), []
        def watched(h):
            self.fed.append((h, feed(h)))
            return self.fed[-1][1]
        return watched


ROWS = {'single.row0': dict(realign=True), 'single.row1': dict(realign=True), 'single.row2': dict(realign=True), 'norealign.row0': dict(),
        'latent_only.row0': dict(realign=True, keep='steps'), 'sequential_info_only.row0': dict(realign=True, keep='newest')}


def latentmas_met(g, agent, channel, payload, name, i, what):
    for x, key in zip((0, 1), ('state', 'embed')): meet(torch.stack([f[x][i] for f in channel.fed])[None], g[f'{name}.{key}'], f'{what} {key}')
    for l in range(3):
        meet(payload.keys[l][None], g[f'{name}.kv.k.{l}'], f'{what} keys')
        meet(payload.values[l][None], g[f'{name}.kv.v.{l}'], f'{what} values')


@needs_golden
@pytest.mark.parametrize('name', ROWS)
def test_latentmas_hands_on_what_was_recorded(name):
    g, agent, row = recorded('latentmas'), tiny('qwen2'), name.split('.')[1]
    channel = Watched(4, **ROWS[name])
    prompts, last = [g[f'prompt.agent{a}.{row}'].tolist() for a in range(3)], g[f'prompt.judger.{row}'].tolist()
    sent = channel.send(agent, [prompts])
    latentmas_met(g, agent, channel, sent[0], name, 0, f'latentmas {name.split(".")[0]}')
    heard = channel.receive(agent, [last], sent, 8)
    meet(heard.logits, g[f'{name}.judger_logits'], f'latentmas {name.split(".")[0]} logits')
    assert heard.token_ids == [g[f'{name}.tokens'].tolist()]


@needs_golden
def test_latentmas_in_a_batch_is_each_row_alone():
    g, agent, channel = recorded('latentmas'), tiny('qwen2'), Watched(4, realign=True)
    sent = channel.send(agent, [[g[f'prompt.agent{a}.row{i}'].tolist() for a in range(3)] for i in range(3)])
    heard = channel.receive(agent, [g[f'prompt.judger.row{i}'].tolist() for i in range(3)], sent, 8)
    for i in range(3):
        latentmas_met(g, agent, channel, sent[i], f'single.row{i}', i, 'latentmas batch')
        meet(heard.logits[i:i+1], g[f'single.row{i}.judger_logits'], 'latentmas batch logits')
        assert heard.token_ids[i] == g[f'single.row{i}.tokens'].tolist()


def as_published(g, lm, side):
    "A batch with the published faults: pads are seen by all that comes later, and slots are counted as places; the judger alone counts what is real."
    cache, seen, one = DynamicCache(config=lm.config), torch.ones(3, 0, dtype=torch.long), torch.ones(3, 1, dtype=torch.long)
    feed, states = LatentMAS(realign=True).feed(lm), []
    def padded(who):
        rows = [g[f'prompt.{who}.row{i}'] for i in range(3)]
        return (torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_side=side) for x in (rows, [torch.ones_like(r) for r in rows]))
    def read(seen, new, slots=True, **what):
        at = torch.arange(seen.shape[1]).expand(3, -1) if slots else seen.cumsum(1) - 1
        return lm.model(**what, attention_mask=seen, position_ids=at[:,-new:], past_key_values=cache).last_hidden_state[:,-1]
    for a in range(3):
        ids, mask = padded(f'agent{a}')
        h = read(torch.cat([seen, mask], 1), ids.shape[1], input_ids=ids)
        for s in range(4):
            states.append(h)
            seen = torch.ones(3, cache.get_seq_length() + 1, dtype=torch.long)
            h = read(seen, 1, inputs_embeds=feed(h)[:,None])
    found = {f'kv.{part[0]}.0': getattr(cache.layers[0], part).clone() for part in ('keys', 'values')}
    found |= dict(state=torch.stack(states, 1), embed=feed(torch.stack(states, 1)))
    ids, mask = padded('judger')
    seen, row = torch.cat([seen, mask], 1), [list(r) for r in ids.tolist()]
    for n in range(8):
        z = lm.lm_head(read(seen, ids.shape[1], slots=False, input_ids=ids))
        if not n: found['judger_logits'] = z
        ids, seen = z.argmax(-1)[:,None], torch.cat([seen, one], 1)
        for r, t in zip(row, ids[:,0].tolist()): r.append(t)
    return found, [r[len(g[f'prompt.judger.row{i}']):] for i, r in enumerate(row)] # cut at the length without pads


@needs_golden
@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_published_batch_is_off_as_recorded_and_ours_is_not(side):
    g, agent = recorded('latentmas'), tiny('qwen2')
    with torch.no_grad(): found, decoded = as_published(g, agent.model, side)
    for key, x in found.items(): meet(x, g[f'batch_{side}.{key}'], f'latentmas published batch, {side}: {key}')
    assert decoded == [g[f'batch_{side}.decoded_ids.row{i}'].tolist() for i in range(3)]
    alone = torch.cat([g[f'single.row{i}.state'] for i in range(3)])
    off = (found['state'] - alone).norm(dim=-1)/alone.norm(dim=-1)
    assert (off[:,0].max() < 1e-5) == (side == 'left') and (off[:,1:].amax(0) > .1).all() # what `test_latentmas_in_a_batch_is_each_row_alone` meets


# StateBridge

@needs_golden
def test_statebridge_keeps_what_the_published_cut_loses():
    g, agent = recorded('statebridge'), tiny('qwen2')
    prompt, lost = g['sender.prompt'][0].tolist(), g['fault.long.text_ids'].tolist()
    sent, = StateBridge(14, 14).send(agent, [prompt])
    assert sent.token_ids[len(prompt):] == lost == g['fault.long.token_ids'][0].tolist() and len(sent.token_ids) == len(sent.h) == 14


@needs_golden
@pytest.mark.parametrize('name', ['tall', 'mirrored', 'short', 'short.noise'])
def test_statebridge_aligns_as_recorded(name):
    g, E = recorded('statebridge'), tiny('qwen2').model.get_input_embeddings().weight.detach()
    tau, key = g['target_norm'], name.replace('.', '_').replace('short_noise', 'short.noise')
    first = {'short.noise': 'short.noise_'}.get(key, f'{name}.')
    h, ids = g[f'{first}states'], g['short.token_ids' if 'short' in name else 'tall.token_ids']
    e = E[ids]
    meet(E.norm(dim=1).mean()[None], tau, 'statebridge tau')
    aligned = statebridge_align(h, e)
    meet(tau*aligned/aligned.norm(dim=-1, keepdim=True), g[f'{first}calibrated'], f'statebridge {name} calibrated', 1e-4)
    meet(statebridge_prefix(h, e, E, tau, anchor=0.), g[f'{first}calibrated'], f'statebridge {name} calibrated', 1e-4)
    if f'{first}anchored' in g:
        meet(statebridge_prefix(h, e, E, tau), g[f'{first}anchored'], f'statebridge {name} anchored', 1e-4)
        assert torch.equal(nearest_rows(tau*aligned[0], E), g[f'{first}anchor_ids'])
    fit = statebridge_fit(h[0], e[0])
    if f'{first}flipped' in g: assert bool(fit.flipped) == bool(g[f'{first}flipped'])
    if f'{first}rotation' in g: meet(fit.rotation, g[f'{first}rotation'], 'statebridge rotation', 1e-4)
    if f'{first}singular_values' in g: meet(fit.singular_values, g[f'{first}singular_values'], 'statebridge singular values')
    for root, cov in ((fit.colour.double(), 'cov_e'), (torch.linalg.inv(fit.whiten.double()), 'cov_h')):
        if f'{first}{cov}' in g: meet(root @ root, g[f'{first}{cov}'], f'statebridge {cov}', 1e-4) # taken back from its root


@needs_golden
def test_statebridge_sends_and_reads_as_recorded():
    g, agent = recorded('statebridge'), tiny('qwen2')
    door = causal_lm(agent.model)
    prompt, ids = g['sender.prompt'][0], {k: g[f'sender.{k}.token_ids'][0] for k in ('hook', 'no_hook')}
    for k, layer in (('hook', len(door.layers)), ('no_hook', None)):
        rows, states = Rows(agent.model, 1, layer=layer), []
        for t in (prompt, *ids[k][:-1,None]):
            with torch.no_grad(): z = read_ids(rows, [t.tolist()])
            states.append(z if layer is None else rows.beside)
        meet(torch.cat(states)[None], g[f'sender.{k}.states'], f'statebridge sender {k}')
    channel = StateBridge(6)
    meet(embedding_table(agent.model).norm(dim=1).mean()[None], g['target_norm'], 'statebridge tau')
    prefix = channel.rows(agent.model, ids['hook'][-6:].tolist(), g['sender.hook.states'][0,-6:])
    meet(prefix[None], g['receiver.prefix'], 'statebridge prefix', 1e-4)
    chat = g['receiver.prompt'][0].tolist()
    for where, at in (('inserted', int(g['ins'])), ('prepended', 0)):
        heard = channel.receive(agent, [Chat(chat, [0]*len(chat), at)], [States(g['receiver.prefix'][0])], 7)
        meet(heard.logits, g[f'receiver.{where}.logits'], f'statebridge {where} logits')
        assert heard.token_ids == [g[f'receiver.{where}.tokens'].tolist()]


# CIPHER, state deltas, C2C's projector

@needs_golden
def test_cipher_mixes_as_recorded():
    g, E = recorded('cipher'), tiny('llama').model.get_input_embeddings().weight.detach()
    for name, how in dict(probs_top_k=(7, None), probs_top_p=(None, .6), probs_both=(7, .6)).items():
        meet(cipher_probs(g['step.logits'], .38, *how), g[f'step.{name}'], f'cipher {name}')
    meet(cipher_embed(g['step.logits'], E, .38), g['step.embedding_float32_ours'], 'cipher embedding')
    assert torch.equal(nearest_rows(cipher_embed(g['step.logits'], E, .38), E), g['step.nearest_ids'])


@needs_golden
@pytest.mark.parametrize('t', [.38, 0, 1.3])
def test_cipher_sends_what_was_recorded(t, monkeypatch):
    g, agent, E = recorded('cipher'), tiny('llama'), tiny('llama').model.get_input_embeddings().weight.detach()
    prompts = [g[f'prompt.row{i}'].tolist() for i in range(sum(k.startswith('prompt.') for k in g))]
    together = Cipher(6, t).send(agent, prompts)
    said = []
    monkeypatch.setattr(cipher, 'cipher_embed', lambda logits, *how: said.append(logits) or cipher_embed(logits, *how))
    Cipher(6, t).send(agent, prompts)
    for i in range(len(prompts)): meet(torch.stack(said, 1)[i], g[f'float.T{t}.row{i}.logits'], 'cipher logits')
    for i, prompt in enumerate(prompts):
        for sent, what in ((Cipher(6, t).send(agent, [prompt])[0], 'alone'), (together[i], 'batch')):
            if (key := f'float.T{t}.row{i}.message') in g:
                meet(sent.h, g[key], f'cipher message {what}')
                assert sent.token_ids == g[f'float.T{t}.row{i}.nearest_ids'].tolist()
            if (key := f'half.T{t}.row{i}.message') in g: meet(sent.h[:1], g[key][:1], f'cipher half {what}', 2e-2)


@needs_golden
def test_state_deltas_are_sent_and_read_as_recorded():
    g, agent = recorded('statedelta'), tiny('qwen2')
    sent, = StateDelta((0, 2), 7, published=True).send(agent, [g['sender.prompt'].tolist()])
    assert sent.token_ids == g['sender.token_ids'].tolist()
    for l in (0, 2): meet(sent.deltas[l][None], g[f'sender.delta.layer{l}'], 'sde deltas')
    ids, at = g['receiver.ids'].tolist(), int(g['receiver.start'])
    chat = Chat(ids[:at] + ids[at+7:], [], at)
    assert ids[at:at+7] == sent.token_ids and not g['receiver.keep_mask'][at:at+7].any() # False: edited
    for payload, what, tokens in ((sent, 'edited', 'tokens'), (Deltas(sent.token_ids, {}), 'plain', 'plain.tokens')):
        with passing(agent.model) as said: StateDelta((0, 2)).receive(agent, [chat], [payload], 0)
        for i, h in said.items(): meet(h, g[f'receiver.{what}.hidden.{i}'], f'sde {what} hidden')
        heard = StateDelta((0, 2)).receive(agent, [chat], [payload], 7)
        assert len(said) == 4
        meet(heard.logits, g[f'receiver.{what}.logits'], f'sde {what} logits')
        assert heard.token_ids == [g[f'receiver.{tokens}'].tolist()]


def part(g, name): return g[f'{name}.k'], g[f'{name}.v']


@needs_golden
def test_a_projector_fuses_as_recorded():
    g = recorded('c2c_projector')
    given = {k.removeprefix('param.'): v for k, v in g.items() if k.startswith('param.')}
    projector = C2CProjector.from_state_dict(given, 1, 8, 2, 16)
    assert projector.state_dict().keys() == given.keys() and all(torch.equal(x, given[k]) for k, x in projector.state_dict().items())
    source, target = part(g, 'source'), part(g, 'target')
    def gates(k, v):
        projector.key_gate_logit.data.fill_(k)
        projector.value_gate_logit.data.fill_(v)
    with torch.no_grad():
        for name, logits in (('out', (1., 1.)), ('key_closed.out', (-.5, .7))):
            gates(*logits)
            for x, wanted in zip(projector(source, target), part(g, name)): meet(x, wanted, f'c2c {name}')
        for x, wanted in zip(projector.weights(source, target), part(g, 'scalar')): meet(x, wanted, 'c2c weights')
        gates(.4, -.3)
        projector.train().gate_temperature.fill_(.5)
        for m in projector.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0
        for x, wanted in zip(projector(source, target, part(g, 'train.u')), part(g, 'train.out')): meet(x, wanted, 'c2c training')
    found = torch.tensor([gate_temperature(s) for s in (0, 100, 964, 1929, 5000)])
    meet(found, g['train.temperature_at_0_100_964_1929_5000'], 'c2c temperature')


# KVComm, activations

@needs_golden
def test_kvcomm_sends_and_reads_as_recorded():
    g, agent = recorded('kvcomm'), tiny('qwen2')
    prompt, question = g['sender.prompt'][0].tolist(), g['receiver.prompt'][0].tolist()
    whole, = KVComm().send(agent, [prompt])
    for l in range(3):
        meet(whole.keys[l][None], g[f'sender.k.{l}'], 'kvcomm sender')
        meet(whole.values[l][None], g[f'sender.v.{l}'], 'kvcomm sender')
    def logits(channel, payload):
        rows, _ = channel.opened(agent, [Chat(question[:1], [], 0)], [payload], False)
        rows = rows_with(agent.model, [payload])
        if channel.short == 'published': rows.ahead = torch.tensor([payload.positions - 1])
        with torch.no_grad(): return causal_lm(agent.model).logits(read_ids(rows, [question], each=True)), rows
    meet(logits(KVComm(), whole)[0], g['all_layers.logits'], 'kvcomm all layers')
    for short, name in (('published', 'plain'), ('shift_back', 'shift_back'), ('causal', 'ours.causal')):
        channel = KVComm((0, 2), short)
        sent, = channel.send(agent, [prompt])
        found, rows = logits(channel, sent)
        meet(found, g[f'{name}.logits'], f'kvcomm {name}')
        if short == 'causal': continue
        assert sent.lengths == g[f'{name}.kept_lengths'].tolist()
        heard = channel.receive(agent, [question], [sent], 7)
        meet(heard.logits, g[f'{name}.logits'][:,-1], f'kvcomm {name} next')
        assert heard.token_ids == [g[f'{name}.tokens'].tolist()]
        for layer, n, l in zip(rows.cache.layers, sent.lengths, range(3)):
            real = ~layer.hidden[0,0,:,0]
            assert real.sum() == n + len(question)
            back = -9 if short == 'shift_back' and n == 1 else 0 # recorded at places from 0, as all that these layers hold; ours stand in line with the others, as far apart
            meet(rotation(agent.model)(layer.keys[:,:,real], torch.full((real.sum(),), back)), g[f'{name}.k.{l}'], f'kvcomm {name} keys')


@needs_golden
def test_kvcomm_chooses_layers_as_recorded():
    g, agent = recorded('kvcomm'), tiny('qwen2')
    whole, question = KVComm().send(agent, [g['sender.prompt'][0].tolist()]), [g['receiver.prompt'][0].tolist()]
    with torch.no_grad(), kvcomm._watched_attention(agent.model, said := [], False): read_ids(rows_with(agent.model, whole), question)
    assert {tuple(w.shape) for w in said} == {tuple(g['attention_shape'].tolist())} and all((w.sum(-1) - 1).abs().max() < 1e-6 for w in said)
    meet(kvcomm_importance(agent.model, question, whole, published=True), g['importance'], 'kvcomm importance')
    meet(kvcomm_importance(agent.model, question, whole), g['ours.importance_masked'], 'kvcomm importance masked')
    for name, how in dict(defaults={}, prior=dict(alpha=.6, sigma=1.5)).items():
        order = kvcomm_ranking(g['importance'], **how)
        assert order.tolist() == g[f'ranking.{name}'].tolist()
        assert sorted(order[:2].tolist()) == sorted(g[f'selected.{name}'].tolist())
    assert kvcomm_map(3, 3) == g['layer_map.same'].tolist() and kvcomm_map(3, 5) == g['layer_map.3_to_5'].tolist()


@needs_golden
@pytest.mark.parametrize('how', HOWS)
def test_an_activation_is_grafted_as_recorded(how):
    g, agent = recorded('activation'), tiny('qwen2')
    for end in ('', '.a_wider', '.a_narrower'): meet(ac_graft(g[f'graft{end or ".a"}'], g['graft.b'], how), g[f'graft.{how}{end}'], f'ac {how}')
    channel = Activations(1, 2, how)
    sent, = channel.send(agent, [g['sender.prompt'][0].tolist()])
    meet(sent.a[None], g['sender.activation'], 'ac activation')
    with passing(agent.model) as said: heard = channel.receive(agent, [g['receiver.prompt'][0].tolist()], [sent], 0)
    meet(said[2][:,-1], g[f'{how}.hidden_at_j'], f'ac {how} hidden')
    heard = channel.receive(agent, [g['receiver.prompt'][0].tolist()], [sent], 7)
    meet(heard.logits, g[f'{how}.logits'], f'ac {how} logits')
    assert heard.token_ids == [g[f'{how}.tokens'].tolist()]
    meet(channel.receive(agent, [g['receiver.prompt'][0].tolist()], [None], 0).logits, g['alone.logits'], 'ac alone')


@needs_golden
def test_a_pair_fuses_and_answers_as_recorded():
    g, actor, sharer = recorded('c2c_pair'), tiny('qwen3'), tiny('qwen2')
    assert c2c_mapping(3, 2) == g['mapping.last_aligned'].tolist() and c2c_mapping(3, 2, 'k_nearest') == g['mapping.k_nearest'].tolist()
    def projector(l):
        start = f'projector.{l}.'
        return C2CProjector.from_state_dict({k.removeprefix(start): v for k, v in g.items() if k.startswith(start)}, 2, 16, 2, 16)
    channel, prompt = C2C([projector(0), projector(1)]), g['prompt'][0].tolist()
    sent, = channel.send(sharer, [prompt])
    for name, p, n in (('sharer', sent, 3), ('receiver', channel.send(actor, [prompt])[0], 2)):
        for l in range(n):
            meet(p.keys[l][None], g[f'{name}.k.{l}'], f'c2c {name}')
            meet(p.values[l][None], g[f'{name}.v.{l}'], f'c2c {name}')
    rows, _ = channel.opened(actor, [Chat(prompt, [], 0)], [sent], False)
    for l, layer in enumerate(rows.cache.layers):
        meet(layer.keys, g[f'fused.k.{l}'], 'c2c fused')
        meet(layer.values, g[f'fused.v.{l}'], 'c2c fused')
    heard, alone = (channel.receive(actor, [prompt], [p], 7) for p in (sent, None))
    meet(heard.logits, g['logits'], 'c2c pair logits')
    assert heard.token_ids == [g['tokens'].tolist()] and alone.token_ids == [g['tokens_alone'].tolist()]


# What holds for every channel

PROMPTS = [[7, 8, 9], [5, 6, 7, 8, 9, 10], [11, 12, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]] # in a batch with the others the first is padded by 0, 3, 11
OPTIONS = { # the channel's name, with what is tried beside its defaults
    'interlat': dict(max_new_tokens=5), 'text': dict(max_new_tokens=5), 'latentmas': dict(latent_steps=3, realign=True), 'latentmas newest': dict(latent_steps=3, keep='newest', rerotate=True),
    'latentmas steps': dict(latent_steps=3, keep='steps'), 'statebridge': dict(max_new_tokens=5), 'own_tokens': dict(max_new_tokens=5), 'c2c': {}, 'kvcomm': {}, 'kvcomm causal': dict(layers=(1,)),
    'kvcomm published': dict(layers=(1,), short='published'), 'kvcomm shift_back': dict(layers=(), short='shift_back'), 'cipher': dict(n=4, temperature=.5), 'sde': dict(max_new_tokens=5, layers=(0, -1)), 'ac': dict(k=1, j=1)}


@pytest.fixture(scope='module', params=['qwen2', 'llama'])
def copies(request):
    "A sender and an actor of one family, copies of each other, in float64."
    return [Agent(random_lm(request.param, width=32, initializer_range=.2).double(), None) for _ in 'sa']


def made(name, sender, actor):
    "A channel that says something, and the actor that it speaks to."
    kind = name.split()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == 'c2c':
            c = C2C.untrained(sender, actor, hidden=16, intermediate=16)
            for p in c.projectors.double(): p.key_gate_logit.data.fill_(1), p.value_gate_logit.data.fill_(1)
            return c, actor
        if kind == 'interlat':
            adapted = ModelWithInsertedHiddenState(actor.model, prepended_length=8, hidden_size=32, num_heads=4).double().eval()
            adapted.processor.adaptive_proj.output_scale.data.fill_(5)
            return channel(kind, **OPTIONS[name]), Agent(adapted, None)
    return channel(kind, **OPTIONS[name]), actor


def states_of(*agents): return [x.clone() for a in agents for x in a.model.state_dict().values()]


@pytest.mark.parametrize('name', OPTIONS)
def test_a_batch_says_what_each_row_alone_says(copies, name):
    sender, actor = copies
    c, reader = made(name, sender, actor)
    before, n = states_of(sender, reader), len(PROMPTS)
    ends = PROMPTS if name == 'c2c' else [[20, 21, 22, 23], [24, 25], [26, 27, 28, 29, 30]]
    sent = c.send(sender, PROMPTS)
    kept = [{k: x.clone() for k, x in p.to_tensors().items()} for p in sent]
    heard, drawn = c.receive(reader, ends, sent, 6), c.receive(reader, ends, sent, 6, temperature=1., seeds=[1, 2, 3])
    for some in ([0], [1], [2], [1, 0], [2, 0], [2, 1]): # alone; and padded by 0, 3, 8 and 11
        payloads = c.send(sender, [PROMPTS[i] for i in some])
        for i, p in zip(some, payloads):
            for k, x in p.to_tensors().items(): assert torch.equal(x, kept[i][k]) if not x.is_floating_point() else (x - kept[i][k]).abs().max() < 1e-5, (k, i)
            assert c.nbytes(p) == p.nbytes > 0
        one = c.receive(reader, [ends[i] for i in some], payloads, 6)
        again = c.receive(reader, [ends[i] for i in some], payloads, 6, temperature=1., seeds=[1+i for i in some])
        torch.testing.assert_close(one.logits, heard.logits[some], atol=1e-4, rtol=0)
        assert one.token_ids == [heard.token_ids[i] for i in some] and again.token_ids == [drawn.token_ids[i] for i in some]
    assert all(torch.equal(x, y) for x, y in zip(before, states_of(sender, reader), strict=True)) # neither model has changed,
    assert all(torch.equal(x, kept[i][k]) for i, p in enumerate(sent) for k, x in p.to_tensors().items()) # nor what was sent
    assert c.receive(reader, ends, sent, 6).token_ids == heard.token_ids
    back = [PAYLOADS[p.kind].from_tensors(load(save(p.to_tensors()))) for p in sent]
    assert torch.equal(c.receive(reader, ends, back, 0).logits, heard.logits)


@pytest.mark.parametrize('name', OPTIONS)
def test_a_hidden_message_is_none(copies, name):
    sender, actor = copies
    c, reader = made(name, sender, actor)
    ends = PROMPTS if name == 'c2c' else [[20, 21, 22, 23], [24, 25], [26, 27, 28, 29, 30]]
    sent = c.send(sender, PROMPTS)
    heard, hidden, none = c.receive(reader, ends, sent, 6), c.receive(reader, ends, sent, 6, masked=True), c.receive(reader, ends, [None]*3, 6)
    torch.testing.assert_close(hidden.logits, none.logits, atol=1e-6, rtol=0)
    assert hidden.token_ids == none.token_ids and (heard.logits - none.logits).abs().max() > 1e-3


def test_agents_in_a_row_do_in_a_batch_what_they_do_alone(copies):
    sender, actor = copies
    rows = [[PROMPTS[(i+a) % 3] for a in range(4)] for i in range(3)]
    c = LatentMAS(3, realign=True)
    for one, together in zip((c.send(sender, [r])[0] for r in rows), c.send(sender, rows)):
        assert one.next == together.next == sum(map(len, PROMPTS)) + len(rows[0][3]) + 12 or len(one.at[0]) == one.next
        for x, y in zip(one.keys, together.keys): torch.testing.assert_close(x, y, atol=1e-4, rtol=0)


def read_on(lm, layers, at, ids=None, embed=None):
    "One row over keys and values (G, T, d) of each layer, by the model's own forward pass: the last state, and all keys and values."
    cache, n = DynamicCache(config=lm.config), 1 if ids is None else len(ids)
    for l, (k, v) in enumerate(layers): cache.update(k[None], v[None], l)
    what = dict(inputs_embeds=embed[None]) if ids is None else dict(input_ids=torch.tensor([ids]))
    with torch.no_grad(): h = lm.model(**what, position_ids=torch.arange(at, at+n)[None], past_key_values=cache).last_hidden_state[:,-1]
    return h, [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def turned_by_hand(lm, k, by):
    "Keys as complex numbers, turned by so many positions."
    first, second = k.double().chunk(2, -1)
    z = torch.complex(first, second)*torch.exp(1j*by[:,None]*lm.model.rotary_emb.inv_freq.double())
    return torch.cat([z.real, z.imag], -1).to(k)


def latentmas_by_hand(lm, prompts, end, n, keep, right, feed):
    "One row, agent after agent: after a cut the next reads from the cut length on, over keys as they were (published), or turned to where they are counted then (right)."
    layers, at = [], torch.zeros(0, dtype=torch.long)
    for ids in prompts:
        before, next = len(at), len(at)
        h, layers = read_on(lm, layers, next, ids)
        for s in range(n): h, layers = read_on(lm, layers, next + len(ids) + s, embed=feed(h))
        at = torch.cat([at, torch.arange(next, next + len(ids) + n)])
        first = dict(all=0, newest=before, steps=len(at) - n)[keep]
        layers, at = [(k[:,first:], v[:,first:]) for k, v in layers], at[first:]
        if right: layers, at = [(turned_by_hand(lm, k, torch.arange(len(at)) - at), v) for k, v in layers], torch.arange(len(at))
    return lm.lm_head(read_on(lm, layers, len(at), end)[0]), layers


@pytest.mark.parametrize('right', [False, True], ids=['published', 'right'])
@pytest.mark.parametrize('keep', KEEPS)
def test_what_is_cut_is_read_as_published_and_as_it_is_right(copies, keep, right):
    sender, actor = copies
    rows, ends = [[PROMPTS[(i+a) % 3] for a in range(3)] for i in range(3)], [[20, 21, 22, 23], [24, 25], [26, 27, 28, 29, 30]]
    for how in (dict(realign=True), {}):
        c = LatentMAS(3, keep=keep, rerotate=right, **how)
        sent = c.send(sender, rows)
        heard = c.receive(actor, ends, sent, 0)
        for i in range(3):
            logits, layers = latentmas_by_hand(sender.model, rows[i], ends[i], 3, keep, right, c.feed(sender.model))
            torch.testing.assert_close(heard.logits[i:i+1].double(), logits, atol=1e-4, rtol=0)
            for (k, v), mine, others in zip(layers, sent[i].keys, sent[i].values):
                torch.testing.assert_close(mine, k, atol=1e-4, rtol=0)
                torch.testing.assert_close(others, v, atol=1e-4, rtol=0)


@pytest.mark.parametrize('depth', [1, 2, 3, 5])
def test_a_cache_of_another_depth_is_read_layer_by_layer(copies, depth):
    "By hand: the actor's layers get the sender's at the same relative depth, those that none falls on the first token of the nearest."
    sender, _ = copies
    actor = Agent(random_lm(sender.model.config.model_type, width=32, initializer_range=.2, num_hidden_layers=depth, seed=4).double(), None)
    KVComm().check(sender, actor)
    sent, heard = KVComm().send(sender, PROMPTS), None
    for i, (p, end) in enumerate(zip(sent, [[20, 21, 22, 23], [24, 25], [26, 27, 28]])):
        heard = heard or KVComm().receive(actor, [[20, 21, 22, 23], [24, 25], [26, 27, 28]], sent, 0)
        reads = {t: l for l, t in reversed([*enumerate(kvcomm_map(2, depth))])}
        of, T = kvcomm_map(depth, 2), p.positions
        keys, values = (torch.stack([x[reads.get(t, of[t])] for t in range(depth)]) for x in (p.keys, p.values))
        seen = torch.tensor([[t in reads or not t or not j for j in range(T)] for t in range(depth)]) # layer 0 is always whole
        # each layer by itself: one prompt over all slots, those it lacks masked
        cache = DynamicCache(config=actor.model.config)
        for t in range(depth): cache.update(keys[t][None], values[t][None], t)
        hooks = []
        for t, layer in enumerate(actor.model.model.layers):
            mask = torch.cat([seen[t].expand(len(end), T), torch.ones(len(end), len(end), dtype=torch.bool).tril()], 1)
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)[None,None]
            hooks.append(layer.register_forward_pre_hook(lambda m, a, kw, mask=mask: (a, {**kw, 'attention_mask': mask}), with_kwargs=True))
        with torch.no_grad(): z = actor.model.model(input_ids=torch.tensor([end]), position_ids=torch.arange(T, T+len(end))[None], past_key_values=cache).last_hidden_state[:,-1]
        for h in hooks: h.remove()
        torch.testing.assert_close(heard.logits[i:i+1].double(), actor.model.lm_head(z), atol=1e-5, rtol=0)


def test_one_condition_cannot_touch_another(copies):
    "Two conditions read on from one payload, and one of them writes; in between the payload is taken apart."
    sender, actor = copies
    p, = LatentMAS(2).send(sender, PROMPTS[:1])
    first = rows_with(actor.model, [p])
    with torch.no_grad(): before = read_ids(rows_with(actor.model, [p]), [[20, 21]])
    for layer in first.cache.layers: layer.keys.zero_(), layer.values.zero_()
    with torch.no_grad(): assert torch.equal(read_ids(rows_with(actor.model, [p]), [[20, 21]]), before)
    cut = p.crop(slice(2))
    cut.keys[0].zero_()
    assert p.keys[0][:,:2].abs().max() > 0


@pytest.mark.parametrize('family, word', [('gpt2', 'no cache with one rotary embedding'), ('gemma2', 'no cache with one rotary embedding'), ('cohere', 'they turn otherwise')])
def test_keys_that_turn_otherwise_are_refused(family, word):
    with pytest.raises(InterlatError, match=word): rotation(random_lm(family))


def test_models_that_keep_no_keys_are_refused_by_name():
    lm = random_lm('mistral', sliding_window=4)
    for name in ('latentmas', 'kvcomm', 'sde', 'ac'):
        c, agent = channel(name), Agent(lm, None)
        with pytest.raises(InterlatError, match='MistralForCausalLM'): c.receive(agent, [[5, 6]], c.send(agent, [[7, 8]]))
