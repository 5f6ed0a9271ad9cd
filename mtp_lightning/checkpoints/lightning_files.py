"""How Lightning reads a checkpoint of either kind."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from mtp_lightning.checkpoints.sharded import read_sharded


class CheckpointFiles(TorchCheckpointIO):
    """Reads a sharded checkpoint where it is given one."""

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return read_sharded(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)
