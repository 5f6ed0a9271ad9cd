"""Rows of JSON and Parquet files, and of data sets of the hub: of each the one column that is asked for, whatever the
others hold."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.data.corpora.open_files import open_text
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.errors import InputError

_READ_ROWS = 256
"""Rows of a Parquet file that are in memory at a time."""
_SPACE = " \t\n\r"


class _Repeating(dict[str, Any]):
    """An object that has keys twice."""

    repeated: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _Repeating(found)
    names = [name for name, _ in pairs]
    repeating.repeated = frozenset(name for name in found if names.count(name) > 1)
    return repeating


_DECODER = json.JSONDecoder(parse_int=len, object_pairs_hook=_object)  # of other columns, where no number is too long


class Row(NamedTuple):
    value: Any
    """Of the column; None where the row has none."""
    place: str
    """`line 3` of a file."""
    columns: tuple[str, ...] | None
    """Those that the row has, where it lacks the one that is asked for."""


def json_rows(path: Path, column: str) -> Iterator[Row]:
    """Of objects on a line each, or one after the other however they are laid out, or in one list; a text in such a
    list is a row whose column is called `text`.

    Raises:
        InputError: not JSON, or a row that has the column twice.
    """
    for value, line in json_values(path):
        refuse_twice(path, value, line, (column,))
        yield _row(value, column, f"line {line}")


def refuse_twice(path: Path, value: Any, line: int, columns: Sequence[str]) -> None:
    """
    Raises:
        InputError: the value is an object of a file that has one of these columns twice.
    """
    for column in columns:
        if isinstance(value, _Repeating) and column in value.repeated:
            raise InputError(f"data.source.path: '{path}', line {line}: '{column}' is written twice")


def _row(value: Any, column: str, place: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        return Row(None, place, ())
    return Row(value.get(column), place, None if column in value else tuple(map(str, value)))


def json_values(path: Path) -> Iterator[tuple[Any, int]]:
    """(value, its line) of every row of the file, of a list the line that it begins on; whole numbers are not as
    written.

    Raises:
        InputError: not JSON.
    """
    number = 0
    try:
        with open_text(path, newline="\n") as file:
            lines = enumerate(file, start=1)
            values: Iterable[tuple[Any, int]]
            number, line = next(((n, text) for n, text in lines if text.strip(_SPACE)), (0, ""))
            if line.lstrip(_SPACE).startswith("[") or not _is_whole(line):
                yield from _values_of(line + file.read(), number)
                return
            yield from _values_of(line, number)
            for number, line in lines:
                try:
                    values = [*_values_of(line, number)]
                except json.JSONDecodeError as error:
                    if error.pos < len(line.rstrip(_SPACE)):
                        raise
                    values = _values_of(line + file.read(), number)  # a row that goes on below
                yield from values
    except json.JSONDecodeError as error:
        at = number + error.lineno - 1
        raise InputError(f"data.source.path: '{path}', line {at}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"data.source.path: '{path}', line {number}: not JSON that can be read: too deep") from error


def _is_whole(line: str) -> bool:
    try:
        _DECODER.raw_decode(line.lstrip(_SPACE))
    except json.JSONDecodeError:
        return not line.strip(_SPACE)
    return True


def _values_of(text: str, line: int) -> Iterator[tuple[Any, int]]:
    """The values in `text`, which begins on `line`; of lists their items."""
    at = len(text) - len(text.lstrip(_SPACE))
    while at < len(text):
        value, end = _DECODER.raw_decode(text, at)
        here = line + text.count("\n", 0, at)
        if isinstance(value, list):
            yield from ((item, here) for item in value)
        else:
            yield value, here
        at = end
        while at < len(text) and text[at] in _SPACE:
            at += 1


def parquet_rows(path: Path, column: str) -> Iterator[Row]:
    """
    Raises:
        InputError: not a Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            columns = tuple(file.schema_arrow.names)
            if column not in columns:
                yield from (Row(None, f"row {i}", columns) for i in range(file.metadata.num_rows))
                return
            number = 0
            for batch in file.iter_batches(_READ_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield Row(value, f"row {number}", None)
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.source.path: '{path}' (parquet) cannot be read: {_first_line(error)}") from error


def hub_rows(source: SourceConfig) -> Iterator[Row]:
    """Rows of a data set, never all of it in memory or copied into a cache.

    Raises:
        InputError: there is none, it cannot be reached, or not be read.
    """
    import datasets

    assert source.path is not None
    where = f"data.source.path: '{source.path}'"
    try:
        rows = datasets.load_dataset(
            source.path, streaming=True, name=source.name, split=source.split, revision=source.revision
        )
        for number, row in enumerate(rows):
            yield _row(row, source.text_column, f"row {number}")
    except FileNotFoundError as error:
        raise InputError(f"{where} was not found: {_first_line(error)}") from error
    except ConnectionError as error:
        raise InputError(f"{where} could not be reached: {_first_line(error)}") from error
    except (ValueError, TypeError, EOFError) as error:  # unknown split or configuration, broken JSON or Parquet
        raise InputError(f"{where} ({source.kind}) cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
