"The benchmarks run, at a size that measures nothing."
import csv, importlib.util, json, sys, tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from notebooks import ROOT
from warm import warm

from interlat.games.generate import generate_games

sys.path.append(str(ROOT/'benchmarks'))
import sides


def script(name):
    spec = importlib.util.spec_from_file_location(f'{name}_benchmark', ROOT/'benchmarks'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for runs in (sides, module): # what it starts starts warm
        if hasattr(runs, 'PYTHON'): runs.PYTHON = warm()
    return module


@pytest.fixture(scope='module')
def bench(): return script('engine')


def test_rollout_ways_agree_and_the_cache_computes_less():
    rows = script('rollout').measure(n=3, max_steps=3)
    assert len(rows) == 5 and len({r['steps'] for r in rows}) == 1
    computed = {r['way']: r['computed'] for r in rows}
    assert computed['generate, one at a time'] == computed['one at a time, read anew'] == computed['together, read anew']
    assert computed['together, cached'] == computed['one at a time, cached'] < computed['together, read anew']


def test_native_parts(bench, tmp_path):
    files = generate_games(tmp_path, 3, 'train')
    assert len(bench.commands_for(files[0], 0)) == bench.STEPS
    assert bench.steps_per_second(files, 0, 5) > 0
    assert bench.side_by_side(files, 0, 2)['games'] == 6
    assert bench.memory(files, 100, 50)['games'] == 100


def test_whole_benchmark(bench, capsys, monkeypatch, tmp_path):
    if not find_spec('textworld'): pytest.skip('the stock engine is not installed: `make test` brings it')
    whole = bench.benchmark
    monkeypatch.setattr(bench, 'benchmark', lambda *a: whole(*a, n_memory=60))
    bench.main(['--n', '1', '--out', str(tmp_path/'engine.json')])
    result = json.loads((tmp_path/'engine.json').read_text())
    assert result['engines']['games'][0]['ratio'] == result['engines']['median_ratio'] and result['memory']['games'] == 60
    assert 'ratio: ' in capsys.readouterr().out


def test_store_against_nested_lists(capsys, tmp_path):
    if not find_spec('pyarrow'): pytest.skip('needs pyarrow')
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    script('store').main(['--n', '6', '--length', '5', '--width', '8', '--shard', '4', '--out', str(tmp_path/'store.json')])
    result = json.loads((tmp_path/'store.json').read_text())
    assert [r['side'] for r in result['rows']] == ['store', 'nested'] and all(r['seconds'] > 0 and r['peak_mb'] >= 0 for r in result['rows'])
    assert 'faster' in capsys.readouterr().out


def test_signing_against_hashing(capsys, tmp_path):
    script('signing').main(['--size', '3', '4', '--rounds', '2', '--out', str(tmp_path/'signing.json')])
    size, = json.loads((tmp_path/'signing.json').read_text())['sizes']
    assert [r['side'] for r in size['rows']] == ['pack', 'unpack', 'hash', 'sign', 'open'] and all(r['ms'] > 0 for r in size['rows'])
    assert min(size['of_hashing'], size['of_packing'], size['remember_ms']) > 0 and 'x hashing the packet' in capsys.readouterr().out


def test_a_cache_through_the_mailbox(capsys, monkeypatch, tmp_path):
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    monkeypatch.chdir(tmp_path)
    bench = script('cache')
    bench.main(['--tokens', '40', '--layers', '2', '--rounds', '1', '--out', 'cache.json'])
    result = json.loads((tmp_path/'cache.json').read_text())
    assert [r['side'] for r in result['rows']] == ['plain', 'mailbox'] and all(min(r['write_s'], r['read_s'], r['mb_s']) > 0 for r in result['rows'])
    assert result['payload'] < result['packet'] < result['payload'] + 2000 and result['share'] > 0 and min(result['send_memory'], result['read_memory']) >= 0
    assert "of the disk's bandwidth" in capsys.readouterr().out and list(tmp_path.iterdir()) == [tmp_path/'cache.json']
    monkeypatch.setattr(bench, 'read', lambda folder: bench.parcel(41, 2, 3, 64))
    with pytest.raises(RuntimeError, match='another payload arrived'): bench.measure(40, 2, 3, 64, 1)


def test_collecting_against_the_way_that_reads_twice(capsys, tmp_path):
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    bench = script('collect')
    bench.main(['--model', 'tiny-qwen2', '--n', '3', '--tokens', '5', '--batch', '2', '--out', str(tmp_path/'collect.json')])
    result = json.loads((tmp_path/'collect.json').read_text())
    assert [r['side'] for r in result['rows']] == ['ours', 'twice'] and all(r['messages'] == 3 and r['seconds'] > 0 for r in result['rows'])
    assert result['apart'] < 1e-5 and 'the same words' in capsys.readouterr().out
    h = bench.torch.ones(2, 3)
    for name, words in zip(bench.SIDES, ([4, 5], [4, 6])): bench.torch.save([(h, words)], tmp_path/f'{name}.pt')
    with pytest.raises(RuntimeError, match='the sides wrote different words'): bench.same(tmp_path)


def test_what_is_trained_of_an_actor(capsys, tmp_path):
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    script('trainable').main(['--model', 'tiny-qwen2', '--n', '2', '--steps', '1', '--out', str(tmp_path/'trainable.json')])
    whole, lora, adapter = json.loads((tmp_path/'trainable.json').read_text())['rows']
    assert [r['side'] for r in (whole, lora, adapter)] == ['all', 'lora', 'adapter'] and whole['trained'] > lora['trained'] > adapter['trained']
    assert whole['faster'] == whole['memory'] == 1 and whole['tokens'] == lora['tokens'] and all(r['seconds'] > 0 for r in (lora, adapter))
    assert 'supervised' in capsys.readouterr().out


def test_training_step_against_the_plain_one():
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    bench = script('train')
    result = bench.measure(300, .5, steps=2, turns=1)
    assert [(r['side'], r['gradients']) for r in result['rows']] == [*bench.SIDES] and all(r['faster'] > 0 for r in result['rows'])
    assert result['head']['over_products'] > 0
    assert max(r['loss'] for r in result['rows']) - min(r['loss'] for r in result['rows']) < 1e-3


def test_compressed_message_takes_fewer_passes():
    result = script('compress').latency(tokens=12, Ks=(3, 5), batch=2, runs=1)
    rows = {(r['way'], r['states']): r for r in result['rows']}
    assert [rows[w, 12]['passes'] for w in ('full: write', 'full: bare loop')] == [12, 12]
    assert [rows[w, K]['passes'] for K in (3, 5) for w in ('latent', 'bare')] == [4, 4, 6, 6]
    assert all(0 < r['made'] < r['least'] <= r['seconds'] <= r['most'] for r in rows.values())
    assert rows['latent', 5]['floor_passes'] == 2 and rows['latent', 5]['faster'] > 0


def test_students_step_against_the_plain_one(capsys, tmp_path):
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('needs /proc')
    script('compress').main(['--only', 'step', '--K', '2', '--vocab', '300', '--steps', '1', '--out', str(tmp_path)])
    rows = list(csv.DictReader((tmp_path/'compress_step.csv').open()))
    assert [r['side'] for r in rows] == ['loop, no cache', 'loop', 'ours'] and float(rows[2]['ours_faster']) == 1 and all(float(r['seconds']) > 0 for r in rows)
    assert 'are equal on all sides' in capsys.readouterr().out


def test_a_loss_of_another_size_is_noticed(monkeypatch):
    bench = script('compress')
    ours = bench.Distillation.forward
    monkeypatch.setattr(bench.Distillation, 'forward', lambda self, batch: {k: v*(1.001 if k == 'preference' else 1) for k, v in ours(self, batch).items()})
    with pytest.raises(RuntimeError, match='the sides differ by up to 1.0e-03'): bench.check(2, 300)


def test_grading_of_problems_in_a_folder_and_in_a_tar(capsys, tmp_path):
    if not find_spec('math_verify'): pytest.skip('needs math-verify')
    golds = [r'\frac{1}{2}', '12', r'2\sqrt{3}', '(1,2)', '1, 3', 'x = 5', r'10\text{ cm}', r'x+1']
    for k, gold in enumerate(golds):
        file = tmp_path/'MATH'/'train'/'algebra'/f'{k}.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dict(problem='?', level='Level 1', type='Algebra', solution=rf'It is $\boxed{{{gold}}}$.')))
    with tarfile.open(tmp_path/'MATH.tar.xz', 'w:xz') as tar: tar.add(tmp_path/'MATH', 'MATH')
    bench = script('grading')
    for path in (tmp_path/'MATH', tmp_path/'MATH.tar.xz'): assert sorted(p['solution'] for _, p in bench.problems(path)) == sorted(rf'It is $\boxed{{{g}}}$.' for g in golds)
    bench.main(['--data_path', str(tmp_path/'MATH.tar.xz'), '--n', '8', '--workers', '1', '--out', str(tmp_path/'out.json')])
    result = json.loads((tmp_path/'out.json').read_text())
    assert result['itself'] == dict(n=8, exact=8, equivalent=8) and result['boxes'] == dict(none=0, empty=0)
    assert [result[k]['off'] for k in ('different', 'hard', 'same')] == [0, 0, 0] and result['hard']['n'] > 8 and result['same']['n'] > 20
    assert 'sqrt' not in (tmp_path/'out.json').read_text() and 's in all' in capsys.readouterr().out
    with pytest.raises(bench.InterlatError, match='MATH problems not found'): bench.problems(tmp_path/'none')


def test_channels_against_plain_json(capsys, monkeypatch, tmp_path):
    bench = script('channel')
    monkeypatch.setattr(bench, 'SIDES', ('plain', 'socket int8', 'folder float32'))
    bench.main(['--size', '3', '4', '2', '--rounds', '1', '--out', str(tmp_path/'channel.json')])
    size, = json.loads((tmp_path/'channel.json').read_text())['sizes']
    assert [r['side'] for r in size['rows']] == list(bench.SIDES) and all(r['ms'] > 0 and r['mb'] > 0 for r in size['rows']) and size['rows'][0]['faster'] == 1
    assert 'x faster' in capsys.readouterr().out
    messages = [bench.message(i, 2, 3) for i in range(2)]
    sums = [m.h[0].double().sum().item() for m in messages]
    bench.check('plain', messages, sums)
    for wrong in (sums[:1], [sums[0], sums[1] + 1e-5]):
        with pytest.raises(RuntimeError, match='socket float32: . of 2 messages'): bench.check('socket float32', messages, wrong)


def test_all_claims_by_one_command(capsys, monkeypatch, tmp_path):
    bench = script('all')
    (tmp_path/'quick.py').write_text("import json, sys; json.dump([dict(what='ours', against='theirs', ratio=2.5, a=.1, b=.25)], open(sys.argv[-1], 'w'))")
    (tmp_path/'broken.py').write_text('1/0')
    monkeypatch.setattr(bench, 'HERE', tmp_path)
    def claims(out):
        for d in json.loads((out/'quick.json').read_text()): yield tuple(d.values())
    monkeypatch.setattr(bench, 'BENCHMARKS', dict(quick=(lambda out: ['--out', out/'quick.json'], claims), broken=(lambda out: [], claims)))
    bench.main(['--only', 'quick', '--out', str(tmp_path/'out')])
    row, = csv.DictReader((tmp_path/'out'/'claims.csv').open())
    assert row == dict(benchmark='quick', what='ours', against='theirs', faster='2.5', seconds='0.1', against_seconds='0.25')
    assert {'machine', 'git', 'packages', 'seconds'} == set(json.loads((tmp_path/'out'/'run.json').read_text()))
    with pytest.raises(bench.InterlatError, match='broken.py ended with status 1'): bench.main(['--only', 'broken', '--out', str(tmp_path/'out')])
    with pytest.raises(bench.InterlatError, match="unknown benchmark 'all'; use quick, broken"): bench.main(['--only', 'all'])


def test_every_claim_can_be_read_from_what_is_kept():
    bench, kept = script('all'), ROOT/'data'/'benchmarks'
    rows = [r for name, (_, told) in bench.BENCHMARKS.items() for r in told(kept)]
    assert len(rows) >= 15 and all(ratio > 0 and ours > 0 and theirs > 0 for _, _, ratio, ours, theirs in rows)
    with (kept/'claims.csv').open(encoding='utf-8') as f: assert len(list(csv.DictReader(f))) == len(rows)


def test_what_is_told_is_near_what_is_measured(monkeypatch):
    bench = script('budget')
    small = bench.larger
    monkeypatch.setattr(bench, 'larger', lambda folder: small(folder, 2, 64))
    rows = bench.measure(n=4, new=4, steps=1, batch=4)['rows']
    assert len(rows) == 4 and all(r['told'] > 0 and r['measured'] > 0 and .02 < r['ratio'] < 50 for r in rows)
