"""Files that several processes share: JSON replaced in one step, and a lock that lives as long as its holders."""

import fcntl
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, never a part; on a full disk the old one stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no file, or something that is not a JSON mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


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


def check_json(path: str | None) -> None:
    """Found out before hours of work, not after."""
    if path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        raise InputError(f"json: {path} cannot be written: it is a folder, or its folder is not there")


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
