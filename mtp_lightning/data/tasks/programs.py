"""Random programs of a few lines over small integers or short strings, written in the tokens of `execution.py`.

Every statement takes the result of the one before it, so a value comes out only after all of them, one after the other:

    def f(x):
     v = x + 3
     if v > 7:
      w = v * 2
     else:
      w = v - x
     return w

Values are Python's own: a statement is run as it is written, and drawn again where its result is out of bounds.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple, TypeVar

Value = int | str
T = TypeVar("T")

LARGEST, MOST_LETTERS = 999, 10
"""Bounds of every value on the way: of an integer's size, and of a string's length."""
LARGEST_INPUT, MOST_INPUT_LETTERS = 20, 5
LETTERS = "abcdefgh"
PARAMETER, VARIABLES = "x", ("v", "w", "y", "z")
HEAD, RETURN, LINE, INNER = "def f(x):", "return ", "\n ", "\n  "
STATEMENT_TOKENS = 30
"""Of the longest statement: a condition on strings."""
_LOOP = 3
_SCOPE = {"__builtins__": {"range": range}}
"""All that statements may call."""


class Program(NamedTuple):
    """A program, what it was asked with, and what Python says that it gives."""

    symbols: list[str]
    """Its text in tokens, from `def` to the returned variable."""
    given: Value
    result: Value


def draw_program(chance: random.Random, operations: int) -> Program:
    """A program of so many statements, one operation each (a condition and a loop are one, too)."""
    given: Value = _input(chance)
    known: dict[str, Value] = {PARAMETER: given}
    last, symbols = PARAMETER, [HEAD]
    while operations:
        write = _pick(chance, _OF_INTEGERS if isinstance(given, int) else _OF_STRINGS)
        statement, target = write(chance, last, known)
        after = dict(known)
        exec(_compiled("".join(statement)), _SCOPE, after)  # written right here, out of the templates below
        after.pop("i", None)
        if not _in_bounds(after[target]):
            continue
        known, last, operations = after, target, operations - 1
        symbols += statement
    return Program([*symbols, LINE, RETURN, last], given, known[last])


def run_program(text: str, given: Value) -> Value | None:
    """What a program of `draw_program`, as text, gives for any input; None where it fails on it."""
    scope: dict[str, Any] = dict(_SCOPE)
    exec(_code(text), scope)  # one of our own programs: of what a model wrote there is only `given`, a value
    try:
        result: Value = scope["f"](given)
    except (TypeError, ValueError, AttributeError, IndexError):  # a string for a number, or the other way round
        return None
    return result


@lru_cache(maxsize=1 << 12)
def _code(text: str) -> CodeType:
    """Of a whole program: a test set is run with many inputs."""
    return compile(text, "<program>", "exec")


@lru_cache(maxsize=1 << 16)
def _compiled(statement: str) -> CodeType:
    """A statement on its own, one level further out than in its function."""
    return compile(statement.replace(LINE, "\n"), "<statement>", "exec")


def _in_bounds(value: Value) -> bool:
    return len(value) <= MOST_LETTERS if isinstance(value, str) else abs(value) <= LARGEST


def _input(chance: random.Random) -> Value:
    if chance.random() < 0.5:
        return _below(chance, 2 * LARGEST_INPUT + 1) - LARGEST_INPUT
    return "".join(_pick(chance, LETTERS) for _ in range(1 + _below(chance, MOST_INPUT_LETTERS)))


def spell(value: Value) -> list[str]:
    """The tokens of its `repr`: a sign, digits; quotes, letters."""
    return list(repr(value))


Statement = tuple[list[str], str]
"""Its tokens, and the variable that holds its result."""
_Write = Callable[[random.Random, str, dict[str, Value]], Statement]


def _calculation(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target, sign = _pick(chance, VARIABLES), _pick(chance, (" + ", " - ", " * "))
    other = _pick(chance, [*known]) if chance.random() < 0.3 else str(_below(chance, 10))
    sides = [other, last] if sign == " - " and chance.random() < 0.3 else [last, other]
    return [LINE, target, " = ", sides[0], sign, sides[1]], target


def _remainder(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target = _pick(chance, VARIABLES)
    return [LINE, target, " = ", last, " % ", str(2 + _below(chance, 8))], target


def _comparison(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    """With a number near the value, so that both branches are taken equally often."""
    target, value = _pick(chance, VARIABLES), known[last]
    assert isinstance(value, int)
    branches = [
        [INNER, target, " = ", last, _pick(chance, (" + ", " - ", " * ")), str(_below(chance, 10))] for _ in range(2)
    ]
    limit = spell(value + _below(chance, 10) - 5)
    return [LINE, "if ", last, " > ", *limit, ":", *branches[0], LINE, "else:", *branches[1]], target


def _counting(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    what = _pick(chance, ("i", str(1 + _below(chance, 9))))
    sign = _pick(chance, (" + ", " - ")) if what == "i" else _pick(chance, (" + ", " - ", " * "))
    return [*_loop(chance), last, " = ", last, sign, what], last


def _joining(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target = _pick(chance, VARIABLES)
    other = [_pick(chance, [*known])] if chance.random() < 0.3 else _literal(chance)
    sides = [[last], other] if chance.random() < 0.5 else [other, [last]]
    return [LINE, target, " = ", *sides[0], " + ", *sides[1]], target


def _slicing(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target = _pick(chance, VARIABLES)
    return [LINE, target, " = ", last, *_slice(chance, known[last])], target


def _upper(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target = _pick(chance, VARIABLES)
    return [LINE, target, " = ", last, ".upper()"], target


def _replacing(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target, old, new = _pick(chance, VARIABLES), _letter(chance, known[last]), _pick(chance, LETTERS)
    return [LINE, target, " = ", last, ".replace(", *spell(old), ", ", *spell(new), ")"], target


def _containing(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    target = _pick(chance, VARIABLES)
    branches = [
        [last, " + ", *_literal(chance)] if chance.random() < 0.5 else [last, *_slice(chance, known[last])]
        for _ in range(2)
    ]
    yes, no = ([INNER, target, " = ", *branch] for branch in branches)
    return [LINE, "if ", *spell(_letter(chance, known[last])), " in ", last, ":", *yes, LINE, "else:", *no], target


def _repeating(chance: random.Random, last: str, known: dict[str, Value]) -> Statement:
    return [*_loop(chance), last, " = ", last, " + ", *spell(_pick(chance, LETTERS))], last


_OF_INTEGERS: tuple[_Write, ...] = (_calculation, _calculation, _calculation, _remainder, _comparison, _counting)
_OF_STRINGS: tuple[_Write, ...] = (_joining, _slicing, _upper, _replacing, _containing, _repeating)


def _loop(chance: random.Random) -> list[str]:
    return [LINE, "for i in range(", str(2 + _below(chance, _LOOP - 1)), "):", INNER]


def _literal(chance: random.Random) -> list[str]:
    return spell("".join(_pick(chance, LETTERS) for _ in range(1 + _below(chance, 3))))


def _letter(chance: random.Random, value: Value) -> str:
    """Half of the time one that the string has."""
    return _pick(chance, str(value)) if value and chance.random() < 0.5 else _pick(chance, LETTERS)


def _slice(chance: random.Random, value: Value) -> list[str]:
    """`[1:]`, `[:3]` or `[1:3]`, inside the string where it is long enough."""
    first = _below(chance, min(3, len(str(value)) + 1))
    after = first + 1 + _below(chance, 4)
    return _pick(
        chance, (["[", str(first), ":", "]"], ["[", ":", str(after), "]"], ["[", str(first), ":", str(after), "]"])
    )


def _below(chance: random.Random, n: int) -> int:
    return int(chance.random() * n)


def _pick(chance: random.Random, options: Sequence[T]) -> T:
    return options[int(chance.random() * len(options))]
