"""Validation windows told apart by how long their documents are.

Leaving the longest files out helps models of code more than scores of quality do, and what it costs shows on long
documents alone (Singhal et al. 2024, arXiv 2407.00434): a mean over all of them hides it.
"""

from typing import NamedTuple

import numpy as np

from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Int


class LengthClass(NamedTuple):
    """Of the documents that have up to so many tokens, and more than the class before."""

    name: str
    most_tokens: int
    windows: Int[np.ndarray, "N"]
    """Numbers of its windows."""


def length_classes(
    starts: Int[np.ndarray, "N"], context: int, document_starts: Int[np.ndarray, "documents"], n_tokens: int
) -> list[LengthClass]:
    """Three classes of windows, each of about a third. A window belongs to the document of its middle token; documents
    of one length, and so the windows of one document, are never divided.

    Args:
        starts: first tokens of the windows.
        document_starts: first tokens of the split's documents.
        n_tokens: of the split.

    Raises:
        InputError: the windows lie in documents of fewer than three lengths.
    """
    documents = np.searchsorted(document_starts, starts + context // 2, side="right") - 1
    lengths = np.diff(document_starts, append=n_tokens)[documents] - 1  # without its end
    values, counts = np.unique(lengths, return_counts=True)
    if len(values) < 3:
        raise InputError(
            f"data.val_by_length: the {len(starts)} validation windows lie in documents of {len(values)} different "
            "lengths, and three classes need three; use more text, or a larger data.val_windows"
        )
    below = np.cumsum(counts)[:-1]  # windows up to each length that a class may end with
    first = min(int(np.argmin(abs(below - len(starts) / 3))), len(values) - 3)
    second = max(int(np.argmin(abs(below - 2 * len(starts) / 3))), first + 1)
    ends = [int(values[first]), int(values[second]), int(values[-1])]
    which = np.searchsorted(ends, lengths)
    names = ("short", "medium", "long")
    return [LengthClass(name, end, np.flatnonzero(which == i)) for i, (name, end) in enumerate(zip(names, ends))]
