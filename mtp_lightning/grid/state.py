"""What a cell's folder says: the files of a cell, and the one state that follows from them.

config.yaml     what `mtp fit` is given                      launcher
status.json     the last attempt: process, times, reason     launcher
log.txt         output of all attempts                       launcher
lock            held while the cell runs                     launcher and run
progress.json   step, loss, throughput, a heartbeat          run
result.json     metrics, written last and once: finished     run
failure.json    why the attempt failed                       run
mlflow_run_id   the MLflow run that every attempt continues  run
checkpoints/                                                 run
"""

import os
import socket
import time
import types
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from mtp_lightning.files import read_json, write_json

CONFIG, LOG, LOCK, RUN_ID, CHECKPOINTS = "config.yaml", "log.txt", "lock", "mlflow_run_id", "checkpoints"

HEARTBEAT_SECONDS = 300.0
"""A run that was silent for longer counts as dead where its process cannot be looked at."""


class State(str, Enum):
    MISSING = "missing"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """A JSON file of a cell's folder. `read` gives None for a file that is absent, torn or of other types; keys it
    does not know are left alone, so that a later version may add some."""

    FILE: ClassVar[str]

    def write(self, directory: Path) -> None:
        write_json(directory / self.FILE, asdict(self))

    @classmethod
    def read(cls: type[R], directory: Path) -> R | None:
        raw = read_json(directory / cls.FILE)
        if raw is None:
            return None
        hints = get_type_hints(cls)
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        if not all(_fits(value, hints[name]) for name, value in known.items()):
            return None
        try:
            return cls(**{name: _as_float(value, hints[name]) for name, value in known.items()})
        except TypeError:  # a required key is absent
            return None


@dataclass(frozen=True)
class Status(Record):
    FILE: ClassVar[str] = "status.json"
    state: str
    attempt: int
    host: str
    started_at: float
    pid: int | None = None
    process: str | None = None
    """`process_token(pid)`: a number that is used again by another process is not this one."""
    ended_at: float | None = None
    returncode: int | None = None
    reason: str | None = None


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


@dataclass(frozen=True)
class Result(Record):
    """Written by the run as the very last thing it does; a cell is finished when, and only when, this is there."""

    FILE: ClassVar[str] = "result.json"
    step: int
    metrics: dict[str, float]
    tokens: int | None = None
    wall_seconds: float | None = None
    data_fingerprint: str | None = None
    state: str = State.FINISHED.value

    @classmethod
    def read(cls, directory: Path) -> "Result | None":
        result = super().read(directory)
        return result if result is not None and result.state == State.FINISHED.value else None


@dataclass(frozen=True)
class Failure(Record):
    FILE: ClassVar[str] = "failure.json"
    error: str
    message: str


def cell_state(directory: Path) -> State:
    """Finished by its result; running by a living process; else what the last attempt left."""
    if Result.read(directory) is not None:
        return State.FINISHED
    status, progress = Status.read(directory), Progress.read(directory)
    if _alive(status, progress):
        return State.RUNNING
    if status is None:
        return State.MISSING if progress is None else State.INTERRUPTED
    if status.state == State.RUNNING.value and Failure.read(directory) is not None:
        return State.FAILED  # the launcher was gone before it could note it
    return State.FAILED if status.state == State.FAILED.value else State.INTERRUPTED


def failure_reason(directory: Path) -> str | None:
    status = Status.read(directory)
    if status is not None and status.reason:
        return status.reason
    failure = Failure.read(directory)
    return " ".join(f"{failure.error}: {failure.message}".split()) if failure is not None else None


def process_token(pid: int) -> str | None:
    """Tells a living process from another one with the same number; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _signalled(pid)
    except ProcessLookupError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else f"{boot}:{after_name[19]}"


def _signalled(pid: int) -> str | None:
    """Where there is no /proc: a process answers to signal 0, and cannot be told from a later one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _alive(status: Status | None, progress: Progress | None) -> bool:
    here = socket.gethostname()
    heartbeat = progress.updated_at if progress is not None else 0.0
    if status is not None and status.state == State.RUNNING.value:
        if status.host != here:
            return time.time() - max(heartbeat, status.started_at) < HEARTBEAT_SECONDS
        if status.pid is not None and process_token(status.pid) == status.process:
            return status.process is not None
    # A run that was started by hand in this folder has a heartbeat and no status of its own.
    if progress is None or time.time() - heartbeat >= HEARTBEAT_SECONDS:
        return False
    return progress.host != here or process_token(progress.pid) is not None


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, get_args(hint)[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _as_float(value: Any, hint: Any) -> Any:
    """JSON writers drop the `.0` of a float."""
    if get_origin(hint) is dict:
        return {key: _as_float(item, get_args(hint)[1]) for key, item in value.items()}
    is_float = hint is float or float in get_args(hint)
    return float(value) if is_float and type(value) is int else value
