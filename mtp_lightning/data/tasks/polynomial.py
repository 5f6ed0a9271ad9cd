"""Arithmetic of polynomials over a finite field (paper, section 4.2 and appendix K).

Expressions with m operations on elements of F_p[X] / (X^d), p = 7 and d = 5 in the paper, and their value:

    + 1 0 0 3 2 neg 6 0 1 0 0 = 2 0 6 3 2          m = 2, coefficients from X^0 upwards

The operations are negation, addition, multiplication, and composition f o g: f, taken as the polynomial of degree below
d that it is written as, evaluated at g. (Where g has a constant term, another representative of f would have another
value.) Products and powers are cut at X^d.

What the paper leaves open is chosen here: prefix notation, which needs no brackets; every operation one of the four
with equal chance; a binary one leaves its left side a uniform number of the operations that are still to be had;
coefficients uniform, a token each, and all d of them always written.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from typing_extensions import override

from mtp_lightning.data.tasks.task import Examples, Task, check_operations
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range, check_ranges
from mtp_lightning.shapes import Bool, Int

_SIGNS = ("neg", "+", "*", "o", ".", "=")
"""The operations, the pause, and what the answer follows."""
_NEG, _ADD, _MUL, _COMPOSE = range(4)
_NONE, _OPERAND = -2, -1
_Length = Annotated[int, Range(least=1, most=1000)]


class _Expressions(NamedTuple):
    """B expressions as slots from left to right."""

    slots: Int[np.ndarray, "B S"]
    """An operation, an operand, or nothing after the end."""
    operands: Int[np.ndarray, "B S d"]
    """Coefficients, where the slot is an operand."""


@dataclass(frozen=True)
class Polynomial(Task):
    """Expressions over F_modulus[X] / (X^degree).

    Raises:
        InputError: no such ring, or no such numbers of operations.
    """

    modulus: Annotated[int, Range(least=2, most=10_000)] = 7
    """p, a prime."""
    degree: _Length = 5
    """d, coefficients of a polynomial."""
    train_operations: _Length = 5
    """Training expressions have 1 to so many operations, uniformly."""
    test_operations: _Length = 10
    """There is a test set for each number of operations up to this one."""
    pause_tokens: Annotated[int, Range(least=0, most=1000)] = 0
    """Pauses between the expression and "=" (Goyal et al. 2023), the same number always."""

    def __post_init__(self) -> None:
        check_ranges("data.task", Polynomial, vars(self))
        if any(self.modulus % factor == 0 for factor in range(2, int(self.modulus**0.5) + 1)):
            raise InputError(
                f"data.task.modulus is {self.modulus}: the coefficients are of a field F_p, so p is a prime"
            )
        check_operations(self.train_operations, self.test_operations)

    @property
    @override
    def name(self) -> str:
        return "polynomial"

    @property
    @override
    def symbols(self) -> tuple[str, ...]:
        return (*map(str, range(self.modulus)), *_SIGNS)

    @property
    @override
    def longest(self) -> int:
        """All operations binary: m operations and m + 1 operands."""
        m = self.train_operations
        return m + (m + 1) * self.degree + self.pause_tokens + 1 + self.degree

    @property
    @override
    def test_names(self) -> tuple[str, ...]:
        return tuple(f"m_{m}" for m in range(1, self.test_operations + 1))

    @property
    @override
    def averages(self) -> dict[str, tuple[str, ...]]:
        """`in_domain`, numbers of operations that were trained, and `out_of_domain`."""
        trained, others = self.test_names[: self.train_operations], self.test_names[self.train_operations :]
        return {"in_domain": trained} | ({"out_of_domain": others} if others else {})

    @override
    def space(self, name: str) -> int:
        """Expressions with so many operations: S(0) = p^d, S(m) = S(m - 1) + 3 sum_i S(i) S(m - 1 - i)."""
        counts: list[int] = [self.modulus**self.degree]
        for m in range(1, _operations(name) + 1):
            counts.append(counts[-1] + 3 * sum(counts[i] * counts[m - 1 - i] for i in range(m)))
        return counts[-1]

    @override
    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        return self._examples(rng, rng.integers(1, self.train_operations + 1, size=count))

    @override
    def draw_test(self, rng: np.random.Generator, count: int, name: str) -> Examples:
        return self._examples(rng, np.full(count, _operations(name)))

    def _examples(self, rng: np.random.Generator, operations_B: Int[np.ndarray, "B"]) -> Examples:
        slots = draw_slots(rng, operations_B)
        operands = rng.integers(0, self.modulus, size=(*slots.shape, self.degree))
        return self._written(_Expressions(slots, operands))

    def _written(self, expressions: _Expressions) -> Examples:
        """Tokens of the expressions and their values."""
        slots, operands = expressions
        widths = np.where(slots == _OPERAND, self.degree, (slots >= 0).astype(np.int64))
        starts = np.cumsum(widths, axis=1) - widths
        ends = widths.sum(axis=1)
        answer_starts = ends + self.pause_tokens + 1
        lengths = answer_starts + self.degree
        tokens = np.zeros((len(slots), int(lengths.max())), dtype=np.int64)
        rows, columns = np.nonzero(slots >= 0)
        tokens[rows, starts[rows, columns]] = self.modulus + slots[rows, columns]
        rows, columns = np.nonzero(slots == _OPERAND)
        coefficients = np.arange(self.degree)
        tokens[rows[:, None], starts[rows, columns][:, None] + coefficients] = operands[rows, columns]
        every = np.arange(len(slots))[:, None]
        pause, equals = self.modulus + len(_SIGNS) - 2, self.modulus + len(_SIGNS) - 1
        tokens[every, ends[:, None] + np.arange(self.pause_tokens)] = pause
        tokens[every[:, 0], answer_starts - 1] = equals
        tokens[every, answer_starts[:, None] + coefficients] = evaluate(slots, operands, self.modulus)
        return Examples(tokens, lengths, answer_starts)


def draw_slots(rng: np.random.Generator, operations_B: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B S"]:
    """Random expressions with these numbers of operations, S = 2 max + 1 slots each.

    A stack holds how many operations each part that is still to be written has.
    """
    most = int(operations_B.max())
    every = np.arange(len(operations_B))
    stack = np.zeros((len(operations_B), most + 2), dtype=np.int64)
    stack[:, 0] = operations_B
    height = np.ones(len(operations_B), dtype=np.int64)
    slots = np.full((len(operations_B), 2 * most + 1), _NONE, dtype=np.int64)
    for place in range(2 * most + 1):
        unfinished = height > 0
        top = np.maximum(height - 1, 0)
        left_to_have = stack[every, top]
        operation = rng.integers(0, 4, size=len(every))
        mine = rng.integers(0, np.maximum(left_to_have, 1))
        written = np.where(left_to_have == 0, _OPERAND, operation)
        slots[unfinished, place] = written[unfinished]
        operand, unary = unfinished & (written == _OPERAND), unfinished & (written == _NEG)
        binary = unfinished & (written > _NEG)
        height[operand] -= 1
        stack[unary, top[unary]] -= 1
        stack[binary, top[binary]] = left_to_have[binary] - 1 - mine[binary]
        stack[binary, height[binary]] = mine[binary]
        height[binary] += 1
    return slots


def evaluate(slots: Int[np.ndarray, "B S"], operands: Int[np.ndarray, "B S d"], modulus: int) -> Int[np.ndarray, "B d"]:
    """Coefficients of every expression's value: read from the right, operands are put on a stack, and operations take
    theirs from it, the left one on top."""
    stack = np.zeros((len(slots), slots.shape[1] + 1, operands.shape[2]), dtype=np.int64)
    height = np.zeros(len(slots), dtype=np.int64)
    for place in reversed(range(slots.shape[1])):
        here = slots[:, place]

        def rows(chosen: Bool[np.ndarray, "B"]) -> tuple[np.ndarray, np.ndarray]:
            (found,) = np.nonzero(chosen)
            return found, height[found]

        at, h = rows(here == _OPERAND)
        stack[at, h] = operands[at, place]
        height[at] += 1
        at, h = rows(here == _NEG)
        stack[at, h - 1] = -stack[at, h - 1] % modulus
        for operation, apply in ((_ADD, add), (_MUL, product), (_COMPOSE, compose)):
            at, h = rows(here == operation)
            stack[at, h - 2] = apply(stack[at, h - 1], stack[at, h - 2], modulus)
            height[at] -= 1
    return stack[:, 0]


def add(f: Int[np.ndarray, "B d"], g: Int[np.ndarray, "B d"], modulus: int) -> Int[np.ndarray, "B d"]:
    total: Int[np.ndarray, "B d"] = (f + g) % modulus
    return total


def product(f: Int[np.ndarray, "B d"], g: Int[np.ndarray, "B d"], modulus: int) -> Int[np.ndarray, "B d"]:
    """f g, cut at X^d."""
    out: Int[np.ndarray, "B d"] = np.zeros_like(f)
    for power in range(f.shape[1]):
        out[:, power:] += f[:, power, None] * g[:, : f.shape[1] - power]
    out %= modulus
    return out


def compose(f: Int[np.ndarray, "B d"], g: Int[np.ndarray, "B d"], modulus: int) -> Int[np.ndarray, "B d"]:
    """f(g), cut at X^d, by Horner's rule."""
    out = np.zeros_like(f)
    for coefficient in f.T[::-1]:
        out = product(out, g, modulus)
        out[:, 0] = (out[:, 0] + coefficient) % modulus
    return out


def _operations(name: str) -> int:
    return int(name.removeprefix("m_"))
