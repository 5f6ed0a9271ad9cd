"""A gate: every cell runs to one step and waits there; settings that are too far from the best by then end there.

    gate: {at: step=500, keep: within 0.1 of the best}

A setting is judged by the mean over its seeds of the grid's first metric, as it was validated at that very step, and
with all its seeds: to stop the unlucky ones alone would flatter the mean of the rest. It is judged once all cells of
all settings of its size (of a ladder) are there, so that what is stopped follows from the curves and not from which
cell ran first. Baselines and the best are never stopped, nor a setting whose cells are all finished. Which cells go on
follows from their files alone: `grid run` goes on by itself, `grid submit` and `grid resume` take up the rest when they
are called again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from mtp_lightning.config.cell import is_saving
from mtp_lightning.errors import InputError, UnavailableError
from mtp_lightning.files import DamagedError
from mtp_lightning.grid.report.metric_names import LOWER, better_direction, format_value
from mtp_lightning.grid.report.statistics import countable
from mtp_lightning.grid.run.attempts import read_attempts, saved_step
from mtp_lightning.grid.run.state import DIVERGED, CellFiles, State
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.labels import Labels
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.tracking import read as tracking
from mtp_lightning.tracking.store import NotRecordedError, default_tracking_uri


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
    """All; `pause_at` is set for those that have not come to the gate, and those that diverged on the way to it."""
    metric: str = ""
    step: int = 0
    within: float = 0.0
    judged: Sequence[Judged] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Signature of a cell at the gate -> how many of its size have not come to it yet."""
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
        """The states that follow from the gate: of cells that are stopped, or wait for others. One that failed shows
        that, and waits too."""
        found = []
        for row in rows:
            stopped, more = self.stopped.get(row.cell.group), self.waiting.get(row.cell.signature)
            if stopped is not None:
                row = replace(row, gate=(State.STOPPED, self.why(stopped)))
            elif more is not None and row.state is State.FAILED:
                row = replace(row, gate=(State.FAILED, f"{row.reason}; waits for {more} more"))
            elif more is not None:
                row = replace(row, gate=(State.AT_GATE, f"waits for {more} more"))
            found.append(row)
        return found

    @property
    def rows(self) -> list[list[str]]:
        """A table of every setting as it was judged, in the order of the grid; its head first."""

        def number(value: float | None) -> str:
            return "–" if value is None else format_value(self.metric, value)

        def row(one: Judged) -> list[str]:
            end = "stopped" if one.is_stopped else "baseline" if one.is_baseline else "went on"
            return [one.label, number(one.value), number(one.distance), end]

        head = [f"at step {self.step}", self.metric, f"from the best, {self.within:g} at most", ""]
        return [head, *map(row, self.judged)]

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
        UnavailableError: a cell passed the step without waiting there, and MLflow, which has its value, cannot be
            read. One that is not recorded there any more has no value.
    """
    if spec.gate is None:
        return Gating(cells)
    metric, step = spec.compare[0], spec.gate.step
    direction = spec.better.get(metric) or better_direction(metric)
    if direction is None:
        what = f"whether a lower or a higher {metric} is better is not known"
        raise InputError(f"{spec.where('gate')}: {what}; give {{metric: {metric}, better: lower}} in `compare`")
    files = {cell.signature: CellFiles.read(cell.directory) for cell in cells}
    _check(spec, step, [cell for cell in cells if files[cell.signature].result is None])
    sign = 1.0 if direction == LOWER else -1.0
    passed = {cell.signature for cell in cells if _passed(cell, files[cell.signature], step)}
    there = passed | {cell.signature for cell in cells if _diverged(cell, files[cell.signature])}
    judged: list[Judged] = []
    waiting: dict[str, int] = {}
    waits_for: list[str] = []
    for size, members in _by_size(spec, cells).items():
        if late := [cell for cell in members if cell.signature not in there]:
            waits_for += [f"{cell.label} ({files[cell.signature].state.value})" for cell in late]
            kept = [c.signature for c in members if c.signature in there and files[c.signature].result is None]
            waiting |= dict.fromkeys(kept, len(late))
        else:
            judged += _judge(size, members, files, metric, step, spec.gate.within, sign)
    marked = [replace(cell, pause_at=None if cell.signature in passed else step) for cell in cells]
    return Gating(marked, metric, step, spec.gate.within, judged, waiting, waits_for)


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
        if not all(map(countable, known)):
            means[name] = sign * math.inf
        else:
            means[name] = fmean(known) if len(known) == len(found) else None
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


def _passed(cell: Cell, files: CellFiles, step: int) -> bool:
    """At the gate, or past it."""
    past = files.state is not State.RUNNING and saved_step(cell.directory) >= step
    return files.paused_at(step) or files.result is not None or past


def _diverged(cell: Cell, files: CellFiles) -> bool:
    """A run that diverged never comes to the gate, and that is a result, the worst; it stays one while the run is tried
    again. Other failures are accidents, for which the others wait."""
    if files.result is not None:
        return False
    if files.diverged:
        return True
    try:
        ended = [(attempt["state"], str(attempt["reason"])) for attempt in read_attempts(cell.directory)]
    except DamagedError:  # then only the last attempt is known
        return False
    return any(state == State.FAILED.value and reason.startswith(f"{DIVERGED}:") for state, reason in ended)


def _value(cell: Cell, files: CellFiles, metric: str, step: int) -> float | None:
    if files.paused_at(step) and files.gate is not None:
        return files.gate.metrics.get(metric)
    recorded = files.result is not None or saved_step(cell.directory) >= step
    found = _recorded(cell, files.run_id, metric, step) if recorded and files.run_id is not None else None
    return math.inf if found is None and _diverged(cell, files) else found


def _recorded(cell: Cell, run_id: str, metric: str, step: int) -> float | None:
    """Of a run that did not wait: in another grid, before there was a gate, or killed just there."""
    try:
        uri = default_tracking_uri(cell.directory.parent)
        return dict(tracking.history(uri, run_id, [metric]).get(metric, [])).get(step)
    except NotRecordedError:
        return None
    except Exception as error:  # MLflow raises what its store raises
        what = f"{cell.label}: its {metric} at step {step}, by which the gate judges it, cannot be read from MLflow"
        raise UnavailableError(f"{what}: {type(error).__name__}: {error}") from error


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
    """
    Args:
        cells: those that are still to come to the gate, or to go on from there.
    """
    problems: dict[str, None] = {}
    for cell in cells:
        trainer = cell.config["trainer"]
        last, name = trainer["max_steps"], cell.group_label
        if 0 < last <= step:
            problems[f"step {step} is not before the end of {name}, at step {last}: trainer.max_steps"] = None
        elif unjudged := _not_validated(trainer, step):
            problems[f"{name} is not validated at step {step}, where it is judged: {unjudged}"] = None
        if not any(map(is_saving, trainer["callbacks"] or [])):
            what = f"{name} saves nothing to go on from: trainer.callbacks has no"
            problems[f"{what} callbacks.checkpointing.PeriodicCheckpoint"] = None
    if problems:
        raise InputError("\n".join(f"{spec.where('gate', 'at')}: {problem}" for problem in problems))


def _not_validated(trainer: Mapping[str, Any], step: int) -> str:
    """Why not, and what would do; empty where it is. `val_check_interval` counts batches, of which a step takes
    `accumulate_grad_batches`."""
    every, last = trainer.get("val_check_interval"), trainer["max_steps"]
    if trainer.get("limit_val_batches") == 0:
        return "trainer.limit_val_batches is 0"
    if not isinstance(every, int):
        return f"give trainer.val_check_interval as a whole number of batches, not {every}"
    batches = trainer.get("accumulate_grad_batches") or 1
    period = every // math.gcd(every, batches)
    if step % period == 0:
        return ""
    before = step // period * period
    near = [f"step={at}" for at in (before, before + period) if at > 0 and not 0 < last <= at]
    each = f"trainer.val_check_interval is {every}" + (f", in batches, {batches} a step" if batches > 1 else "")
    return f"{each}; give {' or '.join(near) or 'a smaller one'}"
