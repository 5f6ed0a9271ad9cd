"""What callbacks share that measure the model while it learns: when they do, and that training does not notice."""

import inspect
import math
import re
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.ranges import Count, check_ranges
from mtp_lightning.strategies.gather import full_model
from mtp_lightning.tracking.logger import MLflowRunLogger

When = Count | Literal["log", "validation", "end"]
"""Every so many steps; at steps spaced evenly on a logarithmic scale; at every validation; or at the end alone."""
PER_DECADE = 8
"""Log-spaced steps between 100 and 1000, about."""
PICTURES = "pictures"
"""Folder of pictures, below `trainer.default_root_dir` and among the run's artifacts."""


def log_spaced(step: int) -> bool:
    """Whether this step is the rounded power of 10^(1/8) that it is next to: 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, ..."""
    exponent = math.log10(step) * PER_DECADE
    return any(round(10 ** (k / PER_DECADE)) == step for k in (math.floor(exponent), math.ceil(exponent)))


class ProbeCallback(pl.Callback):
    """Measures the model `when` it is due and at the end, and records the results; also before the first step, where
    `when` is about steps.

    Training does not notice: weights, gradients, mode, random states and the order of the data stay as they were. Every
    rank takes part in gathering sharded weights, and rank zero alone measures. Compiled layers run uncompiled.

    Of `lead_metrics`, the first measured step at which one was as high as wanted is recorded at the end as
    `<metric>/lead_step`, where it ever was, and `<metric>/reached` as 1 or 0.

    `perf/probe/<name>/seconds` is recorded with every result and, at the end, `perf/probe/<name>/share_of_time`: all
    its seconds over those of training (of this attempt, where a run was continued).

    Args:
        when: every so many steps, "log" (spaced), at every "validation", or at the "end" alone.

    Raises:
        InputError: a number of steps below 1.
    """

    name: str
    """Part of the names of the metrics that say what measuring costs."""

    def __init__(self, when: When) -> None:
        check_ranges(type(self).__name__, ProbeCallback, {"when": when})
        self.when = when
        self.seconds = 0.0
        self.lead_steps: dict[str, int] = {}
        """Metric -> the first step at which it was as high as wanted."""
        self._began = 0.0

    @contextmanager
    def named(self) -> Iterator[None]:
        """A refusal of what is called inside names the callback: `InductionProbe.length is 2, ...`."""
        try:
            yield
        except InputError as error:
            words = re.split(r"\W", str(error), maxsplit=1)
            between = "." if words[0] in inspect.signature(type(self)).parameters else ": "
            raise InputError(f"{type(self).__name__}{between}{error}") from error

    @property
    def lead_metrics(self) -> Mapping[str, float]:
        """Metrics whose lead time is of interest, and from what value on they have formed."""
        return {}

    @abstractmethod
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        """Metrics of the model, which is in evaluation mode; called on rank zero."""

    def is_ready(self, trainer: pl.Trainer) -> bool:
        """Whether there is something to measure with these data; the same on all ranks."""
        return True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        if trainer.global_step == 0 and self.when not in ("validation", "end"):
            self._measure_now(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step >= trainer.max_steps > 0:
            return
        if log_spaced(step) if self.when == "log" else isinstance(self.when, int) and step % self.when == 0:
            self._measure_now(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self.when == "validation" and fitting and trainer.global_step != trainer.max_steps:  # the end has its own
            self._measure_now(trainer, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure_now(trainer, pl_module, at_end=True)

    def _measure_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule, at_end: bool = False) -> None:
        if not self.is_ready(trainer):
            return
        start = time.perf_counter()
        own = pl_module.model
        assert isinstance(own, MTPModel)
        was_training = own.training
        model = full_model(trainer, pl_module)
        if model is None:
            return
        try:
            with undisturbed():
                metrics = self.measure(trainer, model, at_end)
        finally:
            own.train(was_training)
        if not metrics:
            return
        metrics |= self._lead_times(metrics, trainer.global_step, at_end)
        now = time.perf_counter()
        self.seconds += now - start
        metrics[f"perf/probe/{self.name}/seconds"] = now - start
        if at_end:
            metrics[f"perf/probe/{self.name}/share_of_time"] = self.seconds / (now - self._began)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    def _lead_times(self, metrics: dict[str, float], step: int, at_end: bool) -> dict[str, float]:
        for metric, wanted in self.lead_metrics.items():
            if metrics.get(metric, -math.inf) >= wanted:
                self.lead_steps.setdefault(metric, step)
        if not at_end:
            return {}
        reached = {f"{metric}/reached": float(metric in self.lead_steps) for metric in self.lead_metrics}
        return reached | {f"{metric}/lead_step": float(step) for metric, step in self.lead_steps.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"lead_steps": dict(self.lead_steps)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lead_steps = dict(state_dict["lead_steps"])

    def save_picture(self, trainer: pl.Trainer, picture: bytes, name: str) -> None:
        """Keep a PNG with the run, and among its artifacts."""
        folder = Path(trainer.default_root_dir) / PICTURES / Path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(name).name
        partial = path.with_suffix(".partial")
        partial.write_bytes(picture)
        partial.replace(path)
        for logger in trainer.loggers:
            if isinstance(logger, MLflowRunLogger):
                logger.log_file_artifact(path, str(Path(PICTURES) / Path(name).parent))


@contextmanager
def undisturbed() -> Iterator[None]:
    """No gradients, eager code, and torch's random states as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        yield
