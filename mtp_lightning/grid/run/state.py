"""The files in a cell's folder, and the one state that follows from them.

config.yaml     what `mtp fit` is given                      launcher
status.json     the last attempt: process, times, reason     launcher
attempts.jsonl  all attempts that ended, and how             launcher
log.txt         output of all attempts                       launcher
lock            held while the cell runs                     launcher and run
progress.json   step, loss, throughput, a heartbeat          run
result.json     metrics, written last and once: finished     run
failure.json    why the attempt failed                       run
gate.json       the metrics at a gate where it waited        run
mlflow_run_id   the MLflow run that every attempt continues  run
code.diff       changes to the code since its commit         launcher, on Slurm
checkpoints/                                                 run
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TypeVar

from mtp_lightning.errors import DivergedError
from mtp_lightning.files import DamagedError, read_record, write_json
from mtp_lightning.machine import lives, process_token
from mtp_lightning.secrets import masked
from mtp_lightning.tracking.begin import RUN_FILE, read_run_id
from mtp_lightning.tracking.journal import JOURNAL, check_journal

CONFIG, LOG, LOCK, RUN_ID, CHECKPOINTS = "config.yaml", "log.txt", "lock", RUN_FILE, "checkpoints"
DIFF = "code.diff"

HEARTBEAT_SECONDS = 300.0
"""A run on another machine that was silent for longer counts as dead."""
DIVERGED = DivergedError.__name__
INSTEAD = "repair it or move it away; until then the cell is neither run nor counted"


class State(StrEnum):
    MISSING = "missing"
    QUEUED = "queued"
    """Waits in Slurm's queue, of which a cell's folder knows nothing."""
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    AT_GATE = "at the gate"
    """It saved and ended there; it goes on if its setting passes."""
    STOPPED = "stopped"
    """By the gate: its setting was too far from the best. Stands in no file."""
    DAMAGED = "damaged"
    """One of its files is there and cannot be used: a person has to look."""
    BLOCKED = "blocked"
    """The cell whose weights it begins with has failed, or is damaged or blocked itself. Stands in no file."""


R = TypeVar("R", bound="Record")
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A JSON file of a cell's folder."""

    FILE: ClassVar[str]

    def write(self, directory: Path) -> None:
        write_json(directory / self.FILE, masked(asdict(self)))

    @classmethod
    def read(cls: type[R], directory: Path) -> R | None:
        """None where there is no file.

        Raises:
            DamagedError: one that cannot be used.
        """
        return read_record(cls, directory / cls.FILE)


@dataclass(frozen=True)
class Status(Record):
    FILE: ClassVar[str] = "status.json"
    state: str
    attempt: int
    host: str
    started_at: float
    pid: int | None = None
    process: str | None = None
    """`process_token(pid)`: another process that gets the same number later is not this one."""
    ended_at: float | None = None
    returncode: int | None = None
    reason: str | None = None
    job: str | None = None
    """Slurm's, as squeue writes it: `12_3`."""
    settled: bool = False
    """Whether it is known that the MLflow run of this attempt, which was killed, does not say RUNNING."""

    @classmethod
    def read(cls, directory: Path) -> "Status | None":
        status = super().read(directory)
        if status is not None and status.state not in list(State):
            raise DamagedError(directory / cls.FILE, f"its 'state' is {status.state!r}, unknown to this version")
        return status


@dataclass(frozen=True)
class Progress(Record):
    FILE: ClassVar[str] = "progress.json"
    step: int
    max_steps: int
    phase: str
    loss: float | None = None
    tokens_per_second: float | None = None
    updated_at: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    stopped: str | None = None
    """Why the run saved and stopped, if it was asked to: `SIGTERM: saved step 120`."""


@dataclass(frozen=True)
class Result(Record):
    """Written by the run as the very last thing it does; a cell is finished when, and only when, this is there."""

    FILE: ClassVar[str] = "result.json"
    step: int
    metrics: dict[str, float]
    tokens: int | None = None
    wall_seconds: float | None = None
    data_fingerprint: str | None = None
    window_room: int | None = None
    """Of the run's data module; None in those of earlier versions too."""
    state: str = State.FINISHED.value

    @classmethod
    def read(cls, directory: Path) -> "Result | None":
        result = super().read(directory)
        if result is not None and result.state != State.FINISHED.value:
            raise DamagedError(directory / cls.FILE, f"its 'state' is {result.state!r}, and has to be 'finished'")
        return result


@dataclass(frozen=True)
class Failure(Record):
    FILE: ClassVar[str] = "failure.json"
    error: str
    message: str

    @property
    def text(self) -> str:
        """On one line."""
        return " ".join(f"{self.error}: {self.message}".split())


@dataclass(frozen=True)
class AtGate(Record):
    """What a run had come to when it paused at a gate. It stays there: the gate's judgement rests on it."""

    FILE: ClassVar[str] = "gate.json"
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class CellFiles:
    """The files of a cell's folder, each read once. One that is damaged is None, and named."""

    result: Result | None
    status: Status | None
    progress: Progress | None
    failure: Failure | None
    run_id: str | None = None
    gate: AtGate | None = None
    damaged: str | None = None
    """What is wrong with the files, if anything is, and what to do."""

    @classmethod
    def read(cls, directory: Path) -> "CellFiles":
        problems: list[str] = []

        def read(reader: Callable[[Path], T]) -> T | None:
            try:
                return reader(directory)
            except DamagedError as error:
                problems.append(str(error))
                return None

        result, status = read(Result.read), read(Status.read)
        progress, failure, run_id = read(Progress.read), read(Failure.read), read(read_run_id)
        gate = read(AtGate.read)
        read(lambda folder: check_journal(folder / JOURNAL))
        damaged = f"{'; '.join(dict.fromkeys(problems))}: {INSTEAD}" if problems else None
        return cls(result, status, progress, failure, run_id, gate, damaged)

    @property
    def state(self) -> State:
        """Damaged if a file is; finished if there is a result; running if a process is alive; else as the last attempt
        ended."""
        if self.damaged is not None:
            return State.DAMAGED
        if self.result is not None:
            return State.FINISHED
        return State.RUNNING if _alive(self.status, self.progress) else self.state_if_over

    @property
    def state_if_over(self) -> State:
        """The state after the last attempt, if no attempt is at work."""
        if self.damaged is not None:
            return State.DAMAGED
        if self.status is None:
            return State.MISSING if self.progress is None else State.INTERRUPTED
        if self.status.state == State.RUNNING.value and self.failure is not None:
            return State.FAILED  # the launcher was killed before it could note it
        ended = State(self.status.state)
        return ended if ended in (State.FAILED, State.AT_GATE) else State.INTERRUPTED

    @property
    def diverged(self) -> bool:
        """Whether its last attempt failed since its loss or weights were no longer finite: a result, the worst of its
        setting. Other failures are accidents."""
        return self.state is State.FAILED and self.failure is not None and self.failure.error == DIVERGED

    def paused_at(self, step: int | None) -> bool:
        return step is not None and self.gate is not None and self.gate.step == step

    @property
    def reason(self) -> str | None:
        """What the launcher noted comes first: it knows more than the run (another task died, a signal it sent)."""
        if self.damaged is not None:
            return self.damaged
        if self.status is not None and self.status.reason:
            return self.status.reason
        return self.failure.text if self.failure is not None else self.stopped

    @property
    def stopped(self) -> str | None:
        """Why the run of the last attempt says that it saved and stopped; its launcher may have died before it."""
        if self.progress is None or self.progress.stopped is None:
            return None
        began = self.status.started_at if self.status is not None else 0.0
        return f"stopped by {self.progress.stopped}" if self.progress.updated_at >= began else None


def cell_state(directory: Path) -> State:
    return CellFiles.read(directory).state


def failure_reason(directory: Path) -> str | None:
    return CellFiles.read(directory).reason


def _alive(status: Status | None, progress: Progress | None) -> bool:
    here = socket.gethostname()
    heartbeat = progress.updated_at if progress is not None else 0.0
    if status is not None and status.state == State.RUNNING.value:
        if status.host != here:
            return _lately(max(heartbeat, status.started_at))
        if status.pid is not None and status.process is not None and lives(status.pid, status.process):
            return True
    # A run that was started by hand in this folder has a heartbeat and no status of its own; an attempt that has ended
    # leaves its last heartbeat in the folder.
    ended_at = status.ended_at if status is not None and status.ended_at is not None else 0.0
    if progress is None or heartbeat <= ended_at or not _lately(heartbeat):
        return False
    return progress.host != here or process_token(progress.pid) is not None


def _lately(at: float) -> bool:
    """A time in the future comes from a clock that jumped, and must not count for ever."""
    return abs(time.time() - at) < HEARTBEAT_SECONDS
