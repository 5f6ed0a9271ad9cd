"""A report as a terminal table, as markdown, as CSV and as JSON. Units are for people; the files keep raw numbers."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.report.metrics import interval_text, shown
from mtp_lightning.grid.report.report import Group, Report
from mtp_lightning.grid.report.statistics import LEVEL, Interval, Summary
from mtp_lightning.grid.report.verdict import verdict
from mtp_lightning.grid.spec.signature import canonical

WIDE = 5
"""Settings up to which they are columns; more of them become rows, with the compared metrics only."""


METHODS = {
    "t": "Student's t",
    "bootstrap-t": "studentized bootstrap from 6 seeds on",
    "Welch": "Welch's t where no seed is common",
}
_GAP = ("difference", "difference_sd", "ci_low", "ci_high", "n_pairs", "ci_method")


def terminal_table(report: Report) -> Table:
    def cell(group: Group, metric: str) -> Text:
        text = Text(mean_text(group, metric))
        if gap := difference_text(report, group, metric):
            text.append(f"\n{gap}", style="dim")
        return text

    title = f"{report.spec.name}: mean ± sd over seeds, difference to the baseline"
    table = Table(title=title + (f" [{LEVEL:.0%} interval]" if _intervals(report) else ""), title_justify="left")
    if len(report.groups) <= WIDE:
        table.add_column("metric", no_wrap=True)
        for group in report.groups:
            table.add_column(Text(_heading(group)), justify="right")
        for metric in report.metrics:
            table.add_row(_with_arrow(report, metric), *(cell(group, metric) for group in report.groups))
        return table
    table.add_column("setting", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in report.spec.compare:
        table.add_column(_with_arrow(report, metric), justify="right")
    for group in report.groups:
        name = group.label + (" (baseline)" if group.is_baseline else "")
        table.add_row(Text(name), _count(group), *(cell(group, m) for m in report.spec.compare))
    return table


def markdown(report: Report, metrics: Sequence[str] | None = None) -> str:
    """Title, verdict, what is missing, and the table with every metric (or those given)."""
    parts = [f"# {report.spec.name}", verdict(report)]
    parts += [f"**{line[0].upper()}{line[1:]}**" for line in notices(report)]
    parts.append(markdown_table(report, report.metrics if metrics is None else metrics))
    parts.append(legend(report))
    return "\n\n".join(parts) + "\n"


def markdown_table(report: Report, metrics: Sequence[str]) -> str:
    def cell(group: Group, metric: str) -> str:
        gap = difference_text(report, group, metric)
        return mean_text(group, metric) + (f" ({gap})" if gap else "")

    if len(report.groups) <= WIDE:
        head = ["metric", *(_heading(group).replace("\n", ", ") for group in report.groups)]
        rows = [[_with_arrow(report, m), *(cell(group, m) for group in report.groups)] for m in metrics]
    else:
        head = ["setting", *(_with_arrow(report, metric) for metric in metrics)]
        rows = [[_heading(group).replace("\n", ", "), *(cell(group, m) for m in metrics)] for group in report.groups]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def legend(report: Report) -> str:
    text = "Mean ± sample standard deviation over seeds; in brackets the difference to the baseline, by seed"
    methods = {found.method for found in _intervals(report)}
    if not methods:
        return text + "."
    said = [name for method, name in METHODS.items() if method in methods]
    return (
        f"{text}, with its {LEVEL:.0%} confidence interval ({'; '.join(said)}). Each interval holds for its own "
        "difference: of twenty, one misses by chance."
    )


def csv_text(report: Report) -> str:
    """Long form, one line for each setting and metric; empty where there is no such number. `cells` are the seeds that
    there should be; `n_pairs` is 0 for a difference of means without a common seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = list(dict.fromkeys([*report.spec.axes, *(key for group in report.groups for key in group.values)]))
    writer.writerow(["group", *keys, "metric", "at", "mean", "sd", "n", "cells", *_GAP])
    for group in report.groups:
        setting = [_shown_value(group.values[key]) if key in group.values else "" for key in keys]
        for metric in report.metrics:
            found, at = group.summary(metric), report.aligned.at.get(metric)
            if found is None:
                continue
            where = "" if at is None else f"{at.unit}={at.amount:.12g}"
            numbers = map(_raw, (found.mean, found.sd, found.n, len(group.seeds)))
            writer.writerow([group.label, *setting, metric, where, *numbers, *_gap_fields(report, group, metric)])
    return out.getvalue()


def report_json(report: Report) -> dict[str, Any]:
    """What the table says, for `--json`. Numbers that are not finite are null, since JSON has none."""

    def metric(group: Group, name: str, found: Summary) -> dict[str, Any]:
        gap = report.difference(group, name)
        numbers = {"mean": _finite(found.mean), "sd": _finite(found.sd), "n": found.n}
        if gap is None:
            return {**numbers, "difference": None}
        difference = {"mean": _finite(gap.mean), "sd": _finite(gap.sd), "n": gap.n}
        interval = None if gap.interval is None else asdict(gap.interval)
        return {**numbers, "difference": {**difference, "interval": interval}}

    return {
        "grid": report.spec.name,
        "verdict": verdict(report),
        "cells": len(report.cells),
        "missing": list(report.missing),
        "unfinished": list(report.unfinished),
        "warnings": list(report.warnings),
        "notices": notices(report),
        "at": {name: {"unit": at.unit, "amount": at.amount} for name, at in report.aligned.at.items()},
        "groups": [
            {
                "label": group.label,
                "signature": group.signature,
                "values": dict(group.values),
                "seeds": list(group.results),
                "cells": len(group.seeds),
                "baseline": group.is_baseline,
                "metrics": {
                    name: metric(group, name, found)
                    for name in report.metrics
                    if (found := group.summary(name)) is not None
                },
            }
            for group in report.groups
        ],
    }


def notices(report: Report) -> list[str]:
    """What has to be said beside the table."""
    lines = [f"on top of the grid file: {key} = {_shown_value(value)}" for key, value in report.spec.overridden.items()]
    if report.missing:
        count, total = len(report.missing), len(report.cells)
        lines.append(f"incomplete: {count} of {total} cells missing: {', '.join(report.missing)}")
    if report.unfinished:
        lines.append(f"not finished, and compared as far as they are: {', '.join(report.unfinished)}")
    lines += report.aligned.notes
    absent = [m for m in report.spec.compare if not any(group.summary(m) for group in report.groups)]
    if absent and len(report.missing) < len(report.cells):
        lines.append(f"no finished cell has {', '.join(absent)}")
    for metric in report.metrics:
        seeds = [(group, seed) for group in report.groups for seed in _diverged(group, metric)]
        if seeds:
            lines.append(f"not finite: {metric} of {', '.join(f'{group.label} seed={seed}' for group, seed in seeds)}")
    return lines + [f"warning: {text}" for text in report.warnings]


def mean_text(group: Group, metric: str) -> str:
    """`1.2345 ± 0.0012`; with `(n=1 of 2)` where that is fewer than the group should have, and how many of them are
    not finite; a dash for no number."""
    found, diverged = group.summary(metric), len(_diverged(group, metric))
    if found is None:
        return "–"
    text = shown(metric, found.mean) + _spread(metric, found, found.mean)
    said = [f"n={found.n} of {len(group.seeds)}"] if found.n != len(group.results) else []
    said += [f"{diverged} of {found.n} not finite"] if diverged else []
    return text + (f" ({', '.join(said)})" if said else "")


def difference_text(report: Report, group: Group, metric: str) -> str | None:
    """`-0.0500 [-0.0800, -0.0200]`; with fewer seeds than an interval takes, `-0.0500 ± 0.0707`."""
    gap, found = report.difference(group, metric), group.summary(metric)
    if gap is None or found is None:
        return None
    text = shown(metric, gap.mean, like=found.mean, signed=True)
    if gap.interval is not None:
        text += f" {interval_text(metric, gap.interval, found.mean)}"
    else:
        text += _spread(metric, gap, found.mean)
    if gap.n == 0:
        return f"{text}, unpaired"
    return text if gap.n == found.n else f"{text}, {gap.n} pair{'s' if gap.n > 1 else ''}"


def _spread(metric: str, summary: Summary, like: float) -> str:
    counted = metric.startswith("model/") and summary.sd == 0.0  # a parameter count has no spread
    return "" if summary.sd is None or counted else f" ± {shown(metric, summary.sd, like=like)}"


def _heading(group: Group) -> str:
    return f"{group.label}\n{'baseline, ' if group.is_baseline else ''}n={_count(group)}"


def _count(group: Group) -> str:
    """`2 of 3`: a seed that is missing stands beside the mean that lacks it."""
    found, there_should_be = len(group.results), len(group.seeds)
    return str(found) if found == there_should_be else f"{found} of {there_should_be}"


def _with_arrow(report: Report, metric: str) -> str:
    return report.named(metric) + {"lower": " ↓", "higher": " ↑", None: ""}[report.better(metric)]


def _diverged(group: Group, metric: str) -> list[int]:
    return [seed for seed, value in group.by_seed(metric).items() if not math.isfinite(value)]


def _intervals(report: Report) -> list[Interval]:
    gaps = [report.difference(group, metric) for group in report.groups for metric in report.metrics]
    return [gap.interval for gap in gaps if gap is not None and gap.interval is not None]


def _gap_fields(report: Report, group: Group, metric: str) -> list[str]:
    gap = report.difference(group, metric)
    if gap is None:
        return [""] * len(_GAP)
    found = gap.interval
    low, high, method = (found.low, found.high, found.method) if found else (None, None, "")
    return [*map(_raw, (gap.mean, gap.sd, low, high, gap.n)), method]


def _shown_value(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def _raw(value: float | int | None) -> str:
    return "" if value is None else f"{value:.12g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
