"""A warm interpreter that forks a confined child for each program. Reads requests from standard input and writes
answers to standard output: JSON after its length in 4 bytes. Started by `run.py` with an empty environment.

Confined in a fork, a program costs no start of an interpreter: filters, limits and user ids need no `exec`.
"""

import contextlib
import gc
import importlib
import json
import os
import secrets
import selectors
import signal
import struct
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from mtp_lightning.evaluation.sandbox import confine
from mtp_lightning.evaluation.sandbox.driver import SAID, UNSAID, run_program

WARM = (
    "typing", "collections.abc", "itertools", "functools", "math", "cmath", "re", "heapq", "bisect", "operator",
    "string", "random", "copy", "datetime", "statistics", "fractions", "decimal", "hashlib", "json", "dataclasses",
    "enum", "queue", "calendar", "textwrap", "array",
)  # fmt: skip
"""Modules that programs of the benchmarks import."""
REPORT_BYTES = 128 << 20
"""Most that the results of calls may have."""
BUSY = 0.02
"""A program that has had this share of the time for its work is not asleep: on a machine with much else to do it
goes on to its limit of CPU time."""
_BRIEF = 0.05
"""Seconds between two looks at what a program has taken, at least."""


class Settings(NamedTuple):
    """How programs are confined. `first_id` is where this server's user ids begin."""

    unsafe: bool
    landlock: bool
    namespaces: bool
    first_id: int


def main(text: str) -> None:
    settings = Settings(**json.loads(text))
    spaces = settings.namespaces and confine.enter_namespaces()
    if spaces and (child := os.fork()):  # the child is process 1 of the new world
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    if spaces:
        confine.die_with_parent()
    for name in WARM:
        importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if path.startswith(tuple(confine.interpreter()))]
    abi = confine.landlock_abi() if settings.landlock else 0
    ruleset = confine.landlock_rules(abi) if abi else None
    wake, woken = os.pipe()
    for end in (wake, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    gc.freeze()
    _write({"landlock": abi, "namespaces": spaces})
    number = settings.first_id
    while (request := _read()) is not None:
        number += 1
        _write(run_one(request, settings, ruleset, number, wake))


def run_one(
    request: Mapping[str, Any], settings: Settings, ruleset: int | None, number: int, wake: int
) -> dict[str, Any]:
    """Fork, confine, run, watch; the fields of an `Outcome`."""
    nonce = secrets.token_hex(16)
    given = os.memfd_create("stdin")
    with open(given, "wb", closefd=False) as file:
        file.write(request["stdin"].encode(errors="replace"))  # half a surrogate pair
    os.lseek(given, 0, os.SEEK_SET)
    quiet = request["check"] is not None or request["entry"] is not None
    pipes = [os.pipe() for _ in range(1 if quiet else 3)]
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _be_the_program(request, settings, ruleset, number, nonce, given, [write for _, write in pipes])
        finally:
            os._exit(1)
    for descriptor in (given, *(write for _, write in pipes)):
        os.close(descriptor)
    return _watch(child, request["limits"], nonce, start, [read for read, _ in pipes], wake)


def _be_the_program(
    request: Mapping[str, Any], settings: Settings, ruleset: int | None, number: int, nonce: str, given: int,
    writes: list[int],
) -> None:  # fmt: skip
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    report = os.dup(writes[0])
    nowhere = os.open(os.devnull, os.O_WRONLY)
    write = os.write

    def say(verdict: str, detail: str) -> None:
        content = memoryview(f"{nonce} {verdict}\n{detail}".encode(errors="replace"))
        while content:
            content = content[write(report, content) :]

    try:
        os.setsid()
        for target, source in enumerate((given, *(writes[1:] or (nowhere, nowhere)))):
            os.dup2(source, target)
        kept = {0, 1, 2, report} | ({ruleset} if ruleset is not None else set())
        for low, high in pairwise([*sorted(kept), 4096]):
            os.closerange(low + 1, high)
        limits = request["limits"]
        if not settings.unsafe:
            os.chdir("/")
            confine.become(number)
            confine.die_with_parent()
        confine.set_limits(limits["cpu_seconds"], limits["memory_mb"])
        if not settings.unsafe:
            confine.restrict(ruleset)
        if ruleset is not None:
            os.close(ruleset)
    except BaseException as error:
        say("infrastructure", f"{type(error).__name__}: {error}")
        os._exit(1)
    say("ready", "")
    run_program(request, say, nonce)


def _watch(
    child: int, limits: Mapping[str, Any], nonce: str, start: float, reads: list[int], wake: int
) -> dict[str, Any]:
    """Collect what a child writes until it has ended, or until it met a limit and was killed."""
    texts = {read: bytearray() for read in reads}
    most = {read: REPORT_BYTES if read == reads[0] else limits["output_kb"] << 10 for read in reads}
    most_cpu = limits["cpu_seconds"]
    deadline, look = start + limits["wall_factor"] * most_cpu, start + most_cpu  # it cannot have had all before
    limit, looked, before = "", start, 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(wake, selectors.EVENT_READ)
        for read in reads:
            os.set_blocking(read, False)
            selector.register(read, selectors.EVENT_READ)
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            for read in reads:
                if selector.get_map().get(read) and not _drain(read, texts[read], most[read]):
                    selector.unregister(read)
                if len(texts[read]) > most[read]:
                    limit = limit or "output"
            if ended:
                break
            now = time.monotonic()
            if not limit and now >= look:
                used = _cpu_seconds(child)
                if used > most_cpu:
                    limit = "cpu"
                elif now >= deadline:
                    limit = "" if used - before >= BUSY * (now - looked) else "wall"
                    before, looked, deadline = used, now, now + most_cpu
                look = min(deadline, now + max(_BRIEF, most_cpu - used))
            if limit:
                _kill(child)
            selector.select(1 if limit else max(0.0, look - time.monotonic()))
            _drain(wake, bytearray(), 1 << 16)
    _kill_group(child)
    for read in reads:
        os.close(read)
    cpu = usage.ru_utime + usage.ru_stime
    verdict, detail, limit = judge(bytes(texts[reads[0]]), nonce, status, cpu, most_cpu, limit)
    shown = [bytes(texts[read][: most[read]]).decode("utf-8", "replace") for read in reads[1:]] or ["", detail]
    return {
        "verdict": verdict, "cpu_seconds": cpu, "wall_seconds": time.monotonic() - start, "stdout": shown[0],
        "stderr": "" if verdict == "passed" and len(reads) == 1 else shown[1] or detail, "limit": limit,
        "result": detail if verdict == "passed" else "",
    }  # fmt: skip


def _cpu_seconds(child: int) -> float:
    """That a child has taken so far, by its CPU clock (Linux's clockid of a process: ~pid << 3 | 2), which needs no
    /proc."""
    return time.clock_gettime(~child << 3 | 2)


def judge(report: bytes, nonce: str, status: int, cpu: float, most_cpu: float, limit: str) -> tuple[str, str, str]:
    """(verdict, detail, limit) by what a child reported, and how it ended.

    Args:
        status: as `wait` gives it.
        limit: `cpu`, `wall` or `output` where it was killed for that.
    """
    parts = report.split(nonce.encode())
    words = [part.decode("utf-8", "replace").lstrip(" ").partition("\n")[::2] for part in parts[1:]]
    if words and words[0][0] == "infrastructure":
        return "infrastructure", words[0][1], ""
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if limit:
        return ("too_much_output" if limit == "output" else "timed_out"), f"limit: {limit}", limit
    if cpu > most_cpu or signalled == signal.SIGXCPU:
        return "timed_out", "limit: cpu", "cpu"
    if not words or signalled == signal.SIGKILL:  # it may not kill itself: the machine did, most likely for memory
        return "infrastructure", f"a program was killed from outside, or never began (status {status})", ""
    if len(words) == 2 and words[1][0] in SAID:
        return words[1][0], words[1][1], "memory" if words[1][0] == "out_of_memory" else ""
    if signalled:
        names = {number.value: number.name for number in signal.Signals}  # most real-time signals have none
        return "no_verdict", f"died by {names.get(signalled, f'signal {signalled}')}", ""
    if os.WEXITSTATUS(status) == UNSAID:
        return "no_verdict", "the verdict could not be written", ""
    return "exited", f"exit status {os.WEXITSTATUS(status)}", ""


def _drain(read: int, into: bytearray, most: int) -> bool:
    """Read what is there; False at the end. Past `most` bytes the rest stays where it is."""
    try:
        while len(into) <= most:
            content = os.read(read, 1 << 16)
            if not content:
                return False
            into += content
    except BlockingIOError:
        pass
    return True


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)


def _kill_group(child: int) -> None:
    """Unconfined programs may have left children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _read() -> dict[str, Any] | None:
    head = _exactly(4)
    return json.loads(_exactly(*struct.unpack("=I", head))) if head else None


def _exactly(count: int) -> bytearray:
    content = bytearray()
    while len(content) < count:
        more = os.read(0, min(count - len(content), 1 << 20))
        if not more:
            return bytearray()
        content += more
    return content


def _write(answer: Mapping[str, Any]) -> None:
    text = json.dumps(answer).encode()
    content = memoryview(struct.pack("=I", len(text)) + text)
    while content:
        content = content[os.write(1, content) :]
