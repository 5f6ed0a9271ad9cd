"""`mtp ui`: the MLflow UI on a store, bound to 127.0.0.1, with the links that open the right page."""

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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.secrets import mask
from mtp_lightning.tracking.patience import with_patience
from mtp_lightning.tracking.store import artifact_root, connect_existing, default_tracking_uri, whole_uri
from mtp_lightning.tracking.views import has_view, view_key

if TYPE_CHECKING:
    from mlflow.entities import Experiment

HOST = "127.0.0.1"
STORE = "MLFLOW_BACKEND_STORE_URI"


def ui_command(
    experiment: str | None = None, runs: str = "runs", uri: str | None = None, port: int = 5000, open: bool = False
) -> int:
    """Start the MLflow UI on this project's runs, on 127.0.0.1, and print the links to an experiment's charts: the
    comparison that its grid drew, where there is one, and plain ones. Of a store that is a server already, only the
    links.

    Args:
        experiment: Experiment to link to, such as mtp/head-count; by default the one made last.
        runs: Folder of the runs, whose mlflow.db is shown where MLFLOW_TRACKING_URI names no other store.
        uri: Another MLflow store instead.
        port: Port on 127.0.0.1.
        open: Open the first link in a browser.
    """
    store = whole_uri(uri or default_tracking_uri(Path(runs)))
    found = find_experiment(store, experiment)
    if is_server(store):
        show(links(store, found), open)
        return 0
    return serve(store, found, port, open)


def links(server: str, experiment: "Experiment") -> list[str]:
    """Of an experiment's pages on a server: its saved view, where it has one, then its plain charts. Without
    `workflowType` MLflow 3 opens on its pages for language-model traces."""
    page = f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    plain = f"{server.rstrip('/')}/{page}"
    key = view_key(experiment.name)
    return [f"{plain}&viewStateShareKey={key}", plain] if has_view(experiment.tags, key) else [plain]


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def find_experiment(uri: str, name: str | None) -> "Experiment":
    """The experiment called `name`, or the one made last.

    Raises:
        InputError: no such store or experiment.
        StoreAwayError: a server that does not answer.
    """
    if not is_server(uri) and not uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        raise InputError(f"uri: '{mask(uri)}' is neither a database nor a server that MLflow's pages could come from")
    client = connect_existing(uri)
    experiments = with_patience(lambda: client.search_experiments(order_by=["creation_time DESC"]), uri, away=1.0)
    if name is None:
        return experiments[0]
    for experiment in experiments:
        if experiment.name == name:
            return experiment
    raise InputError(f"experiment: '{name}' is not in '{mask(uri)}'{did_you_mean(name, [e.name for e in experiments])}")


def show(urls: Sequence[str], open_browser: bool) -> None:
    print(mask("\n".join(urls)), flush=True)
    if open_browser:
        webbrowser.open(urls[0])


def serve(uri: str, experiment: "Experiment", port: int, open_browser: bool) -> int:
    """Run a server until Ctrl-C; prints the links once it answers. Returns the exit status.

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
        return _serve(uri, experiment, port, open_browser, problems)


def _serve(uri: str, experiment: "Experiment", port: int, open_browser: bool, problems: IO[bytes]) -> int:
    server = subprocess.Popen(
        server_command(uri, port),
        env=os.environ
        | {STORE: uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # else two more processes of 250 MB
        stdout=subprocess.DEVNULL,
        stderr=problems,
        start_new_session=True,
    )
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        print(f"starting MLflow on {mask(uri)} (some seconds) ...", file=sys.stderr, flush=True)
        wait_until_healthy(server, port, problems)
        show(links(f"http://{HOST}:{port}", experiment), open_browser)
        print("Ctrl-C stops it.", file=sys.stderr, flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop(server)


def server_command(uri: str, port: int) -> list[str]:
    """MLflow's server on `HOST` alone, of the store that the environment names (`STORE`): everybody on the machine can
    see a command, and an address may hold a password. It answers only to requests for this very host: a page of another
    site whose name is pointed at 127.0.0.1 reads nothing."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", HOST, "--port", str(port), "--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    root = artifact_root(uri)
    return [*command, "--default-artifact-root", root] if root else command


def wait_until_healthy(
    server: "subprocess.Popen[bytes]", port: int, problems: IO[bytes], seconds: float = 120.0
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            problems.seek(0)
            said = problems.read().decode(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError(mask("\n".join([f"the MLflow server ended with status {server.returncode}:", *said])))
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
