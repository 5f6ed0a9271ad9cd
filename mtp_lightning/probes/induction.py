"""Does the model copy? Names of two random tokens, AB ... A -> B (paper, section 4.1 and appendix J).

A name's second token follows from nothing but an earlier mention, so accuracy on it, from the second mention on, is
what induction achieves. At the first mention nothing can: a control, near zero.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.data.stories.names import NamedStories
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.shapes import Bool, Float, Int

ROWS = 32
"""Stories of a forward."""
LAST_MENTION = 8
"""Mentions up to this one have metrics of their own."""


class NameAccuracy(NamedTuple):
    """Head 1's predictions of the second token of every counted mention, all tokens before it given."""

    right: Bool[Tensor, "M"]
    """Whether the most likely token is the right one."""
    nll: Float[Tensor, "M"]
    """Of the right one, in nats."""
    copied: Bool[Tensor, "M"]
    """Whether the copy oracle is right."""
    occurrences: Int[Tensor, "M"]
    """Which mention of its name each is, from 1."""
    candidates: int
    """Tokens that names' second ones were drawn from."""

    @property
    def repeated(self) -> Bool[Tensor, "M"]:
        """What the paper's metric is about: from the second mention on."""
        return self.occurrences > 1

    @property
    def accuracy(self) -> float:
        return self.right[self.repeated].float().mean().item()

    @property
    def loss(self) -> float:
        """Nats, over the mentions that `accuracy` counts."""
        return self.nll[self.repeated].mean().item()

    @property
    def copy_oracle(self) -> float:
        """Accuracy of saying what followed the current token the last time. Below 1 where a name's first token occurs
        outside it too, as letters do with bytes."""
        return self.copied[self.repeated].float().mean().item()

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all tokens that can be a name's second one."""
        return 1 / self.candidates

    def by_mention(self) -> dict[int, tuple[float, int]]:
        """Occurrence -> accuracy and number of mentions."""
        by_mention = {i: self.right[self.occurrences == i] for i in sorted({*self.occurrences.tolist()})}
        return {i: (right.float().mean().item(), len(right)) for i, right in by_mention.items()}

    def metrics(self) -> dict[str, float]:
        """`accuracy`, `loss`, `chance`, `copy_oracle`, and the accuracy at `mention_1`, `mention_2`, ..."""
        values = {
            "accuracy": self.accuracy, "loss": self.loss, "chance": self.chance, "copy_oracle": self.copy_oracle,
        }  # fmt: skip
        by_mention = self.by_mention().items()
        return values | {f"mention_{i}": accuracy for i, (accuracy, _) in by_mention if i <= LAST_MENTION}


@torch.no_grad()
def name_accuracy(model: MTPModel, stories: NamedStories, rows: int = ROWS) -> NameAccuracy:
    """Head 1 on every counted mention. The model is used as it is: in the mode it is in, on the device it is on.

    Args:
        rows: stories of a forward, for memory; makes no difference to the numbers.
    """
    device = model.embedding.weight.device
    right, nll = [], []
    for first in range(0, len(stories.lengths), rows):
        inside = (stories.rows >= first) & (stories.rows < first + rows)
        places_M = torch.from_numpy(stories.positions[inside]).to(device)
        rows_M = torch.from_numpy(stories.rows[inside] - first).to(device)
        tokens_BL = torch.from_numpy(stories.tokens[first : first + rows, : places_M.max() + 1]).to(device)
        h_BTD = model.next_token_states(tokens_BL[:, :-1])
        logits_MV = model.unembedding(h_BTD[rows_M, places_M - 1]).float()
        targets_M = tokens_BL[rows_M, places_M]
        right.append(logits_MV.argmax(dim=-1) == targets_M)
        nll.append(F.cross_entropy(logits_MV, targets_M, reduction="none"))
    return NameAccuracy(
        torch.cat(right).cpu(),
        torch.cat(nll).cpu(),
        torch.from_numpy(copied(stories)),
        torch.from_numpy(stories.occurrences),
        stories.candidates,
    )


def copied(stories: NamedStories) -> Bool[np.ndarray, "M"]:
    """Of every counted mention, whether its second token is what followed its first token's last occurrence."""
    right = np.zeros(len(stories.rows), dtype=bool)
    for i, (row, place) in enumerate(zip(stories.rows, stories.positions)):
        before = stories.tokens[row, : place - 1]
        (same,) = np.nonzero(before == stories.tokens[row, place - 1])
        right[i] = len(same) > 0 and stories.tokens[row, same[-1] + 1] == stories.tokens[row, place]
    return right
