"""`mtp grid plan | run | status | report`. Each returns the exit status; bad input is an InputError, raised before
anything is written."""

import hashlib
import json as json_module
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_text
from mtp_lightning.grid.display import open_display, summary
from mtp_lightning.grid.launch import Launched, LocalLauncher
from mtp_lightning.grid.plan import Planned, plan_grid, plan_table, row_json, status_table
from mtp_lightning.grid.process import child_environment, cores
from mtp_lightning.grid.publish import publish
from mtp_lightning.grid.report import Report
from mtp_lightning.grid.signature import canonical
from mtp_lightning.grid.spec import GridSpec
from mtp_lightning.grid.state import State
from mtp_lightning.grid.tables import notices, report_json, terminal_table
from mtp_lightning.grid.tools import GridTools
from mtp_lightning.grid.verdict import verdict

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
    spec, planned = plan_grid(tools, grid, runs, overrides)
    _print(plan_table(spec, planned))
    _print(f"{summary([item.state.value for item in planned])}; {len(_to_run(planned))} to run")
    _write_json(json, {"grid": spec.name, "cells": [row_json(item) for item in planned]})
    return 0


def status(
    tools: GridTools, grid: str, *, overrides: dict[str, Any] | None = None, runs: str = "runs", json: str | None = None
) -> int:
    """Show how far each cell of a grid is, from the cells' own files.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        json: Write the table to this file too.
    """
    check_json(json)
    spec, planned = plan_grid(tools, grid, runs, overrides)
    _print(status_table(spec, planned))
    _print(summary([item.state.value for item in planned]))
    _write_json(json, {"grid": spec.name, "cells": [row_json(item) for item in planned]})
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
    spec, planned = plan_grid(tools, grid, runs, overrides)
    folder = _writable(Path(runs).absolute())
    todo = [item for item in planned if item.state is not State.FINISHED]
    failed = False
    if todo:
        launched = _launch(tools, planned, todo, workers or _default_workers(len(todo)))
        ended = summary([outcome.state.value for outcome in launched.outcomes.values()])
        if launched.interrupted:
            _print(f"stopped ({ended}); the same command goes on where this one ended", error=True)
            return INTERRUPTED
        failed = any(outcome.state is not State.FINISHED for outcome in launched.outcomes.values())
    else:
        _print(f"all {len(planned)} cells are finished: nothing to run", error=True)
    recorded = _report(tools, spec, planned, folder, None, json, again=bool(todo))
    return 1 if failed or not recorded else 0


def report(
    tools: GridTools,
    grid: str,
    *,
    overrides: dict[str, Any] | None = None,
    runs: str = "runs",
    out: str | None = None,
    json: str | None = None,
) -> int:
    """Compare the finished cells of a grid: table, verdict, figure; on the terminal, in files and in MLflow.

    Args:
        grid: The grid file.
        overrides: Values on top of the grid file's overrides, as in '{data.init_args.batch_size: 8}'.
        runs: Folder of the cells.
        out: Folder for report.md, results.csv and figure.png. Default: reports/NAME in the runs folder.
        json: Write the table to this file too.
    """
    check_json(json)
    spec, planned = plan_grid(tools, grid, runs, overrides)
    folder = _writable(Path(runs).absolute())
    recorded = _report(tools, spec, planned, folder, out, json, again=True)
    return 0 if recorded else 1


def _launch(tools: GridTools, planned: Sequence[Planned], todo: Sequence[Planned], workers: int) -> Launched:
    threads = child_environment(workers, os.environ)["OMP_NUM_THREADS"]
    _print(
        f"{len(todo)} of {len(planned)} cells to run, {workers} at a time with {threads} thread"
        f"{'s' if threads != '1' else ''} each",
        error=True,
    )
    display = open_display(Console(stderr=True))
    try:
        return LocalLauncher(tools.materialise, tools.command, display, workers).launch([item.cell for item in todo])
    finally:
        display.close()


def _report(
    tools: GridTools,
    spec: GridSpec,
    planned: Sequence[Planned],
    runs: Path,
    out: str | None,
    json: str | None,
    again: bool,
) -> bool:
    """Print first, write then: whatever goes wrong with a file or MLflow, the table has been seen."""
    # not over the report of the file as it is
    other = f"-{hashlib.sha256(canonical(spec.overridden).encode()).hexdigest()[:8]}" if spec.overridden else ""
    folder = Path(out) if out is not None else runs / "reports" / f"{spec.name}{other}"
    published = publish(tools, spec, [item.cell for item in planned], runs, _writable(folder), again, _show)
    for problem in published.problems:
        _print(f"warning: {problem}", error=True)
    _write_json(json, report_json(published.report))
    _print(f"files: {os.path.relpath(folder)}")
    _print(f"MLflow: {tools.ui_command(_relative(runs), spec.name)}")
    return not published.problems


def _show(report: Report) -> None:
    _print(terminal_table(report))
    for line in notices(report):
        _print(line)
    _print(verdict(report))


def _to_run(planned: Sequence[Planned]) -> list[Planned]:
    return [item for item in planned if item.state not in (State.FINISHED, State.RUNNING)]


def _default_workers(cells: int) -> int:
    return 1 if Path("/dev/nvidia0").exists() else max(1, min(cells, cores(), 4))


def _writable(folder: Path) -> Path:
    """The folder, made if need be; an InputError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from error
    return folder


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _write_json(path: str | None, value: Mapping[str, Any]) -> None:
    if path is None:
        return
    try:
        write_text(Path(path), json_module.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _print(what: RenderableType, error: bool = False) -> None:
    """Results go to standard output; what is said about the work goes to standard error."""
    stream = sys.stderr if error else sys.stdout
    console = Console(file=stream, soft_wrap=isinstance(what, str), highlight=False, markup=False)
    if not console.is_terminal and not isinstance(what, str):
        console.width = max(console.width, 200)  # a file has no edge to wrap at
    console.print(what)
