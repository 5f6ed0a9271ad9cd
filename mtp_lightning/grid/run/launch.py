"""Runs cells on this machine: one process each, a few at a time, none twice; a failure ends only its own cell."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from types import FrameType

from rich.console import Console

from mtp_lightning.files import DamagedError, FileLock
from mtp_lightning.grid.run.attempts import is_at_gate
from mtp_lightning.grid.run.cost import Expected, Pace
from mtp_lightning.grid.run.display import Display, Line, open_display, say
from mtp_lightning.grid.run.gpus import VISIBLE, default_workers, gpus_of, least_used, visible_gpus
from mtp_lightning.grid.run.process import (
    Attempt,
    Outcome,
    child_environment,
    failed_to_start,
    fit_command,
    fit_config,
    without_slurm,
)
from mtp_lightning.grid.run.state import LOCK, LOG, CellFiles, Progress, State, cell_state
from mtp_lightning.grid.run.status import blocked_by
from mtp_lightning.grid.spec.cells import Cell

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are the warnings of Slurm and others before the end."""
_ELSEWHERE_SECONDS = 1.0
_SAME_SIGNAL_SECONDS = 0.5


@dataclass(frozen=True)
class LaunchResult:
    outcomes: dict[str, Outcome]
    """By signature; cells that were not started have none."""
    stopped_by: int | None = None
    """The signal that asked the launcher to stop."""


class LocalLauncher:
    """Two launchers may work on one grid at the same time: each cell is locked while it runs, and a launcher waits for
    a cell that the other has locked, and does not run it again. SIGINT is handed on to the runs, as SIGTERM are those
    of `ASKED_TO_STOP`; they get `grace` seconds to save before they are killed; a second signal kills them at once."""

    def __init__(
        self,
        display: Display,
        workers: int = 1,
        grace: float = 30.0,
        interval: float = 0.2,
        expected: Expected | None = None,
    ) -> None:
        self.display, self.workers, self.grace, self.interval = display, workers, grace, interval
        self.expected = expected or Expected(dict)
        self.environment = child_environment(workers, without_slurm(os.environ))
        self.gpus = visible_gpus(os.environ)

    def launch(self, cells: Sequence[Cell]) -> LaunchResult:
        self.cells, self.began = list(cells), time.time()
        self.waiting = {cell.signature: cell for cell in cells}
        self.retry_at: dict[str, float] = {}
        self.retried: Counter[str] = Counter()
        self.active: dict[str, Attempt] = {}
        self.paces: dict[str, Pace] = {}
        self.on: dict[str, list[str]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.signals: list[tuple[int, float]] = []
        self.noted: set[str] = set()
        with _caught(self.signals):
            try:
                while self.active or (self.waiting and not self.signals):
                    if self.signals:
                        self._stop()
                    else:
                        self._start()
                    self._collect()
                    self._show()
                    time.sleep(self.interval)
            except BaseException:
                for attempt in self.active.values():
                    attempt.kill()
                raise
        return LaunchResult(self.outcomes, self.signals[0][0] if self.signals else None)

    def _start(self) -> None:
        for name, cell in list(self.waiting.items()):
            if len(self.active) >= self.workers:
                return
            if time.monotonic() < self.retry_at.get(name, 0.0) or self._waits_for_parent(cell):
                continue
            lock = FileLock(cell.directory / LOCK)
            try:
                cell.directory.mkdir(parents=True, exist_ok=True)
                # Running although we have the lock: started by hand in the cell's folder.
                if not lock.acquire() or (state := cell_state(cell.directory)) is State.RUNNING:
                    lock.release()
                    self.retry_at[name] = time.monotonic() + _ELSEWHERE_SECONDS
                elif (outcome := self._done_elsewhere(cell, state)) is not None:
                    lock.release()
                    self._ended(cell, outcome)
                else:
                    config, command = fit_config(cell), fit_command(cell)
                    environment = self.environment | self._place(cell)
                    attempt = Attempt.start(cell, lock, config, command, environment, self.display.note)
                    self.active[name], self.paces[name] = attempt, Pace(attempt.status.started_at, cell.pause_at)
                    del self.waiting[name]
            except OSError as error:
                lock.release()
                self._ended(cell, failed_to_start(cell, error, self.display.note))

    def _place(self, cell: Cell) -> dict[str, str]:
        """On the GPUs with the fewest of our runs."""
        used = [gpu for name in self.active for gpu in self.on[name]]
        self.on[cell.signature] = chosen = least_used(self.gpus, used, gpus_of(cell, len(self.gpus)))
        return {VISIBLE: ",".join(chosen)} if chosen else {}

    def _waits_for_parent(self, cell: Cell) -> bool:
        """Whether a cell cannot begin now: the one whose weights it begins with is not finished. If that one ended
        otherwise, so has this one."""
        if not cell.follows:
            return False
        name = str(cell.parent)
        if name in self.waiting or name in self.active:
            return True
        folder = cell.directory.parent / name
        state = self.outcomes[name].state if name in self.outcomes else cell_state(folder)
        if state is State.RUNNING:
            self.retry_at[cell.signature] = time.monotonic() + _ELSEWHERE_SECONDS
        elif state is not State.FINISHED:
            self._ended(cell, Outcome(State.BLOCKED, blocked_by(cell, state)))
        return state is not State.FINISHED

    def _done_elsewhere(self, cell: Cell, state: State) -> Outcome | None:
        """The outcome, if another launcher ran the cell since this one began; its failure is not tried again here. Nor
        is a cell run whose files are damaged."""
        files = CellFiles.read(cell.directory)
        if state in (State.FINISHED, State.DAMAGED):
            return Outcome(state, files.damaged)
        if is_at_gate(cell, files):
            return Outcome(State.AT_GATE)
        if self.retried[cell.signature]:
            return None
        recent = files.status is not None and (files.status.ended_at or 0.0) >= self.began
        return Outcome(state, files.reason) if state is State.FAILED and recent else None

    def _stop(self) -> None:
        signum, at = self.signals[0]
        asked = [attempt for attempt in self.active.values() if attempt.stopped_by is None]
        if asked:
            self.display.note(
                f"stopping: {len(asked)} running, with {self.grace:g} s to save; once more ends them at once"
            )
        for attempt in asked:
            attempt.stop(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)
        # Wrappers (make, a shell) pass on a Ctrl-C that we already got from the terminal: that is not a second one.
        again = self.signals[-1][1] - at > _SAME_SIGNAL_SECONDS
        if again or time.monotonic() - at > self.grace:
            for attempt in self.active.values():
                attempt.kill()

    def _collect(self) -> None:
        for name, attempt in list(self.active.items()):
            outcome = attempt.poll(self.display.note)
            if outcome is None:
                continue
            del self.active[name]
            self._ended(attempt.cell, outcome)
            again = outcome.state is State.FAILED and not CellFiles.read(attempt.cell.directory).diverged
            if again and self.retried[name] < attempt.cell.retry and not self.signals:
                self.retried[name] += 1
                self.display.note(f"{attempt.cell.label}: again, {self.retried[name]} of {attempt.cell.retry}")
                self.waiting[name] = attempt.cell
                del self.outcomes[name]

    def _ended(self, cell: Cell, outcome: Outcome) -> None:
        self.waiting.pop(cell.signature, None)
        self.outcomes[cell.signature] = outcome
        if outcome.state in (State.FAILED, State.DAMAGED, State.BLOCKED):
            text = f"{cell.label}: {outcome.state}: {outcome.reason}"
            if outcome.log:
                lines = "".join(f"\n    {line}" for line in outcome.log.splitlines())
                text += f"\n  the end of {cell.directory / LOG}:{lines}"
            self.display.note(text)

    def _show(self) -> None:
        lines = [self._line(cell) for cell in self.cells]
        self.display.update(lines, self._seconds_left(lines))

    def _line(self, cell: Cell) -> Line:
        name = cell.signature
        if name in self.outcomes:
            state = self.outcomes[name].state.value
        elif name in self.active:
            state = "running"
        else:
            state = "elsewhere" if name in self.retry_at else "waiting"
        if state == "waiting":
            return Line(cell.label, state)
        progress = self._progress(cell)
        left = self.paces[name].seconds_left(progress) if name in self.active else None
        if progress is None:
            return Line(cell.label, state)
        return Line(
            cell.label,
            state,
            progress.step,
            progress.max_steps,
            progress.phase,
            progress.loss,
            progress.tokens_per_second,
            left,
        )

    def _progress(self, cell: Cell) -> Progress | None:
        """A file that cannot be read now is named once, and ends nothing: it may be readable again."""
        try:
            return Progress.read(cell.directory)
        except DamagedError as error:
            if str(error) not in self.noted:
                self.noted.add(str(error))
                self.display.note(f"{cell.label}: damaged: {error}; the cell runs on")
            return None

    def _seconds_left(self, lines: Sequence[Line]) -> float | None:
        """None while it is not known of a cell. What waits, and of which nothing is known, takes as long as those that
        ended here. Whoever runs a cell elsewhere takes a share of what waits."""
        if not self.active and not self.waiting:
            return 0.0
        known = self.expected.seconds(len(self.outcomes))
        ended = [o.seconds for o in self.outcomes.values() if o.state is State.FINISHED and o.seconds]
        by_pace = {cell.signature: line.seconds_left for cell, line in zip(self.cells, lines)}
        elsewhere = [name for name in self.waiting if name in self.retry_at]

        def seconds(name: str) -> float | None:
            if (pace := by_pace[name]) is not None:
                return pace
            return known.get(name, mean(ended) if ended else None)

        at_work = [seconds(name) for name in (*self.active, *elsewhere)]
        queued = [seconds(name) for name in self.waiting if name not in self.retry_at]
        found = [one for one in (*at_work, *queued) if one is not None]
        if len(found) < len(at_work) + len(queued):
            return None
        return max([sum(found) / (self.workers + len(elsewhere)), *found])


def run_here(todo: Sequence[Cell], of: int, workers: int | None, expected: Expected) -> LaunchResult:
    """Run cells, `todo` of the `of` cells of a grid, and show how far they are.

    Args:
        workers: cells at a time; None: `default_workers`.
        expected: asked again as cells end and run, for what is left in all.
    """
    workers = workers or default_workers(todo, len(visible_gpus(os.environ)))
    threads = child_environment(workers, os.environ)["OMP_NUM_THREADS"]
    each = f"{threads} thread{'s' if threads != '1' else ''} each"
    say(f"{len(todo)} of {of} cells to run, {workers} at a time with {each}", error=True)
    display = open_display(Console(stderr=True))
    try:
        return LocalLauncher(display, workers, expected=expected).launch(todo)
    finally:
        display.close()


@contextmanager
def _caught(signals: list[tuple[int, float]]) -> Iterator[None]:
    """Signals that ask us to stop are noted in `signals` instead of ending the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, _frame: FrameType | None) -> None:
        signals.append((signum, time.monotonic()))

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, *ASKED_TO_STOP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
