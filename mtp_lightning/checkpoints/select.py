"""Which checkpoint of a run to resume from, or to read its model from: the one of the latest step.

The step is the one that the file itself holds. Times of change are not looked at: `cp -r` makes them anew in any order,
and a clock may jump back.
"""

from pathlib import Path

from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.errors import InputError

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, inside the run's folder."""


def find_checkpoint(path: Path) -> Path:
    """`path` itself, or the newest good checkpoint of the run's folder that it is.

    Raises:
        InputError: a folder without any.
    """
    if not path.is_dir():
        return path
    newest = latest_checkpoint(path / CHECKPOINTS) or latest_checkpoint(path)
    if newest is None:
        raise InputError(f"folder '{path}' holds no checkpoint, nor does its folder {CHECKPOINTS}/")
    return newest


def latest_checkpoint(directory: Path) -> Path | None:
    """The one of the latest step in `directory` that loads; broken ones (a full disk, a kill) are passed over."""
    for path in by_step(directory):
        try:
            read_checkpoint(path)
        except InputError:
            continue
        return path
    return None


def by_step(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, that of the latest step first, without reading their tensors. Where two are of
    the same step, the one whose name comes last is first."""
    found = []
    for path in directory.glob("*.ckpt"):
        try:
            found.append((int(read_checkpoint(path, lazy=True)["global_step"]), path.name, path))
        except (InputError, KeyError):
            continue
    return [path for _, _, path in sorted(found, reverse=True)]
