"""The machine's use, recorded beside a run by MLflow's own monitors."""

import logging
from typing import Any

SYSTEM = "system/"
"""Prefix of these metrics, which count their own steps."""


def start_monitor(sink: Any, run_id: str, uri: str, seconds: float) -> Any:
    """A thread that hands its points to `sink.log_batch` every `seconds`; its `finish()` ends it."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):  # type: ignore[misc, unused-ignore]
        def monitor(self) -> None:
            """MLflow's own asks the store at every sample whether the run still runs, and ends when it is away."""
            while not self._shutdown_event.wait(self.sampling_interval):
                self.collect_metrics()  # type: ignore[no-untyped-call, unused-ignore]
                self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call, unused-ignore]

    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
    make: Any = Monitor  # untyped
    monitor = make(run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri)
    monitor.mlflow_logger.client = sink
    monitor.start()
    return monitor
