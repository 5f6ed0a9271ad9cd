"""A folder of Hugging Face's as a model here: what its config.json describes, its tensors under our names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.interop.export_hf import LINEAR, OWN_CODE
from mtp_lightning.interop.hf_config import read_hf_config
from mtp_lightning.interop.hf_names import SHARED_HEAD_NORM, Layout, swap_halves, tensor_names
from mtp_lightning.interop.importing.hf_folder import CONFIG, open_folder, read_json, require
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.weights import Spec, Weights

_UNUSED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Tensors of old files that follow from the configuration."""
_COPY = re.compile(r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight")
"""Copies that a further head may bring of what it shares with the model."""


class Imported(NamedTuple):
    """A model, its tensors not yet read."""

    backbone: BackboneConfig
    heads: HeadsConfig
    context: int | None
    weights: Weights
    origin: dict[str, Any]
    """What it was, for the record."""
    notes: list[str]
    """What the user has to know."""


def open_hf(folder: Path, keep: int | None = None, context: int | None = None) -> Imported:
    """
    Args:
        keep: 1: head 1 alone; None: all heads.
        context: positions that the model will be used with, where they are fewer than it is made for.

    Raises:
        InputError: not a model of this platform, or one whose files do not fit together.
    """
    config = read_json(folder / CONFIG)
    try:
        own, config = split_own(config)
        backbone, heads, context = read_hf_config(config, context)
        if own is not None:
            heads = own_heads(own, backbone)
    except InputError as error:
        raise InputError(f"'{folder / CONFIG}': {error}") from error
    notes, described_heads = [], heads
    if heads.n_future > 1 and keep == 1:
        notes.append(f"{heads.n_future - 1} further heads are left out")
        heads = HeadsConfig(kind="linear", match="none") if heads.kind == "linear" else HeadsConfig()
    if config.get("auto_map"):
        notes.append("the folder names code of its own (auto_map), which was not run: read as its model_type")
    source = open_folder(folder)
    layout: Layout = "standard" if own is None else "own"
    further = heads.n_future - 1 if own is None else 0
    norms = [SHARED_HEAD_NORM.format(backbone.n_layers + k) for k in range(further)]
    if not _are_ones(source, ["model.norm.weight", *norms] if norms else []):
        heads = replace(heads, norms="own")
    names, shapes = tensor_names(backbone, heads, layout, heads.n_future), model_shapes(backbone, heads)
    specs = _without_copies(folder, source, backbone, described_heads, keep)
    if backbone.tie_embeddings:
        del names["lm_head.weight"]
    wanted = {theirs: shapes[ours] for theirs, ours in names.items()}
    require(folder, specs, dict.fromkeys(norms, (backbone.dim,)) | wanted)
    theirs_of = {ours: theirs for theirs, ours in names.items()}

    def read(ours: str) -> Tensor:
        tensor = source[theirs_of[ours]]
        return swap_halves(tensor) if theirs_of[ours].endswith(".eh_proj.weight") else tensor

    weights = Weights({ours: specs[theirs] for theirs, ours in names.items()}, read)
    origin = {"layout": "hf", "model_type": config["model_type"], "architectures": config.get("architectures")}
    return Imported(backbone, heads, context, weights, origin, notes)


OWN = ("mtp_kind", "mtp_n_future", "mtp_trunk_layers", "mtp_head_layers", "mtp_unembeddings")
"""Keys of config.json in the layout of our own, which `mtp export` writes; `mtp_family` is one of kind `linear`."""


def split_own(config: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(what config.json says of heads in the layout of our own, or None; the rest, as of a stock class)."""
    rest = {key: value for key, value in config.items() if key not in (*OWN, "mtp_family")}
    if "mtp_kind" not in config:
        return None, dict(config)
    if config.get("model_type") == LINEAR:
        rest["model_type"] = config.get("mtp_family", "llama")
    return {key: config.get(key) for key in OWN}, rest


def own_heads(said: Mapping[str, Any], backbone: BackboneConfig) -> HeadsConfig:
    """
    Raises:
        InputError: no heads that the layout of our own holds, or others than the layers leave room for.
    """
    kind, n, trunk, layers, unembeddings = (said[key] for key in OWN)
    if kind not in OWN_CODE or type(unembeddings) is not bool:
        raise InputError(f"mtp_kind is {kind!r}, and mtp_unembeddings {unembeddings!r}: no heads of `mtp export`")
    on_path = 0 if kind == "linear" else layers
    if not all(type(number) is int and number > 0 for number in (n, trunk, layers)) or (
        trunk + on_path != backbone.n_layers
    ):
        raise InputError(
            f"num_hidden_layers is {backbone.n_layers}, mtp_trunk_layers {trunk!r}, mtp_head_layers {layers!r} and "
            f"mtp_n_future {n!r}: the layers have to be those of the trunk and of head 1"
        )
    return HeadsConfig(n, kind, match="none", layers=layers, replicate_unembedding=unembeddings and n > 1)


def model_shapes(backbone: BackboneConfig, heads: HeadsConfig) -> dict[str, tuple[int, ...]]:
    """Of every weight, a tied one under both names."""
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in MTPModel(backbone, heads).state_dict().items()}


def _without_copies(
    folder: Path, source: Weights, backbone: BackboneConfig, heads: HeadsConfig, keep: int | None
) -> dict[str, Spec]:
    """The tensors less those that say nothing of their own, and less further heads that are not wanted.

    Raises:
        InputError: what should be a copy differs from its original.
    """
    specs = dict(source.specs)
    further = {f"model.layers.{backbone.n_layers + k}." for k in range(heads.n_future - 1)}
    further |= {"mtp_heads.", "mtp_lm_heads."}
    for name in source:
        copied = None
        if name == "lm_head.weight" and backbone.tie_embeddings:
            copied = "model.embed_tokens.weight"
        elif _COPY.fullmatch(name) and any(map(name.startswith, further)):
            head = "model.embed_tokens.weight" if backbone.tie_embeddings else "lm_head.weight"
            copied = head if name.endswith("head.weight") else "model.embed_tokens.weight"
        if copied is not None and copied in source and not torch.equal(source[name], source[copied]):
            raise InputError(f"'{folder}': the tensor '{name}' has to be a copy of '{copied}', and differs")
        if copied or _UNUSED.fullmatch(name) or (keep == 1 and any(map(name.startswith, further))):
            del specs[name]
    return specs


def _are_ones(source: Weights, norms: list[str]) -> bool:
    """Whether all these norms are ones. Then reading a state before its norm or after it is the same, and heads share
    one norm, as `mtp export` writes them; else they have their own."""
    return all(torch.equal(source[name], torch.ones_like(source[name])) for name in norms if name in source)
