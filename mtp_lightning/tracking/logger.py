"""Lightning's logger for MLflow: metrics in batches, and a restarted run goes on as the same MLflow run."""

import logging
import re
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_text
from mtp_lightning.tracking.provenance import provenance
from mtp_lightning.tracking.store import connect, default_tracking_uri, ensure_experiment

RUN_FILE = "mlflow_run_id"
"""In a run's own folder: the id of its MLflow run."""
BATCH = 1000
"""Metrics MLflow takes in one call."""
_METRIC_NAME = re.compile(r"[\w\-. :/]+")


class MLflowRunLogger(Logger):
    """One MLflow run for one run of training, however often it is interrupted.

    Metrics wait in memory (a call on SQLite costs 25 ms, whether it writes one or a thousand) and are written every
    `flush_every_seconds`, before every checkpoint (`KeepRecord`) and at the end. When a run is continued from its
    `directory`, points at or before the last recorded step of their metric are left out: no step stands twice.

    Args:
        tracking_uri: an MLflow store; by default `runs/mlflow.db` in the working directory.
        experiment: MLflow experiment, made if it is not there.
        run_name: how the run is shown.
        directory: the run's own folder, which remembers the MLflow run. Without one, every start is a new run.
        tags: more tags, beside the provenance of the code and the machine.
        system_metrics: record CPU, memory, disk and GPU use every `system_metrics_seconds`.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "mtp/fit",
        run_name: str | None = None,
        directory: str | None = None,
        tags: dict[str, str] | None = None,
        system_metrics: bool = True,
        system_metrics_seconds: float = 10.0,
        flush_every_seconds: float = 5.0,
    ) -> None:
        super().__init__()
        self.tracking_uri = tracking_uri or default_tracking_uri()
        self.experiment_name = experiment
        self.run_name = run_name
        self.directory = Path(directory) if directory else None
        self.tags = dict(tags or {})
        self.system_metrics = system_metrics
        self.system_metrics_seconds = system_metrics_seconds
        self.flush_every_seconds = flush_every_seconds
        self.interrupted = False
        """Set by whoever knows that the run is being stopped, not failing."""
        self._client: Any = None
        self._run_id: str | None = None
        self._waiting: list[Any] = []
        self._flushed_at = time.monotonic()
        self._recorded: dict[str, int] = {}
        self._monitor: Any = None

    @property
    @override
    def name(self) -> str:
        return self.experiment_name

    @property
    @override
    def version(self) -> str | None:
        return self._run_id

    @property
    def client(self) -> Any:
        """The `MlflowClient`; the first use starts or continues the run.

        Not called `experiment`: Lightning touches that before the data is looked at, and a run refused for its data
        should leave no trace.
        """
        if self._client is None:
            experiment_id = ensure_experiment(self.tracking_uri, self.experiment_name)
            self._client = connect(self.tracking_uri)
            self._run_id = self._continue_run() or self._start_run(experiment_id)
            if self.system_metrics:
                self._monitor = _start_monitor(self._run_id, self.tracking_uri, self.system_metrics_seconds)
        return self._client

    @property
    def run_id(self) -> str:
        _ = self.client
        assert self._run_id is not None
        return self._run_id

    def _start_run(self, experiment_id: str) -> str:
        run = self._client.create_run(experiment_id, tags=provenance() | self.tags, run_name=self.run_name)
        run_id = str(run.info.run_id)
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self.directory / RUN_FILE, run_id + "\n")
        return run_id

    def _continue_run(self) -> str | None:
        """The run that `directory` remembers, set running again; None where there is none in this store."""
        file = self.directory / RUN_FILE if self.directory else None
        if file is None or not file.is_file():
            return None
        from mlflow.exceptions import MlflowException

        run_id = file.read_text().strip()
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            raise InputError(
                f"trainer.logger.init_args.tracking_uri: '{self.tracking_uri}' does not hold the run of "
                f"'{self.directory}' ({run_id}): give the store it was begun in, or a new folder"
            ) from error
        self._client.update_run(run_id, status="RUNNING")
        attempt = int(run.data.tags.get("mtp.attempt", "1")) + 1
        for key, value in (provenance() | self.tags | {"mtp.attempt": str(attempt)}).items():
            self._client.set_tag(run_id, key, value)
        keys = [key for key in run.data.metrics if not key.startswith("system/")]
        for key in keys:
            self._recorded[key] = max(point.step for point in self._client.get_metric_history(run_id, key))
        return run_id

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue values of one step.

        Raises:
            ValueError: a name MLflow does not take (`pass@1`); it is never changed silently.
        """
        from mlflow.entities import Metric

        _ = self.client
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"metric '{name}': MLflow takes letters, digits and _ - . / : and space in a name")
            if name == "epoch" or (step or 0) <= self._recorded.get(name, -1):
                continue  # training is one epoch of as many batches as steps; a recorded step is not repeated
            self._waiting.append(Metric(name, float(value), now, step or 0))
        if len(self._waiting) >= BATCH // 2 or time.monotonic() - self._flushed_at > self.flush_every_seconds:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write what waits."""
        self._flushed_at = time.monotonic()
        while self._waiting:
            _patiently(lambda: self._client.log_batch(self._run_id, metrics=self._waiting[:BATCH]))
            del self._waiting[:BATCH]

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record a configuration, flattened with dots.

        Raises:
            InputError: the run is being continued under another configuration: MLflow's parameters are for good.
        """
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        given = vars(params) if isinstance(params, Namespace) else params
        flat = {key: str(value)[:MAX_PARAM_VAL_LENGTH] for key, value in flatten(given)}
        known = self.client.get_run(self.run_id).data.params
        for key, value in flat.items():
            if known.get(key, value) != value:
                raise InputError(
                    f"{key} is {value}, but the run in '{self.directory}' was begun with {known[key]}: "
                    "continue it as it was, or give a new folder"
                )
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), 100):
            batch = new[start : start + 100]
            _patiently(lambda batch=batch: self._client.log_batch(self._run_id, params=batch))

    @rank_zero_only
    def log_text_artifact(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    @rank_zero_only
    def log_file_artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest and close the run: FINISHED, FAILED, or KILLED where it was interrupted."""
        if self._client is None:
            return
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self.flush()
        ended = {"success": "FINISHED", "finished": "FINISHED"}.get(status, "KILLED" if self.interrupted else "FAILED")
        _patiently(lambda: self._client.set_terminated(self._run_id, ended))


class KeepRecord(pl.Callback):
    """Keeps a logger's record whole: the command line adds it to every run.

    A checkpoint is written only behind the metrics of its steps: a run killed right after it goes on from there, and
    would never come back to steps that were still waiting in memory.
    """

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in _ours(trainer):
            logger.flush()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for logger in _ours(trainer):
            logger.interrupted = isinstance(exception, (KeyboardInterrupt, SystemExit))


def _ours(trainer: pl.Trainer) -> list[MLflowRunLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, MLflowRunLogger)]


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; lists are leaves."""
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _start_monitor(run_id: str, uri: str, seconds: float) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it announces every start and stop
    monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run_id, sampling_interval=seconds, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    return monitor


def _patiently(write: Any, tries: int = 8) -> None:
    """Run a write again while other processes hold the database, for about half a minute in all.

    Raises:
        MlflowException: whatever else went wrong, or still locked after the last try.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(tries):
        try:
            write()
        except MlflowException as error:
            if "database is locked" not in str(error) or attempt == tries - 1:
                raise
            time.sleep(0.2 * 2**attempt)
        else:
            return
