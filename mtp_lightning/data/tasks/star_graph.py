"""Path finding in star graphs (Bachmann and Nagarajan, arXiv 2403.06963): the task that next-token training fails.

A star graph G(d, l) has d paths of l nodes each that all begin at the start node. The question lists the edges in
random order and names the start and the end of one of the paths; the answer is that path:

    3 7 | 0 5 | 3 0 | 7 9 | / 3 9 = 3 7 9          G(2, 3): paths 3 7 9 and 3 0 5

Only the second node of the path has to be searched for, from the goal backwards; once it is known, each next node
follows from the edges. Trained by next tokens, with the right path as input, a model learns the easy ones from the
text (the "Clever Hans cheat") and guesses the branch with probability 1 / d.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from typing_extensions import override

from mtp_lightning.data.tasks.task import Examples, Task
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range, check_ranges

_SIGNS = ("|", "/", "=")
"""After every edge; before start and goal; before the path."""


@dataclass(frozen=True)
class StarGraph(Task):
    """Star graphs G(degree, length) with nodes labelled at random.

    Raises:
        InputError: a graph that cannot be.
    """

    degree: Annotated[int, Range(least=2, most=1000)] = 2
    """d, paths from the start node."""
    length: Annotated[int, Range(least=2, most=1000)] = 5
    """l, nodes of a path, the start among them."""
    labels: Annotated[int, Range(least=3, most=10_000)] = 30
    """Labels that nodes are given, each at most once."""

    def __post_init__(self) -> None:
        check_ranges("data.task", StarGraph, vars(self))
        if self.labels < self.n_nodes:
            raise InputError(
                f"data.task.labels is {self.labels}: G({self.degree}, {self.length}) has {self.n_nodes} nodes, and "
                "each needs a label of its own"
            )

    @property
    @override
    def name(self) -> str:
        return "star_graph"

    @property
    def n_nodes(self) -> int:
        return 1 + self.n_edges

    @property
    def n_edges(self) -> int:
        return self.degree * (self.length - 1)

    @property
    @override
    def symbols(self) -> tuple[str, ...]:
        return (*map(str, range(self.labels)), *_SIGNS)

    @property
    @override
    def longest(self) -> int:
        return 3 * self.n_edges + 4 + self.length

    @property
    @override
    def test_names(self) -> tuple[str, ...]:
        return ("path",)

    @property
    @override
    def chance(self) -> float:
        """Of the right branch."""
        return 1 / self.degree

    @property
    @override
    def named_places(self) -> dict[str, int]:
        """The branch: by chance it is right in one of `degree` cases."""
        return {"branch": 1}

    @override
    def space(self, name: str) -> int:
        """Labels of all nodes in turn, the path in question first; the others' order makes no difference, nor
        does the order in which edges are listed."""
        return math.perm(self.labels, self.n_nodes) // math.factorial(self.degree - 1)

    @override
    def canonical(self, examples: Examples) -> Examples:
        """With the edges sorted: the same graph and path in another order is no other question."""
        tokens = examples.tokens.copy()
        edges = tokens[:, : 3 * self.n_edges].reshape(len(tokens), self.n_edges, 3)
        order = np.argsort(edges[:, :, 0] * self.labels + edges[:, :, 1], axis=1)
        tokens[:, : 3 * self.n_edges] = np.take_along_axis(edges, order[:, :, None], axis=1).reshape(len(tokens), -1)
        return examples._replace(tokens=tokens)

    @override
    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        nodes = rng.permuted(np.tile(np.arange(self.labels), (count, 1)), axis=1)[:, : self.n_nodes]
        start = np.broadcast_to(nodes[:, :1, None], (count, self.degree, 1))
        paths = np.concatenate([start, nodes[:, 1:].reshape(count, self.degree, self.length - 1)], axis=2)
        edges = np.stack([paths[:, :, :-1], paths[:, :, 1:]], axis=-1).reshape(count, self.n_edges, 2)
        order = np.argsort(rng.random((count, self.n_edges)), axis=1)
        edges = np.take_along_axis(edges, order[:, :, None], axis=1)
        asked = paths[:, 0]  # labels are random, so the first path is as good as any
        edge_end, ask, answer = (np.full((count, 1), self.labels + i) for i in range(3))
        tokens = np.concatenate(
            [
                np.concatenate([edges, np.broadcast_to(edge_end[:, None], (count, self.n_edges, 1))], 2).reshape(
                    count, -1
                ),
                ask,
                asked[:, :1],
                asked[:, -1:],
                answer,
                asked,
            ],
            axis=1,
        )
        lengths = np.full(count, self.longest)
        return Examples(tokens, lengths, lengths - self.length)

    @override
    def draw_test(self, rng: np.random.Generator, count: int, name: str) -> Examples:
        return self.draw(rng, count)
