"""Weights to and from Hugging Face's `LlamaForCausalLM`: a renaming, since RoPE uses the same half-split pairs.

Trunk layers and head 1 are Llama's layers in order; the further heads have no place there and are never dropped
silently.
"""

import re
from typing import Any

from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.counts import trunk_widths
from mtp_lightning.model.mtp import MTPModel

_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
_BLOCK = re.compile(r"trunk\.(\d+)\.(.+)\.weight|heads\.0\.(\d+)\.(.+)\.weight")


def llama_config(config: BackboneConfig, n_layers: int) -> dict[str, Any]:
    """Keyword arguments of `transformers.LlamaConfig` for a trunk + head 1 of `n_layers` layers."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }


def to_llama_state_dict(model: MTPModel, drop_heads: bool = False) -> dict[str, Tensor]:
    """Trunk + head 1 under Llama's names.

    Raises:
        InputError: the model has further heads and `drop_heads` was not asked for; or the path to its next token is
            not a Llama.
    """
    widths = set(trunk_widths(model.config, model.heads_config))
    if model.heads_config.kind in ("linear", "anticausal") or widths != {model.config.ffn}:
        raise InputError(
            f"heads of kind '{model.heads_config.kind}' do not leave a Llama: head 1 has to be a transformer layer on "
            "the trunk, and every layer equally wide"
        )
    if model.n_future > 1 and not drop_heads:
        raise InputError(
            f"this model has {model.n_future} prediction heads and Llama has room for one: "
            "ask for drop_heads to keep head 1 alone"
        )
    renamed = {}
    for name, tensor in model.state_dict().items():
        if (name.startswith("heads.") and not name.startswith("heads.0.")) or name.startswith("further_unembeddings."):
            continue
        match = _BLOCK.fullmatch(name)
        if match is None:
            renamed[_TOP[name]] = tensor
            continue
        layer = int(match[1]) if match[1] else len(model.trunk) + int(match[3])
        renamed[f"model.layers.{layer}.{_LAYER[match[2] or match[4]]}.weight"] = tensor
    return renamed
