"""The machine: its processor's name and what that computes natively, how a process's C library treats freed memory,
which processes live."""

import ctypes
import functools
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

from mtp_lightning.errors import InputError


@functools.cache
def cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX on x86, FEAT_BF16 on Arm: what Linux says of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = {flag for line in file if line.lower().startswith(("flags", "features")) for flag in line.split()}
    except OSError:
        return False  # not Linux: oneDNN's fast paths are unknown there
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def processor_name() -> str:
    """As the system says it. Of an Arm processor Linux says numbers: who made it, and which of theirs it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if name := said.get("model name"):
        return name
    numbers = [f"{key} {said[key]}" for key in ("CPU implementer", "CPU part") if key in said]
    return ", ".join([platform.machine(), *numbers])


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next allocation; False where the C library is another.

    By default large tensors are mapped afresh and returned to the system every step, and each of their pages faults
    anew: 10 % of a training step's processor time at d = 256, 20 % with four heads and a small vocabulary. The peak
    stays as it is; the process then holds it to its end.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # malloc.h; mallopt takes ints
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))


def check_device(name: str) -> None:
    """
    Args:
        name: cpu or cuda, of a flag `--device`.

    Raises:
        InputError: a GPU that torch does not see.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        why = "this torch is built for CPUs" if torch.version.cuda is None else "torch sees no GPU here"
        raise InputError(f"device is cuda, and {why}: leave it out, or give cpu")


def machine_memory() -> int | None:
    """Bytes that this process could have: of the machine, or what its control groups leave it; None where the system
    does not say."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):
        return None
    for file in _limit_files():
        try:
            text = file.read_text().strip()
        except OSError:
            continue  # this version of control groups is not used, or the group has no limit
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _limit_files() -> Iterator[Path]:
    """Where Linux keeps the limits of this process's group and of those above it, for both versions."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        if controllers and "memory" not in controllers.split(","):
            continue
        group = top / path.lstrip("/")
        yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(top))


def process_token(pid: int) -> str | None:
    """Distinguishes a living process from another one with the same number; None when it is gone or a zombie. To be
    compared by `lives`, for of another user's Linux may hide all but that there is one (hidepid)."""
    fields: list[bytes] = []
    try:  # bytes, as a name may be cut inside a character
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except ProcessLookupError:
        return None
    except (FileNotFoundError, PermissionError):
        if not _answers(pid):
            return None
    if fields and fields[0] in b"ZX":
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return "alive"  # a later one with its number looks the same
    return f"{boot}:{fields[19].decode() if fields else _HIDDEN}"


_HIDDEN = "?"


def lives(pid: int, token: str) -> bool:
    """Whether the process that had this number and this token does, or, if it is hidden, may."""
    return process_token(pid) in (token, f"{token.partition(':')[0]}:{_HIDDEN}")


def _answers(pid: int) -> bool:
    """Whether there is a process of this number, whoever's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0  # others are groups of processes


def this_process() -> str:
    """Host, machine, namespace of process numbers, number and token of this process, for `is_gone`."""
    where = [socket.gethostname(), _machine_id(), _namespace()]
    return " ".join([*where, str(os.getpid()), process_token(os.getpid()) or "-"])


def is_gone(process: str) -> bool:
    """Whether a process that `this_process` once described is certainly gone. Of another machine, or in another
    container of this one, nothing is known, and so it is not."""
    parts = process.split(" ")
    if len(parts) != 5 or not parts[3].isdecimal() or parts[:2] != [socket.gethostname(), _machine_id()]:
        return False
    boot, mine = (token.partition(":")[0] for token in (parts[4], process_token(os.getpid()) or "-"))
    if boot != mine:
        return ":" in parts[4]  # this machine was started anew
    return parts[2] == _namespace() and not lives(int(parts[3]), parts[4])


def is_here(process: str) -> bool:
    """Whether a process that `this_process` once described certainly lives: on this machine, in this container."""
    parts = process.split(" ")
    if len(parts) != 5 or not parts[3].isdecimal() or parts[:3] != [socket.gethostname(), _machine_id(), _namespace()]:
        return False
    return ":" in parts[4] and process_token(int(parts[3])) == parts[4]  # without one a later process looks the same


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="utf-8").strip() or "-"
    except OSError:
        return "-"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"
