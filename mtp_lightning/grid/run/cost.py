"""What the cells of a grid cost, and what is left of it. Reads only.

Tokens, FLOPs and memory follow from the configuration; hours from the nearest measurement: the cell's own run; its
other seeds; its own pace; other settings on the same resources, by FLOPs. Where nothing has run they are unknown.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError
from mtp_lightning.grid.run.attempts import saved_step
from mtp_lightning.grid.run.state import CellFiles, Progress, State
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.machine import machine_memory
from mtp_lightning.units import duration, quantity

HOUR = 3600.0
_ANEW_SECONDS = 20.0
ByFlops = Mapping[tuple[int, int], Callable[[float], float]]
"""(GPUs, processes) -> seconds of a run of so many FLOPs."""


@dataclass(frozen=True)
class Cost:
    """Of one cell, from its first step to its last."""

    size: Size
    seconds: float | None
    """On its resources; with validations, probes and start-up where whole runs were measured."""
    basis: str
    """Which measurement the seconds come from."""
    gpus: int
    done: float
    """The share that is spent already."""

    def amounts(self) -> dict[str, float | None]:
        """In the units of a budget."""
        hours = None if self.seconds is None else self.seconds / HOUR
        gpu_hours = 0.0 if not self.gpus else None if hours is None else hours * self.gpus
        return {"gpu_hours": gpu_hours, "hours": hours, "tokens": self.size.tokens, "flops": self.size.flops}

    @property
    def memory_bytes(self) -> int | None:
        return _memory(self.size, self.gpus)

    def json(self) -> dict[str, Any]:
        size = self.size
        return {
            "parameters": size.parameters,
            "parameters_non_embedding": size.parameters_non_embedding,
            "flops_per_token": size.flops_per_token,
            "memory_bytes": self.memory_bytes,
            "basis": self.basis,
            "done": self.done,
            **self.amounts(),
        }


def costs(cells: Sequence[Cell], resolver: Resolver) -> list[Cost]:
    """What each cell costs, reading its result or progress once.

    Args:
        resolver: the one that resolved the cells.

    Raises:
        InputError: cells that are still to run and cannot fit into memory.
    """
    runs = [_Run(cell, resolver.measure(cell.config)) for cell in cells]
    _check_memory([run for run in runs if run.result is None])
    return _costs(runs)


def _costs(runs: Sequence["_Run"]) -> list[Cost]:
    seeds: dict[str, list[float]] = {}
    timed: dict[tuple[int, int], list[tuple[float, float]]] = {}
    paces: dict[tuple[int, int], list[tuple[float, float]]] = {}  # no line goes through these and whole runs
    for run in runs:
        if run.wall_seconds is not None:
            seeds.setdefault(run.cell.group, []).append(run.wall_seconds)
        for found, seconds in ((timed, run.wall_seconds), (paces, run.pace)):
            if seconds and run.size.flops:
                found.setdefault(run.shape, []).append((float(run.size.flops), seconds))
    by_flops = {shape: time_by_flops(pairs) for shape, pairs in (paces | timed).items()}
    return [run.cost(seeds, by_flops) for run in runs]


def seconds_left(cells: Sequence[Cell], resolver: Resolver) -> dict[str, float]:
    """Of each cell by signature, up to its gate where one is ahead; without those of which nothing is known."""
    found = {}
    for cell, cost in zip(cells, _costs([_Run(cell, resolver.measure(cell.config)) for cell in cells])):
        if cost.seconds is not None:
            steps = cell.config["trainer"]["max_steps"]
            end = 1.0 if cell.pause_at is None else min(1.0, cell.pause_at / steps)
            found[cell.signature] = cost.seconds * max(0.0, end - cost.done)
    return found


def time_by_flops(timed: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """Seconds of a run of so many FLOPs: start-up + FLOPs / speed, the line through the runs that were timed with the
    smallest squares of relative errors. Where their FLOPs are all within a factor of two, or the line says that there
    is no start-up or that more FLOPs take less time, FLOPs over the median speed.

    Args:
        timed: FLOPs and seconds of each run, above 0; one at least.
    """
    speed = median(flops / seconds for flops, seconds in timed)
    most = max(flops for flops, _ in timed)
    if most >= 2 * min(flops for flops, _ in timed):
        x, y = [flops / most / seconds for flops, seconds in timed], [1 / seconds for _, seconds in timed]
        xx, xy, yy = (sum(map(prod, zip(one, other))) for one, other in ((x, x), (x, y), (y, y)))
        determinant = xx * yy - xy * xy  # of: start-up * y + slope * x = 1, for each run
        start_up, slope = (xx * sum(y) - xy * sum(x), yy * sum(x) - xy * sum(y))
        if min(determinant, start_up, slope) > 0:
            return lambda flops: (start_up + slope * flops / most) / determinant
    return lambda flops: flops / speed


class Expected:
    """`seconds_left`, or what is like it, asked again when a cell has ended, and now and then: those that run have come
    further."""

    def __init__(self, ask: Callable[[], Mapping[str, float]]) -> None:
        self._ask = ask
        self._known: Mapping[str, float] = {}
        self._ended, self._anew_at = -1, 0.0

    def seconds(self, ended: int) -> Mapping[str, float]:
        """
        Args:
            ended: how many cells have.
        """
        if ended != self._ended or time.monotonic() >= self._anew_at:
            self._known, self._ended = self._ask(), ended
            self._anew_at = time.monotonic() + _ANEW_SECONDS
        return self._known


class Pace:
    """Time left, from the steps seen since the attempt began (a resumed run does not begin at step 0).

    Args:
        pause_at: the step of a gate ahead.
    """

    def __init__(self, started_at: float, pause_at: int | None = None) -> None:
        self.started_at, self.pause_at = started_at, pause_at
        self._first: tuple[int, float] | None = None

    def seconds_left(self, progress: Progress | None) -> float | None:
        if progress is None or progress.updated_at < self.started_at:
            return None
        if self._first is None:
            self._first = (progress.step, progress.updated_at)
        step, at = self._first
        done, spent = progress.step - step, progress.updated_at - at
        if done <= 0:
            return None
        since = time.time() - progress.updated_at
        end = progress.max_steps if self.pause_at is None else min(progress.max_steps, self.pause_at)
        return max(0.0, (end - progress.step) * spent / done - since)


def _memory(size: Size, gpus: int) -> int | None:
    """Bytes of one process of a cell that asks for so many GPUs."""
    return size.gpu_memory_bytes if gpus else size.memory_bytes


def _check_memory(runs: Sequence["_Run"]) -> None:
    """A cell without `resources` has this machine's memory; how much a node of a cluster has, or a GPU, is known only
    where `resources.memory_gb` and `resources.gpu_memory_gb` say it."""
    problems: dict[str, None] = {}
    here = machine_memory()
    for cell, size_ in ((run.cell, run.size) for run in runs):
        wanted = cell.resources
        given = wanted.gpu_memory_gb if wanted.gpus else wanted.memory_gb
        memory = None if given is None else round(given * 1024**3)
        of_here = memory is None and wanted == Resources()
        limit = here if of_here else memory
        if limit is None or (_memory(size_, wanted.gpus) or 0) <= limit:
            continue
        from mtp_lightning.config.memory import check_memory  # and torch, which most plans do without

        try:
            check_memory(cell.config, memory, wanted.nodes * wanted.gpus)
        except InputError as error:
            problems[f"{cell.group_label}: {error}"] = None
    if problems:
        raise InputError("\n".join(problems))


class _Run:
    """What is known of a cell's run."""

    def __init__(self, cell: Cell, size: Size) -> None:
        self.cell, self.size = cell, size
        files = CellFiles.read(cell.directory)
        self.result = files.result
        self.progress = None if self.result else files.progress
        self.is_running = self.progress is not None and files.state is State.RUNNING
        used = cell.resources
        self.shape = (used.nodes * used.gpus, used.nodes * used.tasks_per_node)
        """(GPUs, processes): only speeds on the same compare."""

    @property
    def wall_seconds(self) -> float | None:
        return self.result.wall_seconds if self.result else None

    @property
    def pace(self) -> float | None:
        """Seconds for the whole run, by its progress."""
        rate = self.progress.tokens_per_second if self.progress else None
        return self.size.tokens / rate if rate and self.size.tokens else None

    def cost(self, seeds: Mapping[str, Sequence[float]], by_flops: ByFlops) -> Cost:
        seconds, basis = self._seconds(seeds, by_flops)
        return Cost(self.size, seconds, basis, self.shape[0], self._done())

    def _done(self) -> float:
        """A run that is not at work continues from its newest checkpoint."""
        if self.result or not self.progress or self.progress.max_steps < 1:
            return 1.0 if self.result else 0.0
        step = self.progress.step if self.is_running else saved_step(self.cell.directory)
        return min(1.0, step / self.progress.max_steps)

    def _seconds(self, seeds: Mapping[str, Sequence[float]], by_flops: ByFlops) -> tuple[float | None, str]:
        if self.wall_seconds is not None:
            return self.wall_seconds, "measured"
        if others := seeds.get(self.cell.group):
            return median(others), "its other seeds"
        if self.pace is not None:
            return self.pace, "its pace"
        if self.size.flops and (found := by_flops.get(self.shape)):
            return found(float(self.size.flops)), "other settings"
        return None, "nothing has run"


@dataclass(frozen=True)
class Total:
    """Sums over cells, in the units of a budget."""

    amounts: Mapping[str, float]
    unknown: Mapping[str, int]
    """Unit -> how many cells are missing in the sum."""

    @classmethod
    def of(cls, found: Sequence[Cost], left: bool = False) -> "Total":
        """
        Args:
            left: only what is not spent yet.
        """
        amounts = dict.fromkeys(("gpu_hours", "hours", "tokens", "flops"), 0.0)
        unknown: dict[str, int] = {}
        for cost in found:
            share = 1.0 - cost.done if left else 1.0
            for unit, amount in cost.amounts().items():
                if amount is not None:
                    amounts[unit] += share * amount
                elif share:
                    unknown[unit] = unknown.get(unit, 0) + 1
        return cls(amounts, unknown)

    def __str__(self) -> str:
        a = self.amounts
        parts = [f"{quantity(a['tokens'])} tokens", f"{quantity(a['flops'])}FLOPs"]
        parts.append(self._time("hours", duration(a["hours"] * HOUR), "of run time"))
        if a["gpu_hours"] or self.unknown.get("gpu_hours"):
            parts.append(self._time("gpu_hours", f"{a['gpu_hours']:.1f}", "GPU-hours"))
        return ", ".join(parts)

    def _time(self, unit: str, amount: str, what: str) -> str:
        missing = self.unknown.get(unit, 0)
        if missing and not self.amounts[unit]:
            return f"{what.removeprefix('of ')} unknown"
        return f"about {amount} {what}" + (f" and {missing} cells of unknown length" if missing else "")


def check_budget(spec: GridSpec, total: Total) -> None:
    """An unknown cost is not above the budget.

    Raises:
        InputError: the whole grid costs more than its file allows.
    """
    above = [
        f"{spec.where('budget', unit)}: the grid costs {_amount(unit, total.amounts[unit])}, and its budget is "
        f"{_amount(unit, allowed)}"
        for unit, allowed in spec.budget.items()
        if total.amounts[unit] > allowed
    ]
    if above:
        raise InputError("\n".join(above))


def _amount(unit: str, value: float) -> str:
    name = {"gpu_hours": "GPU-hours", "hours": "hours"}.get(unit)
    return f"{value:.3g} {name}" if name else f"{quantity(value)} {unit.replace('flops', 'FLOPs')}"
