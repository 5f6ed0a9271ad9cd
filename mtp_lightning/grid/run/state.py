"""The files in a cell's folder, and the one state that follows from them.

config.yaml     what `mtp fit` is given                      launcher
status.json     the last attempt: process, times, reason     launcher
attempts.jsonl  all attempts that ended, and how             launcher
log.txt         output of all attempts                       launcher
lock            held while the cell runs                     launcher and run
progress.json   step, loss, throughput, a heartbeat          run
result.json     metrics, written last and once: finished     run
failure.json    why the attempt failed                       run
mlflow_run_id   the MLflow run that every attempt continues  run
code.diff       changes to the code since its commit         launcher, on Slurm
checkpoints/                                                 run
"""

import functools
import json
import os
import re
import socket
import time
import types
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from mtp_lightning.files import read_json, write_json

CONFIG, LOG, LOCK, RUN_ID, CHECKPOINTS = "config.yaml", "log.txt", "lock", "mlflow_run_id", "checkpoints"
ATTEMPTS, DIFF = "attempts.jsonl", "code.diff"

HEARTBEAT_SECONDS = 300.0
"""A run on another machine that was silent for longer counts as dead."""
_LOGGED = ("attempt", "host", "job", "started_at", "ended_at", "state", "returncode", "reason")


class State(StrEnum):
    MISSING = "missing"
    QUEUED = "queued"
    """Waits in Slurm's queue, of which a cell's folder knows nothing."""
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """A JSON file of a cell's folder. `read` gives None for a file that is absent, torn or of other types, and ignores
    keys that it does not know, so that a later version may add some."""

    FILE: ClassVar[str]

    def write(self, directory: Path) -> None:
        write_json(directory / self.FILE, asdict(self))

    @classmethod
    def read(cls: type[R], directory: Path) -> R | None:
        raw = read_json(directory / cls.FILE)
        if raw is None:
            return None
        hints = _hints(cls)  # type: ignore[arg-type]  # mypy: classes of dataclasses cannot be hashed
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        if not all(_fits(value, hints[name]) for name, value in known.items()):
            return None
        try:
            return cls(**{name: _as_float(value, hints[name]) for name, value in known.items()})
        except TypeError:  # a required key is absent
            return None


@functools.cache
def _hints(cls: type[Record]) -> dict[str, Any]:
    return get_type_hints(cls)


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

    @property
    def text(self) -> str:
        """On one line."""
        return " ".join(f"{self.error}: {self.message}".split())


@dataclass(frozen=True)
class CellFiles:
    """The files of a cell's folder, each read once."""

    result: Result | None
    status: Status | None
    progress: Progress | None
    failure: Failure | None

    @classmethod
    def read(cls, directory: Path) -> "CellFiles":
        result, status = Result.read(directory), Status.read(directory)
        return cls(result, status, Progress.read(directory), Failure.read(directory))

    @property
    def state(self) -> State:
        """Finished if there is a result; running if a process is alive; else as the last attempt ended."""
        if self.result is not None:
            return State.FINISHED
        return State.RUNNING if _alive(self.status, self.progress) else self.state_if_over

    @property
    def state_if_over(self) -> State:
        """The state after the last attempt, if no attempt is at work."""
        if self.status is None:
            return State.MISSING if self.progress is None else State.INTERRUPTED
        if self.status.state == State.RUNNING.value and self.failure is not None:
            return State.FAILED  # the launcher was killed before it could note it
        return State.FAILED if self.status.state == State.FAILED.value else State.INTERRUPTED

    @property
    def reason(self) -> str | None:
        if self.status is not None and self.status.reason:
            return self.status.reason
        return self.failure.text if self.failure is not None else None


def cell_state(directory: Path) -> State:
    return CellFiles.read(directory).state


def failure_reason(directory: Path) -> str | None:
    return CellFiles.read(directory).reason


def log_attempt(directory: Path, ended: Status) -> None:
    """Add a line to `attempts.jsonl`, in one write: what is there already cannot be torn by it."""
    line = {key: value for key, value in asdict(ended).items() if key in _LOGGED}
    text = json.dumps(line | {"checkpoint": newest_checkpoint(directory)}) + "\n"
    descriptor = os.open(directory / ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read_attempts(directory: Path) -> list[dict[str, Any]]:
    """Oldest first; a line that a full disk cut off is left out."""
    try:
        lines = (directory / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def newest_checkpoint(directory: Path) -> str | None:
    """Its name, which holds the step."""
    return max((path.name for path in (directory / CHECKPOINTS).glob("*.ckpt")), default=None)


def saved_step(directory: Path) -> int:
    """The step from which an attempt would continue; 0 without a checkpoint."""
    found = re.search(r"(\d+)\.ckpt$", newest_checkpoint(directory) or "")
    return int(found[1]) if found else 0


def interruptions_without_progress(directory: Path, job: str) -> int:
    """How many attempts of a Slurm job in a row, up to the last, were interrupted and left no new checkpoint."""
    attempts = read_attempts(directory)
    count = 0
    for before, attempt in reversed(list(zip([{"checkpoint": None}, *attempts], attempts))):
        fruitless = attempt["state"] == State.INTERRUPTED.value and attempt["checkpoint"] == before["checkpoint"]
        if not fruitless or attempt["job"] != job:
            break
        count += 1
    return count


def process_token(pid: int) -> str | None:
    """Distinguishes a living process from another one with the same number; None when it is gone or a zombie."""
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
    """Where there is no /proc: a process answers to signal 0; a later one with its number looks the same."""
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
            return _lately(max(heartbeat, status.started_at))
        if status.pid is not None and process_token(status.pid) == status.process:
            return status.process is not None
    # A run that was started by hand in this folder has a heartbeat and no status of its own; an attempt that has ended
    # leaves its last heartbeat in the folder.
    ended_at = status.ended_at if status is not None and status.ended_at is not None else 0.0
    if progress is None or heartbeat <= ended_at or not _lately(heartbeat):
        return False
    return progress.host != here or process_token(progress.pid) is not None


def _lately(at: float) -> bool:
    """A time in the future comes from a clock that jumped, and must not count for ever."""
    return abs(time.time() - at) < HEARTBEAT_SECONDS


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
