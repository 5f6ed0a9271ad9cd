"""The cross-entropy of all heads: one scalar, one backward.

L = sum_i w_i / |valid_i| sum_t -log softmax(W h_i,t)[x_{t+i}]  (paper, equation 2, with w_i = 1; the paper does not
state a normalisation: mean over valid positions per head, then the sum over heads, gives every head weight 1).

Kind `none` has one hidden state for all i: h_i,t = h_t. Kind `order` sums two losses over its one hidden state: the
next token's, and -sum_v softmax(y_t)_v log softmax(U h_t)_v with a second unembedding U, where y_t,v = W - distance to
the next v within W tokens, and -inf without one (ListNet; TOP, arXiv 2508.19228).

Kind `registers` has two hidden states of each position, head 1's and its register's (`registers`).

Heads that head 1 teaches have a divergence beside their cross-entropy (`teacher_config`, `teachers`).

`chunked` forms logits and their gradient for a few hundred positions at a time (thousands on a GPU), inside forward,
and keeps one V x D accumulator for the unembedding's gradient: memory O(chunk x V), whatever n and T, beside the
gradient of h itself. `fused` is cut-cross-entropy's kernel on a GPU that has the package, and `chunked` elsewhere.
`checkpointed` recomputes one head's logits at a time in backward, `naive` holds all n (B, T, V) tensors: oracles, and
arms of an ablation.
All of them run inside `Unembedding.forward`, as its `score`, so that sharding hooks have gathered the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.objective.chunked import chunked_linear_nll, chunked_scores
from mtp_lightning.objective.fused import fused_linear_nll
from mtp_lightning.objective.teacher_config import Target, TeacherConfig
from mtp_lightning.ranges import Count, Range, check_ranges
from mtp_lightning.shapes import Bool, Float, Int

Implementation = Literal["chunked", "fused", "checkpointed", "naive"]


@dataclass(frozen=True)
class LossOptions:
    """How losses are computed.

    Raises:
        InputError: a number that cannot be.
    """

    implementation: Implementation = "chunked"
    """`chunked` is the one to train with, `fused` where a GPU's memory is short; `checkpointed` and `naive` are oracles
    and ablation arms."""
    chunk_rows: Count | None = None
    """Positions whose logits are alive at once; by default what suits the device."""
    z_loss: Annotated[float, Range(least=0, most=100)] = 0.0
    """Weight of the mean squared log-sum-exp of each head's logits, which keeps them from drifting (PaLM: 1e-4)."""
    stop_gradient: Literal["trunk", "unembedding", "both"] | None = None
    """Where the gradient of the heads from the second on stops: they then learn beside the next-token model instead
    of shaping it. `trunk` includes head 1 and the embedding, where further heads read those."""

    target: Target = "token"
    """What the further heads are asked for: the token, or also the distribution of head 1 where it predicts the same
    token, by its divergence from theirs (`teacher_kl`, `tv`, `lk_alpha`, `lk_lambda`)."""
    teacher: TeacherConfig = TeacherConfig()  # noqa: RUF009 - frozen
    """How head 1 teaches them; with a `target` other than `token`."""

    def __post_init__(self) -> None:
        check_ranges("model.loss", LossOptions, vars(self))
        self.teacher.check_target(self.target)


class TeacherSums(NamedTuple):
    """Per head, sums over the positions that have a teacher, detached; head 1's are 0."""

    divergence: Float[Tensor, "N"]
    """What `model.loss.target` says, in nats where it is a logarithm."""
    overlap: Float[Tensor, "N"]
    """sum_v min(p_v, q_v) of teacher and head: the probability that a sampled draft is accepted by ratio. With
    `teacher.top` p is of the teacher's top alone, and no draft is accepted by that."""
    n_taught: Int[Tensor, "N"]
    distance: Float[Tensor, "N"]
    """Of the states, d_i before its mean; 0 where `model.loss.teacher.latent` is."""


class LossOutput(NamedTuple):
    """The objective of one batch."""

    total: Float[Tensor, ""]
    """What to call backward on: the weighted sum over heads of the mean negative log-likelihood, in nats, and of the
    z-losses and divergences where there are any."""
    nll: Float[Tensor, "M"]
    """Per loss, the sum over valid positions, detached, in nats."""
    n_valid: Int[Tensor, "M"]
    """Per loss, the number of valid positions."""
    teacher: TeacherSums | None = None
    """Where head 1 teaches."""


class HeadScores(NamedTuple):
    """What evaluation counts per loss: sums over valid positions, to be divided by `n_valid` at the very end."""

    nll: Float[Tensor, "M"]
    correct: Int[Tensor, "M"]
    """Positions where the best token is the target (of a ranking: the next token)."""
    n_valid: Int[Tensor, "M"]
    best: Int[Tensor, "S B T"] | None = None
    """Each hidden state's best token, of all positions."""
    entropy: Float[Tensor, "E B T"] | None = None
    """Of head 1's distribution, in nats, where it was asked for (E = 1, else 0)."""


def multi_token_loss(
    h_SBTD: Float[Tensor, "S B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
    weights: Sequence[float] | None = None,
    options: LossOptions = LossOptions(),
    mean_count_N: Float[Tensor, "N"] | None = None,
) -> LossOutput:
    """The n-token objective through one unembedding. A head without a valid target contributes exactly 0.

    Args:
        h_SBTD: S = N, a hidden state for each target, or S = 1, one for all of them.
        weights: w_i; all 1 by default, as in the paper.
        mean_count_N: what each head's sum is divided by, where this batch is one of several whose gradients are
            averaged (of ranks, of an accumulated step): the mean of their `count_valid`. By default its own.
    """
    weights = [1.0] * len(valid_NBT) if weights is None else weights
    scale_NBT = target_scales(valid_NBT, weights, mean_count_N, wide_dtype(h_SBTD))
    total, nll_NBT = _losses(h_SBTD, weight_VD, targets_NBT, scale_NBT, options)
    nll_N = torch.where(valid_NBT, nll_NBT, 0.0).sum((1, 2))
    return LossOutput(total, nll_N, valid_NBT.sum((1, 2)))


def target_scales(
    valid_NBT: Bool[Tensor, "N B T"], weights: Sequence[float], mean_count_N: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "N B T"]:
    """What each target's loss is multiplied by: its head's weight over the number of targets, 0 where not valid."""
    count_N = valid_NBT.sum((1, 2))
    # non_blocking: a GPU that is steps behind is not waited for
    weights_N = torch.tensor(weights).to(count_N.device, dtype, non_blocking=True)
    return torch.where(valid_NBT, (weights_N / divisor(count_N, mean_count_N))[:, None, None], 0.0)


def order_loss(
    h_SBTD: Float[Tensor, "1 B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    first_NBT: Bool[Tensor, "N B T"],
    weight: float = 1.0,
    options: LossOptions = LossOptions(),
    mean_count_M: Float[Tensor, "1"] | None = None,
) -> LossOutput:
    """Token-order prediction: the i-th token ahead has the target probability ~ exp(-i), if it is the next of its
    kind. (TOP's softmax of W - distance, whose other entries are exactly 0.)

    Args:
        first_NBT: True where a target is valid and the next of its kind (`first_ahead`).
        mean_count_M: as `mean_count_N` above.
    """
    share_NBT, listed_BT = order_shares(first_NBT)
    count_M = listed_BT.sum()[None]
    scale_M = weight / divisor(count_M, mean_count_M).to(wide_dtype(h_SBTD))
    total, nll_NBT = _losses(h_SBTD, weight_VD, targets_NBT, share_NBT.to(wide_dtype(h_SBTD)) * scale_M, options)
    nll_BT = torch.where(share_NBT > 0, nll_NBT * share_NBT, 0.0).sum(0)
    return LossOutput(total, nll_BT.sum()[None], count_M)


def order_shares(first_NBT: Bool[Tensor, "N B T"]) -> tuple[Float[Tensor, "N B T"], Bool[Tensor, "B T"]]:
    """Target probability of each listed token, and which positions list any."""
    distance_N = torch.arange(len(first_NBT), device=first_NBT.device, dtype=torch.float64)
    share_NBT = torch.where(first_NBT, -distance_N[:, None, None], float("-inf")).softmax(0)
    listed_BT = first_NBT.any(0)
    return torch.where(listed_BT, share_NBT, 0.0).float(), listed_BT


def wide_dtype(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


def divisor(count: Tensor, mean_count: Tensor | None) -> Tensor:
    if mean_count is None:
        return count.clamp(min=1)
    return torch.where(mean_count > 0, mean_count, 1.0)


def _losses(
    h_SBTD: Tensor, weight_VD: Tensor, targets_NBT: Tensor, scale_NBT: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """(total, nll_NBT detached), split where the further heads must not move the unembedding."""
    if len(h_SBTD) > 1 and options.stop_gradient in ("unembedding", "both"):
        parts = [
            _rows(h_SBTD[part], weight, targets_NBT[part], scale_NBT[part], options)
            for part, weight in ((slice(1), weight_VD), (slice(1, None), weight_VD.detach()))
        ]
        return parts[0][0] + parts[1][0], torch.cat([nll for _, nll in parts])
    return _rows(h_SBTD, weight_VD, targets_NBT, scale_NBT, options)


def _rows(
    h_SBTD: Tensor, weight_VD: Tensor, targets_NBT: Tensor, scale_NBT: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Turn positions into rows of one or of N targets, and give them to the implementation."""
    h_RD = h_SBTD.flatten(0, 2)
    targets_RK, scale_RK = (_as_rows(x, len(h_SBTD)) for x in (targets_NBT, scale_NBT))
    if options.implementation in ("checkpointed", "naive"):
        total, nll_RK = _with_autograd(h_RD, weight_VD, targets_RK, scale_RK, options, len(h_SBTD))
    else:
        compute = fused_linear_nll if options.implementation == "fused" else chunked_linear_nll
        total, nll_RK = compute(h_RD, weight_VD, targets_RK, scale_RK, options.z_loss, options.chunk_rows)
    if len(h_SBTD) == len(targets_NBT):
        return total, nll_RK.detach().view(targets_NBT.shape)
    return total, nll_RK.detach().view(*targets_NBT.shape[1:], -1).movedim(-1, 0)


def _as_rows(x_NBT: Tensor, streams: int) -> Tensor:
    """(R, 1) where every target has a hidden state of its own, (B T, N) where one answers for all."""
    return x_NBT.flatten()[:, None] if streams == len(x_NBT) else x_NBT.flatten(1).t()


def _with_autograd(
    h_RD: Tensor, weight_VD: Tensor, targets_RK: Tensor, scale_RK: Tensor, options: LossOptions, streams: int
) -> tuple[Tensor, Tensor]:
    """By torch's own log-sum-exp and autograd: all rows at once, or one head after the other, recomputed."""

    def rows(h: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(h, weight_VD)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        lse = logits.logsumexp(1, keepdim=True)
        nll = lse - logits.gather(1, targets)
        total = torch.where(scale > 0, nll * scale, 0.0).sum()
        if options.z_loss:
            total = total + options.z_loss * torch.where(scale > 0, lse.square() * scale, 0.0).sum()
        return total, nll

    if options.implementation == "naive":
        return rows(h_RD, targets_RK, scale_RK)
    pieces = [x.chunk(streams) for x in (h_RD, targets_RK, scale_RK)]
    results = [checkpoint(rows, *piece, use_reentrant=False) for piece in zip(*pieces)]
    return torch.stack([total for total, _ in results]).sum(), torch.cat([nll for _, nll in results])


@torch.no_grad()
def score_heads(
    h_SBTD: Float[Tensor, "S B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
    entropies: int = 0,
) -> HeadScores:
    """Likelihood and accuracy of every head, in chunks, without gradients.

    Args:
        entropies: of how many of the hidden states, the first ones.
    """
    nll_NBT, best_SBT, entropy_EBT = _scores(h_SBTD, weight_VD, targets_NBT, entropies)
    return HeadScores(
        torch.where(valid_NBT, nll_NBT, 0.0).sum((1, 2)),
        ((best_SBT == targets_NBT) & valid_NBT).sum((1, 2)),
        valid_NBT.sum((1, 2)),
        best_SBT,
        entropy_EBT,
    )


@torch.no_grad()
def score_order(
    h_SBTD: Float[Tensor, "1 B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    first_NBT: Bool[Tensor, "N B T"],
) -> HeadScores:
    """The listwise loss, and whether the token ranked first is the next one, over the positions that list any."""
    nll_NBT, best_1BT, entropy_0BT = _scores(h_SBTD, weight_VD, targets_NBT, 0)
    share_NBT, listed_BT = order_shares(first_NBT)
    nll = torch.where(share_NBT > 0, nll_NBT * share_NBT, 0.0).sum()
    correct = ((best_1BT[0] == targets_NBT[0]) & first_NBT[0]).sum()
    return HeadScores(nll[None], correct[None], listed_BT.sum()[None], best_1BT, entropy_0BT)


def _scores(h_SBTD: Tensor, weight_VD: Tensor, targets_NBT: Tensor, entropies: int) -> tuple[Tensor, Tensor, Tensor]:
    """nll (N, B, T), best tokens (S, B, T), entropies (E, B, T)."""
    S, B, T, _ = h_SBTD.shape
    rows = _as_rows(targets_NBT, S)
    nll_RK, best_R, entropy_E = chunked_scores(h_SBTD.flatten(0, 2), weight_VD, rows, entropies=entropies * B * T)
    nll_NBT = nll_RK.view(targets_NBT.shape) if len(targets_NBT) == S else nll_RK.view(B, T, -1).movedim(-1, 0)
    return nll_NBT, best_R.view(S, B, T), entropy_E.view(entropies, B, T)
