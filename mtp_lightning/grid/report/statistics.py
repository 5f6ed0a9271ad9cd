"""Means over seeds, differences paired by seed, and 95 % confidence intervals that hold for a handful of seeds.

Which interval, and why. Coverage measured on 4,000 samples (1,500 for 8 and 10) of normal | exponential differences:

    seeds                3            5            6            8            10
    percentile           .75 | .69    .83 | .79    .87 | .82    .90 | .85    .90 | .86
    studentized          unbounded    .95 | .93    .95 | .93    .95 | .94    .95 | .95
    Student's t          .95 | .88    .95 | .89    .95 | .89    .96 | .89    .95 | .90

The percentile bootstrap is far too narrow: like every interval between two of k differences it covers at most
1 - 2^(1-k), which is 75 % for three. The studentized bootstrap (bootstrap-t) holds 95 %, for skewed differences too,
but from three values it is unbounded and from five it is in one case of a hundred more than six times as wide as
Student's. So: bootstrap-t from six pairs on, Student's t for three to five, nothing below. Differences of two runs
with like spreads are nearly symmetric, where Student's t holds.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
FEWEST = 3
"""Below so many seeds there is no interval: of two, Student's is 12.7 times as wide as they are apart."""
FEWEST_RESAMPLED = 6
MOST_ENUMERATED = 8
"""Up to so many values every resample is counted (6,435 different ones of eight); of more, `RESAMPLES` are drawn."""
RESAMPLES = 9_999
_LARGEST = 1e150
"""What is not smaller is as good as infinite, and what is not larger than its inverse as 0: their squares are."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    method: str
    """`bootstrap-t`, `t`, `Welch` (unpaired), or `Bonferroni` (Student's, of the best of several)."""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "level": LEVEL, "method": self.method}


@dataclass(frozen=True)
class Summary:
    """Sample mean over seeds; `sd` is the sample standard deviation (divided by seeds - 1), None for a single seed."""

    mean: float
    sd: float | None
    seeds: int
    """How many of them."""


@dataclass(frozen=True)
class Difference(Summary):
    """Between two settings, over the seeds that both have. Where that is none, `seeds` is 0: of their means, unpaired,
    without an sd."""

    interval: Interval | None = None

    def among(self, comparisons: int) -> Interval | None:
        """The interval for the best of so many settings, each compared with the same other (Bonferroni): Student's, at
        a level of 1 - (1 - LEVEL) / comparisons. None without an interval, and for seeds that are not the same.

        The best of many is ahead by chance more often than one in twenty: of 15 settings that are all equal to the
        baseline, over three seeds, the plain interval of the best leaves out 0 in 11 of 100 grids."""
        if self.interval is None or self.sd is None:
            return None
        reach = t_quantile(float(self.seeds - 1), 1 - (1 - LEVEL) / comparisons) * self.sd / math.sqrt(self.seeds)
        return Interval(self.mean - reach, self.mean + reach, "t" if comparisons == 1 else "Bonferroni")


def countable(value: float) -> bool:
    """Whether it is finite, and its square is."""
    return abs(value) < _LARGEST


def summarise(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    mean = _mean(values)
    sd = statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None
    return Summary(mean, sd, len(values))


def pooled_sd(settings: Sequence[Mapping[int, float]]) -> float | None:
    """The standard deviation over seeds that all settings share: the root of their mean variance, each weighing as many
    as its seeds less one. None without a setting of two seeds."""
    found = [summary for values in settings if (summary := summarise(list(values.values()))) and summary.sd is not None]
    freedom = sum(summary.seeds - 1 for summary in found)
    total = sum((summary.seeds - 1) * summary.sd**2 for summary in found if summary.sd is not None)
    return math.sqrt(total / freedom) if freedom else None


def difference_of(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Mean of (mine - theirs), seed by seed. Without a common seed, the difference of the means."""
    if not mine or not theirs:
        return None
    paired = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    found = summarise(paired)
    if found is not None:
        return Difference(found.mean, found.sd, found.seeds, paired_interval(paired))
    ours, others = list(mine.values()), list(theirs.values())
    return Difference(_mean(ours) - _mean(others), None, 0, welch_interval(ours, others))


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """For the mean of paired differences. None for fewer than three, and where all are equal: a metric that is too
    coarse to differ says nothing about its spread."""
    found = summarise(differences)
    if found is None or found.seeds < FEWEST or not _varies(found):
        return None
    assert found.sd is not None
    error = found.sd / math.sqrt(found.seeds)
    if found.seeds >= FEWEST_RESAMPLED:
        low, high = studentized_quantiles([(value - found.mean) / found.sd for value in sorted(differences)])
        if math.isfinite(low) and math.isfinite(high):  # many equal differences leave it unbounded
            return Interval(found.mean - high * error, found.mean - low * error, "bootstrap-t")
    reach = t_quantile(float(found.seeds - 1)) * error
    return Interval(found.mean - reach, found.mean + reach, "t")


def welch_interval(mine: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """For the difference of the means of independent samples, whose spreads may differ."""
    ours, others = summarise(mine), summarise(theirs)
    if ours is None or others is None or min(ours.seeds, others.seeds) < FEWEST:
        return None
    if ours.sd is None or others.sd is None:  # a value that is not finite
        return None
    if not _varies(ours) and not _varies(others):
        return None
    a, b = ours.sd / math.sqrt(ours.seeds), others.sd / math.sqrt(others.seeds)
    error = math.hypot(a, b)
    freedom = 1 / ((a / error) ** 4 / (ours.seeds - 1) + (b / error) ** 4 / (others.seeds - 1))
    gap, reach = ours.mean - others.mean, t_quantile(freedom) * error
    return Interval(gap - reach, gap + reach, "Welch")


@cache
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """t with P(|T| < t) = `level`."""
    low, high = 0.0, math.pi / 2 * (1 - 1e-12)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within_angle(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def t_probability(t: float, freedom: float) -> float:
    """P(|T| < t), for t of 0 or more."""
    return min(1.0, _within_angle(math.atan(t / math.sqrt(freedom)), freedom))


def _within_angle(angle: float, freedom: float, parts: int = 400) -> float:
    """P(|T| < sqrt(freedom) tan(angle)), an integral of cos^(freedom - 1), by Simpson's rule."""
    scale = 2 / math.sqrt(math.pi) * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    heights = [math.pow(math.cos(angle * i / parts), freedom - 1) for i in range(parts + 1)]
    inner = 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2])
    return scale * angle / parts / 3 * (heights[0] + inner + heights[-1])


def studentized_quantiles(scaled: Sequence[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a resample's t, for values with mean 0 and sd 1. Infinite where too many
    resamples have no spread. The resamples depend on the number of values only, so a report comes out the same again.
    """
    import numpy as np

    counts, weights = _resamples(len(scaled))
    size, values = len(scaled), np.asarray(scaled)
    # Not a matrix product: its last digits depend on the threads of the library that does it.
    means = (counts * values).sum(axis=1) / size
    sds = np.sqrt((counts * (values - means[:, None]) ** 2).sum(axis=1) / (size - 1))
    flat = sds < 1e-9
    t = np.where(flat, np.where(np.abs(means) < 1e-9, 0.0, np.copysign(np.inf, means)), means / np.where(flat, 1, sds))
    t = t * math.sqrt(size)
    return _lower_quantile(t, weights), -_lower_quantile(-t, weights)


@cache
def _resamples(size: int) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """How often each of `size` values is in a resample, and how many of the size^size resamples are that one."""
    import numpy as np

    if size <= MOST_ENUMERATED:
        drawn = [Counter(chosen) for chosen in combinations_with_replacement(range(size), size)]
        weights = [math.factorial(size) // math.prod(map(math.factorial, found.values())) for found in drawn]
    else:
        chance = random.Random(size)
        drawn = [Counter(chance.choices(range(size), k=size)) for _ in range(RESAMPLES)]
        weights = [1] * RESAMPLES
    return np.array([[found[i] for i in range(size)] for found in drawn]), np.array(weights)


def _lower_quantile(values: "np.ndarray[Any, Any]", weights: "np.ndarray[Any, Any]") -> float:
    """The smallest value that 2.5 % of all do not exceed."""
    order = values.argsort(kind="stable")
    passed = weights[order].cumsum() >= weights.sum() * (1 - LEVEL) / 2
    return float(values[order][passed.argmax()])


def _mean(values: Sequence[float]) -> float:
    # A diverged seed is part of the setting's result, not an outlier to be left out.
    return statistics.fmean(values) if all(map(countable, values)) else math.nan


def _varies(summary: Summary) -> bool:
    """Beyond the last digits of a float."""
    return summary.sd is not None and summary.sd > max(1e-12 * abs(summary.mean), 1 / _LARGEST)
