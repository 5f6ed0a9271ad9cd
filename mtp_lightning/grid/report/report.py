"""The comparison: per setting the mean, spread and number of seeds of every metric, and the difference to the baseline.

Differences are paired by seed: seeds share their data order and much of their luck, so the difference of two runs with
one seed varies less than that of two runs with different ones. Cells that are missing are named, never guessed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtp_lightning.grid.report import metrics as known
from mtp_lightning.grid.report.budgets import Aligned, ReadHistory, align, at_text, some
from mtp_lightning.grid.report.statistics import Difference, Summary, compared, summarise
from mtp_lightning.grid.run.state import RUN_ID, Result, State, cell_state, failure_reason
from mtp_lightning.grid.spec.cells import Cell, baseline_values
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.spec.signature import canonical

ReadMetrics = Callable[[str], Mapping[str, float]]
"""MLflow run id -> last values; asked only for metrics to compare that a result does not hold."""


@dataclass(frozen=True)
class Group:
    """The seeds of one setting."""

    label: str
    signature: str
    values: Mapping[str, Any]
    """As `Cell.values`: a setting need not have every axis, and may have other keys."""
    results: Mapping[int, Mapping[str, float]]
    """Seed -> metrics, of the cells that take part."""
    seeds: Sequence[int]
    """Of all cells, there or missing."""
    baseline: str | None
    """The signature of the group it is compared with; its own for a baseline."""

    @property
    def is_baseline(self) -> bool:
        return self.baseline == self.signature

    def by_seed(self, metric: str) -> dict[int, float]:
        return {seed: metrics[metric] for seed, metrics in self.results.items() if metric in metrics}

    def summary(self, metric: str) -> Summary | None:
        return summarise(list(self.by_seed(metric).values()))


@dataclass(frozen=True)
class Report:
    spec: GridSpec
    cells: Sequence[Cell]
    groups: Sequence[Group]
    metrics: Sequence[str]
    missing: Sequence[str]
    """`n_future=4 seed=1 (failed: ...)`"""
    warnings: Sequence[str]
    unfinished: Sequence[str] = ()
    """`n_future=4 seed=1 (running)`: cells that take part where the budget allows it."""
    aligned: Aligned = field(default_factory=Aligned)

    def group(self, signature: str | None) -> Group | None:
        return next((group for group in self.groups if group.signature == signature), None)

    def base(self, group: Group) -> Group | None:
        """What a setting is compared with; None for a baseline itself."""
        return None if group.is_baseline else self.group(group.baseline)

    def difference(self, group: Group, metric: str) -> Difference | None:
        """To the baseline, over the seeds that both have; None for the baseline itself."""
        base = self.base(group)
        return None if base is None else compared(group.by_seed(metric), base.by_seed(metric))

    def pairs(self, group: Group, metric: str) -> dict[int, float]:
        """The difference to the baseline of each seed that both have."""
        base = self.base(group)
        theirs = {} if base is None else base.by_seed(metric)
        return {seed: value - theirs[seed] for seed, value in group.by_seed(metric).items() if seed in theirs}

    def better(self, metric: str) -> str | None:
        """`lower`, `higher`, or None where neither the grid file nor the name tells."""
        return self.spec.better.get(metric) or known.better(metric)

    def named(self, metric: str) -> str:
        """`val/loss/head_1 at step 1000`; the bare name where it is compared at the end."""
        at = self.aligned.at.get(metric)
        return f"{metric} at {at_text(at)}" if at else metric


def build_report(
    spec: GridSpec,
    cells: Sequence[Cell],
    read_metrics: ReadMetrics | None = None,
    read_history: ReadHistory | None = None,
    at: At | None = None,
) -> Report:
    """`at` stands before the grid file's: for every metric compared, and what else there is of validation."""
    found = {cell.signature: Result.read(cell.directory) for cell in cells}
    finished = {name: result for name, result in found.items() if result is not None}
    values = {
        cell.signature: _metrics(cell, finished[cell.signature], spec.compare, read_metrics)
        for cell in cells
        if cell.signature in finished
    }
    rows = known.ordered(spec.compare, {name for metrics in values.values() for name in metrics})
    where = spec.at if at is None else {m: at for m in rows if m in spec.compare or m.startswith("val/")}
    aligned = Aligned()
    if where:
        assert read_history is not None, "a budget is found in the cells' histories"
        aligned = align(cells, where, read_history)
        ended = {name: {m: v for m, v in had.items() if m not in aligned.at} for name, had in values.items()}
        values = {name: {**ended.get(name, {}), **aligned.values.get(name, {})} for name in {**ended, **aligned.values}}
    return Report(
        spec,
        cells,
        _groups(spec, cells, values),
        rows,
        missing=[_unfinished(cell) for cell in cells if cell.signature not in values],
        warnings=_warnings(cells, finished, lengths=not set(spec.compare) <= set(aligned.at)),
        unfinished=[_unfinished(cell) for cell in cells if cell.signature in values and cell.signature not in finished],
        aligned=aligned,
    )


def _metrics(cell: Cell, result: Result, compare: Sequence[str], read_metrics: ReadMetrics | None) -> dict[str, float]:
    metrics = dict(result.metrics)
    run_id = cell.directory / RUN_ID
    if read_metrics is not None and not set(compare) <= set(metrics) and run_id.is_file():
        recorded = read_metrics(run_id.read_text().strip())
        metrics.update({name: recorded[name] for name in compare if name in recorded and name not in metrics})
    return metrics


def _groups(spec: GridSpec, cells: Sequence[Cell], values: Mapping[str, Mapping[str, float]]) -> list[Group]:
    by_group: dict[str, list[Cell]] = {}
    group_of: dict[str, str] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(cell)
        for same in (cell, *cell.aliases):
            group_of.setdefault(canonical(same.values), cell.group)

    return [
        Group(
            label=members[0].group_label,
            signature=name,
            values=members[0].values,
            results={cell.seed: values[cell.signature] for cell in members if cell.signature in values},
            seeds=[cell.seed for cell in members],
            baseline=group_of.get(canonical(baseline_values(spec, members[0].values))),
        )
        for name, members in by_group.items()
    ]


def _unfinished(cell: Cell) -> str:
    state = cell_state(cell.directory)
    reason = failure_reason(cell.directory) if state is State.FAILED else None
    return f"{cell.label} ({state.value}{f': {reason}' if reason else ''})"


def _warnings(cells: Sequence[Cell], results: Mapping[str, Result], lengths: bool) -> list[str]:
    """Numbers of runs on different data do not compare, nor those of different length unless taken at one budget."""
    warnings = []
    for what, read in (("data", _fingerprint), *([("number of steps", _steps)] if lengths else [])):
        labels: dict[str, list[str]] = {}
        for cell in cells:
            found = read(results[cell.signature]) if cell.signature in results else None
            if found is not None:
                labels.setdefault(found, []).append(cell.label)
        if len(labels) > 1:
            cases = "; ".join(f"{found}: {some(names)}" for found, names in labels.items())
            warnings.append(f"the cells differ in their {what}, so their numbers may not compare ({cases})")
    return warnings


def _fingerprint(result: Result) -> str | None:
    return result.data_fingerprint


def _steps(result: Result) -> str:
    return str(result.step)
