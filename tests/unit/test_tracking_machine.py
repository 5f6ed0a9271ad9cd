"""What is recorded of the machine that a run is on."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from test_tracking_fakes import fresh_store

from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.read import history
from mtp_lightning.tracking.writer import RunWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def test_the_machine_is_recorded_and_a_lock_does_not_end_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = fresh_store(tmp_path)
    log_batch, locked = MlflowClient.log_batch, [MlflowException("database is locked")]

    def once_locked(client: MlflowClient, *args: Any, **content: Any) -> Any:
        if locked and content.get("metrics"):
            raise locked.pop()
        return log_batch(client, *args, **content)

    queue, measured = RunWriter.log_batch, threading.Semaphore(0)

    def counted(writer: RunWriter, run_id: str, metrics: Any) -> None:
        queue(writer, run_id, metrics)
        measured.release()

    monkeypatch.setattr(RunWriter, "log_batch", counted)
    monkeypatch.setattr(MlflowClient, "log_batch", once_locked)
    for attempt in (1, 2):
        logger = MLflowRunLogger(
            tracking_uri=uri, directory=str(tmp_path / "run"), system_metrics=True, system_metrics_seconds=0.05
        )
        assert logger.run_id
        for _ in range(2):
            assert measured.acquire(timeout=60)
        logger.finalize("success")
        points = history(uri, logger.run_id, ["system/cpu_utilization_percentage"])["system/cpu_utilization_percentage"]
        steps = [step for step, _ in points]
        assert len(steps) >= 2 * attempt
        assert len(steps) == len(set(steps))
        assert locked == []
        assert "system/cpu_utilization_percentage" not in logger.last_values
