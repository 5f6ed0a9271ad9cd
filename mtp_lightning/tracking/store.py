"""The store of a project's runs: a SQLite file below `runs/`, or a server; its schema is made once, under a lock."""

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_lightning.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS = Path("runs")
"""Default folder of everything that runs write, below the working directory."""
_SQLITE = "sqlite:///"


def default_tracking_uri(runs: Path = RUNS) -> str:
    """MLflow on SQLite in the runs folder. (MLflow's file store, Lightning's default, is refused by MLflow 3.)"""
    return f"{_SQLITE}{(runs.absolute() / 'mlflow.db').as_posix()}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite store, None for any other."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def connect(uri: str) -> "MlflowClient":
    """A client of the store, which is made if it is not there. Several processes may come at once.

    Raises:
        InputError: a store that MLflow does not take, or a folder that cannot be written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(
            f"tracking_uri is '{uri}': MLflow keeps runs in a database or on a server; "
            f"give sqlite:////path/mlflow.db or http://HOST:PORT, or leave it out for {default_tracking_uri()}"
        )
    ensure_store(uri)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def ensure_store(uri: str) -> None:
    """Make a SQLite store's schema, which takes seconds and must not run twice at once; others are left alone."""
    file = sqlite_file(uri)
    if file is None or _has_schema(file):
        return
    from filelock import FileLock

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock")
        lock.acquire()
    except OSError as error:
        raise InputError(f"tracking_uri: '{file.parent}' cannot be written to: {error.strerror}") from error
    try:
        if not _has_schema(file):
            from mlflow import MlflowClient

            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    finally:
        lock.release()


def _has_schema(file: Path) -> bool:
    """Whether every migration has run: the last thing a new database gets is its default experiment."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    try:
        with sqlite3.connect(f"file:{file.as_posix()}?mode=ro", uri=True) as connection:
            return bool(connection.execute("select count(*) from experiments").fetchone()[0])
    except sqlite3.Error:
        return False


def ensure_experiment(uri: str, name: str) -> str:
    """The id of the experiment, made if need be; its artifacts lie beside a SQLite store's file."""
    client = connect(uri)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    file = sqlite_file(uri)
    artifacts = (file.parent / "mlflow-artifacts").as_uri() if file else None
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=f"{artifacts}/{name}" if artifacts else None))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another process was quicker
        if found is None:
            raise
        return str(found.experiment_id)
