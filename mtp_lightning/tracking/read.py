"""Recorded runs, read back for reports."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mtp_lightning.secrets import mask
from mtp_lightning.tracking.patience import with_patience
from mtp_lightning.tracking.store import NotRecordedError, connect_existing

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")


@dataclass(frozen=True)
class RunRecord:
    """One run as MLflow has it; `metrics` are last values."""

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


def read_run(uri: str, run_id: str) -> RunRecord:
    """One run, whatever its state.

    Raises:
        NotRecordedError: no such store, or no such run in it.
    """
    client = connect_existing(uri)
    return _record(_of_run(lambda: client.get_run(run_id), run_id, uri))


def history(uri: str, run_id: str, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Every (step, value) of the metrics named, in order of steps; keys that were never logged are left out.

    Raises:
        NotRecordedError: no such store; where it looks for the run itself, no such run in it.
    """
    client = connect_existing(uri)

    def points(key: str) -> list[tuple[int, float]]:
        found = _of_run(lambda: client.get_metric_history(run_id, key), run_id, uri)
        return [(m.step, infinity_restored(m.value)) for m in found]

    found = {key: points(key) for key in keys}
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items() if points}


def _of_run(ask: Callable[[], T], run_id: str, uri: str) -> T:
    from mlflow.exceptions import MlflowException

    try:
        return with_patience(ask, uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotRecordedError(f"run '{run_id}' is not in '{mask(uri)}'") from error


def _record(run: "Run") -> RunRecord:
    info, data = run.info, run.data
    metrics = {key: infinity_restored(value) for key, value in data.metrics.items()}
    return RunRecord(info.run_id, info.run_name or "", info.status, dict(data.params), dict(data.tags), metrics)


def infinity_restored(value: float) -> float:
    """MLflow's databases keep NaN as NaN, but an infinity as the largest float: the infinity comes back here."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
