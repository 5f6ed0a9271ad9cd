"""Random tokens, repeated: nothing to learn but to look back. The loss on the second copy is induction's alone.

Example with copies of C = 4 tokens, offsets (1, 2) and 7 inputs:

    window     a b c d a b c d a        two copies, and head 2's target at the last input
    inputs     a b c d a b c            head 1's targets end with the second copy
    head 1           d  -> position 0, which nobody can know;  a -> 1,  b -> 2,  c -> 3
    head 2         c d  -> positions 0 and 1, unknown;         a -> 2,  b -> 3
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.chunked import chunked_scores
from mtp_lightning.objective.mixture import score_positions
from mtp_lightning.objective.targets import Targets
from mtp_lightning.probes.attention import in_batches
from mtp_lightning.shapes import Float, Int

ROWS = 64
"""Windows of a forward."""


class Repetition(NamedTuple):
    """Losses (nats) and accuracies of head i (index i - 1), by the target's position in its copy of C tokens.

    S heads: all, or head 1 alone for kinds without further heads, whose one hidden state predicts the next token.
    """

    offsets: tuple[int, ...]
    """How many tokens ahead each of the S heads looks."""
    first_loss: Float[Tensor, "S"]
    """Mean over the targets in the first copy: of a model that knows the tokens' distribution its entropy, at best."""
    loss: Float[Tensor, "S C"]
    """On the second copy. A head that looks p tokens ahead has seen none of it when it predicts positions 0 .. p - 1
    (but `sequential`, `recurrent`, `next_latent`, `fetch` and `mixture` heads read the true tokens up to their target,
    `markov` ones the last of them)."""
    accuracy: Float[Tensor, "S C"]
    """On the second copy: whether the target is the most likely token."""

    def summary(self) -> dict[str, float]:
        """`first_loss/head_1`, and on the second copy, over the positions from p on, `loss/head_1`, `accuracy/head_1`;
        and so for every head."""
        scalars = {}
        for i, p in enumerate(self.offsets):
            scalars[f"first_loss/head_{i + 1}"] = self.first_loss[i].item()
            scalars[f"loss/head_{i + 1}"] = self.loss[i, p:].mean().item()
            scalars[f"accuracy/head_{i + 1}"] = self.accuracy[i, p:].mean().item()
        return scalars


def repeated_windows(
    vocab_size: int, rows: int, length: int, horizon: int, seed: int, tokens: Sequence[int] | None = None
) -> Int[Tensor, "B L"]:
    """Windows of `length` random tokens, the same again, and the beginning of a third copy.

    L = 2 length + horizon - 1, so T = 2 length - 1: the least with which every head predicts the whole second copy.

    Args:
        horizon: `HeadsConfig.horizon`.
        tokens: draw from these alone, all equally likely; by default from the whole vocabulary.

    Raises:
        InputError: copies so short that a head has none of its second one to look at.
    """
    if length <= horizon:
        raise InputError(
            f"length is {length}, and the heads look up to {horizon} tokens ahead: a copy has to be longer than that"
        )
    ids = torch.arange(vocab_size) if tokens is None else torch.tensor(tokens)
    generator = torch.Generator().manual_seed(seed)
    copy_BC = ids[torch.randint(len(ids), (rows, length), generator=generator)]
    return copy_BC.repeat(1, 3)[:, : 2 * length + horizon - 1]


@torch.no_grad()
def repetition(model: MTPModel, windows_BL: Int[Tensor, "B L"], length: int, begin: int = 0) -> Repetition:
    """How well each head repeats. The model is used as it is: in the mode it is in, on the device it is on.

    Args:
        windows_BL: as `repeated_windows` makes them.
        length: C, tokens of a copy.
        begin: tokens before the copies, of which nothing is asked.
    """
    copies_BL = windows_BL[:, begin:]
    assert copies_BL.shape[1] >= 2 * length + model.heads_config.horizon - 1, "a part of the second copy is no target"
    assert torch.equal(copies_BL[:, :length], copies_BL[:, length : 2 * length]), "no copies of this length"
    losses, hits = [], []
    for targets in in_batches(model, windows_BL, ROWS):
        nll_SBT, right_SBT = _own_targets(model, targets)
        losses.append(nll_SBT[..., begin:].cpu())
        hits.append(right_SBT[..., begin:].float().cpu())
    nll_SBT, right_SBT = torch.cat(losses, dim=1), torch.cat(hits, dim=1)
    offsets = model.heads_config.head_offsets[: len(nll_SBT)]
    second = [slice(length - p, 2 * length - p) for p in offsets]  # inputs whose targets are the second copy
    return Repetition(
        offsets,
        torch.stack([nll_SBT[i, :, : length - p].mean() for i, p in enumerate(offsets)]),
        torch.stack([nll_SBT[i, :, inputs].mean(0) for i, inputs in enumerate(second)]),
        torch.stack([right_SBT[i, :, inputs].mean(0) for i, inputs in enumerate(second)]),
    )


def _own_targets(model: MTPModel, targets: Targets) -> tuple[Float[Tensor, "S B T"], Tensor]:
    """(loss, whether right) of every hidden state's own target."""
    h_SBTD = model(targets.inputs, None, targets.targets)
    if model.mixture is not None:
        mixture = model.unembedding(h_SBTD, partial(score_positions, targets_NBT=targets.targets))
        return mixture.nll, mixture.best == targets.targets
    unembeddings = [model.unembedding] * len(h_SBTD)
    if model.heads_config.replicate_unembedding:
        unembeddings = [model.unembedding, *model.further_unembeddings]
    scored = []
    for h_BTD, targets_BT, unembedding in zip(h_SBTD, targets.targets, unembeddings):  # S = 1: head 1's target alone
        score = partial(chunked_scores, targets_RK=targets_BT.flatten()[:, None])
        found = unembedding(h_BTD.flatten(0, 1), score)
        scored.append((found.nll.view(targets_BT.shape), found.best.view(targets_BT.shape) == targets_BT))
    nll_SBT, right_SBT = (torch.stack(x) for x in zip(*scored))
    return nll_SBT, right_SBT
