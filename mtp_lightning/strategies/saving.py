"""What a checkpoint of a run holds, for a single file or a sharded one."""

import copy
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor


def checkpoint_content(trainer: pl.Trainer, pieces: bool) -> dict[str, Any]:
    """What `trainer.save_checkpoint` would write; all ranks have to ask together.

    Args:
        pieces: of weights and optimizer states every rank gets what it has, or its share, and none gets them whole.
    """
    strategy: Any = trainer.strategy
    if not pieces or not hasattr(strategy, "gives_pieces"):
        return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    strategy.gives_pieces = True
    try:
        return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    finally:
        strategy.gives_pieces = False


def snapshot(value: Any) -> Any:
    """A copy on the CPU that stays what it is while training goes on."""
    if isinstance(value, Tensor):
        moved = value.detach().to("cpu")
        return moved.clone() if value.device.type == "cpu" else moved
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(snapshot, value))
    return copy.deepcopy(value)
