"""Files that several processes share: JSON replaced in one step, and a lock that lives as long as its holders."""

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part; on a full disk the old one stays.

    Raises:
        OSError: with the file's name, which a disk's refusal does not say.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def open_as_usual(path: Path) -> None:
    """Give a file that a library made for its owner alone the permissions that this process gives its files."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


class DamagedError(InputError):
    """A file of our own that is there and cannot be used. The message names the file and says why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


MOST_BYTES = 64 * 2**20
"""No state file of ours comes near: a journal of all the points that may wait has half of it."""


def read_state(path: Path) -> str | None:
    """The text of a file that may hold anything; None where there is none.

    Raises:
        DamagedError: a folder, a pipe, a loop of links, not UTF-8, too large, or what the disk says.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        raise DamagedError(path, "a link to a file that is not there") from None
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})") from error
    try:
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                what = "a folder" if stat.S_ISDIR(found.st_mode) else "no ordinary file"
                raise DamagedError(path, f"{what}, and has to be a file")
            if found.st_size > MOST_BYTES:
                raise DamagedError(path, f"{found.st_size:,} bytes, and this file never has more than {MOST_BYTES:,}")
            return file.read(MOST_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})") from error


def parse_json(path: Path, text: str) -> Any:
    """
    Raises:
        DamagedError: `text`, out of `path`, is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedError(path, "nested too deeply") from None
    except ValueError as error:
        raise DamagedError(path, "empty" if not text.strip() else f"not JSON ({error})") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON mapping in a file; None where there is no file.

    Raises:
        DamagedError: anything else.
    """
    text = read_state(path)
    if text is None:
        return None
    value = parse_json(path, text)
    if not isinstance(value, dict):
        raise DamagedError(path, f"holds a {type(value).__name__}, and has to hold a JSON mapping")
    return value


class FileLock:
    """An exclusive lock that the operating system drops when the last process holding it is gone.

    The launcher hands the open descriptor on to the process it starts. So a cell stays locked while it runs even if
    its launcher is killed, and nothing is left to clean up when both are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        assert self._descriptor is not None, "the lock is not held"
        return self._descriptor

    def acquire(self) -> bool:
        """False, at once, when somebody else holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        # Closing only: an explicit unlock would take the lock from the child as well, should one be left.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def check_json(path: str | None, key: str = "json") -> None:
    """Found out before hours of work, not after."""
    try:
        wrong = path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir())
    except OSError as error:  # a name that is too long
        raise InputError(f"{key}: {path} cannot be written: {error.strerror}") from error
    if wrong:
        raise InputError(f"{key}: {path} cannot be written: it is a folder, or its folder is not there")


def try_writing(folder: Path) -> None:
    """Whether something can be written into `folder`, or into the nearest existing one above it, in which it would be
    made. Nothing is left, and nothing is made.

    Raises:
        OSError: it cannot.
    """
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def to_disk(path: Path) -> None:
    """Write through what the system still holds of a file, or of a folder's names: a name is only given to what would
    outlive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
