"The estimate against what autograd keeps and what a training step really has in memory."
import weakref
from functools import cache

import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from interlat.models.lora import *
from interlat.agents.actor import *
from interlat.training.objective import *
from interlat.training.memory import *

FAMILIES = dict(qwen2=(Qwen2Config, dict(num_key_value_heads=2)), llama=(LlamaConfig, dict(num_key_value_heads=4)))


def config(family, layers=4):
    Config, kw = FAMILIES[family]
    return Config(vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4, **kw)


def kept(lm, B, T, autocast, passes=1):
    "Bytes of everything that autograd saves in passes over a padded batch, parameters left out, each storage once."
    own = {p.untyped_storage().data_ptr() for p in [*lm.parameters(), *lm.buffers()]}
    saved, alive = {}, []
    def pack(t):
        s = t.untyped_storage()
        if s.data_ptr() not in own: saved[s.data_ptr()] = s.nbytes()
        alive.append(t) # so that no address is used twice
        return t
    x, mask = torch.randn(B, T, 64, dtype=lm.dtype, requires_grad=True), torch.ones(B, T, dtype=torch.long)
    mask[0,-2:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        for _ in range(passes): lm.base_model(inputs_embeds=x, attention_mask=mask, use_cache=False)
    return sum(saved.values())


@cache
def trained_lm(family, kind, lora):
    "A model in training; nobody changes it."
    lm = AutoModelForCausalLM.from_config(config(family)).train()
    if kind == 'bfloat16': lm.bfloat16()
    if lora in ('frozen', 'frugal'): lm.requires_grad_(False)
    if lora == 'frugal': keep_less(lm)
    elif lora not in (None, 'frozen'): add_lora(lm, dict(r=2, lora_dropout=lora))
    return lm


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('B, T', [(2, 64), (3, 200)])
@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'autocast'])
@pytest.mark.parametrize('lora', [None, 0., .05, 'frozen', 'frugal'])
def test_activations_are_what_autograd_keeps(family, B, T, kind, lora):
    lm = trained_lm(family, kind, lora)
    told = estimate_memory(lm, B, T, 1, passes=1, autocast=kind == 'autocast').activations
    assert told == pytest.approx(kept(lm, B, T, kind == 'autocast'), rel=.25)


@pytest.mark.parametrize('lora', [None, 0., 'frozen'])
def test_autocast_keeps_a_copy_of_frozen_weights_for_each_pass(lora):
    lm, B, T = trained_lm('llama', 'autocast', lora), 1, 16
    told = [estimate_memory(lm, B, T, 1, passes=n, autocast=True).activations for n in (1, 2)]
    found = [kept(lm, B, T, True, passes=n) for n in (1, 2)]
    assert told == pytest.approx(found, rel=.1)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('B, T', [(2, 64), (3, 200)])
def test_activations_with_checkpointing(family, B, T):
    def lm(layers): return AutoModelForCausalLM.from_config(config(family, layers)).train()
    one = kept(lm(2), B, T, False) - kept(lm(1), B, T, False) # the layer that is run again
    model = lm(8)
    model.gradient_checkpointing_enable(dict(use_reentrant=True)) # the kind that shows autograd what it keeps
    told = estimate_memory(model, B, T, 1, passes=1, checkpointing=True).activations
    assert told == pytest.approx(kept(model, B, T, False) + one, rel=.25)
    assert told < estimate_memory(model, B, T, 1, passes=1).activations/3


class Peak(TorchDispatchMode):
    "Counts the bytes of all tensors made while it is on, and the most that were there at once."
    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = set()

    def gone(self, key, n):
        self.live -= n
        self.seen.discard(key)

    def __torch_dispatch__(self, f, types, args=(), kw=None):
        out = f(*args, **(kw or {}))
        for t in tree_leaves(out):
            if not isinstance(t, torch.Tensor) or (s := t.untyped_storage())._cdata in self.seen: continue
            self.seen.add(s._cdata)
            self.live += s.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(s, self.gone, s._cdata, s.nbytes())
        return out


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('V, supervised', [(300, 30), (5000, 60)])
def test_a_whole_step_takes_what_was_told(checkpointing, V, supervised):
    c = config('qwen2', 6)
    c.vocab_size = V
    actor = ModelWithInsertedHiddenState(AutoModelForCausalLM.from_config(c), 24, 64).train()
    if checkpointing: actor.gradient_checkpointing_enable()
    optimizer, B, T, L = torch.optim.AdamW(actor.parameters(), foreach=False), 3, 120, 24
    ids, own, plan = torch.randint(0, V, (B, T)), torch.ones(B, L, dtype=torch.bool), torch.randint(0, V, (B, L))
    labels = ids.clone()
    labels[:,:-(supervised//B)] = -100
    chat = dict(input_ids=ids, attention_mask=torch.ones_like(ids), insert_at=torch.ones(B, dtype=torch.long), labels=labels)
    batch = chat | dict(h=torch.randn(B, L, 64), message_mask=own, negative=torch.arange(B).roll(1), mix_ids=plan, plan_ids=plan, plan_mask=own)
    objective = Objective(actor)
    def step():
        parts = objective(batch, torch.zeros(B), (1., 1., 1.))
        ((parts['task'] + parts['separation'] + parts['alignment'])/parts['tokens']).backward()
        optimizer.step()
        optimizer.zero_grad()
    for p in actor.parameters(): p.grad = torch.zeros_like(p)
    optimizer.step() # its moments are there from now on
    optimizer.zero_grad()
    told = estimate_memory(actor, B, T + L, supervised, checkpointing=checkpointing)
    with Peak() as memory: step()
    assert told.total == pytest.approx(told.weights + told.optimizer + memory.peak, rel=.25)
    assert told.weights + told.optimizer < told.total/2 # the part that is not counted exactly is most of it
