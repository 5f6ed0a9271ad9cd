"""Whole runs of `mtp fit` inside the process of the tests: a tiny model on a tiny corpus, MLflow beside it."""

import random
from pathlib import Path

import lightning.pytorch as pl
from test_tracking_fakes import fresh_store
from typing_extensions import override

from mtp_lightning.cli import main
from mtp_lightning.data import TokenDataModule
from mtp_lightning.data.loader import BatchLoader
from mtp_lightning.errors import PREEMPTED, Preempted

SMALL = """
model:
  backbone: {vocab_size: 256, dim: 16, n_layers: 3, n_heads: 2, ffn_dim: 32}
  heads: {n_future: 2}
  optimizer: {lr: 3.0e-3}
  schedule: {warmup_steps: 2}
trainer:
  accelerator: cpu
  precision: 32-true
  max_steps: 6
  val_check_interval: 3
  log_every_n_steps: 1
  enable_progress_bar: false
  logger:
    class_path: mtp_lightning.tracking.logger.MLflowRunLogger
    init_args: {directory: "${trainer.default_root_dir}", system_metrics: false}
  callbacks:
    - class_path: callbacks.throughput.ThroughputMonitor
    - class_path: callbacks.heartbeat.Heartbeat
    - class_path: callbacks.checkpointing.PeriodicCheckpoint
      init_args: {every_n_steps: 1000}
data:
  class_path: mtp_lightning.data.TokenDataModule
  init_args:
    source: {kind: text, path: corpus}
    context: 12
    batch_size: 2
    val_windows: 4
    validation_fraction: 0.3
"""


class StopAt(pl.Callback):
    """Ends the run as a signal would, with the checkpoint of its last step saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise Preempted(PREEMPTED)


class WithoutSteps(TokenDataModule):
    """Data of one's own whose loader gives batches one by one."""

    @override
    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(super().train_dataloader().batches, self.n_train_batches)


def make_folder(folder: Path) -> None:
    """A corpus, the configuration, and an empty store of MLflow runs, where the tests work."""
    chance = random.Random(0)
    (folder / "corpus").mkdir()
    for number in range(8):
        words = [chance.choice(["a cat", "the key", "two eggs", "Ann", "saw", "lost"]) for _ in range(40)]
        (folder / "corpus" / f"{number}.txt").write_text(" ".join(words))
    (folder / "small.yaml").write_text(SMALL)
    fresh_store(folder / "runs")


def fit(run: str, *flags: str) -> int:
    """`mtp fit` into the folder `run`; its exit status."""
    return main(["fit", "-c", "conf/base.yaml", "-c", "small.yaml", "--trainer.default_root_dir", run, *flags])


def fit_until(run: str, step: int, *flags: str) -> None:
    """A run that was stopped after `step` steps, with their checkpoint."""
    stop = ("--trainer.callbacks.every_n_steps=1", "--trainer.callbacks+=small_runs.StopAt")
    try:
        fit(run, *flags, *stop, f"--trainer.callbacks.step={step}")
    except Preempted:
        return
    raise AssertionError("it was not stopped")
