"""The picture of a report: how each setting learned, and where it ended along the axis.

What is drawn is what the grid compares first: a loss with those of all heads, or a probe with its sisters.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

from mtp_lightning.grid.report import effects
from mtp_lightning.grid.report.budgets import at_text
from mtp_lightning.grid.report.figure_parts import GREY, legend, say, spread_line, style, title
from mtp_lightning.grid.report.report import Group, Report
from mtp_lightning.grid.spec.cells import axis_names
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import is_number

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]
"""Group signature -> seed -> (step, value) of `curve_metric`."""

_NUMBERED = re.compile(r"probe/\w+/[a-z]+_(\d+)")


def curve_metric(report: Report) -> str:
    """The metric whose curves are drawn: the first compared."""
    return report.spec.compare[0]


def draw(report: Report, curves: Curves, path: Path) -> None:
    """Write the figure as a PNG. It is made without pyplot, so no global figure or backend is left behind."""
    figure = make_figure(report, curves)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=160)


def make_figure(report: Report, curves: Curves) -> Figure:
    figure = Figure(figsize=(11.0, max(4.6, 1.6 + 0.28 * len(report.groups))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    _curves(left, report, curves)
    _right(right, report)
    lacking = {"missing": report.missing, "not finished": report.unfinished}
    said = [f"{len(cells)} of {len(report.cells)} cells {how}" for how, cells in lacking.items() if cells]
    missing = f"  ({', '.join(said)})" if said else ""
    figure.suptitle(report.spec.name + missing, fontsize=13, fontweight="bold")
    return figure


def _curves(axes: Axes, report: Report, curves: Curves) -> None:
    name, unit = title(curve_metric(report))
    along, rates, at = _along(report)
    axes.set(title=name, xlabel=along, ylabel=unit)
    short = len(_varying(report)) > 1
    names = effects.labels(report) if short else {group.signature: group.label for group in report.groups}
    drawn = 0
    for index, group in enumerate(report.groups):
        seeds = [dict(points) for points in curves.get(group.signature, {}).values() if points]
        if not seeds or group.signature not in rates:
            continue
        # Only steps that every seed has: a mean over fewer would jump where one joins or leaves.
        steps = sorted(set.intersection(*(set(points) for points in seeds)))
        values = [[points[step] for points in seeds] for step in steps]
        places = [step * rates[group.signature] for step in steps]
        colour, dashes = style(index)
        mean = [sum(v) / len(v) for v in values]
        marker = "." if len(steps) < 15 else ""
        label = f"{names[group.signature]} (n={len(seeds)})"
        axes.plot(places, mean, label=label, color=colour, linestyle=dashes, linewidth=1.8, marker=marker)
        if len(seeds) > 1:
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
        drawn += 1
    if drawn:
        if at is not None:
            axes.axvline(at.amount, color=GREY, linestyle=":", linewidth=1.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if along.startswith(("tokens", "FLOPs")):
            axes.xaxis.set_major_formatter(EngFormatter())
        legend(axes, "mean; band: lowest to\nhighest seed", outside=drawn > 5)
    else:
        say(axes, "no curves recorded")


def _along(report: Report) -> tuple[str, Mapping[str, float], At | None]:
    """What the curves run along, how much of it each setting has in a step, and where on it they are compared."""
    at = report.aligned.at.get(curve_metric(report))
    if at is None:
        return "step", {group.signature: 1.0 for group in report.groups}, None
    name = {"flops": "FLOPs"}.get(at.unit, at.unit)
    found = report.aligned.rates[at.unit]
    rates = {cell.group: found[cell.signature] for cell in report.cells if cell.signature in found}
    return f"{name} (dotted: where they are compared)", rates, at


def _right(axes: Axes, report: Report) -> None:
    """The settings' differences to the baseline, one below the other, where several things vary; else where each
    setting ended along what does: a line for each head's loss, or for each of the compared probes."""
    first = curve_metric(report)
    family = first.rsplit("/", 1)[0]
    at = report.aligned.at.get(first)
    alike = [metric for metric in report.metrics if report.aligned.at.get(metric) == at]
    heads = [metric for metric in alike if re.fullmatch(r"val/loss/head_\d+", metric)]
    sisters = [m for m in alike if m in report.spec.compare and m.rsplit("/", 1)[0] == family]
    numbers = {m: int(match[1]) for m in sisters if (match := _NUMBERED.fullmatch(m))}
    compared = effects.rows(report)
    if report.spec.ablate and compared:
        effects.draw_effects(axes, report, first)
    elif first in numbers:
        _profile(axes, report, f"{family} at {at_text(at) if at else 'the end'}", numbers)
    elif len(_varying(report)) > 1 and len(report.groups) > 2 and compared:
        effects.draw_effects(axes, report, first)
    else:
        _along_axis(axes, report, heads if first in heads else sisters)


def _along_axis(axes: Axes, report: Report, metrics: Sequence[str]) -> None:
    first = curve_metric(report)
    heading, unit = title(first.rsplit("/", 1)[0])
    where = report.named(first).removeprefix(first)
    if first.startswith("val/loss/head_"):
        heading, unit = f"{'V' if where else 'Final v'}alidation loss of each head", "nats per token"
    heading += where
    groups, places, labels, axis, numeric = _axis(report)
    axes.set(title=heading, xlabel=axis, ylabel=unit)
    drawn = 0
    for index, metric in enumerate(metrics):
        found = [(x, s) for x, group in zip(places, groups) if (s := group.summary(metric)) is not None]
        if not found:
            continue
        colour = colormaps["viridis"](0.9 * index / max(1, len(metrics) - 1))
        dashes = "-" if numeric else "none"  # between categories there is nothing to follow
        spread_line(axes, found, metric.rsplit("/", 1)[-1].replace("_", " "), index, colour, dashes)
        drawn += 1
    if not drawn:
        say(axes, "no finished cell has these numbers")
        return
    if places and max(places) / max(min(places), 1e-12) > 16 and min(places) > 0:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    long = max(map(len, labels), default=0) > 9
    slant = (25 if len(labels) <= 7 else 55) if long else 0
    axes.set_xticklabels(labels, rotation=slant, rotation_mode="anchor", ha="right" if long else "center")
    axes.margins(x=0.08)
    legend(axes, "error bars:\nsd over seeds", outside=True, reverse=True)


def _profile(axes: Axes, report: Report, heading: str, numbers: Mapping[str, int]) -> None:
    """Probes with numbers in their names, as in the paper's figure 8: a line for each setting along the numbers."""
    axes.set(title=heading, xlabel=next(iter(numbers)).rsplit("/", 1)[1].rsplit("_", 1)[0], ylabel="accuracy")
    drawn = 0
    for index, group in enumerate(report.groups):
        found = [(float(number), s) for metric, number in numbers.items() if (s := group.summary(metric)) is not None]
        if not found:
            continue
        colour, dashes = style(index)
        spread_line(axes, found, f"{group.label} (n={len(group.results)})", index, colour, dashes)
        drawn += 1
    if not drawn:
        say(axes, "no finished cell has these numbers")
        return
    axes.xaxis.set_major_locator(FixedLocator(list(numbers.values())))
    legend(axes, "error bars:\nsd over seeds", outside=True)


def _axis(report: Report) -> tuple[list[Group], list[float], list[str], str, bool]:
    """Groups in the order of the axis, their places on it, tick labels, the axis' name, and whether it is numeric: a
    single numeric axis keeps its scale; anything else is categories in the grid's order."""
    varying, groups = _varying(report), list(report.groups)
    in_order = [float(i) for i in range(len(groups))]
    if len(varying) != 1:
        return groups, in_order, [group.label for group in groups], "setting", False
    key = varying[0]
    name = axis_names(report.spec)[key]
    if all(is_number(group.values.get(key)) for group in groups):
        groups.sort(key=lambda group: float(group.values[key]))
        places = [float(group.values[key]) for group in groups]
        return groups, places, [f"{x:g}" for x in places], name, True
    return groups, in_order, [group.label.partition("=")[2] or group.label for group in groups], name, False


def _varying(report: Report) -> list[str]:
    """What the settings differ in, keys that only some of them have included."""
    keys = list(dict.fromkeys(key for group in report.groups for key in group.values))

    def differs(key: str) -> bool:
        return len({canonical([group.values[key]] if key in group.values else []) for group in report.groups}) > 1

    return [key for key in keys if differs(key)]
