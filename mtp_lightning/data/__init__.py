"""Tokenizers, corpora -> memory-mapped token shards, windows, data modules.

The data modules are loaded when asked for: `data.tokens.tokenizer` and `data.command` are used where neither Lightning
nor torch should be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_lightning.data.corpora.source import SourceConfig
    from mtp_lightning.data.datamodule import MTPDataModule
    from mtp_lightning.data.generated import GeneratedDataModule
    from mtp_lightning.data.tasks.datamodule import TaskDataModule
    from mtp_lightning.data.tasks.execution import Execution
    from mtp_lightning.data.tasks.polynomial import Polynomial
    from mtp_lightning.data.tasks.star_graph import StarGraph
    from mtp_lightning.data.tokens.datamodule import TokenDataModule

__all__ = [
    "Execution",
    "GeneratedDataModule",
    "MTPDataModule",
    "Polynomial",
    "SourceConfig",
    "StarGraph",
    "TaskDataModule",
    "TokenDataModule",
]

_HOMES = {
    "Execution": "tasks.execution",
    "GeneratedDataModule": "generated",
    "MTPDataModule": "datamodule",
    "Polynomial": "tasks.polynomial",
    "SourceConfig": "corpora.source",
    "StarGraph": "tasks.star_graph",
    "TaskDataModule": "tasks.datamodule",
    "TokenDataModule": "tokens.datamodule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"mtp_lightning.data.{_HOMES[name]}"), name)
