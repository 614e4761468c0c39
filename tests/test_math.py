"Problems and tables all the way, from the command line and in Python: made, collected, trained on, compressed, asked and graded."
import json, re
from functools import cache
from pathlib import Path

import cast
import pandas as pd
import pytest
from test_cli import call

from interlat.commands import cli
from interlat.core.basics import InterlatError
from interlat.training.lessons import ActorDataset, with_samples
from interlat.maths.generate import generate_problems
from interlat.messages.message import MessageStore
from interlat.training.objective import choose_negatives
from interlat.maths.problems import problem_task
from interlat.evaluation.questions import evaluate_answers, read_answers
from interlat.commands.sources import MathData
from interlat.models.lm import Agent
from interlat.models.tiny import MATH_WORDS, train_tokenizer


def random_model(folder, family='qwen2'):
    "A random model that reads problems, in a folder."
    texts = [t['content'] for task in map(problem_task, generate_problems(35)) for t in [*task.prompt, *task.turns]]
    tokenizer = train_tokenizer(family, texts, vocab_size=500, words=MATH_WORDS)
    lm = cast.lm(tokenizer, 'tiny-qwen2' if family == 'qwen2' else 'tiny-llama')
    for part in (lm, tokenizer): part.save_pretrained(folder)
    return lm, tokenizer


@pytest.fixture(scope='module')
def sender(tmp_path_factory):
    random_model(tmp_path_factory.mktemp('math')/'lm')
    return next(tmp_path_factory.getbasetemp().glob('math*/lm'))


def test_the_whole_way_for_problems(sender, tmp_path, monkeypatch, capsys):
    def run(main, *argv):
        status, out, err = call(main, monkeypatch, capsys, *argv)
        assert status == 0, err
        return out
    few, short = ('--num_problems', 14), ('--max_new_tokens', 6)
    assert 'messages in' in run(cli.main_collect, 'math', '--model_name_or_path', sender, '--output_dir', tmp_path/'train', *few, *short, '--temperature', .8, '--num_samples', 2)
    run(cli.main_collect, 'math', '--model_name_or_path', sender, '--output_dir', tmp_path/'test', '--mode', 'test', *few, *short)
    store = MessageStore(tmp_path/'train')
    assert len(store) == 28 and store.sender.endswith('temperature 0.8, seed 0') and len(MessageStore(tmp_path/'test')) == 14
    a, b = (store[f'train/algebra/1{end}'] for end in ('', '#1'))
    assert a.token_ids != b.token_ids, 'another sample, other words'
    small = ('--max_steps', 2, '--use_cpu', 'true', '--logging_steps', 1, '--disable_tqdm', 'true')
    run(cli.main_train, 'math', '--model_name_or_path', sender, '--hidden_data_path', tmp_path/'train', '--output_dir', tmp_path/'actor', *few, *small, '--per_device_train_batch_size', 4)
    run(cli.main_compress, 'math', '--student_model_name_or_path', sender, '--teacher_model_name_or_path', tmp_path/'actor', '--hidden_data_path', tmp_path/'train', '--K', 3,
        '--output_dir', tmp_path/'student', *few, *small, '--per_device_train_batch_size', 2)
    run(cli.main_collect, 'math', '--model_name_or_path', tmp_path/'student', '--output_dir', tmp_path/'k3', '--split', 'test', *few)
    asked = ('math', '--model_name_or_path', tmp_path/'actor', '--messages', tmp_path/'test', '--variants', 'latent,no_comm,cross_task', '--compressed', f"K=3={tmp_path/'k3'}", *few, *short,
             '--n_samples', 3, '--temperature', 1., '--output_dir', tmp_path/'eval')
    said = run(cli.main_eval, *asked)
    assert 'none of the problems of test stands in train' in said and 'content: no clear difference in right answers' in said and 'K=3' in said
    samples = read_answers(tmp_path/'eval'/'answers.csv')
    assert len(samples) == 4*14*3 and samples.groupby('condition').output.nunique().min() > 3 and set(samples.verdict) <= {'unanswered', 'graded', 'unparsable'}
    names = {p.name for p in (tmp_path/'eval').iterdir()}
    assert {'accuracy.csv', 'accuracy_by_level.csv', 'accuracy_by_subject.csv', 'paired.csv', 'effects.csv', 'figures'} <= names
    kept = (tmp_path/'eval'/'answers.csv').read_bytes()
    assert run(cli.main_eval, *asked) == said and (tmp_path/'eval'/'answers.csv').read_bytes() == kept


def test_samples_are_all_trained_on_and_never_each_others_wrong_message(sender, tmp_path):
    from interlat.agents.collect import collect
    from interlat.models.lm import load_lm
    from interlat.core.tasks import further_samples
    writer = load_lm(sender)
    tasks = MathData(num_problems=4).tasks()
    store = collect(writer, further_samples(tasks, 3), MessageStore(tmp_path, sender='s'), max_new_tokens=4, temperature=1., progress=False)
    data = ActorDataset(with_samples(tasks, store), writer.tokenizer, store)
    assert len(data) == 12 and len({r['task'] for r in data.rows}) == 12 and len({r['origin'] for r in data.rows}) == 4
    import torch
    origin, kind = (torch.tensor([r[k] for r in data.rows]) for k in ('origin', 'kind'))
    for order in (torch.arange(12), torch.randperm(12, generator=torch.Generator().manual_seed(0))):
        wrong = choose_negatives(origin[order], kind[order])
        assert (origin[order][wrong] != origin[order]).all()


SLOW = """
import os, sys, time; sys.path.insert(0, {tests!r})
from test_math import ask
print(os.getpid(), flush=True)
import interlat.evaluation.questions as q
whole = q.AnswerLog._write
q.AnswerLog._write = lambda self, row: (time.sleep(.1), whole(self, row))[1]
ask({folder!r}, 'killed')
"""

def ask(folder, out, **kw):
    from interlat.agents.collect import collect
    folder = Path(folder)
    lm, tokenizer = random_model(folder/'lm')
    tasks = [problem_task(p) for p in generate_problems(14, 'test')]
    store = collect(Agent(lm, tokenizer), tasks, MessageStore(folder/'store', sender='s'), max_new_tokens=5, progress=False)
    return evaluate_answers(Agent(cast.actor(lm, tokenizer), tokenizer), tasks, store, ['latent', 'no_comm', 'cross_task'], folder/out,
                            **{**dict(max_new_tokens=6, n_samples=2, temperature=1., batch_size=5, progress=False), **kw})


def test_killed_and_resumed_no_answer_is_lost_or_given_twice(tmp_path):
    log = tmp_path/'killed'/'answers.csv'
    cast.kill_after(SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), log, 18, 43)
    again = ask(tmp_path, 'killed', batch_size=32)
    whole = ask(tmp_path, 'whole', batch_size=1)
    pd.testing.assert_frame_equal(again, whole)
    assert (tmp_path/'killed'/'answers.csv').read_bytes() == (tmp_path/'whole'/'answers.csv').read_bytes()


def test_a_table_of_ones_own(sender, tmp_path, monkeypatch, capsys):
    rows = [dict(question=f'What is ${a} + {b}$?', sum=a + b, way=f'Begin at {a}.', kind=('low', 'high')[a > 3]) for a in range(1, 7) for b in (1, 2)]
    table = tmp_path/'sums.jsonl'
    table.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    columns = ('--data_path', table, '--prompt_column', 'question', '--answer_column', 'sum', '--plan_column', 'way', '--subject_column', 'kind')
    for main, argv in ((cli.main_collect, ('--output_dir', tmp_path/'m', '--model_name_or_path', sender, '--max_new_tokens', 5)),
                       (cli.main_train, ('--output_dir', tmp_path/'a', '--model_name_or_path', sender, '--hidden_data_path', tmp_path/'m', '--max_steps', 1, '--use_cpu', 'true', '--per_device_train_batch_size', 4)),
                       (cli.main_eval, ('--output_dir', tmp_path/'e', '--model_name_or_path', tmp_path/'a', '--messages', tmp_path/'m', '--max_new_tokens', 5, '--variants', 'latent,cross_task', '--pattern', r'\d+'))):
        status, out, err = call(main, monkeypatch, capsys, 'custom', *columns, *argv)
        assert status == 0, err
    answers = read_answers(tmp_path/'e'/'answers.csv')
    assert len(answers) == 24 and set(answers.task_type) == {'low', 'high'} and answers.gold.tolist()[:3] == ['2', '3', '3'] and 'another task' in out
    assert all(a == re.findall(r'\d+', o)[-1] if re.search(r'\d', o) else a is None for a, o in zip(answers.answer, answers.output)), 'the pattern finds the answer'
    table.write_text(table.read_text().replace('"sum": 4', '"sum": null', 1))
    status, _, err = call(cli.main_collect, monkeypatch, capsys, 'custom', *columns, '--output_dir', tmp_path/'x', '--model_name_or_path', sender)
    assert status == 2 and 'sums.jsonl, line 4' in err and "'sum'" in err


made = cache(generate_problems)


@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_generated_problems_are_right_and_stay_in_their_split(split):
    problems = made(210, split, seed=11)
    assert problems[:70] == made(70, split, seed=11), 'more problems hold the fewer'
    texts = {p.full for p in problems}
    assert len(texts) == 210
    for other in {'train', 'valid', 'test'} - {split}: assert not texts & {p.full for p in made(210, other, seed=12)}
    for p in problems:
        assert p.solution.startswith(p.plan) and r'\boxed' not in p.plan and p.solution.count(r'\boxed') == 1
        assert p.known[5:-1].split(' = ')[0].strip('$') in p.text, 'the question is about the hidden number'


def test_every_maker_agrees_with_sympy():
    from random import Random
    from interlat.maths.makers import MAKERS
    from interlat.maths.sketches import agree
    rng = Random(5)
    wrong = [s for makers in MAKERS.values() for f in makers for level in range(1, 6) for _ in range(20) if not agree((s := f(rng, level)).answer, s.check)]
    assert wrong == []


def test_more_problems_than_there_are():
    with pytest.raises(InterlatError, match='no new problem of'): generate_problems(999, 'valid', subjects=['counting_and_probability'], levels=[2])
