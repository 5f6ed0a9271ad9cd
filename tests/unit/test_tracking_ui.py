"""The MLflow UI: one server, for this machine alone, gone when it is asked to go."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path

import psutil
import pytest
from test_tracking_fakes import fresh_store

from mtp_lightning.errors import InputError
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.store import connect, default_tracking_uri
from mtp_lightning.tracking.ui import find_experiment, serve, server_command, ui_command

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no runs are recorded in '.*nowhere/mlflow\.db'"):
        ui_command(runs=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no runs are recorded in '.*mlflow\.db'"):
        ui_command(runs=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_server_has_its_pages_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its links are printed; the store is a stand-in."""
    store = connect(fresh_store(tmp_path))
    store.create_experiment("mtp/head-count", tags={"mlflow.sharedViewState.mtp-head-count": "{}"})
    monkeypatch.setattr("mtp_lightning.tracking.ui.connect_existing", lambda uri: store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host/")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with redirect_stdout(StringIO()) as out:
        assert ui_command("mtp/head-count", runs=str(tmp_path / "nowhere"), open=True) == 0
    plain = "https://host/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert out.getvalue().splitlines() == [f"{plain}&viewStateShareKey=mtp-head-count", plain]
    assert opened == [f"{plain}&viewStateShareKey=mtp-head-count"]


def test_what_has_no_pages_is_refused() -> None:
    with pytest.raises(InputError, match="'databricks://x' is neither a database nor a server"):
        find_experiment("databricks://x", None)


def test_the_server_is_bound_to_this_machine(tmp_path: Path) -> None:
    command = server_command(fresh_store(tmp_path), 5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--allowed-hosts") + 1] == "127.0.0.1:5123,localhost:5123"


def test_a_server_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = find_experiment(fresh_store(tmp_path), None)
    ends = [sys.executable, "-S", "-c", "import sys; print('no such table', file=sys.stderr); sys.exit(3)"]
    monkeypatch.setattr("mtp_lightning.tracking.ui.server_command", lambda uri, port: ends)
    with pytest.raises(RuntimeError, match="the MLflow server ended with status 3:\nno such table"):
        serve(default_tracking_uri(tmp_path), experiment, free_port(), open_browser=False)


def get(port: int, path: str, host: str | None = None) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_served_looked_at_and_stopped(tmp_path: Path, sign: signal.Signals) -> None:
    uri = fresh_store(tmp_path)
    logger = MLflowRunLogger(uri, "mtp/head-count", directory=str(tmp_path / "run"), system_metrics=False)
    logger.log_metrics({"val/loss": 1.5}, 0)
    logger.log_text_artifact("a: 1", "config.yaml")
    logger.finalize("success")
    port = free_port()
    command = [sys.executable, "-m", "mtp_lightning", "ui", "--runs", str(tmp_path), "--experiment", "mtp/head-count"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as ui:
        try:
            look_at(ui, port, logger.run_id)
            children = psutil.Process(ui.pid).children(recursive=True)
            assert children
            ui.send_signal(sign)
            assert ui.wait(timeout=30) == 0
        finally:
            ui.kill()
    time.sleep(0.2)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def look_at(ui: "subprocess.Popen[str]", port: int, run_id: str) -> None:
    assert ui.stdout is not None
    link = ui.stdout.readline()
    assert link == (
        f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART\n"
    )
    status, page = get(port, "/")
    assert (status, b"<title>MLflow</title>" in page) == (200, True)
    status, found = get(port, f"/api/2.0/mlflow/runs/get?run_id={run_id}")
    assert json.loads(found)["run"]["data"]["metrics"][0]["value"] == 1.5
    assert get(port, f"/get-artifact?path=config.yaml&run_uuid={run_id}") == (200, b"a: 1")
    assert get(port, "/", host="rebound.example.com")[0] == 403
    addresses = {c.laddr.ip for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}
