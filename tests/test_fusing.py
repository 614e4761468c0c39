"`interlat-fuse`: projectors trained between two models that stay as they are, killed and started again, in the released form."
import os, signal, subprocess, time

import cast, pandas as pd, pytest, torch
from cast import call
from notebooks import ROOT
from torch.testing import assert_close
from warm import warm

from interlat.core.basics import *
from interlat.models.lm import *
from interlat.agents.projector import *
from interlat.channels.c2c import *
from interlat.channels.fusing import *
from interlat.commands import cli
from interlat.commands.sources import GameData
from interlat.commands.train import fuse_from

COMMAND = "import sys; sys.argv[0] = 'interlat-fuse'; from interlat.commands.cli import main_fuse; main_fuse()"
GATES = ('key_gate_logit', 'value_gate_logit')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Twelve games, and models of two families, widths, depths and vocabularies; and a third of the first's vocabulary."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 12)
    tok, other = cast.tokenizer(games), cast.tokenizer(games, 'llama')
    quiet = dict(initializer_range=.1)
    for name, model, words in (('qwen2', cast.lm(tok, num_hidden_layers=3, **quiet), tok), ('llama', cast.lm(other, 'tiny-llama', hidden_size=24, **quiet), other), ('small', cast.lm(tok, hidden_size=16, **quiet), tok)):
        model.save_pretrained(folder/name)
        words.save_pretrained(folder/name)
    return folder


def config(world, sender='qwen2', actor='llama', **kw):
    return FusionConfig(**{**dict(sender_model_name_or_path=str(world/sender), actor_model_name_or_path=str(world/actor), align='first', hidden=24, intermediate=24), **kw})
def settings(out, **kw):
    base = dict(max_steps=6, use_cpu=True, per_device_train_batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2, logging_steps=1, disable_tqdm=True, validation_split=0., save_strategy='no')
    return FusionArguments(str(out), **{**base, **kw})
def trained(world, out, pair=None, **kw): return fuse_from(config(world, **(pair or {})), GameData(str(world/'games')), settings(out, **kw))
def weights(folder): return {k: v.clone() for k, v in Projectors.from_pretrained(folder).state_dict().items()}
def curve(folder): return pd.read_csv(folder/'log.csv').pivot_table(index='step', columns='part', values='value')


@pytest.mark.parametrize('pair', [dict(), dict(sender='llama', actor='qwen2', align='longest', mapping='k_nearest'), dict(actor='small', align=''), dict(sender='small', actor='small', align='')], ids=['aligned', 'longest', 'one vocabulary', 'itself'])
def test_training_lowers_the_loss_moves_the_gates_and_nothing_else(world, tmp_path, pair):
    "Any families, widths and depths; at first and with gates that are hard the message is none, exactly."
    made = new_fusion(c := config(world, **pair), 'cpu', seed=3)
    before = [{k: v.clone() for k, v in a.model.state_dict().items()} for a in made[1:]]
    tasks = GameData(str(world/'games')).tasks()
    trainer = fusion_trainer(*made, tasks, settings(tmp_path, max_steps=12, validation_split=.25, eval_strategy='no'))
    first = trainer.evaluate()
    assert first['eval_loss'] == first['eval_loss_none']
    trainer.train()
    last, log = trainer.evaluate(), pd.DataFrame([h for h in trainer.state.log_history if 'ce' in h]).set_index('step')
    assert last['eval_loss'] < last['eval_loss_none'] - .1 and last['eval_loss_none'] == first['eval_loss_none'] and log.ce[12] < log.ce[1] - .1
    assert all(abs(getattr(p, g)) > 1e-3 for p in trainer.kept for g in GATES) and log.gates_open[12] > 0
    assert list(log.gate_temperature.round(6)) == [round(gate_temperature(s, 12), 6) for s in range(12)]
    assert all(torch.equal(v, old[k]) for a, old in zip(made[1:], before) for k, v in a.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for a in made[1:] for m in a.model.modules())
    trainer.save_kept(tmp_path/'kept')
    channel, chats = C2C.from_pretrained(tmp_path/'kept', made[2].tokenizer if c.align else None), [t.turns[:1] for t in tasks[:3]]
    if not c.align: chats = [made[0].pair(t, made[2]) for t in chats]
    heard = channel.receive(made[2], chats, channel.send(made[1], chats), 4)
    for i in range(3): # trained as it is used: in a batch as alone
        one = channel.receive(made[2], chats[i:i+1], channel.send(made[1], chats[i:i+1]), 4)
        assert_close(one.logits, heard.logits[i:i+1], atol=1e-4, rtol=0)
        assert one.token_ids == heard.token_ids[i:i+1]


def test_killed_and_started_again_it_ends_with_the_same_weights(world, tmp_path):
    how = dict(max_steps=8, validation_split=.25, eval_strategy='steps', eval_steps=4, save_strategy='steps', save_steps=1)
    words = [str(x) for k, v in {**vars(config(world)), **how, **dict(data_path=world/'games', output_dir=tmp_path/'run', use_cpu='true', per_device_train_batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-2, logging_steps=1,
             disable_tqdm='true')}.items() if v is not None and v != '' for x in (f'--{k}', v)]
    process = subprocess.Popen([*warm(), '-c', COMMAND, *words], env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path/'run'/'checkpoint-3').exists(): time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path/'run'/'projector_0.pt').exists()
    status, out, err = call(cli.main_fuse, *words)
    assert status == 0 and out.splitlines()[-1] == f"2 projectors saved in {tmp_path/'run'}", err
    trained(world, tmp_path/'whole', **{**how, 'save_strategy': 'no'})
    assert_close(weights(tmp_path/'run'), weights(tmp_path/'whole'), atol=1e-6, rtol=0)
    pd.testing.assert_frame_equal(curve(tmp_path/'run').drop(columns='grad_norm'), curve(tmp_path/'whole').drop(columns='grad_norm'), atol=1e-5, rtol=0)
    status, _, err = call(cli.main_fuse, *words, '--gate_last', '.5')
    assert status == 2 and 'was made with gate_last 0.001, now 0.5' in err


def test_a_step_is_one_step_however_it_is_cut(world, tmp_path):
    "Four conversations at once, or two twice; without dropout, and with gates that are too soft for their noise to matter."
    curves = []
    for size, times in ((4, 1), (2, 2)):
        trained(world, tmp_path/str(size), dict(dropout=0.), per_device_train_batch_size=size, gradient_accumulation_steps=times, gate_first=1e6, gate_last=1e6, optim='sgd', learning_rate=.1, max_steps=3)
        curves.append(curve(tmp_path/str(size))['ce'])
    pd.testing.assert_series_equal(*curves, atol=1e-4, rtol=0)
    assert_close(weights(tmp_path/'4'), weights(tmp_path/'2'), atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused(world, tmp_path):
    for match, bad in {'give align first or longest': lambda: trained(world, tmp_path/'a', dict(align='')), 'do not fill one batch of 16': lambda: trained(world, tmp_path/'a', per_device_train_batch_size=16),
                       'more than max_length 9': lambda: trained(world, tmp_path/'a', max_length=9), 'leave --fsdp': lambda: settings(tmp_path/'a', deepspeed={}, fsdp=True)}.items():
        with pytest.raises(InterlatError, match=match): bad()
