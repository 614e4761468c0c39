"The native engine's rules with chosen values, and game files that are not what they should be."
import json, shutil

import pytest

from interlat.games.gamefile import read_game
from interlat.games.generate import expert_plan, generate_games
from interlat.games.household import enough, game_task, share
from interlat.games.find import find_games, task_type
from interlat.games.env import GameEnv
from interlat.games.words import map_text, plan_text
from interlat.core.basics import InterlatError
from interlat.games.engine import NativeEngine
from interlat.games.gamefile import parse_game

GRAMMAR = 'template :: "move {o} to {r}" "rhs": "Your task is to: put two mug in shelf."'
TWO = """(:goal (and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 MugType) (receptacleType ?r ShelfType)
    (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 MugType) (receptacleType ?r ShelfType)
    (inReceptacle ?o2 ?r))))))))"""
LOOK = """(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot DeskLampType) (toggleable ?ot)
    (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) (exists (?o - object ?a - agent)
    (and (objectType ?o MugType) (holds ?a ?o)))))"""
CLEAN = """(:goal (and (exists (?r - receptacle) (exists (?o - object) (and (cleanable ?o) (objectType ?o MugType)
    (receptacleType ?r ShelfType) (isClean ?o) (inReceptacle ?o ?r))))))"""

# A kitchen corner: the shelves share a place with the drawer; pan 1 stands on both burners; mug 1 holds spoon 1; the lamp is in the drawer.
PLACES = dict(Shelf_bar_1='A', Shelf_bar_2='A', Drawer_bar_1='A', Sink_bar_1_bar_SinkBasin='B', Fridge_bar_1='C', Microwave_bar_1='C',
              StoveBurner_bar_1='D', StoveBurner_bar_2='D')
INSIDE = dict(Mug_bar_1=['Drawer_bar_1'], Mug_bar_2=['Sink_bar_1_bar_SinkBasin'], Pan_bar_1=['StoveBurner_bar_1', 'StoveBurner_bar_2'],
              Knife_bar_1=['Shelf_bar_1'], Apple_bar_1=['Drawer_bar_1'], DeskLamp_bar_1=['Drawer_bar_1'], Spoon_bar_1=[])
CAN = dict(Mug='pickupable cleanable heatable coolable', Pan='pickupable isReceptacleObject', Knife='pickupable', Spoon='pickupable',
           Apple='pickupable sliceable coolable heatable cleanable', DeskLamp='toggleable')


def kitchen(goal=TWO, extra=''):
    "The JSON object of a game in the kitchen corner."
    kind = lambda id: id.split('_bar_')[0] if 'Basin' not in id else 'SinkBasin'
    facts = [f'atLocation agent1 loc_bar_0']
    for r, place in PLACES.items():
        facts += [f'receptacleType {r} {kind(r)}Type', f'receptacleAtLocation {r} loc_bar_{place}']
        if kind(r) in ('Drawer', 'Fridge', 'Microwave'): facts.append(f'openable {r}')
        facts += [f'canContain {kind(r)}Type {o}Type' for o in ('Mug', 'Knife', 'Apple')]
    for o, where in INSIDE.items():
        facts += [f'objectType {o} {kind(o)}Type'] + [f'{can} {o}' for can in CAN[kind(o)].split()]
        facts += [fact for r in where for fact in (f'inReceptacle {o} {r}', f'objectAtLocation {o} loc_bar_{PLACES[r]}')]
    init = ' '.join(f'({fact})' for fact in facts) + ' (inReceptacleObject Spoon_bar_1 Mug_bar_1) ' + extra
    return dict(grammar=GRAMMAR, pddl_problem=f'(define (:init {init}) {goal})', walkthrough=[], solvable=True)


def play(*commands, **kw):
    "An engine after some commands, and what it said to the last."
    engine = NativeEngine(parse_game(kitchen(**kw)))
    text = engine.reset()
    for command in commands:
        assert command in engine.commands, command
        text = engine.step(command)
    return engine, text


def test_introduction_lists_furniture_by_id_and_numbers_backwards():
    assert play()[1] == ('-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see '
                         'a drawer 1, a fridge 1, a microwave 1, a shelf 2, a shelf 1, a sinkbasin 1, a stoveburner 2, and a stoveburner 1.'
                         '\n\nYour task is to: put two mug in shelf.')


def test_look():
    assert play('look')[1] == 'You are in the middle of a room. Looking quickly around you, you see nothing.'
    assert play('go to fridge 1', 'look')[1] == 'You are facing the fridge 1, and microwave 1. Next to it, you see nothing.'


def test_look_sees_what_moved_to_a_neighbour():
    "An object taken from one receptacle and put into another at the same place is 'next to' the first."
    engine, text = play('go to shelf 1', 'take knife 1 from shelf 2', 'move knife 1 to shelf 1', 'look')
    assert text == 'You are facing the drawer 1, shelf 2, and shelf 1. Next to it, you see a knife 1.'
    engine.step('take knife 1 from shelf 1'), engine.step('move knife 1 to shelf 2')
    assert engine.step('look').endswith('Next to it, you see a knife 1.')
    engine.step('take knife 1 from shelf 2')
    assert engine.step('look').endswith('Next to it, you see nothing.')


def test_an_object_in_two_receptacles_leaves_one_at_a_time():
    engine, text = play('go to stoveburner 1', 'take pan 1 from stoveburner 2', 'examine stoveburner 1')
    assert text == 'On the stoveburner 1, you see a pan 1.' and engine.world.held == 'pan 1'


def test_shared_place_needs_no_walk():
    engine, text = play('go to shelf 1')
    assert text == 'You arrive at shelf 1. On the shelf 1, you see nothing.'
    assert not {'go to shelf 1', 'go to shelf 2', 'go to drawer 1'} & {*engine.commands}
    assert {'open drawer 1', 'examine shelf 2', 'take knife 1 from shelf 2'} <= {*engine.commands}


def test_doors():
    engine, text = play('go to drawer 1')
    assert text == 'You arrive at drawer 1. The drawer 1 is closed.' and 'take mug 2 from drawer 1' not in engine.commands
    assert engine.step('open drawer 1') == 'You open the drawer 1. The drawer 1 is open. In it, you see a apple 1, a desklamp 1, and a mug 2.'
    assert engine.step('close drawer 1') == 'You close the drawer 1.' and 'open drawer 1' in engine.commands


def test_hands_hold_one_thing():
    engine, text = play('go to drawer 1', 'open drawer 1', 'take mug 2 from drawer 1')
    assert text == 'You pick up the mug 2 from the drawer 1.'
    assert not [c for c in engine.commands if c.startswith('take')]
    assert engine.step('inventory') == 'You are carrying: a mug 2.'
    assert engine.step('move mug 2 to shelf 1') == 'You move the mug 2 to the shelf 1.'
    assert engine.step('inventory') == 'You are not carrying anything.'


@pytest.mark.parametrize('done, said', [
    ([], "There's nothing special about apple 1."), (['cool'], 'This is a cold apple 1.'), (['heat'], 'This is a hot apple 1.'),
    (['clean'], 'This is a clean apple 1.'), (['clean', 'cool'], 'This is a cool and clean apple 1.'),
    (['clean', 'heat'], 'This is a hot and clean apple 1.'), (['heat', 'cool'], 'This is a cold apple 1.'),
    (['cool', 'heat'], 'This is a hot apple 1.')])
def test_treatment_shows_on_examination(done, said):
    tool = dict(clean='sinkbasin 1', heat='microwave 1', cool='fridge 1')
    engine, _ = play('go to drawer 1', 'open drawer 1', 'take apple 1 from drawer 1')
    for verb in done:
        engine.step(f'go to {tool[verb]}')
        assert engine.step(f'{verb} apple 1 with {tool[verb]}') == f'You {verb} the apple 1 using the {tool[verb]}.'
    assert engine.step('examine apple 1') == said


def test_slicing_reaches_through_a_closed_door():
    engine, text = play('go to shelf 1', 'take knife 1 from shelf 2', 'slice apple 1 with knife 1', 'move knife 1 to shelf 1', 'open drawer 1',
                        'take apple 1 from drawer 1', 'examine apple 1')
    assert text == 'This is a sliced apple 1.'
    engine.step('go to fridge 1'), engine.step('cool apple 1 with fridge 1')
    assert engine.step('examine apple 1') == 'This is a cool sliced apple 1.'


def test_only_the_held_object_can_be_examined():
    engine, _ = play('go to shelf 1')
    assert 'examine knife 1' not in engine.commands and engine.step('examine knife 1') == 'Nothing happens.'
    assert 'examine knife 1' in play('go to shelf 1', 'take knife 1 from shelf 2')[0].commands


def test_movable_receptacles_tell_what_lies_in_them():
    assert play('go to stoveburner 1', 'take pan 1 from stoveburner 1', 'examine pan 1')[1] == 'This is a normal pan 1. In it, you see nothing.'


def test_cold_from_the_start():
    assert play('go to sinkbasin 1', 'take mug 1 from sinkbasin 1', 'examine mug 1', extra='(isCool Mug_bar_2)')[1] == 'This is a cold mug 1.'


def test_two_count_only_in_one_receptacle():
    first = ['go to drawer 1', 'open drawer 1', 'take mug 2 from drawer 1', 'move mug 2 to shelf 1', 'go to sinkbasin 1',
             'take mug 1 from sinkbasin 1', 'go to shelf 2']
    assert not play(*first, 'move mug 1 to shelf 2')[0].won
    assert play(*first, 'move mug 1 to shelf 1')[0].won


def test_clean_counts_only_when_cleaned():
    go = ['go to sinkbasin 1', 'take mug 1 from sinkbasin 1']
    assert not play(*go, 'go to shelf 1', 'move mug 1 to shelf 1', goal=CLEAN)[0].won
    assert play(*go, 'clean mug 1 with sinkbasin 1', 'go to shelf 1', 'move mug 1 to shelf 1', goal=CLEAN)[0].won


def test_looking_needs_lamp_and_object_in_any_order():
    lamp, mug = ['go to drawer 1', 'use desklamp 1'], ['go to sinkbasin 1', 'take mug 1 from sinkbasin 1']
    assert play(*lamp, goal=LOOK)[1] == 'You turn on the desklamp 1.'
    assert play(*mug, *lamp, goal=LOOK)[0].won
    away = play(*lamp, *mug, goal=LOOK)[0]
    assert not away.won and away.step('go to shelf 1') and away.won


@pytest.mark.parametrize('command', ['', 'Look', 'LOOK', 'go to', 'go to shelf 9', 'take knife 1', 'put knife 1 in/on shelf 1', 'sing'])
def test_other_words_change_nothing(command):
    engine, _ = play('go to shelf 1')
    before = engine.commands
    assert engine.step(command) == 'Nothing happens.' and engine.commands == before


def test_help_and_spaces():
    assert play('help')[1].startswith('Available commands:\n  look: ') and play('help')[1].endswith('using a sharp object\n')
    assert play()[0].step('  inventory\n') == 'You are not carrying anything.'


def test_reset_puts_everything_back():
    engine, _ = play('go to drawer 1', 'open drawer 1', 'take mug 2 from drawer 1')
    fresh = play()
    assert engine.reset() == fresh[1] and engine.commands == fresh[0].commands and engine.world.held is None


# game files

@pytest.fixture
def file(tmp_path): return generate_games(tmp_path/'games', 1)[0]


def test_missing_file(tmp_path):
    with pytest.raises(InterlatError, match='game file not found: .*none'): GameEnv(tmp_path/'none')


def test_truncated_file(file):
    file.write_text(file.read_text()[:-100])
    with pytest.raises(InterlatError, match='not a readable game file'): GameEnv(file)


@pytest.mark.parametrize('text, said', [
    ('[]', 'without a usable grammar, pddl_problem, walkthrough'), ('{"grammar": 1}', 'without a usable grammar'), ('', 'not a readable game file'),
    (json.dumps(dict(kitchen(), pddl_problem='(define)')), 'no :init section'),
    (json.dumps(dict(kitchen(), pddl_problem='(:init ) ' + TWO)), 'a fact is missing .*, about atLocation'),
    (json.dumps(dict(kitchen(), grammar='"put {o} in/on {r}"')), 'no `move X to Y`'),
    (json.dumps(kitchen(goal='(:goal (and (isSliced ?o)))')), 'unknown goal'),
    (json.dumps(kitchen(extra='(not (openable x))')), 'flat facts'), (json.dumps(kitchen(extra='(isHot Mug_bar_1)')), 'starts with: isHot'),
    (json.dumps(kitchen(extra='(inReceptacle Mug_bar_1 Shelf_bar_9)')), 'a fact is missing .*, about shelf_bar_9'),
    (json.dumps(kitchen(extra='(inReceptacle Mug_bar_9 Shelf_bar_1)')), 'a fact is missing .*, about mug_bar_9'),
    (json.dumps(dict(kitchen(), walkthrough=['look', None])), 'without a usable walkthrough'),
    (json.dumps(kitchen(goal=TWO.replace('MugType', 'Mug'))), 'the goal does not name its classes'),
    (json.dumps(kitchen(extra='(receptacleAtLocation Fridge_bar_1 loc_bar_A)')), 'has fridge_bar_1 in 2 places: loc_bar_a, loc_bar_c'),
    (json.dumps(kitchen(extra='(atLocation agent1 loc_bar_A)')), 'has agent1 in 2 places'),
    (json.dumps(kitchen(extra='(holds agent1 Mug_bar_1)')), 'not clear about what is held'), (json.dumps(kitchen(extra='(holdsAny agent1)')), 'not clear about'),
    (json.dumps(kitchen(extra='(holdsAny agent1) (holds agent1 Mug_bar_1) (holds agent1 Mug_bar_2)')), 'not clear about what is held')])
def test_wrong_files(tmp_path, text, said):
    (tmp_path/'game.tw-pddl').write_text(text)
    with pytest.raises(InterlatError, match=said): read_game(tmp_path/'game.tw-pddl')


def test_task_type_without_the_folder_name(file, tmp_path):
    shutil.copy(file, tmp_path/'moved.tw-pddl')
    assert task_type(tmp_path/'moved.tw-pddl') == task_type(file) == 'pick_and_place_simple'


def test_find_games_skips_what_is_not_a_text_game(file):
    split = file.parents[2]
    for name in ('pick_and_place_with_movable_recep-Apple-Bowl-Fridge-1', 'pick_and_place_simple-AppleSliced-None-Fridge-1'):
        shutil.copytree(file.parent, split/name/'trial_x')
    shutil.copytree(file.parent, split/'pick_and_place_simple-Apple-None-Fridge-1'/'trial_y')
    unsolvable = split/'pick_and_place_simple-Apple-None-Fridge-1'/'trial_y'/'game.tw-pddl'
    unsolvable.write_text(file.read_text().replace('"solvable": true', '"solvable": false'))
    assert find_games(split.parent, 'train') == [file]
    (split.parent/'top').mkdir()
    split.rename(split.parent/'top'/'train'), (split.parent/'top').rename(split.parent/'json_2.1.1')
    assert [f.name for f in find_games(split.parent, 'train')] == ['game.tw-pddl']


def test_a_player_may_begin_at_a_receptacle_or_with_something_in_the_hand():
    data = kitchen(extra='(holds agent1 Spoon_bar_1) (holdsAny agent1)')
    engine = NativeEngine(parse_game(data))
    assert engine.step('inventory') == 'You are carrying: a spoon 1.' and not [c for c in engine.commands if c.startswith('take')]
    data['pddl_problem'] = data['pddl_problem'].replace('loc_bar_0', 'loc_bar_C')
    engine = NativeEngine(parse_game(data))
    assert engine.reset().split('\n\n')[1] == engine.step('look') == 'You are facing the fridge 1, and microwave 1. Next to it, you see nothing.'


@pytest.mark.parametrize('extra', ['', '(holds agent1 DeskLamp_bar_1) (holdsAny agent1)'], ids=['on the floor', 'in the hand'])
def test_a_lamp_that_stands_in_no_receptacle(tmp_path, extra):
    data = dict(kitchen(goal=LOOK, extra=extra), walkthrough=['go to sinkbasin 1', 'take mug 1 from sinkbasin 1', 'use desklamp 1'])
    data['pddl_problem'] = data['pddl_problem'].replace('(inReceptacle DeskLamp_bar_1 Drawer_bar_1)', '')
    file = tmp_path/'valid'/'look_at_obj_in_light-Mug-None-DeskLamp-1'/'trial_1'/'game.tw-pddl'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(data))
    assert plan_text(file) == game_task(file).plan == 'take mug 1 from sinkbasin 1, use desklamp 1.'
    assert plan_text(file, ['use desklamp 1', 'use lamp 7', 'use']) == 'use desklamp 1, use lamp 7, use.' and 'desklamp' not in map_text(file)
    assert share(game_task(file), 1).plan.endswith('use desklamp 1 on nothing.') and enough(game_task(file)) == []
    with pytest.raises(InterlatError, match='no plan wins the game: it takes 1 desklamp, and 0 can be reached'): expert_plan(read_game(file))


def test_words_of_a_game():
    data = dict(kitchen(goal=LOOK), walkthrough=['look', 'go to sinkbasin 1', 'take mug 1 from sinkbasin 1', 'go to drawer 1', 'open drawer 1', 'use desklamp 1'])
    assert plan_text(parse_game(data)) == 'take mug 1 from sinkbasin 1, use desklamp 1 on drawer 1.'
    assert map_text(parse_game(data)) == ('apple 1 drawer 1, desklamp 1 drawer 1, knife 1 shelf 2, mug 1 sinkbasin 1, '
                                          'mug 2 drawer 1, pan 1 stoveburner 2.')
