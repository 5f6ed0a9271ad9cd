"""Prompts and whole texts out of the validation split, and what tokens the training split has."""

import itertools

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.tasks.task import Examples
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.windows import prompt_starts
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Int

_PIECE = 1 << 24
"""Tokens read at a time."""


def heldout_prompts(store: TokenStore, count: int, length: int) -> list[Tensor]:
    """`count` pieces, (length,) int64 each, of the split's documents: always the same, spread over the documents.

    Each lies inside one document where documents are long enough. Of pairs: at most so many questions, or the last
    `length` tokens of these.

    Raises:
        InputError: the split is shorter than a prompt.
    """
    if store.answer_starts is not None:
        chosen = np.unique(np.linspace(0, store.split_meta.n_documents - 1, count).astype(np.int64))
        ends, starts = store.answer_starts[chosen].tolist(), store.document_starts[chosen].tolist()
        questions = [store.read(max(start, end - length), min(length, end - start)) for start, end in zip(starts, ends)]
        return [torch.from_numpy(question) for question in questions if len(question)]
    if len(store) < length:
        raise InputError(f"a prompt of {length} tokens is longer than the {store.split} split ({len(store)} tokens)")
    starts = prompt_starts(np.asarray(store.document_starts), len(store), count, length)
    return [torch.from_numpy(store.read(start, length)) for start in starts]


def longest_document(store: TokenStore) -> int:
    """Tokens of the split's longest document, without its end."""
    return int(np.diff(np.asarray(store.document_starts), append=len(store)).max()) - 1


def heldout_texts(store: TokenStore, tokenizer: Tokenizer, count: int) -> list[str]:
    """The first `count` documents, or all if there are fewer."""
    starts = [*store.document_starts[: count + 1].tolist(), len(store)][: count + 1]
    return [tokenizer.decode(store.read(a, b - a).tolist()) for a, b in itertools.pairwise(starts)]


def heldout_pairs(store: TokenStore, count: int, context: int | None) -> Examples:
    """The first `count` pairs that fit into windows of `context` tokens, or all of these if there are fewer: questions,
    and answers with the ends of their documents.

    Raises:
        InputError: no shards of pairs, or none that fits.
    """
    if store.answer_starts is None:
        raise InputError(f"'{store.directory}' does not hold pairs: its documents have no question and no answer")
    starts = np.asarray(store.document_starts)
    lengths = np.append(starts[1:], len(store)) - starts
    answers = store.answer_starts - starts
    fitting = (answers > 0) if context is None else (answers > 0) & (lengths <= context + 1)
    chosen = np.flatnonzero(fitting)[:count]
    if not len(chosen):
        raise InputError(f"no pair of the {store.split} split of '{store.directory}' fits into {context} tokens")
    tokens = np.zeros((len(chosen), int(lengths[chosen].max())), dtype=np.int64)
    for row, document in enumerate(chosen):
        tokens[row, : lengths[document]] = store.read(int(starts[document]), int(lengths[document]))
    return Examples(tokens, lengths[chosen], answers[chosen])


def token_counts(store: TokenStore) -> Int[np.ndarray, "V"]:
    """How often each token occurs."""
    counts = np.zeros(store.meta.vocab_size, dtype=np.int64)
    for start in range(0, len(store), _PIECE):
        counts += np.bincount(store.read(start, min(_PIECE, len(store) - start)), minlength=len(counts))
    return counts
