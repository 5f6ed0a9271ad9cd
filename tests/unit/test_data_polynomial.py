"""Polynomial arithmetic: the ground truth is sympy's, the distribution is the one that is described."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import sympy
from sympy.abc import X

from mtp_lightning.data.tasks.polynomial import Polynomial, draw_slots, evaluate
from mtp_lightning.errors import InputError

BINARY = {"+": 2, "*": 2, "o": 2, "neg": 1}


def parse(words: list[str], task: Polynomial) -> tuple[sympy.Expr, list[str]]:
    """(value of the expression that the words begin with, by sympy and unreduced but for powers; the words left)."""
    if words[0] not in BINARY:
        coefficients, rest = words[: task.degree], words[task.degree :]
        return sum(int(c) * X**i for i, c in enumerate(coefficients)) + sympy.Integer(0), rest
    operation, rest = words[0], words[1:]
    f, rest = parse(rest, task)
    if operation == "neg":
        return reduce(-f, task), rest
    g, rest = parse(rest, task)
    value = {"+": f + g, "*": f * g, "o": f.subs(X, g)}[operation]
    return reduce(sympy.sympify(value), task), rest


def reduce(f: sympy.Expr, task: Polynomial) -> sympy.Expr:
    poly = sympy.Poly(f, X, modulus=task.modulus, symmetric=False)
    return sum(c * X**i for (i,), c in poly.terms() if i < task.degree) + sympy.Integer(0)


def coefficients(f: sympy.Expr, task: Polynomial) -> list[int]:
    poly = sympy.Poly(f, X)
    return [int(poly.coeff_monomial(X**i)) % task.modulus for i in range(task.degree)]


@pytest.mark.parametrize(
    "task",
    [
        Polynomial(),
        Polynomial(pause_tokens=5),
        Polynomial(modulus=2, degree=1),
        Polynomial(modulus=3, degree=2, train_operations=2, test_operations=3),
        Polynomial(modulus=11, degree=4),
    ],
    ids=str,
)
def test_answers_are_sympys(task: Polynomial) -> None:
    rng = np.random.default_rng(0)
    sets = [task.draw(rng, 20), task.draw_test(rng, 5, task.test_names[-1])]
    for examples in sets:
        for row, length, start in zip(examples.tokens, examples.lengths, examples.answer_starts):
            words = task.text(row[:length]).split()
            question, answer = words[: start - 1 - task.pause_tokens], words[start:]
            assert words[len(question) : start] == ["."] * task.pause_tokens + ["="]
            value, rest = parse(question, task)
            assert not rest
            assert list(map(int, answer)) == coefficients(value, task)
            assert not row[length:].any()


def test_a_composition_by_hand() -> None:
    """f = 1 + 2 X, g = 3 + X^2 over F_5[X]/(X^3): f(g) = 7 + 2 X^2, g(f) = 4 + 4 X + 4 X^2."""
    f, g = [1, 2, 0], [3, 0, 1]
    slots = np.array([[3, -1, -1]])
    assert evaluate(slots, np.array([[[0, 0, 0], f, g]]), 5).tolist() == [[2, 0, 2]]
    assert evaluate(slots, np.array([[[0, 0, 0], g, f]]), 5).tolist() == [[4, 4, 4]]


def test_each_test_set_has_its_number_of_operations() -> None:
    task = Polynomial(test_operations=7)
    for m, (name, examples) in enumerate(task.test_sets(50).items(), start=1):
        assert name == f"m_{m}"
        operations = (examples.tokens >= 7) & (examples.tokens < 11)
        assert (operations.sum(axis=1) == m).all()
        assert len({row.tobytes() for row in examples.tokens}) == 50
        again = task.test(name, 50)
        assert np.array_equal(again.tokens, examples.tokens)


def test_expressions_are_drawn_as_described() -> None:
    """Chi-square at fixed seed: numbers of operations and operations uniform; and so is the left side's share."""
    task, n = Polynomial(), 20_000
    examples = task.draw(np.random.default_rng(1), n)
    operations = np.where((examples.tokens >= 7) & (examples.tokens < 11), examples.tokens - 7, -1)
    assert uniform(Counter((operations >= 0).sum(axis=1).tolist()), range(1, 6))
    assert uniform(Counter(operations[:, 0].tolist()), range(4))
    in_question = np.arange(examples.tokens.shape[1]) < examples.answer_starts[:, None]
    assert uniform(Counter(examples.tokens[in_question & (examples.tokens < 7)].tolist()), range(7))
    slots = draw_slots(np.random.default_rng(2), np.full(n, 4))
    left = [size(row[1:])[1] for row in slots.tolist() if row[0] > 0]
    assert uniform(Counter(left), range(4))


def uniform(counts: Counter[int], values: range) -> bool:
    """Whether chi-square is below what one in 10,000 exceeds, for up to six degrees of freedom."""
    assert set(counts) == set(values)
    expected = counts.total() / len(values)
    return sum((counts[v] - expected) ** 2 / expected for v in values) < 27.9


def size(slots: list[int]) -> tuple[int, int]:
    """(slots, operations) of the expression that these begin with."""
    if slots[0] == -1:
        return 1, 0
    taken, operations = 1, 1
    for _ in range(1 if slots[0] == 0 else 2):
        more, inside = size(slots[taken:])
        taken, operations = taken + more, operations + inside
    return taken, operations


def test_the_space_is_counted_right() -> None:
    """All expressions of a ring of two elements with up to two operations, one by one."""
    task = Polynomial(modulus=2, degree=1, train_operations=1, test_operations=3)

    def expressions(m: int) -> list[str]:
        if m == 0:
            return ["0", "1"]
        found = [f"neg {f}" for f in expressions(m - 1)]
        for i, sign in product(range(m), "+*o"):
            found += [f"{sign} {f} {g}" for f in expressions(i) for g in expressions(m - 1 - i)]
        return found

    for m in (1, 2, 3):
        assert task.space(f"m_{m}") == len(set(expressions(m)))


def test_averages_are_of_trained_and_of_untrained_numbers_of_operations() -> None:
    means = Polynomial(train_operations=2, test_operations=3).averages
    assert means == {"in_domain": ("m_1", "m_2"), "out_of_domain": ("m_3",)}
    assert Polynomial(train_operations=2, test_operations=2).averages == {"in_domain": ("m_1", "m_2")}


def test_longest_is_reached_and_never_passed() -> None:
    task = Polynomial(train_operations=2, pause_tokens=3)
    lengths = task.draw(np.random.default_rng(0), 2000).lengths
    assert lengths.max() == task.longest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modulus": 6}, r"data\.task\.modulus is 6: .* a prime"),
        ({"modulus": 1}, r"data\.task\.modulus is 1"),
        ({"degree": 0}, r"data\.task\.degree is 0"),
        ({"train_operations": 0}, r"data\.task\.train_operations is 0: it has to be at least 1"),
        ({"test_operations": 3}, r"data\.task\.test_operations is 3, and data\.task\.train_operations is 5"),
        ({"pause_tokens": -1}, r"data\.task\.pause_tokens is -1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Polynomial(**settings)
