"Prompt, message and answer are held against the context window before any work, by every command; a model that states no window takes all."
import json, shutil

import pandas as pd
import pytest
import torch

import cast
from interlat.commands import cli
from interlat.commands.sources import MathData
from interlat.maths.mathdata import save_problems
from interlat.maths.generate import generate_problems
from interlat.messages.message import LatentMessage, MessageStore
from interlat.models.chat import encode_chat


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Games and problems, a sender and an actor in folders, and messages of unequal lengths for all of them."
    folder = tmp_path_factory.mktemp('world')
    games = cast.games(folder/'games', 6)
    cast.generate_games(folder/'games', 4, 'valid_unseen', seed=3)
    save_problems(generate_problems(3, 'test'), folder/'problems', 'test')
    tokenizer = cast.tokenizer([*games, *cast.questions(3)])
    cast.lm(tokenizer).save_pretrained(folder/'sender')
    cast.actor(cast.lm(tokenizer), tokenizer).save_pretrained(folder/'actor')
    for name in ('sender', 'actor'): tokenizer.save_pretrained(folder/name)
    everything = dict(train=games, valid_unseen=[cast.game_task(f) for f in cast.find_games(folder/'games', 'valid_unseen')], maths=MathData(data_path=str(folder/'problems'), split='test').tasks())
    for name, tasks in everything.items():
        MessageStore(folder/name, sender='the sender').append(
            [LatentMessage(torch.randn(5 + i, 32, generator=torch.Generator().manual_seed(i)), [9]*(5 + i), 'go', t.task_id, 'the sender') for i, t in enumerate(tasks)])
    return folder, tokenizer, everything


def longest(world, name, turns):
    "Tokens of the longest of these conversations."
    return max(len(encode_chat(world[1], turns(t), add_generation_prompt=True)) for t in world[2][name])


def windowed(world, name, window, out):
    "A copy of a model with another window; 0: it states none."
    shutil.copytree(world[0]/name, out/f'{name}-{window}', dirs_exist_ok=True)
    path = out/f'{name}-{window}'/'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(max_position_embeddings=window)))
    return path.parent


def fits(main, *argv):
    status, out, err = cast.call(main, *argv)
    assert not status, err


def refused(main, *argv):
    "The one line of a command that must refuse."
    status, out, err = cast.call(main, *argv)
    lines = [l for l in err.splitlines() if l.strip() and 'Loading weights' not in l] # transformers' bar
    assert status == 2 and len(lines) == 1 and 'does not fit into the context window' in lines[0], (status, lines)
    return lines[0]


def test_collection(world, tmp_path):
    prompt = longest(world, 'train', lambda t: t.prompt)
    def words(window, out): return ('alfworld', '--model_name_or_path', windowed(world, 'sender', window, tmp_path), '--data_path', world[0]/'games',
                                    '--output_dir', tmp_path/out, '--device', 'cpu')
    plan = '--max_new_tokens', '6'
    assert f'prompt {prompt} + message 0 + answer 6 = {prompt + 6} tokens, the window is {prompt + 5};' in refused(cli.main_collect, *words(prompt + 5, 'short'), *plan)
    assert f'prompt {prompt} + message 4 + answer 0 = {prompt + 4} tokens' in refused(cli.main_collect, *words(prompt + 3, 'short'), '--K', '4')
    assert not (tmp_path/'short').exists()
    for window in (prompt + 6, 0): fits(cli.main_collect, *words(window, f'plans{window}'), *plan)
    for window in (prompt + 4, 0): fits(cli.main_collect, *words(window, f'latents{window}'), '--K', '4')
    assert [m.token_ids for m in MessageStore(tmp_path/f'plans{prompt+6}')] == [m.token_ids for m in MessageStore(tmp_path/'plans0')]


def test_training(world, tmp_path):
    conversation = max(len(encode_chat(world[1], t.turns)) for t in world[2]['train'])
    def words(window, *more): return ('alfworld', '--model_name_or_path', windowed(world, 'sender', window, tmp_path), '--data_path', world[0]/'games', '--use_cpu', 'true',
                                      '--per_device_train_batch_size', '2', '--max_steps', '1', '--validation_split', '0', '--output_dir', tmp_path/f'actor{window}', *more)
    whole, messages = conversation + 10 + 2, ('--hidden_data_path', world[0]/'train') # the longest message, and its marks
    said = refused(cli.main_train, *words(whole - 1, *messages))
    assert said.startswith('error: conversation ') and f'+ message 12 + answer ' in said and f'= {whole} tokens, the window is {whole - 1};' in said
    assert f'= {conversation} tokens' in refused(cli.main_train, *words(conversation - 1, '--channel', 'none'))
    assert not (tmp_path/f'actor{whole-1}'/'recipe.json').exists()
    for window in (whole, 0): fits(cli.main_train, *words(window, *messages))
    fits(cli.main_train, *words(conversation, '--channel', 'none'))


def test_a_student(world, tmp_path):
    prompt = longest(world, 'train', lambda t: t.prompt)
    def words(student, teacher, out): return ('alfworld', '--student_model_name_or_path', windowed(world, 'sender', student, tmp_path), '--teacher_model_name_or_path',
                                              windowed(world, 'actor', teacher, tmp_path), '--data_path', world[0]/'games', '--hidden_data_path', world[0]/'train', '--K', '4', '--use_cpu', 'true',
                                              '--per_device_train_batch_size', '2', '--max_steps', '1', '--validation_split', '0', '--projector', 'norm', '--output_dir', tmp_path/out)
    assert f'prompt {prompt} + message 4 + answer 0 = {prompt + 4} tokens' in refused(cli.main_compress, *words(prompt + 3, 0, 'short'))
    assert 'error: conversation ' in refused(cli.main_compress, *words(0, 60, 'short')) and not (tmp_path/'short'/'recipe.json').exists()
    fits(cli.main_compress, *words(prompt + 4, 0, 'student'))


def test_evaluation_of_questions(world, tmp_path):
    question = longest(world, 'maths', lambda t: t.turns[:-1])
    def words(window, *more): return ('math', '--model_name_or_path', windowed(world, 'actor', window, tmp_path), '--data_path', world[0]/'problems', '--hidden_data_path', world[0]/'maths',
                                      '--output_dir', tmp_path/f'eval{window}', '--device', 'cpu', '--max_new_tokens', '6', '--workers', '1', *more)
    sizes = {t.task_id: len(encode_chat(world[1], t.turns[:-1], add_generation_prompt=True)) + 5 + i for i, t in enumerate(world[2]['maths'])} # with its message
    whole = max(sizes.values()) + 2 + 6
    said = refused(cli.main_eval, *words(whole - 1, '--variants', 'no_comm,latent'))
    assert 'error: question ' in said and f'+ answer 6 = {whole} tokens, the window is {whole - 1};' in said
    assert pd.read_csv(tmp_path/f'eval{whole-1}'/'answers.csv').empty, 'no question is asked, under no_comm neither'
    for window in (whole, 0): fits(cli.main_eval, *words(window, '--variants', 'no_comm,latent'))
    fits(cli.main_eval, *words(question + 6, '--variants', 'no_comm'))


def test_evaluation_of_games(world, tmp_path):
    first = longest(world, 'valid_unseen', lambda t: t.turns[:1])
    def words(window): return ('alfworld', '--model_name_or_path', windowed(world, 'actor', window, tmp_path), '--data_path', world[0]/'games', '--hidden_data_path', world[0]/'valid_unseen',
                               '--output_dir', tmp_path/f'eval{window}', '--device', 'cpu', '--variants', 'no_comm,latent', '--max_new_tokens', '6', '--max_steps', '6')
    said = refused(cli.main_eval, *words(first + 5))
    assert 'error: game ' in said and f'prompt {first} + message 0 + answer 6 = {first + 6} tokens' in said
    assert pd.read_csv(tmp_path/f'eval{first+5}'/'games.csv').empty
    for window in (first + 60, 0): fits(cli.main_eval, *words(window))
    cut, free = (pd.read_csv(tmp_path/f'eval{window}'/'games.csv', keep_default_na=False).set_index(['condition', 'game_id']).sort_index() for window in (first + 60, 0))
    assert (free.error == '').all() and (cut.error != '').any() and not cut.won.isna().any()
    for where, row in cut.iterrows(): # lost, not broken; the same words up to there
        n = len(json.loads(row.outputs))
        assert json.loads(row.outputs) == json.loads(free.outputs[where])[:n] and (row.error != '') == (n < 6)
        if row.error: assert str(row.won) == 'False' and f'after {n} steps, does not fit into the context window' in row.error
    summary = pd.read_csv(tmp_path/f'eval{first+60}'/'summary.csv')
    assert set(summary.n) == {4} and set(summary.errors) == {0}, 'a game that outgrew the window counts as lost'


def test_a_dry_run(world, tmp_path):
    from interlat.runs.dryrun import check_windows
    def found(window, **more): return check_windows(dict(sender=str(windowed(world, 'sender', window, tmp_path)), actor='tiny-qwen2', max_new_tokens=100, max_steps=20, **more))
    short = found(300)
    assert [c.fine for c in short] == [False, True] and 'prompt 250 + message 0 + answer 100 = 350 tokens, the window is 300;' in short[0].found
    assert all(c.fine for c in found(350)) and all(c.fine for c in found(0)) and 'any number' in found(0)[0].found
    assert [c.fine for c in found(350, K=101, student_steps=1)] == [True, True, False]
