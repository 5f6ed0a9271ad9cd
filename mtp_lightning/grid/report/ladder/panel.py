"""The panel of a report's figure that shows a ladder: losses over compute, and the baseline's curve."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from mtp_lightning.grid.report.forms.figure_panels import colour_and_dashes, draw_points, legend, write_in_the_middle
from mtp_lightning.grid.report.ladder.of_grid import Arm, Ladder
from mtp_lightning.grid.report.ladder.speedup import REACH


def draw_ladder(axes: Axes, ladder: Ladder, title: str) -> None:
    """Every arm's means with the seeds' lowest and highest; the curve as far as it is read."""
    axes.set(title=f"{title} on the ladder", xlabel="FLOPs of training, all heads included", ylabel=title)
    drawn = 0
    for index, arm in enumerate([ladder.baseline, *ladder.arms]):
        drawn += _draw_arm(axes, arm, index)
    if not drawn:
        write_in_the_middle(axes, "no ladder: no finished cell with known compute")
        return
    law, compute = ladder.fit.law, ladder.baseline.compute
    if law is not None:
        step = np.log(compute[-1] / compute[0]) / (len(compute) - 1)
        along = np.exp(np.linspace(np.log(compute[0]) - REACH * step, np.log(compute[-1]) + REACH * step, 200))
        axes.plot(along, law.loss(along), color=colour_and_dashes(0)[0], linewidth=1.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter())
    heading = "bars: lowest to highest seed" + ("" if law is not None else "\nno curve")
    legend(axes, heading, "right" if drawn > 4 else "inside")


def _draw_arm(axes: Axes, arm: Arm, index: int) -> bool:
    shown = np.isfinite(arm.means) & np.isfinite(arm.compute)
    if not shown.any():
        return False
    means, losses = arm.means[shown], arm.losses[shown]
    ends = np.array([means - np.nanmin(losses, axis=1), np.nanmax(losses, axis=1) - means])
    draw_points(axes, arm.compute[shown], means, ends, arm.name, index)
    return True
