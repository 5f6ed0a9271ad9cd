"""YAML of configurations: bounded in size, depth and number of values, and refused with its place."""

from pathlib import Path

import pytest

from mtp_lightning.config.keys.key_origins import KeyOrigins
from mtp_lightning.errors import InputError
from mtp_lightning.yaml_lines import DEEPEST, MOST_BYTES, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
"""Nine to the power of nine values in 400 bytes."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, r"x.yaml:1: more than 100,000 values, with those that aliases \(\*\) repeat"),
        ("a: &a {b: *a}", f"more than {DEEPEST} values lie one inside the other"),
        ("a: " + "[" * 5000 + "]" * 5000, f"more than {DEEPEST} values lie one inside the other"),
        ("a: " + "{b: " * 400 + "1" + "}" * 400, f"more than {DEEPEST} values lie one inside the other"),
        ("a: 1\n#" + "x" * MOST_BYTES, "has 4.00 MiB, and a configuration has 4.00 MiB at most"),
        ("a: " + "9" * 5000, "x.yaml: not valid YAML: Exceeds the limit"),
        ("a: 1\nb: \x1b", r"x.yaml:2: not valid YAML: the character U\+001B"),
        ("a: 2026-99-99", "x.yaml: not valid YAML: month must be in 1..12"),
    ],
    ids=["bomb", "loop", "deep list", "deep mapping", "large", "long number", "control character", "no date"],
)
def test_what_no_configuration_is(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        read_yaml(tmp_path / "x.yaml")


def test_aliases_within_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 3}\n")
    document, lines = read_yaml(tmp_path / "x.yaml")
    assert document == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 3}}
    assert lines["c", "b", "1"] == 1


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "{" + BOMB.replace("\n", ",") + "}"], ids=["deep", "bomb"])
def test_flags_are_bounded_too(value: str) -> None:
    with pytest.raises(InputError, match="a flag's value:1: "):
        KeyOrigins([f"--model={value}"])
