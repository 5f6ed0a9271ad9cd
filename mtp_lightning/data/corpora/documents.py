"""Where text comes from: generators of documents, in an order that does not change from run to run."""

import hashlib
import re
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.kept import CorpusHash, read_kept
from mtp_lightning.data.corpora.local_files import SAME_FILE, local_files
from mtp_lightning.data.corpora.open_files import open_text
from mtp_lightning.data.corpora.pairs import pairs
from mtp_lightning.data.corpora.rows import Row, hub_rows, json_rows, parquet_rows
from mtp_lightning.data.corpora.source import SourceConfig, separator_pattern
from mtp_lightning.data.stories.generator import DEFAULT_COUNT, stories
from mtp_lightning.data.stories.questions import story_pairs
from mtp_lightning.errors import InputError, did_you_mean

_CHUNK = 1 << 20
_AROUND = 256
"""Characters before and after a separator that a regular expression may look at."""
_PATIENCE = 10_000
"""Rows without text after which nobody waits for the first one that has some."""


class Document(NamedTuple):
    """A text and its name, which is unique in its corpus and decides on which side of the split it falls."""

    name: str
    text: str
    answer_start: int | None = None
    """Characters before its answer, which alone is trained on; None where everything counts."""
    rendered: bool = False
    """Whether the names of special tokens in it mean these tokens: a chat template wrote them."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What is tokenized apart: question and answer, or the whole text."""
        if self.answer_start is None:
            return (self.text,)
        return self.text[: self.answer_start], self.text[self.answer_start :]

    def content(self) -> bytes:
        """All of it, for hashes: other bytes for every other document."""
        parts = (self.name, self.text, str(self.answer_start), str(self.rendered))
        encoded = [part.encode("utf-8", errors="surrogatepass") for part in parts]
        return b"".join(len(part).to_bytes(8, "little") + part for part in encoded)


def documents(source: SourceConfig, account: Account | None = None) -> Iterator[Document]:
    """The source's documents that are not empty.

    Args:
        account: to fill with what is read and what is left out.

    Raises:
        InputError: nothing there, or not text; the message names the key. Raised at the first document at the latest.
            Where `source.strict`, also what is left out; raised at the end at the latest.
    """
    account = Account() if account is None else account
    account.begin()
    found = _all_documents(source, account)
    found = _distinct(found, account) if source.deduplicate else found
    found = islice(found, source.max_documents)
    for document in found if source.keep is None else _kept(found, source.keep, account):
        account.documents += 1
        yield document
    if not account.documents and account.refusal:
        raise InputError(account.refusal)
    if not account.documents:
        missing = f" (left out: {account.missing()})" if account.left_out else ""
        raise InputError(
            f"data.source.path: '{source.path or source.kind}' has no text in it: the corpus is empty{missing}"
        )
    refuse_losses(source, account)


def _distinct(found: Iterator[Document], account: Account) -> Iterator[Document]:
    """Each text once, where it occurs first."""
    seen: set[bytes] = set()
    for document in found:
        text = document.text.encode("utf-8", errors="surrogatepass")
        digest = hashlib.blake2b(text, digest_size=16, salt=str(document.answer_start or 0).encode()[:16]).digest()
        if digest in seen:
            account.leave_out("duplicates", document.name, harmless=True)
        else:
            seen.add(digest)
            yield document


def _kept(found: Iterator[Document], path: str, account: Account) -> Iterator[Document]:
    """The documents that the list at `path` names; all of them are looked at, for the list is of one corpus.

    Raises:
        InputError: a list of another corpus; raised at the end.
    """
    kept = read_kept(path)
    hashed, met = CorpusHash(), 0
    for document in found:
        hashed.add(document.content())
        if document.name in kept.names:
            met += 1
            yield document
        else:
            account.leave_out("pruned documents", document.name, harmless=True)
    kept.check(path, hashed, met)


def refuse_losses(source: SourceConfig, account: Account) -> None:
    """
    Raises:
        InputError: something was left out, and `source.strict`.
    """
    if source.strict and account.losses:
        raise InputError(
            f"data.source.strict: '{source.path or source.kind}' is not read as a whole; left out: {account.missing()}"
            "; remove or mend them, choose files by data.source.glob, or leave out data.source.strict"
        )


def _all_documents(source: SourceConfig, account: Account) -> Iterator[Document]:
    if source.kind == "shards":
        raise InputError("data.source.kind = 'shards' is prepared already: it has no documents to read")
    if source.kind == "hub":
        yield from _of_rows(hub_rows(source), source, source.split, f"data set '{source.path}'", account)
        return
    if source.kind == "stories":
        texts = stories(source.max_documents or DEFAULT_COUNT, invented_names=source.invented_names)
        yield from (Document(f"story#{i}", text) for i, text in enumerate(texts))
        return
    if source.kind == "story_pairs":
        for asked in story_pairs(source.max_documents or DEFAULT_COUNT, invented_names=source.invented_names):
            yield Document(asked.name, asked.prompt + asked.answer, len(asked.prompt))
        return
    found = local_files(source)
    for why, path in found.left_out:
        account.leave_out(why, path.relative_to(found.root).as_posix(), harmless=why == SAME_FILE)
    refuse_losses(source, account)
    for path in found.read:
        account.files += 1
        name = path.relative_to(found.root).as_posix()
        if not path.stat().st_size:
            account.leave_out("empty files", name, harmless=source.kind == "python_stdlib")
        elif source.kind == "python_stdlib":
            yield from _of_module(name, path, account)
        elif source.kind == "text":
            yield from _of_text(name, path, source.separator, account)
        elif source.kind == "pairs":
            template = None if source.chat_template is None else Path(source.chat_template).expanduser()
            for pair in pairs(path, template, name, account):
                yield Document(f"{name}#{pair.number}", pair.prompt + pair.answer, len(pair.prompt), pair.rendered)
        else:
            rows = json_rows if source.kind == "json" else parquet_rows
            yield from _of_rows(rows(path, source.text_column), source, name, f"'{path}'", account)


def _of_module(name: str, path: Path, account: Account) -> Iterator[Document]:
    try:
        yield Document(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        account.leave_out("modules that are not UTF-8", name)


def _of_text(name: str, path: Path, separator: str | None, account: Account) -> Iterator[Document]:
    """The file, or its parts between separators, read piece by piece: a part has to fit in memory, the file not."""
    with open_text(path, newline="") as file:
        if separator is None:
            parts = iter([(name, file.read())])
        else:
            parts = ((f"{name}#{i}", part) for i, part in enumerate(_parts(file, separator_pattern(separator))))
        for part_name, text in parts:
            if text:
                yield Document(part_name, text)
            else:
                what = "empty files" if separator is None else "empty parts between separators"
                account.leave_out(what, part_name, harmless=separator is not None)


def _parts(file: TextIOWrapper, pattern: re.Pattern[str]) -> Iterator[str]:
    """What lies between matches. Near the end of what was read a match waits for what follows, and what lies before
    a part is kept for those that look back. As much is read as is held: a text without separators is looked through
    about twice, and not once for each piece."""
    text, start, more = "", 0, True
    while more:
        chunk = file.read(max(_CHUNK, len(text)))
        text, more = text + chunk, bool(chunk)
        for match in pattern.finditer(text, start):
            if more and match.end() > len(text) - _AROUND:
                break
            yield text[start : match.start()]
            start = match.end()
        forgotten = max(0, start - _AROUND)
        text, start = text[forgotten:], start - forgotten
    yield text[start:]


def _of_rows(rows: Iterator[Row], source: SourceConfig, name: str, where: str, account: Account) -> Iterator[Document]:
    """The rows that have text."""
    for i, row in enumerate(rows):
        if isinstance(row.value, str) and row.value:
            yield Document(f"{name}#{i}", row.value)
            continue
        account.leave_out(_why_not(row), f"{name}, {row.place}")
        account.refusal = account.refusal or _refusal(row, source.text_column, where)
        if account.refusal and not account.documents and account.left_out.total() >= _PATIENCE:
            return


def _why_not(row: Row) -> str:
    if row.value is None:
        return "rows without text"
    return "rows whose column is not text" if row.value != "" else "empty rows"


def _refusal(row: Row, column: str, where: str) -> str | None:
    """What to say of the row where nothing but rows like it is there."""
    if row.columns is not None:
        return (
            f"data.source.text_column: {where} has no column '{column}' in {row.place} "
            f"(it has {', '.join(row.columns)}){did_you_mean(column, row.columns)}"
        )
    if row.value is not None and not isinstance(row.value, str):
        return (
            f"data.source.text_column: '{column}' of {where} is not text: {row.place} has a {type(row.value).__name__}"
        )
    return None
