"""Windows to inputs and targets: the only code of the platform that shifts tokens.

Example with offsets (1, 2), T = 3 and a border after the third token:

    window     a0 a1 a2 b0 b1          documents  0 0 0 1 1
    inputs     a0 a1 a2
    targets 1  a1 a2 b0                valid      1 1 0
    targets 2  a2 b0 b1                valid      1 0 0
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.registers import draw_offsets
from mtp_lightning.shapes import Bool, Int

STEP_REST = "rest_of_step"
"""In a batch that is the first of several of an optimizer step: the list of the others, whose targets count too."""
SOURCE = "source"
"""In a validation batch of a mixture: the name of the source that all its windows are of."""


SENTINELS = "sentinels"
"""In a batch: (B, L) bool, True for tokens that no head may look across."""


class Targets(NamedTuple):
    """What windows of L = T + horizon tokens give a model to read, and what its heads have to predict."""

    inputs: Int[Tensor, "B T"]
    targets: Int[Tensor, "N B T"]
    """Head i's (index i - 1) target at position t is the window's token t + offsets[i - 1]."""
    valid: Bool[Tensor, "N B T"]
    """False where the target lies in another document, beyond a sentinel, or outside the loss mask."""
    first: Bool[Tensor, "N B T"] | None = None
    """What the second unembedding is asked for. Kind `order`: valid, and the next token of its kind (`first_ahead`);
    `future_summary`: valid, and at least two tokens ahead."""
    offsets: Int[Tensor, "B"] | None = None
    """For kind `registers`: how many tokens ahead the registers of each row look."""

    def between(self, start: int, stop: int) -> "Targets":
        """Of these positions alone."""
        part = slice(start, stop)
        first = None if self.first is None else self.first[:, :, part]
        return Targets(self.inputs[:, part], self.targets[:, :, part], self.valid[:, :, part], first, self.offsets)

    def of_losses(self) -> "Targets":
        """What hidden states are scored against: of kind `registers` N = 2, head 1's targets and the registers'."""
        if self.offsets is None:
            return self
        row_B = torch.arange(len(self.offsets), device=self.offsets.device)
        both = (torch.stack((x_NBT[0], x_NBT[self.offsets - 1, row_B])) for x_NBT in (self.targets, self.valid))
        return Targets(self.inputs, *both)


def make_targets(
    heads: HeadsConfig,
    window_BL: Int[Tensor, "B L"],
    documents_BL: Int[Tensor, "B L"] | None = None,
    loss_mask_BL: Bool[Tensor, "B L"] | None = None,
    sentinels_BL: Bool[Tensor, "B L"] | None = None,
    seed: int = 0,
    step: int = 0,
) -> Targets:
    """Inputs, targets and validity of windows of T + `heads.horizon` tokens; no head loses targets at a window's edge.

    Args:
        documents_BL: ids that change at every border; a target in another document than its input is not valid.
        loss_mask_BL: True for tokens that may be a target (for example an answer, not its prompt).
        sentinels_BL: True for tokens that may not lie between an input and its target. To head 1 they mean nothing.
        seed, step: what registers draw their offsets from.

    Raises:
        ValueError: a window without an input position.
    """
    offsets, T = heads.head_offsets, window_BL.shape[1] - heads.horizon
    if T < 1:
        raise ValueError(
            f"a window of {window_BL.shape[1]} tokens leaves no input to look {heads.horizon} tokens ahead"
        )
    targets_NBT = ahead(window_BL, offsets)
    valid_NBT = torch.ones_like(targets_NBT, dtype=torch.bool)
    if documents_BL is not None:
        valid_NBT &= ahead(documents_BL, offsets) == documents_BL[:, :T]
    if loss_mask_BL is not None:
        valid_NBT &= ahead(loss_mask_BL, offsets)
    if sentinels_BL is not None:
        passed_BL = sentinels_BL.cumsum(1)  # up to each position, it included
        valid_NBT &= ahead(passed_BL, offsets) - ahead(sentinels_BL, offsets).long() == passed_BL[:, :T]
    first_NBT = None
    if heads.kind == "order":
        first_NBT = valid_NBT & first_ahead(window_BL, offsets)
    elif heads.second_loss:
        first_NBT = torch.cat((torch.zeros_like(valid_NBT[:1]), valid_NBT[1:]))
    drawn_B = draw_offsets(window_BL, heads.n_future, seed, step) if heads.kind == "registers" else None
    return Targets(window_BL[:, :T], targets_NBT, valid_NBT, first_NBT, drawn_B)


def count_valid(targets: Targets) -> Int[Tensor, "M"]:
    """Per loss, the number of positions that it is a mean of: each head's valid targets; of a ranking or a summary, the
    next token's and then the positions that list any token; of registers, head 1's and theirs."""
    counts_N = targets.of_losses().valid.sum((1, 2))
    if targets.first is None:
        return counts_N
    return torch.stack([counts_N[0], targets.first.any(0).sum()])


def first_ahead(window_BL: Int[Tensor, "B L"], offsets: Sequence[int]) -> Bool[Tensor, "N B T"]:
    """True where the token at an offset from a position is the next of its kind: it did not come in between.

    Example: in a b b a, at offsets 1 and 2 from the first: b is the next b, and the second b is not.
    """
    L = window_BL.shape[1]
    order_BL = window_BL.argsort(dim=1, stable=True)  # equal tokens together, in the order of their positions
    ordered_BL = window_BL.gather(1, order_BL)
    again = torch.zeros_like(window_BL, dtype=torch.bool)
    again[:, 1:] = ordered_BL[:, 1:] == ordered_BL[:, :-1]
    before = torch.full_like(order_BL, -1)
    before[:, 1:] = torch.where(again[:, 1:], order_BL[:, :-1], -1)
    previous_BL = torch.empty_like(order_BL).scatter_(1, order_BL, before)  # where the same token last stood
    T = L - offsets[-1]
    return ahead(previous_BL, offsets) <= torch.arange(T, device=window_BL.device)


def ahead(x_BL: Tensor, offsets: Sequence[int]) -> Tensor:
    """(N, B, T): x at each offset from each of the first T = L - max(offsets) positions."""
    T = x_BL.shape[1] - offsets[-1]
    every = x_BL[:, 1:].unfold(1, T, 1).movedim(1, 0)  # a view: offsets 1, 2, ... max(offsets)
    if len(offsets) == offsets[-1]:
        return every
    return every[[offset - 1 for offset in offsets]]
