"""One attempt at one cell: a process of its own, its log, its status file, and why it ended."""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from mtp_lightning.errors import PREEMPTED, InputError
from mtp_lightning.files import FileLock, write_text
from mtp_lightning.grid.run.attempts import log_attempt
from mtp_lightning.grid.run.state import CONFIG, LOG, Failure, Progress, Result, State, Status, process_token
from mtp_lightning.grid.spec.cells import Cell

Materialise = Callable[[Cell], dict[str, Any]]
"""The configuration that `mtp fit` is given: the cell's, with its logger and folders filled in."""
Command = Callable[[Cell], list[str]]
"""What to run for a cell; decides whether it goes on from a checkpoint."""


@dataclass(frozen=True)
class Outcome:
    state: State
    reason: str | None = None
    """One line."""
    seconds: float = 0.0
    log: str = ""
    """The last lines of the log, of a failure that left no explanation of its own."""


def child_environment(workers: int, base: Mapping[str, str]) -> dict[str, str]:
    """Threads divided among the workers, none of which spins while it waits; what the user set stays."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores() // workers)),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONUNBUFFERED": "1",
    }
    if workers > 1:
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    return {**defaults, **base}


def cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Attempt:
    """A running cell. Made by `start`; `poll` until it gives an outcome, then the lock is free again."""

    def __init__(self, cell: Cell, process: subprocess.Popen[bytes], lock: FileLock, status: Status) -> None:
        self.cell, self.process, self.lock, self.status = cell, process, lock, status
        self.pace = Pace(status.started_at)
        self.stopped_by: int | None = None
        self.given_up: str | None = None

    @classmethod
    def start(
        cls,
        cell: Cell,
        lock: FileLock,
        materialise: Materialise,
        command: Command,
        environment: Mapping[str, str],
        warn: Callable[[str], None],
        job: str | None = None,
    ) -> "Attempt":
        """Needs the held lock. Raises OSError (no room, no rights) or InputError, and then has started nothing."""
        directory = cell.directory
        previous = close_attempt(directory)
        write_text(directory / CONFIG, yaml.safe_dump(materialise(cell), sort_keys=False, allow_unicode=True))
        (directory / Failure.FILE).unlink(missing_ok=True)
        arguments = command(cell)
        status = Status(
            state=State.RUNNING.value,
            attempt=previous.attempt + 1 if previous else 1,
            host=socket.gethostname(),
            started_at=time.time(),
            job=job,
        )
        with (directory / LOG).open("ab") as log:
            _header(log, status, arguments)
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a group of its own: the terminal's Ctrl-C reaches it through us only
                pass_fds=(lock.descriptor,),
            )
        attempt = cls(cell, process, lock, replace(status, pid=process.pid, process=process_token(process.pid)))
        _note(cell, attempt.status, warn)
        return attempt

    def stop(self, signum: int) -> None:
        """Ask the run to end; it may take a moment to save."""
        self.stopped_by = signum
        if self.process.poll() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """End the run and whatever it started."""
        self.stopped_by = self.stopped_by or signal.SIGKILL
        self._kill_group()

    def give_up(self, reason: str) -> None:
        """End a run that cannot come to anything: a failure."""
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
        if Result.read(directory) is not None:
            return Outcome(State.FINISHED, None, seconds)
        if self.given_up is not None:
            return Outcome(State.FAILED, self.given_up, seconds)
        if self.stopped_by is not None:
            return Outcome(State.INTERRUPTED, f"stopped by {signal.Signals(self.stopped_by).name}", seconds)
        if returncode == PREEMPTED:
            return Outcome(State.INTERRUPTED, "preempted", seconds)
        failure = Failure.read(directory)
        if failure is not None:
            return Outcome(State.FAILED, one_line(f"{failure.error}: {failure.message}"), seconds)
        tail = log_tail(directory / LOG)
        last = f": {tail.splitlines()[-1]}" if tail else ""
        return Outcome(State.FAILED, f"{_how_it_ended(returncode)}{last}", seconds, tail)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says "permission" for a group of zombies
            os.killpg(self.process.pid, signal.SIGKILL)


class Pace:
    """Time left, from the steps seen since the attempt began (a resumed run does not begin at step 0)."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self._first: tuple[int, float] | None = None

    def elapsed(self) -> float:
        return time.time() - self.started_at

    def seconds_left(self, progress: Progress | None) -> float | None:
        if progress is None or progress.updated_at < self.started_at:
            return None
        if self._first is None:
            self._first = (progress.step, progress.updated_at)
        step, at = self._first
        done, spent = progress.step - step, progress.updated_at - at
        if done <= 0:
            return None
        since = time.time() - progress.updated_at
        return max(0.0, (progress.max_steps - progress.step) * spent / done - since)


def failed_to_start(cell: Cell, error: Exception, warn: Callable[[str], None]) -> Outcome:
    """Record a cell that never ran: its configuration could not be written, or the command not be started."""
    text = one_line(str(error) if isinstance(error, InputError) else f"cannot be started: {error}")
    previous, now = Status.read(cell.directory), time.time()
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
    """A full disk must not take the launcher and the other cells down with it."""
    try:
        status.write(cell.directory)
        if status.ended_at is not None:
            log_attempt(cell.directory, status)
    except OSError as error:
        warn(f"{cell.label}: cannot write {Status.FILE}: {error.strerror}")


def close_attempt(directory: Path) -> Status | None:
    """The attempt before. If its launcher was killed with it, how it ended is written down only now."""
    previous = Status.read(directory)
    if previous is None or previous.ended_at is not None:
        return previous
    failure = Failure.read(directory)
    state, reason = State.INTERRUPTED, "killed, and its launcher too"
    if failure is not None:
        state, reason = State.FAILED, one_line(f"{failure.error}: {failure.message}")
    closed = replace(previous, state=state.value, reason=reason, ended_at=time.time())
    closed.write(directory)
    log_attempt(directory, closed)
    return closed


def log_tail(path: Path, lines: int = 5) -> str:
    """The last lines that say something, of the last attempt only."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    last = text.rpartition(_MARK)[2].splitlines()
    said = [line.strip() for line in last[1 if _MARK in text else 0 :] if line.strip()]
    return "\n".join(said[-lines:])


_MARK = "===== attempt "


def _header(log: IO[bytes], status: Status, arguments: list[str]) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(status.started_at))
    command = " ".join(shlex.join(arguments).split())  # one line, whatever the arguments hold
    log.write(f"{_MARK}{status.attempt}, {at}, {status.host}: {command}\n".encode())
    log.flush()


def one_line(text: str) -> str:
    return " ".join(text.split())


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        memory = " (out of memory?)" if -returncode == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-returncode).name}{memory}"
    return f"exit status {returncode}" if returncode else "ended without a result"
