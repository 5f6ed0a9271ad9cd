"""A cell by its name, and what it has said."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.grid.run.state import LOG
from mtp_lightning.grid.run.status import Standing
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.spec.cells import Cell

FOLLOW_SECONDS = 0.5


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """By signature, the beginning of one, or label.

    Raises:
        InputError: none, or several; names the nearest.
    """
    by_label = [cell for cell in cells if name in (cell.label, *(alias.label for alias in cell.aliases))]
    found = by_label or [cell for cell in cells if name and cell.signature.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"'{name}' is the beginning of {len(found)} cells: {', '.join(c.signature for c in found)}")
    known = [cell.label for cell in cells] + [cell.signature for cell in cells]
    raise InputError(f"there is no cell '{name}'{did_you_mean(name, known)} (`mtp grid status` lists them)")


def newest_log(row: Standing, submissions: Submissions) -> Path | None:
    """The cell's own log; Slurm's output file where the last job has not got as far as the cell."""
    status = row.files.status
    if row.place is not None and (status is None or status.job != row.place.element):
        output = submissions.output(row.place)
        later = status is None or row.place.submission.submitted_at > status.started_at
        if later and output.is_file():
            return output
    log = row.cell.directory / LOG
    return log if log.is_file() else None


def show_end(path: Path, lines: int) -> int:
    """Print the last `lines` lines, or all for 0; returns how far the file was read, in bytes."""
    content = path.read_bytes()
    _print(b"".join(content.splitlines(keepends=True)[-lines:]))
    return len(content)


def follow(path: Path, position: int, goes_on: Callable[[], bool]) -> None:
    """Print what is added, until `goes_on` says no and everything has been printed."""
    while True:
        last = not goes_on()
        with path.open("rb") as file:
            file.seek(position)
            added = file.read()
        _print(added)
        position += len(added)
        if last:
            return
        time.sleep(FOLLOW_SECONDS)


def _print(content: bytes) -> None:
    sys.stdout.write(content.decode(errors="replace"))
    sys.stdout.flush()
