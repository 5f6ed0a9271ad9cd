"""The seccomp filter as a function: its BPF, interpreted here, against a table of calls."""

import errno
import re
import signal
import socket
import struct
from pathlib import Path

import pytest

from mtp_lightning.evaluation.sandbox.filters import ALLOW, AUDIT, ERRNO, KILL, NUMBERS, assemble, rules

PID = 4321
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
I386 = 0x40000003


def interpret(code: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = AUDIT["x86_64"]) -> int:
    """What the kernel would do: classic BPF over `struct seccomp_data`, of which only these instructions are used."""
    filled = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, arch, 0, *(argument % 2**64 for argument in filled))
    at, a = 0, 0
    while True:
        operation, if_true, if_false, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            assert k % 4 == 0
            a = struct.unpack_from("=I", data, k)[0]
        elif operation == 0x54:
            a &= k
        elif operation == 0x15:
            at += if_true if a == k else if_false
        elif operation == 0x35:
            at += if_true if a >= k else if_false
        else:
            assert operation == 0x06
            return int(k)


READ_ONLY_TRUNCATE, WRITE_TRUNCATE = 0o1000, 0o1001
TABLE = [
    ("ptrace", (16, 1), EPERM), ("kill", (PID, 9), EPERM), ("kill", (PID, 0), EPERM), ("tkill", (PID, 6), EPERM),
    ("tgkill", (PID, PID, signal.SIGABRT), ALLOW), ("tgkill", (PID, PID, signal.SIGKILL), EPERM),
    ("tgkill", (PID + 1, PID + 1, signal.SIGABRT), EPERM), ("tgkill", (PID + 2**32, PID, signal.SIGABRT), ALLOW),
    ("rt_sigqueueinfo", (1, 9), EPERM), ("prlimit64", (0, 7), ALLOW), ("prlimit64", (1, 0), EPERM),
    ("prlimit64", (0, 0, 0, 4096), ALLOW), ("prlimit64", (0, 0, 4096), EPERM), ("prlimit64", (0, 0, 2**40), EPERM),
    ("prlimit64", (0, 3, 4096), ALLOW), ("prlimit64", (0, 2**32, 4096), EPERM), ("setrlimit", (0, 4096), EPERM),
    ("setrlimit", (3, 4096), ALLOW), ("setrlimit", (2**32, 4096), EPERM), ("timer_create", (1, 4096, 4096), EPERM),
    ("prctl", (1, 0), EPERM), ("prctl", (1, 9), EPERM), ("prctl", (15, 4096), ALLOW), ("prctl", (22, 2), ALLOW),
    ("clone", (0x1200011,), EPERM), ("clone3", (), ENOSYS), ("openat2", (), ENOSYS),
    ("openat", (-100, 0, 0), ALLOW), ("openat", (-100, 0, WRITE_TRUNCATE), ALLOW),
    ("openat", (-100, 0, READ_ONLY_TRUNCATE), EPERM), ("openat", (-100, 0, READ_ONLY_TRUNCATE | 0o2000000), EPERM),
    ("fcntl", (1, 1), ALLOW), ("fcntl", (1, 8), EPERM), ("fcntl", (1, 10), EPERM), ("fcntl", (1, 15), EPERM),
    ("ioctl", (1, 0x5401), ALLOW), ("ioctl", (1, 0x5451), ALLOW), ("ioctl", (1, 0x5412), EPERM),
    ("ioctl", (1, 0x40086602), EPERM), ("ioctl", (1, 0x8901), EPERM), ("ioctl", (1, 0x5401 + 2**32), ALLOW),
    ("socket", (socket.AF_UNIX,), EPERM), ("socket", (socket.AF_INET,), EPERM), ("connect", (), EPERM),
    ("socketpair", (socket.AF_UNIX,), ALLOW), ("socketpair", (socket.AF_INET,), EPERM),
    ("sendto", (3, 1, 1, 0, 0), ALLOW), ("sendto", (3, 1, 1, 0, 0x7F0000001000), EPERM),
    ("sendto", (3, 1, 1, 0, 0x100000000), EPERM), ("sendmsg", (), EPERM), ("fchmod", (), EPERM),
    ("utimensat", (), EPERM), ("fsetxattr", (), EPERM), ("shmget", (), EPERM), ("mq_open", (), EPERM),
    ("mount", (), EPERM), ("unshare", (), EPERM), ("io_uring_setup", (), EPERM), ("keyctl", (), EPERM),
]  # fmt: skip


@pytest.mark.parametrize("machine", AUDIT)
def test_calls_are_refused_by_name_and_arguments(machine: str) -> None:
    code = assemble(list(rules(PID)), machine)
    column = list(AUDIT).index(machine)
    for name, arguments, expected in TABLE:
        number = NUMBERS[name][column]
        assert number is not None
        found = interpret(code, number, arguments, AUDIT[machine])
        assert (name, arguments, hex(found)) == (name, arguments, hex(expected))


@pytest.mark.parametrize("machine", AUDIT)
def test_everything_else_is_let_through_up_to_what_the_list_knows(machine: str) -> None:
    code = assemble(list(rules(PID)), machine)
    known = {numbers[list(AUDIT).index(machine)] for numbers in NUMBERS.values()}
    for number in range(450):
        if number not in known:
            assert interpret(code, number, (), AUDIT[machine]) == ALLOW, number
    for number in (450, 452, 463, 469, 100_000):
        assert interpret(code, number, (), AUDIT[machine]) == ENOSYS, number


def test_other_machines_calls_are_killed() -> None:
    code = assemble(list(rules(PID)), "x86_64")
    assert interpret(code, 39, arch=I386) == KILL
    assert interpret(code, 0x40000000 + 39) == KILL
    assert interpret(code, 0xFFFFFFFF) == KILL
    assert interpret(code, 39) == ALLOW


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    text = Path(header).read_text()
    real = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    found = {name: numbers[column] for name, numbers in NUMBERS.items()}
    assert found == {name: real.get(name) for name in NUMBERS}
