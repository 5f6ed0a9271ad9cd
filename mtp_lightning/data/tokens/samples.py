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
from mtp_lightning.data.corpora.rows import json_values, refuse_twice
from mtp_lightning.data.tokens.prepare import ShardSettings, write_shards
from mtp_lightning.data.tokens.store import META_FILE, SPLITS, ShardsMeta
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.tokenizing import Tokenized
from mtp_lightning.data.tokens.verify import open_store
from mtp_lightning.data.tokens.vocabulary import can_read
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, FileLock, parse_json, read_json, read_state, write_json

Ids = tuple[int, ...]


def read_prompts(path: str, tokenizer: Tokenizer, length: int, limit: int | None, begin: Ids = ()) -> list[Ids]:
    """The different prompts of a file (JSON rows with `prompt`, or a text file with one on each line) or of a folder of
    shards (`shards/pairs` or `shards/pairs:validation`): the question of each pair, or the first `length` tokens of
    each document.

    Args:
        begin: tokens that the model has before every text (`LoadedModel.begin_ids`).

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
    for bare in found:
        prompt = bare if not bare or bare[: len(begin)] == begin else begin + bare
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
    for value, line in json_values(path):
        refuse_twice(path, value, line, (PROMPT,))
        prompt = value.get(PROMPT) if isinstance(value, Mapping) else None
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"prompts: '{path}', line {line}: no '{PROMPT}' with a text in it")
        yield tuple(tokenizer.encode(prompt))


def _of_shards(folder: Path, split: str, tokenizer: Tokenizer, length: int) -> Iterator[Ids]:
    store = open_store(folder, split)  # type: ignore[arg-type]
    if not can_read(tokenizer, store.meta.tokenizer_fingerprint):
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

    Args:
        out: the folder of shards to make.
        made_with: what every sample depends on.
        asked: all batches.
        vocab_size: of the model.

    Raises:
        InputError: the log was made with something else, is damaged, or is in use.
    """

    def __init__(self, out: Path, made_with: Mapping[str, Any], asked: Sequence[Batch], vocab_size: int) -> None:
        self.folder = out.with_name(f"{out.name}.partial")
        self._lines = self.folder / "samples.jsonl"
        self._lock = FileLock(self.folder / "lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            mine = self._lock.acquire()
        except OSError as error:
            raise InputError(f"out: '{self.folder}' cannot be written to: {error.strerror}") from error
        if not mine:
            raise InputError(f"'{self.folder}' is being written by another process")
        try:
            self._continue(made_with, asked, vocab_size)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, DamagedError):
                raise InputError(f"{error}: remove '{self.folder}'") from error
            raise

    def _continue(self, made_with: Mapping[str, Any], asked: Sequence[Batch], vocab_size: int) -> None:
        before = read_json(self.folder / "made_with.json")
        if before is not None and before != made_with:
            key = next(k for k in sorted({*before, *made_with}) if before.get(k) != made_with.get(k))
            raise InputError(
                f"'{self.folder}' was begun with {key} = {before.get(key)!r}, and this is {made_with.get(key)!r}: go "
                "on as it was begun, or remove it"
            )
        content = read_state(self._lines, most=2**40) or ""
        whole = content[: content.rfind("\n") + 1]
        lines = whole.split("\n")[:-1]
        if len(lines) > len(asked):
            raise DamagedError(self._lines, f"has {len(lines)} batches, and {len(asked)} are asked for")
        self.done = [self._batch(line, i, batch, vocab_size) for i, (line, batch) in enumerate(zip(lines, asked), 1)]
        """Of every finished batch, what was added to each of its prompts."""
        write_json(self.folder / "made_with.json", made_with)
        self._file = self._lines.open("ab")
        self._file.truncate(len(whole.encode()))  # a batch that was being written when the run was killed

    def _batch(self, line: str, number: int, batch: Batch, vocab_size: int) -> list[Ids]:
        """
        Raises:
            DamagedError: a line that holds no continuations of the batch's prompts.
        """
        try:
            found = parse_json(self._lines, line)
        except DamagedError as error:
            raise DamagedError(self._lines, f"line {number} is {error.why}") from error
        lists = found if isinstance(found, list) and all(isinstance(ids, list) for ids in found) else []
        if len(lists) != len(batch.prompts) or not all(
            type(i) is int and 0 <= i < vocab_size for x in lists for i in x
        ):
            raise DamagedError(self._lines, f"line {number} is no {len(batch.prompts)} lists of tokens")
        return [tuple(ids) for ids in lists]

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
        sizes = dict(enumerate(token_bytes(tokenizer)))  # a model may have more rows than its tokenizer has tokens

        def documents() -> Iterator[Tokenized]:
            for batch, continuations in zip(asked, self.done, strict=True):
                for prompt, added in zip(batch.prompts, continuations, strict=True):
                    tokens = prompt + added
                    # All samples of a prompt fall on one side of the split.
                    yield Tokenized(
                        prompt_name(prompt), tokens, sum(sizes.get(token, 0) for token in tokens), len(prompt)
                    )

        self.close()
        meta = write_shards(out, documents, tokenizer, description, settings, account, answers=True)
        assert (out / META_FILE).is_file()
        shutil.rmtree(self.folder)
        return meta
