"A frozen language model: the same bits before, after and on disk; what is trained beside it, and what the estimator says of that."
import hashlib, json, shutil

import cast, pytest, torch
from cast import call
from safetensors.torch import load_file
from test_lm import cast_without
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.agents.collect import collect
from interlat.agents.new_actor import ActorConfig, load_actor, new_actor
from interlat.commands import cli
from interlat.commands.sources import GameData
from interlat.commands.train import Messages, step_memory, train_from
from interlat.core.basics import InterlatError
from interlat.messages.message import MessageStore
from interlat.models.lm import Agent
from interlat.models.lora import trainable_state
from interlat.training.memory import OPTIMIZERS, optimizer_bytes
from interlat.training.settings import ActorArguments


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Eight games, a language model that has never heard of the marks around a message, and what it wrote."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 8)
    plain = cast.tokenizer(games)
    tok = PreTrainedTokenizerFast(tokenizer_object=cast_without(plain), eos_token=plain.eos_token, pad_token=plain.pad_token)
    tok.chat_template = plain.chat_template
    base = cast.lm(tok, initializer_range=.1)
    for x in (tok, base): x.save_pretrained(folder/'lm')
    collect(Agent(base, tok), games, MessageStore(folder/'store', sender='random'), max_new_tokens=9, progress=False)
    return folder


def train(world, out, start=None, steps=2, optim='adamw_torch', **config):
    args = ActorArguments(str(out), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, logging_steps=1, probe_steps=0, validation_split=0,
                          learning_rate=.05, save_strategy='steps', save_steps=1, optim=optim)
    return train_from(ActorConfig(str(start or world/'lm'), prepended_length=9, **config), GameData(str(world/'games')), Messages(str(world/'store')), args)


def bits(path): return {k: hashlib.sha256(v.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for k, v in load_file(path/'model.safetensors').items()}


@pytest.mark.parametrize('config', [dict(), dict(adapter_rank=4)], ids=str)
def test_the_language_model_is_the_one_that_was_loaded(world, tmp_path, config):
    trainer = train(world, tmp_path, trainable='adapter', **config)
    actor, began = trainer.model.actor, new_actor(world/'lm', prepended_length=9, device='cpu', trainable='adapter', **config)
    assert bits(tmp_path) == bits(tmp_path/'checkpoint-1') == bits(world/'lm')
    assert json.loads((tmp_path/'config.json').read_text()) | dict(use_cache=True) == json.loads((world/'lm'/'config.json').read_text()) # Trainer turns that off
    assert len(load_actor(tmp_path, device='cpu').tokenizer) == len(began.tokenizer) # nor has the tokenizer learned a word
    assert not any(p.requires_grad or p.grad is not None for p in actor.base_model.parameters())
    old, new = began.model.processor.state_dict(), load_file(tmp_path/'adapter.safetensors')
    still = {k for k in old if torch.equal(old[k], new[k])}
    assert 'marks' in new and still <= {'hidden_mha.in_proj_bias'} and new.keys() == old.keys() # a key's bias alone changes nothing
    assert_close(old['marks'], actor.base_model.get_input_embeddings().weight.mean(0).expand(2, -1))


def test_a_bfloat16_language_model_stays_and_its_adapter_is_float32(world, tmp_path):
    train(world, tmp_path, trainable='adapter', dtype='bfloat16')
    was = new_actor(world/'lm', dtype='bfloat16', device='cpu', trainable='adapter').model.base_model.state_dict()
    now = load_file(tmp_path/'model.safetensors')
    assert all(torch.equal(now[k], was[k]) for k in now) and {v.dtype for v in now.values()} == {torch.bfloat16}
    assert {v.dtype for v in load_file(tmp_path/'adapter.safetensors').values()} == {torch.float32}


def test_it_goes_on_from_its_checkpoint(world, tmp_path):
    config = dict(trainable='adapter', adapter_rank=4)
    train(world, tmp_path, **config)
    whole = load_file(tmp_path/'adapter.safetensors')
    whole = {k: v.clone() for k, v in whole.items()}
    shutil.rmtree(tmp_path/'checkpoint-2')
    assert train(world, tmp_path, **config).state.global_step == 2
    again = load_file(tmp_path/'adapter.safetensors')
    for k in whole: assert_close(again[k], whole[k], atol=1e-6, rtol=0)
    assert load_file(tmp_path/'checkpoint-1'/'trained.safetensors').keys() == {f'actor.processor.{k}' for k in whole}


def test_from_a_frozen_actor_to_a_trained_one_and_back(world, tmp_path):
    train(world, tmp_path/'frozen', trainable='adapter')
    free = train(world, tmp_path/'free', tmp_path/'frozen').model.actor
    assert free.settings['own_marks'] and bits(tmp_path/'free') != bits(world/'lm')
    train(world, tmp_path/'back', tmp_path/'free', trainable='adapter')
    assert bits(tmp_path/'back') == bits(tmp_path/'free')
    read = load_actor(tmp_path/'back', device='cpu').model
    assert read.settings == free.settings and isinstance(read, ModelWithInsertedHiddenState)


def test_an_actor_with_rows_for_its_marks_is_frozen_with_them(world, tmp_path):
    train(world, tmp_path/'whole')
    whole, fixed = new_actor(tmp_path/'whole', device='cpu'), new_actor(tmp_path/'whole', device='cpu', trainable='adapter')
    h = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): a, b = (m.block(m.embed_message(h), torch.ones(2, 5).bool())[0] for m in (whole.model.eval(), fixed.model.eval()))
    assert torch.equal(a, b) and a.shape == (2, 7, 32)
    assert whole.model.settings.get('own_marks') is None and len(whole.tokenizer) == len(new_actor(world/'lm', device='cpu').tokenizer)


@pytest.mark.parametrize('words, said', [
    (['--trainable', 'adapter', '--lora', '{"r": 4}'], "trainable is adapter, but lora {'r': 4} trains LoRA matrices"), (['--trainable', 'head'], "unknown trainable 'head'; use all, lora, adapter"),
    (['--trainable', 'adapter', '--adapter', 'false'], 'there is nothing to train'), (['--adapter_rank', '4', '--adapter', 'false'], 'adapter_rank is 4, but adapter is false'),
    (['--trainable', 'adapter', '--channel', 'text'], "channel 'text' reads no states"), (['--adapter_rank', '16'], 'adapter_rank must be from 1 to 15'),
    (['--adapter_rank', '0'], 'leave it out for a full matrix'), (['--adapter_rank', 'two'], 'invalid int value')])
def test_what_cannot_be_is_one_line(world, tmp_path, words, said):
    base = dict(model_name_or_path=world/'lm', data_path=world/'games', hidden_data_path=world/'store', output_dir=tmp_path/'out', use_cpu='true', per_device_train_batch_size=4)
    status, _, err = call(cli.main_train, *(str(x) for k, v in base.items() for x in (f'--{k}', v)), *words)
    assert status == 2 and said in err and 'Traceback' not in err


def test_lora_by_either_name_is_the_same(world, tmp_path):
    by_name, by_settings = (new_actor(world/'lm', device='cpu', **how).model for how in (dict(trainable='lora'), dict(lora={})))
    a, b = trainable_state(by_name), trainable_state(by_settings)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and any('lora_A' in k for k in a)


def kept(optimizer):
    "Bytes of what an optimizer keeps of its parameters: not its counters, nor the code books of 8 bits."
    tensors = [v for state in optimizer.state.values() for k, v in state.items() if isinstance(v, torch.Tensor) and k not in ('step', 'RMS', 'qmap1', 'qmap2')]
    return sum(v.untyped_storage().nbytes() for v in tensors)


@pytest.mark.parametrize('config', [dict(trainable='adapter'), dict(trainable='adapter', adapter_rank=4), dict(trainable='lora', adapter_rank=4), dict()], ids=str)
def test_the_estimate_counts_what_is_trained(world, tmp_path, config):
    trainer = train(world, tmp_path, steps=1, **config)
    told, trained = step_memory(trainer), [p for p in trainer.model.parameters() if p.requires_grad]
    assert told.gradients == sum(p.nbytes for p in trained) and told.optimizer == kept(trainer.optimizer) == 2*told.gradients
    assert {id(p) for g in trainer.optimizer.param_groups for p in g['params']} == {id(p) for p in trained}


@pytest.mark.parametrize('optim, optim_args', [('adamw_torch_fused', None), ('adafactor', None), ('sgd', None), ('sgd', 'momentum=0.9'), ('adagrad', None), ('rmsprop', None),
                                               ('rmsprop', 'centered=true,momentum=0.1'), ('adamw_bnb_8bit', None), ('paged_lion_8bit', None), ('ademamix', None)])
def test_what_an_optimizer_of_the_trainer_keeps(optim, optim_args):
    from transformers import Trainer, TrainingArguments
    if OPTIMIZERS.get(optim.removeprefix('paged_'), (0, 0))[1]: pytest.importorskip('bitsandbytes')
    model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 256), torch.nn.LayerNorm(256), torch.nn.Linear(256, 64))
    model[1].requires_grad_(False)
    optimizer = Trainer(model=model, args=TrainingArguments('unused', optim=optim, optim_args=optim_args, use_cpu=True)).create_optimizer()
    model(torch.arange(20)).pow(2).mean().backward()
    optimizer.step()
    assert optimizer_bytes(model, optim, optim_args) == kept(optimizer)


def test_an_optimizer_that_nobody_knows_is_not_counted_as_small(caplog):
    layer = torch.nn.Linear(8, 8)
    assert optimizer_bytes(layer, 'galore_adamw') == 3*4*72 > optimizer_bytes(layer) and 'optimizer galore_adamw is not known here' in caplog.text
