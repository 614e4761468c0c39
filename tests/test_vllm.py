"""vLLM at both ends of the channel, against transformers: in the environment of `make vllm`, by `make test-vllm`.

One engine at a time, each started once: what is written with it is looked at by several tests."""
import json, os, random, signal, subprocess, sys
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest, torch

if not find_spec('vllm'): pytest.skip('vLLM is not installed in this environment; `make test-vllm` runs these in .venv-vllm', allow_module_level=True)

import cast
from interlat.agents.actor import ModelWithInsertedHiddenState
from interlat.agents.collect import *
from interlat.agents.served import *
from interlat.agents.served_speaker import *
from interlat.agents.speaker import *
from interlat.core.basics import *
from interlat.core.tasks import *
from interlat.evaluation.answering import *
from interlat.evaluation.evaluate import *
from interlat.evaluation.log import GameLog
from interlat.evaluation.rollout import *
from interlat.messages.message import *
from interlat.models.chat import *
from interlat.models.lm import *
from interlat.models.sampling import *
from interlat.models.tiny import *

pytestmark = pytest.mark.vllm
os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1') # GiB, for each engine
FAMILIES = 'tiny-qwen2', 'tiny-llama', 'smollm2-135m'
WRITTEN = dict.fromkeys(FAMILIES[:2], 24) | {FAMILIES[2]: 16} # tokens of a plan


@cache
def tokenizer(family): return train_tokenizer(family, ['go to the shelf and look at 12 apples', 'put two keys in a drawer'], vocab_size=320)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "family -> a folder with the model: random weights, loud and four heads of 32; and a real one, unpacked once."
    root, found = tmp_path_factory.mktemp('models'), {}
    for name in FAMILIES[:2]:
        tok = tokenizer(name[5:])
        found[name] = Agent(tiny_lm(name, tok, hidden_size=128, initializer_range=.3), tok).save_pretrained(root/name)
    found[FAMILIES[2]] = load_lm(FAMILIES[2], 'float32', 'cpu').save_pretrained(root/FAMILIES[2])
    return found


def prompts(vocab, n=64, longest=120, seed=0):
    "Rows of ids of very different lengths."
    draw = random.Random(seed)
    return [[draw.randrange(8, vocab) for _ in range(draw.choice([3, 9, 30, longest]) + draw.randrange(8))] for _ in range(n)]


@contextmanager
def running(folder, longest, **how):
    "An engine, which is stopped afterwards."
    engine = Served(folder, 'float32', **dict(batch_size=64) | how)
    try: yield engine.open(longest)
    finally: engine.close()


def far(a, b):
    "The largest distance of two states, row by row, as a part of the second's length."
    return float(((a - b).norm(dim=1)/b.norm(dim=1)).max())


def near_ties(agent, prompt, ours, theirs):
    "By how much the two tokens differ, as logits, where two plans part; None if they are one plan."
    at = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), None)
    if at is None: return None
    with torch.no_grad(): logits = agent.model(input_ids=torch.tensor([prompt + theirs[:at]])).logits[0,-1]
    return float(logits[theirs[at]] - logits[ours[at]])


@pytest.mark.parametrize('family', FAMILIES)
def test_states_and_plans_are_those_of_transformers(folders, family):
    "64 prompts of mixed length, float32: 1e-3 of a state's length; greedy words the same, but for near-ties."
    reference, most = load_lm(folders[family], 'float32', 'cpu'), WRITTEN[family]
    rows, ends = prompts(len(reference.tokenizer)), end_token_ids(reference)
    wanted = [pair for i in range(0, 64, 16) for pair in write_plans(reference, rows[i:i+16], most)]
    with running(folders[family], 160 + most) as engine:
        found, again = (engine.write(rows, most, ends) for _ in range(2))
    assert all(torch.equal(h, z) and x == y for (h, x), (z, y) in zip(found, again)), 'a batch is the same whenever it is run'
    apart = {i: near_ties(reference, rows[i], y, z) for i, ((_, y), (_, z)) in enumerate(zip(found, wanted)) if y != z}
    print(f'{family}: plans that part, and by how much in logits: {apart}')
    assert all(0 <= gap < 1e-3 for gap in apart.values()) and len(apart)*1000 <= sum(len(y) for _, y in wanted)
    same = [(h, z) for i, ((h, y), (z, _)) in enumerate(zip(found, wanted)) if i not in apart]
    assert all(h.shape == z.shape == (len(z), reference.model.config.hidden_size) and h.dtype == torch.float32 for h, z in same)
    assert max(far(h, z) for h, z in same) < 1e-3


def scheduler(engine): return engine.llm.llm_engine.engine_core.engine_core.scheduler


HARD = { # what the engine does to a request, and settings that make it do so
    'prompts read in parts': dict(enable_chunked_prefill=True, max_num_batched_tokens=48),
    'thrown out and read again': dict(num_gpu_blocks_override=24, block_size=32),
    'both, and blocks shared': dict(enable_chunked_prefill=True, max_num_batched_tokens=48, num_gpu_blocks_override=24, block_size=32, enable_prefix_caching=True)}


@pytest.mark.parametrize('what', HARD)
def test_states_stay_with_their_tokens(folders, what, monkeypatch):
    folder, most = folders['tiny-qwen2'], 40
    reference, rows = load_lm(folder, 'float32', 'cpu'), prompts(300, 32, seed=1)
    rows = [rows[i%4][:40] + r for i, r in enumerate(rows)] # beginnings that several have
    out = []
    with running(folder, 256, batch_size=32, **HARD[what]) as engine:
        preempt = scheduler(engine)._preempt_request
        monkeypatch.setattr(scheduler(engine), '_preempt_request', lambda request, *a, **k: (out.append(request.num_output_tokens), preempt(request, *a, **k))[1])
        found = engine.write(rows, most, end_token_ids(reference))
    assert bool(out) == ('num_gpu_blocks_override' in HARD[what]) and (not out or max(out) > 0), 'the engine did what it was to do'
    for (h, y), (z, x) in zip(found, write_plans(reference, rows, most), strict=True):
        assert y == x and far(h, z) < 1e-3


def tasks(n=12):
    return [Task(f'task-{i}', 'find', [dict(role='user', content='go to the shelf and look. '*(1 + 3*(i%5)) + str(i))]) for i in range(n)]


def test_collected_messages_are_those_of_the_other_path(folders, tmp_path):
    folder = folders['tiny-llama']
    reference = load_lm(folder, 'float32', 'cpu')
    whole = collect(reference, tasks(), MessageStore(tmp_path/'torch', sender='s'), max_new_tokens=10, progress=False)
    served = Agent(Served(folder, 'float32', batch_size=5), reference.tokenizer)
    store = collect_served(served, tasks()[:7], MessageStore(tmp_path/'served', sender='s'), max_new_tokens=10, progress=False)
    collect_served(served, tasks(), store, max_new_tokens=10, progress=False)
    assert collect_served(served, tasks(), store, max_new_tokens=10, progress=False) is store
    served.model.close()
    assert store.task_ids() == whole.task_ids() and store.verify() == {}
    for mine, theirs in zip(store, whole):
        assert (mine.token_ids, mine.text, mine.layer) == (theirs.token_ids, theirs.text, -1) and far(mine.h, theirs.h) < 1e-3


def test_a_task_is_sampled_by_its_own_seed(folders, tmp_path):
    "Whoever shares the batch, and in whatever order they come; another seed, another plan."
    folder = folders['tiny-qwen2']
    served = Agent(Served(folder, 'float32', batch_size=8), load_tokenizer(folder))
    def run(name, some, **how):
        s = collect_served(served, some, MessageStore(tmp_path/name, sender='s'), temperature=1., max_new_tokens=10, progress=False, **how)
        return {i: s[i].token_ids for i in s.task_ids()}
    try:
        a = run('a', tasks())
        assert a == run('b', tasks()[::-1]) != run('c', tasks(), seed=1)
        assert run('d', tasks()[3:4]) == {'task-3': a['task-3']} and len({*map(tuple, a.values())}) > 8
    finally: served.model.close()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_vllm import *
class Slow(MessageStore):
    def append(self, messages):
        super().append(messages)
        print(len(self), flush=True)
        time.sleep({pause})
collect_served(Agent(Served({folder!r}, 'float32', batch_size=4), load_tokenizer({folder!r})), tasks(24), Slow({store!r}, sender='s'), max_new_tokens=12, progress=False)
"""


def test_killed_and_started_again_a_store_has_the_same_bytes(folders, tmp_path):
    "With a real model, whose last bits do depend on who shares a batch."
    def start(store, pause): 
        code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folders[FAMILIES[2]]), store=str(tmp_path/store), pause=pause)
        return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    with start('killed', 1.) as child:
        while (line := child.stdout.readline()) and int(line) < 8: pass
        os.kill(child.pid, signal.SIGKILL)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'killed').glob('shard-*')}
    assert child.returncode == -signal.SIGKILL and 2 <= len(before) < 6
    for store in ('killed', 'whole'):
        with start(store, 0) as child: child.communicate()
        assert child.returncode == 0
    killed, whole = ({p.name: p.read_bytes() for p in sorted((tmp_path/name).glob('shard-*'))} for name in ('killed', 'whole'))
    assert killed == whole and len(whole) == 6 and before.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path/'killed').glob('shard-*')}.items()


def refused(match, run):
    with pytest.raises(InterlatError, match=match) as told: run()
    assert '\n' not in str(told.value) and len(str(told.value)) < 500


def test_what_is_not_served_is_said_in_a_line_before_anything_is_written(folders, tmp_path):
    folder, tok = folders['tiny-qwen2'], tokenizer('qwen2')
    def store(name='none', **kw): return MessageStore(tmp_path/name, sender='s', **kw)
    def go(some=tasks(3), into=None, most=10, name=folder, **engine):
        return collect_served(Agent(Served(name, 'float32', batch_size=4, **engine), tok), some, store() if into is None else into, max_new_tokens=most, progress=False)
    refused('has width 64, wanted width 128', lambda: go(into=store(width=64)))
    refused(r'task task-\d does not fit into the context window of tiny-qwen2: prompt \d+ .* the window is 4096', lambda: go(most=4090))
    refused(r'a prompt and its plan need \d+ tokens, the engine has 40; give it a larger max_model_len', lambda: go(max_model_len=40))
    refused('max_model_len must be an integer, between 1 and 4096, found 9999', lambda: go(max_model_len=9999))
    refused("vllm has no setting 'tensor_paralel_size'", lambda: go(tensor_paralel_size=2))
    cast.random_lm('ctrl').save_pretrained(tmp_path/'ctrl')
    refused('vLLM has no implementation of its own for CTRLLMHeadModel', lambda: go(name=tmp_path/'ctrl'))
    refused(r"does not serve .*tiny-llama here: Unsupported CPU attention configuration: head_dim=24", lambda: go(name='tiny-llama'))
    refused('does not serve .* here: No available memory for the cache blocks', lambda: go(num_gpu_blocks_override=1, block_size=32))
    assert not (tmp_path/'none').exists()


def make_crew(root, n=12, save=True):
    "Games, their messages, and an actor whose heads are as wide as vLLM's kernels for CPUs need them; the actor is saved in `root/actor`."
    games = cast.games(root/'games', n, seed=3)
    tok = cast.tokenizer(games)
    base = tiny_lm('tiny-qwen2', tok, num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2, initializer_range=.3).eval()
    actor = Agent(cast.actor(base, tok), tok)
    if save: actor.save_pretrained(root/'actor')
    store = MessageStore(root/'messages', sender='s')
    if not len(store):
        draw = torch.Generator().manual_seed(1)
        store.append([LatentMessage(torch.randn(5 + i%4, 64, generator=draw), list(range(20, 25 + i%4)), 'go', g.task_id, 's') for i, g in enumerate(games)])
    return games, actor, store


PLAYED = dict(max_new_tokens=8, max_steps=4, progress=False)


class Gaps(Speaker):
    "How far the two most probable tokens were apart, each time."
    gaps = ()
    def _choose(self, hidden, live):
        top = self.door.logits(hidden).float().topk(2).values
        self.gaps = [*self.gaps, *(top[:,0] - top[:,1])[torch.tensor(live)].tolist()]
        return super()._choose(hidden, live)


def test_a_hundred_games_are_played_as_in_torch(tmp_path):
    games, actor, store = make_crew(tmp_path, 100)
    conditions, actors = ['latent', 'no_comm'], ServedActors('float32', batch_size=32)
    served = actors.load(tmp_path/'actor')
    wanted = evaluate(actor, games, store, conditions, tmp_path/'torch', **PLAYED)
    try: found = evaluate(served, games, store, conditions, tmp_path/'vllm', speakers=actors, **PLAYED)
    finally: actors.close()
    both = found.merge(wanted, on=['condition', 'game_id', 'seed'], suffixes=('', '_torch'))
    other = both[(both.outputs != both.outputs_torch) | (both.won != both.won_torch)]
    print(f'{len(other)} of {len(both)} games are not the same')
    assert len(both) == 200 and len(other) <= 4 and both[both.condition == 'latent'].outputs.nunique() > 50 < both[both.condition == 'no_comm'].outputs.nunique()
    assert (both[both.condition == 'latent'].outputs.values != both[both.condition == 'no_comm'].outputs.values).mean() > .5, 'messages matter'
    by_id = {g.task_id: g for g in games}
    for row in other.itertuples():
        speaker = Gaps(actor, 8)
        rollout(actor, [by_id[row.game_id]], [store[row.game_id]] if row.condition == 'latent' else None, 'latent', speaker=speaker, max_steps=4, progress=False)
        assert min(speaker.gaps) < 1e-3, row
    with pytest.raises(InterlatError, match='made with backend torch, now vllm'): evaluate(served, games, store, conditions, tmp_path/'torch', speakers=actors, **PLAYED)


def test_questions_are_answered_alike_and_sampled_by_their_seeds(tmp_path):
    tasks = cast.questions(8)
    tok = cast.tokenizer(tasks)
    base = tiny_lm('tiny-qwen2', tok, num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2, initializer_range=.3).eval()
    Agent(cast.actor(base, tok), tok).save_pretrained(tmp_path/'actor')
    messages = [LatentMessage(torch.randn(6, 64, generator=torch.Generator().manual_seed(i)), [20]*6, 'go', t.task_id, 's') for i, t in enumerate(tasks)]
    actors = ServedActors('float32', batch_size=16)
    actor = actors.load(tmp_path/'actor')
    def run(temperature, speakers=actors, **how):
        speaker = speakers and speakers(actor, 12, temperature)
        return dict(pair for batch in answer(actor, tasks, messages, speaker=speaker, max_new_tokens=12, temperature=temperature, **how) for pair in batch)
    try:
        assert run(0.) == run(0., None) and len({a.text for found in run(0.).values() for a in found}) > 4
        warm = run(1., n_samples=3)
        assert warm == run(1., n_samples=3, batch_size=5) != run(1., n_samples=3, seed=1)
        assert len({a.text for found in warm.values() for a in found}) > 16
    finally: actors.close()


def seat(actor, embeds, text='put the apple in the fridge, then look '*8):
    return Seat(Conversation(actor.tokenizer, [dict(role='user', content=text)]), embeds)


def test_two_messages_never_share_a_block(tmp_path):
    "The cache is off unless it is asked for; then a conversation finds its own past, and nobody else's behind the first token of a message."
    _, torch_actor, _ = make_crew(tmp_path, 2)
    one, other = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0))
    near = one.clone().index_add(0, torch.tensor([39]), torch.full((1, 64), 1e-3)) # of equal length, and other only in its last state
    plain = Served(tmp_path/'actor', 'float32', embeds=True).open(512)
    assert not plain.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    wanted = [ServedSpeaker(torch_actor, plain, 6).speak([seat(torch_actor, e)])[0] for e in (one, other, near, None)]
    plain.close()
    for salted in (True, False):
        engine = Served(tmp_path/'actor', 'float32', embeds=True, enable_prefix_caching=True, block_size=32).open(512)
        speaker, generate, found = ServedSpeaker(torch_actor, engine, 6), engine.llm.generate, []
        def watched(asked, *args, **how):
            if not salted: # what vLLM does by itself
                for a in asked: a.pop('cache_salt', None)
            done = generate(asked, *args, **how)
            found.extend(r.num_cached_tokens for r in done)
            return done
        engine.llm.generate = watched
        try:
            speaker.speak([seat(torch_actor, None, 'a first word')]) # the model is checked
            del found[:]
            said = [speaker.speak([seat(torch_actor, e)])[0] for e in (one, other, near, None, None, one, other, near)]
        finally: engine.close()
        assert said == [*wanted, wanted[3], *wanted[:3]] and len({*wanted}) > 2
        print('tokens found in the cache', 'with salts' if salted else 'without', found)
        if salted: assert found[:4] == [0]*4 and min(found[4:]) >= 64


def test_a_model_that_is_another_is_refused(tmp_path, folders):
    _, actor, _ = make_crew(tmp_path, 2)
    with torch.no_grad(): actor.model.base_model.model.norm.weight[:8] *= 2 # since it was saved
    engine = Served(tmp_path/'actor', 'float32', embeds=True)
    try: refused('vLLM makes other states of ids than transformers does, with .*actor', lambda: ServedSpeaker(actor, engine).speak([seat(actor, None)]))
    finally: engine.close()


def test_checkpoints_with_lora_or_kept_as_a_difference_are_served_whole(tmp_path):
    from interlat.agents.new_actor import new_actor
    actor = new_actor('tiny-qwen2', lora=dict(r=4), dtype='float32', device='cpu')
    with torch.no_grad():
        for name, p in actor.model.named_parameters():
            if 'lora_B' in name: p.normal_(std=.3)
    actor.save_pretrained(tmp_path/'whole')
    actor.model.save_pretrained(tmp_path/'difference', base='tiny-qwen2')
    actor.tokenizer.save_pretrained(tmp_path/'difference')
    said = [Speaker(actor, 8).speak([seat(actor, None)])[0]]
    assert said != [Speaker(new_actor('tiny-qwen2', dtype='float32', device='cpu'), 8).speak([seat(actor, None)])[0]], 'LoRA matters'
    for name in ('whole', 'difference'):
        actors = ServedActors('float32')
        found = actors.load(tmp_path/name)
        try: said += actors(found, 8, 0.).speak([seat(found, None)])
        finally: actors.close()
    assert said[1:] == [said[0], Speaker(found, 8).speak([seat(found, None)])[0]]


PLAYING = """
import sys, time
sys.path.insert(0, {tests!r})
from test_vllm import *
def slowly(self, *args, append=GameLog.append):
    append(self, *args)
    print(len(self.done), flush=True)
    time.sleep({pause})
GameLog.append = slowly
root, actors = Path({root!r}), ServedActors('float32', batch_size=4)
games, _, store = make_crew(root, save=False)
evaluate(actors.load(root/'actor'), games, store, ['latent', 'no_comm', 'cross_task'], root/{out!r}, speakers=actors, **PLAYED)
"""


def test_an_evaluation_that_was_killed_has_the_same_rows(tmp_path):
    make_crew(tmp_path)
    def start(out, pause):
        code = PLAYING.format(tests=str(Path(__file__).parent), root=str(tmp_path), out=out, pause=pause)
        return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    with start('killed', .5) as child:
        while (line := child.stdout.readline()) and int(line) < 17: pass
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    kept = (tmp_path/'killed'/'games.csv').read_bytes()
    assert 18 <= kept.count(b'\n') < 37
    for out in ('killed', 'whole'):
        with start(out, 0) as child: child.communicate()
        assert child.returncode == 0
    killed, whole = ((tmp_path/out/'games.csv').read_bytes() for out in ('killed', 'whole'))
    assert killed.startswith(kept) and sorted(killed.splitlines()) == sorted(whole.splitlines()) and killed.count(b'\n') == 37


def test_the_commands_go_from_games_to_results(tmp_path, capsys):
    from interlat.commands.cli import collect as collect_command, evaluate as evaluate_command, games as games_command
    games_command(['--out', str(tmp_path/'games'), '--n', '4', '--split', 'valid_unseen'])
    common = ['alfworld', '--data_path', str(tmp_path/'games'), '--split', 'valid_unseen', '--backend', 'vllm', '--dtype', 'float32', '--batch_size', '4']
    collect_command([*common, '--model_name_or_path', 'tiny-qwen2', '--output_dir', str(tmp_path/'messages'), '--max_new_tokens', '16'])
    assert 'MessageStore' in capsys.readouterr().out
    from interlat.agents.new_actor import new_actor
    new_actor('tiny-qwen2', input_size=128, dtype='float32', device='cpu').save_pretrained(tmp_path/'actor')
    evaluate_command([*common, '--model_name_or_path', str(tmp_path/'actor'), '--messages', str(tmp_path/'messages'), '--variants', 'latent,no_comm',
                      '--max_steps', '2', '--output_dir', str(tmp_path/'run'), '--vllm', 'enable_prefix_caching=true,max_model_len=2048'])
    assert 'latent' in capsys.readouterr().out and json.loads((tmp_path/'run'/'evaluate.json').read_text())['backend'] == 'vllm'
    assert (tmp_path/'run'/'summary.csv').exists()


def test_benchmark_of_collecting(tmp_path, capsys):
    sys.path.append(str(Path(__file__).resolve().parents[1]/'benchmarks'))
    import vllm_collect
    vllm_collect.main(['--model', 'tiny-qwen2', '--n', '3', '--tokens', '5', '--batch', '2', '--at_once', '3', '--many', '9', '--out', str(tmp_path/'out.json')])
    result = json.loads((tmp_path/'out.json').read_text())
    assert [r['side'] for r in result['rows']] == ['vllm', 'ours', 'twice'] and all(r['messages'] == 3 and r['seconds'] > 0 < r['cpu_seconds'] for r in result['rows'])
    assert result['apart'] < 1e-4 and result['memory']['messages'] == 9 and 'the same words' in capsys.readouterr().out
