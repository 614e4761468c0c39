import json, shutil, sys, warnings
from pathlib import Path

import pytest, torch
from cast import apart, exact, pair
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Trainer, TrainingArguments

from interlat.agents.actor import *
from interlat.core.basics import InterlatError
from interlat.models.lora import add_lora, trainable_state
from interlat.messages.message import pad_messages

GOLDEN = Path(__file__).resolve().parents[2]/'shared'/'golden'
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason='golden files not at hand')


def base(Config=Qwen2Config, **kw):
    config = Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    max_position_embeddings=256, pad_token_id=0, eos_token_id=63, initializer_range=.3, **kw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def actor(Config=Qwen2Config, **kw):
    return ModelWithInsertedHiddenState(base(Config, **kw), prepended_length=12, hidden_size=32, input_size=24, bop_id=61, eop_id=62)


def batch(n=8, seed=0):
    "Rows of 4 to 14 tokens, messages of 0 to 15 states (longer than the 12 that are read), labels on about half the tokens."
    g = torch.Generator().manual_seed(seed)
    def number(low, high): return int(torch.randint(low, high+1, (1,), generator=g))
    rows = [torch.randint(1, 60, (number(4, 14),), generator=g) for _ in range(n)]
    labels = [r.masked_fill(torch.rand(len(r), generator=g) < .5, -100) for r in rows]
    for r,l in zip(rows, labels): l[-1], l[:2] = r[-1], -100
    at = torch.tensor([number(1, len(r)-1) for r in rows])
    states = [torch.randn(k, 24, generator=g) for k in (0, 15, *(number(0, 15) for _ in range(n-2)))]
    return rows, labels, at, states


def padded(rows, labels, side='right', extra=0):
    n = max(map(len, rows)) + extra
    def fill(r, v): return torch.cat([r, r.new_full((n-len(r),), v)] if side == 'right' else [r.new_full((n-len(r),), v), r])
    ids, mask = torch.stack([fill(r, 7) for r in rows]), torch.stack([fill(torch.ones_like(r), 0) for r in rows])
    return ids, mask, torch.stack([fill(l, -100) for l in labels])


@pytest.fixture
def float64():
    with exact(): yield


@pytest.mark.parametrize('Config', [Qwen2Config, LlamaConfig])
@pytest.mark.parametrize('side, extra', [('right', 0), ('right', 5), ('left', 3)])
def test_neither_padding_nor_batch_changes_a_row(Config, side, extra, float64):
    a, (rows, labels, at, states) = actor(Config).double(), batch()
    h, h_mask = pad_messages(states)
    together = a(*padded(rows, labels, side, extra), at, a.embed_message(h, h_mask), h_mask)
    parts = []
    for i in range(len(rows)):
        message = (at[i:i+1], a.embed_message(states[i][None])) if len(states[i]) else ()
        parts.append(a(*padded(rows[i:i+1], labels[i:i+1]), *message))
    assert apart(together.logits, torch.cat([p.logits for p in parts])) < 1e-6
    assert together.targets.tolist() == torch.cat([p.targets for p in parts]).tolist()
    n = torch.tensor([len(p.targets) for p in parts])
    torch.testing.assert_close(together.loss, (torch.stack([p.loss for p in parts])*n).sum()/n.sum())


def test_gradients_are_those_of_the_rows_and_finite(float64):
    a, (rows, labels, at, states) = actor().double(), batch()
    def grads(loss):
        a.zero_grad(); loss.backward()
        return torch.cat([p.grad.flatten() for p in a.processor.parameters()])
    h, h_mask = pad_messages(states)
    whole = grads(a(*padded(rows, labels, 'right', 4), at, a.embed_message(h, h_mask), h_mask).loss)
    total, parts = 0, 0
    for i in range(len(rows)):
        if not len(states[i]): total += int((labels[i] != -100).sum()); continue
        out = a(*padded(rows[i:i+1], labels[i:i+1]), at[i:i+1], a.embed_message(states[i][None]))
        total, parts = total + len(out.targets), parts + len(out.targets)*grads(out.loss)
    assert whole.isfinite().all() and whole.abs().max() > 0
    assert apart(whole, parts/total) < 1e-6


@pytest.mark.parametrize('Config', [Qwen2Config, LlamaConfig])
def test_generation_equals_a_loop_without_cache_at_any_batch_size(Config):
    a, (rows, labels, at, states) = actor(Config), batch(seed=1)
    h, h_mask = pad_messages(states)
    message = a.embed_message(h, h_mask)
    ids, mask, _ = padded(rows, labels)
    new = a.generate(ids, mask, at, message, h_mask, max_new_tokens=6, do_sample=False).tolist()
    left = a.generate(*padded(rows, labels, 'left', 2)[:2], at, message, h_mask, max_new_tokens=6, do_sample=False).tolist()
    assert new == left
    for i,row in enumerate(rows):
        slow = []
        while len(slow) < 6 and 63 not in slow:
            x = torch.cat([row, torch.tensor(slow, dtype=torch.long)])[None]
            slow.append(int(a(x, torch.ones_like(x), None, at[i:i+1], message[i:i+1], h_mask[i:i+1]).logits.argmax()))
        assert new[i][:len(slow)] == slow


def test_no_message_is_the_plain_model():
    a, (rows, labels, at, _) = actor(), batch()
    ids, mask, y = padded(rows, labels)
    torch.testing.assert_close(a(ids, mask, y).loss, a.base_model(input_ids=ids, attention_mask=mask, labels=y).loss)
    empty = a(ids, mask, y, at, torch.zeros(8, 3, 32), torch.zeros(8, 3, dtype=torch.bool))
    assert torch.equal(empty.logits, a(ids, mask, y).logits)


def test_half_precision_base_and_tied_embeddings_survive_a_round_trip(tmp_path):
    a = actor(tie_word_embeddings=True)
    def load(folder): return ModelWithInsertedHiddenState.from_pretrained(folder, dtype='bfloat16', device='cpu')
    a = load(a.save_pretrained(tmp_path/'a'))
    again = load(a.save_pretrained(tmp_path/'b'))
    assert again.base_model.lm_head.weight is again.base_model.get_input_embeddings().weight
    ids, mask, y = padded(*batch()[:2])
    h = torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(0))
    at = torch.ones(8, dtype=torch.long)
    outs = [m(ids, mask, y, at, m.embed_message(h)) for m in (a, again)]
    assert torch.equal(outs[0].logits, outs[1].logits) and outs[0].logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in again.processor.parameters())


@needs_golden
def test_a_checkpoint_of_the_original_code_loads():
    a = ModelWithInsertedHiddenState.from_pretrained(GOLDEN/'original_checkpoint', device='cpu')
    assert a.settings['prepended_length'] == 12 and a.settings['num_heads'] == 4 and not a.training
    g = load_file(GOLDEN/'adapter.safetensors')
    assert apart(a.embed_message(g['input'][None])[0], g['processed']) < 1e-5
    ids = torch.arange(5)[None]
    assert a(ids, torch.ones_like(ids), ids, torch.tensor([2]), a.embed_message(g['input'][None])).loss.isfinite()


@needs_golden
def test_broken_checkpoints_are_one_line(tmp_path):
    def copy(name):
        return Path(shutil.copytree(GOLDEN/'original_checkpoint', tmp_path/name, copy_function=shutil.copyfile))
    def message(folder):
        with pytest.raises(InterlatError) as e: ModelWithInsertedHiddenState.from_pretrained(folder, device='cpu')
        assert '\n' not in str(e.value)
        return str(e.value)
    d = copy('no_adapter'); d.chmod(0o755); (d/'hidden_mha_state.pt').unlink()
    assert 'adapter not found' in message(d)
    d = copy('not_an_actor'); d.chmod(0o755); (d/'prepended_config.json').unlink()
    assert 'this folder holds no actor' in message(d)
    d = copy('no_base'); d.chmod(0o755); (d/'model.safetensors').unlink()
    assert 'cannot load the base model' in message(d)
    d = copy('no_fit')
    state = torch.load(d/'hidden_mha_state.pt', weights_only=True)
    state['pre_ln'] = {k: v[:7] for k,v in state['pre_ln'].items()}
    torch.save(state, d/'hidden_mha_state.pt')
    assert 'does not fit its settings' in message(d)
    c = json.loads((d/'prepended_config.json').read_text())
    (d/'prepended_config.json').write_text(json.dumps({**c, 'hidden_size': 40}))
    assert 'hidden_size is 40, but the embeddings of Qwen2ForCausalLM have width 48' in message(d)


def test_damaged_checkpoints_are_one_line(tmp_path):
    a = actor()
    def message(folder):
        with pytest.raises(InterlatError) as e: ModelWithInsertedHiddenState.from_pretrained(folder, device='cpu')
        assert '\n' not in str(e.value)
        return str(e.value)
    for name, said in (('adapter.safetensors', 'adapter.safetensors is damaged'), ('model.safetensors', 'cannot load the base model')):
        path = a.save_pretrained(tmp_path/name)/name
        path.write_bytes(path.read_bytes()[:-100])
        assert said in message(path.parent)
    (tmp_path/name/'interlat_config.json').unlink()
    (tmp_path/name/'prepended_config.json').write_text('{"hidden_size": 32}')
    torch.save({}, tmp_path/name/'hidden_mha_state.pt')
    assert "lacks 'prepended_length'" in message(tmp_path/name)


def coarse(actor):
    "The actor with weights that are multiples of 1/256, so that adding LoRA's layers to them rounds nothing."
    for p in actor.base_model.parameters(): p.data = (p.data*256).round()/256
    return actor


def with_lora(**kw):
    "An actor whose LoRA layers already do something."
    a, g = actor(**kw), torch.Generator().manual_seed(0)
    add_lora(a.base_model, dict(r=4, lora_dropout=.5), seed=1)
    for name, p in trainable_state(a).items():
        if 'lora_B' in name: p.normal_(std=.1, generator=g)
    return coarse(a)


@pytest.mark.parametrize('tie', [False, True])
@pytest.mark.parametrize('how', ['live', 'gathered'])
def test_an_actor_with_lora_is_saved_complete_and_left_as_it_was(how, tie, tmp_path):
    a, (rows, labels, at, _) = with_lora(tie_word_embeddings=tie), batch()
    before = {k: v.clone() for k,v in a.state_dict().items()}
    a.save_pretrained(tmp_path, None if how == 'live' else {k: v.clone() for k,v in before.items()})
    assert all(torch.equal(v, before[k]) for k,v in a.state_dict().items())
    again = ModelWithInsertedHiddenState.from_pretrained(tmp_path, device='cpu')
    assert again.state_dict().keys() == actor(tie_word_embeddings=tie).state_dict().keys()
    h, given = torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(0)), padded(rows, labels)
    with torch.no_grad(): live, read, plain = (m.double()(*given, at, m.embed_message(h)).logits for m in (a, again, actor(tie_word_embeddings=tie)))
    assert apart(read, live) < 1e-6
    assert (live - plain).abs().max() > .1 # the correction is not nothing
    assert not [p.name for p in tmp_path.iterdir() if p.suffix not in ('.json', '.safetensors')]


def test_only_lora_and_the_adapter_train():
    a = with_lora()
    names = trainable_state(a).keys()
    assert {n for n in names if n.startswith('processor.')} == {n for n,_ in a.named_parameters() if n.startswith('processor.')}
    assert {n.split('.')[-3] for n in names if n.startswith('base_model.')} == {'lora_A', 'lora_B'}
    assert not a.training and not any(m.training for m in a.modules())
    other = coarse(actor())
    add_lora(other.base_model, dict(r=4))
    missing, unexpected = other.load_state_dict(trainable_state(a), strict=False)
    assert not unexpected and not {*missing} & {*names}
    rows, labels, at, _ = batch()
    assert torch.equal(other(*padded(rows, labels)).logits, a(*padded(rows, labels)).logits)


def test_lora_without_peft_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(InterlatError, match=r"pip install 'interlat\[lora\]'"): add_lora(base(), dict(r=4))


@pytest.mark.parametrize('make', [actor, with_lora])
def test_checkpointed_gradients_are_the_gradients(make):
    a, (rows, labels, at, _) = make(), batch()
    h = torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(0))
    def grads():
        a.zero_grad()
        a(*padded(rows, labels), at, a.embed_message(h)).loss.backward()
        return [p.grad.clone() for p in a.parameters() if p.requires_grad]
    a.train()
    for m in a.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    a.processor.hidden_mha.dropout = 0.
    plain = grads()
    a.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in a.base_model.model.layers)
    for x, y in zip(grads(), plain): torch.testing.assert_close(x, y)
    a.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in a.base_model.model.layers)


def test_trainer_turns_checkpointing_on(tmp_path):
    a, (rows, labels, _, _) = actor(), batch()
    data = [dict(input_ids=r, attention_mask=torch.ones_like(r), labels=l) for r,l in zip(rows, labels)]
    args = TrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=1, gradient_checkpointing=True, save_strategy='no',
                             report_to='none', use_cpu=True, disable_tqdm=True)
    with warnings.catch_warnings(): # nothing about names that will go
        warnings.simplefilter('error', FutureWarning)
        Trainer(a, args, train_dataset=data).train()
    assert all(layer.gradient_checkpointing for layer in a.base_model.model.layers)


def test_fsdp_is_told_which_layers_to_wrap():
    assert [*actor()._no_split_modules] == ['Qwen2DecoderLayer'] and [*actor(LlamaConfig)._no_split_modules] == ['LlamaDecoderLayer']


SHARDED = """
from test_actor import *
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
dist.init_process_group('gloo')
step = Step(with_lora(tie_word_embeddings=True))
for layer in step.actor.base_model.model.layers: fully_shard(layer)
fully_shard(step)
loss = step()
loss.backward()
state = get_model_state_dict(step, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
if dist.get_rank() == 0: step.actor.save_pretrained(sys.argv[1], {k.removeprefix('actor.'): v for k,v in state.items()})
print(type(step.actor.processor.adaptive_proj.scale).__name__, loss.item(), flush=True)
dist.barrier()
"""


class Step(torch.nn.Module):
    "A training step's forward pass as one module, as `Trainer` sees it."
    def __init__(self, actor):
        super().__init__()
        self.actor = actor

    def forward(self):
        (rows, labels, at, _), h = batch(), torch.randn(8, 5, 24, generator=torch.Generator().manual_seed(0))
        return self.actor(*padded(rows, labels), at, self.actor.embed_message(h)).loss


def test_two_processes_that_share_an_actor_piecewise_save_it_whole(tmp_path):
    said = pair(tmp_path/'run.py', SHARDED, str(tmp_path/'saved'))
    kinds, losses = said.split()[::2], [float(x) for x in said.split()[1::2]]
    whole, saved = Step(with_lora(tie_word_embeddings=True)), Step(ModelWithInsertedHiddenState.from_pretrained(tmp_path/'saved', device='cpu'))
    with torch.no_grad():
        assert kinds == ['DTensor']*2 and losses == pytest.approx([whole().item()]*2, rel=1e-5)
        assert saved.double()().item() == pytest.approx(whole.double()().item(), rel=1e-6)
    assert 'lm_head.weight' not in load_file(tmp_path/'saved'/'model.safetensors'), 'tied weights are written once'
