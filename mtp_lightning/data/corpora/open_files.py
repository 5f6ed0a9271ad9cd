"""A file on this machine, opened by its own name: decompressed, and in the encoding that its first bytes name. Whatever
is wrong with it is one `InputError` with the file, and the line where there is one."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from mtp_lightning.errors import InputError

_READERS: dict[bytes, tuple[str, Any]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
    b"\xfd7zXZ\x00": (".xz", lzma.open),
}
"""First bytes -> the usual end of the name, and what reads it."""
_UNREADABLE = {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before the one of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def open_text(path: Path, newline: str) -> Iterator[TextIOWrapper]:
    """
    Args:
        newline: as of `open`: "" or "\\n", neither of which changes a line's end.

    Raises:
        InputError: not there, cut off, not compressed as its name says, not text.
    """
    try:
        with _open_bytes(path) as raw:
            first = raw.peek(4)[:4]  # type: ignore[attr-defined]
            encoding = next((name for mark, name in _MARKS if first.startswith(mark)), "utf-8")
            yield TextIOWrapper(raw, encoding=encoding, newline=newline)
    except UnicodeDecodeError as error:
        line = _bad_line(path) if error.encoding == "utf-8" else ""
        raise InputError(
            f"data.source.path: '{path}'{line} is not {error.encoding.upper()} text ({error.reason}); "
            "convert it, or leave it out by data.source.glob"
        ) from error
    except _BROKEN as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"data.source.path: cannot read '{path}': {why}") from error


@contextmanager
def _open_bytes(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        first = file.peek(6)
        for mark, name in _UNREADABLE.items():
            if first.startswith(mark):
                raise InputError(f"data.source.path: '{path}' is compressed ({name}): decompress it first")
        for mark, (suffix, reader) in _READERS.items():
            # By its name too: a plain file that is called *.gz is no such file, and whoever named it is to know.
            if first.startswith(mark) or (first and path.name.lower().endswith(suffix)):
                with reader(file) as decompressed:
                    yield decompressed
                return
        yield file


def _bad_line(path: Path) -> str:
    """`, line 3,`: the first that is not UTF-8; nothing where a damaged file cannot be read a second time."""
    with suppress(*_BROKEN), _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number},"
    return ""
