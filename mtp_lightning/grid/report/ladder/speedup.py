"""Effective speedup: the factor of compute that the baseline would need to reach an arm's loss, with an interval; and
the probability that the order of two arms holds at the next size. numpy alone, the same result every time.

Of one size: speedup = ((L_baseline - floor) / (L_arm - floor))^(1 / exponent) x C_baseline / C_arm. The first factor is
the field's formula (marin-community/marin#8096), the second is 1 where both spent the same compute. Both losses are the
measured ones of the same seeds, whose common luck cancels; the curve says only what a loss is worth.

The interval: residuals of the seeds, of all sizes together and of both arms jointly, are drawn again, widened by
sqrt(k / (k - 1)) for k seeds and by the uncertainty of their own spread (sqrt(freedom / chi-squared), as in Student's
t), and everything is computed again, the curve too. Percentiles of three seeds would cover 75 % at most
(`statistics.py`); these cover 90 % (measured: see the tests). They take the seeds' spread to be alike at all sizes:
where it falls to a half (a quarter) over four sizes of two seeds, they cover 80 % (70 %) at the smallest, 97 % (99 %)
at the largest, and 90 % (88 %) of all together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtp_lightning.grid.report.ladder.power_law import ROUGH, Array, PowerLaws, fit_power_laws, spread_of
from mtp_lightning.grid.report.statistics import t_probability

LEVEL = 0.90
DRAWS = 1_000
REACH = 0.5
"""How far beyond its ends a curve is read, in steps of the ladder. Not at all would leave out, at the largest size,
the arms that are better than the baseline, and half of those that are equal to it."""
FEWEST_FOR_ORDER = 3


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        return self.low > 1 or self.high < 1


@dataclass(frozen=True)
class Speedup:
    """Of one arm at one size: a number, or why there is none."""

    estimate: Estimate | None
    refusal: str | None = None
    censored: bool = False
    """Whether it is refused for what it would be: too far from 1 for the baseline's curve, diverged, or stopped by the
    gate. The other sizes alone are a selection then."""


@dataclass(frozen=True)
class Order:
    """Whether the lower loss of two arms at the largest size is the lower one at the next."""

    probability: float
    compute: float
    """FLOPs of the next size: one step of the ladder further."""
    sizes: int
    held: int
    """Of the `sizes - 1` steps of the ladder itself, those at which the order held."""


@dataclass(frozen=True)
class Worth:
    speedups: list[Speedup]
    """Of each size."""
    trend: Estimate | None
    """The factor by which the speedup grows with ten times the compute; None with fewer than three speedups, and where
    one is censored: the line would be drawn through the others."""


def worth(
    compute: Array,
    baseline: Array,
    arm_compute: Array,
    arm: Array,
    law: PowerLaws,
    draws: int = DRAWS,
    stopped: NDArray[np.bool_] | None = None,
) -> Worth:
    """An arm on the baseline's ladder.

    Args:
        compute: the baseline's FLOPs, in rising order, shape (K,).
        baseline: its losses by seed, shape (K, S); nan where one is missing.
        arm_compute: the arm's FLOPs, shape (K,).
        arm: its losses by seed, shape (K, S); the same seeds. Nan where one is missing, infinite where it diverged.
        law: the baseline's curve.
        draws: of the interval.
        stopped: at which sizes the gate stopped the arm, shape (K,); None for none.
    """
    seeds: NDArray[np.bool_] = np.asarray(np.isfinite(baseline) & np.isfinite(arm))
    present: NDArray[np.bool_] = np.asarray(seeds.any(axis=1) & ~np.isinf(arm).any(axis=1))
    with_arm = seeds & present[:, None]
    mine = np.where(with_arm, arm, np.nan)
    base = np.where(present[:, None], np.where(with_arm, baseline, np.nan), baseline)
    means = np.nanmean(base, axis=1)
    arm_means = np.array([np.nanmean(row) if ok else np.nan for row, ok in zip(mine, present)])
    cost = np.log(compute / arm_compute)
    values = law.log_ratio(means, arm_means) + cost
    drawn = _draw(compute, base, mine, cost, draws)
    found = [_speedup(i, values, drawn, compute, cost, arm[i], bool(present[i])) for i in range(len(compute))]
    if stopped is not None:
        ended = Speedup(None, "stopped by the gate", censored=True)
        found = [ended if is_stopped else one for is_stopped, one in zip(stopped, found)]
    kept = np.array([one.estimate is not None for one in found])
    trend = None
    if drawn is not None and kept.sum() >= 3 and not any(one.censored for one in found):
        x = np.log10(arm_compute[kept])
        x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        with np.errstate(invalid="ignore"):  # infinite speedups of a draw have no trend
            trend = _estimate(float((x * values[kept]).sum()), (drawn[:, kept] * x).sum(axis=1))
    return Worth(found, trend)


def _draw(compute: Array, base: Array, mine: Array, cost: Array, draws: int) -> Array | None:
    """ln speedup of (draws, sizes); None where no size has two seeds."""
    pool, freedom = _residuals(base, mine)
    if not freedom:
        return None
    rng, weights = np.random.default_rng(0), np.isfinite(base).sum(axis=1)
    widen = np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    noise = np.stack(
        [pool[rng.integers(len(pool), size=(draws, int(k)))].mean(axis=1) for k in weights], axis=1
    )  # (draws, sizes, 2)
    means = np.nanmean(base, axis=1) + widen * noise[..., 0]
    arms = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in mine]) + widen * noise[..., 1]
    return fit_power_laws(compute, means, weights.astype(float), ROUGH).log_ratio(means, arms) + cost


def _residuals(base: Array, mine: Array) -> tuple[Array, int]:
    """Of the seeds that both have, about the mean of their size, widened: (rows, 2), and their degrees of freedom."""
    rows, freedom = [np.zeros((0, 2))], 0
    for pair in np.stack([base, mine], axis=2):
        pair = pair[np.isfinite(pair).all(axis=1)]
        if (k := len(pair)) > 1:
            rows.append((pair - pair.mean(axis=0)) * np.sqrt(k / (k - 1)))
            freedom += k - 1
    return np.concatenate(rows), freedom


def _speedup(
    i: int, values: Array, drawn: Array | None, compute: Array, cost: Array, arm: Array, present: bool
) -> Speedup:
    if np.isinf(arm).any():
        return Speedup(None, "not finite: a seed of the arm diverged", censored=True)
    if not present:
        return Speedup(None, "missing: no seed in common with the baseline")
    if drawn is None:
        return Speedup(None, "one seed in common with the baseline: no interval")
    if not np.isfinite(cost[i]):
        return Speedup(None, "unknown compute of the arm")
    needed = np.log(compute[i]) + values[i] - cost[i]
    reach = REACH * np.log(compute[-1] / compute[0]) / (len(compute) - 1)
    for beyond, end, name in (
        (needed - np.log(compute[-1]), compute[-1], "largest"),
        (np.log(compute[0]) - needed, compute[0], "smallest"),
    ):
        if not beyond <= reach:
            factor = np.exp(needed) / end
            amount = (
                f"{factor:.2f} times the compute of the {name} size" if np.isfinite(factor) else "no finite compute"
            )
            return Speedup(None, f"outside of the fitted range: the baseline would need {amount}", censored=True)
    return Speedup(_estimate(float(values[i]), drawn[:, i]))


def _estimate(value: float, drawn: Array) -> Estimate:
    """Of logarithms. A draw that is undefined counts as the lowest and as the highest."""
    undefined = np.isnan(drawn)
    low = np.quantile(np.where(undefined, -np.inf, drawn), (1 - LEVEL) / 2, method="lower")
    high = np.quantile(np.where(undefined, np.inf, drawn), (1 + LEVEL) / 2, method="higher")
    return Estimate(*(float(np.exp(one)) for one in (value, min(low, value), max(high, value))))


def order_of(compute: Array, one: Array, other: Array, floor: float) -> Order | None:
    """From how two arms' losses above the floor compare, ln [(L_one - floor) / (L_other - floor)] by size, paired by
    seed: it is the same at all sizes for a speedup that is, where the losses' differences shrink. A straight line over
    the logarithm of compute predicts it at the next size: the probability that it has the sign of the last one, by
    Student's t with two degrees of freedom less than sizes. The line's scatter is taken as no less than the seeds' own,
    since few sizes lie nearly on a line by chance.

    The line's level and slope are each drawn to 0 by how little they stand out from their own error (positive-part
    James and Stein 1961, of one number), since the sign is that of a point which the line was drawn through: of arms
    that are equal, the plain line says 0.64 where 0.5 is right. This says 0.57, and more than 0.8 of one such pair in
    twelve (four sizes, two seeds). Where arms differ by the seeds' spread or more, orders hold as often as it says or
    more; where by half of it, those of which it says 0.85 hold 0.70 of the time (600 to 1,500 simulated ladders each).

    None with fewer than three sizes, where the largest has no seed of both, for losses that are at the floor or not
    finite, and for arms that are equal.

    Args:
        compute: shape (K,), in rising order.
        one, other: losses, shape (K, S); nan where a seed is missing.
        floor: the curve's.
    """
    there = ~(np.isnan(one) | np.isnan(other))
    if (np.where(there, np.minimum(one, other), np.inf) <= floor).any() or np.isinf(
        np.where(there, one + other, 0)
    ).any():
        return None
    ratios = np.log(np.where(there, one - floor, np.nan)) - np.log(np.where(there, other - floor, np.nan))
    kept, step = there.any(axis=1), np.log(compute[-1] / compute[0]) / (len(compute) - 1)
    ratios, x, size = ratios[kept], np.log(compute[kept]), int(kept.sum())
    if size < FEWEST_FOR_ORDER or not there[-1].any():
        return None
    means, seeds = np.nanmean(ratios, axis=1), float(there[kept].sum(axis=1).mean())
    if means[-1] == 0.0:
        return None
    distance = x - x.mean()
    spread = (distance**2).sum()
    slope = (distance * means).sum() / spread
    scatter = ((means - means.mean() - slope * distance) ** 2).sum() / (size - 2)
    variance = max(scatter, spread_of(ratios).sd ** 2 / seeds)
    ahead = distance[-1] + step
    level, of_level = _drawn_to_zero(means.mean(), variance / size)
    slope, of_slope = _drawn_to_zero(slope, variance / spread)
    expected = (level + slope * ahead) * np.sign(means[-1])
    error = np.sqrt(variance + of_level + of_slope * ahead**2)
    held = int((np.sign(means[1:]) == np.sign(means[:-1])).sum())
    inside = t_probability(float(abs(expected) / error), float(size - 2)) if error else 1.0
    probability = (1 + np.sign(expected) * inside) / 2
    return Order(float(probability), float(np.exp(ahead + x.mean())), size, held)


def _drawn_to_zero(value: float, variance: float) -> tuple[float, float]:
    """James and Stein's: the value and the variance that is left."""
    share = max(0.0, 1 - variance / value**2) if value else 0.0
    return value * share, variance * share
