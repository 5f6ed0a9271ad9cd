"""A folder of Hugging Face's as a model here: what its config.json describes, its tensors under our names."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import read_hf_config
from mtp_lightning.interop.hf_names import SHARED_HEAD_NORM, standard_names, swap_halves
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
        backbone, heads, context = read_hf_config(config, context)
    except InputError as error:
        raise InputError(f"'{folder / CONFIG}': {error}") from error
    notes, described_heads = [], heads
    if heads.n_future > 1 and keep == 1:
        notes.append(f"{heads.n_future - 1} further heads are left out")
        heads = HeadsConfig()
    if config.get("auto_map"):
        notes.append("the folder names code of its own (auto_map), which was not run: read as its model_type")
    source = open_folder(folder)
    norms = [SHARED_HEAD_NORM.format(backbone.n_layers + k) for k in range(heads.n_future - 1)]
    if not _are_ones(source, ["model.norm.weight", *norms] if norms else []):
        heads = replace(heads, norms="own")
    names, shapes = standard_names(backbone, heads), model_shapes(backbone, heads)
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
