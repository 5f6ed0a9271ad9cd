"""Comparison at equal training: every cell's metrics as they were at one step, or after so many tokens, bytes of text,
FLOPs or seconds.

A value at a budget is the last one logged at or before it, never one in between two. Tokens of a step are constant in
a run (`perf/tokens_seen`); FLOPs are tokens times `model/flops_per_token`, which counts training: forward, backward
and all heads. Bytes are tokens times `data/bytes_per_token`: equal text, whatever the tokenizer. Seconds
are those of training, without validation and probes, each cell's on its own machine: the median of `perf/step_seconds`
for every step.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.run.state import CellFiles, State
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.grid.spec.reader import UNITS
from mtp_lightning.units import quantity

Points = Sequence[tuple[int, float]]
ReadHistory = Callable[[str, str], Points]
"""(MLflow run id, metric) -> every (step, value), in order of steps."""

COMMON = At("common", math.inf)
"""The last step that every cell has reached."""
TOKENS, STEP_SECONDS = "perf/tokens_seen", "perf/step_seconds"
PER_TOKEN = {"bytes": "data/bytes_per_token", "flops": "model/flops_per_token"}
"""Unit of a budget -> the metric that says how many of it a token is."""


@dataclass(frozen=True)
class EqualTraining:
    """The values at the budgets, from the cells' histories; empty where everything is compared at the end."""

    at: Mapping[str, At] = field(default_factory=dict)
    """Metric -> where it is compared."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Cell signature -> metric -> value there."""
    per_step: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Unit of a budget -> cell signature -> how many of them one step takes."""
    notes: Sequence[str] = ()
    flops: Mapping[str, float] = field(default_factory=dict)
    """Cell signature -> FLOPs of its training up to there, of the metric of which that was asked."""


def parse_at(text: str) -> At:
    """`step=1000`, `tokens=1e6`, `bytes=1e6`, `flops=1e12`, `seconds=600` or `common`, as on the command line."""
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
class CellHistory:
    """A cell that is finished, running or interrupted, and what it logged. A failed one takes no part: what it was on
    the way to its failure is not its setting's result. Nor does one that diverged, whose values are nan (`comparison`).
    """

    cell: Cell
    run_id: str | None
    end: int | None
    """The last step of a finished cell."""
    read: ReadHistory

    def points(self, metric: str) -> Points:
        return self.read(self.run_id, metric) if self.run_id is not None else ()

    def reached(self, metric: str) -> int:
        """A cell that is not finished has reached the last step that it logged: a value nearer to the budget may
        follow."""
        return self.end if self.end is not None else max((step for step, _ in self.points(metric)), default=0)

    def per_step(self, unit: str) -> float | None:
        """Units of a budget in one step; None where they were not recorded."""
        if unit == "step":
            return 1.0
        if unit == "seconds":
            found = [value for _, value in self.points(STEP_SECONDS)]
            return median(found) if found else None
        tokens = [value / step for step, value in self.points(TOKENS) if step > 0]
        each = self.points(PER_TOKEN[unit]) if unit in PER_TOKEN else [(0, 1.0)]
        return tokens[-1] * each[-1][1] if tokens and each else None

    def step_at(self, budget: At) -> int | None:
        """The last whole step that fits."""
        rate = self.per_step(budget.unit)
        return None if rate is None else math.floor(budget.amount / rate * (1 + 1e-9))

    def value_at(self, metric: str, budget: At) -> tuple[float | None, str]:
        """The value, and a remark on it: empty where it was logged at the very step."""
        step = self.step_at(budget)
        if step is None:
            needed = {unit: f"{TOKENS} or {per_token}" for unit, per_token in PER_TOKEN.items()}
            return None, f"missing (no {({'seconds': STEP_SECONDS} | needed).get(budget.unit, TOKENS)})"
        if self.reached(metric) < step:
            return None, f"missing (step {self.reached(metric)} of {step})"
        before = [point for point in self.points(metric) if point[0] <= step]
        if not before:
            return None, f"missing (not logged by step {step})"
        last, value = before[-1]
        return value, "" if last == step else f"as last logged before it, step {last},"


def values_at(
    cells: Iterable[Cell], at: Mapping[str, At], read: ReadHistory, flops_of: str | None = None
) -> EqualTraining:
    """Every metric of `at` at its budget. Metrics without a history in any cell, such as those of an evaluation at the
    end, stay compared at the end.

    Args:
        flops_of: the metric at whose budget the FLOPs are wanted too.
    """
    histories = _histories(cells, read)
    tracked = [metric for metric in at if any(len(history.points(metric)) > 1 for history in histories)]
    notes = [f"without a history, so compared at the end: {metric}" for metric in at if metric not in tracked]
    if not tracked:
        return EqualTraining(notes=notes)
    common, note = _common_step(histories, tracked[0])
    if COMMON in at.values():
        notes.append(note)
    budgets = {metric: common if at[metric] == COMMON else at[metric] for metric in tracked}
    values: dict[str, dict[str, float]] = {}
    remarks: dict[tuple[str, bool, str], list[str]] = {}
    for metric, budget in budgets.items():
        with_metric = {history.cell.group for history in histories if history.points(metric)}
        for history in histories:
            if history.end is not None and history.cell.group not in with_metric:
                continue  # a setting without this metric, as head 2 of one head: a dash in the table
            value, remark = history.value_at(metric, budget)
            if value is not None:
                values.setdefault(history.cell.signature, {})[metric] = value
            if remark:
                full = f"at {at_text(budget)}, {remark}"
                remarks.setdefault((full, value is None, history.cell.label), []).append(metric)
    per_step = {
        unit: {h.cell.signature: rate for h in histories if (rate := h.per_step(unit)) is not None}
        for unit in {budget.unit for budget in budgets.values()}
    }
    flops = {}
    wanted = budgets.get(flops_of or "")
    for history in histories:
        step = None if wanted is None else history.step_at(wanted)
        rate = None if step is None else history.per_step("flops")
        if step is not None and rate is not None:
            flops[history.cell.signature] = step * rate
    return EqualTraining(budgets, values, per_step, notes + _one_line_for_equal(remarks), flops)


def first_few(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _one_line_for_equal(remarks: Mapping[tuple[str, bool, str], Sequence[str]]) -> list[str]:
    """(remark, whether the value is missing, cell) -> metrics, as one line for all cells with the same remark. Missing
    cells are all named."""
    cells: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for (remark, missing, label), metrics in remarks.items():
        cells.setdefault((remark, missing, tuple(metrics)), []).append(label)
    return [
        f"{remark} in {', '.join(labels) if missing else first_few(labels)}: {first_few(metrics)}"
        for (remark, missing, metrics), labels in cells.items()
    ]


def _histories(cells: Iterable[Cell], read: ReadHistory) -> list[CellHistory]:
    found = []
    for cell in cells:
        files = CellFiles.read(cell.directory)
        if files.result is not None and files.state is State.FINISHED:
            found.append(CellHistory(cell, files.run_id, files.result.step, read))
        elif files.run_id is not None and files.state in (State.RUNNING, State.INTERRUPTED, State.AT_GATE):
            found.append(CellHistory(cell, files.run_id, None, read))
    return found


def _common_step(histories: Sequence[CellHistory], metric: str) -> tuple[At, str]:
    """The last step of `metric` that every cell has which has it at all, and a note that names the cell that sets
    it."""
    last_steps = {history.cell.label: points[-1][0] for history in histories if (points := history.points(metric))}
    slowest = min(last_steps, key=last_steps.__getitem__)
    step = last_steps[slowest]
    where = f", where {slowest} is" if step < max(last_steps.values()) else ""
    return At("step", float(step)), f"compared at step {step}, the last that all cells with a history have{where}"
