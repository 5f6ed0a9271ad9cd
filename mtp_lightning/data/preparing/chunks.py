"""Documents tokenized a few megabytes at a time, by one process or several; what was finished before a run was killed
is not done again.

One process reads the documents and deals them out; each piece, a chunk, is tokenized by a worker, which writes a file.
Where a chunk ends, and what is in its file, does not depend on the number of workers. A file's name has a hash of the
chunk's documents and of what they are tokenized by, so a file that is there already, and whole, is the right one.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.tokens.tokenizer import Tokenizer, tokenizer_from_state
from mtp_lightning.data.tokens.tokenizing import Tokenized, tokenize
from mtp_lightning.shapes import Float, Int

_CHARACTERS = 1 << 22
_DOCUMENTS = 1 << 14


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
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Chunk(**{name: arrays[name] for name in Chunk._fields})


def _is_whole(path: Path) -> bool:
    """Whether a file of an earlier try is as it was written: its parts have checksums. If not, it is made again."""
    try:
        read_chunk(path)
    except Exception:  # damaged bytes make whoever reads them raise anything
        return False
    return True


def split_position(name: str, split_seed: int) -> float:
    """Where in [0, 1) a document falls; below the validation fraction it is a validation document."""
    digest = hashlib.sha256(f"{split_seed}\0{name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


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
    """The files of all chunks of the corpus, in its order.

    Args:
        folder: for the files; those of an earlier try that are the same are kept.
        workers: processes that tokenize; with 1 it is this one.
        report: called with the documents and characters of each chunk, and whether it was there already.
        writing: around what writes files, and may find the disk full.
    """
    made_by = f"{tokenizer.fingerprint} {dtype} {split_seed}"
    files: list[Path] = []
    waiting: deque[Future[None]] = deque()
    with ExitStack() as stack:
        pool = stack.enter_context(_pool(workers, tokenizer)) if workers > 1 else None
        if pool is not None:
            stack.callback(pool.shutdown, cancel_futures=True)
        for number, documents in enumerate(_pieces(corpus)):
            path = folder / f"{number:06d}-{_digest(made_by, documents)}.npz"
            files.append(path)
            there = path.is_file() and _is_whole(path)
            if not there and pool is not None:
                waiting.append(pool.submit(_work, path, documents, dtype, split_seed))
            elif not there:
                with writing():
                    _write(path, documents, tokenizer, dtype, split_seed)
            while len(waiting) > workers + 1:
                with writing():
                    waiting.popleft().result()
            report(len(documents), sum(len(document.text) for document in documents), there)
        for future in waiting:
            with writing():
                future.result()
    return files


def _pieces(corpus: Iterable[Document]) -> Iterator[list[Document]]:
    piece: list[Document] = []
    n_characters = 0
    for document in corpus:
        piece.append(document)
        n_characters += len(document.text)
        if n_characters >= _CHARACTERS or len(piece) >= _DOCUMENTS:
            yield piece
            piece, n_characters = [], 0
    if piece:
        yield piece


def _digest(made_by: str, documents: list[Document]) -> str:
    hashed = hashlib.blake2b(made_by.encode(), digest_size=12)
    for document in documents:
        parts = (document.name, document.text, str(document.answer_start), str(document.rendered))
        for part in parts:
            encoded = part.encode("utf-8", errors="surrogatepass")
            hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


def _write(path: Path, documents: list[Document], tokenizer: Tokenizer, dtype: str, split_seed: int) -> None:
    """Whole or not at all."""
    chunk = make_chunk(tokenize(documents, tokenizer), dtype, split_seed)
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **chunk._asdict())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


_tokenizer: Tokenizer | None = None
"""Of a worker."""


def _pool(workers: int, tokenizer: Tokenizer) -> ProcessPoolExecutor:
    # Not forked: threads of torch or of a tokenizer that this process has would be missing there.
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (tokenizer.state(),))


def _begin(state: dict[str, str]) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    _tokenizer = tokenizer_from_state(state)


def _work(path: Path, documents: list[Document], dtype: str, split_seed: int) -> None:
    assert _tokenizer is not None
    _write(path, documents, _tokenizer, dtype, split_seed)
