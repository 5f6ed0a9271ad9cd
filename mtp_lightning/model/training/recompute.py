"""Recomputing layers in the backward pass instead of keeping what their forward made (`model.recompute`).

Chen et al. 2016 (arXiv 1604.06174). A layer that is recomputed keeps its input alone and is run once more just before
its gradients are formed: the same operations on the same numbers, so the gradients are the same, and a step costs that
forward more. It works inside the layer's own forward, where sharding's hooks have gathered the weights. Of heads run
one at a time, the gradients of what they share are summed in another order.
"""

from typing import Any, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.model.block import Block, Recomputed
from mtp_lightning.model.config import INDEPENDENT, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.ranges import Count, check_value

_Named = Literal["none", "layers", "attention", "heads", "layers_and_heads"]
Recompute = _Named | dict[str, Count]
"""`layers`: every layer of trunk and heads; `{every: k}`: one layer in k, the first of each k; `attention`: of every
layer the attention alone, whose part of a layer's memory grows with the context; `heads`: each head with its loss, one
head at a time; `layers_and_heads`: the trunk's layers, and each head with its loss."""
_CHECKED = _Named | dict[Literal["every"], Count]
HEADS: tuple[Recompute, ...] = ("heads", "layers_and_heads")


def as_recompute(text: str) -> Recompute:
    """`layers`, or `every=2`, of a command line.

    Raises:
        InputError: neither.
    """
    name, equals, count = text.partition("=")
    found: Any = {name: int(count) if count.isdecimal() else count} if equals else text
    check_value("recompute", found, _CHECKED)
    return found  # type: ignore[no-any-return]


def recomputed_parts(recompute: Recompute, trunk: int, heads: int) -> list[Recomputed]:
    """Of each layer, the trunk's first, what is recomputed.

    Args:
        trunk: its layers.
        heads: the layers of all heads.

    Raises:
        InputError: not a value of this key, or every k-th of fewer than k layers.
    """
    check_value("model.recompute", recompute, _CHECKED)
    layers = trunk + heads
    if not isinstance(recompute, dict):
        parts: dict[str, tuple[Recomputed, Recomputed]] = {
            "none": ("none", "none"),
            "layers": ("layer", "layer"),
            "attention": ("attention", "attention"),
            "heads": ("none", "head"),
            "layers_and_heads": ("layer", "head"),
        }
        of_trunk, of_heads = parts[recompute]
        return [of_trunk] * trunk + [of_heads] * heads
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
        InputError: as `recomputed_parts` and `check_recompute`.
    """
    check_recompute(recompute, model.heads_config)
    blocks: list[Block] = model.blocks()
    trunk = len(model.trunk)
    for block, part in zip(blocks, recomputed_parts(recompute, trunk, len(blocks) - trunk)):
        block.recomputed = part
    model.heads.run_again = recompute in HEADS


def check_recompute(recompute: Recompute, heads: HeadsConfig) -> None:
    """
    Raises:
        InputError: heads cannot be run again one at a time where they read each other.
    """
    second = heads.second_loss or heads.kind == "registers"
    alone = heads.n_future == 1 and not second and not heads.is_own
    if recompute in HEADS and heads.kind not in INDEPENDENT and not alone:
        instead = "none" if recompute == "heads" else "layers"
        raise InputError(
            f"model.recompute is '{recompute}', and model.heads.kind is '{heads.kind}': only heads that read the trunk "
            f"alone ({' and '.join(INDEPENDENT)}; with n_future 1 all but order, registers and your own) can be run "
            f"again one at a time; give recompute: {instead}"
        )
