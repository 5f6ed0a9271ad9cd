"""How far each cell is: by its own files first, then by Slurm. Reads each file once, and asks Slurm once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.run.display import Line
from mtp_lightning.grid.run.state import CellFiles, State
from mtp_lightning.grid.slurm.client import Element, SlurmError, missing_program
from mtp_lightning.grid.slurm.submissions import Place, Submissions
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.units import quantity


@dataclass(frozen=True)
class Standing:
    cell: Cell
    files: CellFiles
    place: Place | None
    """Where it was submitted to last, if it was."""
    element: Element | None
    """Of Slurm's queue, as long as it waits or runs there."""
    began: bool
    """The job at `place` left output of its own."""

    @property
    def state(self) -> State:
        found = self.files.state
        job = self.files.status.job if self.files.status is not None else None
        if found is State.RUNNING and self.place is not None and job == self.place.element:
            found = self.files.left  # a heartbeat outlives its run for a while, but Slurm knows what has become of it
        if found in (State.FINISHED, State.RUNNING) or self.element is None:
            return found
        return State.QUEUED if self.element.waits else State.RUNNING if self.element.runs else found

    @property
    def reason(self) -> str | None:
        if self.state in (State.FAILED, State.INTERRUPTED):
            return self.files.reason
        if self.state is State.MISSING and self.began and self.place is not None:
            return f"job {self.place.element} ended before the run began: `mtp grid logs` shows its output"
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
            "same_as": [alias.label for alias in cell.aliases],
            "directory": str(cell.directory),
            "state": self.state.value,
            "attempt": status.attempt if status else None,
            "step": result.step if result else progress.step if progress else None,
            "max_steps": progress.max_steps if progress else result.step if result else None,
            "loss": progress.loss if progress else None,
            "tokens_per_second": progress.tokens_per_second if progress else None,
            "reason": self.reason,
            "job": self.place.element if self.place else None,
            "slurm": str(self.element) if self.element else None,
        }

    def line(self) -> Line:
        if self.files.progress is None:
            return Line(self.cell.label, self.state.value)
        p = self.files.progress
        return Line(self.cell.label, self.state.value, p.step, p.max_steps, p.phase, p.loss, p.tokens_per_second)


def standings(cells: Sequence[Cell], submissions: Submissions, live: Mapping[str, Element] | None) -> list[Standing]:
    """
    Args:
        live: what waits or runs in Slurm; None where it cannot be asked, and the files have to do.
    """
    places = submissions.places(live or {})
    return [_standing(cell, places.get(cell.signature), submissions, live) for cell in cells]


class Look(NamedTuple):
    rows: list[Standing]
    silent: str | None = None
    """Why Slurm could not be asked, if something was submitted and it could not."""
    live: Mapping[str, Element] = MappingProxyType({})
    """What waits or runs in Slurm, by id."""


def look(cells: Sequence[Cell], runs: Path, settle: bool = True) -> Look:
    """Where the cells stand now.

    Args:
        settle: bring the record of submissions up to date too, which writes.
    """
    submissions = Submissions(runs)
    if missing_program() is not None:
        return Look(standings(cells, submissions, None))
    try:
        live = submissions.look(settle)
        return Look(standings(cells, submissions, live), None, live)
    except SlurmError as error:
        return Look(standings(cells, submissions, None), str(error))


def _standing(
    cell: Cell, place: Place | None, submissions: Submissions, live: Mapping[str, Element] | None
) -> Standing:
    files = CellFiles.read(cell.directory)
    if place is None or live is None:
        return Standing(cell, files, None, None, False)
    began = files.status is None and submissions.output(place).is_file()
    return Standing(cell, files, place, place.of(live), began)


def standing_table(title: str, rows: Sequence[Standing]) -> Table:
    table = Table(title=title, title_justify="left")
    submitted = any(row.place is not None for row in rows)
    for name in ("cell", "signature", "state", *(["job", "Slurm"] if submitted else [])):
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
