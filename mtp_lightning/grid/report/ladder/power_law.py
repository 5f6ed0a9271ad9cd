"""A power law with a floor, L(C) = floor + scale (C / reference)^-exponent, fitted to the losses of a ladder of sizes;
and the check that refuses a ladder that is no such curve. numpy alone, the same result every time.

For one exponent the best floor and scale are a straight line's, so the search is along one number. The floor is never
below zero, where no loss is; that also keeps the exponent away from zero, where a floor of minus infinity would fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtp_lightning.grid.spec.ladder_tune_gate import FEWEST_SIZES

Array = NDArray[np.float64]

FEWEST_SEEDS = 2
LEVEL_OF_CHECK = 0.05
"""So often a ladder that is a power law is called bent by chance."""
TOLERATED = 0.10
"""A bend that moves no size by more than this share of its compute does not matter, however certain it is."""
SIMULATED = 2_000
_EXPONENTS = np.geomspace(0.01, 4.0, 48)
_GOLDEN = (5**0.5 - 1) / 2
PRECISE, ROUGH = 34, 12
"""Halvings of the exponent's interval, to some 1e-8 and 1e-3 of it: one curve that is shown, one of many drawn."""


@dataclass(frozen=True)
class PowerLaws:
    """One curve, or many of one ladder: `floor`, `scale` and `exponent` have equal shapes."""

    floor: Array
    scale: Array
    exponent: Array
    reference: float

    def loss(self, compute: Array) -> Array:
        """At each of K computes, shape (..., K)."""
        distance = np.log(compute / self.reference)
        return self.floor[..., None] + self.scale[..., None] * np.exp(-self.exponent[..., None] * distance)

    def log_ratio(self, worse: Array, better: Array) -> Array:
        """ln of the compute that leads from one loss to the other: ln [((worse - floor) / (better - floor))^(1 /
        exponent)]. Infinite where the better one lies at the floor or below, nan where both do. Shapes (..., K)."""
        floor = self.floor[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            above = [np.log(np.maximum(loss - floor, 0.0)) for loss in (worse, better)]
            found: Array = (above[0] - above[1]) / self.exponent[..., None]
        return found


def fit_power_laws(compute: Array, losses: Array, weights: Array | None = None, halvings: int = PRECISE) -> PowerLaws:
    """Least squares.

    Args:
        compute: of each size, shape (K,).
        losses: shape (K,), or (B, K) for B ladders of the same sizes.
        weights: of the sizes, shape (K,): how many seeds a mean is of.
        halvings: of the interval of the exponent; each makes it a third smaller.
    """
    shape, rows = losses.shape[:-1], losses.reshape(-1, losses.shape[-1])
    weights = np.ones(len(compute)) if weights is None else weights / weights.mean()
    reference = float(np.exp(np.log(compute).mean()))
    distance = np.log(compute / reference)
    nearest = _coarse_errors(np.exp(-_EXPONENTS[:, None] * distance), rows, weights).argmin(axis=1)
    low = _EXPONENTS[np.maximum(nearest - 1, 0)]
    high = _EXPONENTS[np.minimum(nearest + 1, len(_EXPONENTS) - 1)]

    def error(exponent: Array) -> Array:
        return _line(np.exp(-exponent[:, None] * distance), rows, weights)[0]

    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    for _ in range(halvings):  # golden section; one of the two inner points is always an old one
        keep = at_left < at_right
        low, high = np.where(keep, low, left), np.where(keep, right, high)
        new = np.where(keep, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_new = error(new)
        left, right = np.where(keep, new, right), np.where(keep, left, new)
        at_left, at_right = np.where(keep, at_new, at_right), np.where(keep, at_left, at_new)
    exponent = (low + high) / 2
    _, floor, scale = _line(np.exp(-exponent[:, None] * distance), rows, weights)
    return PowerLaws(floor.reshape(shape), scale.reshape(shape), exponent.reshape(shape), reference)


def _coarse_errors(x: Array, y: Array, weights: Array) -> Array:
    """`_line`'s error of y (B, K) over each row of x (G, K), as (B, G), less what all have: to find the best row."""
    total = weights.sum()
    x_mean, y_mean = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    dx = x - x_mean[:, None]
    along, square = np.einsum("bk,gk->bg", y, weights * dx), (weights * dx * dx).sum(-1)
    slope = np.maximum(along / square, 0.0)
    free = -slope * along - total * y_mean[:, None] ** 2
    through_zero = -(np.einsum("bk,gk->bg", y, weights * x) ** 2) / (weights * x * x).sum(-1)
    found: Array = np.where(y_mean[:, None] - slope * x_mean < 0, through_zero, free)
    return found


def _line(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Weighted squared error, intercept and slope of y (B, K) over x (1 or B, K); neither is below zero. Sums and not
    matrix products, whose last digits depend on the threads of the library that does them."""
    total = weights.sum()
    x_mean, y_mean = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    dx, dy = x - x_mean[:, None], y - y_mean[:, None]
    slope = np.maximum((weights * dx * dy).sum(-1) / (weights * dx * dx).sum(-1), 0.0)
    floor = y_mean - slope * x_mean
    through_zero = np.maximum((weights * x * y).sum(-1) / (weights * x * x).sum(-1), 0.0)
    slope, floor = np.where(floor < 0, through_zero, slope), np.maximum(floor, 0.0)
    rest = y - floor[:, None] - slope[:, None] * x
    return (weights * rest * rest).sum(-1), floor, slope


@dataclass(frozen=True)
class Spread:
    """Of the seeds about the mean of their size, all sizes together."""

    sd: float
    freedom: int
    """How many seeds there are beyond one for each size."""


def spread_of(losses: Array) -> Spread:
    """Of (K, S) losses, nan where a size lacks a seed."""
    counts = np.isfinite(losses).sum(axis=1)
    freedom = int(np.maximum(counts - 1, 0).sum())
    rest = losses - np.nanmean(losses, axis=1, keepdims=True)
    return Spread(float(np.sqrt(np.nansum(rest**2) / freedom)) if freedom else 0.0, freedom)


@dataclass(frozen=True)
class Fit:
    """A ladder's curve, or why it has none."""

    law: PowerLaws | None
    refusal: str | None = None
    off: float | None = None
    """By which factor of compute the curve misses the size that it fits worst: 1.07."""
    chance: float | None = None
    """How often a ladder that is a power law misses its own curve by as much."""


def fit_ladder(compute: Array, losses: Array, sizes: list[str]) -> Fit:
    """The curve of a ladder, if it is one.

    The check: the squared distances of the sizes' means from the curve, over the variance of the seeds, are held
    against those of `SIMULATED` ladders that lie on the curve and have the same seeds' spread. A ladder is bent where
    that is rarer than `LEVEL_OF_CHECK`, and the bend is worth more than `TOLERATED` of a size's compute.

    Args:
        compute: FLOPs of each size, in rising order, shape (K,).
        losses: of each size and seed, shape (K, S); nan where a seed is missing.
        sizes: their names, for the messages.
    """
    counts = np.isfinite(losses).sum(axis=1)
    if len(sizes) < FEWEST_SIZES:
        few = f"{len(sizes)} of at least {FEWEST_SIZES} sizes: three points fit any such curve"
        return Fit(None, f"too few sizes: {few}")
    means, spread = np.nanmean(losses, axis=1), spread_of(losses)
    if int(counts.max()) < FEWEST_SEEDS:
        return Fit(None, "one seed: how far a size may lie from the curve by chance is not known")
    if (same := np.flatnonzero(np.diff(compute) <= 1e-6 * compute[1:])).size:
        return Fit(None, f"no ladder: {sizes[same[0]]} and {sizes[same[0] + 1]} cost the same compute")
    if (rises := np.flatnonzero(np.diff(means) >= 0)).size:
        at = rises[0]
        return Fit(None, f"not monotone: the loss of {sizes[at + 1]} is not below that of {sizes[at]}")
    weights = counts.astype(float)
    law = fit_power_laws(compute, means, weights)
    off = np.abs(law.log_ratio(law.loss(compute), means))
    worst = int(np.nan_to_num(off, nan=np.inf).argmax())
    factor, chance = float(np.exp(off[worst])), _chance(compute, means, counts, spread, law)
    if chance < LEVEL_OF_CHECK and off[worst] > np.log1p(TOLERATED):
        text = f"bent: {sizes[worst]} lies off the curve by a factor of {factor:.2f} of its compute"
        return Fit(None, f"{text}, more than chance (p = {chance:.3f})", factor, chance)
    return Fit(law, None, factor, chance)


def _chance(compute: Array, means: Array, counts: NDArray[np.int_], spread: Spread, law: PowerLaws) -> float:
    rng = np.random.default_rng(0)
    on_curve, error = law.loss(compute), 1 / np.sqrt(counts)
    found = float((((means - on_curve) / error) ** 2).sum())
    if spread.sd <= 1e-12 * float(means.mean()):  # seeds that do not differ: any distance is more than chance
        return 1.0 if found <= 1e-12 * float((means**2).sum()) else 0.0
    drawn = on_curve + rng.standard_normal((SIMULATED, len(compute))) * error * spread.sd
    rest = drawn - fit_power_laws(compute, drawn, counts.astype(float), ROUGH).loss(compute)
    sd = spread.sd * np.sqrt(rng.chisquare(spread.freedom, SIMULATED) / spread.freedom)
    return float((((rest / error) ** 2).sum(axis=1) / sd**2 >= found / spread.sd**2).mean())
