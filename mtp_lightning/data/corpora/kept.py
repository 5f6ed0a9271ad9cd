"""Lists of the documents of a corpus that are read (`data.source.keep`), as `mtp data prune` writes them: JSON lines.

    {"format": 1, "corpus": "9c0f...", "documents": 120, "kept": 97, "validation_fraction": 0.05, "split_seed": 0, ...}
    "asyncio/events.py"
    "base64.py"

What was left out was chosen among the training documents of one split, so a list goes with that split alone.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, as_record, parse_json, read_state

FORMAT = 1
_KEY = "data.source.keep"


@dataclass(frozen=True)
class KeptHeader:
    """The first line of a list."""

    format: int
    corpus: str
    """`CorpusHash` of all documents, the others too."""
    documents: int
    """How many these are."""
    kept: int
    validation_fraction: float
    split_seed: int
    """Of the split whose validation documents are all in the list."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """How the others were chosen."""


class CorpusHash:
    """Of names and texts, in their order."""

    def __init__(self) -> None:
        self._hashed, self.documents = hashlib.blake2b(digest_size=16), 0

    def add(self, content: bytes) -> None:
        self._hashed.update(content)
        self.documents += 1

    def hex(self) -> str:
        return self._hashed.hexdigest()


class Kept(NamedTuple):
    """A list that was read."""

    header: KeptHeader
    names: frozenset[str]

    def check(self, path: str, found: CorpusHash, met: int) -> None:
        """
        Args:
            found: of the corpus that was read by the list.
            met: how many of the names it has.

        Raises:
            InputError: it is another corpus than the list was made for.
        """
        if (found.hex(), met) != (self.header.corpus, len(self.names)):
            raise InputError(
                f"{_KEY}: '{path}' was made for another corpus, of {self.header.documents:,} documents: this one has "
                f"{found.documents:,}, {met:,} of the {len(self.names):,} that the list names, or their text has "
                "changed; make a list for it by `mtp data prune`"
            )


def kept_lines(header: KeptHeader, names: Iterable[str]) -> str:
    """The content of a list."""
    return "".join(json.dumps(line) + "\n" for line in (asdict(header), *names))


def read_kept(path: str) -> Kept:
    """
    Raises:
        InputError: no such file, or no list of documents.
    """
    file = Path(path).expanduser()
    try:
        text = read_state(file, most=2**40)
        if text is None:
            raise InputError(f"{_KEY}: there is no file '{path}'; `mtp data prune` makes one")
        first, *lines = text.removesuffix("\n").split("\n")
        described = parse_json(file, first)
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise DamagedError(file, "no list of documents that `mtp data prune` of this version wrote")
        header = as_record(KeptHeader, file, described)
        names = [parse_json(file, line) for line in lines]
        if len(set(map(str, names))) != header.kept or not all(isinstance(name, str) for name in names):
            raise DamagedError(
                file, f"holds {len(names):,} lines after its first, and has to hold {header.kept:,} names"
            )
    except DamagedError as error:
        raise InputError(f"{_KEY}: {error}") from error
    return Kept(header, frozenset(names))


def kept_hash(path: str) -> str:
    """Of a list's content.

    Raises:
        InputError: no such file.
    """
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{_KEY}: cannot read '{path}': {error.strerror}; `mtp data prune` makes one") from error


def check_split(source: SourceConfig, validation_fraction: float, split_seed: int) -> None:
    """
    Raises:
        InputError: a list made for another split: documents that validate here may be missing from it.
    """
    if source.keep is None:
        return
    made = read_kept(source.keep).header
    if (made.validation_fraction, made.split_seed) != (validation_fraction, split_seed):
        raise InputError(
            f"{_KEY}: '{source.keep}' was made for data.validation_fraction {made.validation_fraction} and "
            f"data.split_seed {made.split_seed}, and they are {validation_fraction} and {split_seed}: validation "
            "documents would be pruned; set them to those, or prune again"
        )
