"""Documents to a folder of token shards: complete or not there at all, in bounded memory.

Every document is followed by the end-of-document id, which belongs to it. Training and validation are split by
document: a seeded hash of its name decides, so the split survives reordering, and no validation file is trained on.
"""

import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mtp_lightning.data.corpora.account import Account, from_plain
from mtp_lightning.data.corpora.chat import template_hash
from mtp_lightning.data.corpora.documents import Document, documents, refuse_losses
from mtp_lightning.data.corpora.local_files import local_files
from mtp_lightning.data.corpora.source import PAIRS, SourceConfig
from mtp_lightning.data.tokens.store import FORMAT, META_FILE, SPLITS, ShardsMeta, Split, SplitMeta, read_meta
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.tokenizing import Tokenized, tokenize
from mtp_lightning.data.tokens.writer import SplitWriter
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Fraction, Range, Seed, check_ranges


@dataclass(frozen=True)
class ShardSettings:
    """How documents are dealt out.

    Raises:
        InputError: a fraction outside (0, 1), or shards of no tokens.
    """

    validation_fraction: Fraction = 0.05
    """Of the documents, in expectation; at least one document in any case."""
    split_seed: Seed = 0
    """Another seed, another split. Not the seed of a run: runs are compared on the same validation documents."""
    shard_tokens: Annotated[int, Range(least=1, most=2**40)] = 1 << 27
    """Tokens of a shard file, at most. Makes no difference to anything but the files."""

    def __post_init__(self) -> None:
        check_ranges("data", ShardSettings, vars(self))


def prepare_source(directory: Path, source: SourceConfig, tokenizer: Tokenizer, settings: ShardSettings) -> ShardsMeta:
    """Prepares `source` into `directory`, unless it holds shards already.

    Raises:
        InputError: `directory` is something else, cannot be written, or the corpus cannot be read or split.
    """
    if not (directory / META_FILE).is_file():
        account = Account()
        corpus = partial(documents, source, account)
        has_answers = source.kind in PAIRS
        return prepare_shards(directory, corpus, tokenizer, describe(source), settings, account, has_answers)
    meta = read_meta(directory)
    check_whole(directory, meta, source)
    return meta


def check_whole(directory: Path, meta: ShardsMeta, source: SourceConfig) -> None:
    """
    Raises:
        InputError: `source.strict`, and shards that were made of a part of their source, or that do not say of what.
    """
    if source.strict and meta.account is None:
        raise InputError(
            f"data.source.strict: '{directory}' does not say what was left out when it was prepared: prepare it again"
        )
    if meta.account is not None:
        refuse_losses(source, from_plain(meta.account))


def summary(source: SourceConfig, meta: ShardsMeta) -> str:
    """What became of the source, in one line."""
    account = Account() if meta.account is None else from_plain(meta.account)
    splits = meta.splits.values()
    counts = {"documents": sum(part.n_documents for part in splits), "bytes": sum(part.n_bytes for part in splits)}
    counts |= {"tokens": sum(part.n_tokens for part in splits)}
    found = ", ".join(f"{what} {count:,}" for what, count in ({"files": account.files} | counts).items())
    first = f"; the first {source.max_documents:,} documents, as asked for" if source.max_documents else ""
    return f"{source.path or source.kind}: {found}{first}; left out: {account.missing() or 'nothing'}"


def describe(source: SourceConfig) -> dict[str, Any]:
    """The source as plain values, with a hash of local files' sizes and dates: an edited corpus is another corpus."""
    description: dict[str, Any] = asdict(source)
    del description["strict"]  # the same text, or none
    del description["chat_template"]
    if source.chat_template is not None:
        description["chat_template"] = template_hash(Path(source.chat_template).expanduser())
    if source.kind == "python_stdlib":
        description["python"] = sys.version.split()[0]
    if source.kind != "hub":
        root, files, _ = local_files(source)
        hashed = hashlib.sha256()
        for path in files:
            status, name = path.stat(), path.relative_to(root).as_posix()
            hashed.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="replace"))
        description["files"] = hashed.hexdigest()[:16]
    return description


def cache_name(source: SourceConfig, tokenizer: Tokenizer, settings: ShardSettings) -> str:
    """A folder name that differs wherever the shards would."""
    identity = [
        FORMAT, describe(source), tokenizer.fingerprint, settings.validation_fraction, settings.split_seed,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    readable = Path(source.path).stem if source.path else source.kind
    return f"{''.join(c if c.isalnum() else '_' for c in readable)}-{digest}"


def prepare_shards(
    directory: Path,
    corpus: Callable[[], Iterable[Document]],
    tokenizer: Tokenizer,
    description: dict[str, Any],
    settings: ShardSettings,
    account: Account | None = None,
    answers: bool = False,
) -> ShardsMeta:
    """Tokenizes the documents of `corpus()`, which may be called twice, and writes them to `directory`.

    Args:
        account: what `corpus()` fills while it is read.
        answers: whether its documents are pairs, of which the answer alone is trained on.

    Raises:
        InputError: as of `write_shards`.
    """
    return write_shards(
        directory, lambda: tokenize(corpus(), tokenizer), tokenizer, description, settings, account, answers
    )


def write_shards(
    directory: Path,
    corpus: Callable[[], Iterable[Tokenized]],
    tokenizer: Tokenizer,
    description: dict[str, Any],
    settings: ShardSettings,
    account: Account | None = None,
    answers: bool = False,
) -> ShardsMeta:
    """Writes the documents of `corpus()`, which may be called twice, to `directory`.

    Several processes may do this at once: the first one to finish wins, the others take what it made.

    Args:
        account: what `corpus()` fills while it is read.
        answers: whether its documents are pairs, of which the answer alone is trained on.

    Raises:
        InputError: `directory` is there already or cannot be written, or there are too few documents to split.
    """
    with _temporary_sibling(directory) as temporary:
        write = partial(_write_splits, temporary, tokenizer=tokenizer, settings=settings, answers=answers)
        written = write(corpus(), threshold=settings.validation_fraction)
        threshold = _threshold_for_few(written)
        if threshold is not None:
            for file in temporary.iterdir():
                file.unlink()
            written = write(corpus(), threshold=threshold)
        meta = ShardsMeta(
            format=FORMAT,
            vocab_size=tokenizer.vocab_size,
            dtype=smallest_dtype(tokenizer.vocab_size),
            tokenizer=tokenizer.state(),
            tokenizer_fingerprint=tokenizer.fingerprint,
            source=description,
            fingerprint=written.fingerprint,
            splits={str(split): split_meta for split, split_meta in written.splits.items()},
            account=None if account is None else account.plain(),
            answers=answers,
        )
        with _writing_to(directory):
            (temporary / META_FILE).write_text(meta.to_json(), encoding="utf-8")
            try:
                os.rename(temporary, directory)
            except OSError:
                # A folder that is not empty cannot be renamed over. Another process was first: take what it made.
                if not (directory / META_FILE).is_file():
                    raise
    return read_meta(directory)


def split_position(name: str, split_seed: int) -> float:
    """Where in [0, 1) a document falls; below the validation fraction it is a validation document."""
    digest = hashlib.sha256(f"{split_seed}\0{name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def smallest_dtype(vocab_size: int) -> str:
    return "uint8" if vocab_size <= 1 << 8 else "uint16" if vocab_size <= 1 << 16 else "uint32"


class _Written(NamedTuple):
    splits: dict[Split, SplitMeta]
    fingerprint: str
    lowest: float
    """The smallest `split_position` of a document."""
    highest: float


def _write_splits(
    directory: Path,
    corpus: Iterable[Tokenized],
    tokenizer: Tokenizer,
    settings: ShardSettings,
    threshold: float,
    answers: bool,
) -> _Written:
    """Writes the files of both splits; the documents below `threshold` are for validation."""
    dtype, lowest, highest = smallest_dtype(tokenizer.vocab_size), 1.0, 0.0
    with _writing_to(directory):
        writers = {split: SplitWriter(directory, split, dtype, settings.shard_tokens, answers) for split in SPLITS}
    try:
        with _progress() as report:
            for document in corpus:
                position = split_position(document.name, settings.split_seed)
                lowest, highest = min(lowest, position), max(highest, position)
                split: Split = "validation" if position < threshold else "train"
                with _writing_to(directory):
                    writers[split].add(document.tokens, document.n_bytes, document.answer)
                report(len(document.tokens))
        with _writing_to(directory):
            splits = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    hashes = "".join(writers[split].hashed.hexdigest() for split in SPLITS)
    return _Written(splits, hashlib.sha256(hashes.encode()).hexdigest()[:16], lowest, highest)


def _threshold_for_few(written: _Written) -> float | None:
    """None where both splits have documents. Chance leaves one empty when documents are few: then the threshold that
    gives it the one document that was nearest to falling there."""
    if all(split.n_documents for split in written.splits.values()):
        return None
    if written.lowest >= written.highest:
        raise InputError(
            "data.source: the corpus has only one document, and it cannot be both trained on and validated on; give "
            "more files, or data.source.separator to split a text file into documents"
        )
    return math.nextafter(written.lowest, 1.0) if written.splits["train"].n_documents else written.highest


@contextmanager
def _temporary_sibling(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`, on the same file system; gone afterwards, unless it was renamed."""
    occupied = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if occupied and not (directory / META_FILE).is_file():  # with shards: another process has just made them
        raise InputError(f"'{directory}' exists and does not hold token shards: choose another folder")
    # Not tempfile.mkdtemp: its folders are private, and shards are for all who may write beside them.
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with _writing_to(directory):
        temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    """A full disk or a missing permission is not a bug here: one clear message."""
    try:
        yield
    except OSError as error:
        raise InputError(f"data.directory: cannot write the shards to '{directory}': {error.strerror}") from error


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Shows on standard error, if that is a terminal, how far it is: call what it gives with each document's size."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing the corpus")
        n_documents = n_tokens = 0

        def report(size: int) -> None:
            nonlocal n_documents, n_tokens
            n_documents, n_tokens = n_documents + 1, n_tokens + size
            text = f"preparing the corpus: {n_documents:,} documents, {n_tokens:,} tokens"
            progress.update(task, description=text)

        yield report
