"""How Lightning writes a checkpoint of one file, and reads one of either kind."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from mtp_lightning.checkpoints.sharded import read_sharded


class CheckpointFiles(TorchCheckpointIO):
    """Files by their names as they are, which Lightning takes for addresses (`a::b`), written straight to where they
    belong, which Lightning does by way of memory and of the folder for temporary files."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """On the CPU, wherever it was written: a GPU may be missing here, or be another process's."""
        if Path(path).is_dir():
            return read_sharded(Path(path))
        found: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=weights_only)
        return found
