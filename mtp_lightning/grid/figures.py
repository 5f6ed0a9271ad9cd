"""The picture of a report: how each setting learned, and where it ended along the axis.

What is drawn is what the grid compares first: a loss with those of all heads, or a probe with its sisters.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from mtp_lightning.grid.cells import axis_names
from mtp_lightning.grid.report import Group, Report, Summary

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]
"""Group signature -> seed -> (step, value) of `curve_metric`."""

# Okabe and Ito's colours: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DASHES = ("-", "--", ":", "-.")
"""A second round of the colours is dashed, a third dotted."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_NUMBERED = re.compile(r"probe/\w+/[a-z]+_(\d+)")
_GREY = "#5f5f5f"


def curve_metric(report: Report) -> str:
    """The metric whose curves are drawn: the first compared."""
    return report.spec.compare[0]


def draw(report: Report, curves: Curves, path: Path) -> None:
    """Write the figure as a PNG. It is made without pyplot, so no global figure or backend is left behind."""
    figure = make_figure(report, curves)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=160)


def make_figure(report: Report, curves: Curves) -> Figure:
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, report, curves)
    _final(right, report)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    missing = f"  ({len(report.missing)} of {len(report.cells)} cells missing)" if report.missing else ""
    figure.suptitle(report.spec.name + missing, fontsize=13, fontweight="bold")
    return figure


def _curves(axes: Axes, report: Report, curves: Curves) -> None:
    title, unit = _title(curve_metric(report))
    axes.set(title=title, xlabel="step", ylabel=unit)
    drawn = 0
    for index, group in enumerate(report.groups):
        seeds = [dict(points) for points in curves.get(group.signature, {}).values() if points]
        if not seeds:
            continue
        # Only steps that every seed has: a mean over fewer would jump where one joins or leaves.
        steps = sorted(set.intersection(*(set(points) for points in seeds)))
        values = [[points[step] for points in seeds] for step in steps]
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
        mean = [sum(v) / len(v) for v in values]
        marker = "." if len(steps) < 15 else ""
        label = f"{group.label} (n={len(seeds)})"
        axes.plot(steps, mean, label=label, color=colour, linestyle=dashes, linewidth=1.8, marker=marker)
        if len(seeds) > 1:
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.18, lw=0)
        drawn += 1
    if drawn:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        _legend(axes, "mean; band: lowest to\nhighest seed", outside=drawn > 5)
    else:
        _say(axes, "no curves recorded")


def _final(axes: Axes, report: Report) -> None:
    """One line for each head's loss along the axis, or for each of the compared probes."""
    first = curve_metric(report)
    heads = [m for m in report.metrics if re.fullmatch(r"val/loss/head_\d+", m)]
    family = first.rsplit("/", 1)[0]
    sisters = [m for m in report.spec.compare if m.rsplit("/", 1)[0] == family]
    numbers = {m: int(match[1]) for m in sisters if (match := _NUMBERED.fullmatch(m))}
    if first in numbers:
        _profile(axes, report, family, numbers)
        return
    metrics = heads if first in heads else sisters
    groups, places, labels, name, numeric = _axis(report)
    title, unit = ("Final validation loss of each head", "nats per token") if first in heads else _title(family)
    axes.set(title=title, xlabel=name, ylabel=unit)
    drawn = 0
    for index, metric in enumerate(metrics):
        found = [(x, s) for x, group in zip(places, groups) if (s := group.summary(metric)) is not None]
        if not found:
            continue
        colour = colormaps["viridis"](0.9 * index / max(1, len(metrics) - 1))
        dashes = "-" if numeric else "none"  # between categories there is nothing to follow
        _line(axes, found, metric.rsplit("/", 1)[-1].replace("_", " "), index, colour, dashes)
        drawn += 1
    if not drawn:
        _say(axes, "no finished cell has these numbers")
        return
    if places and max(places) / max(min(places), 1e-12) > 16 and min(places) > 0:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    long = max(map(len, labels), default=0) > 9
    slant = (25 if len(labels) <= 7 else 55) if long else 0
    axes.set_xticklabels(labels, rotation=slant, rotation_mode="anchor", ha="right" if long else "center")
    axes.margins(x=0.08)
    _legend(axes, "error bars:\nsd over seeds", outside=True, reverse=True)


def _line(axes: Axes, found: Sequence[tuple[float, Summary]], label: str, index: int, colour: Any, dashes: str) -> None:
    """Means with their spreads; `index` picks the marker."""
    axes.errorbar(
        [x for x, _ in found],
        [s.mean for _, s in found],
        yerr=[s.sd or 0.0 for _, s in found],
        label=label,
        color=colour,
        linestyle=dashes,
        marker=_MARKERS[index % len(_MARKERS)],
        linewidth=1.5,
        markersize=5.5,
        capsize=3,
    )


def _profile(axes: Axes, report: Report, family: str, numbers: Mapping[str, int]) -> None:
    """Probes with numbers in their names, as in the paper's figure 8: a line for each setting along the numbers."""
    axes.set(
        title=f"{family} at the end", xlabel=next(iter(numbers)).rsplit("/", 1)[1].rsplit("_", 1)[0], ylabel="accuracy"
    )
    drawn = 0
    for index, group in enumerate(report.groups):
        found = [(float(number), s) for metric, number in numbers.items() if (s := group.summary(metric)) is not None]
        if not found:
            continue
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
        _line(axes, found, f"{group.label} (n={len(group.results)})", index, colour, dashes)
        drawn += 1
    if not drawn:
        _say(axes, "no finished cell has these numbers")
        return
    axes.xaxis.set_major_locator(FixedLocator(list(numbers.values())))
    _legend(axes, "error bars:\nsd over seeds", outside=True)


def _title(metric: str) -> tuple[str, str]:
    """What a metric is called above its axes, and its unit."""
    if head := re.fullmatch(r"val/loss/head_(\d+)", metric):
        return f"Validation loss of head {head[1]}", "nats per token"
    return metric, "accuracy" if metric.startswith("probe/") else metric


def _axis(report: Report) -> tuple[list[Group], list[float], list[str], str, bool]:
    """Groups in the order of the axis, their places on it, tick labels, the axis' name, and whether it is numeric: a
    single numeric axis keeps its scale; anything else is categories in the grid's order."""
    varying = [key for key, values in report.spec.axes.items() if len(values) > 1]
    groups = list(report.groups)
    if len(varying) == 1:
        key = varying[0]
        name = axis_names(report.spec)[key]
        if all(_number(group.values[key]) for group in groups):
            groups.sort(key=lambda group: float(group.values[key]))
            places = [float(group.values[key]) for group in groups]
            return groups, places, [f"{x:g}" for x in places], name, True
        return groups, _places(groups), [group.label.partition("=")[2] for group in groups], name, False
    return groups, _places(groups), [group.label for group in groups], "setting", False


def _places(groups: Sequence[Group]) -> list[float]:
    return [float(i) for i in range(len(groups))]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _legend(axes: Axes, title: str, *, outside: bool, reverse: bool = False) -> None:
    """Outside, it covers no line however many there are."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}
    legend = axes.legend(frameon=False, fontsize=9, title=title, title_fontsize=8, reverse=reverse, **place)
    legend.get_title().set_color(_GREY)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.set_xticks([])
    axes.set_yticks([])
