"""pass@k and its kin, as pure functions of counts. Unbiased estimators of Chen et al. 2021 (arXiv 2107.03374)."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from mtp_lightning.errors import InputError

Answer = TypeVar("Answer", bound=Hashable)
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


class Oracle(NamedTuple):
    """The best temperature by the result itself, which is optimistic; `low` and `high` are the 5 % and 95 % points of a
    bootstrap over problems that chooses anew in each resample."""

    value: float
    temperature: float
    low: float
    high: float


def oracle(
    counts: Mapping[float, Sequence[Count]], k: int, resamples: int = 1000, seed: int = 0, fixed: float | None = None
) -> Oracle:
    """pass@k at the best of several temperatures, the lowest of equal ones; or at a fixed one.

    Args:
        counts: temperature -> counts of the same problems, in the same order.
    """
    values = {
        temperature: [pass_at_k(samples, passed, k) for samples, passed in problems]
        for temperature, problems in sorted(counts.items())
        if fixed is None or temperature == fixed
    }
    if not values:
        raise InputError(f"the fixed temperature is {fixed}: it has to be one of {sorted(counts)}")
    sizes = {len(problems) for problems in values.values()}
    assert len(sizes) == 1, "not the same problems at every temperature"
    count = sizes.pop()

    def best(indices: Sequence[int]) -> tuple[float, float]:
        means = {t: sum(column[i] for i in indices) / count for t, column in values.items()}
        chosen = max(means, key=lambda t: (means[t], -t))
        return means[chosen], chosen

    value, temperature = best(range(count))
    generator = random.Random(seed)
    spread = sorted(best(generator.choices(range(count), k=count))[0] for _ in range(resamples))
    low, high = (spread[round(point * (len(spread) - 1))] for point in (0.05, 0.95)) if spread else (value, value)
    return Oracle(value, temperature, low, high)


def majority(answers: Sequence[Answer | None]) -> Answer | None:
    """The most frequent answer, the first of equally frequent ones; None, which is no answer, loses to any."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def majority_at_k(answers: Sequence[Answer | None], gold: Answer, k: int, draws: int = 200, seed: int = 0) -> float:
    """Chance that the majority of `k` random samples is right: mean over random subsets; exact where k is all.

    Raises:
        InputError: more samples are asked for than there are.
    """
    if not 1 <= k <= len(answers):
        raise InputError(f"k is {k}: it has to be at least 1 and at most {len(answers)}, the samples of a problem")
    if k == len(answers):
        return float(majority(answers) == gold)
    generator = random.Random(seed)
    subsets = (sorted(generator.sample(range(len(answers)), k)) for _ in range(draws))
    return sum(majority([answers[i] for i in subset]) == gold for subset in subsets) / draws
