"A training that several processes share, started from Python."
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from warm import warm

from interlat.commands import launch as room
from interlat.games.generate import generate_games
from interlat.agents.collect import collect
from interlat.core.basics import InterlatError
from interlat.games.household import game_task
from interlat.commands.launch import launch, launched_training, opened_actor
from interlat.models.lm import load_lm
from interlat.messages.message import MessageStore

HOW = dict(max_steps=2, use_cpu=True, validation_split=0, save_strategy='no', disable_tqdm=True, adapter_dropout=0, separation_weight=0, pure_latents=1, optim='sgd', learning_rate=1)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('launch')
    sender = load_lm('tiny-qwen2', device='cpu')
    files = generate_games(folder/'games', 6, 'train')
    return folder, collect(sender, [game_task(f) for f in files], MessageStore(folder/'messages', sender='tiny-qwen2'), max_new_tokens=12)


@pytest.fixture(autouse=True)
def programs(tmp_path, monkeypatch):
    "`launch` finds torchrun and interlat-train in a Python that is warm already; the program that is installed is there, too."
    assert Path(room._program('interlat-train')).is_file()
    main = "import sys; sys.argv[0] = 'interlat-train'; from interlat.commands.cli import main_train; main_train()"
    (tmp_path/'bin').mkdir()
    for name, words in dict(python=warm(), **{'interlat-train': [*warm(), '-c', main]}).items():
        (tmp_path/'bin'/name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (tmp_path/'bin'/name).chmod(0o755)
    monkeypatch.setattr(room.sys, 'executable', str(tmp_path/'bin'/'python'))


def test_two_processes_train_what_one_trains(world, monkeypatch, capfd):
    folder, store = world
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    data = dict(data_path=folder/'games', split='train')
    one, alone = opened_actor(launched_training(folder/'one', 'tiny-qwen2', data, store, 1, per_device_train_batch_size=4, **HOW), device='cpu')
    two, shared = opened_actor(launched_training(folder/'two', 'tiny-qwen2', data, store, 2, per_device_train_batch_size=2, **HOW), device='cpu')
    assert capfd.readouterr().out.count('saved in') == 2
    pd.testing.assert_frame_equal(*(log[log.part == 'task'].reset_index(drop=True) for log in (alone, shared)), atol=1e-4)
    start = dict(load_lm('tiny-qwen2', device='cpu').model.named_parameters())
    moved = max((p - start[n]).abs().max().item() for n, p in one.model.base_model.named_parameters())
    assert moved > 1e-2
    for a, b in zip(one.model.parameters(), two.model.parameters()): assert_close(a, b, atol=1e-4*moved, rtol=0)


def test_what_the_program_refuses_is_refused_here(tmp_path, monkeypatch, capfd):
    with pytest.raises(InterlatError, match='arguments are required: --model_name_or_path'): launch('interlat-train', 'alfworld', '--output_dir', str(tmp_path), processes=2)


def test_a_process_that_dies_is_an_error(tmp_path, monkeypatch, capfd):
    program = tmp_path/'dies'
    program.write_text('#!/bin/sh\necho last words; exit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(room, '_program', lambda command: str(program))
    with pytest.raises(ChildProcessError, match='interlat-train in 2 processes ended with status 1'): launch('interlat-train', processes=2)
    assert 'last words' in capfd.readouterr().out
