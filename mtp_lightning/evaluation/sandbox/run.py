"""The sandbox as its users see it: a context in which programs are run, several at a time."""

import json
import os
import platform
import queue
import select
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtp_lightning.errors import UnavailableError
from mtp_lightning.evaluation.sandbox import confine
from mtp_lightning.evaluation.sandbox.filters import AUDIT
from mtp_lightning.evaluation.sandbox.programs import Limits, Outcome, Program
from mtp_lightning.evaluation.sandbox.server import BUSY

ROOT = Path(__file__).parents[3]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from mtp_lightning.evaluation.sandbox.server import main; " + (
    "main(sys.argv[2])"
)
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
LIMITS = Limits()
PATIENCE = 60.0
"""Seconds on top of a program's own wall limit, after which a server counts as hung."""
_NOTHING_ALLOWED = """
import csv, os, signal, socket, tempfile
def fork():
    os.fork() or os._exit(0)
def works(what, *args):
    try:
        what(*args)
    except OSError:
        return False
    return True
open("/dev/null", "w").close()
allowed = [what.__name__ for what, *args in (
    (open, "/etc/passwd"), (os.listdir, "/proc"), (tempfile.TemporaryFile,), (socket.socket,), (fork,),
    (os.kill, os.getpid(), 0), (os.chmod, "/dev/null", 0o666),
) if works(what, *args)]
"""
_NONE = "assert not allowed, allowed"
"""What a confined program must not be able to do, and that it can import; leaves nothing where it can."""


class SandboxError(UnavailableError):
    """Programs cannot be run here, or not confined; no outcome may be counted."""


class Sandbox:
    """Runs programs that nobody has read.

    Args:
        limits: of each program that has none of its own.
        workers: programs that run at once.
        unsafe: run them with all of this user's rights, and limit only their resources.
        namespaces: make some in addition, where the kernel lets this user.

    Raises:
        SandboxError: on entering: this machine cannot confine a program; says what is missing.
    """

    def __init__(
        self, limits: Limits = LIMITS, workers: int = 1, unsafe: bool = False, namespaces: bool = True
    ) -> None:
        self.limits, self.unsafe = limits, unsafe
        self.level = ""
        """What confines the programs: `landlock 7, seccomp, namespaces`; known once entered."""
        self._servers = [_Server(index, unsafe, namespaces) for index in range(workers)]

    def __enter__(self) -> "Sandbox":
        try:
            self._servers[0].start()
            self.level = self._servers[0].level
            check = Program("import csv" if self.unsafe else _NOTHING_ALLOWED, check="" if self.unsafe else _NONE)
            outcome = self._servers[0].ask(check, Limits(cpu_seconds=10.0))
            if outcome.verdict != "passed":
                raise SandboxError(
                    f"the sandbox does not hold here ({self.level}): {outcome.stderr.strip().splitlines()[-1:]}"
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in self._servers:
            server.stop()

    def run(self, programs: Iterable[Program]) -> Iterator[tuple[int, Outcome]]:
        """(place in `programs`, outcome), as they finish. `programs` is read as workers become free.

        Raises:
            SandboxError: one could not be run, in two attempts.
        """
        waiting, lock = enumerate(programs), threading.Lock()
        done: queue.SimpleQueue[tuple[int, Outcome] | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def work(server: _Server) -> None:
            try:
                while not stopped.is_set():
                    with lock:
                        index, program = next(waiting, (-1, None))
                    if program is None:
                        break
                    done.put((index, server.ask_twice(program, self.limits)))
            except BaseException as error:  # raised again in the caller's thread
                done.put(error)
            done.put(None)

        threads = [threading.Thread(target=work, args=(server,), daemon=True) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                item = done.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            stopped.set()
            for thread in threads:
                thread.join()


class _Server:
    """One process of `server.py`."""

    def __init__(self, index: int, unsafe: bool, namespaces: bool) -> None:
        self.index, self.unsafe, self.namespaces = index, unsafe, namespaces
        self.level = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        prefix, landlock = ([], False) if self.unsafe else confinement()
        settings = {
            "unsafe": self.unsafe, "landlock": landlock, "namespaces": landlock and self.namespaces,
            "first_id": (os.getpid() * 64 + self.index) * 4096,
        }  # fmt: skip
        python = [sys.executable, "-s", "-S", "-B", "-P"]
        self._process = subprocess.Popen(
            [*prefix, *python, "-c", _START, str(ROOT), json.dumps(settings)], env=ENVIRONMENT, cwd="/", bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        found = self._receive(PATIENCE)
        parts = [f"landlock {found['landlock']}"] if landlock else ["bubblewrap"]
        self.level = "none" if self.unsafe else ", ".join([*parts, "seccomp", *["namespaces"] * found["namespaces"]])

    def ask(self, program: Program, limits: Limits) -> Outcome:
        if self._process is None:
            self.start()
        used = program.limits or limits
        content = json.dumps(program.request(limits)).encode()
        text = memoryview(struct.pack("=I", len(content)) + content)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while text:
                text = text[self._process.stdin.write(text) or 0 :]
        except BrokenPipeError:
            raise self._ended() from None
        return Outcome(**self._receive(used.cpu_seconds * (used.wall_factor + 1 / BUSY) + PATIENCE))

    def ask_twice(self, program: Program, limits: Limits) -> Outcome:
        """A server may fall to a machine short of memory: a new one gets a second try."""
        for attempt in (1, 2):
            try:
                outcome = self.ask(program, limits)
                if outcome.verdict != "infrastructure":
                    return outcome
                raise SandboxError(f"the sandbox could not run a program: {outcome.stderr}")
            except SandboxError:
                self.stop()
                if attempt == 2:
                    raise
        raise AssertionError

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # its children die with it
            self._process.communicate()
            self._process = None

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, content, wanted = self._process.stdout.fileno(), bytearray(), 4
        while len(content) < wanted:
            if not select.select([pipe], [], [], seconds)[0]:
                raise SandboxError(f"the sandbox's server has not answered for {seconds:.0f} s")
            more = os.read(pipe, 1 << 20)
            if not more:
                raise self._ended()
            content += more
            if wanted == 4 and len(content) >= 4:
                wanted += struct.unpack("=I", content[:4])[0]
        found: dict[str, Any] = json.loads(content[4:])
        return found

    def _ended(self) -> SandboxError:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        errors = process.communicate()[1].decode(errors="replace").strip().splitlines()
        return SandboxError(f"the sandbox's server ended: {errors[-1] if errors else 'it said nothing'}")


def confinement() -> tuple[list[str], bool]:
    """(what a server's command begins with, whether Landlock confines its children).

    Raises:
        SandboxError: neither Landlock nor bubblewrap is there.
    """
    here = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.system() != "Linux" or platform.machine() not in AUDIT:
        raise SandboxError(f"programs can be confined by Linux on {' or '.join(AUDIT)}, and this is {here}. {_UNSAFE}")
    if confine.landlock_abi():
        return [], True
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            f"programs cannot be confined: {here} has no Landlock, and bwrap is not installed. {_UNSAFE}"
        )
    return bubblewrap(found), False


_UNSAFE = "`--unsafe_execution true` runs them with all your rights"


def bubblewrap(found: str) -> list[str]:
    """A world of the interpreter and the system's libraries, in which nothing can be written. bwrap itself, too, is
    started without an environment, as its own would be there to be read."""
    command = [found, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for place in dict.fromkeys((*confine.READABLE, *confine.interpreter(), sys.prefix, str(ROOT / "mtp_lightning"))):
        if Path(place).exists() and not place.startswith("/dev/"):
            command += ["--ro-bind", place, place]
    if os.getuid() == 0:
        command += ["--uid", "65534", "--gid", "65534"]  # in its user namespace: one that is root nowhere
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    return [*command, "--remount-ro", "/", "--"]
