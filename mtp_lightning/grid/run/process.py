"""One attempt at one cell: what it runs, its process, its status file, and why it ended."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtp_lightning.config import cell as config_cell
from mtp_lightning.config.config_files import literal
from mtp_lightning.errors import PREEMPTED
from mtp_lightning.files import FileLock, write_text
from mtp_lightning.grid.run.attempts import log_attempt
from mtp_lightning.grid.run.logs import log_tail, write_header
from mtp_lightning.grid.run.state import CONFIG, LOG, CellFiles, Failure, State, Status
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import experiment_name
from mtp_lightning.machine import process_token
from mtp_lightning.secrets import mask, references
from mtp_lightning.yaml_lines import dump_yaml


def fit_config(cell: Cell) -> dict[str, Any]:
    """The configuration that `mtp fit` is given."""
    config = config_cell.cell_config(
        cell.config,
        cell.directory,
        run_name=cell.label,
        experiment=experiment_name(cell.grid),
        tags={
            "mtp.kind": "cell",
            "mtp.grid": cell.grid,
            "mtp.cell": cell.signature,
            "mtp.group": cell.group_label,
            "mtp.baseline": str(cell.baseline).lower(),
        },
        devices=cell.resources.tasks_per_node,
        nodes=cell.resources.nodes,
        pause_at=cell.pause_at,
    )
    return dict(literal(config))


def fit_command(cell: Cell) -> list[str]:
    return config_cell.fit_command(cell.directory / CONFIG)


@dataclass(frozen=True)
class Outcome:
    state: State
    reason: str | None = None
    """One line."""
    seconds: float = 0.0
    log: str = ""
    """The last lines of the log, where a failure left no explanation of its own."""


def child_environment(workers: int, base: Mapping[str, str]) -> dict[str, str]:
    """Threads divided among the workers, which do not spin while they wait; what the user set stays."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores() // workers)),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONUNBUFFERED": "1",
    }
    if workers > 1:
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    return {**defaults, **base}


def without_slurm(base: Mapping[str, str]) -> dict[str, str]:
    """A run that is started here is no task of the Slurm job that we may be in, whose number of tasks Lightning would
    take for the run's. What names the job stays, for the tag `mtp.slurm_job`."""
    kept = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    return {key: value for key, value in base.items() if key in kept or not key.startswith("SLURM_")}


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Attempt:
    """A running cell. Made by `start`; call `poll` until it returns an outcome, then the lock is free again."""

    def __init__(self, cell: Cell, process: subprocess.Popen[bytes], lock: FileLock, status: Status) -> None:
        self.cell, self.process, self.lock, self.status = cell, process, lock, status
        self.stopped_by: int | None = None
        self.given_up: str | None = None
        self.lost: str | None = None
        """What it lost while it ran, through no fault of its own."""

    @classmethod
    def start(
        cls,
        cell: Cell,
        lock: FileLock,
        config: Mapping[str, Any],
        command: Sequence[str],
        environment: Mapping[str, str],
        warn: Callable[[str], None],
        job: str | None = None,
    ) -> "Attempt":
        """
        Args:
            lock: held; released by `poll`.
            config: what `mtp fit` is given.

        Raises:
            OSError: no space, or no rights; nothing was started.
        """
        directory = cell.directory
        previous = close_attempt(directory)
        write_text(directory / CONFIG, dump_yaml(references(dict(config))))
        (directory / Failure.FILE).unlink(missing_ok=True)
        status = Status(
            state=State.RUNNING.value,
            attempt=previous.attempt + 1 if previous else 1,
            host=socket.gethostname(),
            started_at=time.time(),
            job=job,
        )
        with (directory / LOG).open("ab") as log:
            write_header(log, status, command)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a group of its own: the terminal's Ctrl-C reaches it only through us
                pass_fds=(lock.descriptor,),
            )
        attempt = cls(cell, process, lock, replace(status, pid=process.pid, process=process_token(process.pid)))
        _note(cell, attempt.status, warn)
        return attempt

    def stop(self, signum: int) -> None:
        """Ask the run to end; it may take some time to save."""
        self.stopped_by = signum
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """End the run and whatever it started."""
        self.stopped_by = self.stopped_by or signal.SIGKILL
        self._kill_group()

    def give_up(self, reason: str) -> None:
        """End a run that cannot succeed: a failure."""
        self.given_up = reason
        self._kill_group()

    def poll(self, warn: Callable[[str], None]) -> Outcome | None:
        returncode = self.process.poll()
        if returncode is None:
            return None
        self._kill_group()  # helpers that outlived the run
        outcome = self._outcome(returncode)
        ended = replace(
            self.status,
            state=outcome.state.value,
            ended_at=time.time(),
            returncode=returncode,
            reason=outcome.reason,
        )
        _note(self.cell, ended, warn)
        self.lock.release()
        return outcome

    def _outcome(self, returncode: int) -> Outcome:
        directory, seconds = self.cell.directory, time.time() - self.status.started_at
        files = CellFiles.read(directory)
        if files.damaged is not None:
            return Outcome(State.DAMAGED, files.damaged, seconds)
        if files.result is not None:
            return Outcome(State.FINISHED, None, seconds)
        if self.given_up is not None:
            return Outcome(State.FAILED, self.given_up, seconds)
        if self.stopped_by is not None:
            return Outcome(State.INTERRUPTED, f"stopped by {signal.Signals(self.stopped_by).name}", seconds)
        if returncode == PREEMPTED and files.paused_at(self.cell.pause_at):
            return Outcome(State.AT_GATE, None, seconds)
        if returncode == PREEMPTED:
            return Outcome(State.INTERRUPTED, files.stopped or "preempted", seconds)
        if self.lost is not None:
            return Outcome(State.INTERRUPTED, self.lost, seconds)
        if files.failure is not None:
            return Outcome(State.FAILED, files.failure.text, seconds)
        tail = log_tail(directory / LOG)
        last = f": {tail.splitlines()[-1]}" if tail else ""
        return Outcome(State.FAILED, f"{_how_it_ended(returncode)}{last}", seconds, tail)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says "permission" for a group of zombies
            os.killpg(self.process.pid, signal.SIGKILL)


def failed_to_start(cell: Cell, error: OSError, warn: Callable[[str], None]) -> Outcome:
    """Record a cell that never ran: its configuration could not be written, or its command not be started."""
    text = mask(f"cannot be started: {error}")
    previous, now = CellFiles.read(cell.directory).status, time.time()
    status = Status(
        state=State.FAILED.value,
        attempt=previous.attempt + 1 if previous else 1,
        host=socket.gethostname(),
        started_at=now,
        ended_at=now,
        reason=text,
    )
    _note(cell, status, warn)
    return Outcome(State.FAILED, text)


def _note(cell: Cell, status: Status, warn: Callable[[str], None]) -> None:
    """A full disk must not end the launcher and the other cells too."""
    try:
        status.write(cell.directory)
        if status.ended_at is not None:
            log_attempt(cell.directory, status)
    except OSError as error:
        warn(f"{cell.label}: cannot write {Status.FILE}: {error.strerror}")


def close_attempt(directory: Path) -> Status | None:
    """The attempt before. If its launcher was killed too, how it ended is recorded only now."""
    files = CellFiles.read(directory)
    previous = files.status
    if previous is None or previous.ended_at is not None:
        return previous
    state, reason = State.INTERRUPTED, files.stopped or "killed, and its launcher too"
    if files.failure is not None:
        state, reason = State.FAILED, files.failure.text
    closed = replace(previous, state=state.value, reason=reason, ended_at=time.time())
    closed.write(directory)
    log_attempt(directory, closed)
    return closed


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        memory = " (out of memory?)" if -returncode == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-returncode).name}{memory}"
    return f"exit status {returncode}" if returncode else "ended without a result"
