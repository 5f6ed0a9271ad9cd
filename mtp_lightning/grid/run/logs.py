"""The log of a cell: the output of all its attempts, each after a header line."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from mtp_lightning.grid.run.state import LOG, Status
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.secrets import mask

FOLLOW_SECONDS = 0.5
_MARK = "===== attempt "


def write_header(log: IO[bytes], status: Status, command: Sequence[str]) -> None:
    """The first line of an attempt's output."""
    at = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(status.started_at))
    text = " ".join(mask(shlex.join(command)).split())  # one line, whatever the arguments hold
    log.write(f"{_MARK}{status.attempt}, {at}, {status.host}: {text}\n".encode())
    log.flush()


def log_tail(path: Path, lines: int = 5) -> str:
    """The last lines that are not blank, of the last attempt only."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    last = text.rpartition(_MARK)[2].splitlines()
    output = [line.strip() for line in last[1 if _MARK in text else 0 :] if line.strip()]
    return "\n".join(output[-lines:])


def newest_log(row: CellStatus, submissions: Submissions) -> Path | None:
    """The cell's own log; Slurm's output file where the last job ended before the cell began."""
    status = row.files.status
    if row.submitted is not None and (status is None or status.job != row.submitted.id):
        output = submissions.output(row.submitted)
        later = status is None or row.submitted.submission.submitted_at > status.started_at
        if later and output.is_file():
            return output
    log = row.cell.directory / LOG
    return log if log.is_file() else None


def show_end(path: Path, lines: int) -> int:
    """Print the last `lines` lines, or all for 0; returns how many bytes were read."""
    content = path.read_bytes()
    _print(b"".join(content.splitlines(keepends=True)[-lines:]))
    return len(content)


def follow(path: Path, position: int, active: Callable[[], bool]) -> None:
    """Print what is added after `position`, until the cell is no longer active and everything has been printed."""
    while True:
        last = not active()
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
