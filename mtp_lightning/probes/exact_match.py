"""Is the whole answer right? Exact-match accuracy of greedy decoding on a synthetic task (paper, section 4.2).

Greedy decoding writes the right answer exactly if, given the question and any beginning of the right answer, the most
likely token is the right one. So one forward over questions with their answers shows what decoding them would give.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.tasks.task import Examples, Task
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.shapes import Bool

ROWS = 256
"""Examples of a forward."""


class Answers(NamedTuple):
    """What a model answers to each question."""

    right: Bool[Tensor, "B A"]
    """Whether each token of the answer, given the right ones before it, is the most likely; True after its end."""

    @property
    def exact(self) -> Bool[Tensor, "B"]:
        """Whether greedy decoding gives the whole answer."""
        return self.right.all(dim=1)

    @property
    def accuracy(self) -> float:
        return self.exact.float().mean().item()


@torch.no_grad()
def answer(model: MTPModel, examples: Examples) -> Answers:
    """Head 1's answers. The model is used as it is: in the mode it is in, on the device it is on."""
    device = model.embedding.weight.device
    width = int((examples.lengths - examples.answer_starts).max())
    parts = []
    for first in range(0, len(examples.lengths), ROWS):
        part = examples.take(np.arange(first, min(first + ROWS, len(examples.lengths))))
        tokens_BT = torch.from_numpy(part.tokens[:, : part.lengths.max()].astype(np.int64)).to(device)
        places_BA = torch.from_numpy(part.answer_starts[:, None] + np.arange(width)).to(device)
        inside_BA = places_BA < torch.from_numpy(part.lengths).to(device)[:, None]
        places_BA = places_BA.clamp(max=tokens_BT.shape[1] - 1)
        h_BTD = model.next_token_states(tokens_BT)
        rows_B1 = torch.arange(len(tokens_BT), device=device)[:, None]
        best_BA = model.unembedding(h_BTD[rows_B1, places_BA - 1]).argmax(dim=-1)
        parts.append((best_BA == tokens_BT[rows_B1, places_BA]) | ~inside_BA)
    return Answers(torch.cat(parts).cpu())


def exact_match(model: MTPModel, task: Task, test_sets: Mapping[str, Examples]) -> dict[str, float]:
    """`<test set>`: share of questions answered wholly right; the task's averages of these by their names; and, where
    it names places of the answer, `<place>`: accuracy there over all test sets, the tokens before it given."""
    answers = {name: answer(model, examples) for name, examples in test_sets.items()}
    found = {name: given.accuracy for name, given in answers.items()}
    means = {name: sum(found[part] for part in parts) / len(parts) for name, parts in task.averages.items()}
    places = {
        name: torch.cat([given.right[:, place] for given in answers.values()]).float().mean().item()
        for name, place in task.named_places.items()
    }
    return found | means | places
