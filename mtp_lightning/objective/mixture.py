"""The objective of heads of kind `mixture` (`mtp_lightning.model.mtp.Mixture`): head 1's cross-entropy, and of head
i > 1 -log q(x_{t+i} | x_{t+1} .. x_{t+i-1}), which sum to -log of the joint distribution.

With l_{i,r} = log p_{i,r}(x_{t+i}) and F_i = log sum_r exp(g_r + sum_{j <= i} l_{j,r}), g the logits of the weights,
head i's loss is F_{i-1} - F_i. Every true token is read, masked ones too; a loss counts where its own target is valid.

Positions are rows here: P = B T, M = N - 1 further heads, K = N R components.

`chunked` takes so many positions at a time that their N R rows of logits are one chunk, one position at least, which
gives l, the losses, their gradient by l (by autograd, of tensors without a vocabulary) and so that by the logits,
before the next chunk: memory O(chunk x V), and one forward and backward of the unembedding. `fused` is fused for
head 1 alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtp_lightning.model.mtp import mixed
from mtp_lightning.objective.chunked import add_outer, chunked_scores, compute_dtype, default_chunk_rows
from mtp_lightning.objective.loss import (
    HeadScores,
    LossOptions,
    LossOutput,
    multi_token_loss,
    target_scales,
    wide_dtype,
)
from mtp_lightning.shapes import Bool, Float, Int


def mixture_loss(
    h_SBTD: Float[Tensor, "S B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
    weights: Sequence[float],
    options: LossOptions = LossOptions(),
    mean_count_N: Float[Tensor, "N"] | None = None,
) -> LossOutput:
    """As `multi_token_loss`, of the states of `Mixture`. The z-loss of head i > 1 is a mean over its components."""
    mean_count_1 = None if mean_count_N is None else mean_count_N[:1]
    # at once: in the backward each slice would make a tensor of all states
    parts = torch.split(h_SBTD, [1, 1, len(h_SBTD) - 2])
    first = multi_token_loss(
        parts[0], weight_VD, targets_NBT[:1], valid_NBT[:1], weights[:1], options, mean_count_1
    )  # fmt: skip
    scale_MBT = target_scales(valid_NBT, weights, mean_count_N, wide_dtype(h_SBTD))[1:]
    joint, scale_MP = _as_rows(parts, targets_NBT), scale_MBT.flatten(1)
    if options.stop_gradient in ("unembedding", "both"):
        weight_VD = weight_VD.detach()
    if options.implementation == "naive":
        total, nll_MP = _with_autograd(*joint, weight_VD, scale_MP, options.z_loss)
    elif options.implementation == "checkpointed":
        total, nll_MP = checkpoint(
            _with_autograd, *joint, weight_VD, scale_MP, options.z_loss, use_reentrant=False
        )  # fmt: skip
    else:
        rows = options.chunk_rows or default_chunk_rows(len(weight_VD), h_SBTD.device)
        dtype, wanted = compute_dtype(h_SBTD), torch.is_grad_enabled()
        with torch.autocast(h_SBTD.device.type, enabled=False):
            total, nll_MP = _ChunkedMixture.apply(
                *joint, weight_VD, scale_MP, options.z_loss, rows, dtype, wanted
            )  # type: ignore[no-untyped-call]  # fmt: skip
    nll_M = torch.where(valid_NBT[1:], nll_MP.detach().view(scale_MBT.shape), 0.0).sum((1, 2))
    return LossOutput(first.total + total, torch.cat((first.nll, nll_M)), valid_NBT.sum((1, 2)))


def conditional_nll(logp_NRP: Float[Tensor, "N R P"], gate_RP: Float[Tensor, "R P"]) -> Float[Tensor, "M P"]:
    """F_{i-1} - F_i for i > 1."""
    joint_NP = (gate_RP + logp_NRP.cumsum(0)).logsumexp(1)
    return joint_NP[:-1] - joint_NP[1:]


def _as_rows(parts: Sequence[Tensor], targets_NBT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Components' states (K, P, D), logits of their weights (R, P), targets (N, P).

    Args:
        parts: head 1's state, that of the weights, the components'.
    """
    _, gate_1BTD, h_KBTD = parts
    gate_RP = gate_1BTD[0, ..., : len(h_KBTD) // len(targets_NBT)].flatten(0, 1).t()
    return h_KBTD.flatten(1, 2), gate_RP, targets_NBT.flatten(1)


def _weighted(nll_MP: Tensor, lse_NRP: Tensor, scale_MP: Tensor, z_loss: float) -> Tensor:
    total = torch.where(scale_MP > 0, nll_MP * scale_MP, 0.0).sum()
    if z_loss:
        total = total + z_loss * (lse_NRP[1:].square().mean(1) * scale_MP).sum()
    return total


def _with_autograd(
    h_KPD: Tensor, gate_RP: Tensor, targets_NP: Tensor, weight_VD: Tensor, scale_MP: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    """All rows at once, by torch's own autograd."""
    logits_KPV = F.linear(h_KPD, weight_VD)
    logits_NRPV = logits_KPV.view(len(targets_NP), -1, *logits_KPV.shape[1:])
    logits_NRPV = logits_NRPV.to(wide_dtype(logits_NRPV))
    lse_NRP = logits_NRPV.logsumexp(-1)
    index_NRP1 = targets_NP[:, None, :, None].expand(*lse_NRP.shape, 1)
    logp_NRP = logits_NRPV.gather(-1, index_NRP1)[..., 0] - lse_NRP
    nll_MP = conditional_nll(logp_NRP, gate_RP.to(logp_NRP.dtype))
    return _weighted(nll_MP, lse_NRP, scale_MP, z_loss), nll_MP


class _ChunkedMixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_KPD: Tensor,
        gate_RP: Tensor,
        targets_NP: Tensor,
        weight_VD: Tensor,
        scale_MP: Tensor,
        z_loss: float,
        chunk_rows: int,
        dtype: torch.dtype,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        (K, P, _), N = h_KPD.shape, len(targets_NP)
        accumulate = torch.promote_types(dtype, torch.float32)
        weight = weight_VD.to(dtype)
        moves_h, moves_gate, _, moves_w = (wanted and needed for needed in ctx.needs_input_grad[:4])
        dh_KPD = torch.empty_like(h_KPD) if moves_h else None
        dgate_RP = torch.empty_like(gate_RP) if moves_gate else None
        dw_VD = torch.zeros_like(weight_VD, dtype=accumulate) if moves_w else None
        nll_MP = h_KPD.new_empty(scale_MP.shape, dtype=accumulate)
        largest = scale_MP.max().clamp(min=torch.finfo(torch.float32).tiny)  # so that nothing underflows in 16 bits
        total = largest.new_zeros(())
        for start in range(0, P, max(1, chunk_rows // K)):
            at = slice(start, min(start + max(1, chunk_rows // K), P))
            C = at.stop - start
            h_XD = h_KPD[:, at].flatten(0, 1).to(dtype)  # X = K C
            logits_XV = (h_XD @ weight.t()).to(accumulate)
            targets_X1 = targets_NP[:, None, at].expand(N, K // N, C).reshape(-1, 1)
            lse_X1 = logits_XV.logsumexp(1, keepdim=True)
            logp_X1 = logits_XV.gather(1, targets_X1) - lse_X1
            with torch.enable_grad():
                small = [x.view(N, -1, C).requires_grad_() for x in (logp_X1, lse_X1.clone())]
                small.append(gate_RP[:, at].detach().to(accumulate).requires_grad_())
                nll = conditional_nll(small[0], small[2])
                part = _weighted(nll, small[1], scale_MP[:, at] / largest, z_loss)
                d_logp, d_lse, d_gate = torch.autograd.grad(part, small, materialize_grads=True)
            nll_MP[:, at] = nll.detach()
            total += part.detach()
            if dgate_RP is not None:
                dgate_RP[:, at] = d_gate
            if dh_KPD is None and dw_VD is None:
                continue
            d_logp, d_lse = d_logp.reshape(-1, 1), d_lse.reshape(-1, 1)
            residual = logits_XV.sub_(lse_X1).exp_().mul_(d_lse - d_logp)
            residual = residual.scatter_add_(1, targets_X1, d_logp).to(dtype)
            if dh_KPD is not None:
                dh_KPD[:, at] = (residual @ weight).view(K, C, -1).to(h_KPD.dtype)
            if dw_VD is not None:
                add_outer(dw_VD, residual, h_XD)
            del logits_XV, residual  # or the next chunk would be made beside this one
        ctx.save_for_backward(dh_KPD, dgate_RP, dw_VD, largest)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_MP)
        return total * largest, nll_MP

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, largest = ctx.saved_tensors
        factor = d_total * largest
        dh, dgate, dw = (None if each is None else each * factor.to(each.dtype) for each in gradients)
        return dh, dgate, None, None if dw is None else dw.to(ctx.weight_dtype), None, None, None, None, None


class PositionScores(NamedTuple):
    """What every head says of its target at every position."""

    nll: Float[Tensor, "N B T"]
    """Of further heads given the true tokens before the target."""
    best: Int[Tensor, "N B T"]
    entropy: Float[Tensor, "1 B T"]
    """Of head 1."""


@torch.no_grad()
def score_positions(
    h_SBTD: Float[Tensor, "S B T D"], weight_VD: Float[Tensor, "V D"], targets_NBT: Int[Tensor, "N B T"]
) -> PositionScores:
    """In chunks, as the loss."""
    h_KPD, gate_RP, targets_NP = _as_rows((h_SBTD[:1], h_SBTD[1:2], h_SBTD[2:]), targets_NBT)
    (K, P, _), N, dtype = h_KPD.shape, len(targets_NP), compute_dtype(h_SBTD)
    first = chunked_scores(h_SBTD[0].flatten(0, 1), weight_VD, targets_NP[0][:, None], entropies=P)
    step = max(1, default_chunk_rows(len(weight_VD), h_SBTD.device) // K)
    further = []
    with torch.autocast(h_SBTD.device.type, enabled=False):
        weight = weight_VD.to(dtype)
        for start in range(0, P, step):
            at = slice(start, start + step)
            logits_KCV = h_KPD[:, at].to(dtype) @ weight.t()
            logits_NRCV = logits_KCV.view(N, K // N, *logits_KCV.shape[1:])
            logp_NRCV = logits_NRCV.to(wide_dtype(logits_NRCV)).log_softmax(-1)
            index_NRC1 = targets_NP[:, None, at, None].expand(*logp_NRCV.shape[:-1], 1)
            logp_NRC, gate_RC = logp_NRCV.gather(-1, index_NRC1)[..., 0], gate_RP[:, at].to(logp_NRCV.dtype)
            weights_MCR = (gate_RC + logp_NRC.cumsum(0))[:-1].transpose(1, 2)
            chosen = [mixed(w, part.transpose(0, 1)).argmax(-1) for w, part in zip(weights_MCR, logp_NRCV[1:])]
            further.append((conditional_nll(logp_NRC, gate_RC), torch.stack(chosen)))
    nll_NP, best_NP = (
        torch.cat((one, torch.cat(rest, 1))) for one, rest in zip((first.nll.t(), first.best[None]), zip(*further))
    )
    shape = targets_NBT.shape
    return PositionScores(nll_NP.view(shape), best_NP.view(shape), first.entropy.view(1, *shape[1:]))


def score_mixture(
    h_SBTD: Float[Tensor, "S B T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_NBT: Int[Tensor, "N B T"],
    valid_NBT: Bool[Tensor, "N B T"],
) -> HeadScores:
    """As `score_heads`, with head 1's entropies."""
    nll_NBT, best_NBT, entropy_1BT = score_positions(h_SBTD, weight_VD, targets_NBT)
    return HeadScores(
        torch.where(valid_NBT, nll_NBT, 0.0).sum((1, 2)),
        ((best_NBT == targets_NBT) & valid_NBT).sum((1, 2)),
        valid_NBT.sum((1, 2)),
        best_NBT,
        entropy_1BT,
    )
