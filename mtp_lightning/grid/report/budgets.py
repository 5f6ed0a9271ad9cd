"""Comparison at equal training: every cell's metrics as they were at one step, or after so many tokens or FLOPs.

A value at a budget is the last one logged at or before it, never one in between two. Tokens of a step are constant in
a run (`perf/tokens_seen`); FLOPs are tokens times `model/flops_per_token`, which counts training: forward, backward
and all heads.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.run.state import RUN_ID, Result, State, cell_state
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.grid.spec.reader import UNITS
from mtp_lightning.units import quantity

Points = Sequence[tuple[int, float]]
ReadHistory = Callable[[str, str], Points]
"""(MLflow run id, metric) -> every (step, value), in order of steps."""

COMMON = At("common", math.inf)
"""The last step that every cell has come to."""
TOKENS, FLOPS = "perf/tokens_seen", "model/flops_per_token"


@dataclass(frozen=True)
class Aligned:
    """What the cells' histories say at the budgets; empty where everything is compared at the end."""

    at: Mapping[str, At] = field(default_factory=dict)
    """Metric -> where it is compared."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Cell signature -> metric -> value there."""
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Unit of a budget -> cell signature -> how many of them in one step."""
    notes: Sequence[str] = ()


def parse_at(text: str) -> At:
    """`step=1000`, `tokens=1e6`, `flops=1e12` or `common`, as on the command line."""
    wanted = f"give {', '.join(f'{unit}=NUMBER' for unit in UNITS)} or {COMMON.unit}"
    unit, equals, amount = text.partition("=")
    if text == COMMON.unit:
        return COMMON
    if unit not in UNITS or not equals:
        raise InputError(f"at: '{text}' is no budget{did_you_mean(unit, (*UNITS, COMMON.unit))}; {wanted}")
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"at: '{amount}' is not an amount of {unit} above zero; {wanted}")
    return At(unit, number)


def at_text(at: At) -> str:
    """`step 1000`, `12.3 M tokens`."""
    if at.unit == "step":
        return f"step {at.amount:.0f}"
    return f"{quantity(at.amount)} {'FLOPs' if at.unit == 'flops' else at.unit}"


@dataclass(frozen=True)
class Runner:
    """A cell that is finished, running or interrupted, with its history. A failed one takes no part: what it was on
    the way to its failure is not its setting's result."""

    cell: Cell
    run_id: str | None
    end: int | None
    """The last step of a finished cell."""
    read: ReadHistory

    def points(self, metric: str) -> Points:
        return self.read(self.run_id, metric) if self.run_id is not None else ()

    def reached(self, metric: str) -> int:
        """A cell under way has come as far as it has logged: a value nearer to the budget may yet follow."""
        return self.end if self.end is not None else max((step for step, _ in self.points(metric)), default=0)

    def per_step(self, unit: str) -> float | None:
        """Units of a budget in one step; None where they were not recorded."""
        if unit == "step":
            return 1.0
        tokens = [value / step for step, value in self.points(TOKENS) if step > 0]
        flops = self.points(FLOPS) if unit == "flops" else [(0, 1.0)]
        return tokens[-1] * flops[-1][1] if tokens and flops else None

    def at(self, metric: str, budget: At) -> tuple[float | None, str]:
        """The value, and what has to be said about it: nothing where it was logged at the very step."""
        rate = self.per_step(budget.unit)
        if rate is None:
            return None, f"missing for want of {TOKENS}{f' and {FLOPS}' if budget.unit == 'flops' else ''}"
        step = math.floor(budget.amount / rate * (1 + 1e-9))  # whole steps that fit
        if self.reached(metric) < step:
            return None, f"missing (step {self.reached(metric)} of {step})"
        before = [point for point in self.points(metric) if point[0] <= step]
        if not before:
            return None, f"missing (not logged by step {step})"
        last, value = before[-1]
        return value, "" if last == step else f"as last logged before it, step {last},"


def align(cells: Iterable[Cell], at: Mapping[str, At], read: ReadHistory) -> Aligned:
    """Metrics without a history in any cell, such as those of an evaluation at the end, are left at their end."""
    able = _runners(cells, read)
    drawn = [metric for metric in at if any(len(runner.points(metric)) > 1 for runner in able)]
    notes = [f"without a history, so compared at the end: {metric}" for metric in at if metric not in drawn]
    if not drawn:
        return Aligned(notes=notes)
    common, said = _common(able, drawn[0])
    if COMMON in at.values():
        notes.append(said)
    chosen = {metric: common if at[metric] == COMMON else at[metric] for metric in drawn}
    values: dict[str, dict[str, float]] = {}
    remarks: dict[tuple[str, bool, str], list[str]] = {}
    for metric, budget in chosen.items():
        having = {runner.cell.group for runner in able if runner.points(metric)}
        for runner in able:
            if runner.end is not None and runner.cell.group not in having:
                continue  # a setting without this metric, as head 2 of one head: a dash in the table
            value, remark = runner.at(metric, budget)
            if value is not None:
                values.setdefault(runner.cell.signature, {})[metric] = value
            if remark:
                place = f"at {at_text(budget)}, {remark}"
                remarks.setdefault((place, value is None, runner.cell.label), []).append(metric)
    rates = {
        unit: {runner.cell.signature: rate for runner in able if (rate := runner.per_step(unit)) is not None}
        for unit in {budget.unit for budget in chosen.values()}
    }
    return Aligned(chosen, values, rates, notes + _folded(remarks))


def _folded(remarks: Mapping[tuple[str, bool, str], Sequence[str]]) -> list[str]:
    """(remark, whether something is missing, cell) -> metrics, as one line for all cells of which the same is to be
    said. Missing cells are all named."""
    cells: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for (remark, missing, label), metrics in remarks.items():
        cells.setdefault((remark, missing, tuple(metrics)), []).append(label)
    return [
        f"{remark} in {', '.join(labels) if missing else some(labels)}: {some(metrics)}"
        for (remark, missing, metrics), labels in cells.items()
    ]


def _runners(cells: Iterable[Cell], read: ReadHistory) -> list[Runner]:
    found = []
    for cell in cells:
        path, result = cell.directory / RUN_ID, Result.read(cell.directory)
        run_id = path.read_text().strip() if path.is_file() else None
        if result is not None:
            found.append(Runner(cell, run_id, result.step, read))
        elif run_id is not None and cell_state(cell.directory) in (State.RUNNING, State.INTERRUPTED):
            found.append(Runner(cell, run_id, None, read))
    return found


def _common(able: Sequence[Runner], metric: str) -> tuple[At, str]:
    """The last step of `metric` that every cell has which has it at all, and which cell that rests on."""
    came = {runner.cell.label: points[-1][0] for runner in able if (points := runner.points(metric))}
    last = min(came, key=came.__getitem__)
    held = f", where {last} is" if came[last] < max(came.values()) else ""
    return At(
        "step", float(came[last])
    ), f"compared at step {came[last]}, the last that all cells with a history have{held}"


def some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
