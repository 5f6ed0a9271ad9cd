"""The seccomp filter as bytes: which system calls a confined program may not make.

A deny list, since the interpreter needs some 60 calls that differ between C libraries; calls newer than the list are
refused as if the kernel had none. Landlock holds the files' content; this list holds what Landlock leaves open: other
processes and their limits, sockets (it does not see a connection to a socket in a folder), modes, owners, times and
attributes of files, System V memory, flags of files by `ioctl`, watching folders.

Sources: kernel documentation, userspace-api/seccomp_filter.html and landlock.html; numbers from the kernel's
unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64), compared by a test where they are installed.
"""

import errno
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> its mark in `seccomp_data.arch`."""
X32 = 0x40000000
"""x86-64 calls from here on are those of the x32 ABI, under other numbers: all of them are killed."""
FIRST_UNKNOWN = 450
"""What was added to Linux after 5.16 has one number on all machines: `ENOSYS`."""

# name: (x86-64, aarch64); None where the machine has no such call
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261), "setrlimit": (160, 164),
    "timer_create": (222, 107), "prctl": (157, 167),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # new ones
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "clone3": (435, 435),
    # the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "userfaultfd": (323, 282), "memfd_secret": (447, 447), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "open_by_handle_at": (304, 265), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    # files, where Landlock does not look
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262), "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "fcntl": (72, 25),
    "ioctl": (16, 29),
    # System V and POSIX queues, and shared memory
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # sockets; only `socketpair`, which asyncio needs, stays
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "socketpair": (53, 199),
}  # fmt: skip
TESTED = ("tgkill", "prlimit64", "setrlimit", "prctl", "open", "openat", "fcntl", "ioctl", "sendto", "socketpair")
"""Calls that are refused by their arguments; all others of the list are refused always."""
NO_SUCH_CALL = ("clone3", "openat2")
"""The C library takes the older call, which can be judged, where the kernel has none of these."""
_TRUNCATE, _ACCESS_MODE = 0o1000, 0o3
_CHANGES_OWNERS = (8, 10, 15, 1024, 1026)
"""`fcntl`: F_SETOWN, F_SETSIG and F_SETOWN_EX (a way to signal others), F_SETLEASE, F_NOTIFY."""
_CPU_TIME, _DEATH_SIGNAL = 0, 1
"""RLIMIT_CPU and PR_SET_PDEATHSIG."""
_HARMLESS_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""


class Test(NamedTuple):
    """Holds where the low 32 bits (or the high ones) of an argument, masked, are equal to `value`, or are not."""

    argument: int
    value: int
    equal: bool = True
    mask: int = 0xFFFFFFFF
    high: bool = False


class Rule(NamedTuple):
    """Refuse a call, with `error`, where all tests hold."""

    call: str
    error: int = errno.EPERM
    tests: tuple[Test, ...] = ()


def rules(pid: int) -> Iterator[Rule]:
    """What a program that is process `pid` may not do.

    It may signal itself (`abort` does), but not with SIGKILL, by which it could pretend that the machine had killed it;
    nor by a limit of CPU time of its own, or a timer that sends any signal (`setitimer` and `alarm` send their own).
    It may not stop dying with its server."""
    for name in NUMBERS:
        if name not in TESTED:
            yield Rule(name, errno.ENOSYS if name in NO_SUCH_CALL else errno.EPERM)
    yield Rule("tgkill", tests=(Test(0, pid, equal=False),))
    yield Rule("tgkill", tests=(Test(2, signal.SIGKILL),))
    yield Rule("prlimit64", tests=(Test(0, 0, equal=False),))
    yield Rule("setrlimit", tests=(Test(0, _CPU_TIME),))
    for high in (False, True):  # the new limit: a pointer, so both its halves count; without one it only asks
        yield Rule("prlimit64", tests=(Test(1, _CPU_TIME), Test(2, 0, equal=False, high=high)))
    yield Rule("prctl", tests=(Test(0, _DEATH_SIGNAL),))
    for name, argument in (("open", 1), ("openat", 2)):  # truncates, though it only reads: Landlock below ABI 3
        yield Rule(name, tests=(Test(argument, _TRUNCATE, mask=_TRUNCATE | _ACCESS_MODE),))
    for command in _CHANGES_OWNERS:
        yield Rule("fcntl", tests=(Test(1, command),))
    yield Rule("ioctl", tests=tuple(Test(1, command, equal=False) for command in _HARMLESS_IOCTLS))
    for high in (False, True):  # to an address: a pointer, so both its halves count
        yield Rule("sendto", tests=(Test(4, 0, equal=False, high=high),))
    yield Rule("socketpair", tests=(Test(0, socket.AF_UNIX, equal=False),))


_LOAD, _JUMP_EQUAL, _JUMP_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`."""


def assemble(refused: Sequence[Rule], machine: str) -> bytes:
    """BPF for the rules, 8 bytes an instruction: `struct sock_filter`.

    Args:
        machine: `x86_64` or `aarch64`; calls of another one, and of x32, are killed.
    """
    column = list(AUDIT).index(machine)
    code = [(_LOAD, 0, 0, _MACHINE), (_JUMP_EQUAL, 1, 0, AUDIT[machine]), (_RETURN, 0, 0, KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_JUMP_LEAST, 0, 1, X32), (_RETURN, 0, 0, KILL)]
    code += [(_JUMP_LEAST, 0, 1, FIRST_UNKNOWN), (_RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    for call, error, tests in refused:
        number = NUMBERS[call][column]
        if number is None:
            continue
        body: list[tuple[int, int, int, int]] = []
        for test in tests:
            body += [(_LOAD, 0, 0, _ARGUMENTS + 8 * test.argument + 4 * test.high), (_AND, 0, 0, test.mask)]
            left = 3 * (len(tests) - len(body) // 3 - 1) + 1  # instructions from the next on to the one after `return`
            body += [(_JUMP_EQUAL, 0, left, test.value) if test.equal else (_JUMP_EQUAL, left, 0, test.value)]
        body += [(_RETURN, 0, 0, ERRNO | error)]
        code += [(_JUMP_EQUAL, 0, len(body), number), *body]
        if tests:
            code += [(_LOAD, 0, 0, _NUMBER)]
    code += [(_RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
