"""A report as a terminal table, as markdown, as CSV and as JSON. Units are for people; the files keep raw numbers."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.metrics import better, shown
from mtp_lightning.grid.report import Group, Report, Summary
from mtp_lightning.grid.signature import canonical
from mtp_lightning.grid.verdict import verdict

WIDE = 5
"""Settings up to which they are columns; more of them become rows, with the compared metrics only."""


def terminal_table(report: Report) -> Table:
    def cell(group: Group, metric: str) -> Text:
        text = Text(mean_text(group, metric))
        if gap := difference_text(report, group, metric):
            text.append(f"\n{gap}", style="dim")
        return text

    table = Table(title=f"{report.spec.name}: mean ± sd over seeds, difference to the baseline", title_justify="left")
    if len(report.groups) <= WIDE:
        table.add_column("metric", no_wrap=True)
        for group in report.groups:
            table.add_column(Text(_heading(group)), justify="right")
        for metric in report.metrics:
            table.add_row(_with_arrow(metric), *(cell(group, metric) for group in report.groups))
        return table
    table.add_column("setting", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in report.spec.compare:
        table.add_column(_with_arrow(metric), justify="right")
    for group in report.groups:
        name = group.label + (" (baseline)" if _is_baseline(group) else "")
        table.add_row(Text(name), str(len(group.results)), *(cell(group, m) for m in report.spec.compare))
    return table


def markdown(report: Report, metrics: Sequence[str] | None = None) -> str:
    """Title, verdict, what is missing, and the table with every metric (or those given)."""
    parts = [f"# {report.spec.name}", verdict(report)]
    parts += [f"**{line[0].upper()}{line[1:]}**" for line in notices(report)]
    parts.append(markdown_table(report, report.metrics if metrics is None else metrics))
    parts.append("Mean ± sample standard deviation over seeds; in brackets the difference to the baseline, by seed.")
    return "\n\n".join(parts) + "\n"


def markdown_table(report: Report, metrics: Sequence[str]) -> str:
    def cell(group: Group, metric: str) -> str:
        gap = difference_text(report, group, metric)
        return mean_text(group, metric) + (f" ({gap})" if gap else "")

    if len(report.groups) <= WIDE:
        head = ["metric", *(_heading(group).replace("\n", ", ") for group in report.groups)]
        rows = [[_with_arrow(m), *(cell(group, m) for group in report.groups)] for m in metrics]
    else:
        head = ["setting", *map(_with_arrow, metrics)]
        rows = [[_heading(group).replace("\n", ", "), *(cell(group, m) for m in metrics)] for group in report.groups]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def csv_text(report: Report) -> str:
    """Long form, one line for each setting and metric; empty where there is no such number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["group", *report.spec.axes, "metric", "mean", "sd", "n", "difference", "difference_sd"])
    for group in report.groups:
        for metric in report.metrics:
            found, gap = group.summary(metric), report.difference(group, metric)
            if found is None:
                continue
            numbers = [found.mean, found.sd, found.n, *((gap.mean, gap.sd) if gap else (None, None))]
            writer.writerow([group.label, *map(_shown_value, group.values.values()), metric, *map(_raw, numbers)])
    return out.getvalue()


def report_json(report: Report) -> dict[str, Any]:
    """What the table says, for `--json`. Numbers that are not finite are null, since JSON has none."""

    def numbers(summary: Summary | None) -> dict[str, Any] | None:
        if summary is None:
            return None
        return {"mean": _finite(summary.mean), "sd": _finite(summary.sd), "n": summary.n}

    return {
        "grid": report.spec.name,
        "verdict": verdict(report),
        "cells": len(report.cells),
        "missing": list(report.missing),
        "warnings": list(report.warnings),
        "groups": [
            {
                "label": group.label,
                "signature": group.signature,
                "values": dict(group.values),
                "seeds": list(group.results),
                "baseline": _is_baseline(group),
                "metrics": {
                    metric: {**found, "difference": numbers(report.difference(group, metric))}
                    for metric in report.metrics
                    if (found := numbers(group.summary(metric)))
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
    absent = [m for m in report.spec.compare if not any(group.summary(m) for group in report.groups)]
    if absent and len(report.missing) < len(report.cells):
        lines.append(f"no finished cell has {', '.join(absent)}")
    return lines + [f"warning: {text}" for text in report.warnings]


def mean_text(group: Group, metric: str) -> str:
    """`1.2345 ± 0.0012`; with `(n=1)` where that is fewer than the group has; a dash for no number."""
    found = group.summary(metric)
    if found is None:
        return "–"
    text = shown(metric, found.mean) + _spread(metric, found, found.mean)
    return text + (f" (n={found.n})" if found.n != len(group.results) else "")


def difference_text(report: Report, group: Group, metric: str) -> str | None:
    gap = report.difference(group, metric)
    if gap is None:
        return None
    found = group.summary(metric)
    like = found.mean if found else gap.mean
    text = shown(metric, gap.mean, like=like, signed=True) + _spread(metric, gap, like)
    return text if gap.n else f"{text}, unpaired"


def _spread(metric: str, summary: Summary, like: float) -> str:
    counted = metric.startswith("model/") and summary.sd == 0.0  # a parameter count has no spread
    return "" if summary.sd is None or counted else f" ± {shown(metric, summary.sd, like=like)}"


def _heading(group: Group) -> str:
    return f"{group.label}\n{'baseline, ' if _is_baseline(group) else ''}n={len(group.results)}"


def _with_arrow(metric: str) -> str:
    return metric + {"lower": " ↓", "higher": " ↑", None: ""}[better(metric)]


def _is_baseline(group: Group) -> bool:
    return group.baseline == group.signature


def _shown_value(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def _raw(value: float | int | None) -> str:
    return "" if value is None else f"{value:.12g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
