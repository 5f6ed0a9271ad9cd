"""The status of each cell: from its own files first, then from Slurm. Reads each file once, and asks Slurm once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.run.display import NAME_WIDTH, Line, open_display
from mtp_lightning.grid.run.state import CellFiles, State
from mtp_lightning.grid.slurm.client import QueueEntry, SlurmError, missing_program
from mtp_lightning.grid.slurm.submissions import ArrayElement, Submissions
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.units import quantity

WATCH_SECONDS = 3.0
ACTIVE = (State.RUNNING, State.QUEUED)
BLOCKING = (State.FAILED, State.DAMAGED, State.BLOCKED)
"""What of its parent keeps a cell from beginning."""


@dataclass(frozen=True)
class CellStatus:
    cell: Cell
    files: CellFiles
    submitted: ArrayElement | None
    """The element of a job array as which it was submitted last, if it was."""
    queued: QueueEntry | None
    """Its entry in Slurm's queue, as long as it waits or runs there."""
    has_output: bool
    """Its job wrote output, and the cell never began."""
    gate: tuple[State, str] | None = None
    """Stopped by a gate or waiting there, and why; by `Gating.show`."""
    parent: "CellStatus | None" = None
    """Of the cell of the same grid whose weights it begins with."""

    @property
    def state(self) -> State:
        found = self._own_state
        if self.gate is not None and found not in (State.FINISHED, State.RUNNING, State.QUEUED, State.DAMAGED):
            return self.gate[0]
        waits = found is State.MISSING and self.parent is not None
        return State.BLOCKED if waits and self.parent.state in BLOCKING else found  # type: ignore[union-attr]

    @property
    def _own_state(self) -> State:
        found = self.files.state
        job = self.files.status.job if self.files.status is not None else None
        if found is State.RUNNING and self.submitted is not None and job == self.submitted.id:
            found = self.files.state_if_over  # heartbeats count for a while after a run's end, but Slurm knows of it
        if found in (State.FINISHED, State.RUNNING, State.DAMAGED) or self.queued is None:
            return found
        return State.QUEUED if self.queued.waits else State.RUNNING if self.queued.runs else found

    @property
    def goes_on(self) -> bool:
        """Whether its state may change by itself. A job that is just ending may be queued again, if it lost a node."""
        return self.state in ACTIVE or (self.queued is not None and self.state is not State.FINISHED)

    @property
    def waits_for_parent(self) -> bool:
        return self.parent is not None and self.parent.state is not State.FINISHED

    @property
    def reason(self) -> str | None:
        if self.state is State.BLOCKED and self.parent is not None:
            return blocked_by(self.cell, self.parent.state)
        if self.gate is not None and self.state is self.gate[0]:
            return self.gate[1]
        if self.state in (State.FAILED, State.INTERRUPTED, State.DAMAGED):
            return self.files.reason
        if self.state is State.MISSING and self.has_output and self.submitted is not None:
            return f"job {self.submitted.id} ended before the run began: `mtp grid logs` shows its output"
        return None

    def json(self) -> dict[str, Any]:
        """Everything the table says, for `--json`."""
        cell, status, progress, result = self.cell, self.files.status, self.files.progress, self.files.result
        return {
            "label": cell.label,
            "values": dict(cell.values),
            "seed": cell.seed,
            "signature": cell.signature,
            "group": cell.group,
            "baseline": cell.baseline,
            "parent": cell.parent,
            "parent_label": cell.parent_label,
            "same_as": [alias.label for alias in cell.aliases],
            "directory": str(cell.directory),
            "state": self.state.value,
            "attempt": status.attempt if status else None,
            "step": result.step if result else progress.step if progress else None,
            "max_steps": progress.max_steps if progress else result.step if result else None,
            "loss": progress.loss if progress else None,
            "tokens_per_second": progress.tokens_per_second if progress else None,
            "reason": self.reason,
            "job": self.submitted.id if self.submitted else None,
            "slurm": str(self.queued) if self.queued else None,
        }

    def line(self) -> Line:
        if self.files.progress is None:
            return Line(self.cell.label, self.state.value)
        p = self.files.progress
        return Line(self.cell.label, self.state.value, p.step, p.max_steps, p.phase, p.loss, p.tokens_per_second)


class GridStatus(NamedTuple):
    rows: list[CellStatus]
    slurm_problem: str | None = None
    """Why Slurm could not be asked, if something was submitted."""
    queue: Mapping[str, QueueEntry] = MappingProxyType({})
    """What waits or runs in Slurm, by id."""


def read_status(cells: Sequence[Cell], runs: Path, update: bool = True) -> GridStatus:
    """The status of the cells now.

    Args:
        update: bring the record of submissions up to date too, which writes.
    """
    submissions = Submissions(runs)
    if missing_program() is not None:
        return GridStatus(status_rows(cells, submissions, None))
    try:
        queue = submissions.read_queue(update)
        return GridStatus(status_rows(cells, submissions, queue), None, queue)
    except SlurmError as error:
        return GridStatus(status_rows(cells, submissions, None), str(error))


def status_rows(
    cells: Sequence[Cell], submissions: Submissions, queue: Mapping[str, QueueEntry] | None
) -> list[CellStatus]:
    """
    Args:
        queue: what waits or runs in Slurm; None where it cannot be asked, and the files have to do.
    """
    elements = submissions.elements(queue or {})
    rows: dict[str, CellStatus] = {}
    for cell in cells:  # of a chain, parents come first
        row = _cell_status(cell, elements.get(cell.signature), submissions, queue)
        rows[cell.signature] = replace(row, parent=rows.get(str(cell.parent))) if cell.follows else row
    return list(rows.values())


def blocked_by(cell: Cell, state: State) -> str:
    """Why a cell cannot begin."""
    return f"begins with the weights of {cell.parent_label} seed={cell.seed} ({cell.parent}), which is {state.value}"


def _cell_status(
    cell: Cell, submitted: ArrayElement | None, submissions: Submissions, queue: Mapping[str, QueueEntry] | None
) -> CellStatus:
    files = CellFiles.read(cell.directory)
    if submitted is None or queue is None:
        return CellStatus(cell, files, None, None, False)
    has_output = files.status is None and submissions.output(submitted).is_file()
    return CellStatus(cell, files, submitted, submitted.entry(queue), has_output)


def watch_status(cells: Sequence[Cell], runs: Path) -> GridStatus:
    """A live table until all cells have ended, or Ctrl-C; returns the last status."""
    display = open_display(Console(stderr=True))
    status = read_status(cells, runs)
    try:
        while True:
            display.update([row.line() for row in status.rows], None)
            if not any(row.goes_on for row in status.rows):
                return status
            time.sleep(WATCH_SECONDS)
            status = read_status(cells, runs)
    except KeyboardInterrupt:
        return status
    finally:
        display.close()


def status_table(title: str, rows: Sequence[CellStatus]) -> Table:
    table = Table(title=title, title_justify="left")
    submitted = any(row.submitted is not None for row in rows)
    table.add_column("cell", overflow="fold", min_width=NAME_WIDTH)
    for name in ("signature", "state", *(["job", "Slurm"] if submitted else [])):
        table.add_column(name, no_wrap=True)
    for name in ("attempt", "step", "loss", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why")
    for row in rows:
        facts = row.json()
        speed = facts["tokens_per_second"]
        table.add_row(
            Text(row.cell.label),
            row.cell.signature,
            facts["state"],
            *([_text(facts["job"]), _text(facts["slurm"])] if submitted else []),
            _text(facts["attempt"]),
            "" if facts["step"] is None else f"{facts['step']}/{facts['max_steps'] or '?'}",
            "" if facts["loss"] is None else f"{facts['loss']:.3f}",
            "" if speed is None else quantity(speed),
            Text(_text(facts["reason"])),
        )
    return table


def _text(value: object) -> str:
    return "" if value is None else str(value)
