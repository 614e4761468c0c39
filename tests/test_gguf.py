"A GGUF file, as llama.cpp keeps models, made from a tiny model of our own."
import json

import cast, pytest, torch

from interlat.lm import encode_chat, load_lm


def write_gguf(path, model, tok):
    "`model` (a Qwen2) and its byte-level tokenizer as one file in float32."
    import gguf
    c, spec = model.config, json.loads(tok.backend_tokenizer.to_str())['model']
    w = gguf.GGUFWriter(path, 'qwen2')
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters['rope_theta'])
    vocab = sorted(spec['vocab'], key=spec['vocab'].get)
    special = set(tok.all_special_tokens)
    w.add_tokenizer_model('gpt2')
    w.add_token_list(vocab)
    w.add_token_types([3 if t in special else 1 for t in vocab])
    w.add_token_merges([' '.join(m) for m in spec['merges']])
    w.add_eos_token_id(tok.eos_token_id)
    w.add_pad_token_id(tok.pad_token_id)
    w.add_chat_template(tok.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, c.num_hidden_layers)
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
