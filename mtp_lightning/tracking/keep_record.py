"""What keeps a logger's record whole while a run saves its checkpoints, and when it is stopped."""

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from mtp_lightning.errors import Paused
from mtp_lightning.tracking.logger import MLflowRunLogger


class KeepRecord(pl.Callback):
    """The command line adds it to every run.

    A checkpoint is written only after the metrics of its steps: a run killed right after it goes on from there, and
    would never come back to steps that were still waiting in memory. Where the store is away, a file beside the
    checkpoints holds them.
    """

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in _ours(trainer):
            logger.keep()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for logger in _ours(trainer):
            logger.interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit))
            logger.paused_at = trainer.global_step if isinstance(exception, Paused) else None


def _ours(trainer: pl.Trainer) -> list[MLflowRunLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, MLflowRunLogger)]
