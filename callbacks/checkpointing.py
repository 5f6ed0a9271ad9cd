"""Checkpoints that a killed run continues from without a gap or a repeat."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from mtp_lightning.errors import InputError


class PeriodicCheckpoint(Checkpoint):
    """Saves every `every_n_steps` steps or `every_n_seconds`, whichever comes first, and at the end of training.

    Files are `<default_root_dir>/checkpoints/step-00000200.ckpt`, named so only when they are whole; the newest `keep`
    stay. Where a step ends in a validation, the checkpoint waits for it: saved before it, a resumed run would never
    log that validation.

    Raises:
        InputError: a period or `keep` below 1.
    """

    def __init__(self, every_n_steps: int = 1000, every_n_seconds: float = 600.0, keep: int = 2) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("every_n_seconds", every_n_seconds), ("keep", keep)):
            if value <= 0:
                raise InputError(f"PeriodicCheckpoint.{key} is {value}: it has to be above 0")
        self.every_n_steps = every_n_steps
        self.every_n_seconds = every_n_seconds
        self.keep = keep
        self._saved_step = -1
        self._saved_at = 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        inside_a_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not inside_a_step and not _validation_follows(trainer, batch_idx):
            self._save_if_due(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_if_due(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step or trainer.sanity_checking:
            return
        if step >= trainer.max_steps > 0:
            return  # the last one comes behind what other callbacks still measure, or a resumed run would lack that
        by_step = step % self.every_n_steps == 0
        by_time = time.monotonic() - self._saved_at >= self.every_n_seconds
        if trainer.strategy.broadcast(by_step or by_time):  # clocks differ between ranks, and saving is collective
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / f"step-{trainer.global_step:08d}.ckpt"
        partial = path.with_suffix(".partial")  # Lightning writes elsewhere and moves, which another disk makes a copy
        try:
            trainer.save_checkpoint(partial, weights_only=False)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            partial.replace(path)
            stale = [*folder.glob("step-*.partial"), *sorted(folder.glob("step-*.ckpt"))[: -self.keep]]
            for old in stale:
                old.unlink()


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates right behind this batch: `val_check_interval` counts batches in our one epoch."""
    every = trainer.val_check_batch
    return trainer.enable_validation and every is not None and (batch_idx + 1) % every == 0
