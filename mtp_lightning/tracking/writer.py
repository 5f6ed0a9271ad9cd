"""Writes one MLflow run: metrics in batches, each step of a metric once, with patience for a store that is busy."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from mtp_lightning.tracking.params import checked_name
from mtp_lightning.tracking.store import with_patience

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
"""What MLflow takes in one call."""
ENOUGH = 500
"""Points that are written without waiting for the clock."""


class RunWriter:
    """A call on SQLite costs some 20 ms whether it writes one point or a thousand, so points wait in memory.

    Args:
        client: an `mlflow.MlflowClient`.
        recorded: metric -> its last step in the store, for a run that is continued: points up to it are left out.
    """

    def __init__(
        self, client: Any, run_id: str, uri: str, flush_every_seconds: float, recorded: Mapping[str, int] | None = None
    ) -> None:
        self.client, self.run_id, self.uri = client, run_id, uri
        self.flush_every_seconds = flush_every_seconds
        self._waiting: list[Any] = []
        self._flushed_at = time.monotonic()
        self._recorded = dict(recorded or {})
        self._latest: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Queue the values of one step; those that are taken. The first value of a metric at a step is the one kept.

        Raises:
            ValueError: a name MLflow does not take.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        taken: dict[str, float] = {}
        for name, value in metrics.items():
            checked_name("metric", name)
            if step <= self._recorded.get(name, -1) or step == self._latest.get(name):
                continue
            self._latest[name] = step
            taken[name] = float(value)
            self._waiting.append(Metric(name, taken[name], now, step))
        if len(self._waiting) >= ENOUGH or time.monotonic() - self._flushed_at > self.flush_every_seconds:
            self.flush()
        return taken

    def flush(self) -> None:
        """Write what waits. A point leaves the queue only behind a write that succeeded."""
        while self._waiting:
            batch = self._waiting[:METRICS_PER_CALL]
            self.log_batch(self.run_id, metrics=batch)
            del self._waiting[: len(batch)]
        self._flushed_at = time.monotonic()

    def log_batch(self, run_id: str, **content: Any) -> None:
        """`MlflowClient.log_batch`, with patience."""
        with_patience(lambda: self.client.log_batch(run_id, **content), self.uri)

    def log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for batch in _batches([Param(key, value) for key, value in params.items()], PARAMS_PER_CALL):
            self.log_batch(self.run_id, params=batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in tags.items()], PARAMS_PER_CALL):
            self.log_batch(self.run_id, tags=batch)

    def set_status(self, status: str) -> None:
        """RUNNING, or one of the ends: FINISHED, FAILED, KILLED."""
        if status == "RUNNING":
            with_patience(lambda: self.client.update_run(self.run_id, status=status), self.uri)
        else:
            with_patience(lambda: self.client.set_terminated(self.run_id, status), self.uri)

    def start_monitor(self, seconds: float) -> Any:
        """MLflow's thread that records the machine's use in this run; `finish()` ends it."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self.run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=self.uri
        )
        monitor.mlflow_logger.client = self  # its own client gives up for good at the first locked database
        monitor.start()
        return monitor


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
