"""What a run writes about itself into its own folder: how far it is, that it finished, why it failed."""

import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from mtp_lightning.errors import Paused, Preempted
from mtp_lightning.files import write_json
from mtp_lightning.machine import process_token
from mtp_lightning.secrets import mask

PROGRESS, RESULT, FAILURE, GATE = "progress.json", "result.json", "failure.json", "gate.json"
SECONDS_BETWEEN = 1.0


class Heartbeat(pl.Callback):
    """Writes, in `directory` (by default the trainer's `default_root_dir`), each whole or not at all,

    - `progress.json` at most once a second: step, max_steps, phase, loss, tokens_per_second, updated_at, pid, host,
      process (which tells it from a later one of the same number), and why it saved and stopped, if it did;
    - `result.json` when fit has succeeded: step, tokens, wall_seconds over all attempts, the data's fingerprint and
      the last value of every metric (NaN and Infinity as Python's JSON writes them). Lightning reaches the hook
      `teardown` only when nothing was raised; by then every other callback has logged what it had to, and the loggers
      are flushed first: where this file is, everything else is too;
    - `failure.json` when it has not: the exception's class, message and place. A run that somebody stopped did not
      fail and leaves none;
    - `gate.json` when it paused at the gate of its grid: the step, and the last value of every metric there.

    Nothing is written or deleted before training starts, so that an attempt that is refused leaves the files of the
    one before it. Only rank zero writes. What the result needs travels in checkpoints, so that a run which was killed
    between its last checkpoint and its result writes the same result when it is started again.

    Args:
        directory: where the files go; by default the trainer's `default_root_dir`.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = Path(directory) if directory else None
        self._metrics: dict[str, float] = {}
        self._earlier_seconds = 0.0
        self._began = False
        """Whether this attempt writes: from `on_train_start` on, after everything that may refuse it."""
        self._started = time.monotonic()
        self._written = 0.0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes nothing: what comes after may still refuse this attempt, and the files are those of an earlier one."""
        self._began, self._started = False, time.monotonic()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of a run that had no step left to make, `on_train_start` was never called."""
        if not self._began:
            self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        """The attempt is no longer refused: the end of an earlier one is forgotten."""
        self._began = True
        if not trainer.is_global_zero:
            return
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, FAILURE):
            (folder / name).unlink(missing_ok=True)
        self._progress(trainer, "starting", now=True)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._progress(trainer, "training")

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress(trainer, "validating")

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._progress(trainer, "validating")

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress(trainer, "finishing", now=True)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._collect(trainer)
        checkpoint["heartbeat"] = {"metrics": dict(self._metrics), "wall_seconds": self._wall_seconds()}

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get("heartbeat", {})
        self._metrics = dict(saved.get("metrics", {}))
        self._earlier_seconds = saved.get("wall_seconds", 0.0)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            flush = getattr(logger, "flush", None)
            if flush is not None:
                flush()
        self._collect(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        result = {
            "state": "finished",
            "step": trainer.global_step,
            "metrics": self._metrics,
            "tokens": int(self._metrics["perf/tokens_seen"]) if "perf/tokens_seen" in self._metrics else None,
            "wall_seconds": self._wall_seconds(),
            "data_fingerprint": getattr(data, "fingerprint", None),
            "window_room": getattr(data, "window_room", None),
        }
        write_json(self._folder(trainer) / RESULT, result)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not self._began or not trainer.is_global_zero:
            return
        folder = self._folder(trainer)
        (folder / RESULT).unlink(missing_ok=True)  # what ends a run can still fail after our teardown
        if isinstance(exception, (KeyboardInterrupt, SystemExit)):
            if isinstance(exception, Paused):
                self._collect(trainer)
                write_json(folder / GATE, {"step": trainer.global_step, "metrics": self._metrics})
            if isinstance(exception, Preempted) and exception.why:
                self._progress(trainer, "stopped", now=True, stopped=exception.why)
            return
        frames = traceback.extract_tb(exception.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
        failure = {"error": type(exception).__name__, "message": mask(str(exception)), "where": where}
        try:
            write_json(folder / FAILURE, failure)
        except OSError as error:  # a full disk, for one: the exception under way matters more, and goes on
            print(f"{folder / FAILURE} could not be written: {error}", file=sys.stderr)

    def _collect(self, trainer: pl.Trainer) -> None:
        """Last values: those that Lightning knows of, on this rank, then what loggers were given, which is over all."""
        self._metrics |= {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        for logger in trainer.loggers:
            self._metrics |= getattr(logger, "last_values", {})

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started

    def _folder(self, trainer: pl.Trainer) -> Path:
        return self.directory or Path(trainer.default_root_dir)

    def _progress(self, trainer: pl.Trainer, phase: str, now: bool = False, stopped: str | None = None) -> None:
        due = now or time.monotonic() - self._written >= SECONDS_BETWEEN
        if not due or not trainer.is_global_zero or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._written = time.monotonic()
        metrics = trainer.callback_metrics
        loss, rate = metrics.get("train/loss"), metrics.get("perf/tokens_per_second")
        progress = {
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "phase": phase,
            "loss": None if loss is None else float(loss),
            "tokens_per_second": None if rate is None else float(rate),
            "updated_at": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process": process_token(os.getpid()),
            "stopped": stopped,
        }
        write_json(self._folder(trainer) / PROGRESS, progress)
