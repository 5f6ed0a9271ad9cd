"""Which checkpoint of a run to resume from, or to read its model from."""

from pathlib import Path

from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.errors import InputError


def find_checkpoint(path: Path) -> Path:
    """`path` itself, or the newest good checkpoint of the run's folder that it is.

    Raises:
        InputError: a folder without any.
    """
    if not path.is_dir():
        return path
    newest = latest_checkpoint(path / "checkpoints") or latest_checkpoint(path)
    if newest is None:
        raise InputError(f"folder '{path}' holds no checkpoint, nor does its folder checkpoints/")
    return newest


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint under `directory` that loads; broken ones (a full disk, a kill) are passed over."""
    files = sorted(directory.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files:
        try:
            read_checkpoint(path)
        except InputError:
            continue
        return path
    return None
