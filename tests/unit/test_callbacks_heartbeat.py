"""The files of a run: when each is there, and what it says."""

import json
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from test_tracking_fakes import fresh_store
from torch.utils.data import DataLoader

import callbacks.heartbeat as heartbeat_module
from callbacks.heartbeat import FAILURE, PROGRESS, RESULT, Heartbeat
from mtp_lightning.grid.run.state import Failure, Progress, Result
from mtp_lightning.tracking.logger import MLflowRunLogger

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.weight * batch.sum()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        return

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(pl.LightningDataModule):
    fingerprint = "f1"

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(10, 1))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]


def fit(
    folder: Path,
    *callbacks: pl.Callback,
    logger: Any = False,
    max_steps: int = 6,
    ckpt_path: Path | None = None,
    validates: bool = False,
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=max_steps, log_every_n_steps=2, logger=logger, callbacks=[Heartbeat(), *callbacks],
        default_root_dir=str(folder), accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=1 if validates else 0,
    )  # fmt: skip
    trainer.fit(Plain(), datamodule=Data(), ckpt_path=ckpt_path)
    return trainer


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} & {PROGRESS, RESULT, FAILURE}


class Late(pl.Callback):
    """Logs in the last hooks there are before `teardown`, to a logger alone and through Lightning."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert not (Path(trainer.default_root_dir) / RESULT).exists()
        trainer.callback_metrics["probe/late"] = torch.tensor(3.0)
        for logger in trainer.loggers:
            logger.log_metrics({"probe/logger_only": math.nan}, step=trainer.global_step)


def test_the_result_holds_everything_that_was_logged(tmp_path: Path) -> None:
    """As the grid reads it; and by then MLflow holds it, too."""
    logger = MLflowRunLogger(fresh_store(tmp_path), system_metrics=False, flush_every_seconds=1e9)
    recorded: list[set[str]] = []

    class AfterAll(pl.Callback):
        def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            assert (tmp_path / RESULT).exists()
            recorded.append(set(logger.client.get_run(logger.run_id).data.metrics))

    fit(tmp_path, Late(), AfterAll(), logger=logger)
    result = Result.read(tmp_path)
    assert result is not None
    assert (result.step, result.tokens, result.data_fingerprint) == (6, None, "f1")
    assert result.metrics.keys() == {"train/loss", "probe/late", "probe/logger_only"}
    assert (result.metrics["train/loss"], result.metrics["probe/late"]) == (1.0, 3.0)
    assert math.isnan(result.metrics["probe/logger_only"])
    assert result.wall_seconds is not None
    assert 0 < result.wall_seconds < 60
    assert recorded == [{"train/loss", "probe/logger_only"}]


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, int]] = []

    def remember(path: Path, content: dict[str, Any]) -> None:
        if path.name == PROGRESS:
            written.append((content["phase"], content["step"]))
        write(path, content)

    write = heartbeat_module.write_json
    monkeypatch.setattr(heartbeat_module, "write_json", remember)
    fit(tmp_path)
    assert written == [("starting", 0), ("finishing", 6)]  # all within a second

    written.clear()
    monkeypatch.setattr(heartbeat_module, "SECONDS_BETWEEN", 0.0)
    fit(tmp_path)
    assert written == [("starting", 0), *[("training", step) for step in range(1, 7)], ("finishing", 6)]
    progress = Progress.read(tmp_path)
    assert progress is not None
    assert (progress.loss, progress.pid, progress.host) == (1.0, os.getpid(), socket.gethostname())


def test_the_files_of_an_earlier_attempt_go_first(tmp_path: Path) -> None:
    for name in (RESULT, FAILURE):
        (tmp_path / name).write_text("{}")
    seen: list[set[str]] = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(files(tmp_path))

    fit(tmp_path, Look())
    assert seen == [{PROGRESS}]
    assert files(tmp_path) == {PROGRESS, RESULT}


def test_the_seconds_of_earlier_attempts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts of an epoch of ten steps, a step of 100 seconds; what passes between attempts does not count."""
    clock = SimpleNamespace(now=0.0)
    reads_clock = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(heartbeat_module, "time", reads_clock)

    class Slow(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            clock.now += 100.0

    seconds, saved = [], None
    for steps in (10, 20, 30):
        trainer = fit(tmp_path, Slow(), max_steps=steps, ckpt_path=saved)
        saved = tmp_path / f"{steps}.ckpt"
        trainer.save_checkpoint(saved)
        clock.now += 5000.0
        result = Result.read(tmp_path)
        assert result is not None
        seconds.append(result.wall_seconds)
    assert seconds == [1000.0, 2000.0, 3000.0]


class Bang(pl.Callback):
    """Raises in one hook."""

    def __init__(self, hook: str, error: BaseException) -> None:
        def bang(*args: Any, **kwargs: Any) -> None:
            raise error

        setattr(self, hook, bang)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_fit_end", "teardown"])
def test_what_fails_leaves_its_reason_and_no_result(tmp_path: Path, hook: str) -> None:
    """In the last hook as well, where the result is written already."""
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Bang(hook, ZeroDivisionError("by 0")))
    assert files(tmp_path) == {PROGRESS, FAILURE}
    failure = Failure.read(tmp_path)
    assert failure is not None
    assert (failure.error, failure.message) == ("ZeroDivisionError", "by 0")
    assert json.loads((tmp_path / FAILURE).read_text())["where"].startswith(__file__)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_sanity_check_start"])
def test_an_attempt_that_ends_before_training_leaves_the_files_of_the_one_before(tmp_path: Path, hook: str) -> None:
    fit(tmp_path)
    (tmp_path / FAILURE).write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Bang(hook, ZeroDivisionError()), validates=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "new", Bang(hook, ZeroDivisionError()), validates=True)
    assert not (tmp_path / "new").exists()


def test_who_is_stopped_has_not_failed(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        fit(tmp_path, Bang("on_train_batch_end", SIGTERMException()))
    assert files(tmp_path) == {PROGRESS}


def test_a_full_disk_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: dict[str, Any]) -> None:
        if path.name == FAILURE:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat_module, "write_json", full)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Bang("on_train_end", ZeroDivisionError()))
    assert "failure.json could not be written: [Errno 28]" in capsys.readouterr().err


def test_metrics_are_the_loggers_then_this_ranks_then_the_earlier_attempts() -> None:
    heartbeat, logger = Heartbeat(), SimpleNamespace(last_values={"val/loss": 2.0})
    metrics = {"val/loss": torch.tensor(1.0), "probe/x": torch.tensor(3.0)}
    saved = {"metrics": {"val/loss": 9.0, "probe/earlier": 4.0}, "wall_seconds": 5.0}
    heartbeat.on_load_checkpoint(Mock(spec=pl.Trainer), Plain(), {"heartbeat": saved})
    heartbeat._collect(Mock(spec=pl.Trainer, callback_metrics=metrics, loggers=[logger]))
    assert heartbeat._metrics == {"val/loss": 2.0, "probe/x": 3.0, "probe/earlier": 4.0}
