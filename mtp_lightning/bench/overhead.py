"""What Lightning and logging add to a step: `MTPModule` under the Trainer against a bare loop of the same steps.

The model has its real parameters, for what is done once per parameter (the gradient's norm, clipping, AdamW), and a
batch of a few tokens, so that a millisecond is not lost in the noise of a second of matrix products.
"""

import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mtp_lightning.bench.harness import synchronize
from mtp_lightning.bench.train_contenders import Workload
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw

STEPS = 30
"""Of one run; the first FIRST are not counted."""
FIRST = 5


def step_overheads(
    workload: Workload, n_future: int, rounds: int, by_cpu: bool, progress: Callable[[str], None]
) -> dict[str, float]:
    """Name of a logger -> milliseconds a step above the bare loop.

    Each is run `rounds` times in turn. A run's figure is the median of its steps, and the best run counts: what other
    processes do to caches and memory only ever adds.
    """
    small = replace(workload, context=8, batch=1)
    clock = time.process_time if by_cpu else time.perf_counter
    runs: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: bare_steps(small, n_future, clock),
        "Lightning and logging": lambda: trainer_steps(small, n_future, clock, mlflow=False),
        "Lightning and MLflow": lambda: trainer_steps(small, n_future, clock, mlflow=True),
    }
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds):
        for name, run in runs.items():
            progress(f"overhead, {name}: round {number + 1} of {rounds}")
            best[name] = min(best[name], median(run()))
    bare = best.pop("bare")
    return {name: 1e3 * (seconds - bare) for name, seconds in best.items()}


def bare_steps(workload: Workload, n_future: int, clock: Callable[[], float]) -> list[float]:
    """Seconds from each step's beginning to the next one's."""
    heads, device = HeadsConfig(n_future=n_future), torch.device(workload.device)
    model = MTPModel(workload.backbone, heads).to(device)
    parameters = list(model.parameters())
    optimizer = make_adamw(parameters, OptimizerConfig())
    window_BL = workload.window(n_future)
    starts = []
    for _ in range(STEPS):
        synchronize(device)
        starts.append(clock())
        with workload.forward():
            total = model_loss(model, make_targets(heads, window_BL)).total
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return _differences(starts)


def trainer_steps(workload: Workload, n_future: int, clock: Callable[[], float], mlflow: bool) -> list[float]:
    """The same under Lightning's Trainer, every step logged: into memory, or into an MLflow store on disk."""
    import lightning.pytorch as pl

    from mtp_lightning.module import MTPModule

    device = torch.device(workload.device)
    starts: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            synchronize(device)
            starts.append(clock())

    module = MTPModule(workload.backbone, HeadsConfig(n_future=n_future))
    window_BL = workload.window(n_future).cpu()
    rows: Any = [{"tokens": row} for row in window_BL] * STEPS
    batches: Any = torch.utils.data.DataLoader(rows, batch_size=workload.batch)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers, checkpoints and devices that this run has not
        quiet = logging.getLogger("lightning.pytorch")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            trainer = pl.Trainer(
                max_steps=STEPS,
                accelerator=device.type,
                devices=1,
                precision="bf16-mixed" if workload.bfloat16 else "32-true",
                gradient_clip_val=1.0,
                log_every_n_steps=1,
                logger=_mlflow_logger(Path(folder)) if mlflow else _memory_logger(),
                callbacks=[Clock()],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, batches)
        finally:
            quiet.setLevel(level)
    return _differences(starts)


def _memory_logger() -> Any:
    from lightning.pytorch.loggers.logger import Logger

    class InMemory(Logger):
        """Keeps what is logged."""

        name, version = "memory", "0"

        def __init__(self) -> None:
            super().__init__()
            self.points: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.points.append((step, dict(metrics)))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            return

    return InMemory()


def _mlflow_logger(folder: Path) -> Any:
    from mtp_lightning.tracking.logger import MLflowRunLogger

    return MLflowRunLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", directory=str(folder), system_metrics=False)


def _differences(starts: list[float]) -> list[float]:
    counted = starts[FIRST:]
    return [late - early for early, late in itertools.pairwise(counted)]
