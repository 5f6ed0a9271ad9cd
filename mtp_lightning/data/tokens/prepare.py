"""Documents to a folder of token shards: complete or not there at all, in bounded memory.

Every document is followed by the end-of-document id, which belongs to it. Training and validation are split by
document: a seeded hash of its name decides, so the split survives reordering, and no validation file is trained on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from mtp_lightning.data.corpora.account import Account, from_plain
from mtp_lightning.data.corpora.description import describe
from mtp_lightning.data.corpora.documents import Document, documents, refuse_losses
from mtp_lightning.data.corpora.kept import check_split
from mtp_lightning.data.corpora.source import PAIRS, SourceConfig
from mtp_lightning.data.preparing.chunks import Chunk, make_chunk, read_chunk, split_threshold, tokenize_to_files
from mtp_lightning.data.preparing.folders import progress, refuse_occupied, temporary_sibling, work_folder, writing_to
from mtp_lightning.data.tokens.store import FORMAT, META_FILE, SPLITS, ShardsMeta, Split, SplitMeta, read_meta
from mtp_lightning.data.tokens.tokenizer import Tokenizer, begin_ids
from mtp_lightning.data.tokens.tokenizing import Tokenized
from mtp_lightning.data.tokens.writer import SplitWriter
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Fraction, Range, Seed, check_ranges

PrepareWorkers = Annotated[int, Range(least=1, most=256)]
_DOCUMENTS = 1024
"""Documents that are already tokenized are written so many at a time."""


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


def prepare_source(
    directory: Path, source: SourceConfig, tokenizer: Tokenizer, settings: ShardSettings, workers: int = 1
) -> ShardsMeta:
    """Prepares `source` into `directory`, unless it holds shards already.

    Args:
        workers: processes that tokenize; the bytes do not depend on it.

    Raises:
        InputError: `directory` is something else, cannot be written, or the corpus cannot be read or split.
    """
    check_split(source, settings.validation_fraction, settings.split_seed)
    if not (directory / META_FILE).is_file():
        account = Account()
        corpus = partial(documents, source, account)
        has_answers = source.kind in PAIRS
        return prepare_shards(directory, corpus, tokenizer, describe(source), settings, account, has_answers, workers)
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


def cache_name(source: SourceConfig, tokenizer: Tokenizer, settings: ShardSettings) -> str:
    """A folder name that differs wherever the shards would."""
    identity = [FORMAT, describe(source), tokenizer.fingerprint, settings.validation_fraction, settings.split_seed]
    if source.kind == "pairs" and begin_ids(tokenizer):
        identity.append("begins")  # shards of earlier versions lack the tokens before a question
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
    workers: int = 1,
) -> ShardsMeta:
    """Tokenizes the documents of `corpus()` and writes them to `directory`.

    Killed in between, it goes on when it is called again: what is tokenized lies in files beside `directory`, a few
    megabytes each. Several processes may do this at once: the first one to finish wins, the others take what it made.

    Args:
        account: what `corpus()` fills while it is read.
        answers: whether its documents are pairs, of which the answer alone is trained on.
        workers: processes that tokenize; the bytes do not depend on it.

    Raises:
        InputError: as of `write_shards`.
    """
    refuse_occupied(directory)
    dtype = smallest_dtype(tokenizer.vocab_size)
    with work_folder(directory) as folder, progress() as report:
        writing = partial(writing_to, directory)
        with writing():
            shutil.rmtree(folder / "shards", ignore_errors=True)  # half written, when somebody was killed
            (folder / "shards").mkdir()
        files = tokenize_to_files(folder, corpus(), tokenizer, dtype, settings.split_seed, workers, report, writing)
        chunks = partial(map, read_chunk, files)
        return _write(folder / "shards", directory, chunks, tokenizer, description, settings, account, answers)


def write_shards(
    directory: Path,
    corpus: Callable[[], Iterable[Tokenized]],
    tokenizer: Tokenizer,
    description: dict[str, Any],
    settings: ShardSettings,
    account: Account | None = None,
    answers: bool = False,
) -> ShardsMeta:
    """Writes the documents of `corpus()`, tokenized already, to `directory`. It may be called twice.

    Args:
        account: what `corpus()` fills while it is read.
        answers: whether its documents are pairs, of which the answer alone is trained on.

    Raises:
        InputError: `directory` is there already or cannot be written, or there are too few documents to split.
    """

    def chunks() -> Iterator[Chunk]:
        left, dtype = iter(corpus()), smallest_dtype(tokenizer.vocab_size)
        while some := list(islice(left, _DOCUMENTS)):
            yield make_chunk(some, dtype, settings.split_seed)

    refuse_occupied(directory)
    with temporary_sibling(directory) as temporary:
        return _write(temporary, directory, chunks, tokenizer, description, settings, account, answers)


def _write(
    temporary: Path,
    directory: Path,
    chunks: Callable[[], Iterable[Chunk]],
    tokenizer: Tokenizer,
    description: dict[str, Any],
    settings: ShardSettings,
    account: Account | None,
    answers: bool,
) -> ShardsMeta:
    """Writes the documents of `chunks()` to the folder `temporary`, and gives it its name."""
    dtype = smallest_dtype(tokenizer.vocab_size)
    with writing_to(directory):
        write = partial(_write_splits, temporary, dtype=dtype, settings=settings, answers=answers)
        written = write(chunks(), threshold=settings.validation_fraction)
        threshold = split_threshold(settings.validation_fraction, written.lowest, written.highest)
        if threshold != settings.validation_fraction:
            for file in temporary.iterdir():
                file.unlink()
            written = write(chunks(), threshold=threshold)
        meta = ShardsMeta(
            format=FORMAT,
            vocab_size=tokenizer.vocab_size,
            dtype=dtype,
            tokenizer=tokenizer.state(),
            tokenizer_fingerprint=tokenizer.fingerprint,
            source=description,
            fingerprint=written.fingerprint,
            splits={str(split): split_meta for split, split_meta in written.splits.items()},
            account=None if account is None else account.plain(),
            answers=answers,
            hashes=written.hashes,
        )
        (temporary / META_FILE).write_text(meta.to_json(), encoding="utf-8")
        try:
            os.rename(temporary, directory)
        except OSError:
            # A folder that is not empty cannot be renamed over. Another process was first: take what it made.
            if not (directory / META_FILE).is_file():
                raise
    return read_meta(directory)


def smallest_dtype(vocab_size: int) -> str:
    return "uint8" if vocab_size <= 1 << 8 else "uint16" if vocab_size <= 1 << 16 else "uint32"


class _Written(NamedTuple):
    splits: dict[Split, SplitMeta]
    fingerprint: str
    hashes: dict[str, str]
    lowest: float
    """The smallest `split_position` of a document."""
    highest: float


def _write_splits(
    directory: Path, chunks: Iterable[Chunk], dtype: str, settings: ShardSettings, threshold: float, answers: bool
) -> _Written:
    """Writes the files of both splits; the documents below `threshold` are for validation."""
    lowest, highest = 1.0, 0.0
    writers = {split: SplitWriter(directory, split, dtype, settings.shard_tokens, answers) for split in SPLITS}
    try:
        for chunk in chunks:
            validates = chunk.positions < threshold
            lowest, highest = min(lowest, chunk.positions.min()), max(highest, chunk.positions.max())
            writers["validation"].add(chunk, validates)
            writers["train"].add(chunk, ~validates)
        splits = {split: writer.finish() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    fingerprint = hashlib.sha256("".join(writers[split].hashed.hexdigest() for split in SPLITS).encode()).hexdigest()
    hashes = {name: digest for writer in writers.values() for name, digest in writer.hashes.items()}
    return _Written(splits, fingerprint[:16], hashes, float(lowest), float(highest))
