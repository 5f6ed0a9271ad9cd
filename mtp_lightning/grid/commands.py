"""`mtp grid plan | run | report`. Each returns the exit status; bad input is an InputError, raised before
anything is written."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.grid.output import say, writable, write_table
from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.equal_training import COMMON, parse_at
from mtp_lightning.grid.report.publish import publish
from mtp_lightning.grid.report.tables import notices, report_json, terminal_table
from mtp_lightning.grid.report.verdict import verdict
from mtp_lightning.grid.run.cost import Total, check_budget, costs
from mtp_lightning.grid.run.display import open_display, summary
from mtp_lightning.grid.run.launch import Launched, LocalLauncher
from mtp_lightning.grid.run.plan import TO_RUN, plan_table, row_json
from mtp_lightning.grid.run.process import child_environment, cores
from mtp_lightning.grid.run.state import State, cell_state
from mtp_lightning.grid.run.status import look
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.tools import GridTools
from mtp_lightning.tracking.store import default_tracking_uri

INTERRUPTED = 130


def plan(
    tools: GridTools, grid: str, *, overrides: dict[str, Any] | None = None, runs: str = "runs", json: str | None = None
) -> int:
    """Check every cell of a grid and show what would happen to it. Writes nothing.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        json: Write the table to this file too.
    """
    check_json(json)
    spec, cells = tools.load(grid, runs, overrides)
    found = costs(cells, tools.measure)
    rows, silent, _ = look(cells, Path(runs).absolute(), settle=False)
    say(plan_table(spec, rows, found))
    to_run = sum(row.state in TO_RUN for row in rows)
    say(f"{summary([row.state.value for row in rows])}; {to_run} to run")
    total, left = Total.of(found), Total.of(found, left=True)
    say(f"in all {total}")
    if 0 < to_run < len(rows):
        say(f"still to come {left}")
    if silent is not None:
        say(f"warning: from the cells' files alone: {silent}", error=True)
    sums = {"total": total.amounts, "left": left.amounts, "unknown": total.unknown}
    write_table(json, {"grid": spec.name, "cells": [row_json(*pair) for pair in zip(rows, found)], **sums})
    check_budget(spec, total)
    return 0


def run(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    workers: int | None = None,
    json: str | None = None,
) -> int:
    """Run the cells of a grid that are not finished, then report. Ctrl-C leaves everything resumable.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        workers: Cells at a time. Default: one a core, four at most; one where there is an NVIDIA GPU.
        json: Write the report's table to this file too.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers} is not a number of processes; give 1 or more")
    check_json(json)
    spec, cells = tools.load(grid, runs, overrides)
    check_budget(spec, Total.of(costs(cells, tools.measure)))
    folder = writable(Path(runs).absolute())
    todo = [cell for cell in cells if cell_state(cell.directory) is not State.FINISHED]
    failed = False
    if todo:
        if problem := tools.prepare_tracking(spec, folder):
            say(f"warning: {problem}", error=True)
        launched = _launch(tools, len(cells), todo, workers or _default_workers(len(todo)))
        ended = summary([outcome.state.value for outcome in launched.outcomes.values()])
        if launched.interrupted:
            say(f"stopped ({ended}); the same command goes on where this one ended", error=True)
            return INTERRUPTED
        failed = any(outcome.state is not State.FINISHED for outcome in launched.outcomes.values())
    else:
        say(f"all {len(cells)} cells are finished: nothing to run", error=True)
    recorded = _report(tools, spec, cells, folder, None, json, again=bool(todo))
    return 1 if failed or not recorded else 0


def report(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    at: str | None = None,
    out: str | None = None,
    json: str | None = None,
) -> int:
    """Compare the finished cells of a grid: verdict, table, figure; on the terminal, as one page and in MLflow.

    With a budget, those that are running or interrupted take part as soon as they have come so far.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        at: Compare at step=1000, tokens=1e6 or flops=1e12 instead of the end; or at common, the last step that all
            cells have.
        out: Folder for report.html, report.md, results.csv, figure.png and verdict.json. Default: reports/NAME in the
            runs folder.
        json: Write the table to this file too.
    """
    check_json(json)
    budget = None if at is None else parse_at(at)
    spec, cells = tools.load(grid, runs, overrides)
    recorded = _report(tools, spec, cells, Path(runs).absolute(), out, json, again=True, at=budget)
    return 0 if recorded else 1


def _launch(tools: GridTools, count: int, todo: Sequence[Cell], workers: int) -> Launched:
    threads = child_environment(workers, os.environ)["OMP_NUM_THREADS"]
    say(
        f"{len(todo)} of {count} cells to run, {workers} at a time with {threads} thread"
        f"{'s' if threads != '1' else ''} each",
        error=True,
    )
    display = open_display(Console(stderr=True))
    try:
        return LocalLauncher(tools.materialise, tools.command, display, workers).launch(todo)
    finally:
        display.close()


def _report(
    tools: GridTools,
    spec: GridSpec,
    cells: Sequence[Cell],
    runs: Path,
    out: str | None,
    json: str | None,
    again: bool,
    at: At | None = None,
) -> bool:
    """Print first, write then: whatever goes wrong with a file or MLflow, the table has been seen."""
    # not over the report of the file as it is
    other = f"-{hashlib.sha256(canonical(spec.overridden).encode()).hexdigest()[:8]}" if spec.overridden else ""
    where = "" if at is None else "-common" if at == COMMON else f"-{at.unit}-{at.amount:g}"
    folder = Path(out) if out is not None else runs / "reports" / f"{spec.name}{other}{where}"
    published = publish(default_tracking_uri(runs), spec, cells, folder, again, _show, at)
    for problem in published.problems:
        say(f"warning: {problem}", error=True)
    write_table(json, report_json(published.report))
    say(f"files: {os.path.relpath(folder)}")
    say(f"MLflow: {tools.ui_command(_relative(runs), spec.name)}")
    return not published.problems


def _show(report: Report) -> None:
    say(terminal_table(report))
    for line in notices(report):
        say(line)
    say(verdict(report).sentence)


def _default_workers(cells: int) -> int:
    return 1 if Path("/dev/nvidia0").exists() else max(1, min(cells, cores(), 4))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
