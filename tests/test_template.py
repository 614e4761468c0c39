"Chat templates in the ways of the hub, written anew: one that takes thinking out, one that refuses, one that says the date, one that ends turns by its own mark."
import json
from datetime import datetime

import cast, pytest, torch
import transformers.utils.chat_template_utils as chat_template_utils

from interlat.core.basics import InterlatError
from interlat.core.tasks import Task
from interlat.messages.message import LatentMessage, MessageStore
from interlat.models.lm import Agent, load_tokenizer
from interlat.models.template import *
from interlat.models.chat import Conversation, TemplateFacts, add_message_tokens, chat_rows, encode_chat, plan_token_ids, template_facts
from interlat.models.sampling import end_token_ids, greedy_config
from interlat.agents.collect import collect, generate_messages
from interlat.agents.speaker import Seat, Speaker
from interlat.agents.new_actor import chat_tokenizer, load_actor, new_actor
from interlat.evaluation.answering import answer
from interlat.evaluation.rollout import rollout
from interlat.training.lessons import ActorCollator, ActorDataset

SAYS = "{{ '<|im_start|>' + m['role'] + '\n' + %s + '<|im_end|>\n' }}"
OPENS = "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n%s' }}{%% endif %%}"
PLAIN = "{% for m in messages %}" + SAYS % "m['content']" + "{% endfor %}" + OPENS % ''
_THINKS = ("{% set n = namespace(asked=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.asked = loop.index %}{% endif %}{% endfor %}"
           "{% for m in messages %}{% set parts = m.content.split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
           "{% if m.role == 'assistant' and (loop.index > n.asked or ALWAYS) %}"
           "{% set said = '<think>\n' + (parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 and not ALWAYS else '') + '\n</think>\n\n' + said %}{% endif %}"
           + SAYS % 'said' + "{% endfor %}")
TEMPLATES = dict(
    plain=PLAIN,
    qwen3=_THINKS.replace('ALWAYS', 'false') + OPENS % '', # takes earlier thinking out, fills the last turn up with an empty block
    no_think=_THINKS.replace('ALWAYS', 'false') + OPENS % r'<think>\n\n</think>\n\n', # so does this one, and the prompt has the block, too
    empty_blocks=_THINKS.replace('ALWAYS', 'true') + OPENS % '', # puts the block into every turn
    opens_thought="{% for m in messages %}" + SAYS % "m.content.split('</think>')[-1]" + "{% endfor %}" + OPENS % '<think>', # which no turn has afterwards
    gemma="{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
          "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate:\n user, assistant') }}{% endif %}"
          + SAYS % "m['content'] | trim" + "{% endfor %}" + OPENS % '',
    llama="{{ '<|im_start|>system\n' }}{% if strftime_now is defined %}{{ 'Today Date: ' + strftime_now('%d %b %Y') }}{% endif %}{{ '<|im_end|>\n' }}" + PLAIN,
    mistral="{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    late_system="{% for m in messages %}{% if m.role != 'system' %}" # moves the system turn, and what stands before the message, to the last user turn
          + SAYS % "(messages[0].content + '\n' if messages[0].role == 'system' and m.role == 'user' and loop.index >= messages | length - 1 else '') + m.content"
          + "{% endif %}{% endfor %}" + OPENS % '')
SYSTEM, REWRITES = dict(role='system', content='Be brief.'), ('qwen3', 'no_think', 'empty_blocks', 'opens_thought', 'late_system')


def user(text): return dict(role='user', content=text)
def assistant(text): return dict(role='assistant', content=text)
def thinking(text, thought='where is it?'): return assistant(f'<think>\n{thought}\n</think>\n\n{text}')


TALK = [user('find the mug'), assistant('go to desk 1'), user('You see nothing.'), thinking('go to bed 2'), user('A mug 1.'), thinking('take mug 1', 'there'),
        user('ok'), assistant('look'), user('ok'), assistant('go to desk 1')]


def tokenizer(name):
    tok = load_tokenizer('tiny-qwen2')
    tok.chat_template = TEMPLATES[name]
    return tok


@pytest.fixture(params=TEMPLATES)
def named(request): return request.param, tokenizer(request.param)


def supervised(row):
    "Each stretch of a row that is supervised, with all that stands before it."
    mask, found = [0, *row.assistant_mask, 0], []
    starts, ends = ([i for i in range(len(mask)-1) if (mask[i], mask[i+1]) == pair] for pair in ((0, 1), (1, 0)))
    return [(row.input_ids[:a], row.input_ids[a:b]) for a, b in zip(starts, ends)]


# %% the text, the ids, the rows

def test_play_reads_what_the_template_writes(named):
    name, tok = named
    for turns in (TALK, [SYSTEM, *TALK]):
        if name == 'gemma' and turns[0] is SYSTEM: continue
        c = Conversation(tok)
        for turn in turns:
            if turn['role'] == 'assistant':
                c.open(); c.open()
                assert c.text == tok.decode(c.input_ids) == render(tok, c.turns, True)
                assert c.input_ids == tok(render(tok, c.turns, True)).input_ids
                before = tok.decode(c.input_ids[:c.insert_at])
                assert before.count('find the mug') == 1 and before.rstrip().endswith('find the mug' + (' [/INST]' if name == 'mistral' else '<|im_end|>'))
            c.add(turn)


def test_training_supervises_each_turn_once_where_play_writes_it(named):
    name, tok = named
    for turns in (TALK, TALK[:2], TALK[:4], [SYSTEM, *TALK]):
        if name == 'gemma' and turns[0] is SYSTEM: continue
        said = [k for k, t in enumerate(turns) if t['role'] == 'assistant']
        found = [pair for row in chat_rows(tok, turns) for pair in supervised(row)]
        assert [before for before, _ in found] == [encode_chat(tok, turns[:k], add_generation_prompt=True).input_ids for k in said]
        for k, (_, ids) in zip(said, found):
            words = turns[k]['content']
            if name == 'empty_blocks': words = words.split('</think>\n\n')[-1] # it shows no thought
            if name == 'opens_thought': words = words.removeprefix('<think>') # the prompt has that
            assert tok.decode(ids).lstrip(' ') == words + '<|im_end|>' and ids[-1] == end_mark(tok)
        played = Conversation(tok, turns[:said[0]])
        for k, (before, ids) in zip(said, found): # an actor that writes what it was taught comes to the contexts that it was taught in
            played.open()
            assert played.input_ids == before
            played.add(assistant(decode_turn(tok, ids).lstrip(' ')))
            for turn in turns[k+1:k+2]: played.add(turn)


def test_one_row_where_the_template_only_appends(named):
    name, tok = named
    rows = chat_rows(tok, TALK)
    assert (len(rows) > 1) == (name in REWRITES and name != 'late_system')
    if len(rows) == 1: assert rows == [encode_chat(tok, TALK)] and tok.decode(rows[0].input_ids) == render(tok, TALK)
    if name == 'qwen3': assert len(rows) == 3 and len(chat_rows(tok, [TALK[i] for i in (0, 1, 2, 7, 4, 7)])) == 1 # as often as there is a thought


def test_the_empty_block_is_nobodys(named):
    name, tok = named
    text, ids = render(tok, TALK[:2]), encode_chat(tok, TALK[:2])
    assert ('<think>' in text) == (name in ('qwen3', 'no_think', 'empty_blocks'))
    assert '<think>' not in tok.decode([i for i, m in zip(ids.input_ids, ids.assistant_mask) if m])
    assert ('<think>' in tok.decode(ids.input_ids)) == (name in ('no_think', 'opens_thought')) # the prompt has it
    if name == 'qwen3': # an expert that writes the block itself is imitated
        ids = encode_chat(tok, [TALK[0], thinking('look', '')])
        assert '<think>' in tok.decode([i for i, m in zip(ids.input_ids, ids.assistant_mask) if m])


# %% the cache

@pytest.mark.parametrize('channel', ['message', 'none'])
def test_cached_play_is_word_for_word_the_slow_one(named, channel):
    name, tok = named
    actor, N = cast.actor(cast.lm(tok), tok), 7
    embeds = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) if channel == 'message' else None

    @torch.no_grad()
    def slowly(turns):
        "The conversation rendered anew and read from its first word for each token."
        ids, new = tok(render(tok, turns, True)).input_ids, []
        at = encode_chat(tok, turns).insert_at
        while len(new) < N and (not new or new[-1] not in end_token_ids(Agent(actor.base_model, tok))):
            x = torch.tensor([ids + new])
            given = {} if embeds is None else dict(insert_at=torch.tensor([at]), message_embeds=embeds[None])
            new.append(actor(x, torch.ones_like(x), **given).logits[0].argmax().item())
        return tok.decode(new, skip_special_tokens=True)

    seats = [Seat(Conversation(tok, [*([SYSTEM] if k and name != 'gemma' else []), user(f'find the mug {k}')]), embeds) for k in range(3)]
    speaker, anew = Speaker(Agent(actor, tok), N), 0
    for turn in range(5):
        wanted = [slowly(s.chat.turns) for s in seats]
        for s in seats: s.chat.open()
        anew += sum(len(s.chat.input_ids) + s.extra for s in seats)
        assert speaker.speak(seats) == wanted
        for k, (s, words) in enumerate(zip(seats, wanted)):
            s.chat.add(thinking(words.strip(), 'a mug') if (turn + k) % 2 else assistant(words[:9].strip()))
            s.chat.add(user('You see a desk 1. What next?'))
    if name != 'late_system': assert speaker.computed < .75*anew # what is the same is not read again


def test_a_message_that_is_moved_is_read_again():
    tok = tokenizer('late_system')
    seat = Seat(Conversation(tok, [SYSTEM, user('go')]), torch.zeros(2, 32))
    speaker = Speaker(Agent(cast.actor(cast.lm(tok), tok), tok), 2)
    speaker.speak([seat])
    assert seat.stays() and seat.at == seat.chat.insert_at
    seat.chat.add(assistant('look')); seat.chat.add(user('and now?'))
    assert not seat.stays() and seat.chat.insert_at < seat.at
    seat.embeds = None
    assert seat.stays()


# %% what a template refuses

def test_a_refusal_is_one_line_wherever_a_chat_is_rendered(tmp_path):
    games = cast.games(tmp_path/'games', 2)
    tok = tokenizer('gemma')
    tok.name_or_path = 'gemma'
    base = cast.lm(tok)
    task = Task('a', 'find', [SYSTEM, user('where?')], turns=[SYSTEM, *TALK[:2]])
    agent = Agent(cast.actor(base, tok), tok)
    calls = [lambda: generate_messages(Agent(base, tok), [task.prompt]), lambda: collect(Agent(base, tok), [task], MessageStore(tmp_path/'s', 'x'), progress=False),
             lambda: ActorDataset([task], tok), lambda: next(answer(agent, [task])), lambda: Conversation(tok, task.turns)]
    for call in calls:
        with pytest.raises(InterlatError) as e: call()
        assert str(e.value) == "the chat template of 'gemma' refuses the turns system, user: System role not supported; use prompts without a system turn"
    twice = Task('b', 'find', [user('a')], turns=[user('a'), user('b'), assistant('c')])
    with pytest.raises(InterlatError, match="'gemma' refuses the turns user, user: Roles must alternate: user, assistant; let user and assistant take turns") as e:
        ActorDataset([twice], tok)
    assert '\n' not in str(e.value)
    tok.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(InterlatError, match="'gemma' refuses the turns user: never"): rollout(agent, games, progress=False)


def test_a_system_turn_that_is_refused_alone_waits_for_the_users():
    tok = tokenizer('plain')
    tok.chat_template = "{% if messages | length == 1 and messages[0].role == 'system' %}{{ raise_exception('No user') }}{% endif %}" + PLAIN
    assert encode_chat(tok, [SYSTEM, *TALK]).input_ids == encode_chat(tokenizer('plain'), [SYSTEM, *TALK]).input_ids


def test_a_broken_template_is_one_line():
    tok = tokenizer('plain')
    for template, reason in (("{% for", 'unexpected|expected'), ("{{ messages[0].content + 1 }}", 'concatenate'), ("{{ nothing.here }}", 'undefined')):
        tok.chat_template = template
        with pytest.raises(InterlatError, match=f'refuses the turns user: .*({reason})'): encode_chat(tok, TALK[:1])
        assert end_mark(tok) is None


def test_a_template_that_loses_the_place_of_the_message_is_refused():
    tok = tokenizer('plain')
    tok.chat_template = "{{ messages | length }}{{ messages[-1].content }}<|im_end|>"
    with pytest.raises(InterlatError, match=r'takes the first user turn out \(turn 2\)'): encode_chat(tok, [user('a'), user('b')])


# %% the end of a turn

def test_a_turn_ends_at_the_templates_mark(tmp_path):
    "Whatever the tokenizer and the model call their end: each of the three ends a turn, the template's is taught."
    tok = tokenizer('plain')
    tok.eos_token = '<|endoftext|>'
    mark, eos = tok.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    base = cast.lm(tok)
    base.generation_config.eos_token_id = 9
    agent = Agent(base, tok)
    assert end_mark(tok) == turn_end(tok) == mark and tok.eos_token_id == eos and end_token_ids(agent) == sorted([mark, eos, 9])
    for row in chat_rows(tok, TALK): assert [ids[-1] for _, ids in supervised(row)] == [mark]*5
    assert plan_token_ids(tok, [-1], 'go to desk 1') == [*tok('go to desk 1').input_ids, mark]
    batch = ActorCollator(tok.pad_token_id)([ActorDataset([Task('a', 'b', TALK[:1], turns=TALK)], tok)[0]])
    assert (batch['labels'] == mark).sum() == 5 and not (batch['labels'] == eos).any()
    door, chats = cast.actor(base, tok), [Seat(Conversation(tok, TALK[:1]))]
    for end in (mark, eos, 9): # the head writes one of them at once
        head = torch.nn.Linear(32, len(tok))
        head.weight.data.zero_(); head.bias.data = torch.nn.functional.one_hot(torch.tensor(end), len(tok)).float()
        base.lm_head = head
        vars(base).pop('_causal_lm', None)
        assert generate_messages(agent, [TALK[:1]], max_new_tokens=3)[0][1] == [end]
        seat = Seat(Conversation(tok, TALK[:1]))
        text, = Speaker(Agent(cast.actor(base, tok), tok), 3).speak([seat])
        assert seat.ended and seat.written == 1 and text == ('' if end != 9 else tok.decode([9]))


def test_a_mark_that_is_no_special_token_is_not_part_of_the_text():
    from tokenizers import AddedToken
    tok = tokenizer('plain')
    tok.add_tokens([AddedToken('<end_of_turn>', special=False)])
    tok.chat_template = PLAIN.replace('<|im_end|>', '<end_of_turn>')
    ids = tok('go to desk 1<end_of_turn>').input_ids
    assert end_mark(tok) == ids[-1] and decode_turn(tok, ids) == 'go to desk 1' and '<end_of_turn>' in tok.decode(ids, skip_special_tokens=True)
    assert plan_token_ids(tok, ids, 'go to desk 1') == ids


# %% the date

@pytest.fixture
def other_day(monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None): return cls(2031, 5, 6)
    return lambda: monkeypatch.setattr(chat_template_utils, 'datetime', Later)


def test_another_day_gives_the_same_ids(other_day, tmp_path):
    tok = tokenizer('llama')
    today, rows = encode_chat(tok, TALK), chat_rows(tok, TALK)
    other_day()
    assert '06 May 2031' in tok.apply_chat_template(TALK, tokenize=False) # as transformers has it
    assert encode_chat(tok, TALK) == today and chat_rows(tok, TALK) == rows and '26 Jul 2024' in render(tok, TALK)
    set_chat_date(tok, '2025-12-31')
    assert '31 Dec 2025' in render(tok, TALK)
    cast.lm(tok).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    assert render(load_tokenizer(tmp_path), TALK) == render(tok, TALK)


def test_a_trained_actor_keeps_its_date(tmp_path):
    tok = tokenizer('llama')
    cast.lm(tok).save_pretrained(tmp_path/'base')
    tok.save_pretrained(tmp_path/'base')
    for given, wanted in (dict(), CHAT_DATE), (dict(chat_date='2025-12-31'), '2025-12-31'):
        actor = new_actor(tmp_path/'base', device='cpu', **given)
        actor.save_pretrained(tmp_path/wanted)
        assert json.loads((tmp_path/wanted/'tokenizer_config.json').read_text())['chat_date'] == wanted
        for again in (load_actor(tmp_path/wanted, device='cpu'), new_actor(tmp_path/wanted, device='cpu')): assert chat_date(again.tokenizer) == wanted
    with pytest.raises(InterlatError, match='writes no date; leave chat_date out'): chat_tokenizer('tiny-qwen2', date='2025-12-31')
    assert 'chat_date' not in chat_tokenizer('tiny-qwen2').init_kwargs


def test_a_store_keeps_the_date_of_its_prompts(tmp_path, other_day):
    tok = tokenizer('llama')
    sender, tasks = Agent(cast.lm(tok).double(), tok), [Task(f't{i}', 'a', [user(f'where is mug {i}?')]) for i in range(4)]
    def go_on(n, path='store'): return collect(sender, tasks[:n], MessageStore(tmp_path/path, 's'), max_new_tokens=3, progress=False)
    go_on(2)
    assert json.loads((tmp_path/'store/prompts.json').read_text()) == dict(chat_date=CHAT_DATE)
    other_day()
    whole, again = go_on(4), go_on(4, 'at once')
    assert all(a.token_ids == again[a.task_id].token_ids and cast.apart(a.h, again[a.task_id].h) < 1e-12 for a in whole) # in batches of 2 and of 4
    set_chat_date(tok, '2025-12-31')
    with pytest.raises(InterlatError, match=r'say 2024-07-26, those of this sender 2025-12-31; give the sender the date 2024-07-26 \(--chat_date\), or use'): go_on(4)
    (tmp_path/'store/prompts.json').unlink() # as earlier versions left it
    with pytest.raises(InterlatError, match='say an unknown date, those of this sender 2025-12-31; use another folder'): go_on(4)
    tok.chat_template = PLAIN
    go_on(2, 'plain')
    assert not (tmp_path/'plain/prompts.json').exists()


def test_the_command_takes_a_date(tmp_path):
    from interlat.commands.cli import main_collect
    tok = tokenizer('llama')
    cast.lm(tok).save_pretrained(tmp_path/'base')
    tok.save_pretrained(tmp_path/'base')
    cast.games(tmp_path/'games', 2)
    words = ['alfworld', '--model_name_or_path', tmp_path/'base', '--data_path', tmp_path/'games', '--output_dir', tmp_path/'store', '--max_new_tokens', 2, '--device', 'cpu']
    for more in ([], ['--K', 2, '--output_dir', tmp_path/'latent']):
        status, out, err = cast.call(main_collect, *words, *more, '--chat_date', '2025-12-31')
        assert status == 0, err
        assert json.loads((tmp_path/('latent' if more else 'store')/'prompts.json').read_text()) == dict(chat_date='2025-12-31')
    status, out, err = cast.call(main_collect, *words)
    assert status == 2 and 'say 2025-12-31, those of this sender 2024-07-26' in err


# %% what is told of a template

FACTS = dict(plain=(), gemma=dict(system='System role not supported'), llama=dict(date=True), mistral=(), qwen3=dict(rewrites=True, empty_thinking=True),
             no_think=dict(rewrites=True), empty_blocks=dict(rewrites=True, empty_thinking=True), opens_thought=dict(rewrites=True),
             late_system=())


def test_facts(named):
    name, tok = named
    assert template_facts(tok) == TemplateFacts(True, 'yes', False, False, False, '<|im_end|>')._replace(**dict(FACTS[name]))


def test_facts_of_others():
    tok = tokenizer('plain')
    tok.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ date_string }}"
    assert template_facts(tok) == TemplateFacts(True, 'it is left out', True, False, True, None)
    tok.chat_template = None
    assert template_facts(tok) == TemplateFacts(False, 'there is no template', False, False, False, None)


# %% all of it

def test_a_thinking_template_goes_through_the_pipeline(tmp_path):
    "Messages, an actor that learns to think before each command, and games: what it plays on the cache is what it plays without."
    from interlat.training.actor_trainer import train_actor
    from interlat.training.settings import ActorArguments
    tok, games = tokenizer('qwen3'), cast.games(tmp_path/'games', 2)
    for g in games: g.turns[:] = [t if t['role'] == 'user' else thinking(t['content'], 'so') for t in g.turns[:4]]
    base = cast.lm(tok)
    store = collect(Agent(base, tok), games, MessageStore(tmp_path/'store', 's'), max_new_tokens=5, progress=False)
    actor = Agent(cast.actor(base, tok), tok)
    args = ActorArguments(str(tmp_path/'out'), max_steps=60, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, save_strategy='no', disable_tqdm=True,
                          lr_scheduler_type='constant', warmup_steps=0, validation_split=0, separation_weight=0, separation_weight_start=0, alignment_weight=0)
    data = ActorDataset(games, tok, store)
    assert [r['task'] for r in data.rows] == [0, 0, 1, 1] and [sum(i != -100 for i in r['labels']) > 9 for r in data.rows] == [True]*4
    train_actor(actor, games, store, args)
    how = dict(messages=[store[g.task_id] for g in games], max_new_tokens=40, max_steps=2, progress=False)
    episodes = rollout(actor, games, **how)
    assert episodes == rollout(actor, games, **how, cache=False)
    for e, g in zip(episodes, games):
        assert e.outputs == [g.turns[1]['content'], g.turns[3]['content']] and e.actions == [o.rpartition('\n')[2] for o in e.outputs]
