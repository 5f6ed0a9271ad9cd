"""Servers that tests start for themselves and take away again: MLflow, and PostgreSQL as Debian packs it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtp_lightning.tracking.ui import HOST, STORE, server_command, wait_until_healthy

_POSTGRES = (*sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True), os.environ["PATH"])


class MlflowServer:
    """Of a database, on a port of its own that stays the same from one start to the next."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, free_port()
        self.uri = f"http://{HOST}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab+") as log:
            self._process = subprocess.Popen(
                server_command(self.store, self.port),
                cwd=self.folder,
                env=os.environ | {STORE: self.store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            wait_until_healthy(self._process, self.port, log)

    def kill(self) -> None:
        """At once, with all its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> "MlflowServer":
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def why_no_postgres() -> str | None:
    """Why there can be no PostgreSQL here."""
    if shutil.which("initdb", path=os.pathsep.join(_POSTGRES)) is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and subprocess.run(["id", "postgres"], capture_output=True).returncode != 0:
        return "PostgreSQL refuses to run as root, and there is no user 'postgres'"
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database, in a folder that the user `postgres` can reach."""
    folder = Path(tempfile.mkdtemp(prefix="mtp-postgres-"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()

    def run(program: str, *arguments: str) -> None:
        found = shutil.which(program, path=os.pathsep.join(_POSTGRES))
        assert found is not None
        command = [*as_user, found, "-D", str(data), *arguments]
        with (folder / "log").open("ab") as log:  # not a pipe: the server would hold it open
            subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True, timeout=120)

    options = f"-p {port} -c listen_addresses={HOST} -c unix_socket_directories={folder} -c fsync=off"
    try:
        run("initdb", "-U", "mtp", "--auth=trust", "--no-sync")
        run("pg_ctl", "-w", "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mtp@{HOST}:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
