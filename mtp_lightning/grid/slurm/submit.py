"""From cells to job arrays: one for each set of resources and each parent that its cells wait for, recorded before
sbatch is called and after."""

import os
import secrets
import shlex
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.grid.run.display import counts
from mtp_lightning.grid.run.process import fit_command, fit_config
from mtp_lightning.grid.run.state import State
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.slurm import client as slurm
from mtp_lightning.grid.slurm.job import CellJob
from mtp_lightning.grid.slurm.snapshot import checkout, snapshot
from mtp_lightning.grid.slurm.submissions import Submission, Submissions
from mtp_lightning.grid.slurm.task import write_cell
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.resources import Resources
from mtp_lightning.units import counted

_FOR_EVER = 10**6
"""submitit limits how often a job reaches the end of its time, and counts any end within ten minutes as one; we count
attempts that leave no new checkpoint instead."""


def fill_in(cell: Cell, defaults: Mapping[str, str | None]) -> Cell:
    """The cell with a partition, an account and a QOS from `defaults` where its grid file names none; or else from the
    user's own defaults of sbatch, which must come last and would otherwise take precedence over the grid file."""
    values = {key: value or os.environ.get(f"SBATCH_{key.upper()}") for key, value in defaults.items()}
    missing: dict[str, Any] = {key: value for key, value in values.items() if getattr(cell.resources, key) is None}
    return replace(cell, resources=replace(cell.resources, **missing))


def to_submit(rows: Sequence[CellStatus], wanted: Collection[State]) -> list[CellStatus]:
    """Those in a wanted state whose parent is finished, or is in Slurm's queue, or will be.

    Args:
        rows: parents first.
    """
    found: dict[str, CellStatus] = {}
    for row in rows:
        parent = row.parent
        follows = parent is not None and (parent.queued is not None or parent.cell.signature in found)
        may_begin = follows or not row.waits_for_parent
        # `row.queued`: while a job is just ending, its cell is not submitted again
        if row.queued is None and may_begin and (row.state in wanted or (follows and row.state is State.BLOCKED)):
            found[row.cell.signature] = row
    return list(found.values())


def submitted_text(
    rows: Sequence[CellStatus], ready: Sequence[CellStatus], made: Sequence[Submission], again: str
) -> list[str]:
    """What came of it, in lines.

    Args:
        rows: of all cells.
        ready: those that were submitted.
        again: the command that submits failed cells too.
    """
    lines = [
        f"job {one.job}: {counted(len(one.cells), 'cell')}, each with {resources_text(one.resources)}" for one in made
    ]
    waiting = [row for row in rows if row not in ready and row.queued is None and row.waits_for_parent]
    if waiting:
        lines.append(
            f"{len(waiting)} begin with the weights of cells that are neither finished nor in Slurm's queue: the same "
            "command submits them once these are"
        )
    others = [row for row in rows if row not in ready and row not in waiting]
    rest = f"; {counts([row.state.value for row in others])}" if others else ""
    lines.append(f"{len(ready)} of {len(rows)} cells submitted{rest}")
    if failed := [row.cell.label for row in others if row.state is State.FAILED]:
        lines.append(f"{len(failed)} failed ({', '.join(failed)}); `{again}` submits them again")
    return lines


def submit_cells(
    grid: str, submissions: Submissions, cells: Sequence[Cell], parallel: int | None, queued: Mapping[str, str]
) -> list[Submission]:
    """Needs the lock of `submissions`. A cell whose parent is among `cells` or `queued` begins when that has finished.

    Args:
        cells: parents before those that begin with their weights.
        parallel: cells of each job array at a time.
        queued: signature -> id of the array's element, of what waits or runs already.

    Raises:
        InputError: Slurm refuses some of them; then none was submitted.
    """
    if not cells:
        return []
    root = checkout()
    code = snapshot(root, submissions.folder.parent) if root is not None else None
    size = slurm.largest_array()
    made: list[Submission] = []
    parents: dict[str, str | None] = {}
    for (resources, parent), alike in _groups(cells, queued).items():
        for first in range(0, len(alike), size):
            part = alike[first : first + size]
            made.append(_prepare(grid, submissions, part, resources, parallel, code))
            parents[made[-1].token] = parent
    refused = [(one, slurm.refusal(submissions.own_folder(one) / "job.sh", one.resources.partition)) for one in made]
    if any(why for _, why in refused):
        for one in made:
            shutil.rmtree(submissions.own_folder(one))
        raise InputError(
            "\n".join(f"{why} (cells with {resources_text(one.resources)})" for one, why in refused if why)
        )
    done: list[Submission] = []
    ids = dict(queued)
    for one in made:
        parent = parents[one.token]
        try:
            done.append(_submit(submissions, one, None if parent is None else ids[parent]))
            ids |= {name: f"{done[-1].job}_{index}" for index, name in enumerate(one.cells)}
        except slurm.SlurmError as error:
            before = ", ".join(f"job {other.job} with {len(other.cells)} cells" for other in done)
            raise type(error)(f"{error} (submitted before: {before})" if before else str(error)) from error
    return done


def _submit(submissions: Submissions, intent: Submission, after: str | None) -> Submission:
    submissions.write(intent)
    try:
        job = slurm.submit(submissions.own_folder(intent) / "job.sh", submissions.lock_descriptor, after)
    except slurm.NoAnswerError as error:
        raise slurm.SlurmError(f"{error}; `mtp grid status` finds out whether it has the jobs") from error
    except slurm.SlurmError:
        submissions.drop(intent)
        raise
    done = replace(intent, job=job)
    submissions.write(done)
    return done


def _groups(cells: Sequence[Cell], queued: Mapping[str, str]) -> dict[tuple[Resources, str | None], list[Cell]]:
    """By resources and the parent to wait for; in the order of the cells, so that those of a parent come first."""
    known = {*queued, *(cell.signature for cell in cells)}
    found: dict[tuple[Resources, str | None], list[Cell]] = {}
    for cell in cells:
        parent = cell.parent if cell.follows and cell.parent in known else None
        found.setdefault((cell.resources, parent), []).append(cell)
    return found


def resources_text(resources: Resources) -> str:
    """`1 node, 2 tasks, 8 cpus, partition main`"""
    counted = {"node": resources.nodes, "GPU": resources.gpus, "task": resources.tasks_per_node, "cpu": resources.cpus}
    parts = [f"{count} {what}{'s' if count != 1 else ''}" for what, count in counted.items() if count]
    parts += [f"{resources.memory_gb:g} GB"] if resources.memory_gb else []
    parts += [f"{resources.minutes} min"] if resources.minutes else []
    named = {name: getattr(resources, name) for name in ("partition", "account", "qos", "constraint")}
    return ", ".join(parts + [f"{name} {value}" for name, value in named.items() if value])


def _prepare(
    grid: str,
    submissions: Submissions,
    cells: Sequence[Cell],
    resources: Resources,
    parallel: int | None,
    code: Path | None,
) -> Submission:
    from submitit.core.utils import DelayedSubmission

    made = Submission(
        token=secrets.token_hex(6),
        grid=grid,
        cells=tuple(cell.signature for cell in cells),
        resources=resources,
        submitted_at=time.time(),
        snapshot=None if code is None else str(code),
    )
    folder = submissions.own_folder(made)
    folder.mkdir()
    for index, cell in enumerate(cells):
        write_cell(folder, index, cell, fit_config(cell), fit_command(cell))
    call = DelayedSubmission(CellJob(str(folder), made.snapshot))
    call.set_timeout(_FOR_EVER, _FOR_EVER)
    call.dump(folder / "job.pkl")
    setup = [] if code is None else exports(code)
    slurm.write_script(folder, made.job_name, len(cells), resources, parallel, setup)
    return made


def exports(code: Path) -> list[str]:
    """The jobs import the copy, and what else is on the path. Python's own first entry, the working directory, would be
    the checkout as it is by then: it is left out here, and `mtp` puts it last (`own_code`)."""
    path = [str(code), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={shlex.quote(os.pathsep.join(path))}"]
