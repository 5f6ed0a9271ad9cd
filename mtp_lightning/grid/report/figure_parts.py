"""What the panels of a report's figure have in common: colours, titles, legends, a line with its spreads."""

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from mtp_lightning.grid.report.statistics import Summary

# Okabe and Ito's colours: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DASHES = ("-", "--", ":", "-.")
"""A second round of the colours is dashed, a third dotted."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
BLUE, GREY = _COLOURS[0], "#5f5f5f"


def style(index: int) -> tuple[str, str]:
    """Colour and dashes of a setting, the same in every panel."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


_PROBE_UNITS = {
    "loss": "nats per token",
    "lead_step": "step",
    "reached": "share of seeds",
    "drop": "accuracy lost",
    "prefix_matching": "score",
    "previous_token": "score",
}
"""A part of a probe's name, and what it counts; all others are accuracies."""


def title(metric: str) -> tuple[str, str]:
    """What a metric is called above its axes, and its unit."""
    if head := re.fullmatch(r"val/loss/head_(\d+)", metric):
        return f"Validation loss of head {head[1]}", "nats per token"
    if not metric.startswith("probe/"):
        return metric, metric
    return metric, next((unit for part, unit in _PROBE_UNITS.items() if part in metric.split("/")), "accuracy")


def spread_line(
    axes: Axes, found: Sequence[tuple[float, Summary]], label: str, index: int, colour: Any, dashes: str
) -> None:
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


def legend(axes: Axes, heading: str, *, outside: bool, reverse: bool = False) -> None:
    """Outside, it covers no line however many there are."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}
    box = axes.legend(frameon=False, fontsize=9, title=heading, title_fontsize=8, reverse=reverse, **place)
    box.get_title().set_color(GREY)


def say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
