"""The logger: batches, one run over several attempts, statuses, parameters."""

import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from mlflow.exceptions import MlflowException
from test_tracking_fakes import CountingClient, fresh_store, runs_of
from torch.utils.data import DataLoader

import mtp_lightning.tracking.patience as patience_module
import mtp_lightning.tracking.writer as writer_module
from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.errors import InputError, Paused
from mtp_lightning.machine import process_token, this_process
from mtp_lightning.tracking.begin import PROCESS
from mtp_lightning.tracking.keep_record import KeepRecord
from mtp_lightning.tracking.logger import PAUSED_AT, RUN_FILE, MLflowRunLogger
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import connect
from mtp_lightning.tracking.writer import RunWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def writer(client: CountingClient, seconds: float = 1e9, recorded: dict[str, int] | None = None) -> RunWriter:
    return RunWriter(client, "run", "sqlite:////x/mlflow.db", seconds, recorded)


def logger_at(folder: Path, uri: str, **arguments: Any) -> MLflowRunLogger:
    return MLflowRunLogger(tracking_uri=uri, directory=str(folder / "run"), system_metrics=False, **arguments)


class Toy(pl.LightningModule):
    """Logs as `MTPModule` does: `train/loss` before the step that it belongs to, `val/loss` when validation is over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.logger is not None
        self.logger.log_metrics({"train/loss": 1.0}, step=self.trainer.global_step + 1)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        return

    def on_validation_epoch_end(self) -> None:
        assert self.logger is not None
        self.logger.log_metrics({"val/loss": 2.0}, step=self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer_at(folder: Path, logger: MLflowRunLogger, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_steps=6, val_check_interval=4, num_sanity_val_steps=0, log_every_n_steps=1, accelerator="cpu",
        default_root_dir=str(folder), logger=logger, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def data() -> "DataLoader[torch.Tensor]":
    return DataLoader(torch.ones(10, 1))  # type: ignore[arg-type]


def test_points_wait_and_go_together_a_thousand_a_call() -> None:
    client = CountingClient()
    sink = writer(client)
    for step in range(81):
        sink.log_metrics({f"m{i}": 0.0 for i in range(11)}, step)
    assert client.batches == []  # 891 points
    sink.log_metrics({f"m{i}": 0.0 for i in range(11)}, 81)
    assert [len(batch) for batch in client.batches] == [902], "one call, not one more for what is above a round number"
    sink.log_metrics({f"n{i}": 0.0 for i in range(2500)}, 0)
    assert [len(batch) for batch in client.batches] == [902, 1000, 1000, 500]
    sink.flush()
    assert len(client.batches) == 4


def test_the_clock_writes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(writer_module, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now))
    client = CountingClient()
    sink = writer(client, seconds=5.0)
    for step, seconds in enumerate((0.0, 5.0, 0.5)):
        clock.now += seconds
        sink.log_metrics({"m": 0.0}, step)
    assert [len(batch) for batch in client.batches] == [3]


def test_what_could_not_be_written_stays_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module.time, "sleep", lambda seconds: None)
    client = CountingClient([MlflowException("database is locked")] * 3)
    sink = writer(client)
    sink.log_metrics({"m": 1.0}, 0)
    sink.flush()
    assert client.points == [("m", 0)]

    client.failures = [MlflowException("database or disk is full")]
    sink.log_metrics({"m": 2.0}, 1)
    with pytest.raises(OSError, match="disk is full"):
        sink.flush()
    sink.flush()
    assert client.points == [("m", 0), ("m", 1)]


def test_a_step_of_a_metric_is_taken_once() -> None:
    client = CountingClient()
    sink = writer(client, recorded={"a": 4})
    assert sink.log_metrics({"a": 1.0, "b": 1.0}, 4) == {"b": 1.0}
    assert sink.log_metrics({"a": 1.0, "b": 2.0}, 5) == {"a": 1.0, "b": 2.0}
    assert sink.log_metrics({"a": 9.0}, 5) == {}
    sink.flush()
    assert client.points == [("b", 4), ("a", 5), ("b", 5)]


def test_a_file_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer\.logger\.init_args\.tracking_uri is '\./mlruns'"):
        MLflowRunLogger(tracking_uri="./mlruns", directory=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"/run/x/mlflow_run_id: cannot be read \(Not a directory\)"):
        MLflowRunLogger(uri, directory=str(tmp_path / "run" / "x")).log_metrics({"m": 1.0}, 0)
    assert runs_of(uri, "mtp/fit") == []


def test_a_dropped_run_is_continued_with_each_step_once(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    first = logger_at(tmp_path, uri, tags={"mtp.group": "n=4"}, run_name="n=4 seed=1")
    for step in range(8):
        first.log_metrics({"train/loss": float(step), "epoch": 0.0}, step)
        if step == 4:
            first.flush()
    del first  # 5, 6, 7 are lost in memory, as by SIGKILL

    second = logger_at(tmp_path, uri, tags={"mtp.group": "n=4"})
    for step in range(3, 10):  # from a checkpoint that is older than the last record
        second.log_metrics({"train/loss": float(step), "val/loss": float(step)}, step)
    assert second.last_values == {"train/loss": 9.0, "val/loss": 9.0}
    second.finalize("success")

    (run,) = runs_of(uri, "mtp/fit")
    assert (tmp_path / "run" / RUN_FILE).read_text() == f"{run.run_id}\n"
    assert (run.name, run.status, run.tags["mtp.attempt"]) == ("n=4 seed=1", "FINISHED", "2")
    assert run.tags["mtp.group"] == "n=4"
    assert history(uri, run.run_id, ["train/loss", "val/loss", "epoch"]) == {
        "train/loss": [(step, float(step)) for step in range(10)],
        "val/loss": [(step, float(step)) for step in range(3, 10)],
    }


def test_values_that_are_no_numbers_come_back_as_what_they_were(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    logger = logger_at(tmp_path, uri)
    values = [1.0, math.nan, math.inf, -math.inf]
    for step, value in enumerate(values):
        logger.log_metrics({"m": value}, step)
    logger.finalize("success")
    points = history(uri, logger.run_id, ["m"])["m"]
    assert [str(value) for _, value in points] == ["1.0", "nan", "inf", "-inf"]
    assert read_run(uri, logger.run_id).metrics == {"m": -math.inf}
    assert logger_at(tmp_path, uri).writer is not None


def test_parameters_may_be_repeated_and_not_changed(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    config = {"model": {"heads": {"n_future": 4}}, "many": {str(i): i for i in range(150)}}
    logger = logger_at(tmp_path, uri)
    logger.log_hyperparams(config)
    logger.log_hyperparams(config)
    logger.finalize("success")
    assert read_run(uri, logger.run_id).params == {"model.heads.n_future": "4"} | {
        f"many.{i}": str(i) for i in range(150)
    }

    again = logger_at(tmp_path, uri)
    with pytest.raises(InputError, match=r"model\.heads\.n_future is 2, .*'.*/run' was begun with 4"):
        again.log_hyperparams({"model": {"heads": {"n_future": 2}}})
    again.finalize("failed")
    assert read_run(uri, logger.run_id).status == "FINISHED"  # what was refused did not happen


def test_a_run_that_its_store_does_not_hold_is_not_begun_anew(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path / "a")
    run_id = logger_at(tmp_path, uri).run_id
    with pytest.raises(InputError, match=rf"'.*/b/mlflow.db' does not hold the run of .*{run_id}"):
        logger_at(tmp_path, fresh_store(tmp_path / "b")).writer  # noqa: B018
    connect(uri).delete_run(run_id)
    with pytest.raises(InputError, match="was deleted in MLflow"):
        logger_at(tmp_path, uri).writer  # noqa: B018


def test_artifacts_and_tags(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    logger = logger_at(tmp_path, uri, experiment="mtp/grid")
    logger.log_text_artifact("a: 1", "config.yaml")
    (tmp_path / "figure.png").write_bytes(b"png")
    logger.log_file_artifact(tmp_path / "figure.png", "figures")
    logger.set_tags({"mtp.kind": "cell"})
    folder = tmp_path / "mlflow-artifacts" / "mtp" / "grid" / logger.run_id / "artifacts"
    assert (folder / "config.yaml").read_text() == "a: 1"
    assert (folder / "figures" / "figure.png").read_bytes() == b"png"
    tags = read_run(uri, logger.run_id).tags
    assert tags["mtp.kind"] == "cell"
    assert {"mtp.host", "mtp.device", "mtp.threads", "mtp.python", "mtp.version.torch"} <= set(tags)


class Watched(PeriodicCheckpoint):
    """After each checkpoint, which steps of which metric the store holds."""

    def __init__(self, logger: MLflowRunLogger) -> None:
        super().__init__(every_n_steps=2)
        self.logger = logger
        self.seen: dict[int, dict[str, list[int]]] = {}

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        self.seen[trainer.global_step] = steps_in_store(self.logger)


def steps_in_store(logger: MLflowRunLogger) -> dict[str, list[int]]:
    found = history(logger.tracking_uri, logger.run_id, ["train/loss", "val/loss"])
    return {key: [step for step, _ in points] for key, points in found.items()}


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    begun = logger_at(tmp_path, uri)
    begun.check({})
    begun.log_hyperparams({"a": 1})
    again = logger_at(tmp_path, uri)
    again.check({"a": 1})  # this very process: a notebook's second attempt
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        described = [*this_process().split(" ")[:3], str(other.pid), str(process_token(other.pid))]
        connect(uri).set_tag(begun.run_id, PROCESS, " ".join(described))
        with pytest.raises(InputError, match=f"is being made by process {other.pid}: wait for its end, stop it, or"):
            again.check({"a": 1})
        other.communicate(b"\n")
    again.check({"a": 1})


def test_metrics_of_a_checkpoint_are_recorded_before_it(tmp_path: Path) -> None:
    """Killed right after any checkpoint, a run lacks no step: those of the checkpoint are in the store already."""
    logger = logger_at(tmp_path, fresh_store(tmp_path), flush_every_seconds=1e9)
    watched = Watched(logger)
    trainer_at(tmp_path, logger, watched, KeepRecord()).fit(Toy(), data(), data())
    assert watched.seen == {
        2: {"train/loss": [1, 2]},
        4: {"train/loss": [1, 2, 3, 4], "val/loss": [4]},
        6: {"train/loss": [1, 2, 3, 4, 5, 6], "val/loss": [4]},
    }
    assert read_run(logger.tracking_uri, logger.run_id).status == "FINISHED"


class Bang(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (RuntimeError("bang"), RuntimeError, "FAILED"),
        (KeyboardInterrupt(), SystemExit, "KILLED"),
        (Paused(75), Paused, "KILLED"),
    ],
)
def test_a_run_that_ends_by_an_exception_says_so(
    tmp_path: Path, error: BaseException, raised: type[BaseException], status: str
) -> None:
    uri = fresh_store(tmp_path)
    logger = logger_at(tmp_path, uri)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised):
            trainer_at(tmp_path, logger, Bang(error), KeepRecord()).fit(Toy(), data(), data())
    finally:
        signal.signal(signal.SIGINT, handler)
    record = read_run(uri, logger.run_id)
    assert (record.status, record.metrics.keys()) == (status, {"train/loss"})
    assert record.tags.get(PAUSED_AT) == ("3" if raised is Paused else None)
    if raised is Paused:
        again = logger_at(tmp_path, uri)
        again.set_tags({})
        assert read_run(uri, again.run_id).tags[PAUSED_AT] == "", "it goes on"
