"""Prepared tokens on disk, memory-mapped. A folder of shards holds, written by `prepare.py`:

    meta.json                               `ShardsMeta`: what is there, made from what, by which tokenizer
    train-00000.bin, train-00001.bin, ...   token ids, little endian, documents one after the other
    train-documents.bin                     int64: where in the split each document starts
    train-answers.bin                       int64: where in the split each document's answer begins, which alone counts
                                            with the end of the document; only where documents are pairs
    validation-...                          the same for the other split

A position in a split counts tokens from its start, across shard files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtp_lightning.data.corpora.account import AccountMeta
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, as_record, read_json
from mtp_lightning.shapes import Int

FORMAT = 1
META_FILE = "meta.json"
DTYPES = ("uint8", "uint16", "uint32")
"""Of tokens."""
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class SplitMeta:
    """One split: its size, and the number of tokens in each of its shard files."""

    n_tokens: int
    n_documents: int
    n_bytes: int
    """UTF-8 bytes of the text; ends of documents are tokens but no bytes."""
    shards: Sequence[int]


@dataclass(frozen=True)
class ShardsMeta:
    """What `meta.json` says."""

    format: int
    vocab_size: int
    dtype: str
    tokenizer: dict[str, str]
    tokenizer_fingerprint: str
    source: dict[str, Any]
    fingerprint: str
    """Hash of all tokens: equal data, wherever and in however many files it was prepared."""
    splits: dict[str, SplitMeta]
    account: dict[str, Any] | None = None
    """What was read of the source and what was left out (`corpora.account`); None: made before that was noted."""
    answers: bool = False
    """Whether each document is a question with an answer, and the answer alone is trained on."""
    hashes: dict[str, str] | None = None
    """SHA-256 of each file, by its name (`verify`); None: made before these were noted."""

    def to_json(self) -> str:
        content = asdict(self)
        if not self.answers:
            del content["answers"]  # as shards of plain text always were
        if self.hashes is None:
            del content["hashes"]
        return json.dumps(content, indent=1) + "\n"

    def files(self, split: str) -> list[str]:
        """Names of a split's files."""
        answers = [answers_file(split)] if self.answers else []
        return [*(shard_file(split, i) for i in range(len(self.splits[split].shards))), documents_file(split), *answers]


def shard_file(split: str, index: int) -> str:
    return f"{split}-{index:05d}.bin"


def documents_file(split: str) -> str:
    return f"{split}-documents.bin"


def answers_file(split: str) -> str:
    return f"{split}-answers.bin"


def read_meta(directory: Path) -> ShardsMeta:
    """The description of a folder of shards.

    Raises:
        InputError: not such a folder, one of another version, or a description that does not fit together.
    """
    path = directory / META_FILE
    try:
        found = read_json(path, most=2**30) if directory.is_dir() else None  # it holds the tokenizer
        if found is None:
            raise InputError(
                f"'{directory}' is not a folder of token shards (it has no {META_FILE}); make one with `mtp data "
                "prepare`"
            )
        if found.get("format") != FORMAT:
            raise InputError(
                f"'{directory}' holds shards of format {found.get('format')!r:.40}, and this version reads format "
                f"{FORMAT}: prepare them again"
            )
        meta = as_record(ShardsMeta, path, found)
        _check_meta(path, meta, found)
    except DamagedError as error:
        raise InputError(f"'{path}' is damaged ({error.why}): prepare the shards again") from error
    return meta


def _check_meta(path: Path, meta: ShardsMeta, found: Mapping[str, Any]) -> None:
    """
    Raises:
        DamagedError: numbers that do not go together. A key that is left out or renamed must not pass for one that an
            earlier version did not write: with another `answers`, questions would be trained on.
    """
    unknown = sorted(found.keys() - {field.name for field in fields(ShardsMeta)})
    if unknown:
        raise DamagedError(path, f"its '{unknown[0]}' is unknown to this version")
    if meta.dtype not in DTYPES:
        raise DamagedError(path, f"its 'dtype' is {meta.dtype!r:.40}, and has to be one of {', '.join(DTYPES)}")
    if meta.splits.keys() != set(SPLITS):
        raise DamagedError(path, f"its 'splits' are not {' and '.join(SPLITS)}")
    for split, part in meta.splits.items():
        if min(*part.shards, part.n_tokens, part.n_documents, part.n_bytes, 0) < 0 or sum(part.shards) != part.n_tokens:
            raise DamagedError(path, f"the numbers of its split '{split}' cannot be")
    files = {name for split in meta.splits for name in meta.files(split)}
    if meta.hashes is not None and meta.hashes.keys() != files:
        raise DamagedError(path, "its 'hashes' are of other files than its splits have")
    if meta.account is not None:
        as_record(AccountMeta, path, meta.account, "account.")


class TokenStore:
    """One split of a folder of shards, read at any position. Cheap to open, and to send to a worker process.

    Raises:
        InputError: not such a folder, or a file whose size is not what meta.json says.
    """

    def __init__(self, directory: Path, split: Split) -> None:
        self.directory, self.split = directory, split
        self.meta = read_meta(directory)
        self.split_meta = self.meta.splits[split]
        # Little endian on disk whatever the machine.
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        self._shards = [
            _memory_map(directory / shard_file(split, i), dtype, n) for i, n in enumerate(self.split_meta.shards)
        ]
        self._shard_starts = np.cumsum([0, *self.split_meta.shards])
        self.document_starts: Int[np.ndarray, "documents"] = _memory_map(
            directory / documents_file(split), np.dtype("<i8"), self.split_meta.n_documents
        )
        self.answer_starts: Int[np.ndarray, "documents"] | None = None
        """Where each document's answer begins; None where everything counts."""
        if self.meta.answers:
            self.answer_starts = _memory_map(
                directory / answers_file(split), np.dtype("<i8"), self.split_meta.n_documents
            )

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path, Split]]:
        # A pickled memory map would be a copy of all its data; a worker opens the files instead.
        return (TokenStore, (self.directory, self.split))

    def __len__(self) -> int:
        return self.split_meta.n_tokens

    def read(self, start: int, length: int) -> Int[np.ndarray, "{length}"]:
        """int64 ids of the tokens at `start` ... `start + length - 1`."""
        assert 0 <= start <= len(self) - length, (start, length, len(self))
        out = np.empty(length, dtype=np.int64)
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        done = 0
        while done < length:
            offset = start + done - int(self._shard_starts[shard])
            piece = self._shards[shard][offset : offset + length - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1
        return out

    def document_ids(self, start: int, length: int) -> Int[np.ndarray, "{length}"]:
        """int32 number, within the split, of the document that each of these tokens belongs to."""
        positions = np.arange(start, start + length)
        return (np.searchsorted(self.document_starts, positions, side="right") - 1).astype(np.int32)


def _memory_map(path: Path, dtype: np.dtype[Any], n_items: int) -> np.ndarray:
    expected = n_items * dtype.itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is missing: prepare the shards again") from error
    if size != expected:
        raise InputError(f"'{path}' has {size} bytes, and {META_FILE} says {expected}: prepare the shards again")
    return np.memmap(path, dtype=dtype, mode="r", shape=(n_items,))
