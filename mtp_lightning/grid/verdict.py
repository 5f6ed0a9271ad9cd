"""One sentence about the first metric of a grid's `compare`, computed from the numbers and worded no stronger.

A difference counts as real when it exceeds the spread: the largest of the standard deviations over seeds of the two
settings and of their paired difference. That is a rule of thumb for a few seeds, not a test.
"""

import math
from collections.abc import Sequence

from mtp_lightning.grid.metrics import LOWER, better, shown
from mtp_lightning.grid.report import Group, Report, Summary, difference


def verdict(report: Report) -> str:
    metric = report.spec.compare[0]
    measured = [(group, found) for group in report.groups if (found := group.summary(metric))]
    if not measured:
        return f"No verdict: no finished cell has {metric}."
    sentence = _sentence(report, metric, measured)
    if report.missing:
        sentence += f" Provisional: {len(report.missing)} of {len(report.cells)} cells are missing."
    if report.warnings:
        sentence += " Mind the warnings."
    return sentence


def _sentence(report: Report, metric: str, measured: Sequence[tuple[Group, Summary]]) -> str:
    way = better(metric)
    if len(measured) == 1:
        return f"No comparison: only {measured[0][0].label} has {metric}."
    if way is None:
        return f"No verdict: whether a lower or a higher {metric} is better is not known."
    finite = [(group, found) for group, found in measured if math.isfinite(found.mean)]
    if not finite:
        return f"No verdict: {metric} is not a finite number in any setting."
    diverged = [group.label for group, found in measured if not math.isfinite(found.mean)]
    ranked = sorted(finite, key=lambda pair: pair[1].mean if way == LOWER else -pair[1].mean)
    tail = f" Not finite: {', '.join(diverged)}." if diverged else ""
    best, found = ranked[0]
    other, is_baseline = _reference(report, ranked)
    if other is None:
        return f"{_capital(best.label)} has the only finite {metric}, {shown(metric, found.mean)}.{tail}"
    return _compared(metric, "lowest" if way == LOWER else "highest", best, other, is_baseline) + tail


def _reference(report: Report, ranked: Sequence[tuple[Group, Summary]]) -> tuple[Group | None, bool]:
    """What the best is held against: its baseline, or the runner-up if it has none or is one itself."""
    best = ranked[0][0]
    base = next((group for group, _ in ranked if group.signature == best.baseline), None)
    if base is not None and base is not best:
        return base, True
    return (ranked[1][0], False) if len(ranked) > 1 else (None, False)


def _compared(metric: str, superlative: str, best: Group, other: Group, other_is_baseline: bool) -> str:
    mine, theirs, gap = best.summary(metric), other.summary(metric), difference(best, other, metric)
    assert mine and theirs and gap  # noqa: PT018 - ranked settings all have the metric
    if gap.mean and (gap.mean < 0) != (mine.mean < theirs.mean):
        return f"No verdict: {best.label} and {other.label} have {metric} of different seeds."
    name = f"{best.label}, the baseline," if best.baseline == best.signature else best.label
    rival = f"the baseline {other.label}" if other_is_baseline else f"the next, {other.label}"
    amount = shown(metric, abs(gap.mean), like=mine.mean)
    apart = f"{amount} {'lower' if gap.mean < 0 else 'higher'} than {rival}" if gap.mean else f"equal to {rival}"
    start = f"{_capital(name)} has the {superlative} {metric}, {shown(metric, mine.mean)}"
    if mine.n < 2 or theirs.n < 2:
        return f"{start}: {apart}; with one seed nothing is known about the spread."
    seeds = min(mine.n, theirs.n)
    spread = max(summary.sd or 0.0 for summary in (mine, theirs, gap))
    around = f"the spread over {seeds} seeds ({shown(metric, spread, like=mine.mean)})"
    if abs(gap.mean) > spread:
        return f"{start}: {apart}, more than {around}."
    return (
        f"No difference beyond {around}: {name} has the {superlative} {metric}, {shown(metric, mine.mean)}, "
        f"but {'only ' if gap.mean else 'is '}{apart}."
    )


def _capital(text: str) -> str:
    """Labels such as n_future=1 are names: they keep their case."""
    return text if "=" in text else text[:1].upper() + text[1:]
