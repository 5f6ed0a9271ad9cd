"""A report as a terminal table, as markdown, as CSV and as JSON. Units are for people; the files keep raw numbers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from mtp_lightning.grid.report.comparison import Group, Report
from mtp_lightning.grid.report.forms.notices import not_finite, notices
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.ladder.tables import headed_table, ladder_blocks, pipe_table
from mtp_lightning.grid.report.metric_names import LOWER, format_interval, format_value, strict_json
from mtp_lightning.grid.report.statistics import LEVEL, Difference, Interval, Summary
from mtp_lightning.grid.report.tuning import tuning_rows
from mtp_lightning.grid.spec.values import shown
from mtp_lightning.units import counted

WIDE = 5
"""Settings up to which they are columns; more of them become rows, with the compared metrics only."""

METHODS = {
    "t": "Student's t",
    "bootstrap-t": "studentized bootstrap from 6 seeds on",
    "Welch": "Welch's t where no seed is common",
}
_DIFFERENCE = ("difference", "difference_sd", "ci_low", "ci_high", "pairs", "ci_method")


@dataclass(frozen=True)
class Numbers:
    """A setting's numbers of one metric, as text."""

    mean: str
    """`1.2345 ± 0.0012`; a dash for no number."""
    difference: str | None
    """`-0.0500 [-0.0800, -0.0200]`; None for the baseline."""
    effect: str | None
    """`better` or `worse`, where the interval of the difference leaves out 0 and the better direction is known."""

    @classmethod
    def of(cls, report: Report, group: Group, metric: str) -> "Numbers":
        found, gap = group.summary(metric), report.difference(group, metric)
        if found is None or gap is None:
            return cls(_mean_text(group, metric), None, None)
        direction, effect = report.direction(metric), None
        if direction is not None and gap.interval is not None and gap.interval.excludes_zero:
            effect = "better" if (gap.mean < 0) == (direction == LOWER) else "worse"
        return cls(_mean_text(group, metric), _difference_text(metric, found, gap), effect)


class Heading(NamedTuple):
    name: str
    details: str = ""
    """Of a setting: `baseline, 2 seeds`."""

    def __str__(self) -> str:
        return f"{self.name}, {self.details}" if self.details else self.name


@dataclass(frozen=True)
class Layout:
    """A table for people: settings are columns where there are few of them, else rows."""

    corner: str
    columns: Sequence[Heading]
    rows: Sequence[tuple[Heading, Sequence[Numbers]]]

    @classmethod
    def of(cls, report: Report, metrics: Sequence[str]) -> "Layout":
        settings = [Heading(group.label, _details(group)) for group in report.groups]
        names = [Heading(_with_arrow(report, metric)) for metric in metrics]
        numbers = [[Numbers.of(report, group, metric) for metric in metrics] for group in report.groups]
        if len(settings) <= WIDE:
            return cls("metric", settings, list(zip(names, zip(*numbers))))
        return cls("setting", names, list(zip(settings, numbers)))


def terminal_table(report: Report) -> Table:
    title = f"{report.spec.name}: mean ± sd over seeds, difference to the baseline"
    table = Table(title=title + (f" [{LEVEL:.0%} interval]" if intervals(report) else ""), title_justify="left")
    wide = len(report.groups) <= WIDE
    layout = Layout.of(report, report.metrics if wide else report.spec.compare)
    table.add_column(layout.corner, no_wrap=wide, overflow="fold")
    for column in layout.columns:  # numbers are never cut: long names of settings are broken
        table.add_column(Text("\n".join(filter(None, column))), justify="right", no_wrap=not wide)
    for name, row in layout.rows:
        table.add_row(Text(str(name)), *map(_two_lines, row))
    return table


def markdown(report: Report) -> str:
    """Title, verdict, notices, and the table with every metric; ladders, what was tuned, and the gate."""
    parts = [f"# {report.spec.name}", verdict(report).sentence]
    parts += [f"**{line[0].upper()}{line[1:]}**" for line in notices(report)]
    parts += [markdown_table(report, report.metrics), legend(report)]
    parts += ladder_blocks(report.ladders)
    parts += [f"## {title}\n\n{headed_table(rows)}" for title, rows in stage_tables(report)]
    return "\n\n".join(parts) + "\n"


def stage_tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """What was tuned, and what the gate made of the settings: title and rows, the head first."""
    tuned = [(f"Tuned: {report.choices[0].axis}", tuning_rows(report.choices))] if report.choices else []
    return tuned + ([(f"The gate at step {report.gate.step}", report.gate.rows)] if report.gate.judged else [])


def markdown_table(report: Report, metrics: Sequence[str]) -> str:
    def cell(numbers: Numbers) -> str:
        return numbers.mean + (f" ({numbers.difference})" if numbers.difference else "")

    layout = Layout.of(report, metrics)
    lines = [[layout.corner, *map(str, layout.columns)], ["---"] + ["---:"] * len(layout.columns)]
    lines += [[str(name), *map(cell, row)] for name, row in layout.rows]
    return pipe_table(lines)


def legend(report: Report, place: str = "in brackets") -> str:
    """`place`: where the table has its differences."""
    text = f"Mean ± sample standard deviation over seeds; {place} the difference to the baseline, by seed"
    found = {interval.method for interval in intervals(report)}
    if not found:
        return text + "."
    methods = "; ".join(name for method, name in METHODS.items() if method in found)
    return (
        f"{text}, with its {LEVEL:.0%} confidence interval ({methods}). Each interval holds for its own difference: of "
        "twenty, one misses by chance."
    )


def csv_text(report: Report) -> str:
    """Long form, one line for each setting and metric; empty where there is no such number. `cells` are the seeds that
    there should be; `pairs` is 0 for a difference of means without a common seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = list(dict.fromkeys([*report.spec.axes, *(key for group in report.groups for key in group.values)]))
    writer.writerow(["group", *keys, "metric", "at", "mean", "sd", "seeds", "cells", *_DIFFERENCE])
    for group in report.groups:
        setting = [shown(group.values[key]) if key in group.values else "" for key in keys]
        for metric in report.metrics:
            found, at = group.summary(metric), report.at(metric)
            if found is None:
                continue
            where = "" if at is None else f"{at.unit}={at.amount:.12g}"
            numbers = map(_raw, (found.mean, found.sd, found.seeds, len(group.seeds)))
            writer.writerow(
                [group.label, *setting, metric, where, *numbers, *_difference_fields(report, group, metric)]
            )
    return out.getvalue()


def report_json(report: Report) -> dict[str, Any]:
    """The table for programs, strict JSON: numbers that are not finite are null."""

    def metric(group: Group, name: str, mine: Summary) -> dict[str, Any]:
        gap = report.difference(group, name)
        numbers = {"mean": mine.mean, "sd": mine.sd, "seeds": mine.seeds}
        if gap is None:
            return {**numbers, "difference": None}
        interval = None if gap.interval is None else asdict(gap.interval)
        difference = {"mean": gap.mean, "sd": gap.sd, "seeds": gap.seeds, "interval": interval}
        return {**numbers, "difference": difference}

    parents = {cell.group: cell.parent_label for cell in report.cells}
    found = verdict(report)
    value = {
        "grid": report.spec.name,
        "verdict": found.sentence,
        "cells": report.expected,
        "missing": report.missing,
        "unfinished": report.unfinished,
        "diverged": report.diverged,
        "warnings": report.warnings,
        "notices": notices(report),
        "at": {name: {"unit": at.unit, "amount": at.amount} for name, at in report.equal_training.at.items()},
        "groups": [
            {
                "label": group.label,
                "signature": group.signature,
                "values": group.values,
                "seeds": list(group.results),
                "cells": len(group.seeds),
                "baseline": group.is_baseline,
                **({"parent": parents[group.signature]} if parents.get(group.signature) else {}),
                "metrics": {
                    name: metric(group, name, mine)
                    for name in report.metrics
                    if (mine := group.summary(name)) is not None
                },
            }
            for group in report.groups
        ],
        "ladders": list(found.ladders),
        "tuning": [choice.json() for choice in report.choices],
        "gate": report.gate.json(),
    }
    strict: dict[str, Any] = strict_json(value)
    return strict


def _details(group: Group) -> str:
    """`baseline, 2 seeds`; `1 of 2 seeds`: a seed that is missing stands beside the mean that lacks it."""
    return ("baseline, " if group.is_baseline else "") + counted(len(group.results), "seed", of=len(group.seeds))


def _with_arrow(report: Report, metric: str) -> str:
    return report.with_budget(metric) + {"lower": " ↓", "higher": " ↑", None: ""}[report.direction(metric)]


def _mean_text(group: Group, metric: str) -> str:
    """Beside the mean, in brackets: of how many seeds it is, where that is fewer than have results, and how many of
    them diverged or are not finite."""
    found, bad = group.summary(metric), set(not_finite(group, metric))
    if found is None:
        return "–"
    remarks = [counted(found.seeds, "seed", of=len(group.seeds))] if found.seeds != len(group.results) else []
    diverged = bad & set(group.diverged)
    for seeds, what in ((diverged, "diverged"), (bad - diverged, "not finite")):
        remarks += [f"{len(seeds)} of {found.seeds} {what}"] if seeds else []
    text = format_value(metric, found.mean) + _spread_text(metric, found, found.mean)
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def _difference_text(metric: str, found: Summary, gap: Difference) -> str:
    """With fewer seeds than an interval takes, `-0.0500 ± 0.0707`."""
    text = format_value(metric, gap.mean, like=found.mean, signed=True)
    if gap.interval is not None:
        text += f" {format_interval(metric, gap.interval, found.mean)}"
    else:
        text += _spread_text(metric, gap, found.mean)
    if gap.seeds == 0:
        return f"{text}, unpaired"
    return text if gap.seeds == found.seeds else f"{text}, {counted(gap.seeds, 'pair')}"


def _spread_text(metric: str, summary: Summary, like: float) -> str:
    constant = metric.startswith("model/") and summary.sd == 0.0  # a parameter count has no spread
    return "" if summary.sd is None or constant else f" ± {format_value(metric, summary.sd, like=like)}"


def _two_lines(numbers: Numbers) -> Text:
    text = Text(numbers.mean)
    if numbers.difference:
        text.append(f"\n{numbers.difference}", style="dim")
    return text


def intervals(report: Report) -> list[Interval]:
    gaps = [report.difference(group, metric) for group in report.groups for metric in report.metrics]
    return [gap.interval for gap in gaps if gap is not None and gap.interval is not None]


def _difference_fields(report: Report, group: Group, metric: str) -> list[str]:
    gap = report.difference(group, metric)
    if gap is None:
        return [""] * len(_DIFFERENCE)
    found = gap.interval
    low, high, method = (found.low, found.high, found.method) if found else (None, None, "")
    return [*map(_raw, (gap.mean, gap.sd, low, high, gap.seeds)), method]


def _raw(value: float | int | None) -> str:
    return "" if value is None else f"{value:.12g}"
