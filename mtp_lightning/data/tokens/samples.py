"""A model's own continuations on their way into shards: prompts, the log that a killed run goes on from, and the end.

Sample s of a prompt is a function of (model, settings, seed, the prompt's tokens, s): neither how many samples are
asked for, nor the prompt's place among the others, changes it. The log lies beside the shards that are made of it:

    OUT.partial/made_with.json    what every sample depends on: a run that says otherwise is refused
    OUT.partial/samples.jsonl     a line a batch: the tokens that were added to each of its prompts

Batches are always the same, and one that was begun is written anew, so shards do not depend on where a run was killed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.pairs import PROMPT
from mtp_lightning.data.corpora.rows import json_values
from mtp_lightning.data.tokens.prepare import ShardSettings, write_shards
from mtp_lightning.data.tokens.store import META_FILE, SPLITS, ShardsMeta, TokenStore
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.tokenizing import Tokenized
from mtp_lightning.errors import InputError
from mtp_lightning.files import FileLock, read_json, write_json

Ids = tuple[int, ...]


def read_prompts(path: str, tokenizer: Tokenizer, length: int, limit: int | None) -> list[Ids]:
    """The different prompts of a file (JSON rows with `prompt`, or a text file with one on each line) or of a folder of
    shards (`shards/pairs` or `shards/pairs:validation`): the question of each pair, or the first `length` tokens of
    each document.

    Raises:
        InputError: nothing there, or no prompts in it.
    """
    folder, _, split = path.rpartition(":") if path.endswith(tuple(f":{split}" for split in SPLITS)) else (path, "", "")
    if Path(folder).is_dir():
        found = _of_shards(Path(folder), split or "train", tokenizer, length)
    elif Path(path).is_file():
        found = _of_file(Path(path), tokenizer)
    else:
        raise InputError(f"prompts: there is no file or folder of shards '{folder}'")
    different: dict[Ids, None] = {}
    for prompt in found:
        if prompt and (limit is None or len(different) < limit or prompt in different):
            different[prompt] = None
    if not different:
        raise InputError(f"prompts: '{path}' has no prompt in it")
    return list(different)


def _of_file(path: Path, tokenizer: Tokenizer) -> Iterator[Ids]:
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"prompts: cannot read '{path}': {error}") from error
        yield from (tuple(tokenizer.encode(line)) for line in lines if line)
        return
    for value, _, line in json_values(path):
        prompt = value.get(PROMPT) if isinstance(value, Mapping) else None
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"prompts: '{path}', line {line}: no '{PROMPT}' with a text in it")
        yield tuple(tokenizer.encode(prompt))


def _of_shards(folder: Path, split: str, tokenizer: Tokenizer, length: int) -> Iterator[Ids]:
    store = TokenStore(folder, split)  # type: ignore[arg-type]
    if store.meta.tokenizer_fingerprint != tokenizer.fingerprint:
        raise InputError(f"prompts: the shards in '{folder}' were made with another tokenizer than the model's")
    ends = np.append(store.document_starts[1:], len(store)) - 1  # the end of a document is no part of a prompt
    ends = np.minimum(ends, store.document_starts + length) if store.answer_starts is None else store.answer_starts
    for start, end in zip(store.document_starts.tolist(), ends.tolist()):
        yield tuple(store.read(start, end - start).tolist())


def prompt_name(prompt: Ids) -> str:
    return hashlib.sha256(np.array(prompt, dtype="<i8").tobytes()).hexdigest()[:16]


def sample_seed(seed: int, prompt: Ids, sample: int) -> int:
    """Below 2^32: torch's generator on the CPU takes no more."""
    digest = hashlib.sha256(f"{seed}\0{prompt_name(prompt)}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class Batch(NamedTuple):
    """Prompts that are continued together."""

    prompts: list[Ids]
    sample: int


def batches(prompts: Sequence[Ids], samples: int, size: int) -> list[Batch]:
    """Sample 0 of every prompt, then sample 1 of every prompt, ...: more samples leave earlier batches as they were."""
    starts = range(0, len(prompts), size)
    return [Batch(list(prompts[start : start + size]), sample) for sample in range(samples) for start in starts]


class SampleLog:
    """What has been written so far.

    Raises:
        InputError: the log was made with something else, is damaged, or is in use.
    """

    def __init__(self, out: Path, made_with: Mapping[str, Any]) -> None:
        self.folder = out.with_name(f"{out.name}.partial")
        self._lines = self.folder / "samples.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        if not self._lock.acquire():
            raise InputError(f"'{self.folder}' is being written by another process")
        try:
            self._continue(made_with)
        except BaseException:
            self._lock.release()
            raise

    def _continue(self, made_with: Mapping[str, Any]) -> None:
        before = read_json(self.folder / "made_with.json")
        if before is not None and before != made_with:
            key = next(k for k in sorted({*before, *made_with}) if before.get(k) != made_with.get(k))
            raise InputError(
                f"'{self.folder}' was begun with {key} = {before.get(key)!r}, and this is {made_with.get(key)!r}: go "
                "on as it was begun, or remove it"
            )
        write_json(self.folder / "made_with.json", made_with)
        content = self._lines.read_bytes() if self._lines.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self.done: list[list[Ids]] = [[tuple(map(int, ids)) for ids in json.loads(x)] for x in whole.splitlines()]
            """Of every finished batch, what was added to each of its prompts."""
        except (ValueError, TypeError) as error:
            raise InputError(f"'{self._lines}' is damaged ({error}): remove '{self.folder}'") from error
        self._file = self._lines.open("ab")
        self._file.truncate(len(whole))  # a batch that was being written when the run was killed

    def add(self, continuations: list[Ids]) -> None:
        """One more batch; it is on the disk afterwards."""
        self._file.write(json.dumps(continuations).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.append(continuations)

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def finish(
        self,
        out: Path,
        asked: Sequence[Batch],
        tokenizer: Tokenizer,
        description: dict[str, Any],
        settings: ShardSettings,
        account: Account,
    ) -> ShardsMeta:
        """The shards, of which the continuations count; the log is gone then."""
        sizes = np.array(token_bytes(tokenizer))

        def documents() -> Iterator[Tokenized]:
            for batch, continuations in zip(asked, self.done, strict=True):
                for prompt, added in zip(batch.prompts, continuations, strict=True):
                    tokens = prompt + added
                    # All samples of a prompt fall on one side of the split.
                    yield Tokenized(prompt_name(prompt), tokens, int(sizes[list(tokens)].sum()), len(prompt))

        self.close()
        meta = write_shards(out, documents, tokenizer, description, settings, account, answers=True)
        assert (out / META_FILE).is_file()
        shutil.rmtree(self.folder)
        return meta
