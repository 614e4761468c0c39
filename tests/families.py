"""Tiny random causal language models of every family that transformers knows.

`tiny_lm("llama")` takes the family's default configuration, makes every setting small that is a size by its name, and
builds the model with loud random weights, so that its logits depend clearly on every earlier token.
"""

import contextlib
import re
from dataclasses import fields

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
HEADS = 4

LAYER_COUNT = re.compile(r'^(num_(hidden_|encoder_|decoder_)?layers|n_layers?|(en|de)coder_layers|depth|num_blocks)$')
LAYER_INDICES = re.compile(r'(layers|ids|idxs|indices|indexes)$')
TOKEN = re.compile(r'_token_(id|index)$')
# settings to give even where the default leaves them open; other open ones stay so, and the class derives them
FILLED = re.compile(r'(key_value|kv)_heads$|experts|window|^head_dim$|_token_id$|initializer_range$')


class CannotBuild(Exception):
    "A family that needs something that is not there (a package, a kernel, another model)."


def tiny_lm(model_type: str, seed: int = 0, width: int = 32, vocab: int = 64):
    "A tiny random causal language model of one family, in evaluation mode, the same for the same seed."
    config = tiny_config(model_type, width, vocab)
    with torch.random.fork_rng(devices=[]), _marked_memory():
        torch.manual_seed(seed)
        model = _build(config, model_type).float().eval()
        _make_loud(model, _loud(width))
    return model


def tiny_config(model_type: str, width: int = 32, vocab: int = 64):
    "The family's default configuration with every size made small."
    own = exceptions(width).get(model_type, {})
    if isinstance(own, str):
        raise CannotBuild(f'{model_type}: {own}')
    return _shrink(AutoConfig.for_model(model_type), own, _rules(width, vocab))


# --- what the settings become ------------------------------------------------------------------------------------------


def _rules(width: int, vocab: int) -> list:
    """(pattern of a setting's name, what becomes of it), the first match counts.

    An integer is the largest size, a float or a truth value is the new value, and None leaves the setting alone.
    """
    head = width // HEADS
    return [(re.compile(pattern), rule) for pattern, rule in (
        (r'^is_decoder$|^causal$', True),
        (r'^add_cross_attention$', False),
        (r'^(initializer_range|init_std|initializer_factor|embed_init_std|embedding_initializer_range)$', _loud(width)),
        (r'^logit_scale$|^logits_mup_width_multiplier$', 1.0),  # made for wide models, they flatten a narrow one's logits
        (r'^attention_multiplier$', head ** -0.5),  # 1 by default, which lets each token see one other token only
        (r'type_vocab_size$|vocab_offset$', None),
        (r'multiple_of$|divisible_by$', 8),
        (r'vocab', vocab),
        (r'first_k_dense|num_dense_layers$|topk_group$|layers_per', 1),
        (r'num_kv_shared', 0),  # layers without keys of their own need others of their kind before them
        (r'position|^n_ctx$|max_seq_len$|context_length$|max_length$', 128),
        (r'window|attention_chunk_size$|index_topk$|^local_attention$', 40),
        (r'chunk_(size|length)$|block_size$|topk_blocks$', 8),
        (r'image_size$|crop_size$', 64),
        (r'tokens_per_image$', 4),
        (r'rope_head_dim$|rotary_dim$', head // 2),
        (r'mamba_(d_head|head_dim)$', 2 * head),
        (r'head_dim$|(d|dim)_head$|head_size$|^kv_channels$|^d_rel$', head),
        (r'kv_n_heads$|(key_value|kv|num_key)_heads$|groups?$', 2),
        (r'heads?(_per_\w+)?$', HEADS),
        (r'per_tok(en)?$|top_?k$|moe_k$|top_k_experts$', 2),
        (r'(moe|expert)\w*(intermediate|hidden|ffn)', width),
        (r'intermediate|ffn|inner|dff|dim_ff|feed_forward|d_ssm', 2 * width),
        (r'experts$|expert_num$', HEADS),
        (r'rank$|d_state$|state_size$', 16),
        (r'channels?$|input_size$|hidden_size|embed|d_model|n_embd|_dims?$|width$', width),
    )]


def exceptions(width: int) -> dict:
    "What single families need beyond the rules: settings, or the reason why they cannot be built."
    head = width // HEADS
    conv = {'layer_types': ['conv', 'full_attention']}
    slide = {'layer_types': ['full_attention', 'sliding_attention']}
    gemma3n = {  # with two layers that share the keys of the two before them
        'num_kv_shared_layers': 2, 'num_hidden_layers': 4, 'layer_types': ['sliding_attention', 'full_attention'] * 2,
        'intermediate_size': 2 * width, 'activation_sparsity_pattern': [0.95, 0.0, 0.0, 0.0]}
    gemma4 = {'global_head_dim': 2 * head}  # read but not declared, 512 if not given
    dots3 = {  # the sliding layers' own sizes: read but not declared, large if not given
        'swa_num_attention_heads': HEADS, 'swa_num_key_value_heads': HEADS, 'swa_q_lora_rank': 16, 'swa_kv_lora_rank': 16,
        'swa_head_dim': 2 * head, 'swa_qk_nope_head_dim': head, 'swa_v_head_dim': head}
    qwen4 = {  # sparse attention and n-gram embeddings are off by default
        'indexer_n_heads': 2, 'indexer_kv_heads': 1, 'indexer_head_dim': head, 'indexer_budget': 16, 'indexer_compress_ratio': 4,
        'ple_layer_ids': [1], 'heads_per_ngram': 2, 'ngram_vocab_size_base': 16, 'split_ngram_parts': 1, 'eos_token_id': 2}
    drafts = "drafts for another model: reads that model's hidden states and keys, not token ids"
    return {
        'bamba': {'attn_layer_indices': [1]},  # default: mamba layers only
        'big_bird': {'attention_type': 'original_full'},  # a decoder cannot have the default, block sparse attention
        'blt': {'num_hidden_layers': 2},  # its cache asks for it, but only the parts of its configuration have it
        'cohere_compass_text': slide | {'rope_parameters': {  # asked for by the model, empty by default
            'full_attention': None,
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4, 'mrope_section': _three_axes(head // 2)}}},
        'dbrx': {'attn_config': {'rope_theta': 1e4, 'clip_qkv': 8.0}},  # the model asks for both; one is missing there, one None
        'deepseek_v4': {'compress_rates': {'compressed_sparse_attention': 2, 'heavily_compressed_attention': 4}},  # sizes in a dict
        'dots3_note': {'text_config': dots3},
        'dots3_note_text': dots3,
        'gemma3n': {'text_config': gemma3n},
        'gemma3n_text': gemma3n,
        'gemma4': {'text_config': gemma4},
        'gemma4_assistant': drafts,
        'gemma4_text': gemma4,
        'gemma4_unified': {'text_config': gemma4},
        'gemma4_unified_assistant': drafts,
        'gemma4_unified_text': gemma4,
        'gpt_neo': {'attention_types': [[['global', 'local'], 1]]},  # kinds of layers and how often they repeat, as a nested list
        'granitemoehybrid': {'layer_types': ['linear_attention', 'full_attention']},  # default: mamba layers only
        'laguna': slide,  # default: full attention only
        'lfm2': conv,  # default: attention only
        'lfm2_moe': conv,  # default: none, which is refused
        'mamba2': {'head_dim': 2 * head},  # its heads make up twice the hidden size
        'mellum': slide,  # default: full attention only
        'minimax_m3_vl_text': {'layer_types': ['full_attention', 'minimax_m3_sparse']},  # default: full attention only
        'musicgen': {'decoder': {'num_codebooks': 1}},  # more would take one row of ids for each
        'musicgen_melody': {'decoder': {'num_codebooks': 1}},  # as above
        'qwen4_exp': {'text_config': qwen4},
        'qwen4_exp_text': qwen4,
        'reformer': {'axial_pos_shape': [8, 16], 'axial_pos_embds_dim': [width // 4, width - width // 4],  # product and sum are given
                     'hash_seed': 0},  # else it draws new hashes in every forward pass
        'xlnet': {'attn_type': 'uni'},  # default: attention in both directions
        'xlstm': {'autocast_kernel_dtype': 'float32',  # default: bfloat16
                  'qk_dim_factor': 64 / width, 'v_dim_factor': 64 / width},  # its states are rounded up to 64, its layers are not
        'xmod': {'default_language': 'en_XX'},  # default: none, which is refused
        'zamba': {'layers_block_type': ['linear_attention', 'hybrid', 'hybrid'], 'num_hidden_layers': 3},  # its hybrid layers are tied
    }


# --- the configuration -------------------------------------------------------------------------------------------------


def _shrink(config: PreTrainedConfig, own: dict, rules: list, given: dict | None = None) -> PreTrainedConfig:
    "A small copy: its class derives anew what follows from the sizes, and `own` settings have the last word."
    keep, small = _layers_to_keep(config), dict(given or {})
    for field in fields(config):
        name, value = field.name, vars(config).get(field.name)  # not getattr: it refuses what differs between layers
        if isinstance(value, PreTrainedConfig):
            part = getattr(config, 'sub_configs_defaults', {}).get(name)
            small[name] = _shrink(value, own.get(name, {}), rules, getattr(part, 'init_kwargs', None))
        elif isinstance(value, (list, tuple)) and not TOKEN.search(name):
            small[name] = _shrink_list(name, value, config, keep, rules)
        elif field.default is not None or FILLED.search(name):
            small[name] = _shrink_value(name, value if field.default is None else field.default, len(keep), rules)
    if 'kv_lora_rank' in small:  # keys and values come from one latent vector: as many heads as queries have
        small['num_key_value_heads'] = HEADS
        if vars(config).get('head_dim') == config.qk_rope_head_dim:
            small['head_dim'] = small['qk_rope_head_dim']
    small |= {name: value for name, value in own.items() if not isinstance(small.get(name), PreTrainedConfig)}
    return _split_rope(type(config)(**small))


def _shrink_value(name: str, value, layers: int, rules: list):
    "One setting made small, if its name says that it is a count of layers, a token id, or something with a rule."
    if TOKEN.search(name):
        return _token(name, value)
    rule = next((rule for pattern, rule in rules if pattern.search(name)), None)
    if isinstance(rule, (bool, float)):
        return rule
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        return value
    if LAYER_COUNT.search(name):
        return min(value, layers)
    return value if rule is None else rule if value is None else min(value, rule)


def _shrink_list(name: str, value, config, keep: list, rules: list):
    "A list of layer indices, of one entry for each layer, or of sizes, made small."
    total = _layer_count(config)
    if name.endswith('tokens'):  # ids that generation suppresses
        return type(value)()
    if _are_layers(name, value, total):
        return type(value)(keep.index(i) for i in value if i in keep)
    if len(value) == total:
        value = type(value)(value[i] for i in keep)
    return type(value)(_shrink_value(name, item, len(keep), rules) for item in value)


def _layer_count(config) -> int:
    "How many layers a configuration has, 0 where it has none."
    return getattr(config, 'num_hidden_layers', None) or 0


def _are_layers(name: str, value, total: int) -> bool:
    "Whether a list holds indices of layers."
    return bool(LAYER_INDICES.search(name)) and all(
        type(i) is int and before < i < total for before, i in zip([-1, *value], value))


def _layers_to_keep(config) -> list:
    "The few layers, two at least, in which each kind occurs that the configuration's lists tell apart."
    total = _layer_count(config)
    lists = {name: value for name, value in vars(config).items() if isinstance(value, (list, tuple))}
    types = getattr(config, 'layer_types', None)
    if types and config.attribute_map.get('layer_types', 'layer_types') not in lists:
        return list(range(max(2, *(types.index(kind) + 1 for kind in types))))  # computed from periods: only the first can be had
    kinds = [[i in value for i in range(total)] if _are_layers(name, value, total) else [repr(kind) for kind in value]
             for name, value in lists.items() if _are_layers(name, value, total) or len(value) == total]
    keep = {of_layer.index(kind) for of_layer in kinds for kind in of_layer}
    keep |= set(sorted({0, 1} - keep)[:max(2 - len(keep), 0)])
    return sorted(keep)[:max(total, 1)]


def _token(name: str, value):
    "A special token id below 3, so that ordinary ids from 3 up never mean anything special."
    if isinstance(value, (list, tuple)):
        return [_token(name, value[0])]
    if value is None or 0 <= value < 3:
        return value
    return 1 if re.search(r'bo\w_|bos|start|cls', name) else 2 if re.search(r'eo\w_|eos|end|sep', name) else 0


def _split_rope(config):
    "The configuration, with parts of the rotary frequencies for each of three axes where positions have them."
    if 'mrope_section' in (getattr(config, 'ignore_keys_at_rope_validation', None) or ()) and 'rope_theta' in config.rope_parameters:
        config.rope_parameters |= {'partial_rotary_factor': 1.0, 'mrope_section': _three_axes(config.head_dim // 2)}
    return config


def _three_axes(frequencies: int) -> list:
    "Three counts, as equal as can be, that sum to the number of frequencies."
    third = frequencies // 3
    return [frequencies - 2 * third, third, third]


# --- the model ---------------------------------------------------------------------------------------------------------


def _build(config, model_type: str):
    "What the automatic class makes of the configuration, or of its text half if the whole cannot be built."
    try:
        try:
            return AutoModelForCausalLM.from_config(config)
        except Exception:
            half = config.get_text_config(decoder=True)
            if type(half) is type(config):
                raise
            known = type(half) in MODEL_FOR_CAUSAL_LM_MAPPING
            return MODEL_FOR_CAUSAL_LM_MAPPING[type(half if known else config)]._from_config(half)
    except ImportError as error:
        raise CannotBuild(f"{model_type}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _marked_memory():
    "Let torch.empty give NaN, which marks the weights that a model never initialises."
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _loud(width: int) -> float:
    "The standard deviation of weights: 0.35 at width 32; the usual 0.02 would make all logits nearly equal."
    return 2 / width ** 0.5


@torch.no_grad()
def _make_loud(model, loud: float) -> None:
    "Draw the weights that the model left uninitialised and the matrices it left at zero, and scale up faint ones."
    for name, weight in model.named_parameters():
        matrix = weight.dim() > 1 and not name.endswith('bias')
        if not weight.isfinite().all() or matrix and not weight.any():
            weight.normal_(0, loud)
        elif matrix and 0 < weight.std() < loud / 3:
            weight.mul_(loud / weight.std())
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.masked_fill_(buffer.isnan(), 0.0)
