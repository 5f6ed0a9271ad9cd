"""How fast a run trains and how much memory it takes."""

import resource
import sys
import time
from collections import deque
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from mtp_lightning.ranges import Steps, check_ranges

WINDOWS_KEPT = 10_000
"""Rates that the final median is taken over, the newest ones: what a checkpoint carries stays small."""


class ThroughputMonitor(pl.Callback):
    """Logs every `log_every_n_steps` steps

    - `perf/tokens_per_second`: input positions B x T of all ranks over the seconds of training: from one step's end
      to the next, waiting for data included. Left out are validation, checkpoints, whatever other callbacks do at a
      step's end (probes), and the first `warmup_steps` batches after each start;
    - `perf/step_seconds`: those seconds per optimizer step;
    - `perf/tokens_seen`: input positions since step 0, over all attempts;
    - `perf/peak_memory_bytes`: what CUDA's allocator gave out at most, else the process's largest resident size;

    and, once, at the start `model/parameters`, `model/parameters_non_embedding`, `model/flops_per_token`, of text
    `data/bytes_per_token`, and at the end `perf/tokens_per_second_median`, the median of the logged rates.

    All ranks are taken to have batches of the same shape. On a GPU, steps are queued: the GPU is waited for only where
    a time is read that matters, at the logged steps and before validation and checkpoints.

    Args:
        warmup_steps: batches after each start that are not counted.
    """

    def __init__(self, warmup_steps: Steps = 5) -> None:
        check_ranges("ThroughputMonitor", ThroughputMonitor, locals())
        self.warmup_steps = warmup_steps
        self._tokens_seen = 0
        self._rates: deque[float] = deque(maxlen=WINDOWS_KEPT)
        self._batches = 0
        self._stepped = 0
        self._began = 0.0
        self._idle_since: float | None = None
        self._clear_window()

    def _clear_window(self) -> None:
        self._tokens, self._seconds, self._steps = 0, 0.0, 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit" and not any(isinstance(c, _EndOfCallbacks) for c in callbacks):
            callbacks.append(_EndOfCallbacks(self))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches, self._stepped, self._idle_since = 0, trainer.global_step, None
        self._clear_window()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0 and self._batches == 0:
            context = batch["tokens"].shape[1] - pl_module.horizon
            described = {name: float(value) for name, value in pl_module.describe(context).items()}  # type: ignore[operator]
            per_token = getattr(getattr(trainer, "datamodule", None), "bytes_per_token", None)
            text = {"data/bytes_per_token": per_token} if per_token else {}
            self._log(trainer, described | text, step=0)
        self._began = time.perf_counter() if self._idle_since is None else self._idle_since

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows, length = batch["tokens"].shape
        tokens = rows * (length - pl_module.horizon) * trainer.world_size
        stepped = trainer.global_step > self._stepped
        logs = stepped and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs:
            _wait_for_gpu()
        self._tokens_seen += tokens
        self._batches += 1
        self._stepped = trainer.global_step
        if self._batches > self.warmup_steps:
            self._tokens += tokens
            self._steps += stepped
            self._seconds += time.perf_counter() - self._began
        if logs:
            self._log_window(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait_on_the_clock()
        self._idle_since = None

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._wait_on_the_clock()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait_on_the_clock()
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._log_window(trainer)
        if self._rates:
            self._log(trainer, {"perf/tokens_per_second_median": median(self._rates)}, trainer.global_step)

    def _wait_on_the_clock(self) -> None:
        """Count what the GPU still has to do for training as training, not as what comes next."""
        before = time.perf_counter()
        _wait_for_gpu()
        if self._steps:
            self._seconds += time.perf_counter() - before

    def _log_window(self, trainer: pl.Trainer) -> None:
        metrics = {"perf/tokens_seen": float(self._tokens_seen), "perf/peak_memory_bytes": float(peak_memory_bytes())}
        if self._steps:
            self._rates.append(self._tokens / self._seconds)
            metrics["perf/tokens_per_second"] = self._rates[-1]
            metrics["perf/step_seconds"] = self._seconds / self._steps
        self._clear_window()
        self._log(trainer, metrics, trainer.global_step)

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self._tokens_seen, "rates": list(self._rates)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens_seen = state_dict["tokens_seen"]
        self._rates = deque(state_dict["rates"], maxlen=WINDOWS_KEPT)


class _EndOfCallbacks(pl.Callback):
    """Comes after all other callbacks and notes when a step's end is over: the wait for data begins there."""

    def __init__(self, monitor: ThroughputMonitor) -> None:
        self.monitor = monitor

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.monitor._idle_since = time.perf_counter()


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
