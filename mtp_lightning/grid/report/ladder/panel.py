"""The panels of a report's figure that show a ladder: losses over compute with the baseline's curve, and what each arm
changes against the baseline at each size."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

from mtp_lightning.grid.report.forms.figure_panels import (
    GREY,
    colour_and_dashes,
    draw_points,
    legend,
    readable,
    write_in_the_middle,
)
from mtp_lightning.grid.report.ladder.of_grid import Arm, Ladder
from mtp_lightning.grid.report.ladder.speedup import REACH


def draw_ladder(axes: Axes, ladder: Ladder, title: str) -> None:
    """Every arm's means with the seeds' lowest and highest; the curve as far as it is read."""
    axes.set(title=f"{title} on the ladder", ylabel=title)
    drawn = [_draw_arm(axes, arm, index) for index, arm in enumerate([ladder.baseline, *ladder.arms])]
    if not any(drawn):
        write_in_the_middle(axes, "no ladder: no finished cell with known compute")
        return
    law, compute = ladder.fit.law, ladder.baseline.compute
    if law is not None:
        step = np.log(compute[-1] / compute[0]) / (len(compute) - 1)
        along = np.exp(np.linspace(np.log(compute[0]) - REACH * step, np.log(compute[-1]) + REACH * step, 200))
        axes.plot(along, law.loss(along), color=colour_and_dashes(0)[0], linewidth=1.3)
    _over_compute(axes, ladder)
    heading = "bars: lowest to highest seed" + ("" if law is not None else "\nno curve")
    legend(axes, heading, "inside")


def draw_gaps(axes: Axes, ladder: Ladder, title: str, unit: str) -> None:
    """Mean differences by size, joined to lines, with each seed's as a small dot; nothing where a seed diverged."""
    axes.set(title=title, ylabel="difference to the baseline" + ("" if unit == title else f", {unit}"))
    drawn = 0
    for index, arm in enumerate(ladder.arms, start=1):
        pairs = np.stack([arm.losses, ladder.baseline.losses])
        pairs[:, np.isinf(pairs).any(axis=(0, 2))] = np.nan
        gaps = pairs[0] - pairs[1]  # (K, S), nan without a pair
        there = np.isfinite(gaps).any(axis=1) & np.isfinite(arm.compute)
        if not there.any():
            continue
        colour = colour_and_dashes(index)[0]
        x, means = arm.compute[there], np.nanmean(gaps[there], axis=1)
        axes.plot(x, means, color=colour, linewidth=1.3)
        draw_points(axes, x, means, None, readable(arm.name), index)
        axes.plot(x, gaps[there], ".", color=colour, markersize=4, alpha=0.6)
        drawn += 1
    if not drawn:
        write_in_the_middle(axes, "nothing to compare with the baseline")
        return
    axes.axhline(0.0, color=GREY, linewidth=1.0)
    _over_compute(axes, ladder)
    legend(axes, f"against {readable(ladder.baseline.name)}\nmeans, and each seed as a dot", "right")


def _over_compute(axes: Axes, ladder: Ladder) -> None:
    """FLOPs below, the baseline's sizes above."""
    axes.set(xscale="log", xlabel="FLOPs of training, all heads included")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    known = np.isfinite(ladder.baseline.compute)
    above = axes.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator(ladder.baseline.compute[known].tolist()))
    above.xaxis.set_minor_locator(NullLocator())
    names = [name for name, is_known in zip(ladder.sizes, known) if is_known]
    above.set_xticklabels(names, rotation=20, ha="left", fontsize=8, color=GREY)
    above.spines["top"].set_visible(False)


def _draw_arm(axes: Axes, arm: Arm, index: int) -> bool:
    shown = np.isfinite(arm.means) & np.isfinite(arm.compute)
    if not shown.any():
        return False
    means, losses = arm.means[shown], arm.losses[shown]
    ends = np.array([means - np.nanmin(losses, axis=1), np.nanmax(losses, axis=1) - means])
    draw_points(axes, arm.compute[shown], means, ends, readable(arm.name), index)
    return True
