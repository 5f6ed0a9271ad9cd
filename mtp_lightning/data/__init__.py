"""Tokenizers, corpora -> memory-mapped token shards, windows, data modules.

The data modules are loaded when asked for: `mtp_lightning.data.tokenizer` and `mtp_lightning.data.command` are used
where neither Lightning nor torch should be imported.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_lightning.data.corpora import SourceConfig
    from mtp_lightning.data.datamodule import MTPDataModule, TokenDataModule

__all__ = ["MTPDataModule", "SourceConfig", "TokenDataModule"]


def __getattr__(name: str) -> Any:
    if name in ("MTPDataModule", "TokenDataModule"):
        from mtp_lightning.data import datamodule

        return getattr(datamodule, name)
    if name == "SourceConfig":
        from mtp_lightning.data.corpora import SourceConfig

        return SourceConfig
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
