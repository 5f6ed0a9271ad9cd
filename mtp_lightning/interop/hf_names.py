"""Tensor names, ours and Hugging Face's, by table: a renaming, since RoPE uses the same half-split pairs.

Trunk layers and head 1 are the layers of a Llama (Mistral, Qwen2, Qwen3) in order. The further heads of `sequential`
and `recurrent` have names in the MTP standard of `transformers`, whose layer L + k is the k-th further head's; the
further heads of other kinds have no place there, and are never dropped silently: `parallel`, `causal` and `linear`
ones have names in a layout of our own.
"""

import re
from typing import Literal

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import JOINED, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import trunk_widths
from mtp_lightning.model.mtp import MTPModel

Layout = Literal["llama", "standard", "own"]
"""A stock class; the MTP standard; code of our own (`export_hf`)."""
TOP = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "unembedding": "lm_head",
}
BLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
JOIN = {
    "hidden_norm": "hnorm",
    "embedding_norm": "enorm",
    "projection": "eh_proj",
    "norm": "shared_head.norm",
}
"""What a further head has beside its layer, the last where heads have norms of their own. The columns of `projection`
are [hidden | embedding], those of `eh_proj` [embedding | hidden]: `swap_halves`."""
SHARED_HEAD_NORM = "model.layers.{}.shared_head.norm.weight"
"""The norm of each further head in the standard, by layer, which ours have with `model.heads.norms: own` alone."""

_FURTHER = re.compile(
    r"heads\.[1-9]\d*\..+|further_unembeddings\..+|unembedding\.bigram|before\.weight|mixture\..+|register\.weight"
)


def weight_names(backbone: BackboneConfig, heads: HeadsConfig) -> list[str]:
    """Names of all weights of `MTPModel(backbone, heads)`; of tied embeddings both."""
    with torch.device("meta"):
        return list(MTPModel(backbone, heads).state_dict())


def llama_names(backbone: BackboneConfig, heads: HeadsConfig) -> dict[str, str]:
    """Hugging Face's name -> ours, of trunk + head 1. A tied unembedding is among them.

    Raises:
        InputError: head 1 is no transformer layer on the trunk.
    """
    if heads.kind in ("linear", "anticausal"):
        raise InputError(
            f"heads of kind '{heads.kind}' do not leave a Llama: head 1 has to be a transformer layer on the trunk"
        )
    ours = [name for name in weight_names(backbone, heads) if not _FURTHER.fullmatch(name)]
    return {_rename(name, len(trunk_widths(backbone, heads))): name for name in ours}


def standard_names(backbone: BackboneConfig, heads: HeadsConfig) -> dict[str, str]:
    """Hugging Face's name -> ours, of all heads, in the MTP standard. The one further module of `recurrent` has as
    many names there as heads that it serves. The `SHARED_HEAD_NORM`s of heads that share `norm` are not among them.

    Raises:
        InputError: heads that the standard has no names for.
    """
    names = llama_names(backbone, heads)
    if heads.n_future == 1:
        return names
    if heads.kind not in JOINED or heads.layers > 1 or heads.replicate_unembedding:
        raise InputError(
            f"model.heads: kind '{heads.kind}', {heads.layers} layers a head"
            f"{', replicated unembeddings' if heads.replicate_unembedding else ''}: the MTP standard holds "
            "'sequential' and 'recurrent' heads of one layer each on a shared unembedding"
        )
    n_layers = len(trunk_widths(backbone, heads)) + 1
    further = [name for name in weight_names(backbone, heads) if _FURTHER.fullmatch(name)]
    for head in range(1, heads.n_future):
        module = f"heads.{1 if heads.kind == 'recurrent' else head}."
        layer = f"model.layers.{n_layers + head - 1}."
        names |= {layer + _inside(name.removeprefix(module)): name for name in further if name.startswith(module)}
    return names


def tensor_names(backbone: BackboneConfig, heads: HeadsConfig, layout: Layout, count: int) -> dict[str, str]:
    """Hugging Face's name -> ours, of the first `count` heads, as each layout of `mtp export --to hf` has them."""
    if layout == "standard":
        return standard_names(backbone, heads)
    if heads.kind not in ("linear", "anticausal"):
        names = llama_names(backbone, heads)
        return names if layout == "llama" else names | _further_names(backbone, heads, count)
    trunk = len(trunk_widths(backbone, heads))
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in TOP.items()}
    for name in weight_names(backbone, heads):
        part, index, *rest = name.split(".")
        if part == "trunk":
            names[_in_layer(f"model.layers.{index}", rest)] = name
        elif part == "heads" and heads.kind == "anticausal":  # from the furthest down to head 1
            layer = trunk + (heads.n_future - 1 - int(index)) * heads.layers + int(rest[0])
            names[_in_layer(f"model.layers.{layer}", rest[1:])] = name
    if heads.kind == "linear":
        names["model.norm.projection.weight"] = "heads.0.projection.weight"
        names |= _further_names(backbone, heads, count)
    return names


def _further_names(backbone: BackboneConfig, heads: HeadsConfig, count: int) -> dict[str, str]:
    """Of the layout of our own: heads 2 .. count."""
    names = {}
    for name in weight_names(backbone, heads):
        part, index, *rest = name.split(".")
        if part == "heads" and 0 < int(index) < count:
            head = f"mtp_heads.{int(index) - 1}"
            names[f"{head}.weight" if heads.kind == "linear" else _in_layer(f"{head}.{rest[0]}", rest[1:])] = name
        elif part == "further_unembeddings" and int(index) < count - 1:
            names[f"mtp_lm_heads.{index}.weight"] = name
    return names


def _in_layer(layer: str, inside: list[str]) -> str:
    *place, kind = inside
    return f"{layer}.{BLOCK['.'.join(place)]}.{kind}"


def _rename(name: str, trunk: int) -> str:
    """Of a weight of trunk or head 1."""
    place, _, kind = name.rpartition(".")
    if place in TOP:
        return f"{TOP[place]}.{kind}"
    found = re.fullmatch(r"(trunk|heads\.0)\.(\d+)\.(.+)", name)
    assert found is not None, name
    layer = int(found[2]) + (trunk if found[1] == "heads.0" else 0)
    return f"model.layers.{layer}.{_inside(found[3])}"


def _inside(name: str) -> str:
    """Of a weight inside its layer, or inside a further head."""
    place, _, kind = name.removeprefix("stack.0.").rpartition(".")
    return f"{(BLOCK | JOIN)[place]}.{kind}"


def swap_halves(projection: Tensor) -> Tensor:
    """(D, 2D) -> (D, 2D): our joint projection to `eh_proj`, and back."""
    return torch.cat(projection.chunk(2, dim=1)[::-1], dim=1)


def to_llama_state_dict(model: MTPModel, drop_heads: bool = False) -> dict[str, Tensor]:
    """Trunk + head 1 under Llama's names.

    Raises:
        InputError: the model has further heads and `drop_heads` was not asked for; or the path to its next token is
            not a Llama.
    """
    names = llama_names(model.config, model.heads_config)
    if set(trunk_widths(model.config, model.heads_config)) != {model.config.ffn}:
        raise InputError("this model's layers do not leave a Llama: they are not all equally wide")
    if model.n_future > 1 and not drop_heads:
        raise InputError(
            f"this model has {model.n_future} prediction heads and Llama has room for one: "
            "ask for drop_heads to keep head 1 alone"
        )
    weights = model.state_dict()
    return {theirs: weights[ours] for theirs, ours in names.items()}
