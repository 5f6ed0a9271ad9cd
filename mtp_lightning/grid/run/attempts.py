"""Every attempt at a cell, one JSON line each in the cell's `attempts.jsonl`; the last one is in `status.json` too."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtp_lightning.grid.run.state import ATTEMPTS, CHECKPOINTS, State, Status

_KEYS = ("attempt", "host", "job", "started_at", "ended_at", "state", "returncode", "reason")


def log_attempt(directory: Path, ended: Status) -> None:
    """One write at the end of the file: nothing that is there can be torn by it."""
    line = {key: value for key, value in asdict(ended).items() if key in _KEYS}
    text = json.dumps(line | {"checkpoint": newest_checkpoint(directory)}) + "\n"
    descriptor = os.open(directory / ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_attempts(directory: Path) -> list[dict[str, Any]]:
    """Oldest first; a line that a full disk cut off is left out."""
    try:
        lines = (directory / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def newest_checkpoint(directory: Path) -> str | None:
    """Its name, which holds the step."""
    return max((path.name for path in (directory / CHECKPOINTS).glob("*.ckpt")), default=None)


def saved_step(directory: Path) -> int:
    """The step that an attempt would go on from; 0 without a checkpoint."""
    found = re.search(r"(\d+)\.ckpt$", newest_checkpoint(directory) or "")
    return int(found[1]) if found else 0


def interrupted_in_vain(directory: Path, job: str) -> int:
    """How many attempts of a Slurm job in a row, up to the last, were interrupted and brought no new checkpoint."""
    attempts = read_attempts(directory)
    count = 0
    for before, attempt in reversed(list(zip([{"checkpoint": None}, *attempts], attempts))):
        fruitless = attempt["state"] == State.INTERRUPTED.value and attempt["checkpoint"] == before["checkpoint"]
        if not fruitless or attempt["job"] != job:
            break
        count += 1
    return count
