"""A store without the seconds that its schema takes, and a client that counts its calls."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtp_lightning.tracking.read import RunRecord, read_run
from mtp_lightning.tracking.store import connect_existing, default_tracking_uri, ensure_store, sqlite_file


@cache
def template() -> Path:
    """The file of an empty store, made once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    uri = default_tracking_uri(folder)
    ensure_store(uri)
    file = sqlite_file(uri)
    assert file is not None
    return file


def fresh_store(folder: Path) -> str:
    """The URI of an empty store in `folder`."""
    uri = default_tracking_uri(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = sqlite_file(uri)
    assert file is not None
    shutil.copy(template(), file)
    return uri


def runs_of(uri: str, experiment: str) -> list[RunRecord]:
    """All runs of an experiment; none where there is no such experiment."""
    client = connect_existing(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else [read_run(uri, r.info.run_id) for r in client.search_runs([found.experiment_id])]


class CountingClient:
    """Remembers what each `log_batch` was given; fails where it should."""

    def __init__(self, failures: list[Exception] | None = None) -> None:
        self.batches: list[list[Any]] = []
        self.failures = list(failures or [])

    def log_batch(self, run_id: str, **content: Any) -> None:
        if self.failures:
            raise self.failures.pop(0)
        (batch,) = content.values()
        self.batches.append(list(batch))

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(status="RUNNING"))

    @property
    def points(self) -> list[tuple[str, int]]:
        return [(metric.key, metric.step) for batch in self.batches for metric in batch]


def test_a_fresh_store_is_whole(tmp_path: Path) -> None:
    from mtp_lightning.tracking.store import connect

    assert [e.name for e in connect(fresh_store(tmp_path)).search_experiments()] == ["Default"]
