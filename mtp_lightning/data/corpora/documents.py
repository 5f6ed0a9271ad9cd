"""Where text comes from: generators of documents, in an order that does not change from run to run."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mtp_lightning.data.corpora.local_files import local_files
from mtp_lightning.data.corpora.source import SourceConfig, separator_pattern
from mtp_lightning.data.stories.generator import DEFAULT_COUNT, stories
from mtp_lightning.errors import InputError, did_you_mean

_CHUNK = 1 << 20
_AROUND = 256
"""Characters before and after a separator that a regular expression may look at."""


class Document(NamedTuple):
    """A text and its name, which is unique in its corpus and decides on which side of the split it falls."""

    name: str
    text: str


def documents(source: SourceConfig) -> Iterator[Document]:
    """The source's documents that are not empty.

    Raises:
        InputError: nothing there, or not text; the message names the key. Raised at the first document at the latest.
    """
    found = (document for document in _all_documents(source) if document.text)
    first = next(found, None)
    if first is None:
        raise InputError(f"data.source.path: '{source.path or source.kind}' has no text in it: the corpus is empty")
    yield first
    yield from islice(found, None if source.max_documents is None else source.max_documents - 1)


def _all_documents(source: SourceConfig) -> Iterator[Document]:
    if source.kind == "shards":
        raise InputError("data.source.kind = 'shards' is prepared already: it has no documents to read")
    if source.kind == "hub":
        yield from _hub_documents(source)
        return
    if source.kind == "stories":
        texts = stories(source.max_documents or DEFAULT_COUNT, invented_names=source.invented_names)
        yield from (Document(f"story#{i}", text) for i, text in enumerate(texts))
        return
    root, files = local_files(source)
    for path in files:
        name = path.relative_to(root).as_posix()
        if source.kind == "python_stdlib":
            yield from _stdlib_document(name, path)
        elif source.kind == "text":
            yield from _text_documents(name, path, source.separator)
        elif path.stat().st_size:  # `datasets` does not survive an empty file
            rows = _load_rows(source, source.kind, data_files=[str(path)], split="train")
            yield from _rows_to_documents(rows, source, name, f"'{path}'")


def _stdlib_document(name: str, path: Path) -> Iterator[Document]:
    try:
        yield Document(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return  # a handful of modules declare another encoding


def _text_documents(name: str, path: Path, separator: str | None) -> Iterator[Document]:
    """The file, or its parts between separators, read piece by piece: a part has to fit in memory, the file not."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if separator is None:
                yield Document(name, file.read())
                return
            for i, part in enumerate(_parts(file, separator_pattern(separator))):
                yield Document(f"{name}#{i}", part)
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.source.path: '{path}' is not UTF-8 text ({error.reason}); convert it, or leave it out by "
            "data.source.glob"
        ) from error
    except OSError as error:
        raise InputError(f"data.source.path: cannot read '{path}': {error.strerror}") from error


def _parts(file: TextIO, pattern: re.Pattern[str]) -> Iterator[str]:
    """What lies between matches. Near the end of what was read a match waits for what follows, and what lies before
    a part is kept for those that look back."""
    text, start, more = "", 0, True
    while more:
        chunk = file.read(_CHUNK)
        text, more = text + chunk, bool(chunk)
        for match in pattern.finditer(text, start):
            if more and match.end() > len(text) - _AROUND:
                break
            yield text[start : match.start()]
            start = match.end()
        forgotten = max(0, start - _AROUND)
        text, start = text[forgotten:], start - forgotten
    yield text[start:]


def _hub_documents(source: SourceConfig) -> Iterator[Document]:
    assert source.path is not None
    rows = _load_rows(source, source.path, name=source.name, split=source.split, revision=source.revision)
    yield from _rows_to_documents(rows, source, source.split, f"data set '{source.path}'")


def _load_rows(source: SourceConfig, builder: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Rows of a data set, never all of it in memory or copied into a cache."""
    import datasets

    where = f"data.source.path: '{options.get('data_files', [builder])[0]}'"
    try:
        yield from datasets.load_dataset(builder, streaming=True, **options)
    except FileNotFoundError as error:
        raise InputError(f"{where} was not found: {_first_line(error)}") from error
    except ConnectionError as error:
        raise InputError(f"{where} could not be reached: {_first_line(error)}") from error
    except ValueError as error:  # unknown split or configuration, broken JSON or Parquet
        raise InputError(f"{where} ({source.kind}) cannot be read: {_first_line(error)}") from error


def _rows_to_documents(
    rows: Iterator[dict[str, Any]], source: SourceConfig, name: str, where: str
) -> Iterator[Document]:
    column = source.text_column
    for i, row in enumerate(rows):
        if column not in row:
            raise InputError(
                f"data.source.text_column: {where} has no column '{column}' in row {i} "
                f"(it has {', '.join(map(str, row))}){did_you_mean(column, map(str, row))}"
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"data.source.text_column: '{column}' of {where} is not text: row {i} has a {type(text).__name__}"
            )
        yield Document(f"{name}#{i}", text or "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
