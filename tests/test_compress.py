"`interlat-compress` and what follows it: killed and started again, on two processes, with LoRA and bfloat16, by the original's flags; then messages of K states, collected and played."
import copy, json, os, shutil, signal, subprocess, time

import cast, pandas as pd, pytest, torch
from cast import call, pair
from notebooks import ROOT
from safetensors.torch import load_file
from torch.testing import assert_close
from warm import warm

from interlat.commands import cli
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.core.arguments import parse
from interlat.agents.collect import collect
from interlat.compression.compress import CompressionArguments, StudentCollator, StudentConfig, StudentDataset, new_student
from interlat.core.basics import InterlatError
from interlat.compression.distill import Distillation
from interlat.messages.exchange import export_messages
from interlat.models.lm import Agent, load_tokenizer
from interlat.models.chat import encode_chat
from interlat.messages.message import LatentMessage, MessageStore
from interlat.compression.reason import LatentStudent, collect_latents, latent_reason
from interlat.core.tasks import save_conversations
from interlat.training.trainer import TRAINED
from interlat.commands.sources import GameData
from interlat.commands.train import Messages, compress_from

COMMAND = "import sys; sys.argv[0] = 'interlat-{0}'; from interlat.commands.cli import main_{0}; main_{0}()"
PARTS = ('ce', 'preference', 'direction')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Twelve games to learn from and four to play, a sender with its messages, an actor of its width that reads nine states, and a model of another family and width."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 12)
    cast.generate_games(folder/'games', 4, 'valid_unseen', seed=4)
    tok, other = cast.tokenizer(games), cast.tokenizer(games, 'llama')
    quiet = dict(initializer_range=.1) # a loud model's steps blow rounding up, and two ways to one gradient part
    sender = cast.lm(tok, **quiet)
    models = dict(sender=(sender, tok), untied=(cast.lm(tok, tie_word_embeddings=False, **quiet), tok), llama=(cast.lm(other, 'tiny-llama', hidden_size=24, **quiet), other))
    actor = cast.actor(copy.deepcopy(sender), tok)
    actor.settings['prepended_length'] = 9
    for name, (model, words) in dict(models, actor=(actor, tok)).items():
        model.save_pretrained(folder/name)
        words.save_pretrained(folder/name)
    collect(Agent(sender, tok), games, MessageStore(folder/'store', sender='random'), max_new_tokens=9, progress=False)
    return folder


def config(world, **kw): return StudentConfig(**{**dict(student_model_name_or_path=str(world/'sender'), teacher_model_name_or_path=str(world/'actor'), K=4), **kw})
def data(world): return GameData(str(world/'games')), Messages(str(world/'store'))
def settings(out, **kw):
    base = dict(max_steps=4, use_cpu=True, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, disable_tqdm=True, validation_split=0., save_strategy='no')
    return CompressionArguments(str(out), **{**base, **kw})
def trained(world, out, student=None, **kw): return compress_from(config(world, **(student or {})), *data(world), settings(out, **kw))
def flags(world, out, **kw):
    base = dict(student_model_name_or_path=world/'sender', teacher_model_name_or_path=world/'actor', data_path=world/'games', hidden_data_path=world/'store', output_dir=out, K=4, max_steps=4,
                use_cpu='true', per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1, disable_tqdm='true', validation_split=0, save_strategy='no')
    return [str(x) for k, v in {**base, **kw}.items() for x in (f'--{k}', v)]


def weights(folder): # copies, as a file may be written anew
    return {k: v.clone() for name in ('model', 'student') for k, v in load_file(folder/f'{name}.safetensors').items()}


def losses(trainer): return pd.DataFrame([h for h in trainer.state.log_history if 'ce' in h])[['loss', *PARTS]]
def environment(): return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
def killed(command, argv, when):
    "Start a command as a process and kill it when `when` is true."
    process = subprocess.Popen([*warm(), '-c', COMMAND.format(command), *map(str, argv)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not when(): time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope='module')
def plain(world, tmp_path_factory):
    "The folder of four steps with nothing special, and their losses."
    folder = tmp_path_factory.mktemp('plain')
    return folder, losses(trained(world, folder))


# -- the trainer

def test_killed_and_started_again_it_ends_with_the_same_weights(world, tmp_path):
    "With measurements on the way."
    how = dict(max_steps=10, validation_split=.25, eval_strategy='steps', eval_steps=4, lr_scheduler_type='linear', save_strategy='steps', save_steps=1)
    run = tmp_path/'run'
    killed('compress', flags(world, run, **how), lambda: (run/'checkpoint-3').exists())
    assert not (run/'model.safetensors').exists() and (run/'recipe.json').exists()
    again = trained(world, run, **how)
    whole = trained(world, tmp_path/'whole', **{**how, 'save_strategy': 'no'})
    assert_close(weights(run), weights(tmp_path/'whole'), atol=1e-6, rtol=0)
    pd.testing.assert_frame_equal(losses(again), losses(whole), atol=1e-5, rtol=0)
    assert [h['step'] for h in again.state.log_history if 'eval_kept' in h] == [4, 8, 10]
    assert not [p for p in run.iterdir() if p.suffix in ('.bin', '.pt', '.pth', '.pkl')], 'a student is safetensors and JSON only'


def test_two_processes_give_the_curve_of_one(world, tmp_path):
    "And its gradients; held-out rows that only fill the last batch are not counted."
    how = dict(max_steps=5, validation_split=.25, eval_strategy='steps', eval_steps=2, optim='sgd', learning_rate=.1) # AdamW would make steps of rounding
    trained(world, tmp_path/'one', **how)
    assert pair(tmp_path/'run.py', 'from interlat.commands.cli import main_compress; main_compress()', *flags(world, tmp_path/'two', per_device_train_batch_size=2, **how)).count('saved in') == 1
    one, two = (pd.read_csv(tmp_path/name/'log.csv').pivot_table(index='step', columns='part', values='value') for name in ('one', 'two'))
    assert {'loss', *PARTS, 'eval_loss', 'eval_loss_full', 'eval_loss_none', 'learning_rate', 'grad_norm'} <= set(one) and len(one) == 5
    pd.testing.assert_frame_equal(one, two, atol=1e-5, rtol=1e-4)
    assert_close(weights(tmp_path/'two'), weights(tmp_path/'one'), atol=1e-4, rtol=0)


@pytest.mark.parametrize('student', [dict(lora=dict(r=4, lora_dropout=0.)), dict(student_model_name_or_path='untied'), dict(student_model_name_or_path='llama')], ids=['lora', 'untied', 'llama'])
def test_it_goes_on_from_its_checkpoint_whatever_is_frozen(world, tmp_path, student):
    "LoRA's base, and a head that no step uses: `trained.safetensors` has the rest; tied weights need no such file."
    base = world/student.get('student_model_name_or_path', 'sender')
    def train(): return trained(world, tmp_path, student | dict(student_model_name_or_path=str(base)), max_steps=2, save_strategy='steps', save_steps=1)
    train()
    start, end = load_file(base/'model.safetensors'), weights(tmp_path)
    assert (tmp_path/'checkpoint-1'/TRAINED).exists() == (base.name != 'llama')
    shutil.rmtree(tmp_path/'checkpoint-2')
    assert train().state.global_step == 2
    assert_close(weights(tmp_path), end, atol=1e-6, rtol=0)
    still = {k for k in start if torch.equal(start[k], end[k])}
    if 'lora' in student: assert 'model.embed_tokens.weight' in still and 'model.layers.0.mlp.up_proj.weight' not in still
    else: assert still - {'model.embed_tokens.weight'} <= {'lm_head.weight'}


def test_an_unfinished_checkpoint_is_passed_over(world, tmp_path):
    how = dict(save_strategy='steps', save_steps=1, save_total_limit=None, lr_scheduler_type='linear')
    trained(world, tmp_path, **how)
    whole = weights(tmp_path)
    (tmp_path/'checkpoint-4'/'trainer_state.json').unlink() # killed before this was written
    (tmp_path/'checkpoint-3'/'trainer_state.json').write_text('{"glob')
    (tmp_path/'checkpoint-3'/'model.safetensors').write_bytes(b'half')
    for name in ('model.safetensors', 'student.safetensors'): (tmp_path/name).unlink()
    trained(world, tmp_path, **how)
    assert_close(weights(tmp_path), whole, atol=1e-6, rtol=0)


def test_a_checkpoint_is_a_student(world, tmp_path):
    trainer = trained(world, tmp_path, dict(student_model_name_or_path=str(world/'llama')), save_strategy='steps', save_steps=2)
    ids = [encode_chat(load_tokenizer(world/'llama'), t.prompt, add_generation_prompt=True).input_ids for t in cast.games(tmp_path/'games', 2)]
    for name in ('checkpoint-2', 'checkpoint-4', '.'):
        student = LatentStudent.from_pretrained(tmp_path/name, device='cpu')
        assert student.settings == dict(feedback='projection', output_size=32, K=4) and load_tokenizer(tmp_path/name).chat_template
        with torch.no_grad(): assert torch.equal(latent_reason(student, ids), latent_reason(trainer.kept.eval(), ids)) == (name != 'checkpoint-2')


def test_the_best_checkpoint_is_what_is_left_where_that_is_wanted(world, tmp_path):
    how = dict(max_steps=3, validation_split=.25, eval_strategy='steps', eval_steps=1, save_strategy='steps', save_steps=1, save_total_limit=None, load_best_model_at_end=True)
    trainer = trained(world, tmp_path, metric_for_best_model='loss', greater_is_better=True, **how) # the worst, which is not the last
    worst = max((h for h in trainer.state.log_history if 'eval_loss' in h), key=lambda h: h['eval_loss'])['step']
    assert_close(weights(tmp_path), weights(tmp_path/f'checkpoint-{worst}'), atol=0, rtol=0)


def test_bfloat16(world, plain, tmp_path):
    plain, low = plain[1], losses(trained(world, tmp_path/'low', bf16=True))
    assert 0 < (low/plain - 1).abs().max().max() < .03 and plain.loss.to_numpy() == pytest.approx((plain.ce + plain.preference + plain.direction).to_numpy(), abs=1e-3)
    stored = trained(world, tmp_path/'stored', dict(dtype='bfloat16', teacher_dtype='bfloat16'), max_steps=2)
    assert {p.dtype for p in stored.model.student.parameters()} == {torch.bfloat16} and losses(stored).notna().all().all()
    assert LatentStudent.from_pretrained(tmp_path/'stored', 'bfloat16', 'cpu').settings['K'] == 4


def test_only_the_student_learns_and_the_actor_drops_nothing(world, tmp_path, monkeypatch):
    "Steps of AdamW with weight decay, with training mode switched on by Trainer."
    modes = []
    forward = Distillation.forward
    monkeypatch.setattr(Distillation, 'forward', lambda self, *args, **kw: modes.append((self.student.training, any(m.training for m in self.actor.modules()))) or forward(self, *args, **kw))
    trainer = trained(world, tmp_path, weight_decay=.1, validation_split=.25, eval_strategy='steps', eval_steps=2)
    assert modes.count((True, False)) == 4 and set(modes) == {(True, False), (False, False)}
    actor, before = trainer.model.actor, ModelWithInsertedHiddenState.from_pretrained(world/'actor', device='cpu')
    assert actor.processor.hidden_mha.dropout == .1
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in actor.state_dict().items()) and actor.state_dict().keys() == before.state_dict().keys()
    assert not any(p.requires_grad or p.grad is not None for p in actor.parameters())
    named = ('eos_token_id', 'pad_token_id', 'bos_token_id', 'use_cache')
    assert [getattr(actor.config, k) for k in named] == [getattr(before.config, k) for k in named], "Trainer's business is the student's configuration"
    held = {id(p) for group in trainer.optimizer.param_groups for p in group['params']}
    assert held == {id(p) for p in trainer.model.student.parameters()}
    start = load_file(world/'sender'/'model.safetensors')
    assert all(not torch.equal(v, start[k]) for k, v in load_file(tmp_path/'model.safetensors').items())


def test_gradient_accumulation_does_not_scale_the_loss(world, tmp_path):
    "Two batches of two are one of four: the tokens of the whole step divide the sums, though the conversations differ in length."
    def step(name, **kw):
        trained(world, tmp_path/name, max_steps=1, optim='sgd', learning_rate=1., max_grad_norm=1e9, lr_scheduler_type='constant', warmup_steps=0, **kw)
        return weights(tmp_path/name)
    one, two = step('one'), step('two', per_device_train_batch_size=2, gradient_accumulation_steps=2)
    start = load_file(world/'sender'/'model.safetensors')
    for k in start: assert_close(two[k], one[k], atol=1e-4*(one[k] - start[k]).abs().max().item(), rtol=0)
    assert max((one[k] - start[k]).abs().max() for k in start) > 1e-2


def test_each_weight_and_option_shapes_the_training(world, plain, tmp_path):
    def first(**kw): return losses(trained(world, tmp_path/'_'.join(kw), max_steps=1, **kw)).iloc[0]
    base = plain[1].iloc[0]
    for part, kw in dict(preference=dict(temperature=4.)).items(): assert abs(first(**kw)[part]/base[part] - 1) > 1e-3
    assert abs(first(weight_clip=.2).preference/base.preference - 1) > 1e-3
    found = first(ce_weight=.5, preference_weight=2., direction_weight=0.)
    assert_close(found[list(PARTS)].to_numpy(), base[list(PARTS)].to_numpy(), atol=1e-5, rtol=0)
    assert found.loss == pytest.approx(.5*base.ce + 2*base.preference, abs=1e-3)


def test_the_trainer_reads_prompts_in_the_students_tokens(world):
    games, own, other = cast.games(world/'again', 3, seed=3), load_tokenizer(world/'sender'), load_tokenizer(world/'llama')
    store = MessageStore(world/'store')
    batch = StudentCollator(own.pad_token_id)([StudentDataset(games, own, store, other)[i] for i in range(3)])
    for g, ids, mask in zip(games, batch['prompt_ids'], batch['prompt_mask'].bool()): assert other.decode(ids[mask]) == other.apply_chat_template(g.prompt, tokenize=False, add_generation_prompt=True)


# -- the command

def test_the_originals_flags_and_files(world, tmp_path):
    "Its names on the command line and in YAML; messages from a folder of Parquet, conversations from a JSON file."
    export_messages(MessageStore(world/'store'), tmp_path/'parquet'/'data'/'train-0.parquet')
    save_conversations(cast.games(tmp_path/'games', 12), tmp_path/'talks.json')
    given = dict(student_model_path=world/'llama', teacher_model_path=world/'actor', data_path=tmp_path/'talks.json', hf_hidden_repo=tmp_path/'parquet', K=4, lambda_pref=.5, warmup_ratio=.1,
                 model_max_length=900, per_device_train_batch_size=2, evaluation_strategy='no', num_train_epochs=1, max_steps=2, logging_steps=1, bf16='false', use_cpu='true', output_dir=tmp_path/'student')
    words = [x for k, v in given.items() for x in (f'--{k}', str(v))]
    (tmp_path/'a.yaml').write_text(''.join(f'{k}: {v}\n' for k, v in given.items()))
    kinds = (StudentConfig, Messages, CompressionArguments, GameData)
    plain, yaml = (parse(kinds, argv, '') for argv in (words, [str(tmp_path/'a.yaml')]))
    for a, b in zip(plain[:2], yaml[:2]): assert a == b
    for args in (plain[2], yaml[2]):
        assert (args.preference_weight, args.warmup_steps, args.max_length, args.bf16, args.num_train_epochs, str(getattr(args.eval_strategy, 'value', args.eval_strategy))) == (.5, .1, 900, False, 1, 'no')
    status, out, _ = call(cli.main_compress, *words)
    assert status == 0 and f"LatentStudent(LlamaForCausalLM, 4 states of width 32, feedback 'projection')\nsaved in {tmp_path/'student'}" in out
    log = pd.read_csv(tmp_path/'student'/'log.csv')
    assert set(PARTS) <= set(log.part) and log[log.part == 'preference_weight'].value.eq(.5).all()
    assert call(cli.main_compress, tmp_path/'a.yaml')[0] == 0, 'the same recipe, and nothing left to do'


def test_defaults_are_the_papers():
    args, config = CompressionArguments('nowhere', use_cpu=True), StudentConfig('a', 'b')
    assert dict(ce_weight=1., preference_weight=1., direction_weight=1., learning_rate=5e-5, warmup_steps=.03, temperature=1.).items() <= vars(args).items() and config.K == 8


def test_layers_cannot_be_run_again_under_fsdp_either():
    with pytest.raises(InterlatError, match='gradient_checkpointing would throw away the cache'): CompressionArguments('nowhere', use_cpu=True, fsdp=True, fsdp_config=dict(activation_checkpointing=True))
    assert CompressionArguments('nowhere', use_cpu=True, fsdp=True, fsdp_config=dict(activation_checkpointing=False)).wants_fsdp


def test_what_does_not_fit_is_one_line_and_nothing_is_loaded(world, tmp_path, monkeypatch):
    monkeypatch.setattr('transformers.AutoModelForCausalLM.from_pretrained', lambda *args, **kw: pytest.fail('weights were loaded'))
    def line(found, without=(), **kw):
        words = flags(world, tmp_path/'out', **kw)
        for name in without: i = words.index(f'--{name}'); del words[i:i+2]
        status, out, err = call(cli.main_compress, *words)
        lines = [l for l in err.splitlines() if l.strip()]
        assert status == 2 and out == '' and len(lines) == 1 and lines[0].startswith('error: ') and found in lines[0], err
    line('student_model_name_or_path is missing; give a language model', ['student_model_name_or_path'])
    line('teacher_model_name_or_path is missing; give a checkpoint of an actor', ['teacher_model_name_or_path'])
    line('actor checkpoint not found: ', teacher_model_name_or_path=tmp_path/'nowhere')
    line('this folder holds no actor', teacher_model_name_or_path=world/'sender')
    line('model not found: ', student_model_name_or_path=tmp_path/'nowhere')
    line('the actor reads at most 9 states of a message, found K 10; use fewer', K=10)
    line('K must be 1 or more, found 0', K=0)
    line('temperature must be 1 or more, found 0.5', temperature=.5)
    line('preference_weight must be 0 or more, found -1', lambda_pref=-1)
    line('weight_clip must be above 0, found 0', weight_clip=0)
    line("unknown projector 'mlp'; use ridge, norm", projector='mlp')
    for name in ('gradient_checkpointing', 'activation_checkpointing'): line('gradient_checkpointing would throw away the cache', **{name: 'true'})
    line("a student learns from a sender's messages; give hidden_data_path", ['hidden_data_path'])
    line('no messages in ', hidden_data_path=tmp_path/'nothing')
    line("no games in split 'valid_seen'", split='valid_seen')
    line('12 tasks do not fill one batch of 64', per_device_train_batch_size=64)
    MessageStore(tmp_path/'few', sender='random').append(next(iter(MessageStore(world/'store'))))
    line("11 of 12 tasks have no message in 'few'", hidden_data_path=tmp_path/'few', per_device_train_batch_size=1)
    wide = MessageStore(tmp_path/'wide', sender='random')
    wide.append([LatentMessage(torch.zeros(2, 48), [1, 2], m.text, m.task_id, 'random') for m in MessageStore(world/'store')])
    line('has width 48, wanted width 32', hidden_data_path=tmp_path/'wide')
    line('lora must be a JSON object', lora='[1]')
    line('unknown arguments: --beta 2.0', beta=2.)
    assert not (tmp_path/'out').exists()


def test_another_recipe_is_refused(world, plain):
    folder, _ = plain
    with pytest.raises(InterlatError, match='made with K 4, now 5'): trained(world, folder, dict(K=5))
    with pytest.raises(InterlatError, match='made with temperature 1.0, now 4.0'): trained(world, folder, temperature=4.)


# -- its messages

@pytest.fixture(scope='module')
def folder(world):
    "A student of another family, untrained but for its projection."
    student = new_student(config(world, student_model_name_or_path=str(world/'llama')), cast.games(world/'again', 12), MessageStore(world/'store'), 'cpu')
    return student.save_pretrained(world/'student')


def collecting(world, model, out, split='train', **kw):
    base = dict(model_name_or_path=model, data_path=world/'games', split=split, output_dir=out, device='cpu')
    return ['alfworld', *[str(x) for k, v in {**base, **kw}.items() for x in (f'--{k}', v)]]


def test_collecting_from_a_student_goes_on_after_a_kill(world, folder, tmp_path):
    how = dict(batch_size=1, K=40)
    killed('collect', collecting(world, folder, tmp_path/'k', **how), lambda: len(list((tmp_path/'k').glob('shard-*'))) >= 2)
    assert 2 <= len(MessageStore(tmp_path/'k')) < 12
    status, out, _ = call(cli.main_collect, *collecting(world, folder, tmp_path/'k', **how))
    assert status == 0 and '12 messages in 12 shards' in out and 'K=40' in out
    assert call(cli.main_collect, *collecting(world, folder, tmp_path/'whole', K=40))[0] == 0
    whole = MessageStore(tmp_path/'whole')
    for m in MessageStore(tmp_path/'k'): assert m.h.shape == (40, 32) and torch.allclose(m.h[:9], whole[m.task_id].h[:9], atol=1e-4)


@pytest.mark.parametrize('feedback', ['norm', 'ridge'])
def test_collecting_in_latent_steps_from_a_plain_model(world, tmp_path, feedback):
    status, out, _ = call(cli.main_collect, *collecting(world, world/'untied', tmp_path/'k', K=3, feedback=feedback))
    assert status == 0 and f'K=3, untrained ({feedback})' in out
    model, tok = cast.load_lm(world/'untied', device='cpu')
    t = cast.games(tmp_path/'games', 12)[5]
    with torch.no_grad(): wanted = latent_reason(LatentStudent(model, feedback), [encode_chat(tok, t.prompt, add_generation_prompt=True).input_ids], 3)[0]
    assert_close(MessageStore(tmp_path/'k')[t.task_id].h, wanted, atol=1e-4, rtol=0)
    other = dict(norm='ridge', ridge='norm')[feedback]
    status, _, err = call(cli.main_collect, *collecting(world, world/'untied', tmp_path/'k', K=3, feedback=other))
    assert status == 2 and f'untrained ({feedback})' in err and 'use another folder' in err


def test_collecting_refuses_before_it_loads(world, folder, tmp_path, monkeypatch):
    monkeypatch.setattr('transformers.AutoModelForCausalLM.from_pretrained', lambda *args, **kw: pytest.fail('weights were loaded'))
    for model in (world/'sender', folder):
        status, out, err = call(cli.main_collect, *collecting(world, model, tmp_path/'k', K=0))
        assert status == 2 and err == 'error: K must be 1 or more, found 0\n'
    status, out, err = call(cli.main_collect, *collecting(world, world/'sender', tmp_path/'k', K=3, feedback='mlp'))
    assert status == 2 and err == "error: unknown feedback 'mlp'; use norm, ridge\n"
    assert not (tmp_path/'k').exists()


def playing(world, out, *compressed, **kw):
    base = dict(model_name_or_path=world/'actor', data_path=world/'games', hidden_data_path=world/'unseen', output_dir=out, max_steps=2, max_new_tokens=4, device='cpu')
    return ['alfworld', *[str(x) for k, v in {**base, **kw}.items() for x in (f'--{k}', v)], '--variants', 'latent,no_comm', *(('--compressed', *map(str, compressed)) if compressed else ())]


@pytest.fixture(scope='module')
def unseen(world, folder):
    "Full messages for the games to play, and a student's."
    tasks = [cast.game_task(f) for f in cast.find_games(world/'games', 'valid_unseen')]
    collect(cast.load_lm(world/'sender', device='cpu'), tasks, MessageStore(world/'unseen', sender='random'), max_new_tokens=9, progress=False)
    collect_latents(Agent(LatentStudent.from_pretrained(folder, device='cpu'), load_tokenizer(folder)), tasks, MessageStore(world/'k=4', sender='student, K=4'), progress=False)


def test_evaluation_with_compressed_messages(world, unseen, tmp_path):
    "`same` is the full messages under another name: game by game it ends as `latent` does."
    shutil.copytree(world/'k=4', tmp_path/'k4')
    argv = playing(world, tmp_path/'eval', f"K=4={tmp_path/'k4'}", f"same={world/'unseen'}")
    status, out, _ = call(cli.main_eval, *argv)
    assert status == 0 and 'K=4' in out
    summary, paired = (pd.read_csv(tmp_path/'eval'/f'{name}.csv') for name in ('summary', 'paired'))
    assert summary.condition.tolist() == ['latent', 'no_comm', 'K=4', 'same'] and summary.n.tolist() == [4]*4
    row = paired[paired.condition_b == 'K=4'].iloc[0]
    assert row.condition_a == 'latent' and row.n == 4
    games = pd.read_csv(tmp_path/'eval'/'games.csv').set_index(['condition', 'game_id'])
    played = lambda c: games.loc[c].drop(columns=[c for c in games if 'second' in c or 'time' in c])
    pd.testing.assert_frame_equal(played('same'), played('latent'))
    settings = json.loads((tmp_path/'eval'/'evaluate.json').read_text())
    assert settings['sender of K=4'] == 'student, K=4' and settings['sender'] == 'random'
    before = (tmp_path/'eval'/'games.csv').read_bytes()
    assert call(cli.main_eval, *argv)[0] == 0 and (tmp_path/'eval'/'games.csv').read_bytes() == before
    status, _, err = call(cli.main_eval, *playing(world, tmp_path/'eval', f"K=4={world/'unseen'}"))
    assert status == 2 and 'were made with sender of K=4 student, K=4, now random' in err


def test_evaluation_refuses_compressed_messages(world, unseen, tmp_path):
    def line(*compressed):
        status, out, err = call(cli.main_eval, *playing(world, tmp_path/'eval', *compressed))
        lines = [l for l in err.splitlines() if l.strip() and 'Loading weights' not in l]
        assert status == 2 and len(lines) == 1 and lines[0].startswith('error: ')
        return lines[0]
    assert "compressed takes NAME=FOLDER, found 'folder'" in line('folder')
    assert f"no messages in {tmp_path/'nothing'}" in line(f"K=4={tmp_path/'nothing'}")
    assert "condition 'latent' is built in" in line(f"latent={world/'unseen'}")
    assert "gives condition 'a' a second time" in line(f"a={world/'unseen'}", f"a={world/'store'}")
    assert '4 of 4 tasks have no message' in line(f"K=4={world/'store'}")
    wide = MessageStore(tmp_path/'wide', sender='wide')
    wide.append([LatentMessage(torch.zeros(2, 48), [1, 2], 'go', t, 'wide') for t in MessageStore(world/'unseen').task_ids()])
    assert 'has width 48, wanted width 32' in line(f"wide={tmp_path/'wide'}")
    assert not (tmp_path/'eval'/'games.csv').exists()
