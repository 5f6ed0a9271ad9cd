"""Cut cross-entropy (Wijmans et al. 2024, arXiv 2411.09009) where it can run, our chunks everywhere else.

Apple's kernels never write logits to memory. They need CUDA, Triton, the package `cut-cross-entropy` (the extra
`cuda`), half precision, one target per row, and have no z-loss; whatever of it lacks, `chunked` computes the same.
"""

import importlib.util

import torch
from torch import Tensor

from mtp_lightning.objective.chunked import chunked_linear_nll, compute_dtype
from mtp_lightning.shapes import Float, Int


def can_fuse(h_RD: Tensor, targets_RK: Tensor, z_loss: float) -> bool:
    """Whether cut-cross-entropy computes this loss here."""
    return (
        h_RD.device.type == "cuda"
        and compute_dtype(h_RD) in (torch.bfloat16, torch.float16)
        and targets_RK.shape[1] == 1
        and not z_loss
        and importlib.util.find_spec("cut_cross_entropy") is not None
    )


def fused_linear_nll(
    h_RD: Float[Tensor, "R D"],
    weight_VD: Float[Tensor, "V D"],
    targets_RK: Int[Tensor, "R K"],
    scale_RK: Float[Tensor, "R K"],
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "R K"]]:
    """As `chunked_linear_nll`: (sum_r scale_r nll_r, nll_RK), all heads in one call, so that one gradient of the
    unembedding is formed."""
    if not can_fuse(h_RD, targets_RK, z_loss):
        return chunked_linear_nll(h_RD, weight_VD, targets_RK, scale_RK, z_loss, chunk_rows)
    return _cut_cross_entropy(h_RD, weight_VD, targets_RK, scale_RK)


def _cut_cross_entropy(h_RD: Tensor, weight_VD: Tensor, targets_RK: Tensor, scale_RK: Tensor) -> tuple[Tensor, Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    dtype = compute_dtype(h_RD)
    nll_R = linear_cross_entropy(h_RD.to(dtype), weight_VD.to(dtype), targets_RK[:, 0], reduction="none").float()
    total = torch.where(scale_RK > 0, nll_R[:, None] * scale_RK, 0.0).sum()
    return total, nll_R[:, None].detach()
