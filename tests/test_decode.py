"A cache that outlives turns gives what reading everything anew gives, whoever comes, goes or has to forget."
import random

import pytest, torch
from transformers import AutoModelForCausalLM, MistralConfig

import cast
import interlat.models.cache, interlat.models.decoding
from interlat.core.basics import InterlatError
from interlat.models.causal_lm import causal_lm
from interlat.models.decoding import write_states
from interlat.models.families import FAMILIES, family_lm
from interlat.models.sampling import greedy_config, pad_left, through_end
from interlat.models.lm import *
from interlat.models.cache import *
from interlat.agents.speaker import *
from interlat.models.chat import Conversation, encode_chat

WORDS = ['mug', 'desk 1', 'go to', 'take', 'shelf 2', 'the', 'put', 'apple 1', '.', 'you see']


@pytest.fixture(scope='module', params=['tiny-qwen2', 'tiny-llama'])
def actor(request, tmp_path_factory):
    "A random actor and its tokenizer."
    tok = cast.tokenizer(cast.games(tmp_path_factory.mktemp('games'), n=6), request.param[5:])
    return cast.actor(cast.lm(tok, request.param), tok), tok


def text(rng, n): return ' '.join(rng.choice(WORDS) for _ in range(n))


def guest(tok, rng, number):
    "A conversation that begins, with a message or without."
    embeds = torch.randn(rng.randint(1, 9), 32, generator=torch.Generator().manual_seed(number)) if rng.random() < .7 else None
    return Seat(Conversation(tok, [dict(role='user', content=text(rng, rng.randint(1, 40)))]), embeds, seed=number)


def anew(actor, tok, seat, max_new_tokens):
    "The obvious way: the whole conversation through `generate`, alone."
    chat = encode_chat(tok, seat.chat.turns, add_generation_prompt=True)
    ids, config = torch.tensor([chat.input_ids]), greedy_config(Agent(actor.base_model, tok), max_new_tokens)
    given = {} if seat.embeds is None else dict(insert_at=torch.tensor([chat.insert_at]), message_embeds=seat.embeds[None])
    new = actor.generate(ids, torch.ones_like(ids), **given, generation_config=config)[0].tolist()
    return tok.decode(through_end(new, config.eos_token_id), skip_special_tokens=True)


@pytest.mark.parametrize('seed', range(3))
def test_whoever_comes_and_goes(actor, seed, monkeypatch):
    model, tok = actor
    rng, speaker, pieces = random.Random(seed), Speaker(Agent(model, tok), max_new_tokens=7), []
    cut = interlat.models.cache._pieces
    monkeypatch.setattr(interlat.models.cache, '_pieces', lambda lengths, *a: pieces.append(cut(lengths, 128, 8)) or pieces[-1])
    seats = [guest(tok, rng, i) for i in range(4)]
    for turn in range(8):
        expected = [anew(model, tok, s, 7) for s in seats]
        assert speaker.speak(seats) == expected
        for s, said in zip(seats, expected):
            s.chat.add(dict(role='assistant', content=said[:rng.choice([0, 3, 99])]))  # a part of it may not be kept
            s.chat.add(dict(role='user', content=text(rng, rng.choice([1, 2, 60]))))
        rng.shuffle(seats)
        seats = seats[rng.randint(0, 2):] + [guest(tok, rng, 100*turn + i) for i in range(rng.randint(0, 2))]
        if not seats: seats = [guest(tok, rng, 999)]
    assert max(map(len, pieces)) > 2, 'all rows were always read together'


def test_each_token_is_computed_once(actor):
    model, tok = actor
    rng, speaker = random.Random(1), Speaker(Agent(model, tok), max_new_tokens=5)
    seats = [guest(tok, rng, i) for i in range(3)]
    for _ in range(4):
        for s, said in zip(seats, speaker.speak(seats)):
            s.chat.add(dict(role='assistant', content=said))
            s.chat.add(dict(role='user', content='go on'))
    kept = sum(len(s.read) + s.extra for s in seats)
    again = Speaker(Agent(model, tok), max_new_tokens=5, cache=False)
    again.speak(seats)
    assert speaker.rows.mask.sum() == kept  # what is in the cache is what was read
    assert kept <= speaker.computed <= kept + 3*4*5  # and only words that tokenize otherwise were read twice


def test_a_sliding_window_is_read_anew(actor):
    _, tok = actor
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(MistralConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, sliding_window=16, initializer_range=.3, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)).eval()
    model, rng = cast.actor(base, tok), random.Random(3)
    speaker, seats = Speaker(Agent(model, tok), max_new_tokens=6), [guest(tok, rng, i) for i in range(3)]
    assert not speaker.cache
    for _ in range(3):
        expected = [anew(model, tok, s, 6) for s in seats]
        assert speaker.speak(seats) == expected
        for s, said in zip(seats, expected):
            s.chat.add(dict(role='assistant', content=said))
            s.chat.add(dict(role='user', content='go on'))


KEPT = { # family -> how it writes while its states are kept
    'qwen2': 'holes', 'gpt2': 'holes', 'mistral': 'steps', 'gemma3': 'steps', 'qwen3_5_text': 'generate', 'bamba': 'generate', 'falcon_h1': 'generate', 'roberta': 'again'}
IN_FLOAT32 = 'qwen3_5_text', 'bamba', 'falcon_h1' # a part of them, whatever they are loaded in


@torch.no_grad()
@pytest.mark.parametrize('family', KEPT)
def test_states_are_kept_as_their_tokens_are_written(family, monkeypatch):
    "Against each row alone, read from its first token for every token; with ends, which rows leave at, and without."
    if family not in FAMILIES: pytest.skip(f'this transformers has no {family}')
    monkeypatch.setattr(interlat.models.cache, 'READ_AT_ONCE', ((16, 2), (16, 2))) # so that prompts are read in pieces
    lm = family_lm(family).double()
    door, rng = causal_lm(lm), random.Random(0)
    prompts = [[rng.choice(door.plain_ids) for _ in range(n)] for n in (9, 3, 12, 4, 10)]
    vectors = KEPT[family] == 'generate' and door.once('writing from vectors', lambda: interlat.models.decoding._try_generate(lm, True), '') == 'loop'
    def slow(row, most, ends, layer):
        ids = torch.tensor(row)
        while len(ids) < len(row) + most and (len(ids) == len(row) or int(ids[-1]) not in ends):
            ids = torch.cat([ids, door.logits(door.read(door.embed(ids[None]), ids[None])[0,-1]).argmax()[None]])
        return ids[len(row):].tolist(), door.read(door.embed(ids[None]), ids[None], layer=layer)[0,len(row)-1:-1]
    ends = [slow(prompts[i], 3, [], -1)[0][-1] for i in (0, 1, 2)]
    (ids, mask), way = pad_left(prompts, door.stand_in), way_on(lm)
    for asked in (dict(ends=[], layer=-1), dict(ends=ends, layer=-1), dict(ends=ends, layer=1)):
        for embeds in (None, door.embed(ids)*mask[...,None]):
            if embeds is not None and vectors: continue
            found = zip(*write_states(lm, ids, mask, embeds, max_new_tokens=6, **asked))
            for (y, z), (wanted, h) in zip(found, (slow(p, 6, **asked) for p in prompts), strict=True):
                assert y == wanted
                assert cast.apart(z, h) < (1e-4 if family in IN_FLOAT32 else 1e-9)
    assert KEPT[family] == ('generate' if way == 'again' and door.rows == 'together' and door.found['writing from ids'][0] == 'generate' else way)


def test_a_layer_that_cannot_be_kept_is_refused():
    if 'deepseek_v4' not in FAMILIES: pytest.skip('this transformers has no deepseek_v4')
    ids = torch.tensor([[5, 9, 13]])
    with torch.no_grad(), pytest.raises(InterlatError, match='layer 1 of .* has states of shape .*; use -1, the last one'): write_states(family_lm('deepseek_v4'), ids, torch.ones_like(ids), layer=1)
