"""Files that several processes share: JSON replaced in one step and read with distrust, dataclasses as JSON, and a lock
that lives as long as its holders."""

import fcntl
import functools
import json
import math
import os
import stat
import tempfile
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mtp_lightning.errors import InputError


def cache_folder() -> Path | None:
    """`~/.cache/mtp_lightning`, by the XDG base directory specification; None where the user has no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtp_lightning"
    except RuntimeError:
        return None


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


def read_state(path: Path, most: int = MOST_BYTES) -> str | None:
    """The text of a file that may hold anything; None where there is none.

    Args:
        most: bytes that it may have.

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
            if found.st_size > most:
                raise DamagedError(path, f"{found.st_size:,} bytes, and this file never has more than {most:,}")
            return file.read(found.st_size).decode("utf-8")
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


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any] | None:
    """The JSON mapping in a file of at most `most` bytes; None where there is no file.

    Raises:
        DamagedError: anything else.
    """
    text = read_state(path, most)
    if text is None:
        return None
    value = parse_json(path, text)
    if not isinstance(value, dict):
        raise DamagedError(path, f"holds a {type(value).__name__}, and has to hold a JSON mapping")
    return value


T = TypeVar("T")
_LARGEST = 2**63
_LISTS = (tuple, Sequence)
MEASURED = "loss"
"""The field that may be NaN or infinite, beside the values of mappings: what was measured, and no time or count."""


def read_record(cls: type[T], path: Path) -> T | None:
    """The instance of the dataclass `cls` that a JSON file holds; None where there is no file.

    Raises:
        DamagedError: anything else; names the file, and the key that is absent or of another type.
    """
    raw = read_json(path)
    return None if raw is None else as_record(cls, path, raw)


def as_record(cls: type[T], path: Path, raw: Mapping[str, Any], prefix: str = "") -> T:
    """The instance of the dataclass `cls` that a mapping out of `path` is. Keys that the class does not know are
    ignored, so that a later version may add some.

    Args:
        prefix: where in the file it stands, for messages.

    Raises:
        DamagedError: a key that is absent, or of another type.
    """
    hints, known = _hints(cls), {}  # type: ignore[arg-type]  # mypy: classes of dataclasses cannot be hashed
    for field in fields(cls):  # type: ignore[arg-type]  # mypy: not known to be a dataclass
        if field.name in raw:
            known[field.name] = _value(path, prefix + field.name, raw[field.name], hints[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DamagedError(path, f"has no '{prefix}{field.name}'")
    return cls(**known)


def _value(path: Path, key: str, value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return as_record(hint, path, value, f"{key}.")
    if origin is dict and is_dataclass(args[1]) and isinstance(value, dict):
        return {name: _value(path, f"{key}.{name}", item, args[1]) for name, item in value.items()}
    if origin in _LISTS and is_dataclass(args[0]) and isinstance(value, list):
        return tuple(_value(path, f"{key}.{i}", item, args[0]) for i, item in enumerate(value))
    if not _fits(value, hint, key == MEASURED):
        raise DamagedError(path, f"its '{key}' is {_shown(value)}, and has to be {_named(hint)}")
    return _converted(value, hint)


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: object, hint: Any, measured: bool) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or origin is Literal:
        return hint is Any or value in args
    if origin in (Union, types.UnionType):
        return any(_fits(value, option, measured) for option in args)
    if origin is dict:
        return isinstance(value, dict) and all(
            type(item) is args[1] is not int or _fits(item, args[1], True) for item in value.values()
        )
    if origin in _LISTS:
        return isinstance(value, list) and all(_fits(item, args[0], measured) for item in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if hint is float:
        return _fits(value, int, measured) or (isinstance(value, float) and (measured or math.isfinite(value)))
    return isinstance(value, hint)


def _converted(value: Any, hint: Any) -> Any:
    """JSON writers drop the `.0` of a float, and JSON has no tuples."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is dict:
        return {key: item if type(item) is args[1] else _converted(item, args[1]) for key, item in value.items()}
    if origin in _LISTS:
        return tuple(value)
    is_float = hint is float or float in args
    return float(value) if is_float and type(value) is int else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


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


def check_json(path: str | None, key: str = "json", /, **others: str | None) -> None:
    """Found out before hours of work, not after.

    Args:
        others: what else the command reads and writes, by its flags.

    Raises:
        InputError: it cannot be written, or is one of these.
    """
    for flag, other in others.items():
        if path is not None and other is not None and os.path.realpath(path) == os.path.realpath(other):
            raise InputError(f"{key}: '{path}' is {flag} too, and would be overwritten: choose another file")
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


def check_out(out: Path) -> None:
    """Found out before hours of work, not after: the folder that `--out` names.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"out: '{out}' is a file, and has to be a folder, or a new name")
        try_writing(out)
    except OSError as error:
        raise InputError(f"out: '{out}' cannot be written to: {error.strerror}") from error


def to_disk(path: Path) -> None:
    """Write through what the system still holds of a file, or of a folder's names: a name is only given to what would
    outlive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
