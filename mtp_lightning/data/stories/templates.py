"""What stories are made of, read out of `templates.yaml`, which also says what its lines mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")

Beat = tuple[str, ...]
"""Templates of which a story has one, "" for none."""


@dataclass(frozen=True)
class Plot:
    roles: tuple[str, ...]
    """Who A, B and C are: "child", "elder", or one of `kinds`."""
    paragraphs: tuple[tuple[Beat, ...], ...]


@dataclass(frozen=True)
class Templates:
    """Words and plots; the keys of the file."""

    girls: tuple[str, ...]
    boys: tuple[str, ...]
    creatures: tuple[str, ...]
    surnames: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]
    words: Mapping[str, tuple[str, ...]]
    fresh: Mapping[str, tuple[str, ...]]
    plots: Mapping[str, Plot]


@cache
def templates() -> Templates:
    """The file's content, read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, Any] = yaml.load(FILE.read_text(encoding="utf-8"), loader)
    return Templates(
        **{key: _words(content[key]) for key in ("girls", "boys", "creatures", "surnames")},  # type: ignore[arg-type]
        **{key: {kind: _words(line) for kind, line in content[key].items()} for key in ("kinds", "words", "fresh")},  # type: ignore[arg-type]
        plots={name: _plot(**plot) for name, plot in content["plots"].items()},
    )


def _plot(roles: list[str], paragraphs: list[list[str]]) -> Plot:
    return Plot(tuple(roles), tuple(tuple(_beat(lines) for lines in paragraph) for paragraph in paragraphs))


def _beat(lines: str) -> Beat:
    return tuple("" if line == "-" else line for line in lines.splitlines())


def _words(lines: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in lines.replace("\n", ",").split(",") if word.strip())
