"""The right half of a report's figure: differences to the baseline, a line for each setting along numbered probes, or
lines along the one axis that varies; and what both halves share."""

import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from mtp_lightning.grid.report.comparison import Group, Report
from mtp_lightning.grid.report.equal_training import at_text
from mtp_lightning.grid.report.metric_names import LOWER, title_and_unit
from mtp_lightning.grid.report.statistics import LEVEL, Difference, Summary
from mtp_lightning.grid.spec.cells import axis_names
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import is_number, value_names
from mtp_lightning.units import counted

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DASHES = ("-", "--", ":", "-.")
"""A second round of the colours is dashed, a third dotted."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
BLUE, GREY = _COLOURS[0], "#5f5f5f"

LINE = 30
"""Characters of a line beside a picture."""
_LONG = 20
"""Letters of a setting's name that are too many to stand below an axis."""
_NUMBERED = re.compile(r"probe/\w+/[a-z]+_(\d+)")


def draw_comparison(axes: Axes, report: Report, metric: str) -> None:
    """Differences to the baseline where several things vary; else the values at the end along what varies: a line for
    each head's loss, or for each of the compared probes."""
    family = metric.rsplit("/", 1)[0]
    at = report.at(metric)
    same_budget = [name for name in report.metrics if report.at(name) == at]
    heads = [name for name in same_budget if re.fullmatch(r"val/loss/head_\d+", name)]
    sisters = [name for name in same_budget if name in report.spec.compare and name.rsplit("/", 1)[0] == family]
    numbers = {name: int(match[1]) for name in sisters if (match := _NUMBERED.fullmatch(name))}
    compared = _compared_groups(report)
    if report.spec.ablate and compared:
        _draw_differences(axes, report, metric)
    elif metric in numbers:
        _draw_numbered_probes(axes, report, f"{family} at {at_text(at) if at else 'the end'}", numbers)
    elif len(varying_keys(report)) > 1 and len(report.groups) > 2 and compared:
        _draw_differences(axes, report, metric)
    else:
        _draw_along_axis(axes, report, metric, heads if metric in heads else sisters)


def varying_keys(report: Report) -> list[str]:
    """What the settings differ in, keys that only some of them have included."""
    keys = list(dict.fromkeys(key for group in report.groups for key in group.values))

    def differs(key: str) -> bool:
        return len({canonical([group.values[key]] if key in group.values else []) for group in report.groups}) > 1

    return [key for key in keys if differs(key)]


def short_labels(report: Report) -> dict[str, str]:
    """Group signature -> what a setting has that the one baseline has not; where there are several, what the settings
    differ in, of keys that always differ together the last."""
    labels = {group.signature: group.label for group in report.groups}
    baselines = [group for group in report.groups if group.is_baseline]
    names = axis_names(report.spec)
    texts = {key: value_names(g.values[key] for g in report.groups if key in g.values) for key in names}
    if len(baselines) != 1:
        told = {_partition(report, key): key for key in varying_keys(report)}.values()
        for group in report.groups if names.keys() >= set(told) else ():
            parts = [f"{names[k]}={texts[k][canonical(group.values[k])]}" for k in told if k in group.values]
            labels[group.signature] = " ".join(parts) or group.label
        return labels
    theirs = baselines[0].values
    labels[baselines[0].signature] = "baseline"
    for group in _compared_groups(report):
        values = {key: canonical(value) for key, value in group.values.items()}
        own = [key for key, text in values.items() if key not in theirs or canonical(theirs[key]) != text]
        labels[group.signature] = " ".join(f"{names[key]}={texts[key][values[key]]}" for key in own) or group.label
    return labels


def _partition(report: Report, key: str) -> tuple[int, ...]:
    """Which settings have the same value of a key: of each the first that has it."""
    values = [canonical([group.values[key]] if key in group.values else []) for group in report.groups]
    return tuple(map(values.index, values))


def count_lines(report: Report, line: int = LINE) -> list[int]:
    """Of text that each setting's name takes, `(3 seeds)` included."""
    return [readable(f"{name} (3 seeds)", line).count("\n") + 1 for name in short_labels(report).values()]


def room_for_rows(report: Report) -> float:
    """Lines of text that evenly spaced rows take, of which no two neighbours' names lie on each other."""
    lines = count_lines(report)
    return len(lines) * max((sum(pair) / 2 for pair in itertools.pairwise(lines)), default=1.0)


def readable(name: str, line: int = LINE) -> str:
    """A setting's name in a picture, in lines that fit beside."""
    if len(name) <= line:
        return name
    together = re.sub(r"\((\d+) seed", "(\\1\u00a0seed", name)  # stays in one line
    return textwrap.fill(together.replace(",", ", "), line, break_on_hyphens=False)


def colour_and_dashes(index: int) -> tuple[str, str]:
    """Of a setting, the same in every panel."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


_PLACES: dict[str, dict[str, Any]] = {
    "inside": {"loc": "best"},
    "right": {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)},
    "below": {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "borderaxespad": 0.0},
}


def legend(axes: Axes, heading: str, place: Literal["inside", "right", "below"], reverse: bool = False) -> None:
    """Outside, it covers no line however many there are; below, it leaves them their width however long its texts."""
    where, figure = _PLACES[place], axes.get_figure()
    if place == "below" and figure is not None:
        under = ScaledTranslation(0, -0.55, figure.dpi_scale_trans)  # inches, for the axis' numbers and name
        where = where | {"bbox_transform": axes.transAxes + under}
    box = axes.legend(frameon=False, fontsize=9, title=heading, title_fontsize=8, reverse=reverse, **where)
    box.get_title().set_color(GREY)


def write_in_the_middle(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def _compared_groups(report: Report) -> list[Group]:
    """The settings that have something to be compared with, in the grid's order."""
    return [group for group in report.groups if report.baseline_of(group) is not None]


def _draw_differences(axes: Axes, report: Report, metric: str) -> None:
    """What each setting changes against its baseline, one below the other."""
    title, unit = title_and_unit(metric)
    direction = report.direction(metric)
    side = f", {'left' if direction == LOWER else 'right'} is better" if direction else ""
    axes.set_title(f"{title}{_where(report, metric)}")
    axes.set_xlabel(f"difference to the baseline{'' if unit == metric else f', {unit}'}{side}")
    groups = _compared_groups(report)
    gaps = [report.difference(group, metric) for group in groups]
    drawn = [(row, gap) for row, gap in enumerate(gaps) if gap is not None and math.isfinite(gap.mean)]
    if not drawn:
        write_in_the_middle(axes, "nothing to compare with the baseline")
        return
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    for row, gap in drawn:
        seeds = list(report.differences_by_seed(groups[row], metric).values()) if gap.seeds > 1 else []
        label = "one seed" if row == drawn[0][0] else None
        axes.plot(seeds, [row + 0.22] * len(seeds), ".", color="#9a9a9a", markersize=5, label=label)
    _draw_means(axes, drawn)
    names = short_labels(report)
    labels = [readable(f"{names[group.signature]} ({_seeds_text(gap)})") for group, gap in zip(groups, gaps)]
    axes.set_yticks(range(len(groups)), labels)
    axes.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))  # small differences have long numbers
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.grid(visible=False, axis="y")
    baselines = [group.label for group in report.groups if group.is_baseline]
    against = baselines[0] if len(baselines) == 1 else "each one's baseline"
    legend(axes, textwrap.fill(readable(f"against {against}"), 24), "right")


def _draw_means(axes: Axes, drawn: list[tuple[int, Difference]]) -> None:
    with_interval = [(row, gap, gap.interval) for row, gap in drawn if gap.interval is not None]
    for row, gap, interval in with_interval:
        ends = [[gap.mean - interval.low], [interval.high - gap.mean]]
        label = f"{LEVEL:.0%} interval" if row == with_interval[0][0] else None
        axes.errorbar([gap.mean], [row], xerr=ends, color=BLUE, linewidth=1.8, capsize=3, label=label)
    axes.plot([gap.mean for _, gap in drawn], [row for row, _ in drawn], "o", color=BLUE, zorder=3, label="mean")


def _seeds_text(gap: Difference | None) -> str:
    if gap is None:
        return "missing"
    if not math.isfinite(gap.mean):
        return "not finite"
    return counted(gap.seeds, "seed") if gap.seeds else "unpaired"


def _draw_along_axis(axes: Axes, report: Report, metric: str, metrics: Sequence[str]) -> None:
    heading, unit = title_and_unit(metric if len(metrics) == 1 else metric.rsplit("/", 1)[0])
    where = _where(report, metric)
    if metric.startswith("val/loss/head_"):
        heading, unit = f"{'V' if where else 'Final v'}alidation loss of each head", "nats per token"
    groups, positions, labels, axis, numeric = _axis(report)
    rows = not numeric and max(map(len, labels), default=0) > _LONG  # long names are read one below the other
    amount = "" if unit == heading else unit
    axes.set(title=heading + where, xlabel=amount if rows else axis, ylabel="" if rows else amount)
    drawn = 0
    for index, name in enumerate(metrics):
        found = [(x, s) for x, group in zip(positions, groups) if (s := group.summary(name)) is not None]
        if not found:
            continue
        colour = colormaps["viridis"](0.9 * index / max(1, len(metrics) - 1))
        dashes = "-" if numeric else "none"  # between categories there is nothing to follow
        label = name.rsplit("/", 1)[-1].replace("_", " ")
        _draw_means_with_spread(axes, found, label, index, colour, dashes, rows=rows)
        drawn += 1
    if not drawn:
        write_in_the_middle(axes, "no finished cell has these numbers")
        return
    legend(axes, "error bars:\nsd over seeds", "right", reverse=True)
    if rows:
        axes.set_yticks(positions, [readable(label) for label in labels])
        axes.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        return
    if positions and max(positions) / max(min(positions), 1e-12) > 16 and min(positions) > 0:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(positions))
    axes.xaxis.set_minor_locator(NullLocator())
    long = max(map(len, labels), default=0) > 9
    slant = (25 if len(labels) <= 7 else 55) if long else 0
    axes.set_xticklabels(labels, rotation=slant, rotation_mode="anchor", ha="right" if long else "center")
    axes.margins(x=0.08)


def _draw_numbered_probes(axes: Axes, report: Report, heading: str, numbers: Mapping[str, int]) -> None:
    """Probes with numbers in their names, as in the paper's figure 8: a line for each setting along the numbers."""
    axes.set(title=heading, xlabel=next(iter(numbers)).rsplit("/", 1)[1].rsplit("_", 1)[0], ylabel="accuracy")
    drawn = 0
    for index, group in enumerate(report.groups):
        found = [(float(number), s) for metric, number in numbers.items() if (s := group.summary(metric)) is not None]
        if not found:
            continue
        colour, dashes = colour_and_dashes(index)
        label = readable(f"{group.label} ({counted(len(group.results), 'seed')})")
        _draw_means_with_spread(axes, found, label, index, colour, dashes)
        drawn += 1
    if not drawn:
        write_in_the_middle(axes, "no finished cell has these numbers")
        return
    axes.xaxis.set_major_locator(FixedLocator(list(numbers.values())))
    legend(axes, "error bars:\nsd over seeds", "right")


def _draw_means_with_spread(
    axes: Axes,
    found: Sequence[tuple[float, Summary]],
    label: str,
    index: int,
    colour: Any,
    dashes: str,
    rows: bool = False,
) -> None:
    """`index` picks the marker. In rows, values run along x and positions down y."""
    places, values, spread = [x for x, _ in found], [s.mean for _, s in found], [s.sd or 0.0 for _, s in found]
    axes.errorbar(
        values if rows else places,
        places if rows else values,
        xerr=spread if rows else None,
        yerr=None if rows else spread,
        label=label,
        color=colour,
        linestyle=dashes,
        marker=_MARKERS[index % len(_MARKERS)],
        linewidth=1.5,
        markersize=5.5,
        capsize=3,
    )


def draw_points(axes: Axes, x: Any, y: Any, ends: Any, label: str, index: int) -> None:
    """Means of one arm with bars of lengths `ends`, below and above."""
    colour, marker = colour_and_dashes(index)[0], _MARKERS[index % len(_MARKERS)]
    axes.errorbar(
        x, y, yerr=ends, label=label, linestyle="none", color=colour, marker=marker, markersize=5.5, capsize=3
    )


def _axis(report: Report) -> tuple[list[Group], list[float], list[str], str, bool]:
    """Groups in the order of the axis, their positions on it, tick labels, the axis' name, and whether it is numeric: a
    single numeric axis keeps its scale; anything else is categories in the grid's order."""
    varying, groups = varying_keys(report), list(report.groups)
    in_order = [float(i) for i in range(len(groups))]
    if len(varying) != 1:
        return groups, in_order, [group.label for group in groups], "setting", False
    key = varying[0]
    name = axis_names(report.spec)[key]
    if all(is_number(group.values.get(key)) for group in groups):
        groups.sort(key=lambda group: float(group.values[key]))
        positions = [float(group.values[key]) for group in groups]
        return groups, positions, [f"{x:g}" for x in positions], name, True
    return groups, in_order, [group.label.partition("=")[2] or group.label for group in groups], name, False


def _where(report: Report, metric: str) -> str:
    """` at step 1000`; empty for the end."""
    return report.with_budget(metric).removeprefix(metric)
