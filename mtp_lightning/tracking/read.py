"""Recorded runs, read back for reports."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtp_lightning.tracking.store import connect


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
    run = connect(uri).get_run(run_id)
    info, data = run.info, run.data
    return RunRecord(run_id, info.run_name or "", info.status, dict(data.params), dict(data.tags), dict(data.metrics))


def history(uri: str, run_id: str, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Every (step, value) of the metrics named, in order of steps; keys that were never logged are left out."""
    client = connect(uri)
    found = {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys}
    return {key: sorted(points) for key, points in found.items() if points}
