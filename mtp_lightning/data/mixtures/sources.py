"""What a configuration says of a mixture: its sources, and how often each is seen."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from mtp_lightning.data.corpora.source import GENERATED, PYTHON_STDLIB, SourceConfig
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.ranges import Range, Steps, Weight, check_ranges

TAKEN = ("loss", "accuracy", "bits_per_byte", "infilling")
"""What stands in the place of a source's name in metrics that are no source's."""


@dataclass(frozen=True)
class MixtureSource:
    """One corpus of a mixture.

    Raises:
        InputError: a weight and epochs both; numbers that cannot be.
    """

    source: SourceConfig = PYTHON_STDLIB
    """The corpus, as `data.source` would say it."""
    name: str | None = None
    """What its metrics are called by, `val/<name>/loss/head_1`: letters, digits, `_` and `-`. By default the stem of
    its path, or its kind."""
    weight: Weight | dict[Steps, Weight] | None = None
    """Its part of the training windows is its weight over the sum of all weights: a number, or steps {step: weight}, as
    in {0: 3, 1000: 1}, each from that optimizer step on. 1 by default. 0: validated on, and not trained on."""
    epochs: Annotated[float, Range(above=0, most=10**6)] | None = None
    """In place of weights, of all sources or of none: passes over this source in the time in which one with 1 is passed
    over once. Its weight is this, times its windows."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, Mapping):
            numbers = [str(step) for step in self.weight]
            if all(number.isdigit() for number in numbers):  # YAML's keys come as text
                steps = {int(number): value for number, value in zip(numbers, self.weight.values())}
                object.__setattr__(self, "weight", steps)
        check_ranges("data.mixture", MixtureSource, vars(self))
        if self.weight is not None and self.epochs is not None:
            raise InputError(
                f"data.mixture: '{self.label}' has weight {self.weight} and epochs {self.epochs}: give one of them"
            )
        if isinstance(self.weight, dict) and (next(iter(self.weight)) != 0 or [*self.weight] != sorted(self.weight)):
            raise InputError(f"data.mixture.weight is {self.weight}: steps begin at 0, and increase")

    @property
    def label(self) -> str:
        """Its name, or what takes its place."""
        if self.name is not None:
            return self.name
        readable = Path(self.source.path).stem if self.source.path else self.source.kind
        return re.sub(r"[^\w-]", "_", readable, flags=re.ASCII)


def reweighted(mixture: list[MixtureSource] | None, weights: Mapping[str, float]) -> list[MixtureSource] | None:
    """The mixture with other weights of the sources with these names.

    Raises:
        InputError: a name that no source has.
    """
    names = [part.label for part in mixture or ()]
    for name in weights:
        if name not in names:
            raise InputError(
                f"data.mixture_weights: no source of data.mixture is called '{name}' (there are "
                f"{', '.join(names) or 'none'}){did_you_mean(name, names)}"
            )
    if mixture is None:
        return None
    return [replace(part, weight=weights.get(part.label, part.weight)) for part in mixture]


def check_mixture(mixture: Sequence[MixtureSource], source: SourceConfig) -> None:
    """The sources go together.

    Args:
        source: `data.source`, which has to be left out.

    Raises:
        InputError: none, one that is listed twice, a name that cannot be or stands twice, weights that are all zero,
            weights of some and epochs of others.
    """
    if source != PYTHON_STDLIB:
        raise InputError(
            "data.source and data.mixture are both given: make the source one of the mixture's, and leave out "
            "data.source"
        )
    if not mixture:
        raise InputError("data.mixture is empty: give sources, as in [{source: {kind: stories}, weight: 1}, ...]")
    names: set[str] = set()
    read: dict[SourceConfig, str] = {}
    for part in mixture:
        name, corpus = part.label, _as_read(part.source)
        if not re.fullmatch(r"[\w-]+", name, re.ASCII) or name in TAKEN:
            raise InputError(
                f"data.mixture.name is '{name}': it has to be letters, digits, _ and -, and none of {', '.join(TAKEN)}"
            )
        if name in names:
            raise InputError(f"data.mixture.name: two sources are called '{name}': give each a name of its own")
        if corpus in read:
            raise InputError(
                f"data.mixture: '{read[corpus]}' and '{name}' are the same source: list it once, with the sum of their "
                "weights"
            )
        names.add(name)
        read[corpus] = name
    if len({part.epochs is None for part in mixture}) > 1:
        raise InputError(
            "data.mixture: some sources have epochs and others do not: give all of them epochs, or all of them weights"
        )
    for step in change_steps(mixture):
        if not any(weight_at(part, step) for part in mixture):
            when = f" from step {step:,} on" if step else ""
            raise InputError(f"data.mixture.weight: the weights are all zero{when}: at least one has to be above 0")


def change_steps(mixture: Sequence[MixtureSource]) -> list[int]:
    """The optimizer steps, 0 first, from which on the weights are others."""
    return sorted({0, *(step for part in mixture if isinstance(part.weight, dict) for step in part.weight)})


def weight_at(part: MixtureSource, step: int) -> float:
    if isinstance(part.weight, dict):
        return next(weight for start, weight in reversed(part.weight.items()) if step >= start)
    return 1.0 if part.weight is None else part.weight


def _as_read(source: SourceConfig) -> SourceConfig:
    """Equal for what reads the same, whatever its path is written like."""
    local = source.path is not None and source.kind not in (*GENERATED, "hub")
    path = os.path.realpath(Path(source.path or "").expanduser()) if local else source.path
    return replace(source, path=path, strict=False)
