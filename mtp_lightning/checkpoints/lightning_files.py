"""How Lightning writes a checkpoint of one file, and reads one of either kind."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from mtp_lightning.checkpoints.sharded import read_sharded


class CheckpointFiles(TorchCheckpointIO):
    """Local files by their names as they are, which Lightning takes for addresses (`a::b`), written beside where they
    belong, which Lightning does by way of memory and of the folder for temporary files."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """
        Raises:
            OSError: the disk is full.
        """
        if storage_options is not None or "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            partial.replace(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError):  # torch ends with an error of its own
                raise error.__context__ from None
            raise
        return None

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """On the CPU, wherever it was written: a GPU may be missing here, or be another process's."""
        if Path(path).is_dir():
            return read_sharded(Path(path))
        found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=weights_only)
        return found
