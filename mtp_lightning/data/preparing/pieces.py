"""Documents worked on a piece at a time, by one process or several; what was finished before a run was killed is not
done again.

One process reads the documents and deals them out; each piece is a worker's job, which writes a file of arrays. Where a
piece ends, and what is in its file, does not depend on the number of workers. A file's name has a hash of the piece's
documents and of what is made of them, so a file that is there already, and whole, is the right one.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.errors import InputError

CHARACTERS = 1 << 22
_DOCUMENTS = 1 << 14

Arrays = Mapping[str, Any]
"""Name -> array."""
Work = Callable[[list[Document]], Arrays]


@runtime_checkable
class Job(Protocol):
    """What is made of documents. It travels to other processes by pickle."""

    @property
    def made_by(self) -> str:
        """All that the arrays depend on, beside the documents."""

    def begin(self) -> Work:
        """What does the work: called once in each process."""


def to_files(
    folder: Path,
    corpus: Iterable[Document],
    job: Job,
    workers: int,
    report: Callable[[int, int, bool], None],
    writing: Callable[[], AbstractContextManager[None]],
    characters: int | None = None,
) -> list[Path]:
    """The files of all pieces of the corpus, in its order.

    Args:
        folder: for the files; those of an earlier try that are the same are kept.
        workers: processes that work; with 1 it is this one.
        report: called with the documents and characters of each piece, and whether it was there already.
        writing: around what writes files, and may find the disk full.
        characters: of a piece, more or less.

    Raises:
        InputError: a process was killed; what the job cannot begin with.
    """
    files: list[Path] = []
    waiting: deque[Future[None]] = deque()
    with ExitStack() as stack:
        stack.enter_context(_said_if_killed(workers))
        pool = stack.enter_context(_pool(workers, job)) if workers > 1 else None
        if pool is not None:
            stack.callback(pool.shutdown, cancel_futures=True)
        work: Work | None = None
        for number, documents in enumerate(_pieces(corpus, characters or CHARACTERS)):
            path = folder / f"{number:06d}-{_digest(job.made_by, documents)}.npz"
            files.append(path)
            there = path.is_file() and _is_whole(path)
            if not there and pool is not None:
                waiting.append(pool.submit(_write_there, path, documents))
            elif not there:
                work = job.begin() if work is None else work
                with writing():
                    _write(path, documents, work)
            while len(waiting) > workers + 1:
                with writing():
                    waiting.popleft().result()
            report(len(documents), sum(len(document.text) for document in documents), there)
        for future in waiting:
            with writing():
                future.result()
    return files


def read_arrays(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _is_whole(path: Path) -> bool:
    """Whether a file of an earlier try is as it was written: its parts have checksums. If not, it is made again."""
    try:
        read_arrays(path)
    except Exception:  # damaged bytes make whoever reads them raise anything
        return False
    return True


def _pieces(corpus: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    piece: list[Document] = []
    n_characters = 0
    for document in corpus:
        piece.append(document)
        n_characters += len(document.text)
        if n_characters >= characters or len(piece) >= _DOCUMENTS:
            yield piece
            piece, n_characters = [], 0
    if piece:
        yield piece


def _digest(made_by: str, documents: list[Document]) -> str:
    hashed = hashlib.blake2b(made_by.encode(), digest_size=12)
    for document in documents:
        hashed.update(document.content())
    return hashed.hexdigest()


def _write(path: Path, documents: list[Document], work: Work) -> None:
    """Whole or not at all."""
    arrays: dict[str, Any] = dict(work(documents))
    temporary = path.with_suffix(f".{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


_work: Work | InputError | None = None
"""Of a worker; or why it has none, which only a job's own error reaches the parent with."""


def _pool(workers: int, job: Job) -> ProcessPoolExecutor:
    # Not forked: threads of torch or of a tokenizer that this process has would be missing there.
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (job,))


@contextmanager
def _said_if_killed(workers: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            f"workers is {workers}: one of these processes was killed, as for lack of memory; what is done is kept: "
            "give the command again, with fewer workers"
        ) from error


def _begin(job: Job) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    try:
        _work = job.begin()
    except InputError as error:
        _work = error


def _write_there(path: Path, documents: list[Document]) -> None:
    if isinstance(_work, InputError):
        raise _work
    assert _work is not None
    _write(path, documents, _work)
