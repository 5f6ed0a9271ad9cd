"""What submitit runs on the nodes: one element of a job array is one cell, in as many tasks as the cell has processes.

Task 0 leads: it holds the cell's lock, starts `mtp fit` as the local launcher does, and decides about another attempt.
The others start the same command whenever it says so, and Lightning makes one run of them. Slurm's warning (SIGUSR2,
before the end of the time or a preemption) is handed to the run, which saves; then the job is queued again. SIGTERM
(scancel, or a preemption without warning) is handed on too, and whoever sent it decides what becomes of the job.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mtp_lightning.errors import PREEMPTED, InputError
from mtp_lightning.files import FileLock
from mtp_lightning.grid.run.attempts import interrupted_in_vain
from mtp_lightning.grid.run.process import Attempt, Outcome, close_attempt, failed_to_start
from mtp_lightning.grid.run.state import DIFF, HEARTBEAT_SECONDS, LOCK, CellFiles, State, Status
from mtp_lightning.grid.slurm.task import Task

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

SAVE_SECONDS = 90.0
"""What a run that was warned has for saving, of the `slurm.SIGNAL_SECONDS` that are left."""
FRUITLESS = 3
"""How many times, beside the cell's `retry`, a job is queued again although the last attempt brought no checkpoint."""
ELSEWHERE_SECONDS = HEARTBEAT_SECONDS + 30.0
"""For a run that seems to be at work elsewhere: by then a dead one has not been heard of for too long."""
_POLL_SECONDS = 0.2
FELLOWS_SECONDS = 15.0
"""For the processes of a run to end by themselves once one of them has."""


class CellJob:
    """The callable that submitit keeps. It is the same for all cells of an array: which one it runs, the array's index
    says, and the rest lies in the folder of the submission."""

    def __init__(self, folder: str, snapshot: str | None) -> None:
        self.folder, self.snapshot = folder, snapshot

    def __call__(self) -> str:
        task = Task.of_this_process(Path(self.folder))
        if task.rank:
            return _Follower(task).run()
        return _Leader(task, Path(self.snapshot) / DIFF if self.snapshot else None).run()

    def checkpoint(self) -> "DelayedSubmission":
        """Asked by submitit before it queues the job again; by then the run has saved and ended."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


class _Leader:
    def __init__(self, task: Task, diff: Path | None) -> None:
        self.task, self.cell, self.diff = task, task.cell, diff
        self.attempt: Attempt | None = None
        self.number = 0
        self.warned_at: float | None = None
        self.terminated = False
        self.queue_again: Any = signal.getsignal(signal.SIGUSR2)
        """submitit's handler; called once the run has saved, not in the middle of what we are doing."""

    def run(self) -> str:
        signal.signal(signal.SIGUSR2, self._warned)
        signal.signal(signal.SIGTERM, self._terminated)
        try:
            outcome = self._attempts()
        finally:
            self.task.say_turn(0)
        _say(f"{self.cell.label}: {outcome.state.value}{f': {outcome.reason}' if outcome.reason else ''}")
        if outcome.state is State.INTERRUPTED:
            self._interrupted()
        if outcome.state is State.FAILED:
            sys.exit(1)
        return str(outcome.state.value)

    def _attempts(self) -> Outcome:
        outcome = self._one()
        for _ in range(self.cell.retry):
            if outcome.state is not State.FAILED or self.warned_at is not None or self.terminated:
                break
            _say(f"{self.cell.label}: failed: {outcome.reason}; again")
            outcome = self._one()
        return outcome

    def _one(self) -> Outcome:
        """One attempt, or why there is none."""
        directory, lock = self.cell.directory, FileLock(self.cell.directory / LOCK)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            instead = self._alone(lock)
            if instead is not None:
                lock.release()
                return instead
            self._keep_diff()
            self.number += 1
            self.attempt = Attempt.start(
                self.cell,
                lock,
                lambda cell: dict(cell.config),
                lambda cell: list(self.task.command),
                self.task.environment,
                _say,
                self.task.job,
            )
        except (OSError, InputError) as error:
            lock.release()
            return failed_to_start(self.cell, error, _say)
        self.task.say_turn(self.number)
        return self._wait(self.attempt)

    def _alone(self, lock: FileLock) -> Outcome | None:
        """Take the lock and see that nobody runs the cell. Helpers of an attempt that just died may hold the lock for
        a moment, and what died on another node is known to be dead only when it has been silent for long."""
        deadline = time.monotonic() + ELSEWHERE_SECONDS
        while True:
            if lock.acquire():
                instead = self._instead()
                if instead is None or instead.state is not State.RUNNING:
                    return instead
                lock.release()
            if self.warned_at is not None or self.terminated:
                return Outcome(State.INTERRUPTED, "told to go before it began")
            if time.monotonic() > deadline:
                return Outcome(State.RUNNING, "somebody else runs it")
            time.sleep(_POLL_SECONDS)

    def _instead(self) -> Outcome | None:
        """What is found when the cell need not, or must not, be run."""
        files = CellFiles.read(self.cell.directory)
        ours = files.status is not None and files.status.job == self.task.job
        # We have the lock, and Slurm never runs one element twice: a heartbeat of its own is one of the past.
        state = files.left if ours and files.state is State.RUNNING else files.state
        if state in (State.FINISHED, State.RUNNING):
            return Outcome(state, "somebody else runs it" if state is State.RUNNING else None)
        close_attempt(self.cell.directory)
        return self._hopeless()

    def _hopeless(self) -> Outcome | None:
        count = interrupted_in_vain(self.cell.directory, self.task.job)
        if count <= self.cell.retry + FRUITLESS:
            return None
        status = Status.read(self.cell.directory)
        assert status is not None, "it was interrupted"
        reason = f"interrupted {count} times without a new checkpoint: not queued again"
        replace(status, state=State.INTERRUPTED.value, reason=reason).write(self.cell.directory)
        return Outcome(State.INTERRUPTED, reason)

    def _keep_diff(self) -> None:
        kept = self.cell.directory / DIFF
        kept.unlink(missing_ok=True)
        if self.diff is not None and self.diff.is_file():
            shutil.copyfile(self.diff, kept)

    def _wait(self, attempt: Attempt) -> Outcome:
        died: str | None = None
        while (returncode := attempt.process.poll()) is None:
            self._hand_on(attempt)
            if self.warned_at is not None and time.monotonic() - self.warned_at > SAVE_SECONDS:
                attempt.kill()
            if died is None:
                died, died_at = self.task.fellow_died(self.number), time.monotonic()
            elif attempt.stopped_by is None and time.monotonic() - died_at > FELLOWS_SECONDS:
                attempt.give_up(died)
            time.sleep(_POLL_SECONDS)
        if returncode:
            time.sleep(2 * _POLL_SECONDS)  # Slurm signals the run and us at once: our handler may yet come
            self._hand_on(attempt)
        outcome = attempt.poll(_say)
        assert outcome is not None
        return outcome

    def _interrupted(self) -> None:
        """Where Slurm warned, or somebody told the run itself to go, it is us who queue the job again."""
        if self.attempt is None or (self.terminated and self.warned_at is None):
            sys.exit(PREEMPTED)
        if self._hopeless() is not None:
            sys.exit(PREEMPTED)
        self.queue_again(signal.SIGUSR2, None)

    def _hand_on(self, attempt: Attempt) -> None:
        if attempt.stopped_by is None and (self.warned_at is not None or self.terminated):
            attempt.stop(signal.SIGUSR1 if self.warned_at is not None else signal.SIGTERM)

    def _warned(self, number: int, frame: FrameType | None) -> None:
        self.warned_at = self.warned_at or time.monotonic()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True


class _Follower:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> str:
        signal.signal(signal.SIGUSR2, self._pass_on(signal.SIGUSR1))
        signal.signal(signal.SIGTERM, self._pass_on(signal.SIGTERM))
        done = 0
        while (turn := self.task.turn()) != 0:
            if turn is not None and turn != done:
                done = turn
                self._attempt(turn)
            time.sleep(_POLL_SECONDS)
        return "over"

    def _attempt(self, number: int) -> None:
        """Runs the cell's command until it ends, or has had its time since task 0 was through with the attempt."""
        self.process = subprocess.Popen(self.task.command, env=self.task.environment, start_new_session=True)
        deadline = math.inf
        while (returncode := self.process.poll()) is None and time.monotonic() < deadline:
            if self.task.turn() != number:
                deadline = min(deadline, time.monotonic() + FELLOWS_SECONDS)
            time.sleep(_POLL_SECONDS)
        if returncode not in (None, 0, PREEMPTED):
            self.task.say_died(number, returncode)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _pass_on(self, number: int) -> Callable[[int, FrameType | None], None]:
        def handler(_number: int, _frame: FrameType | None) -> None:
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(number)

        return handler


def _say(text: str) -> None:
    """Into Slurm's own output file."""
    print(text, flush=True)
