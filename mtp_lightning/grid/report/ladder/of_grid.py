"""The ladders of a grid: which settings are the sizes of which arm, and what each arm is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtp_lightning.grid.report.ladder.power_law import Array, Fit, fit_ladder
from mtp_lightning.grid.report.ladder.speedup import Order, Speedup, Worth, order_of, worth
from mtp_lightning.grid.report.metric_names import LOWER
from mtp_lightning.grid.spec.cells import baseline_values
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.labels import Labels
from mtp_lightning.grid.spec.signature import canonical

if TYPE_CHECKING:
    from mtp_lightning.grid.report.comparison import Group

Flops = Mapping[str, Mapping[int, float]]
"""Group signature -> seed -> what its training cost up to where it is compared."""


@dataclass(frozen=True)
class Arm:
    """What a grid compares: a setting less its size and less what was tuned. The sizes are the ladder's, nan where it
    has none."""

    name: str
    compute: Array
    """FLOPs, shape (K,)."""
    losses: Array
    """Shape (K, S); nan where a seed is missing, infinite where one diverged."""
    stopped: NDArray[np.bool_]
    """At which sizes the gate did so, shape (K,)."""

    @property
    def means(self) -> Array:
        """Of the seeds that are there; nan where there is none."""
        counts = (~np.isnan(self.losses)).sum(axis=1)
        totals: Array = np.where(np.isnan(self.losses), 0.0, self.losses).sum(axis=1)
        return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Ladder:
    """A baseline's, and the arms that are compared with it."""

    sizes: Sequence[str]
    """`dim=64`, in the order of the baseline's compute; without those at which it has no result."""
    baseline: Arm
    fit: Fit
    arms: Sequence[Arm]
    """The others, in the grid's order; those that the gate stopped at every size come last."""
    worths: Sequence[Worth | None]
    """Of each of `arms`; None without a curve."""
    orders: Mapping[tuple[str, str], Order] = field(default_factory=dict)
    """Names of two arms -> whether the order that they have at the largest size holds at the next."""

    def worth_of(self, name: str) -> Worth | None:
        return next((found for arm, found in zip(self.arms, self.worths) if arm.name == name), None)

    def order_to_baseline(self, name: str) -> Order | None:
        return self.orders.get((self.baseline.name, name))

    def speedup_at_largest(self, name: str) -> tuple[str, Speedup] | None:
        """Of the largest size that has one, with its name."""
        found = self.worth_of(name)
        pairs = [] if found is None else [pair for pair in zip(self.sizes, found.speedups) if pair[1].estimate]
        return pairs[-1] if pairs else None


def arm_name(spec: GridSpec, values: Mapping[str, Any]) -> str:
    """`n_future=4`: a setting without its size and without what was tuned."""
    assert spec.ladder is not None
    aside = {*spec.together(spec.ladder.size), *spec.tuned_keys}
    return " ".join(Labels(spec).parts(values, without=aside)) or "all others"


def find_ladders(
    spec: GridSpec,
    groups: Sequence["Group"],
    metric: str,
    direction: str | None,
    flops: Flops,
    stopped: Sequence["Group"] = (),
) -> list[Ladder]:
    """A ladder for each setting of what the baseline leaves open, the size and what is tuned aside.

    Args:
        direction: which way the metric is better.
        stopped: settings that the gate stopped; not among `groups`.
    """
    assert spec.ladder is not None
    labels, size_keys = Labels(spec), spec.together(spec.ladder.size)
    aside = {*size_keys, *spec.tuned_keys}
    seeds = sorted({seed for group in groups for seed in group.seeds})
    arms: dict[str, dict[str, Group]] = {}
    base_of: dict[str, str] = {}
    for group in (*groups, *stopped):
        size = canonical({key: group.values[key] for key in size_keys if key in group.values})
        arm = canonical({key: value for key, value in group.values.items() if key not in aside})
        arms.setdefault(arm, {})[size] = group
        fixed = baseline_values(spec, group.values) or {}
        base_of[arm] = canonical({key: value for key, value in fixed.items() if key not in aside})

    def size_name(group: "Group") -> str:
        size = spec.ladder.size  # type: ignore[union-attr]
        return labels.part(size, group.values[size]) if size in group.values else group.label

    def arm_of(name: str, sizes: Sequence[str]) -> Arm:
        found = [arms[name].get(size) for size in sizes]
        some = next(group for group in arms[name].values())
        cost = [np.nan if one is None else _mean(list(flops.get(one.signature, {}).values())) for one in found]
        losses = [[_loss(one, metric, seed) for seed in seeds] for one in found]
        ended = np.array([one in stopped for one in found], dtype=bool)
        shape = len(sizes), len(seeds)
        return Arm(arm_name(spec, some.values), np.array(cost), np.array(losses).reshape(shape), ended)

    ladders = []
    for base in [name for name in arms if base_of[name] == name]:
        cost = {size: _mean(list(flops.get(group.signature, {}).values())) for size, group in arms[base].items()}
        measured = [size for size, group in arms[base].items() if group.by_seed(metric)]
        sizes = sorted(measured, key=lambda size: (np.isnan(cost[size]), cost[size]))
        names = [size_name(arms[base][size]) for size in sizes]
        others = [name for name in arms if base_of[name] == base and name != base]
        ladders.append(_ladder(names, arm_of(base, sizes), [arm_of(name, sizes) for name in others], direction))
    return ladders


def _ladder(sizes: Sequence[str], baseline: Arm, arms: Sequence[Arm], direction: str | None) -> Ladder:
    fit = _fit(sizes, baseline, direction)
    if fit.law is None:
        return Ladder(sizes, baseline, fit, arms, [None] * len(arms))
    worths = [
        worth(baseline.compute, baseline.losses, arm.compute, arm.losses, fit.law, stopped=arm.stopped) for arm in arms
    ]
    orders: dict[tuple[str, str], Order] = {}
    for one, other in combinations([baseline, *arms], 2):
        found = order_of(baseline.compute, one.losses, other.losses, float(fit.law.floor))
        if found is not None and not (one.stopped | other.stopped).any():
            orders[one.name, other.name] = found
    return Ladder(sizes, baseline, fit, arms, worths, orders)


def _fit(sizes: Sequence[str], baseline: Arm, direction: str | None) -> Fit:
    if direction != LOWER:
        return Fit(None, "the metric is not one of which less is better: a power law falls with compute")
    if diverged := [name for name, row in zip(sizes, baseline.losses) if np.isinf(row).any()]:
        return Fit(None, f"not finite: the baseline diverged at {', '.join(diverged)}")
    if unknown := [name for name, cost in zip(sizes, baseline.compute) if not np.isfinite(cost)]:
        return Fit(None, f"unknown compute: {', '.join(unknown)} recorded no tokens or no model/flops_per_token")
    return fit_ladder(baseline.compute, baseline.losses, list(sizes))


def _loss(group: "Group | None", metric: str, seed: int) -> float:
    found = None if group is None else group.by_seed(metric).get(seed)
    return np.nan if found is None else found if np.isfinite(found) else np.inf


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan
