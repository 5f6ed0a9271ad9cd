"""The MLflow UI on a store, bound to 127.0.0.1, with the link that opens the right page."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from typing import IO

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.tracking.store import artifact_root, connect_existing

HOST = "127.0.0.1"


def experiment_url(port: int, experiment_id: str) -> str:
    """The charts of an experiment. Without `workflowType` MLflow 3 opens on its pages for language-model traces."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"http://{HOST}:{port}/{page}"


def find_experiment(uri: str, name: str | None) -> str:
    """The id of the experiment called `name`, or of the one made last.

    Raises:
        InputError: no such store or experiment.
    """
    if not uri.startswith(("sqlite:", "postgresql", "mysql", "mssql")):
        raise InputError(f"uri: '{uri}' is not a database: a server has its own pages, open them in a browser")
    experiments = connect_existing(uri).search_experiments(order_by=["creation_time DESC"])
    if name is None:
        return str(experiments[0].experiment_id)
    for experiment in experiments:
        if experiment.name == name:
            return str(experiment.experiment_id)
    raise InputError(f"experiment: '{name}' is not in '{uri}'{did_you_mean(name, [e.name for e in experiments])}")


def serve(uri: str, experiment_id: str, port: int, open_browser: bool) -> int:
    """Run the server until Ctrl-C; prints the link once it answers. Returns the exit status.

    Raises:
        InputError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} of {HOST} is taken ({error.strerror}); give another --port") from error
    with tempfile.TemporaryFile() as problems:
        return _serve(uri, experiment_id, port, open_browser, problems)


def _serve(uri: str, experiment_id: str, port: int, open_browser: bool, problems: IO[bytes]) -> int:
    server = subprocess.Popen(
        server_command(uri, port),
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # else two more processes of 250 MB
        stdout=subprocess.DEVNULL,
        stderr=problems,
        start_new_session=True,
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        print(f"starting MLflow on {uri} (some seconds) ...", file=sys.stderr, flush=True)
        _wait_until_healthy(server, port, problems)
        link = experiment_url(port, experiment_id)
        print(link, flush=True)
        print("Ctrl-C stops it.", file=sys.stderr, flush=True)
        if open_browser:
            webbrowser.open(link)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(server)


def server_command(uri: str, port: int) -> list[str]:
    """MLflow's server on `HOST` alone. It answers only to requests for this very host: a page of another site whose
    name is pointed at 127.0.0.1 reads nothing."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", uri]
    command += ["--host", HOST, "--port", str(port), "--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    root = artifact_root(uri)
    return [*command, "--default-artifact-root", root] if root else command


def _wait_until_healthy(
    server: "subprocess.Popen[bytes]", port: int, problems: IO[bytes], seconds: float = 120.0
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            problems.seek(0)
            said = problems.read().decode(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("\n".join([f"the MLflow server ended with status {server.returncode}:", *said]))
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.3)
    raise RuntimeError(f"the MLflow server did not answer within {seconds:.0f} s")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and the workers it started: they are one process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            return
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def runs_of(folder: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"runs: '{folder}' is not a folder: run something first, or give the folder of earlier runs")
    return path
