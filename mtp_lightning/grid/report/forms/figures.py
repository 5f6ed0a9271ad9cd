"""The picture of a report: on the left how each setting learned, on the right a panel of how they compare. Where the
metric was measured once in each run, the right one stands alone. Of a grid with ladders a row for each instead, since
settings of other sizes are not to compare: losses over compute, and differences to the baseline by size.

What is drawn is what the grid compares first: a loss with those of all heads, or a probe with its sisters.
"""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms.figure_panels import (
    GREY,
    LINE,
    colour_and_dashes,
    count_lines,
    draw_comparison,
    legend,
    readable,
    room_for_rows,
    short_labels,
    varying_keys,
    write_in_the_middle,
)
from mtp_lightning.grid.report.metric_names import title_and_unit
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.units import counted

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]
"""Group signature -> seed -> (step, value) of `curve_metric`."""


FEW = 3
"""Curves that leave room for what tells them apart."""
MANY = 8
"""Curves of which the bands would cover each other; beyond them are means alone."""
BELOW = 2 * LINE + 4
"""Characters of a line of it, below the curves."""


def curve_metric(report: Report) -> str:
    """The metric whose curves are drawn: the first compared."""
    return report.spec.compare[0]


def figure_png(report: Report, curves: Curves) -> bytes:
    """The figure is made without pyplot, so it leaves no global figure or backend."""
    figure = make_figure(report, curves)
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160)
    return png.getvalue()


def make_figure(report: Report, curves: Curves) -> Figure:
    figure = _figure_of_ladders(report) if report.ladders else _figure_of_settings(report, curves)
    lacking = {"missing": report.missing, "not finished": report.unfinished, "diverged": report.diverged}
    clauses = [f"{len(cells)} of {report.expected} cells {what}" for what, cells in lacking.items() if cells]
    figure.suptitle(report.spec.name + (f"  ({', '.join(clauses)})" if clauses else ""), fontsize=13, fontweight="bold")
    return figure


def _figure_of_ladders(report: Report) -> Figure:
    from mtp_lightning.grid.report.ladder.panel import draw_gaps, draw_ladder  # numpy

    metric = curve_metric(report)
    figure = Figure(figsize=(14.0, 0.4 + 4.8 * len(report.ladders)), layout="constrained")
    for ladder, (left, right) in zip(report.ladders, figure.subplots(len(report.ladders), 2, squeeze=False)):
        for axes in (left, right):
            _plain(axes)
        draw_ladder(left, ladder, report.with_budget(metric))
        title, unit = title_and_unit(metric)
        draw_gaps(right, ladder, title + report.with_budget(metric).removeprefix(metric), unit)
        right.set_xlim(left.get_xlim())  # not shared axes, whose ticks go where one has nothing to show
    return figure


def _figure_of_settings(report: Report, curves: Curves) -> Figure:
    height = max(4.6, 1.6 + 0.28 * len(report.groups), 1.6 + 0.19 * room_for_rows(report))
    learned = any(len(points) > 1 for seeds in curves.values() for points in seeds.values())
    if learned and len(curves) > FEW:
        height += 0.25 * sum(count_lines(report, BELOW))  # what tells them apart stands below
    panels = 2 if learned or not curves else 1
    beside = 3.0 if max(map(len, short_labels(report).values()), default=0) > LINE / 2 else 0.0  # inches, for names
    figure = Figure(figsize=(11.0 + beside, height), layout="constrained")
    *left, right = figure.subplots(1, panels, squeeze=False)[0]
    for axes in figure.axes:
        _plain(axes)
    for axes in left:
        _draw_curves(axes, report, curves)
    draw_comparison(right, report, curve_metric(report))
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, report: Report, curves: Curves) -> None:
    title, unit = title_and_unit(curve_metric(report))
    xlabel, per_step, at = _horizontal_axis(report)
    axes.set(title=title, xlabel=xlabel, ylabel=unit)
    several = len(varying_keys(report)) > 1
    names = short_labels(report) if several else {group.signature: group.label for group in report.groups}
    drawn, bands = 0, len(curves) <= MANY
    for index, group in enumerate(report.groups):
        seeds = [dict(points) for points in curves.get(group.signature, {}).values() if points]
        if not seeds or group.signature not in per_step:
            continue
        # Only steps that every seed has: a mean over fewer would jump where one joins or leaves.
        steps = sorted(set.intersection(*(set(points) for points in seeds)))
        values = [[points[step] for points in seeds] for step in steps]
        x = [step * per_step[group.signature] for step in steps]
        colour, dashes = colour_and_dashes(index)
        mean = [sum(v) / len(v) for v in values]
        marker = "." if len(steps) < 15 else ""
        label = readable(f"{names[group.signature]} ({counted(len(seeds), 'seed')})", BELOW)
        axes.plot(x, mean, label=label, color=colour, linestyle=dashes, linewidth=1.8, marker=marker)
        if bands and len(seeds) > 1:
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        drawn += 1
    if not drawn:
        write_in_the_middle(axes, "no curves recorded")
        return
    if at is not None:
        axes.axvline(at.amount, color=GREY, linestyle=":", linewidth=1.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if at is not None and at.unit != "step":
        axes.xaxis.set_major_formatter(EngFormatter())
    long = any(len(str(line.get_label())) > LINE for line in axes.get_lines())
    heading = "mean; band: lowest to\nhighest seed" if bands else "mean over seeds"
    legend(axes, heading, "below" if drawn > FEW or long else "inside")


def _horizontal_axis(report: Report) -> tuple[str, Mapping[str, float], At | None]:
    """What the curves are drawn over, how much of it each setting has in a step, and where on it they are compared."""
    at = report.at(curve_metric(report))
    if at is None:
        return "step", {group.signature: 1.0 for group in report.groups}, None
    name = {"flops": "FLOPs"}.get(at.unit, at.unit)
    found = report.equal_training.per_step[at.unit]
    per_step = {cell.group: found[cell.signature] for cell in report.cells if cell.signature in found}
    return f"{name} (dotted: where they are compared)", per_step, at
