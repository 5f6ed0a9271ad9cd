"""Benchmark files by path, in their published formats: JSONL, or one JSON list; plain or gzip."""

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError

_GZIP = b"\x1f\x8b"
_MOST_BYTES = 4 * 2**30
"""Decompressed: more is no benchmark, and may be a bomb."""


def read_rows(path: str | Path, fields: Mapping[str, type], what: str, key: str = "data") -> list[dict[str, Any]]:
    """
    Args:
        fields: that every row has to have, and of which type.
        what: the task and its format, for messages.
        key: the flag that named the file, for messages.

    Raises:
        InputError: not there, not JSON, no rows, or rows of something else; names file and row.
    """
    path = Path(path)
    rows = _parsed(path, _text(path, key), key)
    if not rows:
        raise InputError(f"{key}: '{path}' has no rows")
    for number, row in enumerate(rows, start=1):
        found = row if isinstance(row, dict) else {}
        lacks = {field: kind for field, kind in fields.items() if not isinstance(found.get(field), kind)}
        if lacks:
            had = f"has {', '.join(map(repr, list(row)[:8]))}" if isinstance(row, dict) else "is no mapping"
            wanted = ", ".join(f"'{field}' ({kind.__name__})" for field, kind in lacks.items())
            raise InputError(f"{key}: '{path}', row {number} {had}, and a row of {what} has {wanted}")
    return rows


def check_distinct(path: str | Path, ids: list[str]) -> None:
    """
    Raises:
        InputError: two problems have one name: their samples would be taken for each other's.
    """
    seen: set[str] = set()
    for task_id in ids:
        if task_id in seen:
            raise InputError(f"data: '{path}' has the problem '{task_id}' twice: every task_id has to be another")
        seen.add(task_id)


def _text(path: Path, key: str) -> str:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            with gzip.open(path) as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise InputError(f"{key}: '{path}' has more than {_MOST_BYTES >> 30} GiB when decompressed")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{key}: cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{key}: '{path}' is not UTF-8 text (byte {error.start})") from error


def _parsed(path: Path, text: str, key: str) -> list[Any]:
    where, rows = "", []
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
            assert isinstance(found, list)
            return found
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f", line {number},"
                rows.append(json.loads(line))
        return rows
    except RecursionError:
        raise InputError(f"{key}: '{path}' is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{key}: '{path}'{where} is not JSON ({error})") from error
