"""The comparison: per setting the mean, spread and number of seeds of every metric, and the difference to the baseline.

Differences are paired by seed: seeds share their data order and much of their luck, so the difference of two runs with
one seed varies less than that of two runs with different ones. Cells that are missing are named, never guessed. One
that diverged is not missing: what was validated of it is not a number, and so is its setting's mean, for the mean of
the seeds that held would flatter settings that seldom hold.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mtp_lightning.grid.report import metric_names
from mtp_lightning.grid.report.alike import chosen_elsewhere, unlike
from mtp_lightning.grid.report.equal_training import (
    PER_TOKEN,
    EqualTraining,
    ReadHistory,
    at_text,
    values_at,
)
from mtp_lightning.grid.report.statistics import Difference, Summary, difference_of, pooled_sd, summarise
from mtp_lightning.grid.report.tuning import Choice, arm_of, tuned
from mtp_lightning.grid.run.gate import Gating, gated
from mtp_lightning.grid.run.state import CellFiles, Result, State
from mtp_lightning.grid.spec.cells import Cell, baseline_values
from mtp_lightning.grid.spec.grid_spec import At, GridSpec

if TYPE_CHECKING:
    from mtp_lightning.grid.report.ladder.of_grid import Ladder

ReadMetrics = Callable[[str], Mapping[str, float]]
"""MLflow run id -> last values; called only for metrics to compare that a result does not hold."""


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
    diverged: Sequence[int] = ()
    """The seeds whose run failed since it diverged; of `results` too, with nan."""

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
    diverged: Sequence[str] = ()
    """`n_future=4 seed=1 (at step 40: its loss is not finite)`: they failed by that, and take part."""
    equal_training: EqualTraining = field(default_factory=EqualTraining)
    choices: Sequence[Choice] = ()
    """Of each arm, where an axis is tuned."""
    gate: Gating = field(default_factory=lambda: Gating(()))
    """Settings that it stopped are in none of the above."""
    stopped: Sequence[Group] = ()
    """Those, without results."""
    ladders: "Sequence[Ladder]" = ()
    """Where the grid file says which axis is the size."""

    @property
    def expected(self) -> int:
        """How many cells are compared once all are there; those of arms that are still tuned are not in `cells`."""
        return len(self.cells) + sum(len(choice.later) for choice in self.choices)

    def group(self, signature: str | None) -> Group | None:
        return next((group for group in self.groups if group.signature == signature), None)

    def baseline_of(self, group: Group) -> Group | None:
        """What a setting is compared with; None for a baseline itself."""
        return None if group.is_baseline else self.group(group.baseline)

    def difference(self, group: Group, metric: str) -> Difference | None:
        """To the baseline, over the seeds that both have; None for the baseline itself."""
        baseline = self.baseline_of(group)
        return None if baseline is None else difference_of(group.by_seed(metric), baseline.by_seed(metric))

    def differences_by_seed(self, group: Group, metric: str) -> dict[int, float]:
        """To the baseline, of each seed that both have."""
        baseline = self.baseline_of(group)
        theirs = {} if baseline is None else baseline.by_seed(metric)
        return {seed: value - theirs[seed] for seed, value in group.by_seed(metric).items() if seed in theirs}

    def direction(self, metric: str) -> str | None:
        """Which way is better: `lower`, `higher`, or None where neither the grid file nor the name says."""
        return self.spec.better.get(metric) or metric_names.better_direction(metric)

    def at(self, metric: str) -> At | None:
        """Where the metric is compared; None for the end."""
        return self.equal_training.at.get(metric)

    def with_budget(self, metric: str) -> str:
        """`val/loss/head_1 at step 1000`; the bare name where it is compared at the end."""
        at = self.at(metric)
        return f"{metric} at {at_text(at)}" if at else metric


def build_report(
    spec: GridSpec,
    cells: Sequence[Cell],
    read_metrics: ReadMetrics | None = None,
    read_history: ReadHistory | None = None,
    at: At | None = None,
) -> Report:
    """
    Args:
        cells: every combination of the grid; of a tuned axis the chosen values are compared.
        at: takes the place of the grid file's, for every metric compared and all others of validation.
    """
    tuning = tuned(spec, cells)
    gate = gated(spec, tuning.compared)
    cells = gate.compared
    files = {cell.signature: CellFiles.read(cell.directory) for cell in cells}
    finished = {name: f.result for name, f in files.items() if f.result is not None and f.state is State.FINISHED}
    values = {
        cell.signature: _metrics(files[cell.signature], finished[cell.signature], spec.compare, read_metrics)
        for cell in cells
        if cell.signature in finished
    }
    rows = metric_names.report_order(spec.compare, {name for metrics in values.values() for name in metrics})
    budgets = spec.at if at is None else {m: at for m in rows if m in spec.compare or m.startswith("val/")}
    equal = EqualTraining()
    if budgets:
        assert read_history is not None, "a budget is found in the cells' histories"
        equal = values_at(cells, budgets, read_history, flops_of=spec.compare[0] if spec.ladder else None)
        at_end = {name: {m: v for m, v in metrics.items() if m not in equal.at} for name, metrics in values.items()}
        values = {name: {**at_end.get(name, {}), **equal.values.get(name, {})} for name in {**at_end, **equal.values}}
    diverged = [cell for cell in cells if files[cell.signature].diverged]
    values |= _of_diverged(diverged, cells, values, spec.compare)
    missing = [_label_and_state(cell, files[cell.signature]) for cell in cells if cell.signature not in values]
    for choice in tuning.choices:
        missing += [f"{choice.arm} seed={cell.seed} (its {choice.axis} is not chosen yet)" for cell in choice.later]
    groups = _groups(spec, gate.cells, values, [cell.signature for cell in diverged])
    spread = pooled_sd([group.by_seed(spec.compare[0]) for group in groups])
    report = Report(
        spec,
        cells,
        [group for group in groups if group.signature not in gate.stopped],
        rows,
        missing=missing,
        warnings=[
            *unlike(spec, cells, finished, lengths=not set(spec.compare) <= set(equal.at)),
            *chosen_elsewhere(tuning.choices, spec.compare[0], equal.at.get(spec.compare[0])),
        ],
        unfinished=[
            _label_and_state(c, files[c.signature])
            for c in cells
            if c.signature in values and c.signature not in finished and c not in diverged
        ],
        diverged=[f"{cell.label} ({_how_it_diverged(files[cell.signature])})" for cell in diverged],
        equal_training=equal,
        choices=[replace(choice, spread=spread) for choice in tuning.choices],
        gate=gate,
        stopped=[group for group in groups if group.signature in gate.stopped],
    )
    return report if spec.ladder is None else replace(report, ladders=_ladders(report, finished))


def _ladders(report: Report, finished: Mapping[str, Result]) -> "Sequence[Ladder]":
    from mtp_lightning.grid.report.ladder.of_grid import find_ladders  # numpy

    metric = report.spec.compare[0]
    spent: dict[str, dict[int, float]] = {}
    for cell in report.cells:
        result = finished.get(cell.signature)
        found = None if result is None else _flops(result)
        if report.at(metric) is not None:
            found = report.equal_training.flops.get(cell.signature)
        if found is not None:
            spent.setdefault(cell.group, {})[cell.seed] = found
    return find_ladders(report.spec, report.groups, metric, report.direction(metric), spent, report.stopped)


def _flops(result: Result) -> float | None:
    per_token = result.metrics.get(PER_TOKEN["flops"])
    return None if result.tokens is None or per_token is None else result.tokens * per_token


def _metrics(
    files: CellFiles, result: Result, compare: Sequence[str], read_metrics: ReadMetrics | None
) -> dict[str, float]:
    metrics = dict(result.metrics)
    if read_metrics is not None and not set(compare) <= set(metrics) and files.run_id is not None:
        recorded = read_metrics(files.run_id)
        metrics.update({name: recorded[name] for name in compare if name in recorded and name not in metrics})
    return metrics


def _of_diverged(
    diverged: Sequence[Cell], cells: Sequence[Cell], values: Mapping[str, Mapping[str, float]], compare: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Nan for what is compared or validated, as far as another seed of the setting has it (head 2 of one head has no
    loss), and for the first metric of `compare` in any case; of a setting that no seed held for all of `compare`. So
    at a budget that the run passed before it diverged, too."""
    known: dict[str, set[str]] = {}
    for cell in cells:
        known.setdefault(cell.group, set()).update(values.get(cell.signature, ()))
    return {
        cell.signature: {
            name: math.nan
            for name in {compare[0], *(known[cell.group] or compare)}
            if name in compare or name.startswith("val/")
        }
        for cell in diverged
    }


def _how_it_diverged(files: CellFiles) -> str:
    """`at step 40: its loss is not finite`: without the advice that follows in the message."""
    assert files.failure is not None, "what diverged left it"
    return " ".join(files.failure.message.partition(". ")[0].removeprefix("diverged ").split())


def _groups(
    spec: GridSpec, cells: Sequence[Cell], values: Mapping[str, Mapping[str, float]], diverged: Collection[str]
) -> list[Group]:
    by_group: dict[str, list[Cell]] = {}
    group_of: dict[str, str] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(cell)
        for same in (cell, *cell.aliases):
            group_of.setdefault(arm_of(spec, same.values), cell.group)

    return [
        Group(
            label=members[0].group_label,
            signature=name,
            values=members[0].values,
            results={cell.seed: values[cell.signature] for cell in members if cell.signature in values},
            seeds=[cell.seed for cell in members],
            baseline=group_of.get(arm_of(spec, baseline_values(spec, members[0].values))),
            diverged=[cell.seed for cell in members if cell.signature in diverged],
        )
        for name, members in by_group.items()
    ]


def _label_and_state(cell: Cell, files: CellFiles) -> str:
    state = files.state
    reason = files.reason if state in (State.FAILED, State.DAMAGED) else None
    return f"{cell.label} ({state.value}{f': {reason}' if reason else ''})"
