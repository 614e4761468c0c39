"The generator: determinism, splits, layout, proof, speed."
import hashlib, json, os, re, shutil, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest

import interlat.games.generate as generate
from interlat.games.gamefile import read_game
from interlat.games.find import find_games
from interlat.games.env import GameEnv
from interlat.core.basics import InterlatError
from interlat.games.engine import NativeEngine
from interlat.games.gamefile import TASK_TYPES
from interlat.games.generate import certify, generate_games, make_game
from interlat.games.scenes import SPLITS, TRAINING, UNSEEN, WITHHELD, candidates, shipped

SIZES = ('small', 'full')


def digest(folder):
    "One hash of all files below a folder, names included."
    files = sorted(p for p in Path(folder).rglob('*') if p.is_file())
    return hashlib.sha256(b''.join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def scene(file): return int(file.parent.parent.name.rsplit('-', 1)[1])


@pytest.fixture(scope='module')
def collections(tmp_path_factory):
    "Sixty games of every split and size."
    folder = tmp_path_factory.mktemp('collections')
    return {(size, split): generate_games(folder/size, 60, split, seed=3, size=size) for size in SIZES for split in SPLITS}


def test_same_seed_same_bytes_in_any_process(tmp_path):
    code = "import sys; from interlat.games.generate import generate_games as g; [g(sys.argv[1] + '/' + s, 12, t, 5, s) for s in ('small', 'full') for t in ('train', 'valid_seen', 'valid_unseen')]"
    digests = set()
    for hashseed in '12':
        out = tmp_path/hashseed
        subprocess.run([sys.executable, '-c', code, str(out)], env=dict(os.environ, PYTHONHASHSEED=hashseed), check=True)
        digests.add(digest(out))
    assert len(digests) == 1


def test_the_global_random_state_is_left_alone():
    import random
    random.seed(1)
    before = random.getstate()
    first = make_game(TASK_TYPES[0], 'train', 'small', 0, 0)
    assert random.getstate() == before
    random.seed(2)
    assert make_game(TASK_TYPES[0], 'train', 'small', 0, 0) == first


def test_a_larger_collection_begins_with_the_smaller_one(tmp_path):
    ten, twenty = generate_games(tmp_path/'a', 10), generate_games(tmp_path/'b', 20)
    name = lambda f: f.parts[-3:]
    assert [name(f) for f in ten] == [name(f) for f in twenty[:10]]
    assert [f.read_bytes() for f in ten] == [f.read_bytes() for f in twenty[:10]]
    assert generate_games(tmp_path/'a', 20)[:10] == ten and digest(tmp_path/'a') == digest(tmp_path/'b')


def test_seeds_and_sizes_differ(tmp_path):
    texts = [make_game(TASK_TYPES[0], 'train', size, seed, 0)[1]['pddl_problem'] for size in SIZES for seed in (0, 1)]
    assert len({*texts}) == 4


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('split', SPLITS)
def test_six_types_equally_often_in_the_scenes_of_the_split(collections, size, split):
    files = collections[size, split]
    assert Counter(f.parent.parent.name.split('-')[0] for f in files) == {t: 10 for t in TASK_TYPES}
    assert {scene(f) for f in files} <= {*SPLITS[split]} and find_games(files[0].parents[3], split) == sorted(files)


def test_splits_keep_their_scenes_apart():
    assert len(TRAINING) == 108 and len({*TRAINING, *UNSEEN, *WITHHELD}) == 120
    assert SPLITS['train'] == SPLITS['valid_seen'] == TRAINING and SPLITS['valid_unseen'] == UNSEEN
    for kind in TASK_TYPES: assert any(candidates(n, kind) for n in UNSEEN)


def test_train_and_valid_seen_have_no_room_in_common(monkeypatch):
    "With one possible room only one of the two splits may have it, whatever the seeds."
    for index in range(8):
        draft = generate.draw(generate.random.Random(index), TASK_TYPES[0], 'train', 'small')
        assert generate._belongs(draft, 'train') != generate._belongs(draft, 'valid_seen')
    drafts = [generate.draw(generate.random.Random(k), TASK_TYPES[0], 'train', 'small') for k in range(400)]
    assert 60 < sum(generate._belongs(d, 'valid_seen') for d in drafts) < 140


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('split', SPLITS)
def test_every_game_is_won_by_its_walkthrough_and_not_before(collections, size, split):
    for file in collections[size, split]:
        env = GameEnv(file)
        seen = env.reset()
        for command in read_game(file).walkthrough:
            assert not seen.won and command in seen.admissible_commands
            seen = env.step(command)
        assert seen.won and seen.done and env.steps <= 11


@pytest.mark.parametrize('split', SPLITS)
def test_small_rooms_are_small_and_determined(collections, split):
    for file in collections['small', split]:
        game = read_game(file)
        assert sum(t.kind == game.target for t in game.things.values()) == 1 + (game.task_type == 'pick_two_obj_and_place')
        assert 5 <= len(game.receptacles) <= 8 and 6 <= len(game.things) <= 10
        assert max(Counter(r.kind for r in game.receptacles.values()).values()) <= 3


@pytest.mark.parametrize('size', SIZES)
def test_things_lie_where_they_may_and_the_player_stands_apart(collections, size):
    for split in SPLITS:
        for file in collections[size, split]:
            game = read_game(file)
            assert game.start not in {r.location for r in game.receptacles.values()}
            for thing in game.things.values():
                place = game.receptacles[thing.inside[0]]
                assert thing.spots == (place.location,)
                assert 'pickupable' not in thing.can or (place.kind, thing.kind) in game.can_contain


def test_official_layout(collections):
    for (size, split), files in collections.items():
        for file in files[:12]:
            kind, target, movable, parent, number, trial = re.fullmatch(r'(\w+)-(\w+)-(\w+)-(\w+)-(\d+)/(trial_\w+)', '/'.join(file.parts[-3:-1])).groups()
            data, traj = json.loads(file.read_text()), json.loads((file.parent/'traj_data.json').read_text())
            assert list(data) == ['pddl_domain', 'grammar', 'pddl_problem', 'solvable', 'walkthrough'] and data['solvable'] is True
            look = kind == 'look_at_obj_in_light'
            assert movable == 'None' and (parent == 'DeskLamp') == look and file.parent.parent.parent.name == split
            assert traj['task_type'] == kind and traj['pddl_params']['object_target'] == target
            assert (traj['pddl_params']['toggle_target'] if look else traj['pddl_params']['parent_target']) == parent
            assert traj['turk_annotations']['anns'][0]['task_desc'] == read_game(file).task
            assert data['pddl_problem'].count('(') == data['pddl_problem'].count(')')


def test_every_id_that_a_fact_uses_is_declared(collections):
    for file in collections['full', 'train'][:12]:
        problem = json.loads(file.read_text())['pddl_problem']
        objects, init = problem[:problem.index('(:init')], problem[problem.index('(:init'):problem.index('(:goal')]
        declared = {*re.findall(r'^\s+(\S+) - \w+$', objects, re.M)}
        used = {w for fact in re.findall(r'\(\w+ ([^()]+)\)', init) for w in fact.split()}
        assert used <= declared and len(declared) == objects.count(' - ')


def test_task_types_can_be_chosen(tmp_path):
    files = generate_games(tmp_path, 6, task_types=['look_at_obj_in_light', 'pick_two_obj_and_place'])
    assert [read_game(f).task_type for f in files] == ['look_at_obj_in_light', 'pick_two_obj_and_place'] * 3


def test_a_failing_game_stops_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, 'expert_plan', lambda game: ['look'])
    with pytest.raises(InterlatError, match='the walkthrough does not win'): generate_games(tmp_path, 1)
    assert not [*tmp_path.rglob('game.tw-pddl')]


def test_a_call_that_was_killed_goes_on(tmp_path, monkeypatch):
    files = generate_games(tmp_path/'whole', 6)
    rename, left = os.replace, [4]

    def killed(old, new):
        if Path(new).name.startswith('trial_'): left[0] -= 1
        if left[0] == 0: raise KeyboardInterrupt
        rename(old, new)
    monkeypatch.setattr(generate.os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt): generate_games(tmp_path/'cut', 6)
    monkeypatch.undo()
    done = find_games(tmp_path/'cut', 'train')
    assert len(done) == 3
    kept = [f.stat().st_mtime_ns for f in done]
    assert len(generate_games(tmp_path/'cut', 6)) == 6 == len(files)
    assert digest(tmp_path/'cut') == digest(tmp_path/'whole') and [f.stat().st_mtime_ns for f in done] == kept


def test_other_content_is_refused(tmp_path):
    files = generate_games(tmp_path, 3)
    for change in (dict(seed=1), dict(size='full'), dict(task_types=TASK_TYPES[:2])):
        with pytest.raises(InterlatError, match='holds other games; use another folder, or delete it'): generate_games(tmp_path, 3, **change)
    with pytest.raises(InterlatError, match='holds 3 games of this seed, more than n=2'): generate_games(tmp_path, 2)
    files[0].write_text(files[0].read_text() + ' ')
    with pytest.raises(InterlatError, match='is not the game that this version makes'): generate_games(tmp_path, 3)
    (tmp_path/'valid_seen').mkdir()
    (tmp_path/'valid_seen'/'mine').write_text('')
    with pytest.raises(InterlatError, match='holds other games'): generate_games(tmp_path, 3, 'valid_seen')


@pytest.mark.parametrize('wrong, said', [
    (dict(n=0), 'n must be an integer, 1 or more, found 0'), (dict(n='5'), "n must be an integer, 1 or more, found '5'"), (dict(n=True), 'found True'),
    (dict(seed=-1), 'seed must be an integer, 0 or more, found -1'), (dict(seed=1.5), 'found 1.5'),
    (dict(split='test'), "unknown split 'test'; use train, valid_seen, valid_unseen"), (dict(size='huge'), "unknown size 'huge'; use small, full"),
    (dict(task_types=['cook']), r"unknown task types \['cook'\]; use some of pick_and_place_simple"), (dict(task_types=[]), 'unknown task types')])
def test_wrong_arguments(tmp_path, wrong, said):
    with pytest.raises(InterlatError, match=said): generate_games(**{**dict(out=tmp_path/'out', n=1), **wrong})
    assert not (tmp_path/'out').exists()


def test_without_the_alfworld_package(monkeypatch):
    shipped.cache_clear()
    monkeypatch.setattr('interlat.games.scenes.find_spec', lambda name: None)
    with pytest.raises(InterlatError, match='package not found: alfworld; `pip install'): shipped()


def test_alfworld_itself_is_never_imported(tmp_path):
    code = "import sys; from interlat.alfworld import *; generate_games(sys.argv[1], 2); print(*sorted({'alfworld', 'textworld', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, text=True, capture_output=True)
    assert done.stdout.strip() == ''


@pytest.mark.parametrize('size', SIZES)
def test_fifty_certified_games_a_second(tmp_path, size):
    "In processor time, so that a busy machine does not fail it."
    generate_games(tmp_path/'warm', 120, size=size)
    start = time.process_time()
    generate_games(tmp_path/'games', 100, seed=1, size=size)
    assert 100 / (time.process_time() - start) > 50


def test_a_game_file_is_data(tmp_path):
    "Code in the grammar, where the stock engine would evaluate it, is never run; in the task sentence it is refused."
    file, marker = generate_games(tmp_path/'games', 1)[0], tmp_path/'ran'
    text, code = file.read_text(), "{__import__('pathlib').Path('" + str(marker) + "').touch()}"
    file.write_text(text.replace('You are not carrying anything.', code).replace('You arrive at', code))
    env = GameEnv(file)
    env.reset()
    assert env.step('inventory').observation == 'You are not carrying anything.'
    for command in read_game(file).walkthrough: env.step(command)
    file.write_text(re.sub('Your task is to: [^.]*', lambda m: 'Your task is to: ' + code, text))
    with pytest.raises(InterlatError, match="no plain task sentence"): GameEnv(file)
    assert not marker.exists()
