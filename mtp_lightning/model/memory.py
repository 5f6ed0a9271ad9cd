"""What a training step holds in memory, by formula, and what recomputing layers saves of it and costs."""

from typing import NamedTuple

from mtp_lightning.model.block import Recomputed
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import (
    count_heads,
    count_parameters,
    flops_per_token,
    layer_matmul_parameters,
    trainable_parameters,
    trunk_widths,
)
from mtp_lightning.model.own_kind import count_own
from mtp_lightning.model.training.recompute import Recompute, recomputed_parts

STATE_BYTES = 16
"""Of a weight in training: itself, its gradient, AdamW's two moments, in float32 (mixed precision keeps them so)."""


def state_memory(backbone: BackboneConfig, heads: HeadsConfig, freeze: str = "none") -> int:
    """Bytes of weights, gradients and optimizer; a weight that is frozen is 4 bytes."""
    trained = trainable_parameters(backbone, heads, freeze)
    return STATE_BYTES * trained + 4 * (count_parameters(backbone, heads).total - trained)


class LayerRun(NamedTuple):
    """A transformer layer that runs in a step's forward and keeps something for its backward."""

    ffn: int
    recomputed: Recomputed


def layers_run(
    backbone: BackboneConfig, heads: HeadsConfig, context: int, freeze: str, recompute: Recompute
) -> list[LayerRun]:
    """The trunk's, then the heads', those of a module that serves several heads as often as it runs. A part that is
    frozen, and comes before everything that trains, keeps nothing and is left out."""
    widths = trunk_widths(backbone, heads)
    run = count_own(backbone, heads, context).layers_run if heads.is_own else count_heads(heads).layers_run
    held = run if heads.is_own else count_heads(heads).layers
    parts = recomputed_parts(recompute, len(widths) + held)
    trunk = [LayerRun(ffn, part) for ffn, part in zip(widths, parts)]
    own = parts[len(widths) :]
    further = [LayerRun(backbone.ffn, own[min(i, held - 1)]) for i in range(run)]
    if freeze == "next_token" and heads.kind != "linear":
        further = further[heads.layers :]
    return [*(trunk if freeze == "none" else ()), *further]


def training_memory(
    backbone: BackboneConfig,
    heads: HeadsConfig,
    rows: int,
    context: int,
    width: int,
    freeze: str = "none",
    recompute: Recompute = "none",
) -> int:
    """Bytes of one process that shards nothing, about: weights and optimizer, and what a step's forward keeps for its
    backward. The loss, which needs O(chunk x V), and the libraries come on top.

    Args:
        width: bytes of an activation: 4, or 2 under bfloat16 autocast, where the residual stream keeps 4.
    """
    d, q, kv = backbone.dim, backbone.q_dim, backbone.kv_dim

    def parts(ffn: int) -> dict[Recomputed, int]:
        """What is kept of a layer, by what of it is recomputed."""
        # inputs of two norms; normed twice, q, attention's output twice, k and v; gate, its silu, up, their product
        return {
            "none": 2 * d * 4 + (2 * d + 3 * q + 2 * kv + 4 * ffn) * width,
            "attention": 2 * d * 4 + (d + 4 * ffn) * width,
            "layer": d * 4,
        }

    layers = layers_run(backbone, heads, context, freeze, recompute)
    kept = sum(parts(ffn)[recomputed] for ffn, recomputed in layers)
    # whatever is recomputed is whole for the time of its own backward, one layer after the other
    kept += max((parts(ffn)["none"] - parts(ffn)[recomputed] for ffn, recomputed in layers), default=0)
    streams = 1 + (1 if heads.kind in ("none", "order") else heads.n_future)
    kept += streams * 3 * d * 4  # after the trunk and each head: the stream, normed, and its gradient
    return state_memory(backbone, heads, freeze) + rows * context * kept


def recomputed_flops(
    backbone: BackboneConfig, heads: HeadsConfig, context: int, freeze: str = "none", recompute: Recompute = "none"
) -> int:
    """Per input token, what recomputing adds to `flops_per_token`: one more forward of the parts."""
    attention = 2 * layer_matmul_parameters(backbone, 0) + 2 * context * backbone.q_dim
    total = 0
    for ffn, recomputed in layers_run(backbone, heads, context, freeze, recompute):
        total += 0 if recomputed == "none" else attention
        total += 6 * backbone.dim * ffn if recomputed == "layer" else 0
    return total


def describe_size(
    backbone: BackboneConfig,
    heads: HeadsConfig,
    context: int,
    freeze: str = "none",
    recompute: Recompute = "none",
    unembedded_again: int = 0,
) -> dict[str, int]:
    """Parameters and training FLOPs per token under their metrics' names; those that train where others are frozen,
    and those that are executed where some are recomputed."""
    counts = count_parameters(backbone, heads)
    flops = flops_per_token(backbone, heads, context, freeze, unembedded_again)
    described = {
        "model/parameters": counts.total,
        "model/parameters_non_embedding": counts.non_embedding,
        "model/flops_per_token": flops,
    }
    if freeze != "none":
        described["model/parameters_trained"] = trainable_parameters(backbone, heads, freeze)
    if recompute != "none":
        more = recomputed_flops(backbone, heads, context, freeze, recompute)
        described["model/flops_executed_per_token"] = flops + more
    return described
