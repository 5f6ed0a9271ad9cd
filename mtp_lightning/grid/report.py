"""The comparison: per setting the mean, spread and number of seeds of every metric, and the difference to the baseline.

Differences are paired by seed: seeds share their data order and much of their luck, so the difference of two runs with
one seed varies less than that of two runs with different ones. Cells that are missing are named, never guessed.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtp_lightning.grid.cells import Cell, baseline_values
from mtp_lightning.grid.metrics import ordered
from mtp_lightning.grid.spec import GridSpec
from mtp_lightning.grid.state import RUN_ID, Result, State, cell_state, failure_reason

ReadMetrics = Callable[[str], Mapping[str, float]]
"""MLflow run id -> last values; asked only for metrics to compare that a result does not hold."""


@dataclass(frozen=True)
class Summary:
    """Sample mean over seeds; `sd` is the sample standard deviation (n - 1), None for a single seed."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """The seeds of one setting."""

    label: str
    signature: str
    values: Mapping[str, Any]
    results: Mapping[int, Mapping[str, float]]
    """Seed -> metrics, of the finished cells."""
    baseline: str | None
    """The signature of the group it is compared with; its own for a baseline."""

    def summary(self, metric: str) -> Summary | None:
        return summarise([metrics[metric] for metrics in self.results.values() if metric in metrics])


@dataclass(frozen=True)
class Report:
    spec: GridSpec
    cells: Sequence[Cell]
    groups: Sequence[Group]
    metrics: Sequence[str]
    missing: Sequence[str]
    """`n_future=4 seed=1 (failed: ...)`"""
    warnings: Sequence[str]

    def group(self, signature: str | None) -> Group | None:
        return next((group for group in self.groups if group.signature == signature), None)

    def difference(self, group: Group, metric: str) -> Summary | None:
        """To the baseline, over the seeds that both have; None for the baseline itself."""
        base = self.group(group.baseline)
        return None if base is None or base is group else difference(group, base, metric)


def build_report(spec: GridSpec, cells: Sequence[Cell], read_metrics: ReadMetrics | None = None) -> Report:
    results = {cell.signature: Result.read(cell.directory) for cell in cells}
    finished = {name: result for name, result in results.items() if result is not None}
    values = {
        cell.signature: _metrics(cell, finished[cell.signature], spec.compare, read_metrics)
        for cell in cells
        if cell.signature in finished
    }
    groups = _groups(spec, cells, values)
    metrics = ordered(spec.compare, {name for found in values.values() for name in found})
    missing = [_missing(cell) for cell in cells if cell.signature not in finished]
    return Report(spec, cells, groups, metrics, missing, _warnings(cells, finished))


def summarise(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    mean = _mean(values)
    sd = statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None
    return Summary(mean, sd, len(values))


def _mean(values: Sequence[float]) -> float:
    # A diverged seed is part of the setting's result, not an outlier to be left out.
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def difference(group: Group, base: Group, metric: str) -> Summary | None:
    """Mean and sd of (group - base), seed by seed. Without a common seed: the means' difference, no spread, n=0."""
    mine = {seed: found[metric] for seed, found in group.results.items() if metric in found}
    theirs = {seed: found[metric] for seed, found in base.results.items() if metric in found}
    paired = summarise([mine[seed] - theirs[seed] for seed in mine if seed in theirs])
    if paired is not None or not mine or not theirs:
        return paired
    return Summary(_mean(list(mine.values())) - _mean(list(theirs.values())), None, 0)


def _metrics(cell: Cell, result: Result, compare: Sequence[str], read_metrics: ReadMetrics | None) -> dict[str, float]:
    metrics = dict(result.metrics)
    run_id = cell.directory / RUN_ID
    if read_metrics is not None and not set(compare) <= set(metrics) and run_id.is_file():
        recorded = read_metrics(run_id.read_text().strip())
        metrics.update({name: recorded[name] for name in compare if name in recorded and name not in metrics})
    return metrics


def _groups(spec: GridSpec, cells: Sequence[Cell], values: Mapping[str, Mapping[str, float]]) -> list[Group]:
    by_group: dict[str, list[Cell]] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(cell)

    def group_of(setting: Mapping[str, Any] | None) -> str | None:
        if setting is None:
            return None
        return next((cell.group for cell in cells if cell.stands_for(setting)), None)

    return [
        Group(
            label=members[0].group_label,
            signature=name,
            values=members[0].values,
            results={cell.seed: values[cell.signature] for cell in members if cell.signature in values},
            baseline=group_of(baseline_values(spec, members[0].values)),
        )
        for name, members in by_group.items()
    ]


def _missing(cell: Cell) -> str:
    state = cell_state(cell.directory)
    reason = failure_reason(cell.directory) if state is State.FAILED else None
    return f"{cell.label} ({state.value}{f': {reason}' if reason else ''})"


def _warnings(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[str]:
    """Numbers of runs on different data, or of different length, do not compare."""
    warnings = []
    for what, read in (("data", _fingerprint), ("number of steps", _steps)):
        labels: dict[str, list[str]] = {}
        for cell in cells:
            found = read(results[cell.signature]) if cell.signature in results else None
            if found is not None:
                labels.setdefault(found, []).append(cell.label)
        if len(labels) > 1:
            cases = "; ".join(f"{found}: {_some(names)}" for found, names in labels.items())
            warnings.append(f"the cells differ in their {what}, so their numbers may not compare ({cases})")
    return warnings


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _fingerprint(result: Result) -> str | None:
    return result.data_fingerprint


def _steps(result: Result) -> str:
    return str(result.step)
