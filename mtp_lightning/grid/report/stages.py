"""The reports of a grid file: of a chain one for each stage, for what is compared is the cells of one stage."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.publish import publish, variant
from mtp_lightning.grid.report.forms.tables import report_json, terminal_table
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.ladder.tables import ladder_tables
from mtp_lightning.grid.run.display import say, ui_command
from mtp_lightning.grid.run.state import State, cell_state
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.tracking.store import default_tracking_uri


def report_stages(
    spec: GridSpec, cells: Sequence[Cell], runs: Path, out: str | None, again: bool, at: At | None
) -> tuple[list[dict[str, Any]], bool]:
    """Print each report first, then write it: whatever goes wrong with a file or MLflow, the table has been seen.

    Args:
        out: folder of the files; of a chain, the folder of the stages' folders.

    Returns:
        The tables for programs, and whether all could be written.
    """
    tables: list[dict[str, Any]] = []
    well = True
    folder = runs.absolute()
    for part in spec.parts:
        own = [cell for cell in cells if part.name in (cell.grid, *(alias.grid for alias in cell.aliases))]
        if tables and all(cell_state(cell.directory) is State.MISSING for cell in own):
            say(f"{part.name}: no cell has run yet")
            continue
        name = "-".join(filter(None, [part.name, variant(part, at)]))
        place = folder / "reports" / name if out is None else Path(out) / part.stage
        published = publish(default_tracking_uri(folder), part, own, place, again, _show, at)
        for problem in published.problems:
            say(f"warning: {problem}", error=True)
        tables.append(report_json(published.report))
        well = well and not published.problems
        say(f"files: {os.path.relpath(place)}")
        say(f"MLflow: {ui_command(runs, part.name)}")
    return tables, well


def _show(report: Report) -> None:
    say(terminal_table(report))
    for table in ladder_tables(report.ladders):
        say(table)
    for line in notices(report):
        say(line)
    say(verdict(report).sentence)
