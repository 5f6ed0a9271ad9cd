"""`mtp grid submit | resume | status | logs | cancel`. Each returns the exit status."""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

from rich.console import Console

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.grid import commands
from mtp_lightning.grid.output import say, writable, write_table
from mtp_lightning.grid.run.cost import Total, check_budget, costs
from mtp_lightning.grid.run.display import counts, open_display, summary
from mtp_lightning.grid.run.state import State
from mtp_lightning.grid.run.status import Look, look, standing_table, standings
from mtp_lightning.grid.slurm import client as slurm
from mtp_lightning.grid.slurm.logs import find_cell, newest_log, show_end
from mtp_lightning.grid.slurm.logs import follow as follow_log
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.slurm.submit import shape_name, submit_cells
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.tools import GridTools

WATCH_SECONDS = 3.0
_ACTIVE = (State.RUNNING, State.QUEUED)


P = ParamSpec("P")


def _told(command: Callable[P, int]) -> Callable[P, int]:
    """Slurm's failures are no bugs of ours: one line, exit status 1."""

    @functools.wraps(command)
    def called(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except slurm.SlurmError as error:
            say(f"mtp: error: {error}", error=True)
            return 1

    return called


@_told
def submit(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    max_parallel: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
) -> int:
    """Submit the cells of a grid that are missing or interrupted to Slurm, and return at once.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells, on a disk that the nodes share.
        max_parallel: Cells of each job array at a time. Default: as many as Slurm lets run.
        partition: Where the grid file names none.
        account: Where the grid file names none.
        qos: Where the grid file names none.
    """
    defaults = _defaults(partition, account, qos)
    loaded = tools.load(grid, runs, overrides)
    return _submit(tools, loaded, grid, runs, max_parallel, defaults, (State.MISSING, State.INTERRUPTED))


@_told
def resume(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    max_parallel: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    workers: int | None = None,
) -> int:
    """Do what is left of a grid: cells missing, failed or interrupted. On Slurm if it was submitted, else here.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        max_parallel: On Slurm: cells of each job array at a time.
        partition: On Slurm: where the grid file names none.
        account: On Slurm: where the grid file names none.
        qos: On Slurm: where the grid file names none.
        workers: Here: cells at a time.
    """
    loaded = tools.load(grid, runs, overrides)
    if not any(one.grid == loaded[0].name for one in Submissions(Path(runs).absolute()).read()):
        return commands.run(tools, grid, overrides=overrides, runs=runs, workers=workers)
    defaults = _defaults(partition, account, qos)
    wanted = (State.MISSING, State.INTERRUPTED, State.FAILED)
    return _submit(tools, loaded, grid, runs, max_parallel, defaults, wanted)


def status(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    watch: bool = False,
    json: str | None = None,
) -> int:
    """Show how far each cell of a grid is, from the cells' own files, then from Slurm.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        watch: Keep showing it until nothing runs or waits any more.
        json: Write the table to this file too.
    """
    check_json(json)
    spec, cells = tools.load(grid, runs, overrides)
    folder = Path(runs).absolute()
    rows, silent, live = _watch(cells, folder) if watch else look(cells, folder)
    say(standing_table(f"{spec.name}: {len(rows)} cells", rows))
    say(summary([row.state.value for row in rows]))
    if strays := Submissions(folder).strays(spec.name, [cell.signature for cell in cells], live):
        say(f"and in Slurm, though no longer in {grid}: {', '.join(element.id for element in strays)}")
    if silent is not None:
        say(f"warning: from the cells' files alone: {silent}", error=True)
    write_table(json, {"grid": spec.name, "cells": [row.json() for row in rows]})
    return 0


def logs(
    tools: GridTools,
    grid: str,
    cell: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    follow: bool = False,
    lines: int = 40,
) -> int:
    """Print the end of a cell's log; Slurm's own output where its job died before the run began.

    Args:
        grid: The grid file.
        cell: Its signature, or the beginning of it, or its label, as in 'n_future=4 seed=1'.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        follow: Go on printing what is added, until the cell has ended.
        lines: How many lines; 0: all.
    """
    if lines < 0:
        raise InputError(f"lines: {lines} is less than none")
    _, cells = tools.load(grid, runs, overrides)
    found, folder = find_cell(cells, cell), Path(runs).absolute()
    (row,) = look([found], folder).rows
    path = newest_log(row, Submissions(folder))
    if path is None:
        raise InputError(f"{found.label}: there is no log yet; the cell is {row.state.value}")
    position = show_end(path, lines)
    if follow:
        follow_log(path, position, lambda: look([found], folder).rows[0].state in _ACTIVE)
    return 0


@_told
def cancel(
    tools: GridTools, grid: str, cells: list[str], *, overrides: dict[str, Any] | None = None, runs: str = "runs"
) -> int:
    """Take the cells of a grid, or those named, out of Slurm's queue; those that run are asked to save and stop.

    Args:
        grid: The grid file.
        cells: Signatures, beginnings of them, or labels. Default: all.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
    """
    _needs_slurm("nothing can be cancelled from here; Ctrl-C in `mtp grid run` stops local runs")
    spec, all_cells = tools.load(grid, runs, overrides)
    chosen = [find_cell(all_cells, name) for name in cells] or all_cells
    submissions = Submissions(Path(runs).absolute())
    live = submissions.look()
    rows = standings(chosen, submissions, live)
    hit = [(row.cell.label, row.element) for row in rows if row.element is not None]
    if not cells:
        strays = submissions.strays(spec.name, [cell.signature for cell in all_cells], live)
        hit += [("no longer in the file", element) for element in strays]
    slurm.cancel([element.id for _, element in hit])
    for label, element in hit:
        say(f"{label}: cancelled {element.id}, which was {element}")
    local = [row for row in rows if row.element is None and row.state is State.RUNNING]
    for row in local:
        say(f"{row.cell.label}: not Slurm's: Ctrl-C in the `mtp grid run` that started it stops it")
    if not hit and not local:
        say("nothing waits or runs")
    return 0


def _needs_slurm(otherwise: str) -> None:
    program = slurm.missing_program()
    if program is not None:
        raise InputError(f"there is no Slurm here: {program} is not on the PATH; {otherwise}")


def _submit(
    tools: GridTools,
    loaded: tuple[GridSpec, list[Cell]],
    grid: str,
    runs: str,
    parallel: int | None,
    defaults: Mapping[str, str | None],
    wanted: Sequence[State],
) -> int:
    if parallel is not None and parallel < 1:
        raise InputError(f"max_parallel: {parallel} is no number of cells; give 1 or more")
    spec, cells = loaded
    _needs_slurm(f"`mtp grid run {grid}` runs the cells on this machine")
    check_budget(spec, Total.of(costs(cells, tools.measure)))
    folder = writable(Path(runs).absolute())
    submissions = Submissions(folder)
    with submissions.locked():
        rows = standings(cells, submissions, submissions.settle())
        # `row.element`: a job that is just ending is not followed by another before it has ended
        todo = [_with_defaults(row.cell, defaults) for row in rows if row.state in wanted and row.element is None]
        if todo and (problem := tools.prepare_tracking(spec, folder)):
            say(f"warning: {problem}", error=True)
        made = submit_cells(tools, spec.name, submissions, todo, parallel)
    for one in made:
        count = len(one.cells)
        say(f"job {one.job}: {count} cell{'s' if count != 1 else ''}, each with {shape_name(one.resources)}")
    left = [row for row in rows if row.state not in wanted or row.element is not None]
    say(f"{len(todo)} of {len(cells)} cells submitted" + (f"; {counts([r.state.value for r in left])}" if left else ""))
    failed = [row for row in left if row.state is State.FAILED]
    if failed:
        names = ", ".join(row.cell.label for row in failed)
        say(f"{len(failed)} failed ({names}); `mtp grid resume {grid}` submits them again")
    return 0


def _defaults(partition: str | None, account: str | None, qos: str | None) -> dict[str, str | None]:
    """A user's own defaults of sbatch come last: as they are they would beat the grid file."""
    given = {"partition": partition, "account": account, "qos": qos}
    return {key: value or os.environ.get(f"SBATCH_{key.upper()}") for key, value in given.items()}


def _with_defaults(cell: Cell, defaults: Mapping[str, str | None]) -> Cell:
    missing: dict[str, Any] = {key: value for key, value in defaults.items() if getattr(cell.resources, key) is None}
    return replace(cell, resources=replace(cell.resources, **missing))


def _watch(cells: Sequence[Cell], runs: Path) -> Look:
    """A live table until all have ended, or Ctrl-C; returns how they stood last."""
    display = open_display(Console(stderr=True))
    seen = look(cells, runs)
    try:
        while True:
            display.update([row.line() for row in seen.rows], None)
            if not any(row.state in _ACTIVE for row in seen.rows):
                return seen
            time.sleep(WATCH_SECONDS)
            seen = look(cells, runs)
    except KeyboardInterrupt:
        return seen
    finally:
        display.close()
