"""What does this program give? CRUXEval's question (arXiv 2401.03065) for small models: programs made at random.

Output prediction asks for the value, input prediction for an input that gives it (any that does is right):

    def f(x):                       def f(x):
     v = x + 3                       v = x + 3
     w = v * 2                       w = v * 2
     return w                        return w
    assert f(7) == 20               # f(x) == 20, x = 7

A token is a name, a sign, a digit, a letter, or a piece that is always written together, as `def f(x):`; the answer
ends with a line break. Difficulty is the number of operations, each of which needs the result of the one before it.
"""

import ast
import random
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from typing_extensions import override

from mtp_lightning.data.tasks.programs import (
    HEAD,
    INNER,
    LETTERS,
    LINE,
    MOST_INPUT_LETTERS,
    MOST_LETTERS,
    PARAMETER,
    RETURN,
    STATEMENT_TOKENS,
    VARIABLES,
    Program,
    Value,
    draw_program,
    run_program,
    spell,
)
from mtp_lightning.data.tasks.task import Examples, Task, check_operations
from mtp_lightning.ranges import Range, check_ranges
from mtp_lightning.shapes import Bool

Asked = Literal["output", "input", "both"]
_ASSERT, _IS, _RESULT, _GIVEN, _END = "\nassert f(", ") == ", "\n# f(x) == ", ", x = ", "\n"
SYMBOLS = (
    *(HEAD, LINE, INNER, RETURN, _ASSERT, _IS, _RESULT, _GIVEN, _END),
    *(" = ", " + ", " - ", " * ", " % ", "-", "[", ":", "]", ".upper()", ".replace(", ", ", ")", "'"),
    *("if ", " > ", " in ", "else:", "for i in range(", "):", "i", PARAMETER, *VARIABLES),
    *map(str, range(10)), *LETTERS, *LETTERS.upper(),
)  # fmt: skip
_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}
_VARIABLES = [_IDS[name] for name in VARIABLES]
_INPUT_SETS = "input_"
_CONSTANTS = 20
"""Answers that are tried for the best one to give always: many inputs give one value, so the most frequent answer need
not be right the most often."""


@dataclass(frozen=True)
class Execution(Task):
    """Straight-line programs over integers or strings, and their values.

    Raises:
        InputError: numbers of operations that cannot be.
    """

    train_operations: Annotated[int, Range(least=1, most=100)] = 4
    """Training programs have 1 to so many operations, uniformly."""
    test_operations: Annotated[int, Range(least=1, most=100)] = 6
    """There is a test set for each number of operations up to this one."""
    predict: Asked = "output"
    """What is asked: the value, an input that gives it, or either, equally often."""

    def __post_init__(self) -> None:
        check_ranges("data.task", Execution, vars(self))
        check_operations(self.train_operations, self.test_operations)

    @property
    @override
    def name(self) -> str:
        return "execution"

    @property
    @override
    def symbols(self) -> tuple[str, ...]:
        return SYMBOLS

    @override
    def text(self, tokens: np.ndarray) -> str:
        """Python."""
        return "".join(SYMBOLS[token] for token in tokens)

    @property
    @override
    def longest(self) -> int:
        """Header, statements, return, question, a string in quotes on both of its sides, and the end."""
        return 1 + STATEMENT_TOKENS * self.train_operations + 3 + 2 + MOST_INPUT_LETTERS + MOST_LETTERS + 4 + 1

    @property
    @override
    def test_names(self) -> tuple[str, ...]:
        """`m_1` ... for outputs, `input_m_1` ... for inputs."""
        sizes = [f"m_{m}" for m in range(1, self.test_operations + 1)]
        outputs = sizes if self.predict != "input" else []
        return (*outputs, *(f"{_INPUT_SETS}{size}" for size in sizes if self.predict != "output"))

    @property
    @override
    def averages(self) -> dict[str, tuple[str, ...]]:
        """`in_domain`, numbers of operations that were trained, and `out_of_domain`; the same of inputs."""
        found: dict[str, tuple[str, ...]] = {}
        for kind in (name for name in ("", _INPUT_SETS) if f"{name}m_1" in self.test_names):
            sets = [f"{kind}m_{m}" for m in range(1, self.test_operations + 1)]
            found[f"{kind}in_domain"] = tuple(sets[: self.train_operations])
            if sets[self.train_operations :]:
                found[f"{kind}out_of_domain"] = tuple(sets[self.train_operations :])
        return found

    @override
    def space(self, name: str) -> int:
        """A lower bound: conditions on integers alone have 30 branches each way and 10 limits."""
        bound: int = 9000 ** _operations(name)
        return bound

    @override
    def draw(self, rng: np.random.Generator, count: int) -> Examples:
        operations = rng.integers(1, self.train_operations + 1, size=count).tolist()
        asks_input = rng.random(count) < {"output": 0.0, "input": 1.0, "both": 0.5}[self.predict]
        chance = _chance(rng)
        return _examples([_written(draw_program(chance, m), x) for m, x in zip(operations, asks_input.tolist())])

    @override
    def draw_test(self, rng: np.random.Generator, count: int, name: str) -> Examples:
        chance, m = _chance(rng), _operations(name)
        return _examples([_written(draw_program(chance, m), name.startswith(_INPUT_SETS)) for _ in range(count)])

    @override
    def canonical(self, examples: Examples) -> Examples:
        """Program and value, whatever is asked, with variables named in the order in which they come: a question never
        is on the other side than the one it is the answer of, nor than the same with other names."""
        rows = []
        for row in range(len(examples.lengths)):
            program, _, result = _parts(examples, row)
            names = dict(zip(dict.fromkeys(i for i in program if i in _VARIABLES), _VARIABLES))
            key = [names.get(i, i) for i in program] + result
            rows.append((key, len(key)))
        return _examples(rows)

    @property
    @override
    def judged(self) -> tuple[str, ...]:
        return tuple(name for name in self.test_names if name.startswith(_INPUT_SETS))

    @override
    def judge(self, examples: Examples, answers: list[list[int]]) -> Bool[np.ndarray, "B"]:
        """Whether each is the literal of an input that gives the value that was asked for."""
        right = [self._gives(*_parts(examples, row)[::2], answer) for row, answer in enumerate(answers)]
        return np.array(right, dtype=np.bool_)

    def _gives(self, program: list[int], result: list[int], answer: list[int]) -> bool:
        ended = answer[-1:] == [_IDS[_END]]
        given = _literal(self.text(np.array(answer[:-1], dtype=np.int64))) if ended else None
        wanted = _literal(self.text(np.array(result, dtype=np.int64)))
        return given is not None and run_program(self.text(np.array(program)), given) == wanted

    @override
    def baselines(self, name: str, examples: Examples) -> dict[str, float]:
        """`copy`: who answers with what the question gives, the input or the value. `constant`: who always gives the
        same answer, the best of the 20 most frequent ones of this very test set; both judged as answers are."""
        rows = range(len(examples.lengths))
        parts = [_parts(examples, row) for row in rows]
        frequent = Counter(tuple(_answer(examples, row)) for row in rows).most_common(_CONSTANTS)
        if name in self.judged:
            end = _IDS[_END]
            copied = self.judge(examples, [[*result, end] for _, _, result in parts]).mean()
            constant = max(self.judge(examples, [[*answer, end]] * len(parts)).mean() for answer, _ in frequent)
        else:
            copied, constant = np.mean([given == result for _, given, result in parts]), frequent[0][1] / len(parts)
        return {"copy": float(copied), "constant": float(constant)}


def _chance(rng: np.random.Generator) -> random.Random:
    """Python's own generator draws single numbers much sooner than numpy's."""
    return random.Random(int(rng.integers(2**62)))


def _written(program: Program, asks_input: bool) -> tuple[list[int], int]:
    """(tokens of question and answer, where the answer starts)."""
    given, result = spell(program.given), spell(program.result)
    first, second, signs = (result, given, (_RESULT, _GIVEN)) if asks_input else (given, result, (_ASSERT, _IS))
    question = [*program.symbols, signs[0], *first, signs[1]]
    return [_IDS[symbol] for symbol in (*question, *second, _END)], len(question)


def _examples(rows: list[tuple[list[int], int]]) -> Examples:
    """
    Args:
        rows: (tokens, where the answer starts) of each.
    """
    lengths = np.array([len(ids) for ids, _ in rows])
    tokens = np.zeros((len(rows), int(lengths.max(initial=0))), dtype=np.int64)
    for row, (ids, _) in enumerate(rows):
        tokens[row, : len(ids)] = ids
    return Examples(tokens, lengths, np.array([start for _, start in rows]))


def _answer(examples: Examples, row: int) -> list[int]:
    """Without its end."""
    found: list[int] = examples.tokens[row, examples.answer_starts[row] : examples.lengths[row] - 1].tolist()
    return found


def _parts(examples: Examples, row: int) -> tuple[list[int], list[int], list[int]]:
    """(program, given, result) of an example, in tokens."""
    question, answer = examples.tokens[row, : examples.answer_starts[row]].tolist(), _answer(examples, row)
    asks_input = question[-1] == _IDS[_GIVEN]
    at = question.index(_IDS[_RESULT if asks_input else _ASSERT])
    shown = question[at + 1 : -1]
    return question[:at], *((answer, shown) if asks_input else (shown, answer))


def _literal(text: str) -> Value | None:
    """The integer or string that a text is the literal of; None for any other text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if type(value) in (int, str) else None


def _operations(name: str) -> int:
    return int(name.rpartition("_")[2])
