"What works on rows of states takes a payload of states as it takes a message, and refuses every other payload by its name."
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest, torch

from interlat.agents.collect import collect
from interlat.agents.joining import join_messages, join_stores, part_spans, span_table
from interlat.agents.new_actor import actor_for, plan_pairs
from interlat.agents.speaker import message_embeds
from interlat.agents.topology import relay, relay_messages
from interlat.channels.parcels import Activation, Deltas, KeyValues, Parcel, PayloadStore, States, Words, messages_of
from interlat.commands.launch import launched_training
from interlat.compression.compress import compression_trainer, new_student
from interlat.compression.rate import recoded, wire_bytes
from interlat.compression.reason import calibrate, collect_latents
from interlat.core.basics import InterlatError
from interlat.core.tasks import Task
from interlat.instruments.attribution import Decision, leave_out, leave_span_out, steps
from interlat.instruments.geometry import norms
from interlat.instruments.lens import logit_lens, nearest_tokens
from interlat.instruments.probe import decodable, next_token_labels, pool
from interlat.messages.exchange import export_messages
from interlat.messages.message import MessageStore, rows_only
from interlat.messages.perturb import VARIANTS, mean_pool, mix, perturb
from interlat.training.actor_trainer import check_training
from interlat.training.lessons import ActorDataset
from interlat.training.settings import ActorArguments

G = torch.Generator().manual_seed(0)
H, IDS = torch.randn(6, 4, generator=G), [5, 9, 2, 7, 5, 1]
CACHE = KeyValues([torch.ones(1, 2, 3)], [torch.ones(1, 2, 3)], [torch.arange(2)], 2)
OTHERS = dict(cache=CACHE, activation=Activation(torch.ones(4), 1), deltas=Deltas([1], {0: torch.ones(1, 4)}), text=Words([1, 2]))


def parcel(payload, task='game-0'): return Parcel(payload, task, 'tiny', 'interlat')


STATES = parcel(States(H, IDS, 'a b. c'))
MESSAGE, OTHER = STATES.message(), parcel(States(H.flip(0), IDS, 'd'), 'game-1')
TURNS = [dict(role='user', content='look'), dict(role='assistant', content='go')]
TASK = Task(task_id='game-0', prompt=TURNS[:1], turns=TURNS, task_type='x', plan='go')


class Tokenizer:
    "As much of one as an attribution needs."
    def decode(self, ids, skip_special_tokens=False): return ' '.join(map(str, ids))


def bare(kind, **more):
    "An object of a class, with no model in it."
    x = kind.__new__(kind)
    x.__dict__.update(actor=None, batch_size=8, _added=[[1]], **more)
    return x


ROWS = { # entry point -> what it does with one message, models left out: it is refused before they are asked
    'perturb': lambda m: perturb(m, 'zero_message'), 'perturb, as the other': lambda m: perturb(OTHER, 'cross_task', other=m), 'mix': lambda m: mix(m, OTHER, .5), 'mix, as the other': lambda m: mix(OTHER, m, .5),
    'mean_pool': lambda m: mean_pool(m, 2), 'join_messages': lambda m: join_messages([MESSAGE, m]), 'part_spans': lambda m: part_spans([MESSAGE, m]), 'steps': lambda m: steps(m, Tokenizer()),
    'leave_out': lambda m: leave_out(m, 1, 2), 'leave_span_out': lambda m: leave_span_out(lambda ms: torch.stack([torch.tensor([x.h.sum(), 1.]) for x in ms]), m, [(0, 2)]), 'norms': lambda m: norms([m]), 'pool': lambda m: pool([m]),
    'next_token_labels': lambda m: next_token_labels([m])}
ASKED = { # the same, with models that would be asked next
    'message_embeds': lambda m: message_embeds((None, None), m),
    'Decision': lambda m: bare(Decision)([m]), 'logit_lens': lambda m: logit_lens((None, None), m), 'nearest_tokens': lambda m: nearest_tokens((None, None), m), 'relay_messages': lambda m: relay_messages((None, None), [TURNS[:1]], [m]),
    'decodable': lambda m: decodable([m], [TASK])}


@pytest.mark.parametrize('wrapped', (True, False))
@pytest.mark.parametrize('kind', OTHERS)
@pytest.mark.parametrize('name', [*ROWS, *ASKED])
def test_other_payloads_are_refused_by_name(name, kind, wrapped):
    payload = OTHERS[kind]
    with pytest.raises(InterlatError, match=rf"takes rows of states, found a payload of kind '{kind}'; use a channel that sends states") as e: (ROWS | ASKED)[name](parcel(payload) if wrapped else payload)
    assert '\n' not in str(e.value)


def same(a, b):
    if hasattr(a, 'h'): return torch.equal(a.h, b.h) and {k: v for k, v in vars(a).items() if k != 'h'} == {k: v for k, v in vars(b).items() if k != 'h'}
    if isinstance(a, pd.DataFrame): return a.equals(b)
    if isinstance(a, tuple): return all(same(x, y) for x, y in zip(a, b, strict=True))
    return (a == b).all() if hasattr(a, 'shape') else a == b


@pytest.mark.parametrize('name', ROWS)
def test_a_payload_of_states_is_taken_as_its_message(name):
    assert same(ROWS[name](STATES), ROWS[name](MESSAGE))


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_condition_of_a_parcel_is_that_of_its_message(variant):
    how = dict(other=OTHER) if VARIANTS[variant].partner else {}
    ours, theirs = perturb(STATES, variant, **how), perturb(MESSAGE, variant, **how)
    assert ours is theirs is None if theirs is None else same(ours, theirs)


def test_a_payload_without_a_task_is_drawn_by_a_generator_only():
    states = STATES.payload
    for variant, v in VARIANTS.items():
        if v.partner or v.channel == 'none': continue
        if not v.drawn: assert torch.equal(perturb(states, variant).h, perturb(MESSAGE, variant).h)
        else:
            with pytest.raises(InterlatError, match=f'{variant} is drawn by the name of the task, and a payload alone has none; put it in a Parcel'): perturb(states, variant)
            given = [perturb(m, variant, generator=torch.Generator().manual_seed(3)).h for m in (states, MESSAGE)]
            assert torch.equal(*given)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stores')
    caches, rows = PayloadStore(folder/'caches'), PayloadStore(folder/'rows')
    caches.put(Parcel(CACHE, 'game-0', 'tiny', 'latentmas'))
    rows.put([STATES, OTHER])
    return SimpleNamespace(folder=folder, caches=caches, rows=rows, messages=messages_of(rows, folder/'messages'))


def args(folder): return ActorArguments(str(folder), use_cpu=True, report_to=[])

STORED = { # entry point -> what it does with a store, models left out
    'export_messages': lambda s, tmp: export_messages(s, tmp/'x.parquet'), 'join_stores': lambda s, tmp: join_stores([s, s], tmp/'joined'), 'span_table': lambda s, tmp: span_table([s]), 'recoded': lambda s, tmp: recoded(s, tmp/'recoded'),
    'wire_bytes': lambda s, tmp: wire_bytes(s, [TASK]), 'plan_pairs': lambda s, tmp: next(plan_pairs((None, None), s)), 'actor_for': lambda s, tmp: actor_for(s, 'nowhere'), 'ActorDataset': lambda s, tmp: ActorDataset([TASK], None, s),
    'check_training': lambda s, tmp: check_training([TASK], s, args(tmp)), 'compression_trainer': lambda s, tmp: compression_trainer(None, None, [TASK], s, args(tmp)), 'new_student': lambda s, tmp: new_student(None, [TASK], s),
    'calibrate': lambda s, tmp: calibrate(SimpleNamespace(model=SimpleNamespace(settings=dict(feedback='projection')), tokenizer=None), [TASK], s), 'collect': lambda s, tmp: collect((None, None), [TASK], s),
    'collect_latents': lambda s, tmp: collect_latents((SimpleNamespace(eval=lambda: None, settings=dict(K=2, output_size=4)), None), [TASK], s), 'relay': lambda s, tmp: relay(SimpleNamespace(model=SimpleNamespace(settings=dict(input_size=4))), [TASK], s, s),
    'launched_training': lambda s, tmp: launched_training(tmp/'t', 'm', {}, s, 1)}


@pytest.mark.parametrize('name', STORED)
def test_a_store_of_payloads_is_refused_by_name(name, stores, tmp_path):
    for store, channel in ((stores.caches, 'latentmas'), (stores.rows, 'interlat')):
        with pytest.raises(InterlatError, match=f"takes a message store, found the payload store '{store.path.name}' of the channel '{channel}'; messages_of"): STORED[name](store, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_payloads_is_refused_where_messages_are_wanted(stores):
    with pytest.raises(InterlatError, match='caches is a payload store, wanted a message store'): MessageStore(stores.caches.path)
    with pytest.raises(InterlatError, match='messages is a message store, wanted a payload store'): PayloadStore(stores.messages.path)
    assert [m.task_id for m in stores.messages] == ['game-0', 'game-1'] and same(stores.messages['game-0'], MESSAGE)
    with pytest.raises(InterlatError, match="a message for 'game-0' takes rows of states, found a payload of kind 'cache'"): messages_of(stores.caches, stores.folder/'none')


def test_what_is_no_payload_passes():
    for x in (MESSAGE, None, 'word', H, Counter()): assert rows_only(x, 'a test') is x
