"""What Lightning and logging add to a step: `MTPModule` under the Trainer against a bare loop of the same steps, and
beside it what Lightning takes for itself, with a module that has a loss, an optimizer, its schedule and nothing else.

The model has as many parameter tensors as the measured one, for what is done once for each (the gradient's norm,
clipping, AdamW), and hardly any numbers in them, so that a millisecond is not lost in the noise of products.
"""

import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from mtp_lightning.bench.harness import count_busy, is_steady, synchronize
from mtp_lightning.bench.train_contenders import Workload
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw
from mtp_lightning.optimization.schedule import ScheduleConfig, learning_rate_factor

STEPS = 150
"""Of one run; the first FIRST are not counted."""
FIRST = 5
ALONE = "Lightning alone, a module without records"
NOT_LOGGED, LOGGED, MLFLOW = "Lightning, steps not logged", "Lightning, every step logged", "Lightning and MLflow"


def step_overheads(
    workload: Workload,
    n_future: int,
    rounds: int,
    by_cpu: bool,
    wait: Callable[[], bool | None],
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Name of a way to run -> milliseconds a step above the bare loop: `median`, and `mean`, in which stands what only
    some steps do, as writing to MLflow what many have logged; `busy`, rounds in which it or the bare loop began while
    others used the machine; `steady`, whether enough others are left to judge it.

    Each is run `rounds` times in turn, and stands beside the bare loop of the same round, since a machine's pace drifts
    by more than this is from one to the next; of the rounds' differences the medians count.

    Args:
        wait: called before each run; says whether the machine is busy.
    """
    few = replace(workload.backbone, vocab_size=64, dim=4 * workload.backbone.n_heads, head_dim=None, ffn_dim=32)
    small = replace(workload, backbone=few, context=8, batch=1)
    clock = time.process_time if by_cpu else time.perf_counter
    runs: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: bare_steps(small, n_future, clock),
        ALONE: lambda: trainer_steps(small, n_future, clock, log_every=10 * STEPS, alone=True),
        NOT_LOGGED: lambda: trainer_steps(small, n_future, clock, log_every=10 * STEPS),
        LOGGED: lambda: trainer_steps(small, n_future, clock),
        MLFLOW: lambda: trainer_steps(small, n_future, clock, mlflow=True),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in runs}
    said: dict[str, list[bool | None]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            progress(f"overhead, {name}: round {number + 1} of {rounds}")
            said[name].append(wait())
            found[name].append(run())
    overheads: dict[str, dict[str, Any]] = {}
    for name in (name for name in runs if name != "bare"):
        busy = count_busy([either or own for either, own in zip(said["bare"], said[name])])
        above = {
            of.__name__: [1e3 * (of(run) - of(bare)) for bare, run in zip(found["bare"], found[name])]
            for of in (median, mean)
        }
        overheads[name] = {key: median(each) for key, each in above.items()} | {
            "rounds": above["median"], "busy": busy, "steady": is_steady(rounds, busy, 1.0),
        }  # fmt: skip
    return overheads


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
    starts.append(clock())
    return _differences(starts)


def trainer_steps(
    workload: Workload,
    n_future: int,
    clock: Callable[[], float],
    mlflow: bool = False,
    log_every: int = 1,
    alone: bool = False,
) -> list[float]:
    """The same under Lightning's Trainer, with the loader of `mtp fit`, logged into memory, or into an MLflow store on
    disk. What waits for the store when the counted steps begin is written before, what they leave as part of the
    last."""
    import lightning.pytorch as pl

    from mtp_lightning.data.loader import ResumableLoader
    from mtp_lightning.module import MTPModule

    device = torch.device(workload.device)
    starts: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if len(starts) == FIRST:
                trainer.logger.flush()
            synchronize(device)
            starts.append(clock())

        def on_train_end(self, trainer: Any, *args: Any) -> None:
            trainer.logger.flush()
            synchronize(device)
            starts.append(clock())

    heads = HeadsConfig(n_future=n_future)

    class Alone(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = MTPModel(workload.backbone, heads)

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            return model_loss(self.model, make_targets(heads, batch["tokens"])).total

        def configure_optimizers(self) -> Any:
            optimizer, schedule = make_adamw(list(self.parameters()), OptimizerConfig()), ScheduleConfig()
            factors = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate_factor(step, STEPS, schedule)
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factors, "interval": "step"}}

    module = Alone() if alone else MTPModule(workload.backbone, heads)
    batches: Any = ResumableLoader([{"tokens": workload.window(n_future).cpu()}] * STEPS, STEPS)
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
                log_every_n_steps=log_every,
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

        def flush(self) -> None:
            """There is nothing to write."""

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            return

    return InMemory()


def _mlflow_logger(folder: Path) -> Any:
    from mtp_lightning.tracking.logger import MLflowRunLogger

    return MLflowRunLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", directory=str(folder), system_metrics=False)


def _differences(starts: list[float]) -> list[float]:
    counted = starts[FIRST:]
    return [late - early for early, late in itertools.pairwise(counted)]
