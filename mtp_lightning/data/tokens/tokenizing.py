"""Documents to token ids, some at a time."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.tokens.tokenizer import Tokenizer, begin_ids

_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 1024


class Tokenized(NamedTuple):
    """A document as shards keep it."""

    name: str
    """Decides on which side of the split it falls."""
    tokens: Sequence[int]
    """The end-of-document id is the last."""
    n_bytes: int
    """Of its text."""
    answer: int = 0
    """Tokens before its answer."""


def tokenize(corpus: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Tokenized]:
    """Each document, tokenized a million characters or so at a time."""
    batch: list[Document] = []
    begin, n_characters = begin_ids(tokenizer), 0
    for document in corpus:
        batch.append(document)
        n_characters += len(document.text)
        if n_characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield from _tokenize_batch(batch, tokenizer, begin)
            batch, n_characters = [], 0
    yield from _tokenize_batch(batch, tokenizer, begin)


def _tokenize_batch(batch: list[Document], tokenizer: Tokenizer, begin: list[int]) -> Iterator[Tokenized]:
    """Question and answer are tokenized apart: no token has some of both, and a question has the tokens that it has
    when it is asked: `begin` first, except where a chat template writes what comes first. (A tokenizer that puts a
    space before a text puts one before the answer, too.)"""
    for rendered, documents in itertools.groupby(batch, key=lambda document: document.rendered):
        alike = list(documents)
        encode = tokenizer.encode_rendered if rendered else tokenizer.encode_batch
        encoded = iter(encode([part for document in alike for part in document.parts]))
        for document in alike:
            *question, last = [next(encoded) for _ in document.parts]
            before = [token for part in question for token in part]
            if question and not rendered:
                before = [*begin, *before]
            if not (rendered and last[-1:] == [tokenizer.eos_id]):  # which some templates write
                last = [*last, tokenizer.eos_id]
            n_bytes = len(document.text.encode("utf-8", errors="replace"))
            yield Tokenized(document.name, before + last, n_bytes, len(before))
