"""What a report says of its ladders: a table, the lines beside it, one sentence, and the same for programs."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mtp_lightning.grid.report.ladder.of_grid import Arm, Ladder
from mtp_lightning.grid.report.ladder.speedup import LEVEL, Estimate
from mtp_lightning.units import counted, quantity

HEADING = "What the arms are worth"
LEGEND = (
    f"Effective speedup: the factor of compute that the baseline would need to reach the arm's loss, with its "
    f"{LEVEL:.0%} interval over seeds; above 1 the arm is better. Compute is the FLOPs of training, all heads included."
)
_NONE = "–"


def rows(ladder: Ladder) -> list[list[str]]:
    """The table of one ladder, its head first."""
    head = ["arm", *ladder.sizes, "with ten times the compute", "order at the next size"]
    found = [head]
    for arm, worth in zip(ladder.arms, ladder.worths):
        speedups = [None] * len(ladder.sizes) if worth is None else [one.estimate for one in worth.speedups]
        trend = None if worth is None else worth.trend
        order = ladder.order_to_baseline(arm.name)
        holds = _NONE if order is None else f"holds: {_percent(order.probability)}"
        found.append([arm.name, *map(_estimate, speedups), "x " + _estimate(trend) if trend else _NONE, holds])
    return found


def lines(ladder: Ladder) -> list[str]:
    """The curve, or why there is none; why numbers are missing; what the probabilities rest on."""
    found = [f"{ladder.baseline.name}: {_curve(ladder)}"]
    for arm, worth in zip(ladder.arms, ladder.worths):
        refused = (
            [] if worth is None else [(s, one.refusal) for s, one in zip(ladder.sizes, worth.speedups) if one.refusal]
        )
        found += [f"{arm.name} at {size}: no effective speedup, {why}" for size, why in refused]
    if ladder.orders:
        orders = ladder.orders.values()
        held, steps = sum(one.held for one in orders), sum(one.sizes - 1 for one in orders)
        sizes = counted(max(one.sizes for one in orders), "size")
        found.append(
            "the probability that an order holds is that of a straight line through the logarithms of the ratio of two "
            f"losses above the floor, at {sizes}; it is too high where arms differ by less than the spread over seeds "
            "(in simulations, 70% of the orders with 85% held) and for the best of many arms; of all pairs of arms, "
            f"{held} of {steps} orders held from one size to the next"
        )
    return found


def sentence(ladders: Sequence[Ladder], arm: str | None) -> str:
    """Of the arm that is called `arm`, or of the best one at the largest size that any has."""
    for ladder in ladders:
        names = [one.name for one in ladder.arms]
        name = arm if arm in names else _best(ladder)
        if name is None or (arm is not None and arm not in (*names, ladder.baseline.name)):
            continue
        return f"{_worth(ladder, name)}{_order(ladder, name)}."
    return ""


def json(ladders: Sequence[Ladder]) -> list[dict[str, Any]]:
    return [_ladder_json(one) for one in ladders]


def _ladder_json(ladder: Ladder) -> dict[str, Any]:
    law = ladder.fit.law
    curve = law and {
        "floor": float(law.floor),
        "scale": float(law.scale),
        "exponent": float(law.exponent),
        "reference_flops": law.reference,
    }

    def arm(one: Arm) -> dict[str, Any]:
        worth = ladder.worth_of(one.name)
        order = ladder.order_to_baseline(one.name)
        speedups = [] if worth is None else [{"refusal": s.refusal, **_numbers(s.estimate)} for s in worth.speedups]
        numbers = {"flops": one.compute.tolist(), "losses": one.means.tolist()}
        trend = None if worth is None or worth.trend is None else _numbers(worth.trend)
        return {
            "arm": one.name,
            **numbers,
            "speedups": speedups,
            "per_tenfold_compute": trend,
            "order": order and asdict(order),
        }

    base = ladder.baseline
    return {
        "baseline": base.name,
        "sizes": list(ladder.sizes),
        "flops": base.compute.tolist(),
        "losses": base.means.tolist(),
        "curve": curve,
        "refusal": ladder.fit.refusal,
        "off_by_factor": ladder.fit.off,
        "chance": ladder.fit.chance,
        "level": LEVEL,
        "arms": [arm(one) for one in ladder.arms],
        "orders": [{"arms": list(pair), **asdict(order)} for pair, order in ladder.orders.items()],
    }


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    return (
        {"speedup": None, "low": None, "high": None}
        if estimate is None
        else {
            "speedup": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
        }
    )


def _curve(ladder: Ladder) -> str:
    law = ladder.fit.law
    if law is None:
        return f"no curve, {ladder.fit.refusal}"
    floor, scale, exponent = (float(value) for value in (law.floor, law.scale, law.exponent))
    curve = f"loss = {floor:.4f} + {scale:.4f} (C / {quantity(law.reference)}FLOPs)^-{exponent:.3f}"
    sizes = counted(len(ladder.sizes), "size")
    return f"{curve} over {sizes}, of which none lies off it by more than a factor of {ladder.fit.off:.2f} of compute"


def _best(ladder: Ladder) -> str | None:
    for index in reversed(range(len(ladder.sizes))):
        means = {arm.name: float(arm.means[index]) for arm in ladder.arms if math.isfinite(arm.means[index])}
        if means:
            return min(means, key=means.__getitem__)
    return None


def _worth(ladder: Ladder, name: str) -> str:
    if ladder.fit.refusal is not None:
        return f"No effective speedup: the ladder of {ladder.baseline.name} is refused, {ladder.fit.refusal}"
    found, worth = ladder.speedup_at_largest(name), ladder.worth_of(name)
    if found is None or found[1].estimate is None or worth is None:
        why = next((one.refusal for one in reversed(worth.speedups) if one.refusal), None) if worth else None
        return f"No effective speedup of {name}{f': {why}' if why else ''}"
    size, speedup = found
    text = f"Effective speedup of {name} over {ladder.baseline.name} at {size}: {_estimate(speedup.estimate)}"
    if worth.trend is not None:
        text += f", x {_estimate(worth.trend)} with ten times the compute"
    among = f", not made for the best of {len(ladder.arms)} arms" if len(ladder.arms) > 1 else ""
    text += f" ({LEVEL:.0%} intervals{among})"
    beyond = dict(zip(ladder.sizes, worth.speedups))
    refused = [f"none at {s}, {beyond[s].refusal}" for s in ladder.sizes[ladder.sizes.index(size) + 1 :]]
    return "; ".join([text, *refused])


def _order(ladder: Ladder, name: str) -> str:
    order = ladder.order_to_baseline(name)
    if order is None:
        return ""
    holds = (
        f"; their order at {ladder.sizes[-1]} holds at the next size with probability {_probability(order.probability)}"
    )
    steps = order.sizes - 1
    sizes = counted(order.sizes, "size")
    return f"{holds}, by {sizes}, from one to the next of which it held {order.held} of {steps} times"


def _estimate(found: Estimate | None) -> str:
    """`1.31 [1.20, 1.43]`"""
    return _NONE if found is None else f"{_factor(found.value)} [{_factor(found.low)}, {_factor(found.high)}]"


def _probability(value: float) -> str:
    """Never 0 nor 1: a handful of sizes makes nothing certain."""
    return "< 0.01" if value < 0.005 else "> 0.99" if value >= 0.995 else f"{value:.2f}"


def _percent(value: float) -> str:
    return "< 1%" if value < 0.005 else "> 99%" if value >= 0.995 else f"{value:.0%}"


def _factor(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 1000 else f"{value:.2g}"
