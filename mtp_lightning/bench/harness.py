"""How this platform measures: all contenders interleaved in one run, threads pinned and printed, medians and bests.

Single figures of a shared machine mean little; a ratio of two things timed alternately means a lot.
"""

import math
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mtp_lightning.errors import InputError
from mtp_lightning.machine import processor_name

if TYPE_CHECKING:
    from rich.console import Console

Name = TypeVar("Name", bound=str)


IDLE = 0.9
"""Share of all processors' time that has to be idle for a machine to count as quiet."""
SILENCE = 10.0
"""Seconds between lines of progress where there is no terminal."""
STEADY = 0.8
"""Below this share of the best rate the median is not to be judged."""
LEAST_ROUNDS = 5
"""With fewer on a quiet machine it is not to be judged either."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, of each round."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    """Of every thread of the process: robust against a busy machine."""
    busy: int | None = None
    """Rounds that began while others used the machine; None where that was not looked at."""

    def judged(self, by_cpu: bool) -> tuple[float, ...]:
        return self.cpu if by_cpu else self.wall

    def figures(self, by_cpu: bool) -> dict[str, Any]:
        """For a row of a table; `seconds` are what its ratios are made of (`over`)."""
        return {
            "median": median(self.wall), "best": min(self.wall), "cpu": median(self.cpu), "cpu_best": min(self.cpu),
            "rounds": len(self.wall), "busy": self.busy, "steady": self.is_steady(by_cpu),
            "seconds": list(self.judged(by_cpu)),
        }  # fmt: skip

    def is_steady(self, by_cpu: bool) -> bool:
        seconds = self.judged(by_cpu)
        return is_steady(len(seconds), self.busy, min(seconds) / median(seconds))


def over(seconds: Sequence[float], base: Sequence[float]) -> float:
    """How many times as long as another's: the median of the rounds' ratios, since a machine whose pace drifts from
    round to round has the same for both within one."""
    return median(mine / its for mine, its in zip(seconds, base, strict=True))


def is_steady(rounds: int, busy: int | None, best_over_median: float) -> bool:
    """Whether a median is to be judged: of enough rounds on a quiet machine, and near the best."""
    return rounds - (busy or 0) >= LEAST_ROUNDS and best_over_median >= STEADY


def judged_by_cpu(device: str, threads: int) -> bool:
    """One thread's processor time is what it would take undisturbed, but for caches and memory that others use too;
    several threads' waiting for each other is not in it, so those are judged by the clock on a quiet machine."""
    return device == "cpu" and threads == 1


def count_busy(said: Sequence[bool | None]) -> int | None:
    """What a `Timing` says of rounds of which a gate said this."""
    known = [busy for busy in said if busy is not None]
    return sum(known) if known else None


def check_counts(counts: Mapping[str, int]) -> None:
    """
    Raises:
        InputError: a flag that is below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it has to be at least 1")


def check_patience(seconds: float) -> None:
    """
    Raises:
        InputError: nothing that could be waited.
    """
    if not 0 <= seconds < math.inf:  # nor NaN, with which a gate waits for ever
        raise InputError(f"patience is {seconds}: it has to be a number of seconds, at least 0")


class IdleGate:
    """Called before a timed step, waits until nobody else uses the machine, and says whether somebody still does.

    A second thread needs that: OpenMP's threads wait for each other at every operation, and one of them off the
    processor for a scheduler's slice costs more than the operation. Waits `patience` seconds over its whole life, then
    lets everything pass and counts. A single thread does not wait (`patience` 0): others lengthen its processor time
    little, but they do, by the caches and the memory that all use.
    """

    def __init__(self, patience: float, progress: Callable[[str], None] = print, window: float = 0.2) -> None:
        self.left, self.window = patience, window
        self.progress = progress
        self.steps = 0
        """Of which the system said how busy the machine was."""
        self.passed_busy = 0
        """Of these, on a busy machine."""

    def __call__(self) -> bool | None:
        """Whether the machine is busy; None where the system does not say."""
        while (share := idle_share(self.window)) is not None:
            if share >= IDLE or self.left <= 0:
                self.steps += 1
                self.passed_busy += share < IDLE
                return share < IDLE
            self.progress(f"waiting for a quiet machine ({share:.0%} idle; at most {self.left:.0f} s more)")
            self.left -= self.window
        return None

    @property
    def busy_steps(self) -> int | None:
        return self.passed_busy if self.steps else None

    def summary(self) -> str:
        """What a table says of it."""
        if not self.steps:
            return "whether the machine was busy was not looked at"
        return f"{self.passed_busy} of {self.steps} steps on a busy machine"


def not_looked_at() -> None:
    """In place of a gate, where the processor does not do the work."""


def idle_share(seconds: float) -> float | None:
    """Share of all processors' time spent idle during the next `seconds`; None where the system does not say."""
    before = _processor_ticks()
    if before is None:
        return None
    time.sleep(seconds)
    after = _processor_ticks()
    assert after is not None
    idle, total = (late - early for late, early in zip(after, before))
    return idle / total if total else 1.0


def _processor_ticks() -> tuple[int, int] | None:
    """(idle, all) clock ticks of all processors since boot."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]  # guests are counted in the first already
    except OSError:
        return None
    return ticks[3] + ticks[4], sum(ticks)


@contextmanager
def shown_progress(console: "Console") -> Iterator[Callable[[str], None]]:
    """Says what a benchmark does at the moment: on a terminal in one line that changes, elsewhere in a line whenever
    SILENCE seconds have passed since the last."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    last = float("-inf")

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SILENCE:
            console.print(text, highlight=False)
            last = time.monotonic()

    yield say


def pin_threads(threads: int) -> None:
    """Use exactly `threads` threads in this process from here on."""
    torch.set_num_threads(threads)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    contenders: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warmup: int = 1,
    before_step: Callable[[], bool | None] = not_looked_at,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[Name, Timing]:
    """Time every contender once a round, in turn, after `warmup` uncounted rounds.

    Args:
        before_step: called before each counted step, outside the time; says whether the machine is busy.
    """
    wall: dict[Name, list[float]] = {name: [] for name in contenders}
    cpu: dict[Name, list[float]] = {name: [] for name in contenders}
    busy: dict[Name, list[bool | None]] = {name: [] for name in contenders}
    for counted in range(-warmup, rounds):
        for name, run in contenders.items():
            progress(f"{name}: " + ("warm-up" if counted < 0 else f"round {counted + 1} of {rounds}"))
            if counted >= 0:
                busy[name].append(before_step())
            synchronize(device)
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            if counted >= 0:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    return {name: Timing(tuple(wall[name]), tuple(cpu[name]), count_busy(busy[name])) for name in contenders}


def peak_memory_bytes(prepare: Callable[..., Callable[[], object]], threads: int, *args: Any) -> int:
    """Bytes at the peak of `prepare(*args)()` above what `prepare` had allocated, in a process of its own.

    On CUDA what the allocator gave out; on the CPU resident memory, whose high-water mark Linux lets us reset. There
    the child's malloc maps every tensor afresh and unmaps it when freed: a heap that keeps freed memory for later
    would hide that much of the next allocation.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report_peak, args=(sender, prepare, threads, args))
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    try:
        child.start()
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        child.join()  # before that its exit status is not known
        raise RuntimeError(f"the measured process died with exit status {child.exitcode}") from None
    finally:
        child.join()


def _report_peak(
    sender: Connection, prepare: Callable[..., Callable[[], object]], threads: int, args: tuple[Any, ...]
) -> None:
    pin_threads(threads)
    run = prepare(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        sender.send(torch.cuda.max_memory_allocated() - before)
        return
    before = _reset_high_water_mark()
    run()
    sender.send(_status_bytes("VmHWM") - before)


def _reset_high_water_mark() -> int:
    """Make the peak start from here, where the system can; returns the resident bytes of this moment."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    except OSError:  # not Linux: the peak since the process began is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def describe_machine(device: torch.device, threads: int) -> dict[str, str | int]:
    """What a figure has to be quoted with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": name, "threads": threads, "torch": torch.__version__, "python": platform.python_version()}
