"""Spherical k-means: clusters of directions, by the cosine."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from mtp_lightning.shapes import Float, Int

ROUNDS = 30


class Nearest(NamedTuple):
    """Of each vector, the centroid with the largest cosine, the first of equals."""

    cluster: Int[np.ndarray, "n"]
    distance: Float[np.ndarray, "n"]
    """1 - cosine."""


def spherical_kmeans(x_ND: Float[np.ndarray, "n D"], k: int, seed: int) -> Float[np.ndarray, "k D"]:
    """Centroids of length 1. They begin as vectors that lie apart (k-means++: each is drawn by its distance from those
    before it), and move at most `ROUNDS` times; one without vectors stays where it is."""
    x = F.normalize(torch.from_numpy(x_ND).double(), dim=1)
    rng = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(x), (1,), generator=rng))
    centroids, apart = [x[first]], torch.full((len(x),), 2.0, dtype=torch.float64)
    while len(centroids) < k:
        apart = torch.minimum(apart, (1 - x @ centroids[-1]).clamp(min=0))
        weights = apart if apart.sum() > 0 else torch.ones_like(apart)
        at = torch.searchsorted(weights.cumsum(0), weights.sum() * torch.rand(1, generator=rng, dtype=torch.float64))
        centroids.append(x[int(at.clamp(max=len(x) - 1))])
    c_KD, before = torch.stack(centroids), None
    for _ in range(ROUNDS):
        cluster = (x @ c_KD.T).argmax(1)
        if before is not None and bool((cluster == before).all()):
            break
        sums = torch.zeros_like(c_KD).index_add_(0, cluster, x)
        c_KD = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), c_KD)
        before = cluster
    return c_KD.numpy()


def nearest(x_ND: Float[np.ndarray, "n D"], centroids_KD: Float[np.ndarray, "k D"]) -> Nearest:
    x = F.normalize(torch.from_numpy(x_ND).double(), dim=1)
    cosine, cluster = (x @ torch.from_numpy(centroids_KD).T).max(1)
    return Nearest(cluster.numpy(), (1 - cosine).numpy())
