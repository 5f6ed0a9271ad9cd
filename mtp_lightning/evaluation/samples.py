"""Samples on disk: JSONL in EvalPlus's format, `{"task_id": ..., "completion": ...}` a line, which others' tools score.

Sample s of a problem is a pure function of (model, problem, seed, s) and of what stands in the side file
`<name>.made_with.json` (but for ties of float32 between torch's layers and compiled ones). So more samples, or more
problems, never change earlier ones; an evaluation that was killed goes on where it was; and a file that another model
or temperature wrote is refused.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, as_record, parse_json, read_record, read_state, write_json, write_text

MOST_BYTES = 2**40
"""Of a file of samples."""
Ended = Literal["stop", "end", "length"]
"""What ended a text: a stop string, the end-of-document token, or its greatest length."""


class Sample(NamedTuple):
    """What a model wrote after a prompt."""

    task_id: str
    sample: int
    """Its number among those of the problem, from 0."""
    completion: str
    ended: Ended
    cut: bool = False
    """Whether the beginning of the prompt was cut off, as the context had no room for it."""
    earlier: tuple[str, ...] = ()
    """With turns: programs before this one, which failed public tests."""

    def line(self) -> str:
        """As it stands in the file; the first two fields are EvalPlus's, which ignores the others."""
        return json.dumps({"task_id": self.task_id, "completion": self.completion} | self._others()) + "\n"

    def _others(self) -> dict[str, Any]:
        more = {"cut": True} if self.cut else {}
        return {"sample": self.sample, "ended": self.ended} | more | ({"earlier": self.earlier} if self.earlier else {})


@dataclass(frozen=True)
class _Line:
    """A sample as it stands in the file."""

    task_id: str
    sample: int
    completion: str
    ended: Ended
    cut: bool = False
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Side:
    """The side file."""

    made_with: dict[str, Any]
    counts_by_heads: dict[str, dict[str, int]] = field(default_factory=dict)
    """heads_used -> counts. Earlier versions had one sum over whatever wrote the file, which is no longer read."""


class Prompt(NamedTuple):
    """A problem as the model sees it."""

    task_id: str
    ids: list[int]
    cut: bool = False
    """Whether its beginning was cut off."""


def sample_seed(seed: int, task_id: str, sample: int) -> int:
    """Below 2^32, since torch's generator on the CPU takes no more. By the problem's name, so that neither its place in
    the data nor how many problems are asked matters."""
    text = json.dumps([seed, task_id, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class SampleFile:
    """
    Use it as a context manager: inside, nobody else writes to the file.

    Args:
        made_with: everything that a sample depends on but problem and number: model, temperature, seed, ...
        heads_used: whose counts are read and added to.

    Raises:
        InputError: on entry: the file was made with something else, is not of this kind, is damaged, or is in use.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any], heads_used: int | str = "auto") -> None:
        self.path = path
        self.made_with = json.loads(json.dumps(made_with))
        self.heads_used = str(heads_used)
        self.counts_by_heads: dict[str, dict[str, int]] = {}
        self.samples: dict[tuple[str, int], Sample] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Sums (tokens, forwards, ...) over the samples that were written with `heads_used`; `samples` says how many.
        They are fewer than the file has where it was written with other heads too, or by an evaluation that was killed
        before it could note them, and more where lines were lost since."""
        return self.counts_by_heads.get(self.heads_used, {})

    @property
    def side(self) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".jsonl") + ".made_with.json")

    def check(self) -> None:
        """Read what is there; nothing is written.

        Raises:
            InputError: it cannot be continued.
        """
        text = read_state(self.path, MOST_BYTES)
        try:
            found = read_record(_Side, self.side)
        except DamagedError as error:
            raise InputError(f"{error}: what the samples were made with is unknown: move both files away") from None
        if found is None:
            if text:
                raise InputError(f"'{self.path}' is there without '{self.side.name}', so it was not made here: move it")
            return
        for key in sorted(found.made_with.keys() | self.made_with.keys()):
            have, want = found.made_with.get(key), self.made_with.get(key)
            if have != want:
                raise InputError(
                    f"'{self.path}' was made with {key} {have!r}, and now it is {want!r}: "
                    "give another --out or --name, or move the file away"
                )
        self.counts_by_heads = found.counts_by_heads
        for sample in _parsed(self.path, text or ""):
            self.samples.setdefault((sample.task_id, sample.sample), sample)

    def __enter__(self) -> "SampleFile":
        self.check()
        with self._naming_the_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                    raise BlockingIOError  # opened before its owner put another in its place, in order
                self.check()  # once more: another evaluation may have written until now
                self._file.truncate(_whole_lines(self.path))
                self._write_side()
            except BaseException as error:
                self._file.close()
                if isinstance(error, BlockingIOError):
                    raise InputError(f"'{self.path}' is in use by another evaluation") from None
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, samples: Sequence[Sample], counts: Mapping[str, int]) -> None:
        """Lines that are on the disk when this returns.

        Args:
            counts: of these samples, to be added.

        Raises:
            OSError: a full disk, with the file's name. What was there before stays, and no part of a line after it.
        """
        content = "".join(sample.line() for sample in samples).encode()
        end = os.fstat(self._file.fileno()).st_size
        with self._naming_the_file():
            try:
                while content:
                    content = content[self._file.write(content) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
        for sample in samples:
            self.samples[sample.task_id, sample.sample] = sample
        own = self.counts_by_heads.setdefault(self.heads_used, {})
        for key, count in {"samples": len(samples), **counts}.items():
            own[key] = own.get(key, 0) + count
        with self._naming_the_file():
            self._write_side()

    def put_in_order(self, task_ids: Sequence[str]) -> None:
        """Sample 0 of every problem, then sample 1 ...: the same bytes however many steps the file was made in. The
        last thing to do inside: the file may be another afterwards, which others may write to."""
        place = {task_id: i for i, task_id in enumerate(task_ids)}
        last = len(place)
        ordered = sorted(self.samples.values(), key=lambda s: (s.sample, place.get(s.task_id, last)))
        text = "".join(sample.line() for sample in ordered)
        if self.path.read_bytes() != text.encode():
            write_text(self.path, text)

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """A disk's refusal to write does not say of what."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _write_side(self) -> None:
        counts = {heads: dict(sorted(own.items())) for heads, own in sorted(self.counts_by_heads.items())}
        write_json(self.side, {"made_with": self.made_with, "counts_by_heads": counts})


def read_samples(path: Path) -> Iterable[Sample]:
    """Those of a file's whole lines; the last line may be a part, of an evaluation that was killed.

    Raises:
        InputError: a line that is none of ours.
    """
    return _parsed(path, read_state(path, MOST_BYTES) or "")


def _parsed(path: Path, text: str) -> Iterator[Sample]:
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = parse_json(path, line)
            if not isinstance(row, dict):
                raise DamagedError(path, "no mapping")
            yield Sample(**vars(as_record(_Line, path, row)))
        except DamagedError as error:
            raise InputError(f"'{path}', line {number}: no sample of ours ({error.why}): move it away") from error


def _whole_lines(path: Path) -> int:
    """Bytes up to the last end of a line."""
    return path.read_bytes().rfind(b"\n") + 1
