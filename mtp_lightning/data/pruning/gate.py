"""Does a score see that a file was made worse? A score that sees nothing of it prunes by something else, as by length
or subject: sentence encoders and small models see next to none of it, so the table comes before the pruning.

The centroids are those of other documents than are corrupted: of the same ones any change would lead away from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.pruning.clusters import nearest, spherical_kmeans
from mtp_lightning.data.pruning.corruptions import CORRUPTIONS, corrupt
from mtp_lightning.data.pruning.measuring import Provider
from mtp_lightning.data.pruning.selection import auc
from mtp_lightning.shapes import Float

DISTANCE, GAP, SMALL = "distance", "gap", "small_cluster"
LEAST_AUC = 0.55
LARGEST_CHANCE = 0.01
"""Of so many files going up where each goes up or down by chance."""
NEEDED = 3
"""Of the five corruptions, those that a score has to see."""


@dataclass(frozen=True)
class Seen:
    """A row: what a corruption does to a score."""

    corruption: str
    scorer: str
    files: int
    """That had anything to corrupt."""
    edits: int
    up: float
    """The share of files whose score is higher."""
    shift: float
    """The mean difference."""
    auc: float
    """How often a corrupted file scores above a clean one, of the same files: those with anything to corrupt are not
    as others are."""
    sees: bool


Scores = dict[str, Float[np.ndarray, "n"]]


def corruption_table(
    documents: Sequence[Document],
    others: Sequence[Document],
    provider: Provider,
    rate: float,
    clusters: int,
    seed: int,
    losses: bool = True,
) -> list[Seen]:
    """Every corruption by every scorer: losses by head, their gap, the distance to the nearest centroid, and how small
    its cluster is, as the share of the other documents that are not in it.

    Args:
        documents: to corrupt.
        others: to make the centroids of.
        losses: whether to look at losses too, which not all have.
    """
    places = provider.embed(others)
    centroids = spherical_kmeans(places, min(clusters, len(others)), seed)
    sizes = np.bincount(nearest(places, centroids).cluster, minlength=len(centroids))

    def scores(some: Sequence[Document]) -> Scores:
        place = nearest(provider.embed(some), centroids)
        found = {DISTANCE: place.distance, SMALL: 1 - sizes[place.cluster] / len(others)}
        return (loss_scores(provider, some) if losses else {}) | found

    clean, rows = scores(documents), []
    for kind in CORRUPTIONS:
        made = [corrupt(kind, document.text, document.name, seed, rate) for document in documents]
        edited = [i for i, one in enumerate(made) if one.edits]
        worse = scores([documents[i]._replace(text=made[i].text) for i in edited]) if len(edited) else {}
        edits = sum(one.edits for one in made)
        for scorer, before in clean.items():
            after = worse.get(scorer, np.empty(0))
            rows.append(_row(kind, scorer, edits, before[edited], after))
    return rows


def loss_scores(provider: Provider, documents: Sequence[Document]) -> Scores:
    """`loss_head_1`, ... and, of several heads, `gap`: how much more the last one's is than the first one's."""
    return named_losses(provider.losses(documents), provider.loss_names)


def named_losses(losses_NM: Float[np.ndarray, "n M"], names: Sequence[str]) -> Scores:
    found = {f"loss_{name}": losses_NM[:, i] for i, name in enumerate(names)}
    *_, last = (name for name in names if name.startswith("head_"))
    return found | ({GAP: found[f"loss_{last}"] - found["loss_head_1"]} if GAP in score_names(names) else {})


def score_names(loss_names: Sequence[str]) -> list[str]:
    """Those of `named_losses`; with one head there is no gap."""
    gap = [GAP] if sum(name.startswith("head_") for name in loss_names) > 1 else []
    return [*(f"loss_{name}" for name in loss_names), *gap]


def passes(table: Sequence[Seen], scorer: str) -> bool:
    """Whether a scorer sees most of the corruptions."""
    return sum(row.sees for row in table if row.scorer == scorer) >= NEEDED


def unseen(table: Sequence[Seen], scorer: str) -> list[str]:
    return [row.corruption for row in table if row.scorer == scorer and not row.sees]


def shown(row: Seen) -> Mapping[str, Any]:
    """For a table, and JSON without NaN."""
    numbers = {key: None if math.isnan(value) else round(value, 4) for key, value in
               (("up", row.up), ("shift", row.shift), ("auc", row.auc))}  # fmt: skip
    return vars(row) | numbers


def _row(
    kind: str,
    scorer: str,
    edits: int,
    before: Float[np.ndarray, "k"],
    after: Float[np.ndarray, "k"],
) -> Seen:
    both = ~(np.isnan(before) | np.isnan(after))
    before, after = before[both], after[both]
    n, n_up = len(after), int((after > before).sum())
    if not n:
        return Seen(kind, scorer, 0, edits, math.nan, math.nan, math.nan, False)
    found, chance = auc(after, before), sum(math.comb(n, k) for k in range(n_up, n + 1)) / 2**n
    sees = found >= LEAST_AUC and chance <= LARGEST_CHANCE
    return Seen(kind, scorer, n, edits, n_up / n, float((after - before).mean()), found, sees)
