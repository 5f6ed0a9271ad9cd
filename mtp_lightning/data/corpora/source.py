"""Where text comes from: generators of documents, in an order that does not change from run to run."""

import glob
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from mtp_lightning.data.stories import generator as stories
from mtp_lightning.data.stories import templates as story_templates
from mtp_lightning.errors import InputError, did_you_mean

SourceKind = Literal["python_stdlib", "stories", "text", "json", "parquet", "hub", "shards"]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt",),
    "json": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "parquet": (".parquet",),
}
"""What a folder is searched for, unless `glob` says otherwise."""
STDLIB_EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings"})
"""Not the standard library (the first two); tests, which repeat themselves; and tables of data in Python's clothes."""
_CHUNK = 1 << 20
_REGEX = "re:"
_AROUND = 256
"""Characters before and behind a separator that a regular expression may look at."""


class Document(NamedTuple):
    """A text and its name, which is unique in its corpus and decides on which side of the split it falls."""

    name: str
    text: str


@dataclass(frozen=True)
class SourceConfig:
    """A corpus.

    Raises:
        InputError: a kind that needs a path and has none.
    """

    kind: SourceKind = "python_stdlib"
    """`python_stdlib`: the source code of the running interpreter's standard library; `stories`: children's stories of
    our own generator; `text`, `json` (also JSON lines) and `parquet`: local files; `hub`: a data set on the Hugging
    Face hub, streamed; `shards`: a folder made by `mtp data prepare`."""
    path: str | None = None
    """File, folder or glob pattern of local files; name of a hub data set; folder of shards."""
    glob: str | None = None
    """Which files of the folder `path` to read, as in `**/*.md`; by default those with a suffix of the kind."""
    separator: str | None = None
    """Splits a text file into documents; by default a file is a document. `\\n` in it means a line break. Behind `re:`
    it is a regular expression, as `re:(?<!\\n)\\n(?!\\n)` for single line breaks."""
    text_column: str = "text"
    """The column of json, parquet and hub data that holds the text."""
    name: str | None = None
    """Configuration of a hub data set, where it has several."""
    split: str = "train"
    """Split of a hub data set to read. Training and validation are split here, by document."""
    revision: str | None = None
    """Commit of a hub data set, so that it cannot change under a running experiment."""
    max_documents: int | None = None
    """Read only so many documents. Of `stories` there are as many as asked for, 20,000 by default."""
    invented_names: bool = False
    """For `stories`: characters have names out of some two million, which nothing but copying foretells."""

    def __post_init__(self) -> None:
        if self.kind not in ("python_stdlib", "stories") and not self.path:
            raise InputError(f"data.source.path is missing: data.source.kind = '{self.kind}' reads from there")
        if self.invented_names and self.kind != "stories":
            raise InputError(
                f"data.source.invented_names goes with data.source.kind = 'stories', not with '{self.kind}'"
            )
        if self.separator == "":
            raise InputError("data.source.separator is empty: leave it out to keep a file as one document")
        if self.separator is not None:
            _separator_pattern(self.separator)
        if self.max_documents is not None and self.max_documents < 1:
            raise InputError(f"data.source.max_documents is {self.max_documents}: it has to be at least 1, or null")


PYTHON_STDLIB = SourceConfig(kind="python_stdlib")


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
        texts = stories.stories(source.max_documents or stories.DEFAULT_COUNT, invented_names=source.invented_names)
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


def local_files(source: SourceConfig) -> tuple[Path, list[Path]]:
    """The folder that document names are relative to, and the files to read, sorted; of stories, the files of the
    generator, which are all that they depend on.

    Raises:
        InputError: a path that is missing, or that no file matches.
    """
    if source.kind == "python_stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return root, sorted(_stdlib_modules(root))
    if source.kind == "stories":
        return Path(stories.__file__).parent, [Path(stories.__file__), Path(story_templates.__file__)]
    path = Path(source.path or "").expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        pattern = source.glob or "**/*"
        found = [p for p in path.glob(pattern) if source.glob or p.name.endswith(SUFFIXES[source.kind])]
        root, wanted = path, source.glob or " or ".join(SUFFIXES[source.kind])
    elif glob.has_magic(str(path)):
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
        # The parts before the pattern are where the corpus lies, not what its documents are called.
        literal = [part for i, part in enumerate(path.parts) if not any(map(glob.has_magic, path.parts[: i + 1]))]
        root, wanted = Path(*literal), path.name
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"data.source.path: there is no file or folder '{path}'{did_you_mean(path.name, siblings)}")
    files = sorted(p for p in found if p.is_file())
    if not files:
        raise InputError(f"data.source.path: no file in '{root}' matches {wanted}")
    return root, files


def _stdlib_modules(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in STDLIB_EXCLUDED]  # walk() does not enter the rest
        # _sysconfigdata*.py says how this very interpreter was compiled.
        yield from (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))


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
            for i, part in enumerate(_parts(file, _separator_pattern(separator))):
                yield Document(f"{name}#{i}", part)
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.source.path: '{path}' is not UTF-8 text ({error.reason}); convert it, or leave it out by "
            "data.source.glob"
        ) from error
    except OSError as error:
        raise InputError(f"data.source.path: cannot read '{path}': {error.strerror}") from error


def _separator_pattern(separator: str) -> re.Pattern[str]:
    """
    Raises:
        InputError: no regular expression behind `re:`.
    """
    if not separator.startswith(_REGEX):
        return re.compile(re.escape(separator.replace("\\n", "\n")))
    try:
        return re.compile(separator.removeprefix(_REGEX))
    except re.error as error:
        raise InputError(f"data.source.separator: '{separator}' is no regular expression: {error}") from error


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
