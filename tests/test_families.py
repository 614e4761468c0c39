"Language models of different kinds are right at every door, or refused by name."
import logging

import pytest, torch
from transformers import PreTrainedTokenizerFast

from interlat.core.basics import InterlatError
from interlat.agents.collect import read_states
from interlat.instruments.check import STATES, check_doors, slower, ways_taken
from interlat.instruments.doors import DOORS
from interlat.models.causal_lm import causal_lm
from interlat.models.families import FAMILIES, family_lm
from interlat.models.chat import add_message_tokens
from interlat.models.lm import Agent, load_tokenizer, sizes

KINDS = { # family -> what its way is, where it is not the fastest
    'qwen2': {}, 'gemma2': dict(head='own'), 'bert': dict(head='own'), 'gemma4_text': dict(input='ids', **{'reading on': 'steps'}), 'llama4_text': {'reading on': 'steps'},
    'mamba': {'reading on': 'again'}, 'bamba': {'writing from vectors': 'loop'}, 'nemotron': dict(training='plain'), 'gemma3': dict(training='plain'), 'roberta': dict(rows='alone'), 'bart': dict(rows='alone'),
    'ctrl': {}, 'falcon_h1': {'reading on': 'again'}, 'gpt_neo': {'reading on': 'steps'}, 'deepseek_v4': dict(input='ids'), 'hy_v4': dict(rows='alone')}


@pytest.fixture(scope='module')
def tokenizer(): return load_tokenizer('tiny-qwen2')


def without_marks():
    "A tokenizer that has never heard of messages."
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['[PAD]', '[END]', '[UNK]', *map(str, range(50))])}, unk_token='[UNK]'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token='[PAD]', eos_token='[END]', unk_token='[UNK]')


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


LAYERS = { # family -> where its layers and its final norm are
    'llama': ('model.layers', 'model.norm'), 'gpt2': ('transformer.h', 'transformer.ln_f'), 'mamba': ('backbone.layers', 'backbone.norm_f'), 'rwkv': ('rwkv.blocks', 'rwkv.ln_out'),
    'gemma3_text': ('model.layers', 'model.norm'), 'opt': ('model.decoder.layers', 'model.decoder.final_layer_norm'), 'gemma4_text': ('model.layers', 'model.norm')}


@pytest.mark.parametrize('family', LAYERS)
def test_states_of_each_layer_are_those_at_the_layer(family):
    "Against hooks on the layers: 0 is what the first one reads, n what the n-th makes, the last one and -1 what the final norm makes of it."
    if family not in FAMILIES: pytest.skip(f'this transformers has no {family}')
    lm, (layers, norm) = family_lm(family), map(str, LAYERS[family])
    prompts, plans = [[5, 9, 13, 21], [7, 8]], [[30, 31, 32], [33, 34, 35, 36]]
    blocks, read, made = list(lm.get_submodule(layers)), [], []
    hooks = [blocks[0].register_forward_pre_hook(lambda m, args, kwargs: read.append(args[0] if args else kwargs['hidden_states']), with_kwargs=True),
             *(m.register_forward_hook(lambda m, args, out: made.append(out if isinstance(out, torch.Tensor) else out[0])) for m in (*blocks, lm.get_submodule(norm)))]
    wanted = []
    for p, y in zip(prompts, plans):
        read.clear(), made.clear()
        with torch.no_grad(): lm(input_ids=torch.tensor([p + y[:-1]]))
        wanted.append([x[0,len(p)-1:].clone() for x in (*read, *made[:-2], made[-1])]) # the last layer's is normed
    for hook in hooks: hook.remove()
    n = len(blocks)
    assert n == sizes(lm.config).depth >= 2 and all(len(w) == n+1 for w in wanted)
    for layer in range(-n-1, n+1):
        for h, w in zip(read_states(lm, prompts, plans, layer), wanted): torch.testing.assert_close(h, w[layer], atol=2e-4, rtol=1e-3)
    assert not torch.allclose(wanted[0][n-1], wanted[0][n])
    for layer in (n+1, -n-2):
        with pytest.raises(InterlatError, match=f'layer must be an integer, between {-n-1} and {n}, found {layer}'): read_states(lm, prompts, plans, layer)


@pytest.mark.parametrize('family', ['deepseek_v4', 'reformer'])
def test_a_layer_without_a_vector_for_each_position_is_refused(family):
    if family not in FAMILIES: pytest.skip(f'this transformers has no {family}')
    with pytest.raises(InterlatError, match='layer 1 of .* has states of shape .*; use -1, the last one'): read_states(family_lm(family), [[*range(5, 15)]], [[30, 31]], 1)


READS = { # family -> most tokens that its tiny model reads, by a table of positions
    'gpt2': 128, 'opt': 128, 'bart': 128, 'biogpt': 128, 'gptj': 128, 'mpt': 128, 'roberta': 126, 'camembert': 126, 'data2vec-text': 126, 'xlm-roberta': 126, 'xmod': 126}


@pytest.mark.parametrize('family', READS)
def test_the_window_is_as_long_as_the_model_reads(family):
    lm = family_lm(family)
    assert sizes(lm.config).window == READS[family]
    ids = torch.arange(READS[family] + 1)[None] % 40 + 5
    with torch.no_grad():
        assert lm(input_ids=ids[:,:-1]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)): lm(input_ids=ids)


@pytest.mark.parametrize('family', ['mamba', 'falcon_mamba', 'recurrent_gemma', 'xlnet', 'bloom'])
def test_some_families_state_no_window(family): assert sizes(family_lm(family).config).window is None


@pytest.mark.parametrize('family', ['llama', 'bert', 'gemma4_text', 'cohere2', 'xlstm'])
@pytest.mark.parametrize('known', [False, True], ids=['marks are new', 'the tokenizer knows them'])
def test_a_model_gets_rows_for_the_marks(family, known):
    "And what was tried before is tried again."
    tokenizer = without_marks()
    n, ids = len(tokenizer), torch.arange(10, 18)[None]
    if known: tokenizer.add_special_tokens({'additional_special_tokens': ['<bop>', '<eop>']})
    lm = family_lm(family, vocab=n)
    before, door = lm(input_ids=ids).logits, causal_lm(lm)
    assert door.head and door.found
    assert add_message_tokens(Agent(lm, tokenizer)) == (n, n+1) == add_message_tokens(Agent(lm, tokenizer))
    assert door.embedding.num_embeddings == n+2 and not door.found
    torch.testing.assert_close(lm(input_ids=ids).logits[...,:n], before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(door.embedding.weight[n], door.embedding.weight[:n].mean(0))


@pytest.mark.parametrize('how, why', [('raises', 'RuntimeError: no'), ('draws anew', 'its trained rows change')])
def test_a_model_that_takes_no_new_tokens_is_refused(how, why, monkeypatch):
    tokenizer = without_marks()
    lm = family_lm('llama', vocab=len(tokenizer))
    def resize(n, mean_resizing):
        if how == 'raises': raise RuntimeError('no')
        lm.get_input_embeddings().weight.data.normal_()
    monkeypatch.setattr(lm, 'resize_token_embeddings', resize)
    with pytest.raises(InterlatError, match=f'LlamaForCausalLM takes no new tokens .{why}.; train its adapter alone'): add_message_tokens(Agent(lm, tokenizer))
