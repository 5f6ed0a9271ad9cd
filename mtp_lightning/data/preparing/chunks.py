"""Documents tokenized a few megabytes at a time, a chunk a file (`pieces.py`), and the split by their names."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.preparing.pieces import Arrays, Work, read_arrays, to_files
from mtp_lightning.data.tokens.tokenizer import Tokenizer, tokenizer_from_state
from mtp_lightning.data.tokens.tokenizing import Tokenized, tokenize
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Float, Int


class Chunk(NamedTuple):
    """Documents as shards keep them, one after the other."""

    tokens: Int[np.ndarray, "tokens"]
    lengths: Int[np.ndarray, "documents"]
    n_bytes: Int[np.ndarray, "documents"]
    answers: Int[np.ndarray, "documents"]
    """Tokens before the answer."""
    positions: Float[np.ndarray, "documents"]
    """`split_position` of the name, which decides on which side of the split a document falls."""


def make_chunk(documents: Iterable[Tokenized], dtype: str, split_seed: int) -> Chunk:
    """
    Args:
        dtype: of the tokens.
    """
    found = list(documents)
    tokens = [np.array(document.tokens, dtype=dtype) for document in found]
    return Chunk(
        np.concatenate(tokens) if tokens else np.empty(0, dtype=dtype),
        np.array([len(one) for one in tokens], dtype=np.int64),
        np.array([document.n_bytes for document in found], dtype=np.int64),
        np.array([document.answer for document in found], dtype=np.int64),
        np.array([split_position(document.name, split_seed) for document in found], dtype=np.float64),
    )


def read_chunk(path: Path) -> Chunk:
    return Chunk(**read_arrays(path))


def split_position(name: str, split_seed: int) -> float:
    """Where in [0, 1) a document falls; below `split_threshold` it is a validation document."""
    digest = hashlib.sha256(f"{split_seed}\0{name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_threshold(fraction: float, lowest: float, highest: float) -> float:
    """The position below which documents are for validation: the fraction. Chance leaves a side empty when documents
    are few: then the position that gives it the one document that was nearest to falling there.

    Args:
        lowest: the smallest position of a document.
        highest: the largest.

    Raises:
        InputError: one document only.
    """
    if lowest < fraction <= highest:
        return fraction
    if lowest >= highest:
        raise InputError(
            "data.source: the corpus has only one document, and it cannot be both trained on and validated on; give "
            "more files, or data.source.separator to split a text file into documents"
        )
    return highest if lowest < fraction else math.nextafter(lowest, 1.0)


class Tokenizing:
    """The job that makes chunks.

    Args:
        dtype: of the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: str, split_seed: int) -> None:
        self.tokenizer, self.dtype, self.split_seed = tokenizer, dtype, split_seed

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tokenizer": self.tokenizer.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, tokenizer=tokenizer_from_state(state["tokenizer"]))

    @property
    def made_by(self) -> str:
        return f"{self.tokenizer.fingerprint} {self.dtype} {self.split_seed}"

    def begin(self) -> Work:
        return self._chunk

    def _chunk(self, documents: list[Document]) -> Arrays:
        return make_chunk(tokenize(documents, self.tokenizer), self.dtype, self.split_seed)._asdict()


def tokenize_to_files(
    folder: Path,
    corpus: Iterable[Document],
    tokenizer: Tokenizer,
    dtype: str,
    split_seed: int,
    workers: int,
    report: Callable[[int, int, bool], None],
    writing: Callable[[], AbstractContextManager[None]],
) -> list[Path]:
    """The files of all chunks of the corpus, in its order (`to_files`)."""
    return to_files(folder, corpus, Tokenizing(tokenizer, dtype, split_seed), workers, report, writing)
