"""Appends documents to the shard files of one split."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mtp_lightning.data.tokens.store import Split, SplitMeta, answers_file, documents_file, shard_file


class SplitWriter:
    """Tokens go to one shard file after the other; a document may continue in the next. Overwrites.

    Args:
        answers: whether documents have an answer, which alone counts.
    """

    def __init__(self, directory: Path, split: Split, dtype: str, shard_tokens: int, answers: bool = False) -> None:
        self._directory, self._split, self._shard_tokens = directory, split, shard_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._starts: BinaryIO = (directory / documents_file(split)).open("wb")
        self._answers: BinaryIO | None = (directory / answers_file(split)).open("wb") if answers else None
        self._shard: BinaryIO | None = None
        self._shards: list[int] = []
        self._n_tokens = self._n_documents = self._n_bytes = 0
        self.hashed = hashlib.sha256()
        """Of all tokens, and of where answers begin: does not depend on where shard files end."""

    def add(self, tokens: Sequence[int], n_bytes: int, answer: int = 0) -> None:
        """One document, its end included, made of `n_bytes` of text.

        Args:
            answer: tokens before its answer.
        """
        self._starts.write(np.array([self._n_tokens], dtype="<i8").tobytes())
        if self._answers is not None:
            begins = np.array([self._n_tokens + answer], dtype="<i8").tobytes()
            self._answers.write(begins)
            self.hashed.update(begins)
        array = np.array(tokens, dtype=self._dtype)
        self.hashed.update(array.tobytes())
        while len(array):
            shard, room = self._shard_with_room()
            shard.write(array[:room].tobytes())
            self._shards[-1] += len(array[:room])
            array = array[room:]
        self._n_tokens += len(tokens)
        self._n_documents += 1
        self._n_bytes += n_bytes

    def _shard_with_room(self) -> tuple[BinaryIO, int]:
        if self._shard is None or self._shards[-1] == self._shard_tokens:
            if self._shard is not None:
                self._shard.close()
            self._shard = (self._directory / shard_file(self._split, len(self._shards))).open("wb")
            self._shards.append(0)
        return self._shard, self._shard_tokens - self._shards[-1]

    def finish(self) -> SplitMeta:
        """Everything is with the operating system now."""
        for file in self._files():
            file.close()
        return SplitMeta(
            n_tokens=self._n_tokens, n_documents=self._n_documents, n_bytes=self._n_bytes, shards=tuple(self._shards)
        )

    def close(self) -> None:
        """Gives up; after `finish`, does nothing."""
        for file in self._files():
            with suppress(OSError):  # the full disk that made us give up, once more
                file.close()

    def _files(self) -> list[BinaryIO]:
        return [file for file in (self._starts, self._answers, self._shard) if file is not None]
