"""A report in all its forms: shown, in files, in MLflow. What cannot be written is told, and costs only itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mtp_lightning.files import read_json, write_json, write_text
from mtp_lightning.grid.report.budgets import Points, ReadHistory
from mtp_lightning.grid.report.report import Report, build_report
from mtp_lightning.grid.report.tables import csv_text, markdown, report_json
from mtp_lightning.grid.run.state import RUN_ID
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.tools import GridTools

MARKDOWN, CSV, FIGURE, RECORD = "report.md", "results.csv", "figure.png", "report.json"
FILES = (MARKDOWN, CSV, FIGURE)


@dataclass(frozen=True)
class Published:
    report: Report
    problems: tuple[str, ...]


def publish(
    tools: GridTools,
    spec: GridSpec,
    cells: Sequence[Cell],
    runs: Path,
    out: Path,
    again: bool,
    show: Callable[[Report], None],
    at: At | None = None,
) -> Published:
    """`again=False` leaves files and MLflow alone when they hold this very report already, which spares the seconds
    that loading MLflow and drawing take."""
    problems: list[str] = []
    store = cache(lambda: tools.tracking(runs))

    def attempt(what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # MLflow raises what its store raises; the report must not be lost with it
            problems.append(f"{what}: {type(error).__name__}: {error}")

    def read_metrics(run_id: str) -> Mapping[str, float]:
        found: dict[str, float] = {}
        attempt(f"MLflow run {run_id}", lambda: found.update(store().metrics(run_id)))
        return found

    @cache
    def history(run_id: str, metric: str) -> Points:
        found: list[tuple[int, float]] = []
        attempt(f"MLflow run {run_id}", lambda: found.extend(store().history(run_id, metric)))
        return found

    report = build_report(spec, cells, read_metrics, history, at)
    show(report)
    record = report_json(report)
    if not again and read_json(out / RECORD) == record and all((out / name).is_file() for name in FILES):
        return Published(report, tuple(problems))
    (out / RECORD).unlink(missing_ok=True)
    attempt(MARKDOWN, lambda: write_text(out / MARKDOWN, markdown(report)))
    attempt(CSV, lambda: write_text(out / CSV, csv_text(report)))
    attempt(FIGURE, lambda: _draw(report, history, out / FIGURE))
    attempt("MLflow", lambda: store().record(report, [out / name for name in FILES if (out / name).is_file()]))
    if not problems:  # last: it says that all the rest is in place
        attempt(RECORD, lambda: write_json(out / RECORD, record))
    return Published(report, tuple(problems))


def _draw(report: Report, history: ReadHistory, path: Path) -> None:
    from mtp_lightning.grid.report.figures import curve_metric, draw  # matplotlib takes its time to load

    curves: dict[str, dict[int, Points]] = {}
    for cell in report.cells:
        group, run_id = report.group(cell.group), cell.directory / RUN_ID
        if group is not None and cell.seed in group.results and run_id.is_file():
            curves.setdefault(cell.group, {})[cell.seed] = history(run_id.read_text().strip(), curve_metric(report))
    draw(report, curves, path)
