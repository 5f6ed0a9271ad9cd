"""Cross-entropy of many rows through one unembedding, a chunk of rows at a time, gradients formed in forward.

A row is a hidden state h (D) with K targets and their weights s_k: K = 1 for a head of its own, K = n where one
distribution is scored against n tokens. With s = sum_k s_k, for a chunk h (C, D): logits = h W^T, p = softmax(logits),

    total  = sum_rows s (sum_k s_k/s nll_k + z lse^2)              z: the weight of the z-loss (PaLM), 0 for none
    G      = (1 + 2 z lse) p - sum_k s_k/s onehot(target_k),       dh = s G W,       dW += G^T (s h)

Logits and G are one (C, V) buffer that every chunk reuses; in half precision p is a buffer beside it, on a CPU of a few
rows at a time, which stay in its caches from pass to pass. dW is one accumulator for all heads, in float32. Backward
multiplies both by the incoming gradient, where that is not 1. Once differentiable. dW is summed with row weights that
are divided by the largest, so that products in half precision do not underflow, and so is dh where it is float16.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.model.memory import PASS_ELEMENTS
from mtp_lightning.model.training.first_run import is_first_run
from mtp_lightning.shapes import Float, Int

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Of the logits alive at once: a GPU wants larger products."""
CHUNK_ROWS = {"cpu": 2048, "cuda": 8192}
"""At most so many rows: more are no quicker to multiply."""

ADDED_ELEMENTS = 2**19
"""Of an unembedding's gradient, added at once on a CPU."""


def default_chunk_rows(vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Rows per chunk. On a CPU of two threads 2,048 take 0.53 of the time of 512 at V = 256, 0.81 at 1,024 and 0.91 at
    4,096, where one thread gains 0.00 to 0.05; at V = 32,000 the memory of 512 is what a chunk may have.

    Args:
        dtype: of the logits. A GPU has all of a chunk's in float32 too.
    """
    kind = device.type if device.type in CHUNK_ROWS else "cpu"
    each = dtype.itemsize if kind == "cpu" else 4
    return max(64, min(CHUNK_ROWS[kind], CHUNK_BYTES[kind] // (each * vocab_size)) // 64 * 64)


def compute_dtype(h: Tensor) -> torch.dtype:
    """The dtype a linear layer would compute in here: autocast's where it is on, else the input's own."""
    if torch.is_autocast_enabled(h.device.type) and h.dtype != torch.float64:
        return torch.get_autocast_dtype(h.device.type)
    return h.dtype


def chunked_linear_nll(
    h_RD: Float[Tensor, "R D"],
    weight_VD: Float[Tensor, "V D"],
    targets_RK: Int[Tensor, "R K"],
    scale_RK: Float[Tensor, "R K"],
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "R K"]]:
    """(the total above, nll_RK): only the total carries a gradient. Targets of scale 0 cost nothing and give none.

    Args:
        scale_RK: s_k of every row, not negative.
    """
    dtype = compute_dtype(h_RD)
    rows = chunk_rows or default_chunk_rows(weight_VD.shape[0], h_RD.device, dtype)
    # needs_input_grad is True under no_grad too, so whether gradients are wanted has to come from outside
    wanted = torch.is_grad_enabled()
    with torch.autocast(h_RD.device.type, enabled=False):
        return _ChunkedNLL.apply(h_RD, weight_VD, targets_RK, scale_RK, z_loss, rows, dtype, wanted, is_first_run())  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_RD: Tensor,
        weight_VD: Tensor,
        targets_RK: Tensor,
        scale_RK: Tensor,
        z_loss: float,
        chunk_rows: int,
        dtype: torch.dtype,
        wanted: bool,
        first_run: bool,
    ) -> tuple[Tensor, Tensor]:
        R, V = h_RD.shape[0], weight_VD.shape[0]
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        weight = weight_VD.to(dtype)
        nll_RK = h_RD.new_empty(targets_RK.shape, dtype=accumulate)
        lse_R = h_RD.new_empty(R, dtype=accumulate)
        moves_h, moves_w = (wanted and needed for needed in ctx.needs_input_grad[:2])
        dh_RD = torch.empty_like(h_RD) if moves_h and not first_run else None
        dw_VD = torch.zeros_like(weight_VD, dtype=accumulate) if moves_w and not first_run else None
        scale_R = scale_RK.sum(1, dtype=accumulate)
        largest = scale_R.max().clamp(min=torch.finfo(torch.float32).tiny)
        relative_R = scale_R / largest
        finished = h_RD.dtype != torch.float16
        scale_of_h_R = scale_R if finished else relative_R
        # a row's weights sum to 1; rows without any get none
        share_RK = torch.where(scale_R[:, None] > 0, scale_RK / scale_R[:, None], 0.0).to(accumulate)
        buffers = _Buffers(min(chunk_rows, R), V, weight, dtype, accumulate, dw_VD is not None)
        for start in range(0, R, chunk_rows):
            rows = slice(start, min(start + chunk_rows, R))
            h = h_RD[rows].to(dtype)
            nll_RK[rows], lse_R[rows], residual = buffers.nll_and_residual(
                h, weight, targets_RK[rows], share_RK[rows], z_loss
            )
            if dh_RD is not None:
                torch.mul(residual @ weight, scale_of_h_R[rows, None], out=dh_RD[rows])
            if dw_VD is not None:
                add_outer(dw_VD, residual, (h * relative_R[rows, None]).to(dtype), buffers.outer_VD)
        if finished:
            dw_VD = None if dw_VD is None else dw_VD.mul_(largest)
            largest = torch.ones_like(largest)
        if first_run:  # `checkpoint` compares shapes, and takes the second run's tensors
            dh_RD = _nothing(h_RD, h_RD.dtype) if moves_h else None
            dw_VD = _nothing(weight_VD, accumulate) if moves_w else None
        ctx.save_for_backward(dh_RD, dw_VD, largest)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_RK)
        # a weight of exactly 0 must give exactly 0, also where a masked row's likelihood is not finite
        total = torch.where(scale_RK > 0, nll_RK * scale_RK, 0.0).sum()
        if z_loss:
            total += z_loss * torch.where(scale_R > 0, lse_R.square() * scale_R, 0.0).sum()
        return total, nll_RK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *formed_gradients(ctx, d_total), None, None, None, None, None, None, None


def formed_gradients(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(of the hidden states, of the weight): what the forward formed and saved, times the size that it left out so that
    nothing underflows in 16 bits."""
    dh, dw, largest = ctx.saved_tensors
    factor = d_total * largest
    if factor.device.type == "cpu" and factor == 1:  # which a GPU would have to be waited for to know
        return dh, None if dw is None else dw.to(ctx.weight_dtype)
    return (
        None if dh is None else dh * factor.to(dh.dtype),
        None if dw is None else (dw * factor).to(ctx.weight_dtype),
    )


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the shape and of no memory; gradients of it would be NaN."""
    return like.new_full((), torch.nan, dtype=dtype).expand(like.shape)


class _Buffers:
    """The tensors that every chunk writes anew: allocating them per chunk costs more than filling them."""

    def __init__(
        self, rows: int, V: int, like: Tensor, dtype: torch.dtype, accumulate: torch.dtype, outer: bool
    ) -> None:
        self.in_place = like.device.type == "cpu"
        self.pass_rows = max(1, min(rows, PASS_ELEMENTS // V)) if self.in_place else rows
        self.logits_CV = like.new_empty(rows, V, dtype=dtype)
        self.wide_PV = None if dtype == accumulate else like.new_empty(self.pass_rows, V, dtype=accumulate)
        self.outer_VD = like.new_empty(like.shape, dtype=dtype) if outer and dtype != accumulate else None

    def nll_and_residual(
        self, h: Tensor, weight: Tensor, targets: Tensor, share: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Likelihoods (C, K), log-sum-exp (C,), and G in the compute dtype, in a buffer, good until the next call."""
        logits = torch.mm(h, weight.t(), out=self.logits_CV[: len(h)])
        if len(h) <= self.pass_rows:
            return self._passes(logits, targets, share, z_loss)
        parts = zip(*(torch.split(x, self.pass_rows) for x in (logits, targets, share)))
        found = [self._passes(some, own, its_share, z_loss) for some, own, its_share in parts]
        return torch.cat([nll for nll, _, _ in found]), torch.cat([lse for _, lse, _ in found]), logits

    def _passes(self, logits: Tensor, targets: Tensor, share: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same of some of the rows.

        log-sum-exp is read back as max - log(max p), exact where p of the target has long underflowed.
        """
        wide = logits if self.wide_PV is None else self.wide_PV[: len(logits)].copy_(logits)
        target_logits = wide.gather(1, targets)
        largest = wide.amax(1)
        # torch's CPU softmax finishes reading a row before it writes it; CUDA's makes no such promise
        p = torch.softmax(wide, 1, out=wide) if self.in_place else torch.softmax(wide, 1)
        rest = p.amax(1).log()
        lse = largest - rest
        nll = (largest[:, None] - target_logits) - rest[:, None]
        if z_loss:
            p.mul_((1 + 2 * z_loss * lse)[:, None])
        p.scatter_add_(1, targets, -share)
        if logits.dtype == p.dtype:
            return nll, lse, p
        return nll, lse, logits.copy_(p)


def add_outer(
    dw_VD: Float[Tensor, "V D"],
    residual_CV: Float[Tensor, "C V"],
    h_CD: Float[Tensor, "C D"],
    out_VD: Float[Tensor, "V D"] | None = None,
) -> None:
    """dW += residual^T h, summed over chunks in the accumulator's dtype.

    On a CPU torch copies what it adds into that dtype, all of it: a few rows at a time the copy stays in the caches.

    Args:
        out_VD: where to put the product, of the residual's dtype.
    """
    if residual_CV.dtype == dw_VD.dtype:
        dw_VD.addmm_(residual_CV.t(), h_CD)
        return
    product_VD = torch.mm(residual_CV.t(), h_CD, out=out_VD)
    rows = max(1, ADDED_ELEMENTS // dw_VD.shape[1]) if dw_VD.device.type == "cpu" else len(dw_VD)
    for some, added in zip(torch.split(dw_VD, rows), torch.split(product_VD, rows)):
        some.add_(added)


class RowScores(NamedTuple):
    """What R rows say of their K targets."""

    nll: Float[Tensor, "R K"]
    best: Int[Tensor, "R"]
    """Each row's best token, the first of equals."""
    entropy: Float[Tensor, "E"]
    """Of the first E rows' distributions, in nats."""


def chunked_scores(
    h_RD: Float[Tensor, "R D"],
    weight_VD: Float[Tensor, "V D"],
    targets_RK: Int[Tensor, "R K"],
    chunk_rows: int | None = None,
    entropies: int = 0,
) -> RowScores:
    """Likelihood of every target, and each row's best token.

    Args:
        entropies: E.
    """
    rows = chunk_rows or default_chunk_rows(weight_VD.shape[0], h_RD.device)
    dtype = compute_dtype(h_RD)
    nll, best, entropy = [], [], [h_RD.new_empty(0, dtype=torch.promote_types(dtype, torch.float32))]
    with torch.no_grad(), torch.autocast(h_RD.device.type, enabled=False):
        weight = weight_VD.to(dtype)
        for start in range(0, h_RD.shape[0], rows):
            targets = targets_RK[start : start + rows]
            logits = h_RD[start : start + rows].to(dtype) @ weight.t()
            best.append(logits.argmax(1))
            wide = logits if dtype == torch.float64 else logits.float()
            lse = wide.logsumexp(1, keepdim=True)
            nll.append(lse - wide.gather(1, targets))
            if start < entropies:
                log_p = wide.sub_(lse)[: entropies - start]  # in place: a (C, V) less
                entropy.append(-torch.einsum("cv,cv->c", log_p.exp(), log_p))
    return RowScores(torch.cat(nll), torch.cat(best), torch.cat(entropy))
