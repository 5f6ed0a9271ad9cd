"""How this platform measures: all contenders interleaved in one run, threads pinned and printed, medians and bests.

Single figures of a shared machine mean little; a ratio of two things timed alternately means a lot.
"""

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from rich.console import Console

Name = TypeVar("Name", bound=str)


IDLE = 0.9
"""Share of all processors' time that has to be idle for a machine to count as quiet."""
SILENCE = 10.0
"""Seconds between lines of progress where there is no terminal."""
STEADY = 0.8
"""Below this share of the best rate the median is not to be judged."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender. `cpu` counts every thread of the process and is robust against a busy machine."""

    median: float
    best: float
    cpu: float
    cpu_best: float


class IdleGate:
    """Called before a timed step, waits until nobody else uses the machine; a second thread needs that.

    OpenMP's threads wait for each other at every operation: one of them off the processor for a scheduler's slice
    costs more than the operation. Waits `patience` seconds over its whole life, then lets everything pass and counts.
    """

    def __init__(self, patience: float, progress: Callable[[str], None], window: float = 0.2) -> None:
        self.left, self.window = patience, window
        self.progress = progress
        self.passed_busy = 0
        """Steps that ran on a busy machine."""

    def __call__(self) -> None:
        while (share := idle_share(self.window)) < IDLE:
            if self.left <= 0:
                self.passed_busy += 1
                return
            self.progress(f"waiting for a quiet machine ({share:.0%} idle; at most {self.left:.0f} s more)")
            self.left -= self.window


def idle_share(seconds: float) -> float:
    """Share of all processors' time spent idle during the next `seconds`; 1 where the system does not say."""
    before = _processor_ticks()
    if before is None:
        return 1.0
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
    before_step: Callable[[], None] = lambda: None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[Name, Timing]:
    """Time every contender once a round, in turn, after `warmup` uncounted rounds.

    Args:
        before_step: called before each counted step, outside the time.
    """
    wall: dict[Name, list[float]] = {name: [] for name in contenders}
    cpu: dict[Name, list[float]] = {name: [] for name in contenders}
    for counted in range(-warmup, rounds):
        for name, run in contenders.items():
            progress(f"{name}: " + ("warm-up" if counted < 0 else f"round {counted + 1} of {rounds}"))
            if counted >= 0:
                before_step()
            synchronize(device)
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            if counted >= 0:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - started_cpu)
    return {n: Timing(median(wall[n]), min(wall[n]), median(cpu[n]), min(cpu[n])) for n in contenders}


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
    """Make the peak start from here; returns the resident bytes of this moment."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak since the process began is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def describe_machine(device: torch.device, threads: int) -> dict[str, str | int]:
    """What a figure has to be quoted with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {"device": name, "threads": threads, "torch": torch.__version__, "python": platform.python_version()}


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
