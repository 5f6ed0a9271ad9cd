"""Takes rights from this process for good: namespaces (the server's), then limits, user id, Landlock and seccomp (each
program's). Every function raises OSError where the kernel refuses, so that nothing goes on half confined.

Source of the Landlock constants: kernel documentation, userspace-api/landlock.html.
"""

import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from mtp_lightning.evaluation.sandbox.filters import assemble, rules

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE, _READ, _READ_FOLDER, _TRUNCATE = 1, 2, 4, 8, 1 << 14
_RIGHTS = (13, 14, 15, 15, 16)
"""How many rights on files an ABI knows; the last goes on."""
READABLE = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/urandom")
_NEW_MOUNTS, _NEW_NAME, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_DEATH_SIGNAL, _SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER = 1, 22, 38, 2
_LATE = 2000
"""Times its CPU time: more than any program has by the wall clock. Ends it where no server is left to."""
FIRST_ID, IDS = 200_000, 2**30
"""User ids that belong to nobody; each program of root's gets one of its own."""


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(what: str, number: int, *args: object) -> int:
    return _checked(_libc().syscall(number, *args), what)


def landlock_abi() -> int:
    """Version of the kernel's Landlock; 0 where it has none, or may not be used."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, 1)))


def landlock_rules(abi: int) -> int:
    """A descriptor for `restrict`: read and execute the interpreter and the system's libraries, write to /dev/null."""
    handled = (1 << _RIGHTS[min(abi, len(_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=QQQ", handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    places = dict.fromkeys((*READABLE, *interpreter()), _EXECUTE | _READ | _READ_FOLDER)
    for place, rights in (places | {"/dev/null": _READ | _WRITE | _TRUNCATE}).items():
        if not os.path.exists(place):
            continue
        folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rights &= handled if os.path.isdir(place) else handled & ~_READ_FOLDER
        _syscall("landlock_add_rule", _ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, folder), 0)
        os.close(folder)
    return ruleset


def interpreter() -> list[str]:
    """Folders that the interpreter, without any environment's packages, consists of."""
    return sorted({sys.base_prefix, sys.base_exec_prefix})


def enter_namespaces() -> bool:
    """No network, own process numbers, own System V memory for this process's children; False where there are none to
    be had. The process numbers begin with the next child, which is the new world's init: all die with it.

    Tried in a fork first: where a system allows namespaces and then nothing in them (AppArmor's
    `apparmor_restrict_unprivileged_userns`, as in Ubuntu 24.04), this process would be left half in them."""
    child = os.fork()
    if child == 0:
        try:
            _enter_namespaces()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        return False
    _enter_namespaces()
    return True


def _enter_namespaces() -> None:
    user, group = os.getuid(), os.getgid()
    flags = _NEW_MOUNTS | _NEW_NAME | _NEW_IPC | _NEW_PIDS | _NEW_NET | (_NEW_USER if user else 0)
    _checked(_libc().unshare(flags), "unshare")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", name).write_text(text, encoding="ascii")
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)  # nothing that is mounted from here on is seen outside
    if not user:
        for prefix in interpreter():
            uncover(Path(prefix))


def uncover(folder: Path) -> None:
    """Where a folder above, as /root, lets nobody in: in this mount namespace, hold nothing in it but `folder`."""
    closed = next((above for above in reversed(folder.parents) if not above.stat().st_mode & 1), None)
    if closed is None:
        return
    inside = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    _mount("none", str(closed), "tmpfs", 0, "mode=755,size=1m")
    folder.mkdir(parents=True, mode=0o755)
    _mount(f"/proc/self/fd/{inside}", str(folder), None, _BIND | _RECURSIVE)
    os.close(inside)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _checked(_libc().mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount on {target}")


def die_with_parent() -> None:
    _checked(_libc().prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_limits(cpu_seconds: float, memory_mb: int) -> None:
    """The kernel's own limits. CPU time in whole seconds, by SIGXCPU.

    A program may ignore that; the server ends it then. The kernel's SIGKILL is not to, since it counts whole ticks: one
    that is awake at each tick's moment alone would be killed after a tenth of its time, as if by the machine."""
    seconds = math.ceil(cpu_seconds)
    for name, soft, hard in (
        ("AS", memory_mb << 20, memory_mb << 20), ("CPU", seconds, _LATE * seconds), ("FSIZE", 1 << 20, 1 << 20),
        ("NOFILE", 64, 64), ("NPROC", 1, 1), ("CORE", 0, 0), ("MSGQUEUE", 0, 0), ("MEMLOCK", 0, 0),
    ):  # fmt: skip
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            most = resource.getrlimit(kind)[1]
            values = (value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard))
            resource.setrlimit(kind, tuple(values))  # type: ignore[arg-type]


def become(number: int) -> None:
    """Root becomes user `number` of those that belong to nobody, for good; others keep their id. No capabilities."""
    if os.getuid() == 0:
        first, count = _usable_ids()
        if count:
            user = first + number % count
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked(_libc().capset(header, bytes(24)), "capset")


def _usable_ids() -> tuple[int, int]:
    """(first, how many) of the ids that this user namespace has beside root's; a container may have few."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            maps = [tuple(map(int, line.split())) for line in file]
    except FileNotFoundError:  # bubblewrap's world has no /proc, and in its user namespace one id
        return 0, 0
    inside, _, count = max(maps, key=lambda line: line[2])
    first = max(inside, min(FIRST_ID, inside + count // 2), 1)
    return first, min(IDS, inside + count - first)


def restrict(ruleset: int | None, more: Sequence[object] = ()) -> None:
    """Landlock (a descriptor of `landlock_rules`; None: whoever started the server has confined it), then seccomp."""
    _checked(_libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    if ruleset is not None:
        _syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    install(assemble(list(rules(os.getpid())), platform.machine()))


def install(code: bytes) -> None:
    """A seccomp filter, for good."""
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    _checked(_libc().prctl(_SET_SECCOMP, _FILTER, program, 0, 0), "prctl(PR_SET_SECCOMP)")
