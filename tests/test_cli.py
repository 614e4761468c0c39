"The commands, from games to tables, and one clear line with exit status 2 for bad input."
import json, socket, subprocess, sys

import cast
import pandas as pd
import pytest
import torch
from browser import draws
from notebooks import ROOT, write_experiment
from warm import warm

from interlat.commands import cli
from interlat.runs import cli as run_cli
from interlat.messages.message import LatentMessage, MessageStore


def call(main, monkeypatch, capsys, *argv):
    "Run a command in this process: its exit status, and what it wrote."
    monkeypatch.setattr(sys, 'argv', ['interlat', *map(str, argv)])
    with pytest.raises(SystemExit) as stop: main()
    return stop.value.code, *capsys.readouterr()


@pytest.fixture
def refused(monkeypatch, capsys):
    "Run a command that must refuse, and give back its one line."
    def run(main, *argv):
        status, out, err = call(main, monkeypatch, capsys, *argv)
        lines = [l for l in err.splitlines() if l.strip() and 'Loading weights' not in l]  # transformers' bar
        assert status == 2 and out == '' and len(lines) == 1 and lines[0].startswith('error: ')
        return lines[0]
    return run


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Games of two splits, a sender in a folder, and an actor's checkpoint of another width."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 6)
    cast.generate_games(folder/'games', 6, 'valid_unseen', seed=3)
    tokenizer = cast.tokenizer(games)
    for name, model in dict(sender=cast.lm(tokenizer), wide=cast.lm(tokenizer, hidden_size=64)).items():
        model.save_pretrained(folder/name)
        tokenizer.save_pretrained(folder/name)
    cast.actor(cast.lm(tokenizer), tokenizer).save_pretrained(folder/'actor')
    tokenizer.save_pretrained(folder/'actor')
    return folder


@pytest.fixture(scope='module')
def messages(world):
    "Random messages of width 32 for the games to evaluate."
    store = MessageStore(world/'messages', sender='the sender')
    files = cast.find_games(world/'games', 'valid_unseen')
    store.append([LatentMessage(torch.randn(3, 32, generator=torch.Generator().manual_seed(i)), [1, 2, 3], 'go', cast.game_id(f), 'the sender')
                  for i, f in enumerate(files)])
    return store.path


def test_the_whole_way(world, tmp_path, monkeypatch, capsys):
    def run(main, *argv):
        status, out, _ = call(main, monkeypatch, capsys, *argv)
        assert status == 0
        return out
    data = ['--model_name_or_path', world/'sender', '--data_path', world/'games']
    for split in ('train', 'valid_unseen'):
        collect = ['alfworld', *data, '--split', split, '--output_dir', tmp_path/split, '--max_new_tokens', '8', '--device', 'cpu']
        assert '6 messages in 1 shards' in run(cli.main_collect, *collect)
    assert '6 messages in 1 shards' in run(cli.main_collect, *collect), 'a second run has nothing to do'
    small = ['--per_device_train_batch_size', '2', '--max_steps', '1', '--logging_steps', '1', '--use_cpu', 'true']
    run(cli.main_train, *data, '--hidden_data_path', tmp_path/'train', '--output_dir', tmp_path/'actor', *small)
    run(cli.main_train, *data, '--channel', 'none', '--output_dir', tmp_path/'blind', *small)
    assert 'task' in set(pd.read_csv(tmp_path/'actor'/'log.csv').part)
    shown = run(cli.main_eval, 'alfworld', '--model_name_or_path', tmp_path/'actor', '--no_cot', tmp_path/'blind', '--data_path', world/'games',
                '--hidden_data_path', tmp_path/'valid_unseen', '--output_dir', tmp_path/'eval', '--max_steps', '2', '--max_new_tokens', '4', '--device', 'cpu')
    assert 'presence: ' in shown and 'content: ' in shown
    assert 'could show a difference' in shown
    summary = pd.read_csv(tmp_path/'eval'/'summary.csv')
    assert summary.condition.tolist() == ['latent', 'text', 'no_comm', 'cross_task', 'no_cot'] and set(summary.n) == {6}
    assert {p.name for p in (tmp_path/'eval').iterdir()} >= {'games.csv', 'paired.csv', 'effects.csv', 'figures'}
    figures = {'success_by_condition', 'effects_by_type'}
    assert {p.name for p in (tmp_path/'eval'/'figures').glob('*') if p.suffix != '.js'} == {f'{f}.{kind}' for f in figures for kind in ('json', 'html', *(['png'] if draws() else []))}
    replay = ['--output_dir', tmp_path/'eval', '--data_path', world/'games', '--engine', 'native']
    assert '30 of 30 games end as recorded (' in run(cli.main_replay, *replay)
    games = tmp_path/'eval'/'games.csv'
    games.write_text(games.read_text().replace(',False,2,', ',True,2,', 1))
    (tmp_path/'eval'/'replay.csv').unlink()
    status, _, err = call(cli.main_replay, monkeypatch, capsys, *replay)
    assert status == 2 and '1 of 30 games do not end as recorded' in err


def test_eval_as_the_paper_has_it(world, messages, tmp_path, monkeypatch, capsys):
    "Commas, other names of flags, seeds, actors of their own, and games from $ALFWORLD_DATA."
    monkeypatch.setenv('ALFWORLD_DATA', str(world/'games'))
    flags = ['alfworld', '--model_name_or_path', world/'actor', '--messages', messages, '--cot_full', world/'actor', '--split', 'valid_unseen',
             '--variants', 'latent,zero_message,white_noise', 'truncate_0.5,cot_full', '--num_games', '4', '--batch_size', '3', '--seeds', '0,1',
             '--max_steps', '2', '--max_new_tokens', '4', '--output_dir', tmp_path/'eval', '--device', 'cpu']
    assert call(cli.main_eval, monkeypatch, capsys, *flags)[0] == 0
    rows = pd.read_csv(tmp_path/'eval'/'games.csv')
    assert rows.groupby('condition').size().to_dict() == dict(latent=4, zero_message=4, white_noise=8, cot_full=4, **{'truncate_0.5': 4})
    before = (tmp_path/'eval'/'games.csv').read_bytes()
    assert call(cli.main_eval, monkeypatch, capsys, *flags)[0] == 0 and (tmp_path/'eval'/'games.csv').read_bytes() == before


def test_arguments_come_from_a_file_too(tmp_path, monkeypatch, capsys):
    (tmp_path/'a.yaml').write_text(f'out: {tmp_path}/games\nn: 2\nsplit: valid_seen\n')
    assert call(cli.main_games, monkeypatch, capsys, tmp_path/'a.yaml')[0] == 0
    assert len(cast.find_games(tmp_path/'games', 'valid_seen')) == 2


def test_training_takes_the_original_codes_flags(world, tmp_path, monkeypatch, capsys):
    "On the command line and in a file."
    from interlat.core.arguments import parse
    from interlat.agents.new_actor import ActorConfig
    from interlat.training.settings import ActorArguments
    from interlat.commands.sources import SOURCES
    from interlat.commands.train import Messages
    given = dict(model_name_or_path='m', data_path='d.json', hidden_data_path='h', output_dir=str(tmp_path), num_train_epochs=3, plan_similarity_weight=.3,
                 random_contrast_weight=.05, prepended_length=900, warmup_ratio=.1, evaluation_strategy='no', model_max_length=512, bf16=False)
    (tmp_path/'a.json').write_text(json.dumps(given))
    (tmp_path/'a.yaml').write_text(''.join(f'{k}: {v}\n' for k, v in given.items()))
    for argv in ([f'--{k}={v}' for k, v in given.items()], [str(tmp_path/'a.json')], [str(tmp_path/'a.yaml')]):
        model, messages, args, data = parse((ActorConfig, Messages, ActorArguments), argv, '', SOURCES, 'alfworld')
        assert (model.prepended_length, messages.hidden_data_path, args.alignment_weight, args.alignment_weight_start) == (900, 'h', .3, .1)
        assert (args.separation_weight, args.separation_weight_start, args.warmup_steps, args.max_length, args.num_train_epochs) == (.05, .05, .1, 512, 3)
    model, messages, args = parse((ActorConfig, Messages, ActorArguments), ['--model_name_or_path=m', f'--output_dir={tmp_path}'], '')
    paper = dict(learning_rate=1e-5, warmup_steps=.03, per_device_train_batch_size=16, separation_weight=1., separation_weight_start=.1, alignment_weight=.2,
                 alignment_weight_start=.1, validation_split=.05, kl_direction='reverse', pure_latents=0., negatives='any', adaptive_weights=False)
    assert {k: getattr(args, k) for k in paper} == paper and str(args.optim).split('.')[-1].lower().startswith('adamw')


def test_games_refuses(tmp_path, refused):
    assert "unknown split 'test'" in refused(cli.main_games, '--out', tmp_path, '--n', '1', '--split', 'test')
    assert "unknown size 'huge'" in refused(cli.main_games, '--out', tmp_path, '--n', '1', '--size', 'huge')
    assert 'n must be' in refused(cli.main_games, '--out', tmp_path, '--n', '0')
    assert 'required: --n' in refused(cli.main_games, '--out', tmp_path)
    (tmp_path/'a file').write_text('')
    assert 'cannot make the folder' in refused(cli.main_games, '--out', tmp_path/'a file', '--n', '1')
    (tmp_path/'a.yaml').write_text('out: x\nn: 1\ncount: 3\n')
    assert 'count' in refused(cli.main_games, tmp_path/'a.yaml')


def test_collect_refuses(world, tmp_path, refused):
    def line(model='sender', data='games', out=tmp_path/'store', *more):
        return refused(cli.main_collect, 'alfworld', '--model_name_or_path', world/model, '--data_path', world/data, '--output_dir', out, *more)
    assert 'folder of games not found' in line(data='nowhere')
    assert "no games in split 'valid_seen'" in line('sender', 'games', tmp_path/'store', '--split', 'valid_seen')
    assert 'nowhere' in line(model='nowhere')
    MessageStore(tmp_path/'foreign', sender='another model').append(LatentMessage(torch.randn(2, 32), [1, 2], 'go', 'g', 'another model'))
    assert 'another model' in line(out=tmp_path/'foreign')
    small = 'sender', 'games', tmp_path/'store'
    assert "no device 'cuda:99'" in line(*small, '--device', 'cuda:99')
    assert "unknown dtype 'int4'" in line(*small, '--dtype', 'int4')
    assert 'max_new_tokens must be 1 or more, found 0' in line(*small, '--max_new_tokens', '0', '--device', 'cpu')
    assert 'temperature must be 0 or more, found -1' in line(*small, '--temperature', '-1', '--device', 'cpu')
    assert not (tmp_path/'store').exists()


def test_train_refuses(world, messages, tmp_path, refused):
    def line(*more):
        return refused(cli.main_train, '--model_name_or_path', world/'sender', '--data_path', world/'games', '--output_dir', tmp_path/'actor', *more)
    assert 'no messages in' in line('--hidden_data_path', tmp_path/'nothing')
    assert 'needs messages' in line()
    assert "unknown channel 'smoke'" in line('--channel', 'smoke')
    assert 'seed must be 0 or more, found -1' in line('--seed', '-1')
    assert 'batch_size must be 1 or more, found 0' in line('--per_device_train_batch_size', '0')
    assert 'pure_latents must be between 0 and 1, found 2' in line('--pure_latents', '2')
    assert 'At most one of fp16 and bf16' in line('--fp16', 'true', '--bf16', 'true', '--use_cpu', 'true')
    assert "the file" in line('--output_dir', world/'actor'/'config.json')
    assert "tasks have no message in 'messages'" in line('--hidden_data_path', messages, '--per_device_train_batch_size', '2')


def test_eval_refuses(world, messages, tmp_path, refused):
    def line(*more, model='actor', store=messages):
        return refused(cli.main_eval, 'alfworld', '--model_name_or_path', world/model, '--data_path', world/'games', '--hidden_data_path', store,
                       '--output_dir', tmp_path/'eval', '--device', 'cpu', *more)
    assert "unknown condition 'smoke'" in line('--variants', 'latent', 'smoke') and "unknown condition 'smoke'" in line('--variants', 'latent,smoke')
    assert 'condition no_cot needs an actor of its own; give its checkpoint with --no_cot' in line('--variants', 'latent,no_cot')
    assert 'condition cross_family needs the other' in line('--cross_family', world/'actor')
    assert "seeds must be non-negative integers, found 'x'" in line('--seeds', '0,x')
    assert "no games in split 'valid_seen'" in line('--split', 'valid_seen')
    assert 'the sender' in line('--sender', 'somebody else')
    assert 'no messages in' in line(store=tmp_path/'nothing')
    assert 'not found' in line(model='nowhere')
    (tmp_path/'broken').mkdir()
    (tmp_path/'broken'/'interlat_config.json').write_text('{')
    assert 'interlat_config.json is not JSON' in refused(cli.main_eval, 'alfworld', '--model_name_or_path', tmp_path/'broken', '--data_path', world/'games',
                                                         '--output_dir', tmp_path/'eval', '--hidden_data_path', messages)
    wide = MessageStore(tmp_path/'wide', sender='the sender')
    wide.append([LatentMessage(torch.randn(2, 64), [1, 2], 'go', task_id, 'the sender') for task_id in MessageStore(messages).task_ids()])
    assert 'width 64' in line(store=tmp_path/'wide')
    assert not (tmp_path/'eval'/'games.csv').exists()


def receiver(*argv):
    "interlat-receive in a process of its own, and the address that it names."
    code = "import sys; sys.argv[0] = 'interlat-receive'; from interlat.commands.cli import main_receive; main_receive()"
    p = subprocess.Popen([*warm(), '-c', code, *map(str, argv)], env={'PYTHONPATH': str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return p, p.stdout.readline().removeprefix('listening at ').strip()


def test_send_and_receive_fill_a_store_that_eval_reads(world, messages, tmp_path, monkeypatch, capsys):
    "Over a socket, twice; in between, somebody who sends something else."
    ids = tmp_path/'ids.txt'
    ids.write_text('\n'.join(MessageStore(messages).task_ids()))
    receive = ['--at', '127.0.0.1:0', '--output_dir', tmp_path/'store', '--sender', 'the sender', '--width', 32, '--task_ids', ids, '--timeout', 60]
    for k, wanted in enumerate(('6 messages received, 0 were there already, 1 refused, 0 senders lost', '')):
        p, address = receiver(*receive, *(['--strict'] if k else []))
        host, port = address.split(':')
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b'GET / HTTP/1.1\r\n\r\n')
            assert s.recv(1) == b'!'
        status, out, err = call(cli.main_send, monkeypatch, capsys, '--messages', messages, '--to', address, '--codec', 'bfloat16', '--words', 'false')
        assert (status, out) == (0, f'6 messages sent to {address}\n' if not k else f'0 messages sent to {address}, 6 were there already\n')
        out, err = p.communicate(timeout=60)
        refusal, *rest = err.strip().splitlines()
        assert refusal.startswith('refused or lost: 127.0.0.1:') and "begins with b'GET '" in refusal
        if k: assert p.returncode == 2 and rest == ['error: 1 packets were refused and 0 senders lost; 0 messages were received']
        else: assert p.returncode == 0 and out.startswith(wanted) and '6 messages in 6 shards' in out
    got, sent = MessageStore(tmp_path/'store'), MessageStore(messages)
    for t in sent.task_ids(): assert torch.equal(got[t].h, sent[t].h.bfloat16()) and got[t].text == ''
    eval_ = ['alfworld', '--model_name_or_path', world/'actor', '--data_path', world/'games', '--messages', got.path, '--split', 'valid_unseen', '--variants', 'latent,no_comm',
             '--max_steps', '1', '--max_new_tokens', '2', '--output_dir', tmp_path/'eval', '--device', 'cpu']
    assert call(cli.main_eval, monkeypatch, capsys, *eval_)[0] == 0 and len(pd.read_csv(tmp_path/'eval'/'games.csv')) == 12


def test_send_and_receive_refuse(messages, tmp_path, refused, monkeypatch, capsys):
    assert 'no messages in' in refused(cli.main_send, '--messages', tmp_path/'none', '--to', tmp_path/'post')
    assert 'nobody listens at 127.0.0.1:1 ' in refused(cli.main_send, '--messages', messages, '--to', '127.0.0.1:1', '--timeout', '0.1')
    assert 'stays on this machine' in refused(cli.main_send, '--messages', messages, '--to', '192.0.2.1:80')
    assert "unknown codec 'int3'; use float32" in refused(cli.main_send, '--messages', messages, '--to', tmp_path/'post', '--codec', 'int3')
    assert 'timeout must be 0 or more' in refused(cli.main_receive, '--at', tmp_path/'post', '--output_dir', tmp_path/'s', '--timeout', '-1')
    assert 'list of tasks not found' in refused(cli.main_receive, '--at', tmp_path/'post', '--output_dir', tmp_path/'s', '--task_ids', tmp_path/'none')
    assert call(cli.main_send, monkeypatch, capsys, '--messages', messages, '--to', tmp_path/'post', '--codec', 'int8')[0] == 0
    status, out, err = call(cli.main_receive, monkeypatch, capsys, '--at', tmp_path/'post', '--output_dir', tmp_path/'s', '--width', '31')
    assert status == 2 and err.count('refused or lost: 0-0000000') == 6 and err.splitlines()[-1].startswith('error: no message came to ') and '6 packets were refused' in err
    p, address = receiver('--at', '127.0.0.1:0', '--output_dir', tmp_path/'s', '--max_length', '2')
    assert '6 of 6 messages were not taken (0 were); the first was refused by 127.0.0.1:' in refused(cli.main_send, '--messages', messages, '--to', address)
    assert p.wait(60) == 2 and 'no message came to' in p.communicate()[1]
    status, out, err = call(cli.main_receive, monkeypatch, capsys, '--at', tmp_path/'post', '--output_dir', tmp_path/'s', '--timeout', '0.1')
    assert status == 2 and 'no sender in' in err and 'none that is done' in err


def test_run_refuses(tmp_path, refused):
    assert 'notebook not found' in refused(run_cli.main_run, tmp_path/'x.ipynb', '--out', tmp_path/'run')
    assert 'is not a readable notebook' in refused(run_cli.main_run, tmp_path)
    assert 'parameter file not found' in refused(run_cli.main_run, tmp_path/'x.ipynb', '-f', tmp_path/'p.yaml')
    write_experiment(tmp_path/'x.ipynb', 'pass', "n_games = 3\nout = 'run'")
    assert 'has no parameter n_game; it has n_games, out' in refused(run_cli.main_run, tmp_path/'x.ipynb', '-p', 'n_game', '3', '--out', tmp_path/'run')
    assert 'n_games takes int values' in refused(run_cli.main_run, tmp_path/'x.ipynb', '-p', 'n_games', 'many', '--out', tmp_path/'run')
    assert 'has no parameter figures' in refused(run_cli.main_run, tmp_path/'x.ipynb', '--out', tmp_path/'run', '--figures', tmp_path)
    assert not (tmp_path/'run').exists()


def test_the_process_ends_with_status_2(tmp_path):
    code = "import sys; sys.argv[0] = 'interlat-collect'; from interlat.commands.cli import main_collect; main_collect()"
    done = subprocess.run([*warm(), '-c', code, 'chess'], cwd=tmp_path, env={'PYTHONPATH': str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.strip() == 'error: the first word must be alfworld or math or custom, found chess; see interlat-collect --help'
