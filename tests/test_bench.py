"interlat-eval --channels: one table for all that were asked for, a line for those that cannot serve, and nothing done twice."
import pandas as pd
import pytest

import cast
from interlat.agents.new_actor import new_actor
from interlat.commands.cli import main_collect, main_eval
from interlat.models.lm import *


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    "A folder with games, a language model, one of another family, and an actor that reads the first one's states."
    out = tmp_path_factory.mktemp('scene')
    games = cast.games(out/'games', 6)
    for family in ('qwen2', 'llama'):
        tok = cast.tokenizer(games, family)
        lm = cast.lm(tok, f'tiny-{family}')
        lm.generation_config.eos_token_id = tok.eos_token_id
        Agent(lm, tok).save_pretrained(out/family)
    new_actor(out/'qwen2', prepended_length=20, num_heads=4).save_pretrained(out/'actor')
    return out


def bench(scene, channels, out, kind='alfworld', actor='qwen2', sender='qwen2', **more):
    flags = dict(model_name_or_path=scene/actor, sender=sender and scene/sender, channels=channels, output_dir=scene/out, max_new_tokens=6)
    flags |= dict(data_path=scene/'games', split='train', num_games=4, max_steps=2) if kind == 'alfworld' else dict(num_problems=4)
    return cast.call(main_eval, kind, *(x for name, value in (flags | more).items() if value is not None for x in (f'--{name}', value)))


def last(err): return err.replace('\r', '\n').strip().splitlines()[-1] # after the bars of loading


def table(scene, out): return pd.read_csv(scene/out/'bench.csv').set_index('channel')


def test_games_on_one_bench(scene):
    status, said, err = bench(scene, 'text:max_new_tokens=5,latentmas:latent_steps=2,sde:max_new_tokens=5:layers=0+1,interlat,c2c', 'one', need='true', partners=2)
    assert status == 0, err
    t = table(scene, 'one')
    assert t.n.dropna().tolist() == [4, 4, 4] and set(t.index[t.why.isna()]) == {'text:max_new_tokens=5', 'latentmas:latent_steps=2', 'sde:max_new_tokens=5:layers=0+1'}
    assert 'an actor with an adapter' in t.why['interlat'] and "needs the option 'projectors'" in t.why['c2c'] and (t.need == True).all() and 'an actor with an adapter' in said
    trials = {p.parent.name: p for p in (scene/'one').glob('*/trials.csv')}
    assert {len(pd.read_csv(p)) for p in trials.values()} == {4*(1 + 1 + 2)} and len(trials) == 3
    before = {name: p.read_bytes() for name, p in trials.items()}
    assert bench(scene, 'text:max_new_tokens=5,latentmas:latent_steps=2', 'one', need='true', partners=2)[0] == 0
    assert {name: p.read_bytes() for name, p in trials.items()} == before
    status, _, err = bench(scene, 'text:max_new_tokens=5', 'one', need='false', partners=2)
    assert status == 2 and 'what the actor reads, or the right answer, has changed; use another folder' in last(err)


def test_payloads_that_were_collected_before_come_to_the_same(scene):
    words = 'sde:max_new_tokens=5', 'text:max_new_tokens=5:temperature=0.8'
    for word in words:
        status, _, err = cast.call(main_collect, 'alfworld', *map(str, ('--model_name_or_path', scene/'qwen2', '--data_path', scene/'games', '--split', 'train', '--num_games', 4, '--channel', word, '--output_dir', scene/'sent'/word)))
        assert status == 0, err
    made, kept = (bench(scene, ','.join(words), out, **more) for out, more in (('made', {}), ('kept', dict(payloads=scene/'sent'))))
    assert made[0] == kept[0] == 0, kept[2]
    for word in words:
        one, two = (pd.read_csv(scene/out/word/'trials.csv') for out in ('made', 'kept'))
        same = [c for c in one if not c.startswith('seconds')]
        assert one[same].equals(two[same]) and one.seconds_make.notna().any() and two.seconds_make.isna().all()
    status, _, err = bench(scene, 'sde:max_new_tokens=5,text:max_new_tokens=5', 'lacks', payloads=scene/'sent')
    assert status == 0 and 'no payloads in' in table(scene, 'lacks').why['text:max_new_tokens=5'], err
    for more, why in ((dict(seed=1, channels=words[1]), 'temperature 0.8, seed 0'), (dict(num_games=6), '2 of 6 tasks have no payload'), (dict(view='task'), 'map view')):
        status, _, err = bench(scene, out='odd', payloads=scene/'sent', **dict(channels=words[0]) | more)
        assert status == 2 and 'no channel can serve' in last(err) and why in last(err), err


def test_an_actor_with_an_adapter_reads_states_and_its_language_model_reads_the_rest(scene):
    status, said, err = bench(scene, 'interlat:max_new_tokens=5,text:max_new_tokens=5,latentmas:latent_steps=2', 'two', actor='actor')
    assert status == 0, err
    t = table(scene, 'two')
    assert t.n['interlat:max_new_tokens=5'] == t.n['text:max_new_tokens=5'] == 4 and t.trained['interlat:max_new_tokens=5'] == 'adapter and actor'
    assert t.n['latentmas:latent_steps=2'] == 4 # untrained, it is still a copy of its sender


def test_two_families(scene):
    status, _, err = bench(scene, 'text:max_new_tokens=5,own_tokens,latentmas,kvcomm,cipher,statebridge,sde', 'three', sender='llama')
    assert status == 0, err
    t = table(scene, 'three')
    assert t.why.isna().tolist() == [True] + [False]*6 and t.why[1:].str.contains('needs the same').all()


def test_questions_on_a_bench(scene):
    status, said, err = bench(scene, 'text:max_new_tokens=5,kvcomm:layers=0', 'math', 'math', need='false')
    assert status == 0, err
    t = table(scene, 'math')
    assert t.n.tolist() == [4, 4] and (t.need == False).all()


@pytest.mark.parametrize('match, more', [
    ('channels need somebody who sends; give --sender', dict(sender=None)), ("unknown channel 'loud'", dict(channels='text,loud')), ("'text' has no option 'n'", dict(channels='text:n=3')),
    ('hidden_data_path is of the conditions in variants', dict(hidden_data_path='x')), ('has nothing to hide', dict(view='task', need='true')), ('no channel can serve this pair: interlat:', dict(channels='interlat')),
    ('each can meet 3 others, not k=4', dict(partners=4)), ('seeds must be', dict(seeds='x'))])
def test_what_does_not_fit_is_one_line(scene, match, more):
    given = dict(channels='text:max_new_tokens=5', out='bad') | {k: v for k, v in more.items() if k in ('channels', 'sender')}
    rest = {k: v for k, v in more.items() if k not in given}
    status, said, err = bench(scene, given.pop('channels'), given.pop('out'), **given, **rest)
    assert status == 2 and match in last(err)
