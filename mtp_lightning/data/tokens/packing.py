"""Windows of pairs: whole documents one after the other, of which the answers count. The mask is made on reading, out
of the one number that shards keep of a document: where its answer begins.

A window begins with a document, and the next window with the first document that did not fit into this one. A document
fits if its last token, the end of the document, is a target of head 1: if it ends within T + 1 tokens. So every answer
counts once an epoch, with its whole question before it. What is left of a window shows the beginning of the next
document, of which nothing counts; after the last document a window is filled up with padding, and so is that. Of a
document that is longer than a window, the window that begins with it has what fits.

Example with T = 6 and horizon 2: questions q, answers A (with the end of the document), and what counts:

    documents   q q A A | q A A | q q q q A A
    window 0    q q A A q A A q          0 0 1 1 0 1 1 0
    window 1    q q q q A A . .          0 0 0 0 1 1 0 0

Which documents share a window is the same in every epoch and for every n; the order of the windows is drawn anew.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.windows import shuffled
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Int


def pack(
    document_starts: Int[np.ndarray, "documents"], n_tokens: int, context: int
) -> Int[np.ndarray, "windows_and_end"]:
    """The first document of each window, and the number of documents after the last."""
    starts = np.asarray(document_starts)
    ends = np.append(starts[1:], n_tokens)
    following = np.searchsorted(ends, starts + context + 1, side="right")  # the first document that does not fit
    following = np.maximum(following, np.arange(1, len(starts) + 1)).tolist()
    firsts = [0]
    while firsts[-1] < len(starts):
        firsts.append(following[firsts[-1]])
    return np.array(firsts)


@dataclass(frozen=True)
class PackedOrder:
    """Which window is looked at when: a pure function of (seed, epoch, index)."""

    firsts: Int[np.ndarray, "windows_and_end"]
    """What `pack` found."""
    context: int
    horizon: int
    seed: int | None
    """None: one pass in the order of the documents, for validation."""
    limit: int | None = None
    """For validation: at most so many windows, spread evenly."""

    @property
    def windows_per_epoch(self) -> int:
        return len(self.firsts) - 1

    @property
    def n_windows(self) -> int:
        return self.windows_per_epoch if self.limit is None else min(self.limit, self.windows_per_epoch)

    def windows(self, samples: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """The numbers of the windows that these samples are."""
        if self.seed is None:
            return samples * self.windows_per_epoch // self.n_windows
        return shuffled(samples, self.windows_per_epoch, self.seed)


def read_packed(store: TokenStore, order: PackedOrder, samples: Int[np.ndarray, "B"]) -> dict[str, torch.Tensor]:
    """The windows of these samples; with the first two arguments bound it is a `loader.Read`."""
    assert store.answer_starts is not None
    windows, length = order.windows(samples), order.context + order.horizon
    shape = (len(samples), length)
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    documents = np.full(shape, store.split_meta.n_documents, dtype=np.int32)  # padding is in no document
    for row, window in enumerate(windows):
        start, after = int(store.document_starts[order.firsts[window]]), order.firsts[window + 1]
        there = min(length, len(store) - start)
        ids = store.document_ids(start, there)
        tokens[row, :there], documents[row, :there] = store.read(start, there), ids
        mask[row, :there] = (np.arange(start, start + there) >= store.answer_starts[ids]) & (ids < after)
    batch = {"tokens": tokens, "documents": documents, "loss_mask": mask}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def check_room(store: TokenStore, context: int, strict: bool) -> str | None:
    """What a window of this length loses of the split's answers, in a line; None where it loses nothing.

    Raises:
        InputError: it loses all of them; or any, and `strict`.
    """
    assert store.answer_starts is not None
    starts = np.asarray(store.document_starts)
    ends = np.append(starts[1:], len(store))
    cut = int((ends - starts > context + 1).sum())
    lost = int((store.answer_starts - starts > context).sum())
    if not cut:
        return None
    found = (
        f"data.context is {context}: of {len(starts):,} {store.split} documents {cut:,} are longer than {context + 1} "
        f"tokens, and their ends are never seen; {lost:,} of them have their whole answer there"
    )
    if lost == len(starts) or strict:
        raise InputError(f"{found}; the longest has {(ends - starts).max():,} tokens: take a larger data.context")
    return found
