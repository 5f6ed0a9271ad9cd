"""What submitit runs on the nodes: one element of a job array is one cell, in as many tasks as the cell has processes.

Task 0 leads: it holds the cell's lock, starts `mtp fit` as the local launcher does, and decides about another attempt.
The others start the same command when it announces an attempt, and Lightning makes one run of them. Slurm's warning
(SIGUSR2, before the end of the time or a preemption) goes to the run, which saves; then the job is queued again.
SIGTERM (scancel, or a preemption without warning) goes to the run too, and its sender decides about queueing again.
"""

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mtp_lightning.errors import PREEMPTED
from mtp_lightning.files import FileLock
from mtp_lightning.grid.run.attempts import interruptions_without_progress, is_at_gate
from mtp_lightning.grid.run.process import Attempt, Outcome, close_attempt, failed_to_start
from mtp_lightning.grid.run.state import (
    DIFF,
    HEARTBEAT_SECONDS,
    LOCK,
    CellFiles,
    State,
    cell_state,
)
from mtp_lightning.grid.run.status import blocked_by
from mtp_lightning.grid.slurm.task import BEAT_SECONDS, POLL_SECONDS, Task
from mtp_lightning.secrets import mask

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

SAVE_SECONDS = 90.0
"""How long a run that was warned may take to save, of the `client.SIGNAL_SECONDS` that are left."""
WITHOUT_PROGRESS = 3
"""How many times more than the cell's `retry` a job is queued again although its attempts leave no new checkpoint."""
ELSEWHERE_SECONDS = HEARTBEAT_SECONDS + 30.0
"""How long to wait for a run that seems to be at work elsewhere: after this, a dead one counts as dead."""
NOT_YET = (State.RUNNING, State.BLOCKED)
"""What is waited for, so long."""
OTHERS_SECONDS = 15.0
"""How long the processes of a run may take to end by themselves after one of them has ended."""


class CellJob:
    """The callable that submitit stores, the same for all cells of an array: the array's index says which cell it runs,
    and the cells are in the folder of the submission."""

    def __init__(self, folder: str, snapshot: str | None) -> None:
        self.folder, self.snapshot = folder, snapshot

    def __call__(self) -> str:
        os.umask(os.umask(0o077) | 0o007)  # as `mtp grid` itself: what a run writes is not for others
        task = Task.of_this_process(Path(self.folder))
        if task.rank:
            return _Follower(task).run()
        return _Leader(task, Path(self.snapshot) / DIFF if self.snapshot else None).run()

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit queues again; the run has saved and ended by then."""
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
        """submitit's handler; called after the run has saved, and not in the middle of our own work."""

    def run(self) -> str:
        signal.signal(signal.SIGUSR2, self._warned)
        signal.signal(signal.SIGTERM, self._terminated)
        try:
            outcome = self._attempts()
        finally:
            self.task.announce(0)
        _say(f"{self.cell.label}: {outcome.state.value}{f': {outcome.reason}' if outcome.reason else ''}")
        if outcome.state is State.INTERRUPTED:
            self._interrupted()
        if outcome.state in (State.FAILED, State.DAMAGED, *NOT_YET):
            sys.exit(1)  # or the jobs that wait for this one (afterok) would begin with weights that are not there
        return str(outcome.state.value)

    def _attempts(self) -> Outcome:
        outcome = self._one()
        for _ in range(self.cell.retry):
            if outcome.state is not State.FAILED or self.warned_at is not None or self.terminated:
                break
            if CellFiles.read(self.cell.directory).diverged:
                break  # a result: where it once held on another try, that would be luck
            _say(f"{self.cell.label}: failed: {outcome.reason}; again")
            outcome = self._one()
        return outcome

    def _one(self) -> Outcome:
        """One attempt, or the reason for none."""
        cell, lock = self.cell, FileLock(self.cell.directory / LOCK)
        try:
            cell.directory.mkdir(parents=True, exist_ok=True)
            instead = self._take_lock(lock)
            if instead is not None:
                lock.release()
                return instead
            self._keep_diff()
            self.number += 1
            command, environment = self.task.command, self.task.environment
            self.attempt = Attempt.start(cell, lock, cell.config, command, environment, _say, self.task.job)
        except OSError as error:
            lock.release()
            return failed_to_start(cell, error, _say)
        self.task.announce(self.number)
        return self._wait(self.attempt)

    def _take_lock(self, lock: FileLock) -> Outcome | None:
        """Take the lock, and return an outcome if the cell need not or must not be run. Helpers of an attempt that just
        died may hold the lock for a moment, a run on another node counts as dead only after a long silence, and a disk
        that nodes share may show the parent's result late."""
        deadline = time.monotonic() + ELSEWHERE_SECONDS
        while True:
            instead: Outcome | None = Outcome(State.RUNNING, "another process runs it")
            if lock.acquire():
                instead = self._instead()
                if instead is None or instead.state not in NOT_YET:
                    return instead
                lock.release()
            if self.warned_at is not None or self.terminated:
                return Outcome(State.INTERRUPTED, "stopped before it began")
            if time.monotonic() > deadline:
                return instead
            time.sleep(POLL_SECONDS)

    def _instead(self) -> Outcome | None:
        """An outcome, if the cell need not or must not be run."""
        files = CellFiles.read(self.cell.directory)
        ours = files.status is not None and files.status.job == self.task.job
        # We have the lock, and Slurm never runs one element twice: a heartbeat of this job is from an earlier attempt.
        state = files.state_if_over if ours and files.state is State.RUNNING else files.state
        if state in (State.FINISHED, State.RUNNING, State.DAMAGED):
            return Outcome(state, "another process runs it" if state is State.RUNNING else files.damaged)
        if self.cell.follows:
            parent = cell_state(self.cell.directory.parent / str(self.cell.parent))
            if parent is not State.FINISHED:
                return Outcome(State.BLOCKED, blocked_by(self.cell, parent))
        close_attempt(self.cell.directory)
        if is_at_gate(self.cell, files):
            return Outcome(State.AT_GATE)
        return self._without_progress()

    def _without_progress(self) -> Outcome | None:
        """An outcome, if the job was interrupted too often and never saved anything."""
        count = interruptions_without_progress(self.cell.directory, self.task.job)
        if count <= self.cell.retry + WITHOUT_PROGRESS:
            return None
        status = CellFiles.read(self.cell.directory).status
        if status is None:
            return None  # damaged since
        reason = f"interrupted {count} times without a new checkpoint: not queued again"
        replace(status, state=State.INTERRUPTED.value, reason=reason).write(self.cell.directory)
        return Outcome(State.INTERRUPTED, reason)

    def _keep_diff(self) -> None:
        kept = self.cell.directory / DIFF
        kept.unlink(missing_ok=True)
        if self.diff is not None and self.diff.is_file():
            text = self.diff.read_bytes().decode("utf-8", "surrogateescape")
            kept.write_bytes(mask(text).encode("utf-8", "surrogateescape"))

    def _wait(self, attempt: Attempt) -> Outcome:
        died: str | None = None
        while (returncode := attempt.process.poll()) is None:
            self._hand_on(attempt)
            if self.warned_at is not None and time.monotonic() - self.warned_at > SAVE_SECONDS:
                attempt.kill()
            if died is None:
                died, died_at = self.task.reported_death(self.number), time.monotonic()
            elif attempt.stopped_by is None and time.monotonic() - died_at > OTHERS_SECONDS:
                attempt.give_up(died)
            time.sleep(POLL_SECONDS)
        if returncode:
            time.sleep(2 * POLL_SECONDS)  # Slurm signals the run and us together: our handler may still be called
            self._hand_on(attempt)
        if returncode not in (0, PREEMPTED) and attempt.stopped_by is None:
            silent = self.task.silent_task()
            attempt.lost = None if silent is None else f"task {silent} was lost, and its node with it"
        outcome = attempt.poll(_say)
        assert outcome is not None
        return outcome

    def _interrupted(self) -> None:
        """Queue the job again if Slurm warned it, if the run itself was asked to stop, or if it lost a node; not if the
        job was asked."""
        stopped = self.attempt is None or (self.terminated and self.warned_at is None)
        if stopped or self._without_progress() is not None:
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
        threading.Thread(target=self._beat, daemon=True).start()
        done = 0
        while (attempt := self.task.announced()) != 0:
            if attempt is not None and attempt != done:
                done = attempt
                self._attempt(attempt)
            time.sleep(POLL_SECONDS)
        return "over"

    def _attempt(self, number: int) -> None:
        """Run the cell's command until it ends, or until some time after task 0 ended the attempt."""
        self.process = subprocess.Popen(self.task.command, env=self.task.environment, start_new_session=True)
        deadline = math.inf
        while (returncode := self.process.poll()) is None and time.monotonic() < deadline:
            if self.task.announced() != number:
                deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
            time.sleep(POLL_SECONDS)
        if returncode not in (None, 0, PREEMPTED):
            self.task.report_death(number, returncode)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _beat(self) -> None:
        for count in itertools.count():
            self.task.beat(count)
            time.sleep(BEAT_SECONDS)

    def _pass_on(self, number: int) -> Callable[[int, FrameType | None], None]:
        def handler(_number: int, _frame: FrameType | None) -> None:
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(number)

        return handler


def _say(text: str) -> None:
    """Into Slurm's own output file."""
    print(text, flush=True)
