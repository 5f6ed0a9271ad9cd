"""One sentence about the first metric of a grid's `compare`, computed from the numbers and worded no stronger.

A difference counts as real when its confidence interval leaves out zero. With too few seeds for an interval, when it
exceeds the spread: the largest of the standard deviations over seeds of the two settings and of their paired
difference. That is a rule of thumb, not a test.
"""

import math
from collections.abc import Sequence

from mtp_lightning.grid.report.metrics import LOWER, interval_text, shown
from mtp_lightning.grid.report.report import Group, Report
from mtp_lightning.grid.report.statistics import LEVEL, Difference, Summary, compared


def verdict(report: Report) -> str:
    metric = report.spec.compare[0]
    measured = [(group, found) for group in report.groups if (found := group.summary(metric))]
    if not measured:
        return f"No verdict: no finished cell has {metric}."
    sentence = _sentence(report, metric, measured)
    lacking = {"missing": len(report.missing), "not finished": len(report.unfinished)}
    without = sum(len(group.results) - found.n for group, found in measured)
    if without or any(lacking.values()):
        said = [f"{count} of {len(report.cells)} cells are {how}" for how, count in lacking.items() if count]
        said += [f"{without} of {len(report.cells)} cells have no {report.named(metric)}"] if without else []
        sentence += f" Provisional: {' and '.join(said)}."
    if report.warnings:
        sentence += " Mind the warnings."
    return sentence


def _sentence(report: Report, metric: str, measured: Sequence[tuple[Group, Summary]]) -> str:
    way, named = report.better(metric), report.named(metric)
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
    without = [group.label for group in report.groups if group.results and group.summary(metric) is None]
    tail += f" Without a value: {', '.join(without)}." if without else ""
    best, found = ranked[0]
    other, is_baseline = _reference(report, ranked)
    if other is None:
        return f"{_capital(best.label)} has the only finite {named}, {shown(metric, found.mean)}.{tail}"
    return _compared(report, "lowest" if way == LOWER else "highest", best, other, is_baseline) + tail


def _reference(report: Report, ranked: Sequence[tuple[Group, Summary]]) -> tuple[Group | None, bool]:
    """What the best is held against: its baseline, or the runner-up if it has none or is one itself."""
    best = ranked[0][0]
    base = next((group for group, _ in ranked if group.signature == best.baseline), None)
    if base is not None and base is not best:
        return base, True
    return (ranked[1][0], False) if len(ranked) > 1 else (None, False)


def _compared(report: Report, superlative: str, best: Group, other: Group, other_is_baseline: bool) -> str:
    metric = report.spec.compare[0]
    mine, theirs = best.summary(metric), other.summary(metric)
    gap = compared(best.by_seed(metric), other.by_seed(metric))
    assert mine and theirs and gap  # noqa: PT018 - ranked settings all have the metric
    if gap.mean and (gap.mean < 0) != (mine.mean < theirs.mean):
        return f"No verdict: {best.label} and {other.label} have {metric} of different seeds."
    name = f"{best.label}, the baseline," if best.is_baseline else best.label
    rival = f"the baseline {other.label}" if other_is_baseline else f"the next, {other.label}"
    amount = shown(metric, abs(gap.mean), like=mine.mean)
    apart = f"{amount} {'lower' if gap.mean < 0 else 'higher'} than {rival}" if gap.mean else f"equal to {rival}"
    has = f"has the {superlative} {report.named(metric)}, {shown(metric, mine.mean)}"
    if mine.n < 2 or theirs.n < 2 or gap.n == 1:
        one = "one common seed" if min(mine.n, theirs.n) > 1 else "one seed"
        return f"{_capital(name)} {has}: {apart}; with {one} nothing is known about the spread."
    real, beyond = _beyond(metric, mine, theirs, gap)
    if real:
        return f"{_capital(name)} {has}: {apart}, {beyond}."
    return f"No difference beyond {beyond}: {name} {has}, but {'only ' if gap.mean else 'is '}{apart}."


def _beyond(metric: str, mine: Summary, theirs: Summary, gap: Difference) -> tuple[bool, str]:
    """Whether the difference is one, and what it was held against."""
    if gap.interval is not None:
        seeds = f"{gap.n} seeds" if gap.n else f"{mine.n} and {theirs.n} seeds, unpaired"
        held = f"{LEVEL:.0%} interval {interval_text(metric, gap.interval, mine.mean)} over {seeds}"
        return gap.interval.excludes_zero, f"{held} leaves out 0" if gap.interval.excludes_zero else f"chance ({held})"
    spread = max(summary.sd or 0.0 for summary in (mine, theirs, gap))
    around = f"the spread over {min(mine.n, theirs.n)} seeds ({shown(metric, spread, like=mine.mean)})"
    return abs(gap.mean) > spread, f"more than {around}" if abs(gap.mean) > spread else around


def _capital(text: str) -> str:
    """Labels such as n_future=1 are names: they keep their case."""
    return text if "=" in text else text[:1].upper() + text[1:]
