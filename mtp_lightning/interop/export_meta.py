"""The layout of the paper's release (facebook/multi-token-prediction): Llama's own, and `extra_heads` for heads 2 .. n.

`layers.` are trunk and head 1, `extra_heads.{j}` is head j + 2, norm and output are shared. Rotary pairs are neighbours
there and half a head apart here, so rows of wq and wk are put in another order. No library reads this layout with its
heads: what is written is checked by Meta's formulas, in `meta_logits`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_json
from mtp_lightning.interop import hf_names
from mtp_lightning.interop.export_gate import POSITIONS, Head, as_written, compare_heads, trained_logits
from mtp_lightning.interop.export_hf import INSTEAD, Exported, Precision, export_model
from mtp_lightning.interop.importing.import_meta import BLOCK, PARAMS, TOP, ffn_width, read_params, to_neighbours
from mtp_lightning.model.config import RopeScaling
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.rope import rope_frequencies
from mtp_lightning.shapes import Float, Int

WEIGHTS = "consolidated.00.pth"
FORMULAS = "the formulas of Meta's Llama"
_TOP = {theirs: TOP[ours] for ours, theirs in hf_names.TOP.items()}
_BLOCK = {theirs: BLOCK[ours] for ours, theirs in hf_names.BLOCK.items() if ours in BLOCK}
"""Hugging Face's names -> Meta's."""
SCALED = RopeScaling("llama3", factor=8.0, original_context=8192)
"""`use_scaled_rope` as Meta's code computes it, Llama 3.1's: the only slower positions that it has a key for."""


class Release(NamedTuple):
    params: dict[str, Any]
    tensors: dict[str, Tensor]
    exported: Exported
    """What it was made from."""


@torch.no_grad()
def export_release(model: MTPModel, keep: int | None = None, dtype: Precision = None) -> Release:
    """
    Raises:
        InputError: heads that the layout does not hold; names the key, and what would work instead.
    """
    heads = model.heads_config
    if heads.n_future > 1 and keep != 1:
        if heads.kind != "parallel":
            raise InputError(
                f"model.heads.kind is '{heads.kind}': the release layout holds 'parallel' heads; {INSTEAD}"
            )
        if heads.layers > 1 or heads.replicate_unembedding:
            raise InputError(
                f"model.heads.layers is {heads.layers}, replicate_unembedding {heads.replicate_unembedding}: the "
                f"release layout holds heads of one layer that share an unembedding; {INSTEAD}"
            )
    elif heads.kind == "linear":
        raise InputError(f"model.heads.kind is 'linear': its head 1 is no Llama; {INSTEAD}")
    backbone = model.config
    fits = {
        "attention_bias": backbone.attention_bias == "none",
        "qk_norm": not backbone.qk_norm,
        "head_dim": backbone.head_size * backbone.n_heads == backbone.dim,
        "rope_scaling": backbone.rope_scaling in (RopeScaling(), SCALED),
    }
    for key in (key for key, does in fits.items() if not does):
        raise InputError(f"model.backbone.{key} is {getattr(backbone, key)}: the release layout has no place for it")
    exported = export_model(model, keep, dtype)
    tensors = {_renamed(name): _permuted(name, tensor, backbone.head_size) for name, tensor in exported.tensors.items()}
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"].clone())  # a tied one, which it has no key for
    params = {
        "dim": backbone.dim,
        "n_layers": exported.config["num_hidden_layers"] + exported.heads - 1,
        "n_heads": backbone.n_heads,
        "n_kv_heads": backbone.kv_heads,
        "vocab_size": backbone.vocab_size,
        "norm_eps": backbone.norm_eps,
        "rope_theta": backbone.rope_theta,
        "n_future_tokens": exported.heads,
        **({"use_scaled_rope": True} if backbone.rope_scaling == SCALED else {}),
        **ffn_params(backbone.dim, exported.config["intermediate_size"]),
    }
    return Release(params, tensors, exported)


def ffn_params(dim: int, width: int) -> dict[str, Any]:
    """`multiple_of` and `ffn_dim_multiplier` from which Llama's rule (`ffn_width`) makes this width."""
    multiple = math.gcd(width, 256)
    plain = {"dim": dim, "multiple_of": multiple}
    if ffn_width(plain) == width:
        return plain
    return plain | {"ffn_dim_multiplier": (width - multiple // 2 + 0.5) / (8 * dim // 3)}


def write_release(folder: Path, release: Release) -> None:
    """
    Raises:
        OSError: the disk is full, and what else may be wrong with it.
    """
    write_json(folder / PARAMS, release.params)
    with (folder / WEIGHTS).open("wb") as file:
        torch.save(release.tensors, file)
        file.flush()
        os.fsync(file.fileno())


@torch.no_grad()
def prove_release(folder: Path, model: MTPModel, release: Release) -> list[Head]:
    """Read the files again and compare the logits of every head.

    Raises:
        UnprovenError: a difference beyond rounding.
    """
    params = json.loads((folder / PARAMS).read_text())
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    n = release.exported.heads
    tokens = torch.randint(0, params["vocab_size"], (1, POSITIONS + n), generator=torch.Generator().manual_seed(0))
    found = meta_logits(params, {name: weight.float() for name, weight in weights.items()}, tokens[:, :-n])
    written = trained_logits(as_written(model, release.exported), release.exported, tokens)
    return compare_heads(FORMULAS, found, written, trained_logits(model, release.exported, tokens))


def meta_logits(
    params: dict[str, Any], weights: dict[str, Tensor], tokens_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "N B T V"]:
    """Logits of every head from files in this layout: rotation as a product of complex numbers, as Meta writes it."""
    T, E = tokens_BT.shape[1], params["dim"] // params["n_heads"]
    factor = SCALED.factor if params.get("use_scaled_rope") else None
    frequencies = rope_frequencies(read_params(params, params["vocab_size"], factor)[0], tokens_BT.device).double()
    turns = torch.polar(torch.ones(T, E // 2).double(), torch.outer(torch.arange(T).double(), frequencies))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (params["dim"],), weights[f"{name}.weight"], params["norm_eps"])

    def rotated(x_BTHE: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x_BTHE.double().reshape(*x_BTHE.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x_BTHE.dtype)

    def block(x_BTD: Tensor, name: str) -> Tensor:
        y = norm(x_BTD, f"{name}.attention_norm")
        q, k, v = (F.linear(y, weights[f"{name}.attention.{w}.weight"]) for w in ("wq", "wk", "wv"))
        q, k, v = (part.view(*part.shape[:2], -1, E) for part in (q, k, v))
        q, k, v = (part.transpose(1, 2) for part in (rotated(q), rotated(k), v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        x_BTD = x_BTD + F.linear(mixed.transpose(1, 2).flatten(2), weights[f"{name}.attention.wo.weight"])
        y = norm(x_BTD, f"{name}.ffn_norm")
        gate, down, up = (weights[f"{name}.feed_forward.{w}.weight"] for w in ("w1", "w2", "w3"))
        return x_BTD + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)

    x_BTD, n = F.embedding(tokens_BT, weights["tok_embeddings.weight"]), params["n_future_tokens"]
    trunk = params["n_layers"] - n
    for i in range(trunk):
        x_BTD = block(x_BTD, f"layers.{i}")
    states = [block(x_BTD, f"layers.{trunk}"), *(block(x_BTD, f"extra_heads.{j}") for j in range(n - 1))]
    return F.linear(norm(torch.stack(states), "norm"), weights["output.weight"])


def _renamed(name: str) -> str:
    """Of Hugging Face's names."""
    place, _, kind = name.rpartition(".")
    if place in _TOP:
        return f"{_TOP[place]}.{kind}"
    parts = place.removeprefix("model.").split(".")
    inside = 3 if parts[0] == "mtp_heads" else 2  # mtp_heads.{head}.0, layers.{i}
    layer = f"extra_heads.{parts[1]}" if parts[0] == "mtp_heads" else f"layers.{parts[1]}"
    return f"{layer}.{_BLOCK['.'.join(parts[inside:])]}.{kind}"


def _permuted(name: str, weight: Tensor, head_dim: int) -> Tensor:
    """Of Hugging Face's names too; always a copy."""
    return to_neighbours(weight, head_dim) if name.endswith(("q_proj.weight", "k_proj.weight")) else weight.clone()
