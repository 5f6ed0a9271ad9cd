"""The loss of heads that head 1 teaches (`teacher_config` has the equations), by every implementation that can."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.objective.chunked_teachers import (
    TINY,
    Divergence,
    Sums,
    TaughtRows,
    chunked_overlaps,
    chunked_taught_loss,
    keep_top,
)
from mtp_lightning.objective.loss import LossOptions, LossOutput, TeacherSums, divisor, wide_dtype
from mtp_lightning.objective.teacher_config import find_taught
from mtp_lightning.shapes import Bool, Float, Int


def teacher_loss(
    h_NBTD: Float[Tensor, "N B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
    offsets: tuple[int, ...],
    weights: Sequence[float],
    options: LossOptions,
    mean_count_C: Float[Tensor, "C"] | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> LossOutput:
    """sum_i w_i L_i, head 1's L_1 its cross-entropy. A mean of nothing is 0.

    Args:
        mean_count_C: as in `multi_token_loss`: of each head's valid targets and then of its taught ones, C = 2 N.
        sum_over_ranks: over the processes that share the batch, for `lk_lambda`'s mean overlap.
    """
    N, B, T, _ = h_NBTD.shape
    taught_NBT = find_taught(valid_NBT, offsets)
    counts_2N = torch.stack([valid_NBT.sum((1, 2)), taught_NBT.sum((1, 2))])
    weights_N = torch.tensor(weights, dtype=wide_dtype(h_NBTD)).to(h_NBTD.device, non_blocking=True)
    by_2N = divisor(counts_2N, None if mean_count_C is None else mean_count_C.view(2, N)).to(weights_N.dtype)
    scale_N, teach_N = weights_N / by_2N[0], options.teacher.weight * weights_N / by_2N[1]
    rows = TaughtRows(
        targets_NBT.flatten(1),
        torch.where(valid_NBT, scale_N[:, None, None], 0.0).flatten(1),
        torch.where(taught_NBT, teach_N[:, None, None], 0.0).flatten(1),
        _pupils(B, T, offsets, h_NBTD.device),
        1 - options.teacher.weight,
        options.z_loss,
        options.teacher.top,
    )
    h_NRD = h_NBTD.flatten(1, 2)
    divergence = _divergence(h_NRD, weight_VD, rows, taught_NBT.flatten(1), options, sum_over_ranks)
    further_move = options.stop_gradient not in ("unembedding", "both")
    if options.implementation == "chunked":
        total, sums = chunked_taught_loss(h_NRD, weight_VD, rows, divergence, further_move, options.chunk_rows)
    else:
        total, sums = _with_autograd(
            h_NRD, weight_VD, rows, divergence, further_move, options.implementation == "checkpointed"
        )
    distance_NBT = _distances(h_NBTD, offsets) if options.teacher.latent else torch.zeros_like(rows.scale).view(N, B, T)
    if options.teacher.latent:
        latent_N = options.teacher.latent * weights_N / by_2N[1]
        total = total + torch.where(taught_NBT, latent_N[:, None, None] * distance_NBT, 0.0).sum()
    nll_N = torch.where(valid_NBT, sums.nll.view(N, B, T), 0.0).sum((1, 2))
    divergence_N, overlap_N = (
        torch.where(taught_NBT, x.view(N, B, T), 0.0).sum((1, 2)) for x in (sums.divergence, sums.overlap)
    )
    distance_N = torch.where(taught_NBT, distance_NBT.detach(), 0.0).sum((1, 2))
    return LossOutput(total, nll_N, counts_2N[0], TeacherSums(divergence_N, overlap_N, counts_2N[1], distance_N))


def _distances(h_NBTD: Tensor, offsets: tuple[int, ...]) -> Float[Tensor, "N B T"]:
    """Of each head's states from head 1's, detached, offset - 1 positions later; 0 where the window has none."""
    T, wide = h_NBTD.shape[2], h_NBTD.to(wide_dtype(h_NBTD))
    found = [torch.zeros_like(wide[0, :, :, 0])]
    for h_BTD, offset in zip(wide[1:], offsets[1:]):
        count = max(T + 1 - offset, 0)
        foreseen = wide[0, :, offset - 1 :].detach()[:, :count]
        distance = F.smooth_l1_loss(h_BTD[:, :count], foreseen, reduction="none").mean(-1)
        found.append(F.pad(distance, (0, T - count)))
    return torch.stack(found)


def _pupils(B: int, T: int, offsets: tuple[int, ...], device: torch.device) -> Int[Tensor, "N R"]:
    """For row (b, t) the row (b, t - offset + 1), around the window's edge where it would lie outside."""
    t_T = torch.arange(T, device=device)
    starts_B = torch.arange(B, device=device) * T
    return torch.stack([(starts_B[:, None] + (t_T - offset + 1) % T).flatten() for offset in offsets])


def _divergence(
    h_NRD: Tensor,
    weight_VD: Tensor,
    rows: TaughtRows,
    taught_NR: Tensor,
    options: LossOptions,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Divergence:
    """The factors of KL and of the overlap, by `model.loss.target`."""
    one_N = torch.ones(len(h_NRD), dtype=wide_dtype(h_NRD), device=h_NRD.device)
    if options.target == "teacher_kl":
        return Divergence(one_N, 0 * one_N, False)
    if options.target != "lk_lambda":
        return Divergence(0 * one_N, one_N, options.target == "lk_alpha")
    alpha_NR = chunked_overlaps(h_NRD, weight_VD, rows, options.chunk_rows)
    sums_2N = torch.stack([torch.where(taught_NR, alpha_NR, 0.0).sum(1).double(), taught_NR.sum(1).double()])
    alpha_N, count_N = sum_over_ranks(sums_2N)
    w_N = options.teacher.kl_scale * (-options.teacher.kl_decay * alpha_N / count_N.clamp(min=1)).exp()
    return Divergence(w_N.to(one_N), (1 - w_N).to(one_N), False)


def _with_autograd(
    h_NRD: Tensor, weight_VD: Tensor, rows: TaughtRows, divergence: Divergence, further_move: bool, recompute: bool
) -> tuple[Tensor, Sums]:
    """By torch's own functions and autograd: a head after the other, whose logits are recomputed or kept."""

    def head(i: int, h_RD: Tensor, teacher_RD: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        log_q, lse = _log_softmax(F.linear(h_RD, weight))
        nll = -log_q.gather(1, rows.targets[i, :, None])[:, 0]
        share = rows.token_share if i else 1.0
        token = torch.where(rows.scale[i] > 0, rows.scale[i] * (share * nll + rows.z_loss * lse.square()), 0.0)
        if i == 0:
            return token.sum(), nll.detach(), torch.zeros_like(nll), torch.zeros_like(nll)
        with torch.no_grad():
            p_here = _log_softmax(F.linear(teacher_RD, weight))[0].exp()
            keep_top(p_here, rows.top)
            p = torch.empty_like(p_here).index_copy_(0, rows.pupils[i], p_here)
        kl = (torch.special.xlogy(p, p) - p * log_q).sum(1)
        alpha = torch.minimum(p, log_q.exp()).sum(1)
        distance = -alpha.clamp(min=TINY).log() if divergence.of_log else 1 - alpha
        found = divergence.kl[i] * kl + divergence.tv[i] * distance
        taught = torch.where(rows.teach[i] > 0, rows.teach[i] * found, 0.0)
        return (token + taught).sum(), nll.detach(), found.detach(), alpha.detach()

    results = []
    for i, h_RD in enumerate(h_NRD):
        given = i, h_RD, h_NRD[0], weight_VD if further_move or i == 0 else weight_VD.detach()
        results.append(checkpoint(head, *given, use_reentrant=False) if recompute else head(*given))
    totals, *sums = (torch.stack(x) for x in zip(*results))
    return totals.sum(), Sums(*sums)


def _log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probabilities, log-sum-exp), at least in float32."""
    logits = logits.to(wide_dtype(logits))
    lse = logits.logsumexp(1, keepdim=True)
    return logits - lse, lse[:, 0]
