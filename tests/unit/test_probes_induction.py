import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from typing_extensions import override

from mtp_lightning.data.stories.names import NamedStories, named_stories
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.induction import LAST_MENTION, copied, name_accuracy

TEXT, NAMES, VOCABULARY = 8, 4, 16
"""Tokens 0-7 are text, 8-11 begin a name, 12-15 go on with one."""


def stories(mentions: list[list[int]], seed: int = 0) -> NamedStories:
    """A row for every list, which says the names (0-3) in the order of their mentions, with text between them."""
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = []
    found: list[tuple[int, int, int, int]] = []
    pairs: list[tuple[int, int]] = []
    for row, said in enumerate(mentions):
        seconds = TEXT + NAMES + rng.permutation(NAMES)
        names = {name: len(pairs) + i for i, name in enumerate(dict.fromkeys(said))}
        pairs += [(TEXT + name, int(seconds[name])) for name in names]
        tokens: list[int] = []
        for i, name in enumerate(said):
            tokens += rng.integers(TEXT, size=rng.integers(1, 5)).tolist()
            tokens += [TEXT + name, int(seconds[name])]
            found.append((row, len(tokens) - 1, said[: i + 1].count(name), names[name]))
        rows.append(tokens + rng.integers(TEXT, size=rng.integers(4)).tolist())
    lengths = np.array([len(row) for row in rows])
    tokens_BL = np.array([row + [0] * (max(lengths) - len(row)) for row in rows])
    places, positions, occurrences, own = np.array(found).T
    return NamedStories(tokens_BL, lengths, places, positions, occurrences, own, np.array(pairs), NAMES)


MENTIONS = [[0, 1, 0, 0, 1], [2, 2], [3, 1, 0, 3, 3, 3, 1], [1, 1, 1] * 4, [0, 3, 0], [2, 1, 1, 2, 2]]


@pytest.fixture
def examples() -> NamedStories:
    return stories(MENTIONS)


class Copier(MTPModel):
    """Says what followed the current token the last time, and token 0 where it is new."""

    def __init__(self) -> None:
        super().__init__(tiny_backbone(dim=VOCABULARY), HeadsConfig())
        with torch.no_grad():
            self.unembedding.weight.copy_(100 * torch.eye(VOCABULARY))

    @override
    def next_token_states(self, tokens_BT: Tensor) -> Tensor:
        said = torch.zeros_like(tokens_BT)
        for b, row in enumerate(tokens_BT.tolist()):
            following: dict[int, int] = {}
            for t, token in enumerate(row):
                if t:
                    following[row[t - 1]] = token
                said[b, t] = following.get(token, 0)
        return torch.nn.functional.one_hot(said, VOCABULARY).float()


def by_hand(model: MTPModel, built: NamedStories) -> tuple[list[bool], list[float]]:
    """One story at a time, without padding, all logits of all heads."""
    right, nll = [], []
    for row, place in zip(built.rows, built.positions):
        tokens_1T = torch.from_numpy(built.tokens[row : row + 1, : built.lengths[row]])
        ahead_N1T = torch.zeros(model.n_future, *tokens_1T.shape, dtype=torch.long)
        logits_V = model.logits(tokens_1T, None, ahead_N1T)[0, 0, place - 1]
        target = int(built.tokens[row, place])
        right.append(int(logits_V.argmax()) == target)
        nll.append(float(logits_V.logsumexp(0) - logits_V[target]))
    return right, nll


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("variant", VARIANTS)
def test_by_brute_force(examples: NamedStories, variant: str) -> None:
    torch.manual_seed(1)
    model = MTPModel(tiny_backbone(n_layers=6, init_std=0.3), VARIANTS[variant])
    with torch.no_grad():
        right, nll = by_hand(model, examples)
    for rows in (1, 4, 100):
        found = name_accuracy(model, examples, rows)
        assert found.right.tolist() == right
        torch.testing.assert_close(found.nll, torch.tensor(nll), rtol=1e-4, atol=1e-4)
        repeated = [i for i, occurrence in enumerate(examples.occurrences) if occurrence >= 2]
        assert found.accuracy == pytest.approx(sum(right[i] for i in repeated) / len(repeated))
        assert found.loss == pytest.approx(sum(nll[i] for i in repeated) / len(repeated), rel=1e-4)
        for k, (accuracy, count) in found.by_mention().items():
            of_k = [right[i] for i, occurrence in enumerate(examples.occurrences) if occurrence == k]
            assert count == len(of_k)
            assert accuracy == pytest.approx(sum(of_k) / count)
        assert [*found.by_mention()] == [*range(1, 13)]


def test_a_model_that_copies_is_always_right(examples: NamedStories) -> None:
    found = name_accuracy(Copier(), examples, rows=4)
    assert found.accuracy == found.copy_oracle == 1.0
    assert found.loss < 1e-6
    assert found.by_mention()[1] == (0.0, 11)
    assert all(accuracy == 1.0 for k, (accuracy, _) in found.by_mention().items() if k > 1)


def test_an_untrained_model_knows_nothing(make_model: Callable[..., Any]) -> None:
    found = name_accuracy(make_model(), stories([[0, 1, 2, 3] * 3] * 100))
    assert found.chance == 0.25
    assert found.accuracy < 0.35
    assert abs(found.loss - math.log(VOCABULARY)) < 0.2


def test_the_copy_oracle_reads_the_last_occurrence() -> None:
    """Name (8, 12): mentioned, repeated, repeated after an 8 that something else follows, and once more."""
    row = [1, 8, 12, 2, 8, 12, 8, 3, 8, 12, 5, 8, 12]
    places = np.array([2, 5, 9, 12])
    zeros = np.zeros(4, dtype=np.int64)
    built = NamedStories(np.array([row]), np.array([13]), zeros, places, np.arange(1, 5), zeros, np.array([[8, 12]]), 4)
    assert copied(built).tolist() == [False, True, False, True]
    assert name_accuracy(Copier(), built).accuracy == name_accuracy(Copier(), built).copy_oracle == pytest.approx(2 / 3)


def test_metrics(examples: NamedStories) -> None:
    metrics = name_accuracy(Copier(), examples).metrics()
    by_mention = [f"mention_{k}" for k in range(1, LAST_MENTION + 1)]
    assert [*metrics] == ["accuracy", "loss", "chance", "copy_oracle", *by_mention]
    assert metrics["accuracy"] == metrics["copy_oracle"] == metrics["mention_2"] == 1.0
    assert metrics["mention_1"] == 0.0
    assert metrics["chance"] == 0.25


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_random_numbers_stay_as_they_are(
    examples: NamedStories, make_model: Callable[..., Any], training: bool
) -> None:
    model = make_model(n_future=2).train(training)
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    found = name_accuracy(model, examples)
    assert model.training == training
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.nll.requires_grad


def test_stories_of_text(make_model: Callable[..., Any]) -> None:
    told = ["a girl named lily saw a frog. lily liked frogs, and the frog liked lily.", "tom ran. then tom fell."]
    built = named_stories(told, ByteTokenizer(), 2, 1000, 0)
    found = name_accuracy(make_model(vocab_size=256), built)
    assert {k: count for k, (_, count) in found.by_mention().items()} == {1: 2, 2: 2, 3: 1}
    assert found.chance == pytest.approx(1 / 26)
