"""Windows to inputs and targets: the only code of the platform that shifts tokens.

Example with n_future = 2, T = 3 and a border after the third token:

    window     a0 a1 a2 b0 b1          documents  0 0 0 1 1
    inputs     a0 a1 a2
    targets 1  a1 a2 b0                valid      1 1 0
    targets 2  a2 b0 b1                valid      1 0 0
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.shapes import Bool, Int


class Targets(NamedTuple):
    """What a window of L = T + N tokens asks of the model."""

    inputs: Int[Tensor, "B T"]
    targets: Int[Tensor, "N B T"]
    """Head i's (index i - 1) target at position t is the window's token t + i."""
    valid: Bool[Tensor, "N B T"]
    """False where the target lies in another document, or outside the loss mask."""


def make_targets(
    window_BL: Int[Tensor, "B L"],
    n_future: int,
    documents_BL: Int[Tensor, "B L"] | None = None,
    loss_mask_BL: Bool[Tensor, "B L"] | None = None,
) -> Targets:
    """Inputs, targets and validity of a window of T + n_future tokens; no head loses targets at the window's edge.

    Args:
        documents_BL: ids that change at every border; a target in another document than its input is not valid.
        loss_mask_BL: True for tokens that may be a target (for example an answer, not its prompt).

    Raises:
        ValueError: a window without an input position.
    """
    T = window_BL.shape[1] - n_future
    if T < 1:
        raise ValueError(f"a window of {window_BL.shape[1]} tokens leaves no input for n_future = {n_future}")
    targets_NBT = ahead(window_BL, n_future)
    valid_NBT = torch.ones_like(targets_NBT, dtype=torch.bool)
    if documents_BL is not None:
        valid_NBT &= ahead(documents_BL, n_future) == documents_BL[:, :T]
    if loss_mask_BL is not None:
        valid_NBT &= ahead(loss_mask_BL, n_future)
    return Targets(window_BL[:, :T], targets_NBT, valid_NBT)


def ahead(x_BL: Tensor, n_future: int) -> Tensor:
    """(N, B, T): what stands 1, 2, ... n_future places after each of the first T = L - n_future places (a view)."""
    T = x_BL.shape[1] - n_future
    return x_BL[:, 1:].unfold(1, T, 1).movedim(1, 0)
