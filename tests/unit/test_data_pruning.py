"""What is left out: by scores, by clusters made by hand, ties, fractions; and what the table of corruptions says."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.pruning.clusters import nearest, spherical_kmeans
from mtp_lightning.data.pruning.corruptions import CORRUPTIONS
from mtp_lightning.data.pruning.gate import Seen, corruption_table, passes, shown, unseen
from mtp_lightning.data.pruning.record import against_planted
from mtp_lightning.data.pruning.selection import Documents, auc, drop_by_clusters, drop_highest, random_scores

NAMES = ["d", "c", "b", "a", "e"]


def drop(scores: Sequence[float], fraction: float, sizes: Sequence[int] = (1,) * 5) -> str:
    found = drop_highest(Documents(NAMES, np.array(sizes)), np.array(scores, dtype=float), fraction)
    return "".join(sorted(np.array(NAMES)[found]))


def test_the_highest_go_first_and_ties_go_by_name() -> None:
    assert drop([1, 2, 3, 4, 5], 0.4) == "ae"
    assert drop([0, 0, 0, 0, 0], 0.4) == "ab"
    assert drop([0, 1, 0, 0, 0], 0.4) == "ac"
    assert drop([0, math.nan, 0, 0, 0], 0.8) == "abde", "without a score it is the last to go"
    assert drop([1, 2, 3, 4, 5], 0.99) == "abce", "one is left"
    assert drop([1, 2, 3, 4, 5], 0.05) == ""


def test_a_fraction_of_bytes_comes_as_near_as_it_can() -> None:
    sizes = [10, 20, 30, 25, 15]  # d c b a e
    for fraction in (0.1, 0.3, 0.5, 0.8):
        found = drop([1, 2, 3, 4, 5], fraction, sizes)
        prefixes = ["", "e", "ae", "abe", "abce"]
        taken = {p: sum(size for name, size in zip(NAMES, sizes) if name in p) for p in prefixes}
        assert found == min(prefixes, key=lambda p: abs(taken[p] - fraction * 100))


CLUSTERED = ["p1", "p2", "q1", "q2", "q3", "r1", "r2", "r3", "r4", "r5"]
CLUSTER = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
DISTANCE = np.array([0.1, 0.2, 0.9, 0.3, 0.3, 0.8, 0.7, 0.7, 0.0, 0.1])


@pytest.mark.parametrize(
    ("alpha", "fraction", "small", "far"),
    [
        (1.0, 0.3, "p1 p2 q1", ""),  # the smallest cluster, then of the next the first by name
        (0.0, 0.3, "", "q1 r1 r2"),  # r2 and r3 are as far: by name
        (0.5, 0.4, "p1 p2", "q1 r1"),
        (0.8, 0.5, "p1 p2 q1 q2", "r1"),  # q1, the farthest, has gone before
    ],
)
def test_algorithm_1_on_clusters_made_by_hand(alpha: float, fraction: float, small: str, far: str) -> None:
    documents = Documents(CLUSTERED, np.ones(10, dtype=int))
    found = drop_by_clusters(documents, CLUSTER, DISTANCE, fraction, alpha)
    assert [" ".join(np.array(CLUSTERED)[which]) for which in found] == [small, far]
    order = np.random.default_rng(0).permutation(10)
    mixed = Documents([CLUSTERED[i] for i in order], np.ones(10, dtype=int))
    again = drop_by_clusters(mixed, CLUSTER[order], DISTANCE[order], fraction, alpha)
    assert all((a[order] == b).all() for a, b in zip(found, again)), "the corpus's order does not matter"


def test_random_is_of_the_name_and_the_seed() -> None:
    names = [f"{i}" for i in range(500)]
    scores = random_scores(names, 0, "pruned")
    assert abs(scores.mean() - 0.5) < 0.05
    assert (random_scores(names[::-1], 0, "pruned")[::-1] == scores).all()
    assert not (random_scores(names, 1, "pruned") == scores).any()
    planted = random_scores(names, 0, "planted") < 0.2
    assert abs(auc(scores[planted], scores[~planted]) - 0.5) < 0.1, "what was planted goes as often as anything else"


def points(seed: int = 0) -> np.ndarray:
    """Three bunches of directions, of any lengths."""
    rng = np.random.default_rng(seed)
    centers = np.eye(3, 5).repeat(20, axis=0)
    return ((centers + 0.1 * rng.normal(size=(60, 5))) * rng.uniform(0.1, 9, size=(60, 1))).astype(np.float32)


def test_clusters_are_found_and_centroids_are_means_of_directions() -> None:
    x = points()
    centroids = spherical_kmeans(x, 3, seed=0)
    found = nearest(x, centroids)
    assert sorted(len(set(found.cluster[i : i + 20])) for i in (0, 20, 40)) == [1, 1, 1]
    assert len(set(found.cluster)) == 3
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    for k in range(3):
        mean = directions[found.cluster == k].mean(0)
        np.testing.assert_allclose(centroids[k], mean / np.linalg.norm(mean), atol=1e-6)
    by_hand = np.array([[1 - float(d @ c) for c in centroids] for d in directions])
    np.testing.assert_allclose(found.distance, by_hand.min(1), atol=1e-6)
    assert (found.cluster == by_hand.argmin(1)).all()
    assert (spherical_kmeans(x, 3, seed=0) == centroids).all()


def test_no_other_clusters_of_few_points_are_better() -> None:
    """Against all ways to divide eight points in two."""
    x = np.random.default_rng(3).normal(size=(8, 3))
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)

    def cost(part: np.ndarray) -> float:
        return 8 - sum(np.linalg.norm(directions[side].sum(0)) for side in (part, ~part))

    divided = [np.isin(np.arange(8), some) for size in range(1, 5) for some in combinations(range(8), size)]
    best = min(map(cost, divided))
    costs = [float(nearest(x, spherical_kmeans(x, 2, seed)).distance.sum()) for seed in range(8)]
    assert min(costs) == pytest.approx(best)


def test_as_many_clusters_as_points_that_are_all_the_same() -> None:
    centroids = spherical_kmeans(np.ones((4, 2), dtype=np.float32), 3, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1)
    assert set(nearest(np.ones((4, 2)), centroids).cluster) == {0}


def test_auc_is_counted_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30).astype(float), rng.integers(1, 6, 20).astype(float)
    a[3] = math.nan
    pairs = [(x > y) + 0.5 * (x == y) for x in a if x == x for y in b]
    assert auc(a, b) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(auc(np.array([math.nan]), b))


def test_what_no_score_can_say_is_null_and_not_nan() -> None:
    planted, dropped = np.array([True, False]), np.array([True, False])
    row = against_planted(planted, "loss_head_8", dropped, np.array([math.nan, 1.0]))
    assert row == {"by": "loss_head_8", "precision": 1.0, "planted": 0.5, "recall": 1.0, "auc": None}


class Counting:
    """Sees brackets: the loss is how many more are opened than closed, and so is the place. Blind: it sees nothing."""

    file = fingerprint = "counting"
    loss_names = ("head_1", "head_2")

    def __init__(self, sees: str) -> None:
        self.sees = sees

    def _count(self, document: Document) -> float:
        text = document.text
        noise = (hash_of(document.name) % 100) / 1000
        return noise + ("x" in self.sees) * sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")

    def losses(self, documents: Sequence[Document]) -> np.ndarray:
        counts = np.array([self._count(document) for document in documents])
        return np.stack([counts, -counts], axis=1)

    def embed(self, documents: Sequence[Document]) -> np.ndarray:
        angles = np.array([self._count(document) for document in documents])
        return np.stack([np.cos(angles / 10), np.sin(angles / 10)], axis=1)


def hash_of(name: str) -> int:
    return int(random_scores([name], 0, "pruned")[0] * 10**6)


def table(sees: str) -> list[Seen]:
    found = [Document(f"{i}", f"def f_{i}(x):\n    return [x, (x + {i})]\n" * 3) for i in range(40)]
    return corruption_table(found[:20], found[20:], Counting(sees), 0.5, 4, seed=0)


def test_the_table_says_what_a_score_sees() -> None:
    rows = {(row.corruption, row.scorer): row for row in table("x")}
    assert {scorer for _, scorer in rows} == {"loss_head_1", "loss_head_2", "gap", "distance", "small_cluster"}
    seen = rows["brackets", "loss_head_1"]
    assert (seen.files, seen.up, seen.auc, seen.sees) == (20, 1.0, 1.0, True)
    assert seen.shift == pytest.approx(seen.edits / 20)
    down = rows["brackets", "loss_head_2"]
    assert (down.up, down.auc, down.sees) == (0.0, 0.0, False)
    assert rows["brackets", "gap"].shift == pytest.approx(-2 * seen.shift)
    assert rows["brackets", "distance"].sees
    assert not rows["names", "loss_head_1"].sees
    assert rows["names", "loss_head_1"].shift == 0
    nothing = rows["conditions", "distance"]
    assert (nothing.files, nothing.edits, shown(nothing)["auc"]) == (0, 0, None)


def test_a_small_cluster_is_the_share_of_the_others_outside_of_it() -> None:
    class Moving(Counting):
        def embed(self, documents: Sequence[Document]) -> np.ndarray:
            broken = np.array([document.text.count("(") != document.text.count(")") for document in documents])
            return np.stack([~broken, broken], axis=1).astype(float)

    text = "def f(x):\n    return (x + 1)\n" * 3
    some = [Document(f"{i}", text) for i in range(20)]
    others = [Document(f"other {i}", text if i else "def f(:\n    pass\n") for i in range(20)]
    rows = {row.scorer: row for row in corruption_table(some, others, Moving(""), 1.0, 2, seed=0)
            if row.corruption == "brackets"}  # fmt: skip
    assert (rows["small_cluster"].up, rows["small_cluster"].sees) == (1.0, True)
    assert rows["small_cluster"].shift == pytest.approx(19 / 20 - 1 / 20)
    assert (rows["distance"].up, rows["distance"].sees) == (0.0, False)


def test_files_with_anything_to_corrupt_are_compared_with_each_other() -> None:
    """Those with a comparison score higher here, clean or not: nothing of that is seen."""
    texts = ["x = 1\n", "y = x == 1  # ((((\n"] * 10
    some = [Document(f"{i}", text) for i, text in enumerate(texts)]
    rows = corruption_table(some, some, Counting("x"), 1.0, 2, seed=0)
    row = next(row for row in rows if (row.corruption, row.scorer) == ("conditions", "loss_head_1"))
    assert (row.files, row.edits, row.up, row.auc, row.sees) == (10, 10, 0.0, 0.5, False)


def test_a_score_has_to_see_most_of_the_corruptions() -> None:
    one = table("x")
    assert not passes(one, "distance")
    assert unseen(one, "distance") == [kind for kind in CORRUPTIONS if kind != "brackets"]
    rows = [Seen(kind, "distance", 9, 9, 1.0, 1.0, 1.0, i < 3) for i, kind in enumerate(CORRUPTIONS)]
    assert passes(rows, "distance")
    assert not passes(rows[1:], "distance")
    assert not passes(table(""), "loss_head_1")
