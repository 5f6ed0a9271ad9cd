"""What does not train (`model.freeze`): no gradient, no optimizer state, and a trunk that keeps no activations."""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

Freeze = Literal["none", "trunk", "trunk_and_unembedding", "next_token"]
"""What does not train:

- `trunk`: the embedding and the trunk's layers;
- `trunk_and_unembedding`: also the final norm and the unembedding, so that only heads train (and bigram or mixture);
- `next_token`: also head 1: everything that the next token follows from, so that the next-token model stays as it is,
  bit for bit, and only what was added to it trains (heads 2 .. n and unembeddings of their own).
"""


def check_freeze(freeze: Freeze, backbone: BackboneConfig, heads: HeadsConfig) -> None:
    """
    Raises:
        InputError: it is one matrix with what trains, or nothing would train.
    """
    what = f"model.freeze is '{freeze}'"
    if freeze == "trunk" and backbone.tie_embeddings:
        raise InputError(
            f"{what}, and model.backbone.tie_embeddings makes embedding and unembedding one matrix, which cannot train "
            "and stay: give trunk_and_unembedding, or untie them"
        )
    if freeze != "none" and heads.kind == "registers":
        raise InputError(
            f"{what}, and model.heads.kind is 'registers', whose layers are all head 1's: leave freeze out"
        )
    if freeze != "next_token":
        return
    if heads.n_future == 1:
        raise InputError(f"{what}, and model.heads.n_future is 1: nothing would train")
    if heads.kind in ("none", "anticausal"):
        raise InputError(f"{what}, and heads of kind '{heads.kind}' are all read by head 1: nothing would train")


def freeze_model(model: MTPModel, freeze: Freeze) -> None:
    """
    Raises:
        InputError: as `check_freeze`.
    """
    check_freeze(freeze, model.config, model.heads_config)
    for weight in frozen_weights(model, freeze):
        weight.requires_grad_(False)
    model.trunk_is_frozen = freeze != "none"


def frozen_weights(model: MTPModel, freeze: Freeze) -> Iterator[nn.Parameter]:
    """What does not train; a tied matrix twice."""
    if freeze == "none":
        return
    parts: list[nn.Module] = [model.embedding, model.trunk]
    if freeze != "trunk":
        parts += [model.norm, model.unembedding]
    if freeze == "next_token":
        parts.append(model.heads[0])
    for part in parts:
        yield from (weight for weight in part.parameters() if weight is not model.unembedding.bigram)
