import copy, json

import pytest, torch

import cast
from interlat.agents.actor import *
from interlat.agents.new_actor import *
from interlat.training.recipes import *
from interlat.core.basics import InterlatError

PROMPT = [dict(role='user', content='go to the shelf and look')]


@pytest.fixture(scope='module')
def parts():
    tok = cast.train_tokenizer('qwen2', [t['content'] for t in PROMPT], vocab_size=300)
    return cast.lm(tok), tok


def test_no_weights_are_loaded_for_a_model_without_a_chat_template(parts, tmp_path):
    lm, tok = copy.deepcopy(parts)
    tok.chat_template = None
    lm.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    (tmp_path/'model.safetensors').write_bytes(b'never read')
    with pytest.raises(InterlatError) as e: new_actor(tmp_path, device='cpu')
    assert 'no chat template; give one with --chat_template' in str(e.value) and '\n' not in str(e.value)


def test_training_goes_on_from_a_checkpoint_of_the_original_code(parts, tmp_path):
    lm, tok = parts
    a = ModelWithInsertedHiddenState(lm, prepended_length=9, hidden_size=32, num_heads=4, seed=3)
    for x in (lm, tok): x.save_pretrained(tmp_path)
    torch.save({part: getattr(a.processor, part).state_dict() for part in ('hidden_mha', 'pre_ln', 'post_ln', 'adaptive_proj')}, tmp_path/'hidden_mha_state.pt')
    (tmp_path/'prepended_config.json').write_text(json.dumps(dict(prepended_length=9, hidden_size=32, mha_num_heads=4)))
    again = new_actor(tmp_path, device='cpu')
    settings = again.model.settings
    assert (settings['bop_id'], settings['eop_id']) == cast.message_token_ids(again.tokenizer)
    assert settings['prepended_length'] == 9 and settings['num_heads'] == 4
    h = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.model.embed_message(h), a.eval().embed_message(h))
    third = new_actor(again.save_pretrained(tmp_path/'ours'), device='cpu')
    assert third.model.settings == settings
    with pytest.raises(InterlatError, match='has input_size 32, wanted 48; leave it out'): new_actor(tmp_path, 48, device='cpu')


def test_a_recipe_may_start_from_an_actor_and_use_lora(tmp_path):
    games = cast.games(tmp_path/'games', n=2)
    how = dict(channel='none', max_steps=2, per_device_train_batch_size=2, disable_tqdm=True, learning_rate=.01)
    setup = dict(device='cpu', lora=dict(r=2))
    first, _ = trained_actor(tmp_path/'first', 'tiny-qwen2', games, None, setup, **how)
    second, _ = trained_actor(tmp_path/'second', tmp_path/'first', games, None, setup, **how)
    weights, start = first.model.state_dict(), new_actor('tiny-qwen2', device='cpu').model.state_dict()
    assert second.model.state_dict().keys() == weights.keys() and 'lora' not in ' '.join(weights)
    with pytest.raises(InterlatError, match="unknown projector 'pca'; use ridge"): new_actor('tiny-qwen2', device='cpu', projector='pca')
    moved = {k for k,v in weights.items() if not torch.equal(v, start[k])}
    assert moved and all(k.endswith('proj.weight') and '.layers.' in k for k in moved) # no message, so the adapter stayed
