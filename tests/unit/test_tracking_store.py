"""The store: made once and whole, refused with a reason, waited for."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from test_tracking_fakes import fresh_store

import mtp_lightning.tracking.patience as patience_module
from mtp_lightning.errors import InputError
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.patience import StoreAwayError, with_patience
from mtp_lightning.tracking.store import (
    check_writable,
    connect,
    default_tracking_uri,
    ensure_experiment,
    sqlite_file,
)


def make_store(uri: str) -> BaseProcess:
    """`ensure_experiment` in a process of its own, begun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MLflowRunLogger.__module__])
    maker = context.Process(target=_ensure, args=(uri,))
    maker.start()
    return maker


def _ensure(uri: str) -> None:
    sys.exit(0 if ensure_experiment(uri, "mtp/x") == "1" else 3)


def test_the_default_store_is_a_database_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert sqlite_file(default_tracking_uri()) == tmp_path / "runs" / "mlflow.db"
    assert not (tmp_path / "runs").exists()


def test_the_environment_names_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_tracking_uri(tmp_path) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI is 'mlruns': .* leave it out for sqlite:///"):
        connect(default_tracking_uri(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_folders_of_files_are_refused_and_what_to_use_is_said(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking_uri is .*sqlite:////path"):
        connect(uri)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"tracking_uri: '{tmp_path}/file/runs' cannot be written to: Not a direct"):
        connect(default_tracking_uri(tmp_path / "file" / "runs"))


def test_a_store_that_can_only_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = fresh_store(tmp_path)
    check_writable(uri)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root, permissions bind nobody
    with pytest.raises(InputError, match=r"tracking_uri: '.*mlflow.db' cannot be written to"):
        check_writable(uri)


def test_something_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("x" * 5000)
    with pytest.raises(InputError, match="is not a database of MLflow"):
        connect(default_tracking_uri(tmp_path))


def test_two_at_once_make_one_store_also_after_a_maker_that_was_killed(tmp_path: Path) -> None:
    """In a folder with a space in its name."""
    uri = default_tracking_uri(tmp_path / "my runs")
    scratch = tmp_path / "my runs" / ".mlflow.db.new"
    killed = make_store(uri)
    while not scratch.exists() or scratch.stat().st_size < 50_000:
        assert killed.exitcode is None
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert not (tmp_path / "my runs" / "mlflow.db").exists()

    both = [make_store(uri) for _ in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    assert not scratch.exists()
    experiment = connect(uri).get_experiment_by_name("mtp/x")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "my runs" / "mlflow-artifacts" / "mtp" / "x").as_uri()


def test_a_deleted_experiment_is_not_written_to(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    number = ensure_experiment(uri, "mtp/x")
    assert ensure_experiment(uri, "mtp/x") == number
    connect(uri).delete_experiment(number)
    with pytest.raises(InputError, match=r"experiment 'mtp/x' was deleted .*restore -x"):
        ensure_experiment(uri, "mtp/x")


def test_a_locked_database_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience_module.time, "sleep", waits.append)
    answers: list[Exception | str] = [MlflowException("(sqlite3.OperationalError) database is locked")] * 3

    def call() -> str:
        answer = answers.pop() if answers else "done"
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_patience(call, "sqlite:////x/mlflow.db") == "done"
    assert waits == [0.2, 0.4, 0.8]

    answers += [MlflowException("database is locked")] * 99
    with pytest.raises(StoreAwayError, match="locked"):  # as a server that is away: what waits is kept
        with_patience(call, "sqlite:////x/mlflow.db")
    assert len(answers) == 91


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("database or disk is full", errno.ENOSPC),
        ("disk I/O error", errno.EIO),
        ("attempt to write a readonly database", errno.EROFS),
        ("unable to open database file", errno.EACCES),
    ],
)
def test_a_disk_that_is_full_is_an_error_that_names_the_file(said: str, number: int) -> None:
    def call() -> None:
        raise MlflowException(f"(sqlite3.OperationalError) {said}")

    with pytest.raises(OSError, match=r"mlflow\.db") as caught:
        with_patience(call, "sqlite:////x/mlflow.db")
    assert caught.value.errno == number


def test_importing_the_room_loads_no_mlflow_and_reports_to_nobody() -> None:
    code = (
        "import os, sys, mtp_lightning.tracking, mtp_lightning.tracking.store, mtp_lightning.tracking.read\n"
        "print({'mlflow', 'torch', 'lightning'} & set(sys.modules), os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout == "set() true\n"
