"""Fair tuning: each arm is compared at its own best value of one axis, which is chosen on other seeds than those that
are compared.

    tune: {axis: model.optimizer.lr, seeds: [100, 101]}

The cells of the tuning seeds run first, at every value; then those of the compared seeds, at the chosen value alone.
Which cells a grid has therefore follows from its results so far: `grid run` goes on by itself once all tuning
cells are over, `grid submit` and `grid resume` take up the rest when they are called again. Nothing else knows of it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.grid.report.metric_names import LOWER, better_direction, format_value
from mtp_lightning.grid.report.statistics import countable
from mtp_lightning.grid.run.state import CellFiles, State
from mtp_lightning.grid.spec.cells import Cell, baseline_values
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.labels import Labels
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.units import counted

SOME = 8
"""Names that a line has, at most."""
FEW = 3
"""That a sentence of the verdict has."""


def some(names: Sequence[str], most: int = SOME) -> str:
    """`a, b and 2 more`; `report.json` has all."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclass(frozen=True)
class Choice:
    """Of one arm."""

    arm: str
    """`n_future=4`: without the axis that is tuned."""
    axis: str
    """By its short name."""
    means: Mapping[float, float | None]
    """Value -> mean of the metric over the tuning seeds; None where a seed diverged, or is not over yet."""
    value: float | None
    """The chosen one; None: not yet."""
    waits_for: Sequence[str]
    """`n_future=4 lr=0.1 seed=100 (failed)`"""
    later: Sequence[Cell] = ()
    """Where it is not chosen yet, one cell for each compared seed, at any value: so many follow, and at that cost."""
    is_baseline: bool = False
    seeds: int = 1
    """How many it was chosen on."""
    spread: float | None = None
    """The standard deviation over seeds that a run of the grid has; None where that is not known."""

    @property
    def at_edge(self) -> bool:
        """Whether a better value may lie beyond the axis."""
        return self.value is not None and len(self.means) > 1 and self.value in (min(self.means), max(self.means))

    @property
    def next_best(self) -> tuple[float, float] | None:
        """Of the values that were not chosen, and by how much it is behind; None where there is none with a mean."""
        if self.value is None or (best := self.means[self.value]) is None:
            return None
        behind = {v: abs(mean - best) for v, mean in self.means.items() if v != self.value and mean is not None}
        return min(behind.items(), key=lambda item: item[1], default=None)

    @property
    def error(self) -> float | None:
        """The standard error of a difference of two values' means, as if their seeds shared no luck."""
        return None if self.spread is None else self.spread * math.sqrt(2 / self.seeds)

    @property
    def is_close(self) -> bool:
        """Whether it rests on no more than that error: of two values that far apart, one choice in six is wrong."""
        return self.next_best is not None and self.error is not None and self.next_best[1] <= self.error

    def json(self) -> dict[str, Any]:
        tried = [{"value": value, "mean": mean} for value, mean in self.means.items()]
        state = {"value": self.value, "at_edge": self.at_edge, "waits_for": list(self.waits_for)}
        by = {"margin": self.next_best and self.next_best[1], "error": self.error, "is_close": self.is_close}
        arm = {"arm": self.arm, "is_baseline": self.is_baseline, "axis": self.axis}
        return {**arm, **state, **by, "seeds": self.seeds, "tried": tried}

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.arm}: {self.axis}={self.value:g}" + (", at the edge of the axis" if self.at_edge else "")
        return f"{self.arm}: {self.axis} not chosen yet"


def tuned_text(choices: Sequence[Choice]) -> str:
    """What each arm was tuned to; of many arms how many have each value, and by name those at an edge, or without."""
    if len(choices) <= SOME:
        return "; ".join(map(str, choices))
    named = [choice for choice in choices if choice.at_edge or choice.value is None]
    inside = Counter(choice.value for choice in choices if choice not in named)
    counts = [f"{choices[0].axis}={value:g} of {counted(count, 'arm')}" for value, count in sorted(inside.items())]
    more = [f"{len(named) - SOME} more"] if len(named) > SOME else []
    return "; ".join([*counts, *map(str, named[:SOME]), *more])


def close_text(choices: Sequence[Choice], metric: str) -> str:
    """A sentence on the choices that chance may have made, the baseline's first, which enters every difference; empty
    where there is none.

    On one seed whose runs differ by 0.02, a baseline was once given a learning rate that was better by 0.009 there
    and worse by 0.047 on the seeds compared: every arm seemed that much better than it was."""
    close = sorted((choice for choice in choices if choice.is_close), key=lambda choice: not choice.is_baseline)
    if not close:
        return ""
    first, arms = close[0], counted(len(close), "arm", of=len(choices))
    error = f"{format_value(metric, first.error or 0.0)} on {counted(first.seeds, 'seed')}"
    named = some([_before(choice, metric) for choice in close], FEW)
    return f"The {first.axis} of {arms} was chosen by no more than its standard error ({error}): {named}."


def _before(choice: Choice, metric: str) -> str:
    assert choice.next_best is not None, "it is close to something"
    value, margin = choice.next_best
    name = f"{choice.arm}, the baseline," if choice.is_baseline else choice.arm
    return f"{name} ({choice.value:g} before {value:g} by {format_value(metric, margin)})"


def tuning_rows(choices: Sequence[Choice]) -> list[list[str]]:
    """A table of what each arm was tuned to, beside what was tried; its head first."""
    values = sorted({value for choice in choices for value in choice.means})

    def cell(choice: Choice, value: float) -> str:
        mean = choice.means.get(value)
        text = "–" if mean is None else f"{mean:.4f}"
        remarks = (", at the edge" if choice.at_edge else "") + (", perhaps by chance" if choice.is_close else "")
        return f"{text}, chosen{remarks}" if value == choice.value else text

    head = ["mean over the tuning seeds", *(f"{choices[0].axis}={value:g}" for value in values)]
    return [head, *([choice.arm, *(cell(choice, value) for value in values)] for choice in choices)]


@dataclass(frozen=True)
class Tuning:
    cells: Sequence[Cell]
    """Those that the grid has now, tuning seeds first."""
    compared: Sequence[Cell]
    """Of them, those of the compared seeds."""
    choices: Sequence[Choice] = ()

    @property
    def diverged(self) -> set[str]:
        """Signatures of the tuning cells that ended so, for whose value that is the answer."""
        compared = {cell.signature for cell in self.compared}
        trials = [cell for cell in self.cells if cell.signature not in compared]
        return {cell.signature for cell in trials if CellFiles.read(cell.directory).diverged}

    @property
    def later(self) -> list[Cell]:
        return [cell for choice in self.choices for cell in choice.later]

    @property
    def follows(self) -> str:
        """`then 9 cells: 3 arms at the best lr`; empty where all is chosen."""
        waiting = [choice for choice in self.choices if choice.value is None]
        if not waiting:
            return ""
        return f"then {counted(len(self.later), 'cell')}: {counted(len(waiting), 'arm')} at the best {waiting[0].axis}"


def arm_of(spec: GridSpec, values: Mapping[str, Any] | None) -> str:
    """A setting without what is tuned, of which each has its own value and its baseline another; as a key."""
    return canonical(values and {key: value for key, value in values.items() if key not in spec.tuned_keys})


def tuned(spec: GridSpec, cells: Sequence[Cell]) -> Tuning:
    """The cells of a grid that are wanted now; all of them, where nothing is tuned.

    Args:
        cells: every combination; or what an earlier call left of them.

    Raises:
        InputError: it is not known which way the metric is better.
    """
    if spec.tune is None:
        return Tuning(cells, cells)
    metric = spec.compare[0]
    direction = spec.better.get(metric) or better_direction(metric)
    if direction is None:
        what = f"whether a lower or a higher {metric} is better is not known"
        raise InputError(f"{spec.where('tune')}: {what}; give {{metric: {metric}, better: lower}} in `compare`")
    labels = Labels(spec)
    arms: dict[str, list[tuple[Cell, Cell]]] = {}
    for cell in cells:
        for one in (cell, *cell.aliases):
            arms.setdefault(arm_of(spec, one.values), []).append((one, cell))
    choices: list[Choice] = []
    trying: dict[str, Cell] = {}
    kept: dict[str, Cell] = {}
    for name, members in arms.items():
        trials = [pair for pair in members if pair[0].seed in spec.tune.seeds]
        compared = [pair for pair in members if pair[0].seed in spec.seeds]
        choice = _choose(spec, spec.tune.axis, labels, trials, direction == LOWER)
        is_baseline = arm_of(spec, baseline_values(spec, members[0][0].values)) == name
        choice = replace(choice, is_baseline=is_baseline, seeds=len(spec.tune.seeds))
        if choice.value is None:
            choice = replace(choice, later=list({one.seed: cell for one, cell in compared}.values()))
        choices.append(choice)
        trying |= {cell.signature: cell for _, cell in trials}
        kept |= {cell.signature: cell for one, cell in compared if one.values[spec.tune.axis] == choice.value}
    return Tuning(list((trying | kept).values()), list(kept.values()), choices)


def _choose(spec: GridSpec, axis: str, labels: Labels, trials: Sequence[tuple[Cell, Cell]], lower: bool) -> Choice:
    """By the tuning seeds' results alone.

    Args:
        trials: the cells of one arm at the tuning seeds, as what they stand for and as the run that they are.
        lower: whether less is better.
    """
    by_value: dict[float, list[float | None]] = {}
    waits = []
    for one, cell in trials:
        found, state = _result(cell, spec.compare[0])
        by_value.setdefault(one.values[axis], []).append(found)
        waits += [f"{one.label} ({state})"] if state else []
    means = {value: fmean(found) if all(map(_finite, found)) else None for value, found in by_value.items()}  # type: ignore[arg-type]
    good = {value: mean if lower else -mean for value, mean in means.items() if mean is not None}
    if not good and not waits:
        waits = [f"no value of {labels.names[axis]} has a finite {spec.compare[0]}"]
    name = " ".join(labels.parts(trials[0][0].values, without=spec.tuned_keys)) or spec.name
    chosen = None if waits else min(good, key=good.__getitem__)
    return Choice(name, labels.names[axis], means, chosen, waits)


def _finite(value: float | None) -> bool:
    return value is not None and countable(value)


def _result(cell: Cell, metric: str) -> tuple[float | None, str]:
    """The value, and the state for whose end the choice has to wait; empty for a cell that is over, one that diverged
    too: no other value is worse."""
    files = CellFiles.read(cell.directory)
    if files.result is not None and files.state is State.FINISHED:
        found = files.result.metrics.get(metric)
        return found, "" if found is not None else f"finished without {metric}"
    return None, "" if files.diverged else files.state.value
