"""pass@k and its kin, as pure functions of counts. Unbiased estimators of Chen et al. 2021 (arXiv 2107.03374)."""

import math
from collections.abc import Iterable

from mtp_lightning.errors import InputError

Count = tuple[int, int]
"""(samples of a problem, how many of them passed)."""


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that at least one of `k` different samples passes: 1 - C(n - c, k) / C(n, k).

    Raises:
        InputError: more samples are asked for than there are.
    """
    if not 1 <= k <= samples:
        raise InputError(f"k is {k}: it has to be at least 1 and at most {samples}, the number of samples of a problem")
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))


def mean_pass_at_k(counts: Iterable[Count], k: int) -> float:
    """Mean over problems."""
    values = [pass_at_k(samples, passed, k) for samples, passed in counts]
    return sum(values) / len(values)


def n_at_k(samples: int, passed: int, chosen: int, k: int, public: int | None = None) -> float:
    """Chance that one of `chosen` programs is right, which are taken at random from those of `k` random samples that
    pass the public tests. Where fewer than `chosen` pass them, all those are taken.

    Args:
        passed: samples that are right; they pass the public tests, too.
        public: samples that pass the public tests; by default all do.

    Raises:
        InputError: `chosen` <= `k` <= `samples` does not hold.
    """
    if not 1 <= chosen <= k <= samples:
        raise InputError(f"n@k is {chosen}@{k} of {samples} samples: 1 <= n <= k <= samples has to hold")
    filtered = samples if public is None else public
    total = math.comb(samples, k)
    chance = 0.0
    for found in range(min(filtered, k) + 1):  # of the k samples, how many pass the public tests
        ways = math.comb(filtered, found) * math.comb(samples - filtered, k - found)
        taken = min(chosen, found)
        if ways and taken:
            # a random subset of a random subset is a random subset of all that pass the public tests
            chance += ways / total * pass_at_k(filtered, passed, taken)
    return chance
