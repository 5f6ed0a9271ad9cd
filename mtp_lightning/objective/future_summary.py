"""The second loss of kind `future_summary`: which tokens come among t + 2 .. t + n, whatever their order.

    a_v = 1 if v is one of them, else 0,   z = U h_t,   loss = -1/V sum_v [a_v log s(z_v) + (1 - a_v) log(1 - s(z_v))]

FSP-BCE (arXiv 2510.14751, equations 9 and 10), which has weights of tokens w(v), tf-idf for one, in the sum; here they
are all 1, as in its ablation without them (section 4.3, appendix B.3), since no formula for them was found. The paper
was not at hand: equations and ablation are as quoted in the notes of erogol/BlaGPT (experiment E8), which trains so and
divides by V as well; equation 10 is the sum, which a weight of V in `model.loss.weights` gives. Divided so it is small
beside a cross-entropy: where k tokens come, k (1 + ln V / k) / V nats without learning, 0.18 for bytes and 0.003 at
V = 32000; `model.loss.z_loss` is head 1's alone.
Ours: of masked targets, and those in another document, a_v is 0, and positions that have no other are left out.

`chunked` forms logits, a and their gradient for some positions at a time, as the cross-entropy does (`chunked`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.objective.chunked import add_outer, compute_dtype, default_chunk_rows, formed_gradients
from mtp_lightning.objective.loss import HeadScores, LossOptions, LossOutput, divisor, wide_dtype
from mtp_lightning.shapes import Bool, Float, Int


def summary_loss(
    h_SBTD: Float[Tensor, "1 B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    later_NBT: Bool[Tensor, "N B T"],
    weight: float = 1.0,
    options: LossOptions = LossOptions(),
    mean_count_M: Float[Tensor, "1"] | None = None,
) -> LossOutput:
    """The mean over the positions that have any such token.

    Args:
        later_NBT: True where a target is valid and at least two tokens ahead.
        mean_count_M: as `mean_count_N` of `multi_token_loss`.
    """
    listed_BT = later_NBT.any(0)
    count_M = listed_BT.sum()[None]
    scale_R = listed_BT.flatten() * (weight / divisor(count_M, mean_count_M).to(wide_dtype(h_SBTD)))
    h_RD, index_RN = h_SBTD[0].flatten(0, 1), _members(targets_NBT, later_NBT)
    if options.implementation == "naive":
        total, loss_R = _with_autograd(h_RD, weight_VD, index_RN, scale_R)
    elif options.implementation == "checkpointed":
        total, loss_R = checkpoint(_with_autograd, h_RD, weight_VD, index_RN, scale_R, use_reentrant=False)
    else:
        rows = options.chunk_rows or default_chunk_rows(len(weight_VD), h_RD.device)
        dtype, wanted = compute_dtype(h_RD), torch.is_grad_enabled()
        with torch.autocast(h_RD.device.type, enabled=False):
            total, loss_R = _ChunkedSummary.apply(h_RD, weight_VD, index_RN, scale_R, rows, dtype, wanted)  # type: ignore[no-untyped-call]
    return LossOutput(total, torch.where(listed_BT.flatten(), loss_R.detach(), 0.0).sum()[None], count_M)


def _members(targets_NBT: Tensor, later_NBT: Tensor) -> Int[Tensor, "R N"]:
    """Of every position the tokens that come, some of them several times; without any, some other token."""
    any_1BT = targets_NBT.gather(0, later_NBT.int().argmax(0, keepdim=True))
    return torch.where(later_NBT, targets_NBT, any_1BT).flatten(1).t()


def _multi_hot(index_RN: Tensor, vocab_size: int, dtype: torch.dtype) -> Float[Tensor, "R V"]:
    """a."""
    return torch.zeros(len(index_RN), vocab_size, dtype=dtype, device=index_RN.device).scatter_(1, index_RN, 1.0)


def _losses(logits_RV: Tensor, index_RN: Tensor) -> tuple[Tensor, Tensor]:
    """(1/V (sum_v softplus(z_v) - sum_v a_v z_v), a), with two more tensors of this size and no more."""
    softplus_R = F.softplus(logits_RV).sum(1)
    a_RV = _multi_hot(index_RN, logits_RV.shape[1], logits_RV.dtype)
    return (softplus_R - torch.einsum("rv,rv->r", logits_RV, a_RV)) / logits_RV.shape[1], a_RV


def _with_autograd(h_RD: Tensor, weight_VD: Tensor, index_RN: Tensor, scale_R: Tensor) -> tuple[Tensor, Tensor]:
    logits_RV = F.linear(h_RD, weight_VD)
    logits_RV = logits_RV.to(wide_dtype(logits_RV))
    a_RV = _multi_hot(index_RN, len(weight_VD), logits_RV.dtype)
    loss_R = F.binary_cross_entropy_with_logits(logits_RV, a_RV, reduction="none").mean(1)
    return torch.where(scale_R > 0, loss_R * scale_R, 0.0).sum(), loss_R


class _ChunkedSummary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_RD: Tensor,
        weight_VD: Tensor,
        index_RN: Tensor,
        scale_R: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        R, V = len(h_RD), len(weight_VD)
        accumulate = torch.promote_types(dtype, torch.float32)
        weight = weight_VD.to(dtype)
        moves_h, moves_w = (wanted and needed for needed in ctx.needs_input_grad[:2])
        dh_RD = torch.empty_like(h_RD) if moves_h else None
        dw_VD = torch.zeros_like(weight_VD, dtype=accumulate) if moves_w else None
        loss_R = h_RD.new_empty(R, dtype=accumulate)
        largest = (scale_R.max() / V).clamp(min=torch.finfo(torch.float32).tiny)  # nothing underflows in 16 bits
        for start in range(0, R, chunk_rows):
            rows = slice(start, start + chunk_rows)
            h = h_RD[rows].to(dtype)
            logits = (h @ weight.t()).to(accumulate)
            loss_R[rows], a = _losses(logits, index_RN[rows])
            residual = logits.sigmoid_().sub_(a).mul_(scale_R[rows, None] / V / largest).to(dtype)
            if dh_RD is not None:
                dh_RD[rows] = (residual @ weight).to(h_RD.dtype)
            if dw_VD is not None:
                add_outer(dw_VD, residual, h)
            del logits, a, residual  # or the next chunk would be made beside this one
        ctx.save_for_backward(dh_RD, dw_VD, largest)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(loss_R)
        return torch.where(scale_R > 0, loss_R * scale_R, 0.0).sum(), loss_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *formed_gradients(ctx, d_total), None, None, None, None, None


@torch.no_grad()
def score_summary(
    h_SBTD: Float[Tensor, "1 B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    later_NBT: Bool[Tensor, "N B T"],
) -> HeadScores:
    """The loss, and whether the token held likeliest is one of those that come, over the positions that have any."""
    h_RD, index_RN = h_SBTD[0].flatten(0, 1), _members(targets_NBT, later_NBT)
    rows, dtype = default_chunk_rows(len(weight_VD), h_RD.device), compute_dtype(h_RD)
    losses, best = [], []
    with torch.autocast(h_RD.device.type, enabled=False):
        weight = weight_VD.to(dtype)
        for h, index in zip(h_RD.split(rows), index_RN.split(rows)):  # type: ignore[no-untyped-call]
            logits = (h.to(dtype) @ weight.t()).to(wide_dtype(h))
            losses.append(_losses(logits, index)[0])
            best.append(logits.argmax(1))
    listed_R, best_R = later_NBT.any(0).flatten(), torch.cat(best)
    correct = ((index_RN == best_R[:, None]).any(1) & listed_R).sum()
    total = torch.where(listed_R, torch.cat(losses), 0.0).sum()
    best_1BT = best_R.view(1, *targets_NBT.shape[1:])
    return HeadScores(
        total[None], correct[None], listed_R.sum()[None], best_1BT, total.new_empty(0, *best_1BT.shape[1:])
    )
