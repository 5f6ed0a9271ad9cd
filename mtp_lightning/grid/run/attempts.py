"""The attempts at a cell that have ended, a line each in `attempts.jsonl`, and what they saved."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtp_lightning.files import read_state
from mtp_lightning.grid.run.state import CHECKPOINTS, CellFiles, State, Status
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.secrets import masked

ATTEMPTS = "attempts.jsonl"
_LOGGED = ("attempt", "host", "job", "started_at", "ended_at", "state", "returncode", "reason")


def log_attempt(directory: Path, ended: Status) -> None:
    """Add a line to `attempts.jsonl`, in one write: what is there already cannot be torn by it."""
    line = {key: value for key, value in asdict(ended).items() if key in _LOGGED}
    text = json.dumps(masked(line | {"checkpoint": newest_checkpoint(directory)})) + "\n"
    descriptor = os.open(directory / ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_attempts(directory: Path) -> list[dict[str, Any]]:
    """Oldest first; a line that a full disk cut off is left out.

    Raises:
        DamagedError: the file cannot be read.
    """
    found = []
    for line in (read_state(directory / ATTEMPTS) or "").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and {*_LOGGED, "checkpoint"} <= entry.keys():
            found.append(entry)
    return found


def newest_checkpoint(directory: Path) -> str | None:
    """Its name, which holds the step."""
    return max((path.name for path in (directory / CHECKPOINTS).glob("*.ckpt")), default=None)


def saved_step(directory: Path) -> int:
    """The step from which an attempt would continue; 0 without a checkpoint."""
    found = re.search(r"(\d+)\.ckpt$", newest_checkpoint(directory) or "")
    return int(found[1]) if found else 0


def is_at_gate(cell: Cell, files: CellFiles) -> bool:
    """Whether the cell has nothing to do before it is judged. A run may be killed after the gate's checkpoint and
    before its gate.json; another attempt would begin behind the gate, and pass it."""
    return cell.pause_at is not None and (files.paused_at(cell.pause_at) or saved_step(cell.directory) >= cell.pause_at)


def interruptions_without_progress(directory: Path, job: str) -> int:
    """How many attempts of a Slurm job in a row, up to the last, were interrupted and left no new checkpoint."""
    attempts = read_attempts(directory)
    count = 0
    for before, attempt in reversed(list(zip([{"checkpoint": None}, *attempts], attempts))):
        fruitless = attempt["state"] == State.INTERRUPTED.value and attempt["checkpoint"] == before["checkpoint"]
        if not fruitless or attempt["job"] != job:
            break
        count += 1
    return count
