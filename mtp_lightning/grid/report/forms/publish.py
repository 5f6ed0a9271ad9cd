"""A report in all its forms: shown, in files, in MLflow. What cannot be written is reported, and costs only itself."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtp_lightning.config.cell import command
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_json, write_bytes, write_json, write_text
from mtp_lightning.grid.report.comparison import Report, build_report
from mtp_lightning.grid.report.equal_training import COMMON, Points, ReadHistory
from mtp_lightning.grid.report.forms import mlflow_page
from mtp_lightning.grid.report.forms.html_page import html_page
from mtp_lightning.grid.report.forms.tables import csv_text, markdown, report_json
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.run.state import CellFiles, State, cell_state
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.secrets import mask
from mtp_lightning.tracking import read as tracking

PAGE, MARKDOWN, CSV, FIGURE, VERDICT = "report.html", "report.md", "results.csv", "figure.png", "verdict.json"
FILES = (PAGE, MARKDOWN, CSV, FIGURE, VERDICT)
RECORD = "report.json"
"""The table for programs; written last, when all the rest is in place."""


@dataclass(frozen=True)
class Published:
    report: Report
    problems: tuple[str, ...]


def publish(
    uri: str,
    spec: GridSpec,
    cells: Sequence[Cell],
    out: Path,
    again: bool,
    show: Callable[[Report], None],
    at: At | None = None,
) -> Published:
    """Compare the cells, show the report, then write it: whatever goes wrong with a file or MLflow, it has been seen.

    Args:
        uri: of the tracking store.
        again: False leaves files and MLflow alone when they hold this very report already, which spares the seconds
            that loading MLflow and drawing take.

    Raises:
        InputError: no cell ever ran, or `out` cannot be made. Nothing has been written then.
    """
    _check_started(spec, cells)
    problems: list[str] = []
    written: list[Path] = []

    def attempt(what: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # MLflow raises what its store raises; the report must not be lost with it
            problems.append(f"{what}: {type(error).__name__}: {error}")
            return False
        return True

    def write(name: str, content: Callable[[], str | bytes]) -> None:
        if attempt(name, lambda: _write(out / name, content())):
            written.append(out / name)

    def read_metrics(run_id: str) -> Mapping[str, float]:
        found: dict[str, float] = {}
        attempt(f"MLflow run {run_id}", lambda: found.update(tracking.read_run(uri, run_id).metrics))
        return found

    @cache
    def history(run_id: str, metric: str) -> Points:
        found: list[tuple[int, float]] = []
        attempt(f"MLflow run {run_id}", lambda: found.extend(tracking.history(uri, run_id, [metric]).get(metric, [])))
        return found

    report = build_report(spec, cells, read_metrics, history, at)
    show(report)
    record = report_json(report)
    if not again and _recorded(out) == record and all((out / name).is_file() for name in FILES):
        return Published(report, tuple(problems))
    _make_folder(out)
    (out / RECORD).unlink(missing_ok=True)
    write(MARKDOWN, lambda: markdown(report))
    write(CSV, lambda: csv_text(report))
    write(VERDICT, lambda: _json_text(verdict(report).json()))
    write(FIGURE, lambda: _figure(report, history))
    write(PAGE, lambda: html_page(report, (out / FIGURE).read_bytes() if out / FIGURE in written else None))
    attempt("MLflow", lambda: mlflow_page.record_report(uri, report, written, variant(spec, at) or None))
    if not problems:
        attempt(RECORD, lambda: write_json(out / RECORD, record))
    return Published(report, tuple(problems))


def variant(spec: GridSpec, at: At | None) -> str:
    """A name for a report under other overrides, or at a budget, which does not replace that of the file as it is;
    empty for that one."""
    parts = [hashlib.sha256(canonical(spec.overridden).encode()).hexdigest()[:8]] if spec.overridden else []
    if at is not None:
        amount = next(text for text in (f"{at.amount:g}", f"{at.amount:.17g}") if float(text) == at.amount)
        parts.append(at.unit if at == COMMON else f"{at.unit}-{amount}")
    return "-".join(parts)


def _check_started(spec: GridSpec, cells: Sequence[Cell]) -> None:
    if all(cell_state(cell.directory) is State.MISSING for cell in cells):
        runs, here = cells[0].directory.parent, Path.cwd()
        runs = runs.relative_to(here) if runs.is_relative_to(here) else runs
        raise InputError(
            f"{spec.path}: no cell of the grid has run yet in '{runs}', so there is nothing to report; "
            f"`{command('grid', 'run', str(spec.path))}` runs them"
        )


def _recorded(out: Path) -> dict[str, Any] | None:
    """The report that is there; a damaged one is written anew."""
    try:
        return read_json(out / RECORD)
    except DamagedError:
        return None


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to: {error.strerror}") from error


def _write(path: Path, content: str | bytes) -> None:
    if isinstance(content, str):
        write_text(path, mask(content))
    else:
        write_bytes(path, content)


def _json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _figure(report: Report, history: ReadHistory) -> bytes:
    from mtp_lightning.grid.report.forms.figures import curve_metric, figure_png  # matplotlib takes its time to load

    curves: dict[str, dict[int, Points]] = {}
    for cell in report.cells:
        group, run_id = report.group(cell.group), CellFiles.read(cell.directory).run_id
        if group is not None and cell.seed in group.results and run_id is not None:
            curves.setdefault(cell.group, {})[cell.seed] = history(run_id, curve_metric(report))
    return figure_png(report, curves)
