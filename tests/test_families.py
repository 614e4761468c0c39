"Language models of different kinds are right at every door, or refused by name."
import logging

import pytest

from interlat.instruments.check import STATES, check_doors, slower, ways_taken
from interlat.instruments.doors import DOORS
from interlat.models.causal_lm import causal_lm
from interlat.models.families import FAMILIES, family_lm
from interlat.models.lm import Agent, load_tokenizer

KINDS = { # family -> what its way is, where it is not the fastest
    'qwen2': {}, 'gemma2': dict(head='own'), 'bert': dict(head='own'), 'gemma4_text': dict(input='ids', **{'reading on': 'steps'}), 'llama4_text': {'reading on': 'steps'},
    'mamba': {'reading on': 'again'}, 'bamba': {'writing from vectors': 'loop'}, 'nemotron': dict(training='plain'), 'roberta': dict(rows='alone'), 'bart': dict(rows='alone'),
    'ctrl': {}, 'falcon_h1': {'reading on': 'again'}, 'gpt_neo': {'reading on': 'steps'}, 'deepseek_v4': dict(input='ids')}


@pytest.fixture(scope='module')
def tokenizer(): return load_tokenizer('tiny-qwen2')


@pytest.mark.parametrize('family', KINDS)
def test_all_doors_are_right(family, tokenizer, caplog):
    if family not in FAMILIES: pytest.skip(f'this transformers has no {family}')
    caplog.set_level(logging.WARNING, 'interlat')
    lm = family_lm(family, vocab=len(tokenizer))
    table = check_doors(Agent(lm, tokenizer), costs=False)
    assert list(table.door) == [*DOORS] and set(table.state) <= {'right', 'slower'}, table
    tried = causal_lm(lm).found
    assert {k: tried[k][0] for k in KINDS[family]} == KINDS[family]
    assert [bool(slower(ways_taken(lm, door))) for door in table.door] == list(table.state == 'slower')
    slow = [k for k, (_, why) in tried.items() if why]
    assert len([r for r in caplog.records if r.name == 'interlat']) == len(slow), 'what is slow is told, once'


@pytest.mark.parametrize('family, reason', [('cpmant', 'is not causal as it is configured'), ('prophetnet', 'has no part whose states are all that its head reads'),
                                            ('musicgen', 'looks words up in a ModuleList, not in one table')])
def test_what_cannot_be_right_is_refused_by_name(family, reason, tokenizer):
    lm = family_lm(family, vocab=len(tokenizer))
    table = check_doors(Agent(lm, tokenizer), costs=False).set_index('door')
    assert f'{type(lm).__name__} {reason}' in table.why['collect']
    assert set(table.state.drop('save')) == {'refused'} and table.state['save'] in ('refused', 'right') and 'refused' in STATES
