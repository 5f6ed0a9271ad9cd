"""Three sections of a grid file that change what its cells are compared for, and how far they run:

ladder: {size: model.backbone.dim}                      # what each arm is worth, in compute, at each size
tune: {axis: model.optimizer.lr, seeds: [100, 101]}     # each arm at its best value, chosen on other seeds
gate: {at: step=500, keep: within 0.1 of the best}      # settings farther from the best than that end there
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtp_lightning.errors import did_you_mean
from mtp_lightning.grid.spec.grid_file import GridFile
from mtp_lightning.grid.spec.values import is_number, nearest_key

FEWEST_SIZES = 4
"""A curve with three parameters goes through any three points: the fourth is the first that can disagree."""
MOST_SEED = 2**32 - 1
_AT = re.compile(r"step=([1-9]\d{0,15})")
_KEEP = re.compile(r"within (\S+) of the best")
_SEEDS = f"must be a list of whole numbers in 0 .. {MOST_SEED}, and not empty"

Axes = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Ladder:
    size: str
    """The axis of sizes. Axes that advance together with it belong to the size; all others make an arm."""


@dataclass(frozen=True)
class Tune:
    axis: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Gate:
    step: int
    """Where every cell waits until its setting is judged."""
    within: float
    """How far a setting may be from the best there, in units of the first metric of `compare`."""


def read_ladder(file: GridFile, axes: Axes, fixed: Sequence[str], groups: Sequence[Sequence[str]]) -> Ladder | None:
    """
    Args:
        fixed: the axes that the baseline fixes.
    """
    given = _section(file, "ladder", ("size",))
    size = given.get("size")
    if size is None or not _is_axis(file, axes, "ladder", "size", size):
        return None
    if len(axes[size]) < FEWEST_SIZES:
        few = f"{size} has {len(axes[size])} values; a ladder needs {FEWEST_SIZES} sizes, since any three fit its curve"
        file.problem("ladder", "size", message=few)
    elif on := [key for key in _together(size, groups) if key in fixed]:
        what = f"the baseline fixes {', '.join(on)}: leave it out there, so that each size has a baseline"
        file.problem("ladder", "size", message=what)
    elif not fixed:
        file.problem("ladder", message="needs a `baseline`, on whose ladder the other arms are measured")
    else:
        return Ladder(size)
    return None


def read_tune(
    file: GridFile,
    axes: Axes,
    fixed: Sequence[str],
    groups: Sequence[Sequence[str]],
    compared: Sequence[int],
    at: Sequence[str],
    first: str | None,
    include: Sequence[Mapping[str, Any]],
) -> Tune | None:
    """
    Args:
        fixed: the axes that the baseline fixes.
        compared: the seeds of the comparison.
        at: metrics that are compared after so much training.
        first: the metric by which is chosen.
    """
    given = _section(file, "tune", ("axis", "seeds"))
    axis, seeds = given.get("axis"), given.get("seeds")
    if axis is None or seeds is None or not _is_axis(file, axes, "tune", "axis", axis):
        return None
    ladder = file.raw.get("ladder")
    sized = ladder.get("size") if isinstance(ladder, dict) else None
    on = [key for key in _together(axis, groups) if key in fixed]
    whole = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    common = [str(seed) for seed in seeds if seed in compared] if whole else []
    wrong = {
        "axis": [
            (
                len(axes[axis]) < 2 or not all(map(is_number, axes[axis])),
                f"{axis} needs two numbers or more to choose from",
            ),
            (bool(on), f"the baseline fixes {', '.join(on)}: leave it out there, since the baseline is tuned too"),
            (sized in _together(axis, groups), f"{axis} is the size of the ladder"),
        ],
        "seeds": [
            (not whole or not seeds or not all(0 <= seed <= MOST_SEED for seed in seeds), _SEEDS),
            (whole and len(set(seeds)) < len(seeds), "a seed is given twice"),
            (bool(common), f"{', '.join(common)} is compared too, and looks better than it is where it was chosen on"),
        ],
    }
    found = [
        (key, next(message for bad, message in tests if bad))
        for key, tests in wrong.items()
        if any(b for b, _ in tests)
    ]
    for key, message in found:
        file.problem("tune", key, message=message)
    if first in at:
        what = f"chooses by {first} at the end of training, and `compare` gives that an `at`: take one of them out"
        file.problem("tune", message=what)
    if without := [index for index, values in enumerate(include) if axis not in values]:
        file.problem("include", without[0], message=f"gives no {axis}, of which `tune` chooses the best")
    return None if found or without or first in at else Tune(axis, tuple(seeds))


def read_gate(file: GridFile) -> Gate | None:
    given = _section(file, "gate", ("at", "keep"))
    if not given:
        return None
    at, keep = (pattern.fullmatch(str(given[key])) for key, pattern in (("at", _AT), ("keep", _KEEP)))
    within = _number(keep[1]) if keep else math.nan
    if "tune" in file.raw:
        what = "does not go with tune, whose cells all run to their end: take one of them out"
        file.problem("gate", message=what)
    if not at:
        file.problem("gate", "at", message=f"must be a step such as step=500, not {given['at']!r}")
    if not 0 < within < math.inf:
        what = f"must be a distance above zero, such as: within 0.1 of the best; not {given['keep']!r}"
        file.problem("gate", "keep", message=what)
    return Gate(int(at[1]), within) if at and 0 < within < math.inf and "tune" not in file.raw else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _section(file: GridFile, name: str, keys: Sequence[str]) -> Mapping[Any, Any]:
    """The section, if it has exactly these keys; empty for one that is left out or wrong."""
    if name not in file.raw:
        return {}
    section = file.mapping(name)
    if not isinstance(file.raw[name], dict):
        return {}
    for key in section:
        if key not in keys:
            hint = did_you_mean(str(key), keys) or f"; there are {', '.join(keys)}"
            file.problem(name, str(key), message=f"unknown key{hint}")
    if missing := [key for key in keys if section.get(key) is None]:
        file.problem(name, message=f"needs {' and '.join(missing)}")
        return {}
    return section


def _is_axis(file: GridFile, axes: Axes, section: str, key: str, value: object) -> bool:
    """An axis that is there and broken is not reported again."""
    if isinstance(value, str) and value in axes:
        return True
    written = file.raw.get("axes")
    if not isinstance(value, str) or not isinstance(written, dict) or value not in written:
        hint = nearest_key(str(value), list(axes)) if axes else ""
        file.problem(section, key, message=f"'{value}' is not an axis{hint}")
    return False


def _together(key: str, groups: Sequence[Sequence[str]]) -> Sequence[str]:
    return next((group for group in groups if key in group), (key,))
