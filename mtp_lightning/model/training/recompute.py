"""Recomputing layers in the backward pass instead of keeping what their forward made (`model.recompute`).

Chen et al. 2016 (arXiv 1604.06174). A layer that is recomputed keeps its input alone and is run once more just before
its gradients are formed: the same operations on the same numbers, so the gradients are the same, and a step costs that
forward more. It works inside the layer's own forward, where sharding's hooks have gathered the weights.
"""

from typing import Any, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.model.block import Block, Recomputed
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.ranges import Count, check_value

Recompute = Literal["none", "layers", "attention"] | dict[str, Count]
"""`layers`: every layer of trunk and heads; `{every: k}`: one layer in k, the first of each k; `attention`: of every
layer the attention alone, whose part of a layer's memory grows with the context."""
_CHECKED = Literal["none", "layers", "attention"] | dict[Literal["every"], Count]


def as_recompute(text: str) -> Recompute:
    """`layers`, or `every=2`, of a command line.

    Raises:
        InputError: neither.
    """
    name, equals, count = text.partition("=")
    found: Any = {name: int(count) if count.isdecimal() else count} if equals else text
    check_value("recompute", found, _CHECKED)
    return found  # type: ignore[no-any-return]


def recomputed_parts(recompute: Recompute, layers: int) -> list[Recomputed]:
    """Of each layer, what is recomputed.

    Args:
        layers: of the trunk and then the heads.

    Raises:
        InputError: not a value of this key, or every k-th of fewer than k layers.
    """
    check_value("model.recompute", recompute, _CHECKED)
    if not isinstance(recompute, dict):
        part: Recomputed = "layer" if recompute == "layers" else recompute
        return [part] * layers
    every = recompute["every"]
    if every > layers:
        raise InputError(
            f"model.recompute.every is {every}: the model has {layers} layers, those of its heads included; give at "
            "most as many, or recompute: none"
        )
    return ["none" if i % every else "layer" for i in range(layers)]


def recompute_model(model: MTPModel, recompute: Recompute) -> None:
    """
    Raises:
        InputError: as `recomputed_parts`.
    """
    blocks: list[Block] = model.blocks()
    for block, part in zip(blocks, recomputed_parts(recompute, len(blocks))):
        block.recomputed = part
