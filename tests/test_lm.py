"Chat formats that are not ours, and tokens that a model does not know yet."
import cast, pytest, torch

from interlat.core.basics import InterlatError
from interlat.models.lm import Agent, load_lm, load_tokenizer
from interlat.models.chat import BOP, EOP, add_message_tokens, chat_rows, encode_chat, message_token_ids, plan_token_ids, render
from interlat.models.tiny import tiny_lm, train_tokenizer

CHAT = [dict(role='user', content='find the mug'), dict(role='assistant', content='go to desk 1'),
        dict(role='user', content='You see nothing.'), dict(role='assistant', content='go to bed 2')]
TEMPLATES = dict( # the ways of the hub: a system prompt of the template's own, text after the end token, a space before it, trimmed contents
    system="{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
           "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    inst="{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
         "{% else %}{{ ' ' + m['content'].strip() + '<|im_end|>' }}{% endif %}{% endfor %}")


@pytest.fixture
def tok():
    return train_tokenizer('qwen2', [t['content'] for t in CHAT], vocab_size=330)


@pytest.mark.parametrize('name', TEMPLATES)
def test_only_what_the_assistant_said_is_supervised(tok, name):
    tok.chat_template = TEMPLATES[name]
    chat = encode_chat(tok, CHAT)
    assert tok.decode(chat.input_ids) == render(tok, CHAT)
    said = tok.decode([i for i, m in zip(chat.input_ids, chat.assistant_mask) if m])
    assert said.replace(' ', '') == 'goto desk1<|im_end|>goto bed2<|im_end|>'.replace(' ', '')
    assert tok.decode(chat.input_ids[:chat.insert_at]).rstrip().endswith(('find the mug<|im_end|>', 'find the mug [/INST]'))


@pytest.mark.parametrize('name', TEMPLATES)
def test_play_continues_training_id_for_id(tok, name):
    tok.chat_template = TEMPLATES[name]
    whole = encode_chat(tok, CHAT).input_ids
    for turn in (1, 3):
        prompt = encode_chat(tok, CHAT[:turn], add_generation_prompt=True)
        assert whole[:len(prompt)] == prompt.input_ids and not prompt.assistant_mask[-1]


def test_a_template_that_rewrites_the_past_is_followed(tok):
    tok.chat_template = "{% for m in messages %}{{ loop.revindex ~ m['content'] }}{% endfor %}"
    assert tok.decode(encode_chat(tok, CHAT[:3]).input_ids) == render(tok, CHAT[:3]) == '3find the mug2go to desk 11You see nothing.'
    assert tok.decode(encode_chat(tok, CHAT[:3]).input_ids[:encode_chat(tok, CHAT[:3]).insert_at]) == '3find the mug'
    first, second = chat_rows(tok, CHAT)
    assert tok.decode(first.input_ids) == '1find the muggo to desk 1' and tok.decode(second.input_ids) == render(tok, CHAT[:3]) + 'go to bed 2'


def test_a_tokenizer_without_template_is_refused(tok):
    tok.chat_template = None
    with pytest.raises(InterlatError, match='has no chat template'): encode_chat(tok, CHAT)


def test_message_tokens_are_taught_once_and_start_at_the_mean():
    from transformers import PreTrainedTokenizerFast
    plain = train_tokenizer('qwen2', ['a b'], vocab_size=300)
    tok = PreTrainedTokenizerFast(tokenizer_object=cast_without(plain), eos_token='<|im_end|>', pad_token='<|endoftext|>')
    with pytest.raises(InterlatError, match='lacks <bop> and <eop>'): message_token_ids(tok)
    model, old = tiny_lm('tiny-qwen2', tok, tie_word_embeddings=False), len(tok)
    tables = [t.weight.detach().clone() for t in (model.get_input_embeddings(), model.get_output_embeddings())]
    ids = add_message_tokens(Agent(model, tok))
    assert ids == (old, old + 1) == add_message_tokens(Agent(model, tok)) and tok(BOP + EOP).input_ids == list(ids)
    for before, after in zip(tables, (model.get_input_embeddings(), model.get_output_embeddings())):
        assert torch.equal(after.weight[:old], before)
        torch.testing.assert_close(after.weight[list(ids)], before.mean(0).expand(2, -1))


def cast_without(tok):
    "A backend tokenizer that has never heard of messages."
    import json
    from tokenizers import Tokenizer
    spec = json.loads(tok.backend_tokenizer.to_str())
    spec['added_tokens'] = [t for t in spec['added_tokens'] if t['content'] not in (BOP, EOP)]
    gone = [spec['model']['vocab'].pop(t) for t in (BOP, EOP)]
    spec['model']['vocab'] = {t: i - sum(g < i for g in gone) for t, i in spec['model']['vocab'].items()}
    for t in spec['added_tokens']: t['id'] = spec['model']['vocab'][t['content']]
    return Tokenizer.from_str(json.dumps(spec))


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
def test_a_folder_loads_like_a_preset(tmp_path, family):
    tok = train_tokenizer(family, ['go to desk 1']*9, vocab_size=300)
    model = tiny_lm(f'tiny-{family}', tok, num_hidden_layers=1)
    with pytest.raises(InterlatError, match='model configuration not found'): load_lm(tmp_path)
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    again, same = load_lm(tmp_path, device='cpu')
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters())) and not again.training
    assert encode_chat(same, CHAT) == encode_chat(tok, CHAT)
    assert same.tokenize('go to desk 1 !') == tok.tokenize('go to desk 1 !')


def test_a_hub_id_without_network_says_so():
    with pytest.raises(InterlatError, match='cannot load the tokenizer of nobody/nothing-at-all: '): load_tokenizer('nobody/nothing-at-all')


def test_plan_tokens():
    a, b = (train_tokenizer('qwen2', [t], vocab_size=300) for t in ('take mug 1 from desk 1', 'zebra'))
    ids = a('take mug 1').input_ids + [a.eos_token_id]
    assert plan_token_ids(a, ids, 'take mug 1') == ids
    assert b.decode(plan_token_ids(b, ids, 'take mug 1')) == 'take mug 1' + b.eos_token
    assert plan_token_ids(a, [-1]*len(ids), 'take mug 1') == ids
    assert plan_token_ids(a, [*ids[:2], -1], 'take mug 1') == ids
    assert plan_token_ids(a, [], '') == []


def test_damaged_weights_are_one_line(tok, tmp_path):
    tiny_lm('tiny-qwen2', tok, num_hidden_layers=1, hidden_size=32, intermediate_size=64).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    (tmp_path/'model.safetensors').write_bytes((tmp_path/'model.safetensors').read_bytes()[:-100])
    with pytest.raises(InterlatError, match='cannot load the model') as e: load_lm(tmp_path, device='cpu')
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('family, lost', [('qwen2', 'model.layers.1.mlp.up_proj.weight'), ('llama', 'lm_head.weight')])
def test_a_checkpoint_that_lacks_weights_is_refused(tok, tmp_path, family, lost):
    from safetensors.torch import load_file, save_file
    from interlat.models.difference import saved_lm
    Agent(cast.random_lm(family, vocab=len(tok), tie_word_embeddings=False), tok).save_pretrained(tmp_path)
    load_lm(tmp_path, device='cpu')
    file = tmp_path/'model.safetensors'
    save_file({name: x for name, x in load_file(file).items() if name != lost}, file, dict(format='pt'))
    for load in (load_lm, saved_lm):
        with pytest.raises(InterlatError, match=f'1 weights of .*ForCausalLM are not in the checkpoint, such as {lost}, and would be random; give one that is whole'):
            load(tmp_path, device='cpu')
