"""Appends documents to the shard files of one split."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from mtp_lightning.data.preparing.chunks import Chunk
from mtp_lightning.data.tokens.store import Split, SplitMeta, answers_file, documents_file, shard_file


class SplitWriter:
    """Tokens go to one shard file after the other; a document may continue in the next. Overwrites.

    Args:
        answers: whether documents have an answer, which alone counts.
    """

    def __init__(self, directory: Path, split: Split, dtype: str, shard_tokens: int, answers: bool = False) -> None:
        self._directory, self._split, self._shard_tokens = directory, split, shard_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._files: list[_HashedFile] = []
        self._starts = self._open(documents_file(split))
        self._answers = self._open(answers_file(split)) if answers else None
        self._shard: _HashedFile | None = None
        self._shards: list[int] = []
        self._n_tokens = self._n_documents = self._n_bytes = 0
        self.hashed = hashlib.sha256()
        """Of all tokens, and of where answers begin: does not depend on where shard files end."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file, by its name."""
        return {file.path.name: file.hashed.hexdigest() for file in self._files}

    def add(self, chunk: Chunk, chosen: np.ndarray) -> None:
        """Some documents of a chunk, their ends included.

        Args:
            chosen: (documents) bool.
        """
        lengths = chunk.lengths[chosen]
        starts = self._n_tokens + np.cumsum(lengths) - lengths
        tokens = chunk.tokens[np.repeat(chosen, chunk.lengths)].astype(self._dtype)
        self._starts.write(starts.astype("<i8").tobytes())
        if self._answers is None:
            self.hashed.update(tokens.tobytes())
        else:
            begins = (starts + chunk.answers[chosen]).astype("<i8")
            self._answers.write(begins.tobytes())
            for begin, document in zip(begins, np.split(tokens, np.cumsum(lengths)[:-1])):
                self.hashed.update(begin.tobytes() + document.tobytes())
        while len(tokens):
            shard, room = self._shard_with_room()
            shard.write(tokens[:room].tobytes())
            self._shards[-1] += len(tokens[:room])
            tokens = tokens[room:]
        self._n_tokens += int(lengths.sum())
        self._n_documents += len(lengths)
        self._n_bytes += int(chunk.n_bytes[chosen].sum())

    def _shard_with_room(self) -> tuple["_HashedFile", int]:
        if self._shard is None or self._shards[-1] == self._shard_tokens:
            if self._shard is not None:
                self._shard.close()
            self._shard = self._open(shard_file(self._split, len(self._shards)))
            self._shards.append(0)
        return self._shard, self._shard_tokens - self._shards[-1]

    def _open(self, name: str) -> "_HashedFile":
        self._files.append(_HashedFile(self._directory / name))
        return self._files[-1]

    def finish(self) -> SplitMeta:
        """Everything is with the operating system now."""
        for file in self._files:
            file.close()
        return SplitMeta(
            n_tokens=self._n_tokens, n_documents=self._n_documents, n_bytes=self._n_bytes, shards=tuple(self._shards)
        )

    def close(self) -> None:
        """Gives up; after `finish`, does nothing."""
        for file in self._files:
            with suppress(OSError):  # the full disk that made us give up, once more
                file.close()


class _HashedFile:
    """A new file, and the hash of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.path, self.hashed = path, hashlib.sha256()
        self._file = path.open("wb")

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.hashed.update(content)

    def close(self) -> None:
        self._file.close()
