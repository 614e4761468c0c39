"What actors write, in every dress that language models give it: one command that the game offers, or none."
import time

import pytest
from hypothesis import given, settings, strategies as st

from interlat.games.words import as_command, hide_thoughts, read_action

OFFERED = ('close fridge 1', 'examine desk 1', 'examine mug 1', 'go to bed 1', 'go to coffeetable 1', 'go to desk 1', 'go to desk 10', 'heat mug 1 with microwave 1',
           'help', 'inventory', 'look', 'move mug 1 to fridge 1', 'open drawer 1', 'slice apple 1 with knife 1', 'take mug 1 from desk 1', 'use desklamp 1')
GO = 'go to desk 1'


def command(words): return read_action(words, OFFERED).command


@pytest.mark.parametrize('words', [
    'Action: `go to desk 1`', '**Action:** go to desk 1', '**Action: go to desk 1**', '_Action:_ go to desk 1', '`Action: go to desk 1`', '*Action*: go to desk 1',
    '<think>\nI could go to bed 1.\n</think>\n\ngo to desk 1', '<think>\n</think>\nAction: go to desk 1', 'I could.\n</think>\n\ngo to desk 1', '<thinking>look</thinking>go to desk 1',
    '<reasoning>\nAction: look\n</reasoning>\n<action>\ngo to desk 1\n</action>', '[THINK]look[/THINK]go to desk 1', '◁think▷look◁/think▷go to desk 1',
    '<|begin_of_thought|>look<|end_of_thought|>go to desk 1', 'analysisI could look.assistantfinalgo to desk 1', '<think>a <think> b</think>look</think>go to desk 1',
    'Thought: it is there. Action: go to desk 1', '**Thought:** it is there. **Action:** `go to desk 1`', 'Thought: it is there Action: go to desk 1',
    '> think: it is there.\n> go to desk 1', 'Thought: it is there.\ngo to desk 1', 'Thought 1: there.\nAction 1: go to desk 1', '<thought>there</thought> go to desk 1',
    'Go to desk 1', 'GO TO DESK 1', 'ACTION: Go To The Desk 1', 'Action: go to desk 1.', 'go to desk 1!', 'go to desk 1…', 'go to desk1', 'Action:go to desk 1',
    '```\ngo to desk 1\n```', '```text\ngo to desk 1\n```', 'Action:\n```\ngo to desk 1\n```', '```go to desk 1```', '~~~\ngo to desk 1\n~~~',
    '"go to desk 1"', "'go to desk 1'", '“Go to desk 1.”', '‘go to desk 1’', '«go to desk 1»', '[go to desk 1]', 'Action: [go to desk 1]', '\\boxed{\\text{go to desk 1}}',
    '<action>go to desk 1</action>', '<answer>go to desk 1</answer>', '<b>go to desk 1</b>', '<response><thought>look</thought><action>go to desk 1</action></response>',
    '{"action": "go to desk 1"}', "{'action': 'go to desk 1'}", '{"thought": "Action: look", "action": "go to desk 1", "sure": 1}', '{"actions": ["go to desk 1", "look"]}',
    '```json\n{\n  "thought": "look",\n  "action": "go to desk 1"\n}\n```', '<tool_call>{"name": "act", "arguments": {"action": "go to desk 1"}}</tool_call>',
    '- go to desk 1', '* go to desk 1', '1. go to desk 1', '1) **go to desk 1**', '> go to desk 1', 'Step 1: go to desk 1', '### Action\ngo to desk 1', '**Action**\n\ngo to desk 1',
    'go to desk 1 (to look for the mug)', 'go to desk 1 - it is near', 'go to desk 1 # near', 'go to desk 1. The mug may be there.', 'Action: "go to desk 1" to find the mug',
    'Action: go to desk 1, then take mug 1 from desk 1', 'go to desk 1 and take mug 1 from desk 1', '1. go to desk 1\n2. look', 'go to desk 1\nAction: look', 'go to desk 1; look',
    'Action: go to desk 1\nObservation: You arrive.\nAction: look', 'Action: go to desk 1 Observation: You arrive.', 'Action[go to desk 1]', 'The next action is: `go to desk 1`',
    'Final Answer: go to desk 1', 'Here is the action: go to desk 1', 'Sure! Here is what I do:\n\n`go to desk 1`\n\nThis lets me look.', 'The mug may be there.\ngo to desk 1'])
def test_one_command_in_many_dresses(words):
    assert command(words) == GO == read_action(words).command


@pytest.mark.parametrize('words, meant', [
    ('place mug 1 in fridge 1', 'move mug 1 to fridge 1'), ('put the mug 1 into the fridge 1', 'move mug 1 to fridge 1'), ('Put mug 1 in/on fridge 1.', 'move mug 1 to fridge 1'),
    ('put down mug 1 on fridge 1', 'move mug 1 to fridge 1'), ('set mug 1 on top of fridge 1', 'move mug 1 to fridge 1'), ('place the mug (1) in the fridge (1)', 'move mug 1 to fridge 1'),
    ('pick up mug 1 from desk 1', 'take mug 1 from desk 1'), ('grab the mug 1 off the desk 1', 'take mug 1 from desk 1'), ('pick mug 1 up from desk 1', 'take mug 1 from desk 1'),
    ('turn on desklamp 1', 'use desklamp 1'), ('turn the desk lamp 1 on', 'use desklamp 1'), ('toggle desklamp 1', 'use desklamp 1'), ('switch on desklamp 1', 'use desklamp 1'),
    ('heat mug 1 in microwave 1', 'heat mug 1 with microwave 1'), ('warm up mug 1 using microwave 1', 'heat mug 1 with microwave 1'), ('cut apple 1 with knife 1', 'slice apple 1 with knife 1'),
    ('walk to coffee table 1', 'go to coffeetable 1'), ('shut fridge 1', 'close fridge 1'), ('look at mug 1', 'examine mug 1'), ('Look around.', 'look'), ('check inventory', 'inventory')])
def test_other_words_for_the_same(words, meant):
    assert as_command(words, OFFERED) == as_command(words) == command(f'Action: {words}') == meant


@pytest.mark.parametrize('words', [
    '', 'Action:', 'Action: dance', 'I am lost.', 'go to desk', 'go to the desk', 'go to desk 2', 'go to desk 11', 'go to desk 1 1', 'take mug 1', 'take mug from desk 1', 'turn off desklamp 1',
    'move fridge 1 to mug 1', 'move mug 1 from desk 1 to fridge 1', 'Please go to desk 1', 'I will go to desk 1', 'Do not go to desk 1', 'go to desk 1?', 'look for mug 1', 'Look, a mug',
    'go to desk 1 or go to bed 1', 'go to desk 1 or bed 1', 'Action: `go to desk 1` or `go to bed 1`', 'go to desk 1 (or bed 1)', 'go to desk 1\n\nOr go to bed 1', 'go to desk 1, bed 1',
    'go to desk 1 and 10', 'go to desk 1 if it is open', 'go to desk 1 (if it is open)', 'go to desk 1 / go to bed 1', '~~go to desk 1~~', '<del>go to desk 1</del>', 'Action: hm\nAction: go to desk 1',
    '<think>go to desk 1</think>', '<think>\ngo to desk 1', 'go to desk 1</think>', '<think>Action: go to desk 1</think>\nI am done.', '<thinking>go to desk 1</thinking>\n<thinking>look',
    'Thought: go to desk 1', 'Thought:\ngo to desk 1', 'Thought: I could\ngo to desk 1\nor not', 'Thought: these:\n- go to desk 1', 'Think: Action is clear. go to desk 1', 'Observation: go to desk 1',
    'Thought: The action: look is good.', 'Plan:\n1. go to desk 1\n2. look', 'I could:\n- go to desk 1\n- go to bed 1', 'I should\ngo to desk 1\nbut not now',
    '{"thought": "go to desk 1"}', '{"action": "go to", "object": "desk 1"}', 'Action: go to\nAction Input: desk 1', 'Help me, please.', 'Help! I am lost.', 'I am lost.\nHelp!', 'Look! There is desk 1.'])
def test_what_is_not_one_command_is_none(words):
    assert command(words) == ''


def test_what_two_commands_may_mean_is_none():
    assert as_command('put mug 1 on desk 1', ('move mug 1 to desk 1', 'put mug 1 in/on desk 1')) == ''
    assert as_command('Turn key 3', ('turn key 3', 'look')) == 'turn key 3' and as_command('turn key', ('turn key 3',)) == '', 'a game may know more'


@pytest.mark.parametrize('words, kept', [
    ('Action: `go to desk 1`\nObservation: x', 'Action: `go to desk 1`'), ('```\ngo to desk 1\n```\nDone.', '```\ngo to desk 1\n```'), ('go to desk 1, then look', 'go to desk 1'),
    ('Thought: a.\nAction: go to desk 1 (near)\nAction: look', 'Thought: a.\nAction: go to desk 1 (near)'), ('<action>go to desk 1</action> It is near.', '<action>go to desk 1</action>'),
    ('```json\n{"action": "go to desk 1",\n "sure": 1}\n```\nOK', '```json\n{"action": "go to desk 1",\n "sure": 1}\n```'), ('**Action: go to desk 1.**\nYou arrive.', '**Action: go to desk 1.**'),
    ('<think>look</think>\n\ngo to desk 1\n> look', '<think>look</think>\n\ngo to desk 1'), ('go to desk 1 Observation: x', 'go to desk 1'), ('go to desk 1\n```\nx\n```', 'go to desk 1'),
    ('Thought: hm\nand hm', 'Thought: hm\nand hm'), ('I do not know.\nHelp!\nno', 'I do not know.'), ('I look around.\n```\nlook\n```', 'I look around.\n```\nlook\n```'), ('Action: dance\nAction: look', 'Action: dance'), ('<think>hm', '<think>hm')])
def test_the_conversation_keeps_the_first_action_and_what_closes_it(words, kept):
    assert read_action(f' {words}\n', OFFERED).words == kept


SAID = [str, str.upper, str.title, '{}.'.format, '{}!'.format, '{} (to see what is there)'.format, lambda c: c.replace(' to ', ' to the ')]
MARKS = [m.format for m in ('`{}`', '**{}**', '*{}*', '__{}__', '"{}"', "'{}'", '“{}”', '‘{}’', '[{}]', '({})', '<b>{}</b>', '\\boxed{{{}}}')]
LINES = [m.format for m in ('{}', '- {}', '1. {}', '> {}', '• {}')]
BLOCKS = [m.format for m in ('{}', 'Action: {}', '**Action:** {}', 'ACTION:\n{}', '```\n{}\n```', '```text\n{}\n```', '<action>{}</action>', '<answer>\n{}\n</answer>', '### Action\n{}',
                             'Thought: it may be there. Action: {}', 'Thought: hm\nAction: {}', 'Action: {}\nObservation: You see a bed 1.\nAction: look')]
THOUGHTS = [m.format for m in ('{}', '<think>\nNow to bed 1.\ngo to bed 1\nAction: go to bed 1\n</think>\n\n{}', 'go to bed 1\n</think>{}', '<thinking>Action: look</thinking> {}',
                               '<reasoning>look</reasoning>\n{}', '[THINK]go to bed 1[/THINK]{}')]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(OFFERED), st.sampled_from(SAID), st.lists(st.sampled_from(MARKS), max_size=2), st.sampled_from(LINES), st.sampled_from(BLOCKS), st.sampled_from(THOUGHTS))
def test_any_command_is_read_in_any_dress(offered, said, marks, line, block, thought):
    words = offered
    for dress in (said, *marks, line, block, thought): words = dress(words)
    assert command(words) == offered


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*OFFERED, 'Action:', 'look', '\n', '. ', '```', 'Thought:', '{"action": "look"}', '<action>look</action>', '**', 'hm']), max_size=8),
       st.sampled_from(['<think>{}</think>', '<think>{}', '{}</think>', '<thinking>{}</thinking>', '<reasoning>{}', '[THINK]{}[/THINK]']), st.sampled_from(['', '\n\nI am done.', ' hm']))
def test_nothing_in_a_thought_is_an_action(pieces, thought, after):
    thought = thought.format(' '.join(pieces))
    assert command(thought + after * thought.endswith(('>', ']'))) == '' and len(hide_thoughts(thought)) == len(thought)


def test_a_dash_behind_the_word_makes_a_label():
    assert command('I looked around. action - help') == command('I looked around.\nAction – help') == 'help' and command('I took action - help came.') == ''


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from('I you should could not maybe the mug desk 1 2 go to take from fridge think action is it, and. or then; look at \n - * " ` : ( ) help'.split(' ')), max_size=14))
def test_prose_with_a_subject_never_becomes_a_command(pieces):
    prose = 'I ' + ' '.join(pieces).replace('\n', ' ').replace(':', '')
    if 'action' in pieces: prose = prose.replace('-', '') # which makes a label of it, as a colon does
    assert command(prose) == ''
    assert command(' '.join(pieces)) in (*OFFERED, '')


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('{}[]()<>`*"\'_.:#\\/|~ \naAction:1desk</think>'), max_size=80))
def test_any_text_can_be_read(text):
    said = read_action(text, OFFERED)
    assert said.command in (*OFFERED, '') and text.strip().startswith(said.words)


@pytest.mark.parametrize('piece', ['{', '(', '*', '"', 'Action: ', '<think>', '</think>', 'go to ', 'a ', '\nx 1', '```\n', 'my the ', '<a>', '[THINK', '. Action '])
def test_long_and_odd_outputs_take_no_time(piece):
    start = time.process_time()
    read_action(piece*2000, OFFERED)
    assert time.process_time() - start < 2
