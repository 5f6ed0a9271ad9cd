"""How fast a run trains and how much memory it takes."""

import resource
import sys
import time
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override


class ThroughputMonitor(pl.Callback):
    """Logs every `log_every_n_steps` steps

    - `perf/tokens_per_second`: input positions B x T of all ranks over the time from one step's end to the next, data
      included; steps with a validation or a checkpoint in between, and the first `warmup_steps`, are left out;
    - `perf/tokens_seen`: input positions since step 0;
    - `perf/peak_memory_bytes`: what CUDA's allocator gave out at most, else the process's largest resident size;

    and, once, at the start `model/parameters`, `model/parameters_non_embedding`, `model/flops_per_token`, and at the
    end `perf/tokens_per_second_median`, the median of the logged rates.
    """

    def __init__(self, warmup_steps: int = 5) -> None:
        self.warmup_steps = warmup_steps
        self._tokens_seen = 0
        self._rates: list[float] = []
        self._steps = 0
        self._last_end: float | None = None
        self._window_tokens, self._window_seconds = 0, 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps, self._last_end = 0, None

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            context = batch["tokens"].shape[1] - pl_module.n_future
            self._log(trainer, {name: float(value) for name, value in pl_module.describe(context).items()}, step=0)  # type: ignore[operator]

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows, length = batch["tokens"].shape
        tokens = rows * (length - pl_module.n_future) * trainer.world_size
        self._tokens_seen += tokens
        self._steps += 1
        logs = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and torch.cuda.is_available():
            torch.cuda.synchronize()  # only here: a wait in every step would slow what is measured
        now = time.perf_counter()
        if self._last_end is not None and self._steps > self.warmup_steps:
            self._window_tokens += tokens
            self._window_seconds += now - self._last_end
        if logs:
            self._log_window(trainer)
            now = time.perf_counter()
        self._last_end = now

    def _log_window(self, trainer: pl.Trainer) -> None:
        metrics = {"perf/tokens_seen": float(self._tokens_seen), "perf/peak_memory_bytes": float(peak_memory_bytes())}
        if self._window_seconds > 0:
            self._rates.append(self._window_tokens / self._window_seconds)
            metrics["perf/tokens_per_second"] = self._rates[-1]
        self._window_tokens, self._window_seconds = 0, 0.0
        self._log(trainer, metrics, trainer.global_step)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_end = None

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._last_end = None

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rates:
            self._log(trainer, {"perf/tokens_per_second_median": median(self._rates)}, trainer.global_step)

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens_seen": self._tokens_seen, "rates": self._rates}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens_seen, self._rates = state_dict["tokens_seen"], state_dict["rates"]


def peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
