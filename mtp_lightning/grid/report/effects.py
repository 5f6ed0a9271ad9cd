"""The picture of an ablation: what each setting changes against its baseline, one below the other."""

import math
import textwrap

from matplotlib.axes import Axes

from mtp_lightning.grid.report.figure_parts import BLUE, GREY, legend, say, title
from mtp_lightning.grid.report.metrics import LOWER
from mtp_lightning.grid.report.report import Group, Report
from mtp_lightning.grid.report.statistics import LEVEL, Difference
from mtp_lightning.grid.spec.cells import axis_names
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import value_names


def rows(report: Report) -> list[Group]:
    """The settings that have something to be compared with, in the grid's order."""
    return [group for group in report.groups if report.base(group) is not None]


def draw_effects(axes: Axes, report: Report, metric: str) -> None:
    name, unit = title(metric)
    way = report.better(metric)
    side = f", {'left' if way == LOWER else 'right'} is better" if way else ""
    axes.set_title(f"{name}{report.named(metric).removeprefix(metric)}")
    axes.set_xlabel(f"difference to the baseline{'' if unit == metric else f', {unit}'}{side}")
    groups = rows(report)
    gaps = [report.difference(group, metric) for group in groups]
    drawn = [(place, gap) for place, gap in enumerate(gaps) if gap is not None and math.isfinite(gap.mean)]
    if not drawn:
        say(axes, "nothing to compare with the baseline")
        return
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    for place, gap in drawn:
        seeds = list(report.pairs(groups[place], metric).values()) if gap.n > 1 else []
        below = [place + 0.22] * len(seeds)
        axes.plot(seeds, below, ".", color="#9a9a9a", markersize=5, label="one seed" if place == drawn[0][0] else None)
    _means(axes, drawn)
    names = labels(report)
    axes.set_yticks(
        range(len(groups)), [f"{names[group.signature]} ({_seeds(gap)})" for group, gap in zip(groups, gaps)]
    )
    axes.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.grid(visible=False, axis="y")
    legend(axes, textwrap.fill(f"against {_against(report)}", 24), outside=True)


def labels(report: Report) -> dict[str, str]:
    """Group signature -> what a setting has that the one baseline has not; in full where there are several."""
    baselines = [group for group in report.groups if group.is_baseline]
    if len(baselines) != 1:
        return {group.signature: group.label for group in report.groups}
    names, theirs = axis_names(report.spec), baselines[0].values
    called = {key: value_names(g.values[key] for g in report.groups if key in g.values) for key in names}
    found = {baselines[0].signature: "baseline"}
    for group in rows(report):
        texts = {key: canonical(value) for key, value in group.values.items()}
        own = [key for key, text in texts.items() if key not in theirs or canonical(theirs[key]) != text]
        found[group.signature] = " ".join(f"{names[key]}={called[key][texts[key]]}" for key in own) or group.label
    return {group.signature: found.get(group.signature, group.label) for group in report.groups}


def _against(report: Report) -> str:
    baselines = [group.label for group in report.groups if group.is_baseline]
    return baselines[0] if len(baselines) == 1 else "each one's baseline"


def _means(axes: Axes, drawn: list[tuple[int, Difference]]) -> None:
    sure = [(place, gap, gap.interval) for place, gap in drawn if gap.interval is not None]
    for place, gap, found in sure:
        ends = [[gap.mean - found.low], [found.high - gap.mean]]
        label = f"{LEVEL:.0%} interval" if place == sure[0][0] else None
        axes.errorbar([gap.mean], [place], xerr=ends, color=BLUE, linewidth=1.8, capsize=3, label=label)
    axes.plot([gap.mean for _, gap in drawn], [place for place, _ in drawn], "o", color=BLUE, zorder=3, label="mean")


def _seeds(gap: Difference | None) -> str:
    if gap is None:
        return "missing"
    if not math.isfinite(gap.mean):
        return "not finite"
    return f"n={gap.n}" if gap.n else "unpaired"
