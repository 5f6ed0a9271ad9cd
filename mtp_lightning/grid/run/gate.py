"""A gate: every cell runs to one step and waits there; settings that are too far from the best by then end there.

    gate: {at: step=500, keep: within 0.1 of the best}

A setting is judged by the mean over its seeds of the grid's first metric, as it was validated last at that step, and
with all its seeds: to stop the unlucky ones alone would flatter the mean of the rest. It is judged once all cells of
all settings of its size (of a ladder) are there, so that what is stopped follows from the curves and not from which
cell ran first. Baselines and the best are never stopped, nor a setting whose cells are all finished. Which cells go on
follows from their files alone: `grid run` goes on by itself, `grid submit` and `grid resume` take up the rest when they
are called again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from mtp_lightning.config.cell import is_saving
from mtp_lightning.errors import InputError, UnavailableError
from mtp_lightning.grid.report.metric_names import LOWER, better_direction, format_value
from mtp_lightning.grid.report.tuning import DIVERGED
from mtp_lightning.grid.run.attempts import saved_step
from mtp_lightning.grid.run.state import CellFiles, State
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.labels import Labels
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.tracking import read as tracking
from mtp_lightning.tracking.store import default_tracking_uri


@dataclass(frozen=True)
class Judged:
    """A setting at the gate."""

    label: str
    group: str
    size: str
    """`dim=64`, among whose settings it is judged; empty without a ladder."""
    value: float | None
    """Mean of the metric over its seeds, infinitely bad where one diverged; None: a seed has none, and it passes."""
    distance: float | None
    """From the best of its size."""
    is_baseline: bool
    is_stopped: bool

    def json(self) -> dict[str, Any]:
        named = {"setting": self.label, "signature": self.group, "size": self.size or None}
        judged = {"value": self.value, "distance": self.distance}
        return {**named, **judged, "is_baseline": self.is_baseline, "stopped": self.is_stopped}


@dataclass(frozen=True)
class Gating:
    cells: Sequence[Cell]
    """All; `pause_at` is set for those that have not come to the gate."""
    metric: str = ""
    step: int = 0
    within: float = 0.0
    judged: Sequence[Judged] = ()
    waiting: frozenset[str] = frozenset()
    """Signatures of cells at the gate that others have not come to yet."""
    waits_for: Sequence[str] = ()
    """`n_future=4 seed=1 (failed)`"""

    @property
    def stopped(self) -> dict[str, Judged]:
        """Signature of a setting -> what it was stopped for."""
        return {one.group: one for one in self.judged if one.is_stopped}

    @property
    def compared(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.group not in self.stopped]

    def may_run(self, cell: Cell) -> bool:
        return cell.group not in self.stopped and cell.signature not in self.waiting

    @property
    def follows(self) -> str:
        if not self.waits_for:
            return ""
        keep = f"within {self.within:g} of the best"
        return f"then the gate: settings whose {self.metric} is {keep} at step {self.step} go on to their end"

    def show(self, rows: Sequence[CellStatus]) -> list[CellStatus]:
        """The states that follow from the gate: of cells that are stopped, or wait for others."""
        found = []
        for row in rows:
            stopped = self.stopped.get(row.cell.group)
            if stopped is not None:
                row = replace(row, gate=(State.STOPPED, self.why(stopped)))
            elif row.cell.signature in self.waiting and row.state in (State.AT_GATE, State.INTERRUPTED):
                row = replace(row, gate=(State.AT_GATE, f"waits for {len(self.waits_for)} more"))
            found.append(row)
        return found

    def why(self, one: Judged) -> str:
        """`0.4200 from the best at step 500`"""
        assert one.distance is not None, "what has no value is not stopped"
        far = format_value(self.metric, one.distance) if math.isfinite(one.distance) else "infinitely far"
        return f"{far} from the best{f' of {one.size}' if one.size else ''} at step {self.step}"

    def json(self) -> dict[str, Any] | None:
        if not self.step:
            return None
        at = {"unit": "step", "amount": self.step}
        settings = [one.json() for one in self.judged]
        return {"metric": self.metric, "at": at, "within": self.within, "judged": settings, "waits_for": self.waits_for}


def gated(spec: GridSpec, cells: Sequence[Cell]) -> Gating:
    """What the gate makes of the cells; all of them as they are, where there is none.

    Raises:
        InputError: it cannot be at this step, or it is not known which way the metric is better.
        UnavailableError: a cell passed the step without waiting there, and MLflow, which has its value, cannot be read.
    """
    if spec.gate is None:
        return Gating(cells)
    metric, step = spec.compare[0], spec.gate.step
    direction = spec.better.get(metric) or better_direction(metric)
    if direction is None:
        what = f"whether a lower or a higher {metric} is better is not known"
        raise InputError(f"{spec.where('gate')}: {what}; give {{metric: {metric}, better: lower}} in `compare`")
    _check(spec, step, cells)
    sign = 1.0 if direction == LOWER else -1.0
    files = {cell.signature: CellFiles.read(cell.directory) for cell in cells}
    passed = {cell.signature for cell in cells if _is_there(cell, files[cell.signature], step)}
    judged: list[Judged] = []
    waiting: set[str] = set()
    waits_for: list[str] = []
    for size, members in _by_size(spec, cells).items():
        if late := [cell for cell in members if cell.signature not in passed]:
            waits_for += [f"{cell.label} ({files[cell.signature].state.value})" for cell in late]
            waiting |= {c.signature for c in members if c.signature in passed and not files[c.signature].result}
        else:
            judged += _judge(size, members, files, metric, step, spec.gate.within, sign)
    marked = [cell if cell.signature in passed else replace(cell, pause_at=step) for cell in cells]
    return Gating(marked, metric, step, spec.gate.within, judged, frozenset(waiting), waits_for)


def _judge(
    size: str,
    cells: Sequence[Cell],
    files: Mapping[str, CellFiles],
    metric: str,
    step: int,
    within: float,
    sign: float,
) -> list[Judged]:
    settings: dict[str, list[Cell]] = {}
    for cell in cells:
        settings.setdefault(cell.group, []).append(cell)
    means: dict[str, float | None] = {}
    for name, members in settings.items():
        found = [_value(cell, files[cell.signature], metric, step) for cell in members]
        known = [value for value in found if value is not None]
        finite = all(map(math.isfinite, known))
        means[name] = None if len(known) < len(found) else fmean(known) if finite else sign * math.inf
    best = min((sign * mean for mean in means.values() if mean is not None), default=math.inf)
    judged = []
    for name, members in settings.items():
        mean = means[name]
        distance = None if mean is None or math.isinf(best) else sign * mean - best
        over = all(files[cell.signature].result is not None for cell in members)
        baseline = any(cell.baseline for cell in members)
        stopped = distance is not None and distance > within and not baseline and not over
        judged.append(Judged(members[0].group_label, name, size, mean, distance, baseline, stopped))
    return judged


def _is_there(cell: Cell, files: CellFiles, step: int) -> bool:
    """At the gate, past it, or never to come to it: a run that diverged is a result, the worst. Other failures are
    accidents, for which the others wait."""
    past = files.state is not State.RUNNING and saved_step(cell.directory) >= step
    return files.paused_at(step) or files.result is not None or past or _diverged(files)


def _value(cell: Cell, files: CellFiles, metric: str, step: int) -> float | None:
    if files.paused_at(step) and files.gate is not None:
        return files.gate.metrics.get(metric)
    if _diverged(files):
        return math.inf
    if files.run_id is None:
        return None
    try:  # it ran in another grid, or before there was a gate, and did not wait
        uri = default_tracking_uri(cell.directory.parent)
        points = tracking.history(uri, files.run_id, [metric]).get(metric, [])
    except Exception as error:  # MLflow raises what its store raises
        what = f"{cell.label}: its {metric} at step {step}, by which the gate judges it, cannot be read from MLflow"
        raise UnavailableError(f"{what}: {type(error).__name__}: {error}") from error
    return next((value for at, value in reversed(points) if at <= step), None)


def _diverged(files: CellFiles) -> bool:
    return files.state is State.FAILED and files.failure is not None and files.failure.error == DIVERGED


def _by_size(spec: GridSpec, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """By what is told of it; settings of different sizes are not each other's rivals."""
    if spec.ladder is None:
        return {"": list(cells)}
    keys, labels = spec.together(spec.ladder.size), Labels(spec)
    found: dict[str, list[Cell]] = {}
    names: dict[str, str] = {}
    for cell in cells:
        size = {key: cell.values[key] for key in keys if key in cell.values}
        name = names.setdefault(canonical(size), " ".join(labels.parts(size)) or "no size")
        found.setdefault(name, []).append(cell)
    return found


def _check(spec: GridSpec, step: int, cells: Sequence[Cell]) -> None:
    problems: dict[str, None] = {}
    for cell in cells:
        trainer = cell.config["trainer"]
        last, first = trainer["max_steps"], trainer.get("val_check_interval")
        if 0 < last <= step:
            what = f"step {step} is not before the end of {cell.group_label}, at step {last}"
            problems[f"{what}: trainer.max_steps"] = None
        elif isinstance(first, int) and first > step:
            what = f"step {step} comes before the first validation of {cell.group_label}, at step {first}"
            problems[f"{what}: trainer.val_check_interval"] = None
        if not any(map(is_saving, trainer["callbacks"] or [])):
            what = f"{cell.group_label} saves nothing to go on from: trainer.callbacks has no"
            problems[f"{what} callbacks.checkpointing.PeriodicCheckpoint"] = None
    if problems:
        raise InputError("\n".join(f"{spec.where('gate', 'at')}: {problem}" for problem in problems))
