"""`mtp` in a process of its own: forked from a server that has loaded the libraries, or started as a shell starts it.

Loading torch, Lightning and MLflow takes seconds of every command; where a test is not about that, a fork will do. The
server loads libraries only: this project's modules are each process's own, as are its folder, environment and path.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

Mtp = Callable[..., "subprocess.CompletedProcess[str]"]
"""`mtp("fit", ..., check=True)`: a command, run in the test's working folder."""
TESTS = Path(__file__).parents[1]
LIBRARIES = ["lightning.pytorch.cli", "mlflow.store.tracking.sqlalchemy_store", "matplotlib"]


def environment() -> dict[str, str]:
    """In which this checkout's code is found; modules in the working folder are found by the command itself."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}


def run_started(args: Sequence[str], folder: Path, timeout: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mtp_lightning", *args],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def run_forked(args: Sequence[str], folder: Path, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Not for commands that start themselves again, as those on several processes do."""
    path = [entry for entry in sys.path if Path(entry).parent != TESTS]
    with TemporaryDirectory() as outputs:
        files = [Path(outputs) / name for name in ("out", "err")]
        process = server().Process(target=_command, args=(args, folder, environment(), path, files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(args), timeout, *(file.read_bytes() for file in files))
        return subprocess.CompletedProcess(list(args), process.exitcode, *(file.read_text() for file in files))


def server() -> ForkServerContext:
    """The one fork server of this process, which starts with the first process that is asked of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _command(
    args: Sequence[str], folder: Path, environment: Mapping[str, str], path: Sequence[str], files: Sequence[Path]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.path[:] = path
    from mtp_lightning.cli import main

    sys.argv = ["mtp", *args]
    try:
        sys.exit(main())
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them
