"""The losses of taught heads through one unembedding, a chunk of positions at a time, gradients formed in forward.

For a chunk of positions, head 1's logits are formed once: they give its own cross-entropy, and p, which teaches every
further head's row of the same target. So a teacher costs no product with the unembedding, and what is alive at once is
p, one head's logits and a third (C, V) tensor, whatever n and T; dW is one accumulator for all heads. For a row with
logits z, q = softmax(z), token weight s, teacher weight e, and m_v = [q_v < p_v],

    dz = s (1 - weight) (q - onehot) + 2 z_loss s lse q + e (k (q - p) + r (q sum_u m_u q_u - m q))

where the divergence is k KL + r (1 - alpha), or k KL - tv log alpha with r = tv / alpha. Once differentiable.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.objective.chunked import add_outer, compute_dtype, default_chunk_rows, formed_gradients
from mtp_lightning.shapes import Float, Int


class Divergence(NamedTuple):
    """k KL + tv (1 - alpha), or with `of_log`, k KL - tv log alpha; a pair of factors for each head."""

    kl: Float[Tensor, "N"]
    tv: Float[Tensor, "N"]
    of_log: bool


class TaughtRows(NamedTuple):
    """What the loss is made of, beside hidden states and unembedding. A row is a position of a window."""

    targets: Int[Tensor, "N R"]
    scale: Float[Tensor, "N R"]
    """s: weight of the token's loss, before it is shared with the teacher's."""
    teach: Float[Tensor, "N R"]
    """e: weight of the divergence, 0 where there is no teacher."""
    pupils: Int[Tensor, "N R"]
    """For head 1's row r, the row at which head i has the same target; where there is none, the rows without a teacher,
    each once."""
    token_share: float
    """Of the further heads' losses: 1 - weight."""
    z_loss: float = 0.0
    top: int | None = None


class Sums(NamedTuple):
    """Row by row: none of it carries a gradient."""

    nll: Float[Tensor, "N R"]
    divergence: Float[Tensor, "N R"]
    overlap: Float[Tensor, "N R"]


TINY = torch.finfo(torch.float32).tiny


def chunked_taught_loss(
    h_NRD: Float[Tensor, "N R D"],
    weight_VD: Float[Tensor, "V D"],
    rows: TaughtRows,
    divergence: Divergence,
    further_move_weight: bool = True,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], Sums]:
    """(the total over all rows, sums): only the total carries a gradient.

    Args:
        further_move_weight: false: the unembedding has the gradient of head 1's cross-entropy alone.
    """
    chunk = chunk_rows or default_chunk_rows(weight_VD.shape[0], h_NRD.device)
    dtype, wanted = compute_dtype(h_NRD), torch.is_grad_enabled()
    with torch.autocast(h_NRD.device.type, enabled=False):
        total, *sums = _ChunkedTaught.apply(  # type: ignore[no-untyped-call]
            h_NRD, weight_VD, rows, divergence, further_move_weight, chunk, dtype, wanted
        )
    return total, Sums(*sums)


@torch.no_grad()
def chunked_overlaps(
    h_NRD: Float[Tensor, "N R D"], weight_VD: Float[Tensor, "V D"], rows: TaughtRows, chunk_rows: int | None = None
) -> Float[Tensor, "N R"]:
    """alpha of every row (of those without a teacher, some number): one more forward through the unembedding."""
    chunk = chunk_rows or default_chunk_rows(weight_VD.shape[0], h_NRD.device)
    dtype = compute_dtype(h_NRD)
    with torch.autocast(h_NRD.device.type, enabled=False):
        chunks = _Chunks(h_NRD, weight_VD, rows, chunk, dtype)
        overlap_NR = h_NRD.new_zeros(h_NRD.shape[:2], dtype=chunks.accumulate)
        for i, at, p, z in chunks:
            if i:
                overlap_NR[i, at] = torch.minimum(p, z.softmax(1)).sum(1)
    return overlap_NR


class _ChunkedTaught(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_NRD: Tensor,
        weight_VD: Tensor,
        rows: TaughtRows,
        divergence: Divergence,
        further_move_weight: bool,
        chunk_rows: int,
        dtype: torch.dtype,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        chunks = _Chunks(h_NRD, weight_VD, rows, chunk_rows, dtype)
        sums = Sums(*(h_NRD.new_zeros(h_NRD.shape[:2], dtype=chunks.accumulate) for _ in Sums._fields))
        lse_NR = torch.zeros_like(sums.nll)
        dh_NRD = torch.empty_like(h_NRD) if wanted and ctx.needs_input_grad[0] else None
        dw_VD = None
        if wanted and ctx.needs_input_grad[1]:
            dw_VD = torch.zeros_like(weight_VD, dtype=chunks.accumulate)
        largest = torch.maximum(rows.scale.amax(), rows.teach.amax()).clamp(min=TINY).to(chunks.accumulate)
        score = _Scores(rows, divergence, largest, chunks.q_CV)
        for i, at, p, z in chunks:
            residual = chunks.as_computed(score(i, at, p, z, sums, lse_NR))
            if dh_NRD is not None:
                dh_NRD[i, at] = (residual @ chunks.weight_VD).to(dh_NRD.dtype)
            if dw_VD is not None and (further_move_weight or i == 0):
                add_outer(dw_VD, residual, h_NRD[i, at].to(residual.dtype))
        ctx.save_for_backward(dh_NRD, dw_VD, largest)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(*sums)
        return score.total(sums, lse_NR), *sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *formed_gradients(ctx, d_total), None, None, None, None, None, None


class _Chunks:
    """Gives (head, its rows, the teacher's p, the head's logits z) in turn: for each chunk head 1 first, then those
    that it teaches. p and z lie in buffers: z may be overwritten, and both are good until the next turn.
    """

    def __init__(self, h_NRD: Tensor, weight_VD: Tensor, rows: TaughtRows, chunk_rows: int, dtype: torch.dtype) -> None:
        self.accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight_VD = weight_VD.to(dtype)
        self._h_NRD, self._rows, self._size = h_NRD, rows, min(chunk_rows, h_NRD.shape[1])
        shape = self._size, len(weight_VD)
        self._logits_CV = h_NRD.new_empty(shape, dtype=dtype)
        self._z_CV = self._logits_CV if dtype == self.accumulate else h_NRD.new_empty(shape, dtype=self.accumulate)
        self._p_CV = h_NRD.new_empty(shape, dtype=self.accumulate)
        self.q_CV = torch.empty_like(self._p_CV)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        n, R, _ = self._h_NRD.shape
        for start in range(0, R, self._size):
            p = self._p_CV[: min(self._size, R - start)]
            for i in range(n):
                at = self._rows.pupils[i, start : start + self._size]
                z = self._logits(i, at)
                if i == 0:
                    keep_top(torch.softmax(z, 1, out=p), self._rows.top)
                yield i, at, p, z

    def _logits(self, i: int, at: Tensor) -> Tensor:
        logits, z = self._logits_CV[: len(at)], self._z_CV[: len(at)]
        torch.mm(self._h_NRD[i, at].to(logits.dtype), self.weight_VD.t(), out=logits)
        return logits if logits.dtype == z.dtype else z.copy_(logits)

    def as_computed(self, residual: Tensor) -> Tensor:
        """In the dtype of the products."""
        logits = self._logits_CV[: len(residual)]
        return residual if logits.dtype == residual.dtype else logits.copy_(residual)


def keep_top(p_RV: Tensor, top: int | None) -> None:
    """In place: the `top` largest entries, renormalised; the others are 0."""
    if top is not None:
        values, entries = p_RV.topk(top, dim=-1)
        p_RV.zero_().scatter_(-1, entries, values / values.sum(-1, keepdim=True))


class _Scores:
    """The losses of a chunk's rows, and the gradient of their logits over the largest weight."""

    def __init__(self, rows: TaughtRows, divergence: Divergence, largest: Tensor, q_CV: Tensor) -> None:
        self._rows, self._divergence, self._q_CV = rows, divergence, q_CV
        self._scale_NR, self._teach_NR = rows.scale / largest, rows.teach / largest
        self._share_N = torch.full_like(divergence.kl, rows.token_share)
        self._share_N[0] = 1.0

    def total(self, sums: Sums, lse_NR: Tensor) -> Tensor:
        """Rows of weight 0 add exactly 0, also where what they hold is not finite."""
        scale_NR, teach_NR, z_loss = self._rows.scale, self._rows.teach, self._rows.z_loss
        token_NR = self._share_N[:, None] * sums.nll + z_loss * lse_NR.square()
        taught_NR = torch.where(teach_NR > 0, teach_NR * sums.divergence, 0.0)
        return (torch.where(scale_NR > 0, scale_NR * token_NR, 0.0) + taught_NR).sum()

    def __call__(self, i: int, at: Tensor, p: Tensor, z: Tensor, sums: Sums, lse_NR: Tensor) -> Tensor:
        """Fills the rows of `sums` and `lse_NR`; returns dz, in the buffer of q."""
        targets, largest = self._rows.targets[i, at, None], z.amax(1, keepdim=True)
        z.sub_(largest)
        target_logits = z.gather(1, targets)[:, 0]
        q = torch.softmax(z, 1, out=self._q_CV[: len(at)])
        rest = q.amax(1).log()  # log-sum-exp is max - log(max q), exact where a probability has long underflowed
        lse = largest[:, 0] - rest
        sums.nll[i, at], lse_NR[i, at] = -(target_logits + rest), lse
        scale = self._scale_NR[i, at]
        token = self._share_N[i] * scale
        factor = token + 2 * self._rows.z_loss * scale * lse
        if i:
            cross = torch.linalg.vecdot(p, z) + rest  # sum_v p_v log q_v
            self._teach(i, at, p, q, z, cross, factor, sums)
        else:
            q.mul_(factor[:, None])
        return q.scatter_add_(1, targets, -token[:, None])

    def _teach(
        self, i: int, at: Tensor, p: Tensor, q: Tensor, free: Tensor, cross: Tensor, factor: Tensor, sums: Sums
    ) -> None:
        """q becomes factor q + e times the gradient of the divergence; `free` is a buffer to write to."""
        kl, tv, of_log = self._divergence.kl[i], self._divergence.tv[i], self._divergence.of_log
        entropy = torch.special.xlogy(p, p, out=free).sum(1)
        alpha = torch.minimum(p, q, out=free).sum(1)
        floor = alpha.clamp(min=TINY)
        distance = -floor.log() if of_log else 1 - alpha
        sums.overlap[i, at], sums.divergence[i, at] = alpha, kl * (entropy - cross) + tv * distance
        e = self._teach_NR[i, at]
        k, r = e * kl, e * (tv / floor if of_log else tv)
        lower = torch.mul(q, q < p, out=free)  # m q
        q.mul_((factor + k + r * lower.sum(1))[:, None])
        q.addcmul_(p, k[:, None], value=-1).addcmul_(lower, r[:, None], value=-1)
