"""Hostile programs, and for each an oracle outside the sandbox. Run by test_evaluation_hostile.py as a process of its
own in a private mount namespace, so that one that escapes mounts over nothing of the machine's:

    sandbox_hostile.py MOUNT_NAMESPACE_OF_THE_CALLER USER_ID namespaces|alone|bubblewrap|unsafe

prints {name: why it escaped, or ""}; `unsafe`, which is no sandbox, shows that the oracles see what escapes. Every
program does harm to what this script made for it, and to nothing else. Longer than other files: one list of programs.
"""

import ctypes
import json
import os
import platform
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtp_lightning.evaluation.sandbox import Limits, Outcome, Program, Sandbox, SandboxError, confine
from mtp_lightning.evaluation.sandbox.filters import AUDIT, NUMBERS

MARK = secrets.token_hex(6)
"""In names."""
SECRET = secrets.token_hex(6)
"""In the runner's environment, its files, its shared memory and its victim's memory: what a program must not get at."""
KEY = 0x6D7470
PRELUDE = """
import ctypes, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
D, VICTIM, ADDRESS, TCP, UDP, MARK, KEY, NUMBERS = {settings!r}
def call(name, *args):
    return libc.syscall(NUMBERS[name], *args)
def attempts(*calls):
    for call in calls:
        try:
            print(call())
        except Exception as error:
            print(repr(error))
"""
PROGRAMS: dict[str, str] = {
    "benign": "import asyncio, decimal, sqlite3, typing\n"
    "async def f(): return sqlite3.connect(':memory:').execute('select 40 + 2').fetchone()[0]\n"
    "print(asyncio.run(f()), open('/dev/null', 'w').write('x'))",
    "fork bomb": "for _ in range(6): attempts(os.fork)\ntime.sleep(0.3)",
    "fork by other calls": "attempts(*[lambda n=n: call(n, 17, 0, 0, 0, 0) for n in ('clone', 'fork')],"
    "lambda: os.posix_spawn('/bin/sleep', ['sleep', '1'], {}))\ntime.sleep(0.3)",
    "threads": "import threading\n"
    "attempts(*[threading.Thread(target=time.sleep, args=(0.3,)).start for _ in range(8)])",
    "much memory": "x = [bytearray(b'x' * (64 << 20)) for _ in range(12)]\nprint('had it')",
    "memory in children": "for _ in range(4):\n  if not os.fork():\n"
    "    x = b'x' * (100 << 20); time.sleep(0.3); os._exit(0)",
    "raise the limits": "import resource\nattempts(*[lambda kind=kind: resource.setrlimit(kind, (1 << 40, 1 << 40))"
    " for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC)])\n"
    "x = [bytearray(b'x' * (64 << 20)) for _ in range(12)]\nprint('had it')",
    "read a system file": "attempts(lambda: open('/etc/passwd').read(), lambda: os.listdir('/etc'))",
    "read the runner's file": "attempts(lambda: open(D + '/secret').read(), lambda: os.listdir(D))",
    "the runner's environment": "attempts(lambda: dict(os.environ), *[lambda p=p: open(f'/proc/{p}/environ').read()"
    " for p in ('self', os.getppid(), 1, VICTIM, *range(VICTIM - 8, VICTIM + 8))])",
    "write anywhere": "attempts(*[lambda p=p: open(p + '/' + MARK, 'w').write('x') for p in"
    " ('.', D, '/tmp', '/root', '/etc', '/usr', '/dev/shm', '/var/tmp', '/run')])",
    "write through a shell": "os.execv('/bin/sh', ['sh', '-c', f'echo x > {D}/{MARK}; echo x > /tmp/{MARK}'])",
    "many files": "attempts(*[lambda i=i: open(f'{D}/{MARK}{i}', 'wb').write(b'x' * 99999) for i in range(60)])",
    "delete": "import shutil\nshutil.rmtree(D + '/tree', ignore_errors=True)\nattempts(lambda: os.unlink(D + '/mine'))",
    "rename and link": "attempts(lambda: os.rename(D + '/mine', D + '/' + MARK), "
    "lambda: os.link(D + '/mine', D + '/' + MARK),"
    "lambda: os.symlink('/etc', D + '/' + MARK), lambda: os.mkfifo(D + '/' + MARK), lambda: os.mkdir(D + '/' + MARK))",
    "change a mode": "attempts(lambda: os.chmod(D + '/mine', 0o777), lambda: os.chown(D + '/mine', 1, 1),"
    "lambda: libc.syscall(452, -100, (D + '/mine').encode(), 0o777, 0))",
    "change times": "attempts(lambda: os.utime(D + '/mine', (1, 1)))",
    "set attributes": "attempts(lambda: os.setxattr(D + '/mine', 'user.x', b'x'),"
    "lambda: libc.syscall(463, -100, (D + '/mine').encode(), 0, b'user.x', bytes(16), 16))",
    "truncate": "attempts(lambda: os.truncate(D + '/mine', 0), lambda: os.open(D + '/mine', os.O_RDONLY | os.O_TRUNC))",
    "TCP": "attempts(lambda: socket.create_connection(('127.0.0.1', TCP), 1).send(b'x'))",
    "UDP": "attempts(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP)))",
    "abstract socket": "attempts(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + MARK))",
    "socket in a folder": "attempts(lambda: socket.socket(socket.AF_UNIX).connect(D + '/stream'))",
    "datagram from a pair": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "attempts(lambda: a.sendto(b'x', D + '/datagram'), lambda: a.sendmsg([b'x'], [], 0, D + '/datagram'),"
    "lambda: a.connect(D + '/datagram'), lambda: a.send(b'x'))",
    "kill by number": "attempts(lambda: os.kill(VICTIM, 9), lambda: call('tgkill', VICTIM, VICTIM, 9),"
    "lambda: call('tkill', VICTIM, 9), lambda: signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9))",
    "kill by search": "for p in os.listdir('/proc') if os.path.isdir('/proc/1') else ():\n"
    "  attempts(lambda: p.isdigit() and MARK in open(f'/proc/{p}/cmdline').read() and os.kill(int(p), 9))",
    "kill by a queued signal": "info = ctypes.create_string_buffer(128)\n"
    "ctypes.memmove(info, (ctypes.c_int * 3)(9, 0, -1), 12)\n"
    "attempts(lambda: call('rt_sigqueueinfo', VICTIM, 9, info),"
    "lambda: call('rt_tgsigqueueinfo', VICTIM, VICTIM, 9, info))",
    "kill by its limits": "import resource\nattempts(lambda: resource.prlimit(VICTIM, resource.RLIMIT_CPU, (0, 0)))",
    "kill by ownership": "import fcntl\na, b = socket.socketpair()\n"
    "attempts(lambda: fcntl.fcntl(a, 8, VICTIM), lambda: fcntl.fcntl(a, 10, 9),"
    "lambda: fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK), lambda: b.send(b'x'))",
    "slow another down": "attempts(lambda: os.setpriority(os.PRIO_PROCESS, VICTIM, 19),"
    "lambda: os.sched_setaffinity(VICTIM, {0}))",
    "trace": "attempts(lambda: libc.ptrace(16, VICTIM, 0, 0))\ntime.sleep(0.3)",
    "read memory": "class V(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]\n"
    "own = ctypes.create_string_buffer(12)\n"
    "libc.process_vm_readv(VICTIM, ctypes.byref(V(ctypes.addressof(own), 12)), 1, ctypes.byref(V(ADDRESS, 12)), 1, 0)\n"
    "attempts(lambda: own.value, lambda: os.pread(os.open(f'/proc/{VICTIM}/mem', 0), 12, ADDRESS))",
    "daemon": "if not os.fork():\n  os.setsid()\n  if not os.fork():\n"
    "    libc.prctl(15, MARK.encode()); time.sleep(3)\n  os._exit(0)",
    "loop for ever": "for s in range(1, 32):\n  attempts(lambda: signal.signal(s, signal.SIG_IGN))\nwhile True: pass",
    "sleep for ever": "while True: time.sleep(9)",
    "stop itself": "attempts(lambda: signal.raise_signal(signal.SIGSTOP))\nwhile True: time.sleep(9)",
    "write for ever": "while True: print('x' * 999)",
    "errors for ever": "while True: print('x' * 999, file=sys.stderr)",
    "kill itself": "attempts(lambda: signal.raise_signal(signal.SIGKILL), lambda: os.kill(os.getpid(), 9))",
    "be killed for CPU time of its own choice": "import resource\nlimit = ctypes.create_string_buffer(16)\n"
    "limit[0] = limit[8] = 1\n"
    "attempts(lambda: resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20)),"
    "lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)), lambda: call('setrlimit', 0, limit),"
    "lambda: call('prlimit64', os.getpid(), 0, limit, None))\nwhile time.process_time() < 0.3: pass",
    "kill itself by a timer": "event, timer = (ctypes.c_int * 16)(0, 0, 9, 0), ctypes.c_int()\n"
    "attempts(lambda: call('timer_create', 1, event, ctypes.byref(timer)),"
    "lambda: libc.syscall({'x86_64': 223, 'aarch64': 110}[os.uname().machine], timer, 0,"
    "(ctypes.c_long * 4)(0, 0, 0, 1000), None))\ntime.sleep(0.3)",
    "die by a signal without a name": "signal.raise_signal(40)",
    "die by a filter of its own": "import struct\n"
    "code = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0))\n"
    "attempts(lambda: libc.prctl(22, 1, 0, 0, 0),"
    "lambda: libc.prctl(22, 2, struct.pack('@HP', 1, ctypes.addressof(code)), 0, 0))\ntime.sleep(0.3)",
    "die at the start of another program": "import resource\n"
    "resource.setrlimit(resource.RLIMIT_AS, (4096, 4096))\nos.execv('/bin/true', ['true'])",
    "say that it could not be run": "frame = sys._getframe()\nwhile 'say' not in frame.f_locals: frame = frame.f_back\n"
    "frame.f_locals['say']('infrastructure', ''), os._exit(0)",
    "user namespace": "attempts(lambda: 'done' if libc.unshare(0x10000000) == 0 else 'refused')",
    "io_uring": "attempts(lambda: 'done' if call('io_uring_setup', 4, bytes(120)) >= 0 else 'refused')",
    "keyring": "attempts(lambda: 'done' if call('add_key', b'user', MARK.encode(), b'x', 1, -1) >= 0 else 'refused')",
    "watch a folder": "attempts("
    "lambda: 'done' if libc.inotify_add_watch(libc.inotify_init(), D.encode(), 0x100) >= 0 else 'refused')",
    "mount": "attempts(lambda: libc.mount(b'none', (D + '/tree').encode(), b'tmpfs', 0, None))",
    "become root": "attempts(lambda: os.setuid(0), lambda: 'done' if os.getuid() == 0 else 'refused')",
    "shared memory": "attempts(lambda: libc.shmget(KEY, 4096, 0o1666))",
    "attach to shared memory": "libc.shmat.restype = ctypes.c_void_p\n"
    "attempts(lambda: ctypes.string_at(libc.shmat(libc.shmget(KEY + 1, 0, 0), None, 0), 12))",
    "message queue": "attempts(lambda: libc.msgget(KEY, 0o1666))",
    "semaphores": "attempts(lambda: libc.semget(KEY, 1, 0o1666))",
    "POSIX queue": "attempts(lambda: 'done' if call('mq_open', MARK.encode(), 0o102, 0o666, None) >= 0 else 'refused')",
    "x32 calls": "libc.syscall(0x40000000 + 39)\nprint('done')",
}  # fmt: skip


class Scene:
    """What programs may attack, and whether it is as it was."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtp-hostile-"))
        self.folder.chmod(0o777)
        (self.folder / "tree/inside").mkdir(parents=True)
        (self.folder / "tree").chmod(0o777)
        for name, mode in (("secret", 0o600), ("mine", 0o666)):
            (self.folder / name).write_text(f"content {SECRET}")
            (self.folder / name).chmod(mode)
        code = f"# {MARK}\nimport ctypes, time\nb = ctypes.create_string_buffer(b'{SECRET}')\n" + (
            "print(ctypes.addressof(b), flush=True)\ntime.sleep(600)"
        )
        self.victim = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
        assert self.victim.stdout is not None
        address = int(self.victim.stdout.readline())
        self.listeners = {"TCP": socket.create_server(("127.0.0.1", 0))}
        for name, kind, place in (
            ("abstract socket", socket.SOCK_STREAM, "\0" + MARK),
            ("socket in a folder", socket.SOCK_STREAM, f"{self.folder}/stream"),
            ("datagram from a pair", socket.SOCK_DGRAM, f"{self.folder}/datagram"),
        ):
            self.listeners[name] = socket.socket(socket.AF_UNIX, kind)
            self.listeners[name].bind(place)
            if kind == socket.SOCK_STREAM:
                self.listeners[name].listen()
        self.listeners["UDP"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listeners["UDP"].bind(("127.0.0.1", 0))
        for name in ("stream", "datagram"):
            (self.folder / name).chmod(0o777)
        for listener in self.listeners.values():
            listener.setblocking(False)
        tcp, udp = (self.listeners[name].getsockname()[1] for name in ("TCP", "UDP"))
        column = list(AUDIT).index(platform.machine())
        numbers = {name: values[column] for name, values in NUMBERS.items() if values[column] is not None}
        self.settings = (str(self.folder), self.victim.pid, address, tcp, udp, MARK, KEY, numbers)
        self.shared = LIBC.shmget(KEY + 1, 4096, 0o1666)
        LIBC.shmat.restype = ctypes.c_void_p
        ctypes.memmove(LIBC.shmat(self.shared, None, 0), SECRET.encode(), len(SECRET))
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        mine = self.folder / "mine"
        found = mine.stat() if mine.exists() else None
        scheduling = self.victim.poll() is None and (
            os.getpriority(os.PRIO_PROCESS, self.victim.pid), os.sched_getaffinity(self.victim.pid),
            resource.prlimit(self.victim.pid, resource.RLIMIT_CPU),
        )  # fmt: skip
        return {
            "the victim lives": self.victim.poll() is None,
            "the victim's priority and limits": scheduling,
            "files": sorted(str(path) for path in self.folder.rglob("*")),
            "a file": found and (found.st_mode, found.st_uid, found.st_size, found.st_mtime),
            "its attributes": os.listxattr(mine) if found else None,
            "a mount": os.path.ismount(self.folder / "tree"),
            "marked files": [str(p) for place in PLACES for p in Path(place).glob(f"{MARK}*")],
            "queues and shared memory": [name for name in ("shm", "msg", "sem") if has_key(name, KEY)],
            "a daemon": [p for p in processes() if comm(p) == MARK],
        }

    def close(self) -> None:
        """Takes away what an unconfined program has left, too."""
        LIBC.shmctl(self.shared, 0, None)
        LIBC.shmctl(LIBC.shmget(KEY, 0, 0), 0, None)
        LIBC.msgctl(LIBC.msgget(KEY, 0), 0, None)
        LIBC.semctl(LIBC.semget(KEY, 0, 0), 0, 0)
        LIBC.mq_unlink(f"/{MARK}".encode())
        for place in PLACES:
            for path in Path(place).glob(f"{MARK}*"):
                path.unlink(missing_ok=True)
        self.victim.kill()
        self.victim.communicate()
        for listener in self.listeners.values():
            listener.close()
        shutil.rmtree(self.folder)


LIBC = ctypes.CDLL(None)
PLACES = ("/tmp", "/root", "/etc", "/usr", "/dev/shm", "/var/tmp", "/run", "/", "/dev/mqueue")


def has_key(kind: str, key: int) -> bool:
    lines = Path("/proc/sysvipc", kind).read_text().splitlines()[1:]
    return any(int(line.split()[0]) == key for line in lines)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def comm(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def descendants() -> list[int]:
    parents = {}
    for process in processes():
        try:
            parents[process] = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = [], [os.getpid()]
    while more:
        more = [process for process, parent in parents.items() if parent in more]
        found += more
    return found


class Peaks:
    """The most processes below this one, the most memory of one of them in MiB and the most threads, and whether one
    was traced, while a program runs."""

    def __enter__(self) -> "Peaks":
        self.processes = self.memory = self.threads = 0
        self.traced = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.03):
            below = descendants()
            self.processes = max(self.processes, len(below))
            for process in below:
                try:
                    text = Path(f"/proc/{process}/status").read_text()
                except OSError:
                    continue
                values = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
                self.memory = max(self.memory, int(values.get("VmRSS", "0 kB").split()[0]) // 1024)
                self.threads = max(self.threads, int(values["Threads"]))
                self.traced |= values["TracerPid"] != "0"

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


LIMITS = Limits(cpu_seconds=1.0, memory_mb=256, output_kb=64, wall_factor=20.0)
ALLOWED_STACK = ["None", "ValueError('not allowed to raise maximum limit')", "-1", "-1"]
"""What setting the limits of a stack and, in three ways, of CPU time says: Python has one message for all refusals."""
ASLEEP = Limits(cpu_seconds=1.0, wall_factor=1.0)


def why_escaped(name: str, scene: Scene, outcome: Outcome, peaks: Peaks, quiet: int) -> str:
    said = outcome.stdout + outcome.stderr
    after = scene.state()
    changed = [what for what, value in scene.before.items() if after[what] != value]
    if changed:
        return f"{changed[0]}: {scene.before[changed[0]]} -> {after[changed[0]]}"
    if SECRET in said or "root:" in said:
        return f"it read what it must not: {said[-300:]}"
    for kind, listener in scene.listeners.items():
        try:
            listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(9)
        except BlockingIOError:
            continue
        return f"{kind}: the listener heard it"
    if (
        peaks.processes > quiet + 1
        or peaks.memory > 300
        or peaks.threads > 1
        or peaks.traced
        or outcome.verdict == "infrastructure"
    ):
        return f"{vars(peaks)}, {outcome.verdict}"
    expected: dict[str, Callable[[], bool]] = {
        "benign": lambda: outcome.verdict == "passed" and outcome.stdout == "42 1\n",
        "much memory": lambda: outcome.verdict == "out_of_memory",
        "raise the limits": lambda: outcome.verdict == "out_of_memory",
        "write for ever": lambda: outcome.verdict == "too_much_output" and len(said) <= 64 << 11,
        "errors for ever": lambda: outcome.verdict == "too_much_output" and len(said) <= 64 << 11,
        "x32 calls": lambda: "done" not in outcome.stdout,
        "loop for ever": lambda: (outcome.verdict, outcome.limit) == ("timed_out", "cpu"),
        "sleep for ever": lambda: (outcome.verdict, outcome.limit) == ("timed_out", "wall"),
        "stop itself": lambda: outcome.verdict == "timed_out",
        "be killed for CPU time of its own choice": lambda: outcome.stdout.splitlines() == ALLOWED_STACK,
    }
    fine = expected.get(name, lambda: "done" not in outcome.stdout)()
    return "" if fine else f"{outcome.verdict}: {said[-300:]}"


def main(callers_namespace: str, user: int, how: str) -> None:
    assert os.readlink("/proc/self/ns/mnt") != callers_namespace, "not in a mount namespace of its own"
    assert " shared:" not in Path("/proc/self/mountinfo").read_text(), "what is mounted here is seen outside"
    assert user or how != "unsafe", "never as root"
    if how == "bubblewrap":
        confine.landlock_abi = lambda: 0  # as on older kernels
    if os.getuid() == 0:
        for prefix in confine.interpreter():
            confine.uncover(Path(prefix))  # here alone: as if it were installed for all
    if user != os.getuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    os.environ["SECRET"] = SECRET
    found: dict[str, str] = {}
    scene = Scene()
    try:
        with Sandbox(LIMITS, unsafe=how == "unsafe", namespaces=how == "namespaces") as sandbox:
            found["level"] = sandbox.level
            if how == "namespaces" and how not in sandbox.level:
                sys.exit("MissingNamespaces")
            quiet = len(descendants())
            for name, source in PROGRAMS.items():
                limits = ASLEEP if name in ("sleep for ever", "stop itself") else None
                program = Program(PRELUDE.format(settings=scene.settings) + source, limits=limits)
                start = time.monotonic()
                try:
                    with Peaks() as peaks:
                        [(_, outcome)] = sandbox.run([program])
                    found[name] = why_escaped(name, scene, outcome, peaks, quiet)
                except SandboxError as error:
                    found[name] = str(error)
                if found[name]:
                    scene.close()
                    scene = Scene()
                print(f"{name}: {time.monotonic() - start:.2f} s, {found[name]}", file=sys.stderr)
    finally:
        scene.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
