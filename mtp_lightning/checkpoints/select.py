"""Which checkpoint of a run to resume from, or to read its model from: the good one of the latest step.

The step is the one that the file itself holds. Times of change are not looked at: `cp -r` makes them anew in any order,
and a clock may jump back.
"""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from mtp_lightning.checkpoints.files import read_checkpoint, reading, verify_checkpoint, verify_content
from mtp_lightning.checkpoints.sharded import is_sharded
from mtp_lightning.errors import InputError

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, inside the run's folder."""


class Found(NamedTuple):
    """The checkpoints of a folder."""

    by_step: list[Path]
    """Those whose step can be read, that of the latest first; tensors are not looked at. Of two with the same step, the
    one whose name comes last is first."""
    damaged: dict[Path, str]
    """The others, and why."""


def find_checkpoint(path: Path) -> Path:
    """`path` itself, or the newest good checkpoint of the run's folder that it is.

    Raises:
        InputError: a folder without any.
    """
    if not path.is_dir() or is_sharded(path):
        return path
    newest = latest_checkpoint(path / CHECKPOINTS) or latest_checkpoint(path)
    if newest is None:
        raise InputError(f"folder '{path}' holds no checkpoint, nor does its folder {CHECKPOINTS}/")
    return newest


def latest_checkpoint(directory: Path) -> Path | None:
    """The one of the latest step in `directory` that is good; None where there are no checkpoints. Damaged ones (a full
    disk, bits that flipped) are passed over, with a line that says so.

    Raises:
        InputError: there are checkpoints, and none of them is good.
    """
    found = find_checkpoints(directory)
    damaged = dict(found.damaged)
    for path in found.by_step:
        try:
            verify_checkpoint(path)
        except InputError as error:
            damaged[path] = str(error)
            continue
        _say_passed_over(path, damaged)
        return path
    if damaged:
        instead = f"'{directory}' holds no good checkpoint: give a good one back, or a new folder"
        raise InputError("\n".join([*damaged.values(), instead]))
    return None


def find_checkpoints(directory: Path) -> Found:
    steps, damaged = [], {}
    for path in sorted(directory.glob("*.ckpt")):
        try:
            steps.append((read_checkpoint(path, lazy=True)["global_step"], path.name, path))
        except InputError as error:
            damaged[path] = str(error)
    return Found([path for _, _, path in sorted(steps, reverse=True)], damaged)


def is_good(path: Path) -> bool:
    """Whether every byte is what was written, whatever module wrote it."""
    try:
        with reading(path):
            verify_content(path)
    except InputError:
        return False
    return True


def _say_passed_over(taken: Path, damaged: dict[Path, str]) -> None:
    """Nothing is said of one that is older than `taken` by its name: it was not wanted."""
    newer = [why for path, why in damaged.items() if _named_step(path) is None or path.name > taken.name]
    if newer and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {'; '.join(newer)}: passed over for '{taken}'", file=sys.stderr, flush=True)


def _named_step(path: Path) -> int | None:
    found = re.search(r"(\d+)\.ckpt$", path.name)
    return int(found[1]) if found else None
