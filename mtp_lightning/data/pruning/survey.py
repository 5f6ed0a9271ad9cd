"""A corpus before it is pruned: its documents' names and sizes, and which of them are trained on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np

from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import Document, documents
from mtp_lightning.data.corpora.kept import CorpusHash
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.preparing.chunks import split_position, split_threshold
from mtp_lightning.data.pruning.corruptions import beginning
from mtp_lightning.data.pruning.selection import random_scores
from mtp_lightning.data.tokens.prepare import ShardSettings
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Bool, Int


@dataclass(frozen=True)
class Survey:
    """Of the documents in the corpus's order."""

    source: SourceConfig
    settings: ShardSettings
    names: Sequence[str]
    n_bytes: Int[np.ndarray, "n"]
    trains: Bool[np.ndarray, "n"]
    corpus: str
    """The `CorpusHash`."""
    account: Account

    @cached_property
    def training_names(self) -> list[str]:
        return [name for name, trains in zip(self.names, self.trains.tolist()) if trains]

    def training(self) -> Iterator[Document]:
        """The training documents, read again.

        Raises:
            InputError: the corpus has changed since.
        """
        for name, trains, document in zip_longest(self.names, self.trains.tolist(), documents(self.source)):
            if document is None or document.name != name:
                now = "missing" if document is None else f"'{document.name}'"
                was = "nothing" if name is None else f"'{name}'"
                raise InputError(f"the corpus has changed while it was read: {now} was {was} before")
            if trains:
                yield document


def survey(source: SourceConfig, settings: ShardSettings) -> Survey:
    """
    Raises:
        InputError: a corpus that cannot be read, or has one training document only.
    """
    account, hashed = Account(), CorpusHash()
    names, sizes = list[str](), list[int]()
    for document in documents(source, account):
        hashed.add(document.content())
        names.append(document.name)
        sizes.append(len(document.text.encode("utf-8", errors="replace")))
    positions = np.array([split_position(name, settings.split_seed) for name in names])
    threshold = split_threshold(settings.validation_fraction, float(positions.min()), float(positions.max()))
    trains = positions >= threshold
    if trains.sum() < 2:
        raise InputError("the corpus has one training document only: nothing of it can be left out")
    return Survey(source, settings, names, np.array(sizes), trains, hashed.hex(), account)


def sampled(found: Iterable[Document], names: Sequence[str], count: int, seed: int, characters: int) -> list[Document]:
    """The beginnings of `count` documents, or of all if there are fewer, by a hash of their names and in its order.

    Args:
        names: of all that are found.
        characters: of a beginning (`corruptions.beginning`).
    """
    chance = random_scores(names, seed, "sampled")
    order = sorted(range(len(names)), key=lambda i: (chance[i], names[i]))[:count]
    place = {names[i]: k for k, i in enumerate(order)}
    chosen = [document for document in found if document.name in place]
    chosen.sort(key=lambda document: place[document.name])
    return [document._replace(text=beginning(document.text, characters), answer_start=None) for document in chosen]
