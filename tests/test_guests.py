"Models that a user may bring, of kinds that once went wrong, on their whole way by the commands: messages, training, games."
import logging

import pandas as pd
import pytest

from interlat.agents.new_actor import load_actor
from interlat.commands.cli import collect, evaluate, train
from interlat.evaluation.rollout import rollout
from interlat.games.find import find_games
from interlat.games.generate import generate_games
from interlat.games.household import game_task
from interlat.messages.message import MessageStore
from interlat.models.families import FAMILIES, family_lm
from interlat.models.lm import Agent, load_tokenizer

GUESTS = ('gemma4_text', 'nemotron', 'mamba', 'llama4_text') # per-layer inputs; layers that keep `packed` to themselves; no keys; `base_model` with its head


@pytest.fixture(scope='module')
def games(tmp_path_factory):
    generate_games(folder := tmp_path_factory.mktemp('games'), 3, 'train')
    return folder


@pytest.mark.parametrize('family', GUESTS)
def test_a_guest_goes_the_whole_way(family, games, tmp_path, caplog):
    if family not in FAMILIES: pytest.skip(f'this transformers has no {family}')
    caplog.set_level(logging.ERROR, 'interlat') # that some ways are slow
    tokenizer = load_tokenizer('tiny-qwen2')
    lm = family_lm(family, vocab=len(tokenizer))
    for config in (lm.config, lm.config.get_text_config(decoder=True)): config.max_position_embeddings = 1024
    Agent(lm, tokenizer).save_pretrained(tmp_path/'lm')
    data = ['alfworld', '--data_path', str(games), '--split', 'train', '--device', 'cpu']
    collect([*data, '--model_name_or_path', f'{tmp_path}/lm', '--output_dir', f'{tmp_path}/store', '--max_new_tokens', '6'])
    train([*data[:-2], '--model_name_or_path', f'{tmp_path}/lm', '--output_dir', f'{tmp_path}/actor', '--hidden_data_path', f'{tmp_path}/store', '--max_steps', '2',
           '--per_device_train_batch_size', '2', '--validation_split', '0', '--num_heads', '4', '--use_cpu', 'true', '--save_strategy', 'no', '--report_to', 'none', '--bf16', 'false'])
    evaluate([*data, '--model_name_or_path', f'{tmp_path}/actor', '--hidden_data_path', f'{tmp_path}/store', '--output_dir', f'{tmp_path}/eval',
              '--variants', 'latent,no_comm', '--max_steps', '2', '--max_new_tokens', '5'])
    rows = pd.read_csv(tmp_path/'eval'/'games.csv', keep_default_na=False)
    assert len(rows) == 6 and not rows.error.any() and set(rows.condition) == {'latent', 'no_comm'}
    played_as_the_obvious_way(load_actor(tmp_path/'actor', device='cpu'), games, MessageStore(tmp_path/'store'))


def played_as_the_obvious_way(actor, games, store):
    "Word for word: on the cache, without it, and each row read alone from its first token for every token."
    tasks = [game_task(f, 'task') for f in find_games(games, 'train')]
    how = dict(messages=[store[t.task_id] for t in tasks], max_new_tokens=5, max_steps=2, progress=False)
    episodes = rollout(actor, tasks, **how)
    assert all(len(e.outputs) == 2 for e in episodes) and episodes == rollout(actor, tasks, **how, cache=False)
    actor.model.door.found.update({'rows': ('alone', ''), 'reading on': ('again', '')})
    assert episodes == rollout(actor, tasks, **how)
