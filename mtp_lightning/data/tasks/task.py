"""Synthetic tasks: questions with one right answer, made afresh from a seed and never stored.

A task's examples are rows of token ids, a question and then its answer. `datamodule.py` makes windows of them for
training; the fixed test sets are for validation and for `mtp_lightning.probes.exact_match`.

No training example is a test example, by construction: a hash of the question, in the order that stands for all that
mean the same, decides which side it is on.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Bool, Int

TEST_SHARE = 8
"""One in so many questions is a test question."""
MOST_ROUNDS = 64
"""Draws of a whole test set until its examples have to be distinct."""
MOST_DRAWN = 1 << 17
"""Examples drawn at a time, for memory."""


def check_operations(train: int, test: int) -> None:
    """
    Raises:
        InputError: fewer operations are tested than trained.
    """
    if test < train:
        raise InputError(
            f"data.task.test_operations is {test}, and data.task.train_operations is {train}: what is trained is "
            "tested too, so it has to be at least that"
        )


class Examples(NamedTuple):
    """Questions with their answers, padded on the right with token 0."""

    tokens: Int[np.ndarray, "B L"]
    lengths: Int[np.ndarray, "B"]
    """Tokens of a row that are no padding; the answer ends there."""
    answer_starts: Int[np.ndarray, "B"]
    """Where the answer's first token is."""

    def take(self, rows: np.ndarray) -> "Examples":
        """The examples at these places, or where this mask is true."""
        return Examples(self.tokens[rows], self.lengths[rows], self.answer_starts[rows])

    @property
    def is_real(self) -> Bool[np.ndarray, "B L"]:
        """Question or answer, not padding."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def is_answer(self) -> Bool[np.ndarray, "B L"]:
        return self.is_real & (np.arange(self.tokens.shape[1]) >= self.answer_starts[:, None])


def joined(parts: list[Examples]) -> Examples:
    """All of them in one, padded to the longest."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = [np.pad(part.tokens, ((0, 0), (0, width - part.tokens.shape[1]))) for part in parts]
    return Examples(
        np.concatenate(tokens),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.answer_starts for part in parts]),
    )


@dataclass(frozen=True)
class Task(ABC):
    """A kind of questions, as a frozen dataclass of its settings (plain values: they are kept in checkpoints)."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its metrics: `probe/<name>/...`."""

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """What each token id stands for; as many as the vocabulary has tokens."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        """`count` examples as they come in training, test questions among them."""

    @abstractmethod
    def draw_test(self, rng: np.random.Generator, count: int, name: str) -> Examples:
        """Like `draw`, for one of the test sets."""

    @property
    @abstractmethod
    def test_names(self) -> tuple[str, ...]:
        """The test sets, each with an accuracy of its own."""

    @property
    def chance(self) -> float:
        """Exact match of who guesses all that has to be searched for, and knows the rest."""
        return 0.0

    @property
    def averages(self) -> dict[str, tuple[str, ...]]:
        """Means worth having: name -> the test sets that are averaged."""
        return {}

    @property
    def named_places(self) -> dict[str, int]:
        """Tokens of the answer, from 0, whose own accuracy is worth having."""
        return {}

    @property
    def judged(self) -> tuple[str, ...]:
        """Test sets whose questions have more right answers than one: what a model writes is judged."""
        return ()

    def judge(self, examples: Examples, answers: list[list[int]]) -> Bool[np.ndarray, "B"]:
        """Whether each of these answers is right.

        Args:
            answers: tokens, one list a question; what a model wrote.
        """
        raise NotImplementedError(f"{self.name} has one right answer to each question")

    def baselines(self, name: str, examples: Examples) -> dict[str, float]:
        """Exact match on a test set of those who know nothing."""
        return {}

    @abstractmethod
    def space(self, name: str) -> int:
        """How many different questions there are for this test set."""

    def canonical(self, examples: Examples) -> Examples:
        """The same questions in the one order that stands for all that mean the same; it decides about the side."""
        return examples

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest training example."""

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def text(self, tokens: Int[np.ndarray, "L"]) -> str:
        """The example as people would read it."""
        return " ".join(self.symbols[token] for token in tokens)

    def state(self) -> dict[str, Any]:
        """What `task_from_state` needs."""
        return {"name": self.name} | asdict(self)

    def train(self, seed: int, index: int, count: int) -> Examples:
        """`count` training examples, a pure function of (seed, index); none is a test question."""
        rng = np.random.default_rng([_TRAIN, seed, index])
        parts: list[Examples] = []
        missing = count
        while missing > 0:
            drawn = self.draw(rng, missing + missing // 4 + 8)
            parts.append(drawn.take(np.flatnonzero(~is_test(self.canonical(drawn)))[:missing]))
            missing -= len(parts[-1].lengths)
        return joined(parts)

    def test(self, name: str, size: int) -> Examples:
        """`size` test examples, all different, the same every time.

        Raises:
            InputError: there are not so many questions.
        """
        rng = np.random.default_rng([_TEST, *name.encode()])
        found: dict[bytes, Examples] = {}
        for _ in range(MOST_ROUNDS if TEST_SHARE * size <= self.space(name) * 2 else 0):
            drawn = self.draw_test(rng, min(TEST_SHARE * size, MOST_DRAWN), name)
            same = self.canonical(drawn)
            for i in np.flatnonzero(is_test(same)):
                found.setdefault(same.tokens[i, : same.answer_starts[i]].tobytes(), drawn.take(np.array([i])))
            if len(found) >= size:
                return joined(list(found.values())[:size])
        raise InputError(
            f"data.test_size is {size}, and {self.name} '{name}' has {self.space(name)} different questions, of which "
            f"one in {TEST_SHARE} is for tests: take a smaller test_size, or a larger task"
        )

    def test_sets(self, size: int) -> dict[str, Examples]:
        """All test sets, `size` examples each."""
        return {name: self.test(name, size) for name in self.test_names}


_TRAIN, _TEST = 1, 2
"""First words of the seeds: training and test sets never share a stream of random numbers."""


def is_test(examples: Examples) -> Bool[np.ndarray, "B"]:
    """Whether each question is for tests: a hash of its tokens (FNV-1a, over 64 bits) decides."""
    L = int(examples.answer_starts.max(initial=0))
    in_question = np.arange(L) < examples.answer_starts[:, None]
    hashes = np.full(len(examples.lengths), 0xCBF29CE484222325, dtype=np.uint64)
    for place in range(L):
        stirred = (hashes ^ examples.tokens[:, place].astype(np.uint64)) * np.uint64(0x100000001B3)
        hashes = np.where(in_question[:, place], stirred, hashes)
    hashes ^= hashes >> np.uint64(32)  # FNV's low bits alone know little of the last tokens
    test: Bool[np.ndarray, "B"] = (hashes * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(TEST_SHARE) == 0
    return test
