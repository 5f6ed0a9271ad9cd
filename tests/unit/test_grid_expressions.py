"""Expressions: what they mean, that they agree with Python where they look like it, and what they refuse."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.expressions import Expression

VALUES: dict[str, Any] = {
    "model.heads.n_future": 4,
    "model.heads": "conf/heads/linear.yaml",
    "model.compile": True,
    "optimizer.lr": 3e-4,
    "optimizer.betas": [0.9, 0.95],
    "warmup.lr": "auto",
    "data.init_args.seed": 7,
    "trainer.clip": None,
    "seed": 1,
}


def holds(text: str) -> bool:
    return Expression(text, [key for key in VALUES if key != "seed"]).holds(VALUES)


TRUE = [
    "n_future == 4",
    "model.heads.n_future == 4.0",
    "heads.n_future > 3",
    "3 < n_future <= 4",
    "n_future != 5 and not n_future > 5",
    "n_future > 5 or (n_future, 1) == [4, 1]",
    "n_future in [1, 4]",
    "n_future not in (1, 2)",
    "n_future * 2 + 1 - 3 == 6",
    "n_future // 3 == 1 and n_future % 3 == 1 and n_future / 8 == 0.5",
    "-n_future < 0 < +n_future",
    "optimizer.lr <= 1e-3",
    "optimizer.lr == 3.0e-4",
    "betas == [0.9, 0.95]",
    "0.9 in betas",
    "heads == 'linear'",
    "'conf/heads/linear.yaml' == model.heads",
    "heads in ['linear', 'causal']",
    "'lin' in heads",
    "heads != 'lin'",
    "warmup.lr != 'auto' and warmup.lr > 1 or warmup.lr < 'b'",
    "compile",
    "compile == true",
    "compile != 1",
    "clip == None and clip == null",
    "seed == 1",
    "init_args.seed == 7",
    "  n_future == 4\n",
]


@pytest.mark.parametrize("text", TRUE)
def test_it_holds(text: str) -> None:
    assert holds(text)
    assert not holds(f"not ({text.strip()})")


REFUSED = {
    "n_future >": "is not an expression such as n_future > 4: invalid syntax",
    "n_future = 4": "is not an expression",
    "n_futur > 4": r"unknown name 'n_futur'; did you mean 'n_future'\?",
    "heads == linear": "unknown name 'linear'.*text goes in quotes",
    "lr > 1": "'lr' may be optimizer.lr or warmup.lr",
    "n_future": "4 is a number, and neither true nor false",
    "n_future and seed": "4 is a number, and neither",
    "not n_future": "4 is a number, and neither",
    "heads > 4": r"'conf/heads/linear.yaml' \(text\) and 4 \(a number\) have no order",
    "compile > 0": r"True \(true/false\) and 0 \(a number\) have no order",
    "clip < 1": r"None \(empty\) and 1",
    "heads + 1 == 2": "'conf/heads/linear.yaml' is text, and not a number",
    "-compile == 1": "True is true/false, and not a number",
    "n_future / (seed - 1) == 1": "division by zero",
    "%s / 2 == n_future" % 10**400: "integer division result too large for a float",
    "1 in n_future": "nothing is in 4, which is a number; give a list",
    "n_future is 4": "'is' is not understood; write == or !=",
    "n_future ** 2 == 16": r"'n_future \*\* 2' is not understood",
    "abs(n_future) > 1": r"'abs\(n_future\)' is not understood",
    "__import__('os').system('true') == 0": "is not understood",
    "n_future.__class__ == 1": "unknown name 'n_future.__class__'",
    "betas[0] == 0.9": r"'betas\[0\]' is not understood",
    "[n for n in betas] == 1": "is not understood",
    "(lambda: 1) == 1": "is not understood",
    "n_future == 4 if seed else 1": "is not understood",
    "(x := 4) == 4": "is not understood",
    "f'{seed}' == '1'": "is not understood",
    "b'x' == 1": "is not understood",
    "1j == 1": "is not understood",
    "~n_future == 1": "is not understood",
    "n_future & 1 == 1": "is not understood",
    "": "is not an expression",
    "(" * 300: "is not an expression",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_it_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        holds(text)
    assert str(caught.value).startswith(f"'{text}': ")


def test_it_knows_what_it_looks_at() -> None:
    assert Expression("n_future > 1 and seed == 2", ["model.heads.n_future"]).keys == {"model.heads.n_future", "seed"}


NUMBERS = st.integers(-3, 3) | st.floats(-3, 3)
LEAVES = st.sampled_from(["a", "b.c", "1", "2.5", "0"])


@st.composite
def numeric(draw: st.DrawFn, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(LEAVES)
    operator = draw(st.sampled_from(["+", "-", "*"]))
    return f"({draw(numeric(depth - 1))} {operator} {draw(numeric(depth - 1))})"


@st.composite
def condition(draw: st.DrawFn, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
        return f"{draw(numeric())} {draw(operators)} {draw(numeric())} {draw(operators)} {draw(numeric())}"
    joined = f"({draw(condition(depth - 1))}) {draw(st.sampled_from(['and', 'or']))} ({draw(condition(depth - 1))})"
    return draw(st.sampled_from([joined, f"not ({joined})"]))


@settings(deadline=None)
@given(condition(), NUMBERS, NUMBERS)
def test_on_numbers_it_is_python(text: str, a: float, c: float) -> None:
    expected = eval(text.replace("b.c", "c"), {"a": a, "c": c})
    assert Expression(text, ["x.a", "b.c"]).holds({"x.a": a, "b.c": c}) == expected
