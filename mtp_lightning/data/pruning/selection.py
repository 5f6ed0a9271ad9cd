"""Which documents are left out: pure functions of names, sizes and scores. Equal scores are ordered by name."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtp_lightning.shapes import Bool, Float, Int


class Documents(NamedTuple):
    """Those that may be left out."""

    names: Sequence[str]
    sizes: Int[np.ndarray, "n"]
    """What a fraction is of: bytes, or 1 for each document."""


def drop_highest(
    documents: Documents,
    scores: Float[np.ndarray, "n"],
    fraction: float,
    among: Bool[np.ndarray, "n"] | None = None,
) -> Bool[np.ndarray, "n"]:
    """True for the documents of the highest scores that together come nearest to the fraction of all sizes; at least
    one is left. One without a score (NaN) is the last to go.

    Args:
        among: those that are still there; the fraction is of all.
    """
    left = np.arange(len(scores)) if among is None else np.flatnonzero(among)
    value = np.where(np.isnan(scores), -np.inf, scores)
    order = sorted(left.tolist(), key=lambda i: (-value[i], documents.names[i]))[:-1]
    taken = np.cumsum([0, *(documents.sizes[i] for i in order)])
    count = int(np.abs(taken - fraction * int(documents.sizes.sum())).argmin())
    dropped = np.zeros(len(scores), dtype=bool)
    dropped[order[:count]] = True
    return dropped


class ClusterChoice(NamedTuple):
    """What Algorithm 1 leaves out, by its reasons."""

    small: Bool[np.ndarray, "n"]
    """In a small cluster."""
    far: Bool[np.ndarray, "n"]
    """Far from its centroid."""


def drop_by_clusters(
    documents: Documents,
    cluster: Int[np.ndarray, "n"],
    distance: Float[np.ndarray, "n"],
    fraction: float,
    alpha: float,
) -> ClusterChoice:
    """SCIP's Algorithm 1 (arXiv 2312.02418): first `alpha` of the fraction from the smallest clusters, then, of what is
    left, the rest of the fraction from the largest distances."""
    size = np.bincount(cluster)[cluster].astype(np.float64)
    small = drop_highest(documents, -size, alpha * fraction)
    far = drop_highest(documents, distance, (1 - alpha) * fraction, ~small)
    return ClusterChoice(small, far)


def random_scores(names: Sequence[str], seed: int, purpose: str) -> Float[np.ndarray, "n"]:
    """In [0, 1), of the name alone.

    Args:
        purpose: what is drawn by them. Each draws for itself: files left out by chance are not those that were planted.
    """
    digests = [hashlib.sha256(f"{purpose} {seed}\0{name}".encode(errors="replace")).digest() for name in names]
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])


def auc(positive: Float[np.ndarray, "p"], negative: Float[np.ndarray, "q"]) -> float:
    """How often a score of the first is above one of the second; of equals half count. NaN scores are left out."""
    positive, negative = (np.sort(some[~np.isnan(some)]) for some in (positive, negative))
    if not len(positive) or not len(negative):
        return float("nan")
    below, up_to = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return float((below + up_to).sum() / (2 * len(positive) * len(negative)))
