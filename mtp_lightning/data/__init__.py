"""Tokenizers, corpora -> memory-mapped token shards, windows, data modules.

The data modules are loaded when asked for: `mtp_lightning.data.tokenizer` and `mtp_lightning.data.command` are used
where neither Lightning nor torch should be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_lightning.data.corpora import SourceConfig
    from mtp_lightning.data.datamodule import MTPDataModule, TokenDataModule
    from mtp_lightning.data.polynomial import Polynomial
    from mtp_lightning.data.star_graph import StarGraph
    from mtp_lightning.data.task_module import TaskDataModule

__all__ = ["MTPDataModule", "Polynomial", "SourceConfig", "StarGraph", "TaskDataModule", "TokenDataModule"]

_HOMES = {
    "MTPDataModule": "datamodule",
    "Polynomial": "polynomial",
    "SourceConfig": "corpora",
    "StarGraph": "star_graph",
    "TaskDataModule": "task_module",
    "TokenDataModule": "datamodule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"mtp_lightning.data.{_HOMES[name]}"), name)
