"""Lightning's logger for MLflow: metrics in batches, and a restarted run goes on as the same MLflow run."""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from mtp_lightning.errors import InputError
from mtp_lightning.files import write_text
from mtp_lightning.machine import this_process
from mtp_lightning.ranges import Range, Seconds, check_ranges
from mtp_lightning.secrets import mask
from mtp_lightning.tracking.begin import (
    PROCESS,
    RUN_FILE,
    begun_run,
    new_run,
    not_held,
    read_run_id,
    refuse_living,
    settle,
)
from mtp_lightning.tracking.journal import JOURNAL, check_journal
from mtp_lightning.tracking.machine import SYSTEM, start_monitor
from mtp_lightning.tracking.params import LENGTH, as_parameters, refuse_changes
from mtp_lightning.tracking.patience import PATIENCE
from mtp_lightning.tracking.provenance import provenance
from mtp_lightning.tracking.read import infinity_restored
from mtp_lightning.tracking.store import (
    check_experiment,
    check_store,
    check_uri,
    check_writable,
    connect,
    default_tracking_uri,
    ensure_experiment,
    has_store,
    whole_uri,
)
from mtp_lightning.tracking.writer import BRIEFLY, RunWriter

PAUSED_AT = "mtp.paused_at_step"
"""Tag: the step of the gate at which the run ended, and waits or was stopped; empty once it goes on."""


class MLflowRunLogger(Logger):
    """One MLflow run for one run of training, however often it is interrupted.

    Nothing is written before the first metric, parameter or tag; `check` finds out before that what would be refused.
    Metrics wait in memory and are written every `flush_every_seconds`, before every checkpoint (`KeepRecord`) and at
    the end. When a run is continued from its `directory`, points at or before the last recorded step of their metric
    are left out: no step stands twice. A server may be away while the run goes on: what it did not get is sent when it
    is back, by a later attempt too; only the start and the end wait for it, for a minute.

    Args:
        tracking_uri: an MLflow store; by default what MLFLOW_TRACKING_URI names, or else `runs/mlflow.db` in the
            working directory.
        experiment: MLflow experiment, made if it is not there.
        run_name: how the run is shown; by default the name of its folder.
        directory: the run's own folder, which remembers the MLflow run. Without one, every start is a new run.
        tags: more tags, beside the provenance of the code and the machine.
        system_metrics: record CPU, memory, disk and GPU use every `system_metrics_seconds`.
        system_metrics_seconds: how often.
        flush_every_seconds: how often metrics are written to the store.

    Raises:
        InputError: a store that MLflow does not take.
        StoreAwayError: at the start or the end, a server that does not answer.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "mtp/fit",
        run_name: str | None = None,
        directory: str | None = None,
        tags: dict[str, str] | None = None,
        system_metrics: bool = True,
        system_metrics_seconds: Seconds = 10.0,
        flush_every_seconds: Annotated[float, Range(least=0, most=10**9)] = 5.0,
    ) -> None:
        super().__init__()
        check_ranges("trainer.logger.init_args", MLflowRunLogger, locals())
        self.tracking_uri = whole_uri(tracking_uri or default_tracking_uri())
        check_uri(self.tracking_uri)
        check_experiment(experiment)
        self.experiment_name = experiment
        self.directory = Path(directory) if directory else None
        # MLflow's own names come from Python's random numbers, which every run of one seed has in common.
        self.run_name = run_name or (self.directory.absolute().name if self.directory else None)
        self.tags = dict(tags or {})
        self.system_metrics = system_metrics
        self.system_metrics_seconds = system_metrics_seconds
        self.flush_every_seconds = flush_every_seconds
        self.last_values: dict[str, float] = {}
        """Metric -> its newest value, those of earlier attempts included, the machine's excluded."""
        self.interrupted = False
        """Set by whoever knows that the run is being stopped, not failing."""
        self.paused_at: int | None = None
        """Likewise: the step of a gate at which it ends, until it goes on."""
        self._writer: RunWriter | None = None
        self._params: dict[str, str] = {}
        self._monitor: Any = None

    @property
    @override
    def name(self) -> str:
        return self.experiment_name

    @property
    @override
    def version(self) -> str | None:
        """The id of the MLflow run, once it has begun."""
        return self._writer.run_id if self._writer is not None else None

    @property
    @override
    def save_dir(self) -> str | None:
        return str(self.directory) if self.directory else None

    @property
    @override
    def root_dir(self) -> str | None:
        return self.save_dir

    @property
    def client(self) -> Any:
        """The `MlflowClient`; the first use starts or continues the run.

        Not called `experiment`: Lightning touches that before the data is looked at, and a run refused for its data
        should leave no trace.
        """
        return self.writer.client

    @property
    def run_id(self) -> str:
        return self.writer.run_id

    @rank_zero_only
    def check(self, params: Mapping[str, Any] | Namespace) -> None:
        """Find out, without writing anything, whether the run can begin with these parameters or go on under them.

        Raises:
            InputError: the store cannot be written to; or the run that `directory` remembers is not in it, or was begun
                with other parameters.
            StoreAwayError: a server that does not answer.
        """
        check_store(self.tracking_uri, self.experiment_name)
        if self.directory is not None:
            check_journal(self.directory / JOURNAL)
        if (run_id := self._remembered()) is None:
            return
        assert self.directory is not None
        if not has_store(self.tracking_uri):
            raise not_held(self.tracking_uri, self.directory, run_id)
        run = begun_run(connect(self.tracking_uri), run_id, self.tracking_uri, self.directory)
        refuse_living(run, self.directory)
        refuse_changes(as_parameters(params), run.data.params, self.directory)

    def _remembered(self) -> str | None:
        """The id of the MLflow run that `directory` remembers."""
        return None if self.directory is None else read_run_id(self.directory)

    @property
    def writer(self) -> RunWriter:
        if self._writer is None:
            experiment_id = ensure_experiment(self.tracking_uri, self.experiment_name)
            check_writable(self.tracking_uri)
            client = connect(self.tracking_uri)
            self._writer = self._continue_run(client) or self._start_run(client, experiment_id)
            if self.system_metrics:
                run = (self._writer.run_id, self.tracking_uri)
                self._monitor = start_monitor(self._writer, *run, self.system_metrics_seconds)
        return self._writer

    def _start_run(self, client: Any, experiment_id: str) -> RunWriter:
        if self.directory:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(self.directory, error) from error
        tags = {"mtp.attempt": "1", PROCESS: this_process()} | provenance() | self.tags
        run_id = new_run(client, experiment_id, self.run_name, tags, self.tracking_uri)
        if self.directory:
            try:
                write_text(self.directory / RUN_FILE, run_id + "\n")
            except OSError as error:
                client.delete_run(run_id)
                raise _unwritable(self.directory, error) from error
        return self._new_writer(client, run_id)

    def _new_writer(self, client: Any, run_id: str) -> RunWriter:
        journal = self.directory / JOURNAL if self.directory else None
        return RunWriter(client, run_id, self.tracking_uri, self.flush_every_seconds, journal=journal)

    def _continue_run(self, client: Any) -> RunWriter | None:
        """The run that `directory` remembers, set running again; None where it remembers none."""
        run_id = self._remembered()
        if run_id is None:
            return None
        assert self.directory is not None
        writer = self._new_writer(client, run_id)
        run = begun_run(client, writer.run_id, self.tracking_uri, self.directory)
        if writer.resend():
            run = begun_run(client, writer.run_id, self.tracking_uri, self.directory)
        self._params = dict(run.data.params)
        steps = {metric.key: metric.step for metric in run.data._metric_objs}  # `metrics` has values alone
        values = {k: infinity_restored(v) for k, v in run.data.metrics.items() if not k.startswith(SYSTEM)}
        self.last_values = values
        writer.recorded = {key: steps[key] for key in values}
        settle(client, run, self.tracking_uri, self.directory)
        writer.set_status("RUNNING")
        attempt = int(run.data.tags.get("mtp.attempt", "1")) + 1
        # this attempt may be none of Slurm's, and it goes on
        stale = {tag: "" for tag in ("mtp.slurm_job", PAUSED_AT) if tag in run.data.tags}
        writer.set_tags(stale | {"mtp.attempt": str(attempt), PROCESS: this_process()} | provenance() | self.tags)
        return writer

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue values of one step; a value that is not a number (NaN, infinity) is recorded as what it is.

        Raises:
            ValueError: a name MLflow does not take (`pass@1`); it is never changed silently.
        """
        # Lightning adds `epoch` to every step: training is one epoch of as many batches as steps.
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        taken = self.writer.log_metrics(kept, step or 0)  # the first use finds the values of earlier attempts
        self.last_values |= taken

    @rank_zero_only
    def keep(self) -> None:
        """Write what waits, beside the run where the store is away."""
        if self._writer is not None:
            self._writer.keep()

    @rank_zero_only
    def flush(self) -> None:
        """Write what waits, to the store.

        Raises:
            StoreAwayError: it does not answer.
        """
        if self._writer is not None:
            self._writer.flush()

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record a configuration, flattened with dots; repeating it is fine.

        Raises:
            InputError: the run is being continued under another configuration: MLflow's parameters are for good.
        """
        if self._writer is None:
            self.check(params)
        writer, flat = self.writer, as_parameters(params)
        refuse_changes(flat, self._params, self.directory)
        writer.log_params({key: value for key, value in flat.items() if key not in self._params})
        if flat.get(LENGTH) != self._params.get(LENGTH, flat.get(LENGTH)):
            writer.set_tags({"mtp.max_steps": flat[LENGTH]})
        self._params = flat | self._params

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.writer.set_tags(tags)

    @rank_zero_only
    def log_text_artifact(self, text: str, name: str) -> None:
        self.writer.log_text(text, name)

    @rank_zero_only
    def log_file_artifact(self, path: Path, folder: str | None = None) -> None:
        self.writer.log_file(path, folder)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest and close the run: FINISHED, FAILED, or KILLED where it was interrupted, with a tag at a gate.

        Raises:
            StoreAwayError: the store does not answer, where all else went well.
        """
        if self._writer is None:
            return
        if status in ("success", "finished"):
            self._close("FINISHED")
            return
        try:
            self._close("KILLED" if self.interrupted else "FAILED", BRIEFLY)
            if self.paused_at is not None:
                self.set_tags({PAUSED_AT: str(self.paused_at)})
        except OSError as error:  # away, or its disk is full: what ended the run matters more, and is on its way
            print(mask(f"warning: {error.strerror}: {self.tracking_uri}"), file=sys.stderr)

    def _close(self, status: str, away: float = PATIENCE) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self.writer.flush(away)
        self.writer.set_status(status, away)


def _unwritable(directory: Path, error: OSError) -> InputError:
    return InputError(f"trainer.logger.init_args.directory: '{directory}' cannot be written to: {error.strerror}")
