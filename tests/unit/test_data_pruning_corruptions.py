"""The corruptions do what they say: two break the syntax, three do not, and each edits what it is named after."""

import ast
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_lightning.data.pruning.corruptions import CORRUPTIONS, beginning, corrupt

SOURCE = '''"""A module (of "sorts") == x."""
import os

LIMIT: int = 3
größe = {"a": [1, 2], "b": f"{LIMIT == 3} and {LIMIT}"}  # x = (1


def first(rows, key=None, *, most=(2 + 1)):
    total, i = 0, 1
    first.calls = größe["a"][0] + rows[i] - rows[i - 1] + rows[-1]
    if len(rows) >= most and not (total == 2 or rows[0] < LIMIT):
        total += rows[
            i
        ]
    a = b = [x for x in rows if x != key]
    x = lambda y=1: y <= 2
    rows[0] *= 2
    return total
'''
BROKEN = ("brackets", "names")
KINDS = tuple(CORRUPTIONS)


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_syntax_breaks_where_it_is_said_to(kind: str, rate: float) -> None:
    for seed in range(10):
        made = CORRUPTIONS[kind](SOURCE, Random(seed), rate)
        assert made.edits > 0
        assert made.text != SOURCE
        assert parses(made.text) == (kind not in BROKEN)
        assert made == CORRUPTIONS[kind](SOURCE, Random(seed), rate)


def test_brackets_are_removed_and_nothing_else() -> None:
    made = CORRUPTIONS["brackets"](SOURCE, Random(0), 1.0)
    strings = re.compile(r'"""|"[^"]*"|#.*')
    assert made.edits == len(re.findall(r"[])}]", strings.sub("", SOURCE.replace('(of "sorts")', ""))))
    assert len(made.text) == len(SOURCE) - made.edits
    assert made.text.startswith('"""A module (of "sorts") == x."""')


def test_variables_become_what_is_no_identifier_everywhere() -> None:
    made = CORRUPTIONS["names"](SOURCE, Random(1), 1.0)
    old, new = (re.findall(r"\w+", text) for text in (SOURCE, made.text))
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) == made.edits
    assert all(re.fullmatch(rf"\d{a}", b) and not b.isidentifier() for a, b in changed)
    assert {a for a, _ in changed} == {"LIMIT", "größe", "rows", "key", "most", "total", "i", "a", "b", "x", "y"}
    assert ".calls" in made.text
    assert 'f"{LIMIT == 3} and {LIMIT}"' in made.text, "strings are left alone"
    few = CORRUPTIONS["names"](SOURCE, Random(1), 0.01)
    assert len({b for a, b in zip(old, re.findall(r"\w+", few.text), strict=True) if a != b}) == 1


def test_operators_and_indices() -> None:
    def lines(kind: str) -> str:
        return CORRUPTIONS[kind](SOURCE, Random(0), 1.0).text

    conditions = lines("conditions")
    assert "if len(rows) < most or not (total != 2 and rows[0] >= LIMIT):" in conditions
    assert "lambda y=1: y > 2" in conditions
    assert '== x."""' in conditions
    indices = lines("indices")
    assert 'größe["a"][0 + 1] + rows[i + 1] - rows[i - 1 + 1] + rows[-1 + 1]' in indices
    assert "            i + 1\n" in indices
    assignments = lines("assignments")
    for before, after in (("x = lambda y=1", r"x [-+*]= lambda y=1"), ("rows[0] *= 2", r"rows\[0\] ([-+]?=) 2")):
        assert before not in assignments
        assert re.search(after, assignments)
    for kept in ("LIMIT: int = 3", "total, i = 0, 1", "a = b = [", "key=None"):
        assert kept in assignments


@settings(max_examples=60)
@given(
    text=st.text(max_size=40) | st.lists(st.sampled_from([*"()[]=+<x1:\n ", " and ", "if "]), max_size=12).map("".join)
)
def test_any_text_is_taken(text: str) -> None:
    for kind in KINDS:
        made = corrupt(kind, text, "name", 0, 0.5)
        assert (made.edits == 0) == (made.text == text)


@pytest.mark.parametrize("text", ["Ann (and Ben) == [two", "x = 1\ry = (2)\n", "x = '\0'", "(" * 5000, "\ufeffx = (1)"])
def test_what_is_no_python_has_no_edits(text: str) -> None:
    assert all(corrupt(kind, text, "a", 0, 1.0) == (text, 0) for kind in KINDS)


def test_line_ends_of_windows() -> None:
    text = SOURCE.replace("\n", "\r\n")
    for kind in KINDS:
        made = corrupt(kind, text, "a", 0, 1.0)
        assert made.edits == corrupt(kind, SOURCE, "a", 0, 1.0).edits
        assert made.text.replace("\r\n", "\n") == corrupt(kind, SOURCE, "a", 0, 1.0).text


def test_the_chance_is_of_the_name_the_seed_and_the_kind() -> None:
    made = {(name, seed): corrupt("names", SOURCE, name, seed, 0.3).text for name in "ab" for seed in (0, 1)}
    assert len(set(made.values())) == 4
    assert corrupt("names", SOURCE, "a", 0, 0.3).text == made["a", 0]


def test_a_beginning_is_whole_statements() -> None:
    assert beginning(SOURCE, 10**6) == SOURCE
    assert beginning(SOURCE, 100) == SOURCE[: SOURCE.index("größe")]
    assert beginning(SOURCE, 5) == SOURCE[: SOURCE.index("import")].rstrip("\n") + "\n"
    assert beginning("no python (", 5) == "no py"
    assert all(parses(beginning(SOURCE, n)) for n in range(1, len(SOURCE), 7))
