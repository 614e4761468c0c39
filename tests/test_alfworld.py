"Finding games, whole or half there; and every official game that is here is won by its walkthrough."
import json, shutil, tarfile
from collections import Counter
from pathlib import Path

import pytest

from interlat.games.gamefile import TASK_TYPES, read_game
from interlat.games.generate import generate_games
from interlat.games.find import find_games
from interlat.games.words import expert_turns, plan_text
from interlat.core.basics import InterlatError
from interlat.games.gamefile import parse_game
from interlat.games.generate import certify

ARCHIVE = Path(__file__).resolve().parents[2]/'shared'/'data'/'alfworld_json_2.1.1.tar.xz'


@pytest.fixture
def root(tmp_path):
    "Two games of 'train' in the layout of `alfworld-download`: the folder above json_2.1.1."
    generate_games(tmp_path/'data'/'json_2.1.1', 2, 'train')
    return tmp_path/'data'


def rewrite(file, change):
    file.write_text(change(file.read_text()))


def test_no_path_is_alfworlds_own_place(root, tmp_path, monkeypatch):
    monkeypatch.setenv('ALFWORLD_DATA', str(root))
    assert find_games() == find_games('', 'train') == find_games(root) == find_games(str(root/'json_2.1.1'), 'train') and len(find_games()) == 2
    monkeypatch.delenv('ALFWORLD_DATA')
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(InterlatError, match=r'folder of games not found: .*/\.cache/alfworld; fetch .*`alfworld-download`.*`interlat-games`'): find_games()
    shutil.copytree(root, tmp_path/'.cache'/'alfworld')
    assert len(find_games()) == 2


def test_traj_data_makes_no_difference(root):
    files = find_games(root)
    for f in files: f.with_name('traj_data.json').unlink(missing_ok=True)
    assert find_games(root) == files
    for f in files: f.with_name('traj_data.json').write_text('{}')
    assert find_games(root) == files


def test_games_without_a_mark(root):
    good, bad = find_games(root)
    for f in (good, bad): rewrite(f, lambda text: text.replace('"solvable": true, ', ''))
    assert '"solvable"' not in good.read_text()
    rewrite(bad, lambda text: json.dumps({**json.loads(text), 'walkthrough': ['look']}))
    with pytest.raises(InterlatError, match="no games in split 'train' .*; 2 have no `solvable` mark, and unmarked='skip' keeps"): find_games(root)
    assert find_games(root, unmarked='check') == [good] and find_games(root, unmarked='keep') == [good, bad]
    rewrite(good, lambda text: json.dumps({'solvable': True, **json.loads(text)}))
    assert find_games(root) == [good], 'the mark may stand at the begin'


def test_a_false_mark_is_believed(root):
    files = find_games(root)
    rewrite(files[0], lambda text: text.replace('"solvable": true', '"solvable": false'))
    assert find_games(root, unmarked='keep') == files[1:]
    rewrite(files[1], lambda text: text.replace('"solvable": true', '"solvable" :null'))
    with pytest.raises(InterlatError, match='all 2 are marked as not solvable'): find_games(root, unmarked='keep')


def test_half_a_download(root):
    with pytest.raises(InterlatError, match="no games in split 'valid_seen' of .*; splits with games: train; fetch .* `alfworld-download`"): find_games(root, 'valid_seen')
    for f in find_games(root):
        f.with_name('traj_data.json').write_text('{}')
        f.unlink()
    with pytest.raises(InterlatError, match='2 trials have a traj_data.json but none its game.tw-pddl: .*run `alfworld-download` again'): find_games(root)
    with pytest.raises(InterlatError, match='splits with games: none'): find_games(root.parent)


def test_trials_that_lack_their_game_are_told_beside_those_that_have_one(root, recwarn):
    files = find_games(root)
    assert not recwarn.list
    split = files[0].parents[2]
    for k, name in enumerate(['pick_and_place_simple-Mug-None-Shelf-1', 'pick_and_place_with_movable_recep-Mug-Bowl-Shelf-1', 'pick_and_place_simple-AppleSliced-None-Shelf-1']):
        (split/name/f'trial_{k}').mkdir(parents=True)
        (split/name/f'trial_{k}'/'traj_data.json').write_text('{}')
    (split/'pick_and_place_simple-Mug-None-Shelf-1'/'notes').mkdir()
    def told():
        with pytest.warns(UserWarning) as found: assert find_games(root) == files
        (line,) = found
        return str(line.message)
    (split/'games.json').unlink(missing_ok=True)
    assert told() == (f'no game.tw-pddl in 1 of 3 trials of {split}, such as pick_and_place_simple-Mug-None-Shelf-1/trial_0; they are left out: '
                      'the download stopped halfway, run `alfworld-download` again')
    (split/'games.json').write_text('{}')
    assert told().endswith('delete their folders and run `interlat-games` again')


@pytest.mark.parametrize('cut', [lambda b: b[:-1], lambda b: b[:len(b)//2], lambda b: b[:b.rindex(b'"solvable"')], lambda b: b'',
                                 lambda b: b[:-300] + bytes(300), lambda b: b[:b.index(b'}')+1]], ids=['brace', 'half', 'mark', 'all', 'zeros', 'a brace ends it'])
def test_a_file_that_was_cut_short_is_an_error(root, cut):
    file = find_games(root)[1]
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(InterlatError, match=f'game file cut short: {file}; .*`alfworld-download --force`, or delete it'): find_games(root)
    file.unlink()
    assert len(find_games(root)) == 1


def test_a_whole_file_may_end_in_any_way(root):
    file = find_games(root)[0]
    rewrite(file, lambda text: json.dumps({**json.loads(text), 'note': 3}) + '\n\n')
    assert len(find_games(root)) == 2


def test_words_of_other_commands(root):
    game = read_game(find_games(root)[0])
    commands = ['look', 'inventory', *game.walkthrough, 'help']
    assert plan_text(game, commands) == plan_text(game) and plan_text(game, []) == '.'
    assert [t['content'] for t in expert_turns(game, commands)[1::2]] == commands and expert_turns(game, list(game.walkthrough)) == expert_turns(game)


@pytest.mark.skipif(not ARCHIVE.exists(), reason='the official games are not here')
def test_the_walkthrough_wins_every_official_game():
    "Every command admissible, and exactly the last one wins."
    won = Counter()
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if not member.name.endswith('.tw-pddl'): continue
            game = parse_game(json.load(archive.extractfile(member)))
            certify(game)
            won[member.name.split('/')[-4], game.task_type] += 1
            assert game.task_type == member.name.split('/')[-3].split('-')[0]
    assert sum(won.values()) == 3693 and {kind for _, kind in won} == {*TASK_TYPES}
    assert [sum(n for (s, _), n in won.items() if s == split) for split in ('train', 'valid_seen')] == [3553, 140]
