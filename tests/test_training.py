"`interlat-train`: killed and started again, on two processes, with LoRA, bfloat16 and checkpointing, and from another's data."
import json, os, shutil, signal, subprocess, time
from types import SimpleNamespace

import cast, datasets, pandas as pd, pytest, torch
from accelerate.utils import FullyShardedDataParallelPlugin
from cast import call, pair
from notebooks import ROOT
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.integrations import deepspeed
from warm import warm

from interlat.commands import cli
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.agents.collect import collect
from interlat.core.arguments import parse
from interlat.core.basics import InterlatError
from interlat.messages.exchange import export_messages
from interlat.messages.message import MessageStore
from interlat.models.lm import Agent
from interlat.agents.new_actor import ActorConfig
from interlat.training.settings import ActorArguments
from interlat.training.trainer import last_checkpoint
from interlat.training.actor_trainer import ActorTrainer, check_training
from transformers import Trainer
from interlat.commands.sources import GameData
from interlat.commands.train import Messages, open_messages, train_from, whole_weights

TRAIN = ['-c', "import sys; sys.argv[0] = 'interlat-train'; from interlat.commands.cli import main_train; main_train()"]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Twelve games, a sender in a folder, and its messages; a quiet one, as a loud model blows rounding up."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 12)
    tok = cast.tokenizer(games)
    base = cast.lm(tok, initializer_range=.1)
    tok.save_pretrained(folder/'lm'); base.save_pretrained(folder/'lm')
    collect(Agent(base, tok), games, MessageStore(folder/'store', sender='random'), max_new_tokens=9, progress=False)
    return folder


def flags(world, out, **kw):
    base = dict(model_name_or_path=world/'lm', data_path=world/'games', hidden_data_path=world/'store', output_dir=out, prepended_length=9, max_steps=6, use_cpu='true',
                per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, disable_tqdm='true', probe_steps=3, validation_split=.17)
    return [str(x) for k, v in {**base, **kw}.items() for x in (f'--{k}', v)]


def environment(): return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


def weights(folder): # copies, as a file may be written anew
    return {k: v.clone() for name in ('model', 'adapter') for k, v in load_file(folder/f'{name}.safetensors').items()}


def curve(folder):
    log = pd.read_csv(folder/'log.csv').pivot_table(index='step', columns='part', values='value')
    return log[['loss', 'eval_loss', 'task', 'separation', 'alignment', 'content_gain', 'separation_weight', 'learning_rate']]


def trained(world, out, config=(), **kw):
    "A run in this process."
    args = dict(max_steps=4, use_cpu=True, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, disable_tqdm=True, probe_steps=0, validation_split=0)
    return train_from(ActorConfig(str(world/'lm'), prepended_length=9, **dict(config)), GameData(str(world/'games')), Messages(str(world/'store')), ActorArguments(str(out), **{**args, **kw}))


@pytest.fixture(scope='module')
def plain(world, tmp_path_factory):
    "The folder of four steps with nothing special, and their log."
    folder = tmp_path_factory.mktemp('plain')
    return folder, trained(world, folder, save_steps=2).state.log_history


def test_killed_and_started_again_it_ends_with_the_same_weights(world, tmp_path):
    run = flags(world, tmp_path/'run', save_strategy='steps', save_steps=1, max_steps=12)
    process = subprocess.Popen([*warm(), *TRAIN, *run], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path/'run'/'checkpoint-3').exists(): time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and last_checkpoint(tmp_path/'run') and not (tmp_path/'run'/'model.safetensors').exists()
    status, _, err = call(cli.main_train, *run)
    assert status == 0, err
    status, out, _ = call(cli.main_train, *flags(world, tmp_path/'whole', max_steps=12))
    assert status == 0 and 'memory: weights' in out
    assert_close(weights(tmp_path/'run'), weights(tmp_path/'whole'), atol=1e-6, rtol=0)
    assert not [p for p in (tmp_path/'run').iterdir() if p.suffix in ('.bin', '.pt', '.pth', '.pkl')], 'an actor is safetensors and JSON only'


TWO = """
import json, torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from interlat.commands.cli import train
from interlat.training.settings import ActorArguments
from transformers import Trainer
copied, shared, folder = json.loads(sys.argv[1])
train(copied)
asked = ActorArguments('nowhere', fsdp=True, fsdp_config=dict(activation_checkpointing=True), use_cpu=True).fsdp_plugin_args
start = Trainer.create_accelerator_and_postprocess
def start_shared(self): # accelerate lets FSDP onto GPUs only; torch has it for CPUs too
    start(self)
    state, self.is_fsdp_enabled = self.accelerator.state, True
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**asked)
    state.distributed_type = PartialState._shared_state['distributed_type'] = DistributedType.FSDP
Trainer.create_accelerator_and_postprocess = start_shared
train(shared)
torch.distributed.barrier()
if PartialState().is_main_process: os.rename(f'{folder}/checkpoint-6', f'{folder}/first')
torch.distributed.barrier()
train(shared)
"""

STEADY = dict(adapter_dropout=0, adam_epsilon=.01) # no step of rounding alone, as AdamW makes where a gradient is next to nothing
LORA = dict(r=4, lora_dropout=0.)


@pytest.fixture(scope='module')
def two(world, tmp_path_factory):
    "What two processes say and leave behind: each with the whole model, then each with half of it, then that again from its checkpoint."
    folder = tmp_path_factory.mktemp('two')
    copied = flags(world, folder/'copied', per_device_train_batch_size=2, validation_split=.25, **STEADY)
    shared = flags(world, folder/'shared', per_device_train_batch_size=2, lora=json.dumps(LORA), save_strategy='steps', save_steps=3, **STEADY)
    return folder, pair(folder/'train.py', TWO, json.dumps([copied, shared, str(folder/'shared')]))


def test_two_processes_give_the_curve_of_one(world, two, tmp_path):
    "The same rows, rates and wrong messages, whose senders sit in the other process; dropout alone would differ."
    folder, said = two
    assert said.count(f"saved in {folder/'copied'}") == 1
    assert call(cli.main_train, *flags(world, tmp_path, validation_split=.25, **STEADY))[0] == 0
    curves = [curve(f) for f in (tmp_path, folder/'copied')]
    assert len(curves[0]) == 7
    pd.testing.assert_frame_equal(*curves, atol=1e-5, rtol=1e-4)
    assert_close(weights(folder/'copied'), weights(tmp_path), atol=1e-5, rtol=0)


def test_fsdp_gives_the_curve_of_one_and_goes_on_from_its_checkpoint(world, two, tmp_path):
    "Trainer's own FSDP with layers checkpointed and LoRA: loss, clipping, saving, resuming."
    folder, said = two
    shared = folder/'shared'
    assert said.count(f'saved in {shared}') == 2
    assert call(cli.main_train, *flags(world, tmp_path, lora=json.dumps(LORA), **STEADY))[0] == 0
    assert (shared/'checkpoint-3'/'pytorch_model_fsdp.bin').exists()
    pd.testing.assert_frame_equal(curve(tmp_path), curve(shared), atol=1e-5, rtol=1e-4)
    assert_close(weights(shared/'first'), weights(tmp_path), atol=1e-5, rtol=0)
    assert_close(weights(shared), weights(shared/'first'), atol=1e-6, rtol=0)


def test_fsdp_in_bfloat16_leaves_the_losses_in_float32(monkeypatch):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision('bf16')
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16
    accelerator = SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin))
    monkeypatch.setattr(Trainer, 'create_accelerator_and_postprocess', lambda self: setattr(self, 'accelerator', accelerator))
    ActorTrainer.__new__(ActorTrainer).create_accelerator_and_postprocess()
    assert plugin.mixed_precision_policy.output_dtype is None and plugin.mixed_precision_policy.param_dtype == torch.bfloat16


@pytest.mark.parametrize('words, found', [(['--fsdp'], {}), (['--fsdp', '--fsdp_config', '{"activation_checkpointing": true}'], dict(activation_checkpointing=True)),
                                          (['--fsdp', '--fsdp_config', '{"cpu_offload": true}'], dict(cpu_offload=True))])
def test_fsdp_is_asked_for_with_a_flag(words, found):
    args, = parse(ActorArguments, ['--output_dir', 'out', *words, '--max_steps', '1'], '')
    assert args.fsdp is True and args.wants_fsdp
    assert dict(fsdp_version=2, auto_wrap_policy='TRANSFORMER_BASED_WRAP', state_dict_type='FULL_STATE_DICT', reshard_after_forward=True, cpu_ram_efficient_loading=False) | found == args.fsdp_plugin_args


def test_fsdp_without_gpus_is_one_line(world, tmp_path):
    with pytest.raises(InterlatError, match='FSDP shares a model among several GPUs, found 1 process on cpu; leave --fsdp out'): trained(world, tmp_path/'run', fsdp=True)
    with pytest.raises(InterlatError, match='deepspeed is not installed: pip install deepspeed'): trained(world, tmp_path/'run', deepspeed='ds.json')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('zero, fits', [(dict(stage=3), False), (dict(stage=3, stage3_gather_16bit_weights_on_model_save='auto'), False),
                                        (dict(stage=3, stage3_gather_16bit_weights_on_model_save=True), True), (dict(stage=2), True)])
def test_deepspeed_that_would_not_gather_an_actor_is_refused(zero, fits, tmp_path):
    args = ActorArguments(str(tmp_path), use_cpu=True)
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config=dict(zero_optimization=zero))
    with pytest.raises(InterlatError, match='the split is empty' if fits else 'stage3_gather_16bit_weights_on_model_save is true'): check_training([], MessageStore(tmp_path/'store', sender='x'), args)


def test_lora_goes_on_from_its_checkpoint(world, tmp_path):
    "The checkpoint's model has the matrices added in; what goes on is the matrices themselves."
    def train(): return trained(world, tmp_path, dict(lora=LORA), max_steps=2, save_steps=1)
    whole = train()
    base, new = load_file(world/'lm'/'model.safetensors'), weights(tmp_path)
    shutil.rmtree(tmp_path/'checkpoint-2')
    assert train().state.global_step == 2
    assert_close(weights(tmp_path), new, atol=1e-6, rtol=0)
    assert not torch.equal(new['model.layers.0.mlp.up_proj.weight'], base['model.layers.0.mlp.up_proj.weight'])
    assert torch.equal(new['model.embed_tokens.weight'], base['model.embed_tokens.weight'])
    assert whole.model.actor.base_model.get_input_embeddings().weight.requires_grad is False


def test_bfloat16_and_gradient_checkpointing(world, tmp_path):
    def losses(name, **kw): return pd.Series([h['task'] for h in trained(world, tmp_path/name, adapter_dropout=0, max_steps=2, **kw).state.log_history if 'task' in h])
    plain = losses('plain', bf16=False)
    assert_close(losses('checkpointing', gradient_checkpointing=True, bf16=False).to_numpy(), plain.to_numpy(), atol=0, rtol=1e-5)
    assert 0 < (losses('bf16', bf16=True) - plain).abs().max() < .1


@pytest.mark.parametrize('how', [dict(adaptive_weights=True), dict(schedule='cosine'), dict(kl_direction='forward'), dict(negatives='same_type'), dict(mismatched_gradient=False)])
def test_named_options_change_the_training(world, plain, tmp_path, how):
    log, (_, first) = trained(world, tmp_path, **how).state.log_history, plain
    weight = log[0]['separation_weight']
    if 'adaptive_weights' in how: assert abs(weight - (.01 + .49*-log[0]['separation']/.69)) < 1e-4
    assert [h['loss'] for h in log if 'loss' in h] != [h['loss'] for h in first if 'loss' in h]


def test_an_unfinished_checkpoint_is_passed_over(tmp_path):
    for n, text in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (11, '{"glob')):
        (tmp_path/f'checkpoint-{n}').mkdir(); (tmp_path/f'checkpoint-{n}'/'trainer_state.json').write_text(text)
    (tmp_path/'checkpoint-12').mkdir()
    assert last_checkpoint(tmp_path).name == 'checkpoint-10' and last_checkpoint(tmp_path/'nowhere') is None


def test_a_checkpoint_is_an_actor(plain):
    folder, _ = plain
    for name in ('checkpoint-2', '.'):
        a = ModelWithInsertedHiddenState.from_pretrained(folder/name, device='cpu')
        assert a.settings['prepended_length'] == 9 and (folder/name/'tokenizer.json').exists()
        assert 'interlat' not in (folder/name/'config.json').read_text(), 'how training reads is not part of the model'


def test_what_does_not_fit_is_said_before_anything_is_loaded(world, tmp_path):
    def line(match, data=(), config=(), **kw):
        data = dict(hidden_data_path=str(world/'store')) | dict(data)
        messages = Messages(data.pop('hidden_data_path'))
        with pytest.raises(InterlatError, match=match):
            train_from(ActorConfig(**{'model_name_or_path': str(tmp_path/'no model'), **dict(config)}), GameData(**{**dict(data_path=str(world/'games')), **data}), messages,
                       ActorArguments(str(tmp_path/'out'), use_cpu=True, **kw))
    line('no messages in', dict(hidden_data_path=str(tmp_path/'nothing')))
    line("no games in split 'valid_seen'", dict(split='valid_seen'))
    line('tasks do not fill one batch of 64', per_device_train_batch_size=64)
    line('a batch of 1 has no wrong message', per_device_train_batch_size=1)
    MessageStore(tmp_path/'few', sender='random').append(next(iter(MessageStore(world/'store'))))
    line("11 of 12 tasks have no message in 'few'", dict(hidden_data_path=str(tmp_path/'few')), per_device_train_batch_size=2)
    shutil.copytree(world/'lm', tmp_path/'bare')
    (tmp_path/'bare'/'chat_template.jinja').unlink()
    line('has no chat template; give one with --chat_template', config=dict(model_name_or_path=str(tmp_path/'bare')), per_device_train_batch_size=4)
    wide = MessageStore(tmp_path/'wide', sender='random')
    wide.append([type(m)(torch.zeros(2, 48), [1, 2], m.text, m.task_id, 'random') for m in MessageStore(world/'store')])
    line('states of width 48 cannot be read by a model of width 32 without', dict(hidden_data_path=str(tmp_path/'wide')),
         dict(model_name_or_path=str(world/'lm'), adapter=False), per_device_train_batch_size=4)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('kept', ['dictionary', 'parquet'])
def test_messages_in_any_folder_that_holds_a_data_set(world, tmp_path, kept):
    store = MessageStore(world/'store')
    export_messages(store, tmp_path/'parquet'/'data'/'train-0.parquet')
    datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(tmp_path/'parquet'/'data'/'train-0.parquet'), cache_dir=str(tmp_path/'cache'))).save_to_disk(str(tmp_path/'dictionary'))
    found = open_messages(tmp_path/kept, tmp_path/'into')
    assert set(found.task_ids()) == set(store.task_ids()) and all(torch.equal(found[t].h, store[t].h) for t in store.task_ids())


def test_weights_are_loaded_whole_whatever_shares_them_out_later(monkeypatch):
    "A stand-in for DeepSpeed's settings, as the package is not here."
    def zero(**kw):
        ds = SimpleNamespace(config=dict(zero_optimization=kw), is_zero3=lambda: kw['stage'] == 3)
        monkeypatch.setattr(deepspeed, '_hf_deepspeed_config_weak_ref', lambda: ds)
    monkeypatch.setenv('FSDP_CPU_RAM_EFFICIENT_LOADING', 'true')
    zero(stage=3, stage3_gather_16bit_weights_on_model_save=True)
    with pytest.raises(ZeroDivisionError), whole_weights():
        assert not deepspeed.is_deepspeed_zero3_enabled() and 'FSDP_CPU_RAM_EFFICIENT_LOADING' not in os.environ
        raise ZeroDivisionError
    assert deepspeed.is_deepspeed_zero3_enabled() and os.environ['FSDP_CPU_RAM_EFFICIENT_LOADING'] == 'true'
