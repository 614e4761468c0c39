"interlat-collect --channel: every channel's payloads about every task, in a batch as alone, killed or not to the same bytes; and without it, messages as ever."
import os, random, signal, subprocess
from types import SimpleNamespace

import pytest, torch
from notebooks import ROOT
from warm import warm

from interlat.agents.projector import Projectors
from interlat.channels.bench import CHANNELS, channel
from interlat.channels.c2c import C2C
from interlat.channels.parcels import PAYLOADS, Parcel, PayloadStore, channel_options
from interlat.commands import cli
from interlat.commands.collecting import collect_payloads
from interlat.core.basics import InterlatError, derive_seed
from interlat.evaluation.sending import make_messages
from interlat.maths.generate import generate_problems
from interlat.maths.problems import problem_task
from interlat.messages.message import MessageStore
from interlat.models.lm import load_lm

WORDS = dict(latentmas='latentmas:latent_steps=3:keep=newest', statebridge='statebridge:K=4', own_tokens='own_tokens:K=5', cipher='cipher:n=4', sde='sde', ac='ac:k=-2:j=-2', kvcomm='kvcomm:layers=0+1', text='text', interlat='interlat')
MATH = ['math', '--model_name_or_path', 'tiny-math', '--num_problems', '5', '--device', 'cpu']
ROUGH = dict(statebridge=3e-3) # it divides by the root of a variance of no less than 1e-3, so rounding grows some 30 times
WRITES = {'statebridge', 'own_tokens', 'sde', 'text', 'interlat'}


@pytest.fixture(scope='module')
def sender(): return load_lm('tiny-math', 'float32', 'cpu')


@pytest.fixture(scope='module')
def tasks(): return [problem_task(p) for p in generate_problems(5, 'train')]


def collect(out, *more, words=MATH): cli.collect([*words, '--output_dir', str(out), *map(str, more)])
def close(a, b, atol=1e-4): return all(x.shape == b[k].shape and x.dtype == b[k].dtype and torch.allclose(x.double(), b[k].double(), atol=atol) for k, x in a.items()) and list(a) == list(b)
def there(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('name', WORDS)
def test_every_channel_is_collected_and_in_a_batch_as_alone(name, sender, tasks, tmp_path, capsys):
    short = ['--max_new_tokens', '6'] if name in WRITES else []
    collect(tmp_path/'three', '--channel', WORDS[name], '--batch_size', '3', *short)
    assert '5 payloads in 2 shards' in capsys.readouterr().out
    collect(tmp_path/'one', '--channel', WORDS[name], '--batch_size', '1', *short)
    a, b = (PayloadStore(tmp_path/n, create=False) for n in ('three', 'one'))
    assert a.kind == b.kind and a.channel == name and a.sender == 'tiny-math' and a.ids == b.ids
    options = {k: v for k, v in a.options.items()}
    assert options == channel_options(channel(name, **options)) and options.get('max_new_tokens', 6) == 6
    for p, q in zip(a, b):
        assert type(p.payload) is CHANNELS[name].reads is PAYLOADS[p.kind] and close(p.payload.to_tensors(), q.payload.to_tensors(), ROUGH.get(name, 1e-4)), name
    way, i = channel(name, **options), 3
    alone, = make_messages(way, sender, [next(t for t in tasks if t.task_id == a.ids[i])], 1, 0, progress=False).payloads
    assert close(a[a.ids[i]].payload.to_tensors(), alone.to_tensors(), ROUGH.get(name, 1e-4))


def test_c2c_needs_projectors(sender, tmp_path):
    with pytest.raises(InterlatError, match="the channel 'c2c' needs the option 'projectors'"): collect(tmp_path/'x', '--channel', 'c2c')
    with pytest.raises(InterlatError, match='nowhere'): collect(tmp_path/'x', '--channel', 'c2c:projectors=nowhere')
    C2C.untrained(sender, sender).projectors.save_pretrained(tmp_path/'fused')
    collect(tmp_path/'caches', '--channel', f"c2c:projectors={tmp_path/'fused'}")
    store = PayloadStore(tmp_path/'caches', create=False)
    assert len(store) == 5 and store.options['projectors'].startswith('crc32 ') and all(p.kind == 'cache' for p in store)


@pytest.mark.parametrize('more, why', (
    (['--channel', 'latent'], "unknown channel 'latent'; use interlat, text"),
    (['--channel', 'text:n=3'], "the channel 'text' has no option 'n'"),
    (['--channel', 'latentmas', '--temperature', '0.7'], "the channel 'latentmas' has no temperature, found 0.7; leave it out"),
    (['--channel', 'kvcomm', '--max_new_tokens', '9'], "the channel 'kvcomm' has no max_new_tokens, found 9; leave it out"),
    (['--channel', 'text', '--max_new_tokens', '0'], 'max_new_tokens must be'),
    (['--channel', 'ac:W=w.pt'], 'W of ac is no word or number'),
    (['--channel', 'statebridge:fit=f.pt'], 'fit of statebridge is no word or number'),
    (['--channel', 'text', '--K', '8'], 'K 8 is for messages, and a channel has its own options'),
    (['--channel', 'text', '--backend', 'vllm'], "backend 'vllm' is for messages"),
    (['--channel', 'text', '--num_samples', '2'], '2 samples of a task are all the same through Text'),
    (['--channel', 'cipher', '--num_samples', '2', '--temperature', '0.7'], '2 samples of a task are all the same through Cipher'),
    (['--channel', 'latentmas', '--codec', 'int3'], "unknown codec 'int3'"),
    (['--channel', 'latentmas', '--shard_mb', '0.001'], 'bytes, a shard at most 1,048; raise max_bytes'),
    (['--codec', 'int8'], "codec 'int8' is for payloads; give a channel"),
    (['--shard_mb', '9'], 'shard_mb 9.0 is for payloads; give a channel')))
def test_what_cannot_be_is_refused_by_name(more, why, tmp_path):
    with pytest.raises(InterlatError, match=why): collect(tmp_path/'x', *more)
    assert not list(tmp_path.glob('x/shard-*'))


def test_a_store_of_another_channel_or_sender(tmp_path):
    collect(tmp_path/'x', '--channel', 'latentmas:latent_steps=2')
    for more, why in ((['--channel', 'kvcomm'], "has channel 'latentmas', wanted channel 'kvcomm'"), (['--channel', 'latentmas:latent_steps=3'], "has options .*'latent_steps': 2.* wanted options .*'latent_steps': 3"), ([], 'is a payload store, wanted a message store')):
        with pytest.raises(InterlatError, match=why): collect(tmp_path/'x', *more)
    with pytest.raises(InterlatError, match="has sender 'tiny-math', wanted sender 'tiny-qwen2'"): collect(tmp_path/'x', '--channel', 'latentmas:latent_steps=2', words=['math', '--model_name_or_path', 'tiny-qwen2', *MATH[3:]])
    collect(tmp_path/'m', '--max_new_tokens', '4')
    with pytest.raises(InterlatError, match='is a message store, wanted a payload store'): collect(tmp_path/'m', '--channel', 'text')


def test_without_a_channel_it_is_messages_as_ever(sender, tasks, tmp_path):
    from interlat.agents.collect import collect as messages
    collect(tmp_path/'by command', '--max_new_tokens', '6', '--batch_size', '2')
    messages(sender, tasks, MessageStore(tmp_path/'by hand', sender='tiny-math'), batch_size=2, max_new_tokens=6, progress=False)
    ours, theirs = (MessageStore(tmp_path/n) for n in ('by command', 'by hand'))
    assert repr(ours).replace('by command', 'by hand') == repr(theirs) and ours.ids == theirs.ids and sorted(there(ours.path)) == sorted(there(theirs.path))
    for a, b in zip(ours, theirs): assert torch.equal(a.h, b.h) and {k: v for k, v in vars(a).items() if k != 'h'} == {k: v for k, v in vars(b).items() if k != 'h'}


def test_samples_and_seeds(tmp_path):
    more = '--channel', 'own_tokens:K=4', '--max_new_tokens', '6', '--temperature', '20', '--num_samples', '2'
    for name, batch, seed in (('a', 4, 0), ('b', 3, 0), ('c', 4, 1)): collect(tmp_path/name, *more, '--batch_size', batch, '--seed', seed)
    a, b, c = ({t: store[t].payload.token_ids for t in store.ids} for store in (PayloadStore(tmp_path/n) for n in 'abc'))
    assert len(a) == 10 and a == b and a != c and any(a[t] != a[f'{t}#1'] for t in a if '#' not in t)
    assert PayloadStore(tmp_path/'a').sender == 'tiny-math, temperature 20, seed 0' and PayloadStore(tmp_path/'c').sender.endswith('seed 1')


def test_a_codec(tmp_path):
    for codec in (None, 'bfloat16', 'int8'): collect(tmp_path/str(codec), '--channel', 'kvcomm', *(['--codec', codec] if codec else []))
    whole, half, blocks = (PayloadStore(tmp_path/n) for n in ('None', 'bfloat16', 'int8'))
    sizes = [sum(p.stat().st_size for p in s.path.glob('shard-*')) for s in (whole, half, blocks)]
    assert sizes == sorted(sizes, reverse=True)
    for t in whole.ids: assert all(torch.equal(x.bfloat16(), y) for x, y in zip(whole[t].payload.keys, half[t].payload.keys))


COLLECT = "import sys; sys.argv[0] = 'interlat-collect'; from interlat.commands.cli import main_collect; main_collect()"

def start(out, *more):
    words = ['math', '--model_name_or_path', 'tiny-math', '--num_problems', '24', '--device', 'cpu', '--channel', 'latentmas:latent_steps=2', '--batch_size', '2', '--output_dir', str(out), *more]
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.Popen([*warm(), '-c', COLLECT, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_and_begun_again_it_has_the_same_bytes(tmp_path):
    with start(tmp_path/'whole') as p: assert p.wait(300) == 0, p.stderr.read()
    rng, seen = random.Random(1), 0
    for _ in range(3):
        with start(tmp_path/'killed') as p:
            goal = seen + rng.randint(1, 3)
            while p.poll() is None and len(list((tmp_path/'killed').glob('shard-*'))) < goal: pass
            p.send_signal(signal.SIGKILL)
        seen = len(list((tmp_path/'killed').glob('shard-*')))
        assert PayloadStore(tmp_path/'killed').verify() == {}
    assert 0 < seen < 12
    with start(tmp_path/'killed') as p: assert p.wait(300) == 0, p.stderr.read()
    assert there(tmp_path/'killed') == there(tmp_path/'whole') and len(PayloadStore(tmp_path/'whole')) == 24


def test_a_batch_of_which_a_part_is_there_is_made_again_whole(sender, tasks, tmp_path):
    "Its last bits depend on who shares it."
    way, asked = channel('latentmas', latent_steps=2), []
    send, way.send = way.send, lambda sender, prompts, seeds=None: (asked.append(len(prompts)), send(sender, prompts, seeds))[1]
    whole, part = (PayloadStore(tmp_path/n, 'tiny', 'latentmas', channel_options(way), max_bytes=2**20) for n in ('whole', 'part'))
    collect_payloads(way, sender, tasks, whole, 4, progress=False)
    part.put(whole[tasks[0].task_id])
    collect_payloads(way, sender, tasks, part, 4, progress=False)
    assert asked == [4, 1, 4, 1] and all((whole[t].pack(), part[t].pack()) == (whole[t].pack(),)*2 for t in whole.ids)
    collect_payloads(way, sender, tasks, part, 4, progress=False)
    assert asked == [4, 1, 4, 1], 'a third time there is nothing to do'


def test_seeds_are_those_of_a_bench(tasks):
    "One a task, from the seed and its name."
    given = []
    way = SimpleNamespace(name='x', same_prompt=False, send=lambda sender, prompts, seeds: given.extend(seeds) or [None]*len(prompts))
    make_messages(way, SimpleNamespace(model=SimpleNamespace(eval=lambda: None, device=torch.device('cpu'))), tasks, 2, 7, progress=False)
    assert given == [derive_seed(7, 'send', t.task_id) for t in tasks]


def test_sent_and_received_by_commands(tmp_path, capsys):
    collect(tmp_path/'ours', '--channel', 'latentmas:latent_steps=2')
    cli.send(['--messages', str(tmp_path/'ours'), '--to', str(tmp_path/'post')])
    cli.receive(['--at', str(tmp_path/'post'), '--output_dir', str(tmp_path/'theirs'), '--channel', 'latentmas'])
    said = capsys.readouterr().out
    assert '5 payloads sent' in said and '5 payloads received, 0 were there already' in said
    a, b = (PayloadStore(tmp_path/n) for n in ('ours', 'theirs'))
    assert a.kind == b.kind and all(a[t].pack() == b[t].pack() for t in a.ids)
    for words, why in ((['--basis', str(tmp_path/'none')], 'basis not found'),):
        with pytest.raises(InterlatError, match=why): cli.send(['--messages', str(tmp_path/'ours'), '--to', str(tmp_path/'post'), *words])
    with pytest.raises(InterlatError, match='parcel for .*: a basis is for messages of states'):
        from interlat.messages.basis import fit_basis
        fit_basis([torch.randn(9, 4)], 2).save(tmp_path/'b')
        cli.send(['--messages', str(tmp_path/'ours'), '--to', str(tmp_path/'post2'), '--basis', str(tmp_path/'b')])
