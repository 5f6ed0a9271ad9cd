"""The cross-entropy of all heads through one shared unembedding: one scalar, one backward.

L = sum_i w_i / |valid_i| sum_t -log softmax(W h_i,t)[x_{t+i}]  (paper, equation 2, with w_i = 1; the paper does not
state a normalisation: mean over valid positions per head, then the sum over heads, gives every head weight 1).

`chunked` forms logits and their gradient for a few hundred positions at a time (thousands on a GPU), inside forward,
and keeps one V x D accumulator for the unembedding's gradient: memory O(chunk x V), whatever n and T, beside the
gradient of h itself. `checkpointed` recomputes one head's logits at a time in backward, `naive` holds all n (B, T, V)
tensors: oracles, and arms of an ablation.
All of them are passed to `Unembedding.forward` as its `score`, so that sharding hooks have gathered the weight.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.objective.chunked import chunked_linear_nll, chunked_scores
from mtp_lightning.shapes import Bool, Float, Int

Implementation = Literal["chunked", "checkpointed", "naive"]


class LossOutput(NamedTuple):
    """The objective of one batch."""

    total: Float[Tensor, ""]
    """What to call backward on: the weighted sum over heads of the mean negative log-likelihood, in nats."""
    nll: Float[Tensor, "N"]
    """Per head, the sum over valid positions, detached, in nats."""
    n_valid: Int[Tensor, "N"]
    """Per head, the number of valid positions."""


class HeadScores(NamedTuple):
    """What evaluation counts per head: sums over valid positions, to be divided by `n_valid` at the very end."""

    nll: Float[Tensor, "N"]
    correct: Int[Tensor, "N"]
    """Positions where the head's best token is the target."""
    n_valid: Int[Tensor, "N"]


def multi_token_loss(
    h_NBTD: Float[Tensor, "N B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
    head_weights: Sequence[float] | None = None,
    implementation: Implementation = "chunked",
    chunk_rows: int | None = None,
) -> LossOutput:
    """The n-token objective. A head without a valid target contributes exactly 0, and a gradient of 0.

    Args:
        head_weights: w_i; all 1 by default, as in the paper.
        chunk_rows: positions per chunk of `chunked`; by default what keeps a chunk's logits in cache.
    """
    count_N = valid_NBT.sum((1, 2))
    dtype = torch.promote_types(h_NBTD.dtype, torch.float32)
    weights_N = torch.ones_like(count_N, dtype=dtype)
    if head_weights is not None:
        weights_N = torch.tensor(head_weights, dtype=dtype, device=count_N.device)
    scale_N = weights_N / count_N.clamp(min=1)
    scale_NBT = torch.where(valid_NBT, scale_N[:, None, None], 0.0)
    if implementation == "chunked":
        total, nll_rows = chunked_linear_nll(
            h_NBTD.flatten(0, 2),
            weight_VD,
            targets_NBT.flatten(),
            scale_NBT.flatten(),
            chunk_rows=chunk_rows,
        )
        nll_NBT = nll_rows.view_as(scale_NBT)
    else:
        nll_NBT = _nll_with_autograd(h_NBTD, weight_VD, targets_NBT, implementation)
        total = (nll_NBT * scale_NBT).sum()
    nll_N = torch.where(valid_NBT, nll_NBT.detach(), 0.0).sum((1, 2))
    return LossOutput(total, nll_N, count_N)


def _nll_with_autograd(
    h_NBTD: Tensor, weight_VD: Tensor, targets_NBT: Tensor, implementation: Implementation
) -> Tensor:
    """Negative log-likelihood of every target, by torch's own cross-entropy: head by head, or all at once."""
    if implementation == "naive":
        return _cross_entropy(h_NBTD, weight_VD, targets_NBT)
    return torch.stack(
        [
            checkpoint(_cross_entropy, h, weight_VD, targets, use_reentrant=False)
            for h, targets in zip(h_NBTD, targets_NBT)
        ]
    )


def _cross_entropy(h: Tensor, weight_VD: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(h, weight_VD)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)


@torch.no_grad()
def score_heads(
    h_NBTD: Float[Tensor, "N B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
) -> HeadScores:
    """Likelihood and accuracy of every head, in chunks, without gradients."""
    nll, correct = chunked_scores(h_NBTD.flatten(0, 2), weight_VD, targets_NBT.flatten())
    nll_NBT, correct_NBT = nll.view_as(valid_NBT), correct.view_as(valid_NBT)
    return HeadScores(
        torch.where(valid_NBT, nll_NBT, 0.0).sum((1, 2)),
        (correct_NBT & valid_NBT).sum((1, 2)),
        valid_NBT.sum((1, 2)),
    )
