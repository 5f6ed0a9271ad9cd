"""Is the whole answer right? Exact-match accuracy of greedy decoding on a synthetic task (paper, section 4.2).

Greedy decoding writes the right answer exactly if, given the question and any beginning of the right answer, the most
likely token is the right one. So one forward over questions with their answers shows what decoding them would give.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.tasks.task import Examples, Task
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.chunked import chunked_scores
from mtp_lightning.shapes import Bool

ROWS = 256
"""Examples of a forward, at most."""
_MOST_TOKENS = 1 << 17
"""Of a forward, for memory."""


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
    rows = max(1, min(ROWS, _MOST_TOKENS // examples.tokens.shape[1]))
    for first in range(0, len(examples.lengths), rows):
        part = examples.take(np.arange(first, min(first + rows, len(examples.lengths))))
        tokens_BT = torch.from_numpy(part.tokens[:, : part.lengths.max()].astype(np.int64)).to(device)
        places_BA = torch.from_numpy(part.answer_starts[:, None] + np.arange(width)).to(device)
        inside_BA = places_BA < torch.from_numpy(part.lengths).to(device)[:, None]
        rows_R, places_R = inside_BA.nonzero()[:, 0], places_BA[inside_BA]
        targets_R = tokens_BT[rows_R, places_R]
        score = partial(chunked_scores, targets_RK=targets_R[:, None])
        h_BTD = model.next_token_states(tokens_BT)
        right_BA = torch.ones_like(inside_BA)
        right_BA[inside_BA] = model.unembedding(h_BTD[rows_R, places_R - 1], score).best == targets_R
        parts.append(right_BA)
    return Answers(torch.cat(parts).cpu())


@torch.no_grad()
def answer_loss(model: MTPModel, examples: Examples) -> float:
    """Nats per token of the right answers, their ends included, by head 1."""
    nats, count = 0.0, 0
    for row in range(len(examples.lengths)):
        start, length = int(examples.answer_starts[row]), int(examples.lengths[row])
        tokens_T = torch.from_numpy(examples.tokens[row, :length].astype(np.int64)).to(model.embedding.weight.device)
        h_1TD = model.next_token_states(tokens_T[None, :-1])[:, start - 1 :]
        logits_AV = model.unembedding(h_1TD)[0].float()
        nats += torch.nn.functional.cross_entropy(logits_AV, tokens_T[start:], reduction="sum").item()
        count += length - start
    return nats / count


def written(model: MTPModel, examples: Examples) -> list[list[int]]:
    """What greedy decoding writes after each question, up to the token that ends the right answer, or as many tokens
    as the longest right answer has. All answers have to end with the same token."""
    (end,) = {int(examples.tokens[row, length - 1]) for row, length in enumerate(examples.lengths)}
    most = int((examples.lengths - examples.answer_starts).max())
    engine, device, found = Engine(model, 1), model.embedding.weight.device, list[list[int]]()
    for first in range(0, len(examples.lengths), ROWS):
        rows = range(first, min(first + ROWS, len(examples.lengths)))
        questions = [examples.tokens[row, : examples.answer_starts[row]].astype(np.int64) for row in rows]
        prompts = [torch.from_numpy(question).to(device) for question in questions]
        found += [out.tokens for out in generate(engine, prompts, most, 1, (end,))]
    return found


def exact_match(model: MTPModel, task: Task, test_sets: Mapping[str, Examples]) -> dict[str, float]:
    """`<test set>`: share of questions answered wholly right; the task's averages of these by their names; and, where
    it names places of the answer, `<place>`: accuracy there over all test sets, the tokens before it given."""
    answers = {name: answer(model, examples) for name, examples in test_sets.items() if name not in task.judged}
    found = {
        name: answers[name].accuracy if name in answers else float(task.judge(test, written(model, test)).mean())
        for name, test in test_sets.items()
    }
    means = {name: sum(found[part] for part in parts) / len(parts) for name, parts in task.averages.items()}
    places = {
        name: torch.cat([given.right[:, place] for given in answers.values()]).float().mean().item()
        for name, place in task.named_places.items()
    }
    return found | means | places
