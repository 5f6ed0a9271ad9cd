"""What counts as training time, and that the count goes on after a restart."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from tiny import Recorder
from torch import Tensor

import callbacks.throughput as throughput_module
from callbacks.throughput import ThroughputMonitor

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
STEP, PROBE, SAVE, VALIDATION, DATA = 0.25, 3.0, 4.0, 16.0, 0.5
"""Sums of powers of two, which are exact."""


class Clock:
    """Goes on only when somebody sleeps, so that what is measured does not depend on the machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_module, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))


class Timed(pl.LightningModule):
    """A step takes `STEP` seconds; everything beside training takes longer."""

    horizon = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def describe(self, context: int) -> dict[str, int]:
        return {"model/flops_per_token": 6 * context}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        CLOCK.sleep(STEP)
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        CLOCK.sleep(VALIDATION)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        CLOCK.sleep(SAVE)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Disturbance(pl.Callback):
    """A probe after every step and a checkpoint after every third."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        CLOCK.sleep(PROBE)
        if trainer.global_step % 3 == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")


class SlowData(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        for _ in range(100):
            CLOCK.sleep(DATA)
            yield {"tokens": torch.zeros(3, 12, dtype=torch.int64)}


def fit(
    folder: Path, monitor: ThroughputMonitor, *others: pl.Callback, ckpt: Path | None = None, **more: Any
) -> Recorder:
    calls = Recorder()
    loader = torch.utils.data.DataLoader(SlowData(), batch_size=None)
    settings = {
        "max_steps": 10, "val_check_interval": 5, "limit_val_batches": 1, "log_every_n_steps": 4, "logger": calls,
        "callbacks": [monitor, *others], "default_root_dir": folder, "accelerator": "cpu", "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    pl.Trainer(**(settings | more)).fit(Timed(), loader, loader, ckpt_path=ckpt, weights_only=True)  # type: ignore[arg-type]
    return calls


WINDOW = {"perf/tokens_seen", "perf/peak_memory_bytes", "perf/tokens_per_second", "perf/step_seconds"}


def test_exactly_this_is_logged_and_time_beside_training_is_left_out(tmp_path: Path, own_clock: None) -> None:
    calls = fit(tmp_path, ThroughputMonitor(warmup_steps=1), Disturbance())
    assert [(step, set(metrics)) for step, metrics in calls.calls] == [
        (0, {"model/flops_per_token"}),
        (4, WINDOW),
        (8, WINDOW),
        (10, WINDOW),  # what is left of the last window
        (10, {"perf/tokens_per_second_median"}),
    ]
    windows = [metrics for _, metrics in calls.calls if "perf/step_seconds" in metrics]
    # Data is waited for, too, but for that of the first step, which is none of the window's, or after a validation.
    assert [metrics["perf/step_seconds"] * n for metrics, n in zip(windows, (3, 4, 2))] == [
        3 * (STEP + DATA), 4 * STEP + 3 * DATA, 2 * (STEP + DATA),
    ]  # fmt: skip
    for metrics in windows:
        assert metrics["perf/tokens_per_second"] == pytest.approx(30 / metrics["perf/step_seconds"])
    assert [metrics["perf/tokens_seen"] for metrics in windows] == [120, 240, 300]
    rates = sorted(metrics["perf/tokens_per_second"] for metrics in windows)
    assert calls.last["perf/tokens_per_second_median"] == rates[1]


def test_the_count_goes_on_after_a_restart(tmp_path: Path) -> None:
    fit(tmp_path, ThroughputMonitor(warmup_steps=1), Disturbance())  # the checkpoint of step 9 stays
    monitor = ThroughputMonitor(warmup_steps=1)
    calls = fit(tmp_path, monitor, ckpt=tmp_path / "last.ckpt", max_steps=12)
    assert [(step, set(metrics)) for step, metrics in calls.calls] == [
        (12, WINDOW),
        (12, {"perf/tokens_per_second_median"}),
    ]
    assert calls.last["perf/tokens_seen"] == 12 * 30
    assert len(monitor.state_dict()["rates"]) == 3  # of steps 4 and 8 before, of step 12 now


def test_nothing_is_claimed_of_a_run_that_only_warmed_up(tmp_path: Path) -> None:
    calls = fit(tmp_path, ThroughputMonitor(warmup_steps=50))
    assert set(calls.last) == {"model/flops_per_token", "perf/tokens_seen", "perf/peak_memory_bytes"}


def test_a_step_of_several_batches_is_one_step(tmp_path: Path, own_clock: None) -> None:
    calls = fit(tmp_path, ThroughputMonitor(warmup_steps=0), accumulate_grad_batches=2, max_steps=4)
    assert [step for step, metrics in calls.calls if "perf/tokens_seen" in metrics] == [4]
    assert calls.last["perf/tokens_seen"] == 8 * 30
    assert calls.last["perf/step_seconds"] == (8 * STEP + 6 * DATA) / 4, "but after the start and a validation"
    assert calls.last["perf/tokens_per_second"] == pytest.approx(60 / calls.last["perf/step_seconds"])


def test_a_step_between_logs_costs_next_to_nothing(tmp_path: Path) -> None:
    monitor, batch = ThroughputMonitor(), {"tokens": torch.zeros(3, 12, dtype=torch.int64)}
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    module, began = Timed(), time.process_time()
    for index in range(1000):
        monitor.on_train_batch_start(trainer, module, batch, index + 1)
        monitor.on_train_batch_end(trainer, module, None, batch, index)
    assert (time.process_time() - began) / 1000 < 0.2e-3


def test_tokens_are_those_of_all_ranks() -> None:
    monitor, trainer = ThroughputMonitor(), Mock(spec=pl.Trainer, world_size=2, global_step=1, log_every_n_steps=10)
    monitor.on_train_batch_end(trainer, Timed(), None, {"tokens": torch.zeros(3, 12)}, 0)
    assert monitor.state_dict()["tokens_seen"] == 2 * 3 * 10
