"""Hugging Face's config.json <-> the configuration of a model here, strictly: a key that changes what a model computes
and is not known is refused by its name."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_rope import read_rope, rope_scaling
from mtp_lightning.model.config import BackboneConfig, HeadsConfig

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
"""Model type -> what its class in `transformers` takes for a key that config.json leaves out."""

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "ffn_dim",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
"""Theirs -> ours."""
OPTIONAL = ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings")

FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "mlp_bias": (False, None),
    "attention_bias": (False, None),
    "use_sliding_window": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "mtp_hidden_states_first": (False, None),
    "mtp_mlp_layer_types": (None,),
    "mtp_per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
}
"""Keys of which only these values are what a model here computes."""
INERT = frozenset((
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "architectures", "attention_dropout",
    "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range",
    "is_decoder", "is_llama_config", "label2id", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "return_dict", "sep_token_id",
    "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "use_cache", "unsloth_version", "unsloth_fixed", "decoder_start_token_id",
    "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "top_k", "top_p", "typical_p", "use_bfloat16",
))  # fmt: skip
"""Keys that change nothing about what a model computes when it is used."""
READ = frozenset((
    "max_position_embeddings", "sliding_window", "layer_types", "mtp_layer_types", "rope_theta", "rope_scaling",
    "rope_parameters",
))  # fmt: skip
MTP = ("num_nextn_predict_layers", "num_mtp_layers")
"""Further heads, in the MTP standard."""


class Described(NamedTuple):
    """What a config.json says."""

    backbone: BackboneConfig
    heads: HeadsConfig
    context: int
    """Positions that the model is made for, `max_position_embeddings`."""


def read_hf_config(config: Mapping[str, Any], context: int | None = None) -> Described:
    """
    Args:
        context: positions that the model will be used with, where they are fewer than it is made for.

    Raises:
        InputError: not a model of this platform; names the key of config.json that says so.
    """
    kind = config.get("model_type")
    if kind not in [*FAMILIES]:  # it may be anything
        raise InputError(f"model_type is {kind!r}: what can be imported is {', '.join(FAMILIES)}")
    refuse_unknown(config)
    full = {key: value for key, value in {**FAMILIES[kind], **config}.items() if value is not None}
    missing = [key for key in SIZES if key not in full and key not in OPTIONAL]
    if missing:
        raise InputError(f"{missing[0]} is missing")
    made_for = _whole(full, "max_position_embeddings", 1)
    used = context or made_for
    check_context(used, made_for, "max_position_embeddings")
    _refuse_windows(full, used)
    further = max((_whole(full, key) for key in MTP if key in full), default=0)
    heads = HeadsConfig(n_future=1 + further, kind="sequential", match="none") if further else HeadsConfig()
    return Described(_backbone(full), heads, used)


def _backbone(full: Mapping[str, Any]) -> BackboneConfig:
    values = {ours: full[theirs] for theirs, ours in SIZES.items() if theirs in full}
    for theirs in SIZES:
        if theirs in full and theirs not in ("rms_norm_eps", "tie_word_embeddings"):
            _whole(full, theirs)
    if type(full.get("tie_word_embeddings", False)) is not bool:
        raise InputError(f"tie_word_embeddings is {_shown(full['tie_word_embeddings'])}: it has to be true or false")
    if values.get("head_dim", 0) * values["n_heads"] == values["dim"]:
        del values["head_dim"]  # one way to say it
    if values.get("n_kv_heads") == values["n_heads"]:
        del values["n_kv_heads"]
    theta, scaling = read_rope(full)
    kind = full["model_type"]
    try:
        return BackboneConfig(
            **values,
            rope_theta=theta,
            rope_scaling=scaling,
            attention_bias="qkv" if kind == "qwen2" else "none",
            qk_norm=kind == "qwen3",
        )
    except InputError as error:
        said = str(error)
        for theirs, ours in SIZES.items():
            said = said.replace(f"model.backbone.{ours} ", f"{theirs} ")
        raise InputError(said) from error


def check_context(context: int, made_for: int, key: str) -> None:
    """
    Raises:
        InputError: more positions than the model is made for.
    """
    if context > made_for:
        raise InputError(f"--context is {context}, and the model is made for {made_for} positions ({key})")


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """
    Raises:
        InputError: a key that may change what the model computes, with a value that is not known to leave it alone.
    """
    for key, value in config.items():
        if key in FIXED:
            if value not in FIXED[key]:
                raise InputError(f"{key} is {_shown(value)}: a model here computes what {FIXED[key][0]!r} means")
        elif key not in INERT and key not in READ and key not in SIZES and key not in MTP:
            raise InputError(
                f"{key} is {_shown(value)}: this key is not known, and may change what the model computes; without it "
                "the import would not be the same model"
            )


def _refuse_windows(config: Mapping[str, Any], used: int) -> None:
    """
    Raises:
        InputError: attention that does not reach all of the context.
    """
    for key in ("layer_types", "mtp_layer_types"):
        named = config.get(key) or []
        if not isinstance(named, list):
            raise InputError(f"{key} is {_shown(named)}: it has to be a list of names")
        other = [name for name in named if name != "full_attention"]
        if other:
            raise InputError(f"{key} names layers of '{other[0]}': a model here has 'full_attention' alone")
    if "sliding_window" not in config or config["model_type"].startswith(
        "qwen"
    ):  # theirs is not in use, as was checked
        return
    window = _whole(config, "sliding_window")
    if window < used:
        raise InputError(
            f"sliding_window is {window}, and the model is made for {used} positions (max_position_embeddings): a "
            f"model here looks back at all of them. Up to {window} positions it is the same: `--context {window}`"
        )


def hf_config(backbone: BackboneConfig, n_layers: int, context: int = 2048) -> dict[str, Any]:
    """config.json of trunk + head 1, in `n_layers` layers, as every version of `transformers` reads it: the other way
    of `read_hf_config`. `transformers.AutoConfig.for_model(**hf_config(...))` makes the configuration.

    Raises:
        InputError: features that no one class there has.
    """
    kind, bias = "llama", backbone.attention_bias == "qkv"
    if bias and backbone.qk_norm:
        raise InputError("model.backbone.attention_bias 'qkv' together with qk_norm is no model of Hugging Face's")
    if bias or backbone.qk_norm:
        kind = "qwen2" if bias else "qwen3"
    elif backbone.dim % backbone.n_heads:
        kind = "mistral"  # its class, without a window, is the Llama that leaves head_dim free
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": backbone.vocab_size,
        "hidden_size": backbone.dim,
        "intermediate_size": backbone.ffn,
        "num_hidden_layers": n_layers,
        "num_attention_heads": backbone.n_heads,
        "num_key_value_heads": backbone.kv_heads,
        "head_dim": backbone.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": backbone.norm_eps,
        "rope_theta": backbone.rope_theta,
        "rope_scaling": rope_scaling(backbone.rope_scaling),
        "tie_word_embeddings": backbone.tie_embeddings,
        "max_position_embeddings": context,
        "initializer_range": backbone.init_std,
        **({"attention_bias": False, "mlp_bias": False} if kind == "llama" else {}),
        **({"sliding_window": None} if kind == "mistral" else {}),
        **({"use_sliding_window": False, "sliding_window": None} if kind.startswith("qwen") else {}),
    }


def _whole(config: Mapping[str, Any], key: str, least: int = 0) -> int:
    value = config.get(key)
    if type(value) is not int or value < least:
        raise InputError(f"{key} is {_shown(value)}: it has to be a whole number, at least {least}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def names_of(keys: Iterable[str]) -> str:
    """`a, b, c, ... (9 in all)`."""
    listed = list(keys)
    return ", ".join(listed[:3]) + (f", ... ({len(listed)} in all)" if len(listed) > 3 else "")
