"""What the numbers say about the first metric of a grid's `compare`, and no more: computed once, written as a sentence
for people and as JSON for programs.

A difference counts as one when its confidence interval leaves out zero; where the best of several settings is compared
with their baseline, the interval for the best of so many. Too few seeds for an interval say no more than whether it
exceeds the spread: the largest of the standard deviations over seeds of the two settings and of their paired
difference. (More seeds whose differences are all equal have no interval either, and are a difference then.) Of two
seeds that is no test: of settings that are all equal, the best exceeds it in 28 of 100 grids with
two or three settings, and in 46 with sixteen. With intervals it is 6 in 100 at most.
"""

import math
from collections.abc import Sequence
from typing import Any

from mtp_lightning.grid.report.comparison import Group, Report
from mtp_lightning.grid.report.metric_names import LOWER
from mtp_lightning.grid.report.statistics import FEWEST, Difference, Interval, Summary, difference_of
from mtp_lightning.grid.report.verdict import Outcome, Setting, Verdict, seeds_of
from mtp_lightning.grid.spec.grid_spec import GridSpec


def verdict(report: Report) -> Verdict:
    metric = report.spec.compare[0]
    direction = report.direction(metric)
    measured = [(group, found) for group in report.groups if (found := group.summary(metric)) is not None]
    finite = [group for group, found in measured if math.isfinite(found.mean)]
    best = other = gap = spread = None
    rivals, is_next = 1, True
    if not measured:
        outcome = Outcome.NOT_MEASURED
    elif len(measured) == 1:
        outcome, best = Outcome.ONE_SETTING, measured[0][0]
    elif direction is None:
        outcome = Outcome.NO_DIRECTION
    elif not finite:
        outcome = Outcome.NOT_FINITE
    else:
        best, *others = sorted(finite, key=lambda group: _rank(group, metric, direction))
        other = _rival(report.spec, best, others)
        is_next = other is None or other is others[0]
        outcome = Outcome.ONE_OF_ITS_SIZE if others else Outcome.ONE_FINITE
        if other is not None:
            gap = difference_of(best.by_seed(metric), other.by_seed(metric))
            assert gap is not None, "ranked settings all have the metric"
            if other.signature == best.baseline:
                compared = [group for group, _ in measured if group is not other]
                rivals = sum(group.baseline == best.baseline for group in (*compared, *report.stopped))
            among = gap.among(rivals) if rivals > 1 else None
            outcome, spread = _judge(_summary(best, metric), _summary(other, metric), gap, among)
    baseline = None if best is None else report.group(best.baseline)
    worth, ladders = _ladders(report, best)
    return Verdict(
        grid=report.spec.name,
        metric=metric,
        at=report.at(metric),
        title=report.with_budget(metric),
        direction=direction,
        outcome=outcome,
        best=_setting(best, metric),
        baseline=_setting(baseline, metric),
        other=_setting(other, metric),
        is_next=is_next,
        difference=gap,
        rivals=rivals,
        spread=spread,
        not_finite=[group.label for group, found in measured if not math.isfinite(found.mean)],
        diverged={group.label: group.diverged for group in report.groups if group.diverged},
        without_value=[group.label for group in report.groups if group.results and not group.by_seed(metric)],
        cells=report.expected,
        missing=report.missing,
        unfinished=report.unfinished,
        cells_without_value=sum(len(group.results) - found.seeds for group, found in measured),
        warnings=report.warnings,
        worth=worth,
        ladders=ladders,
        choices=report.choices,
        gate=report.gate,
    )


def _ladders(report: Report, best: Group | None) -> tuple[str, list[dict[str, Any]]]:
    if not report.ladders:
        return "", []
    from mtp_lightning.grid.report.ladder import of_grid, texts  # numpy

    arm = None if best is None else of_grid.arm_name(report.spec, best.values)
    return texts.sentence(report.ladders, arm), texts.json(report.ladders)


def _judge(best: Summary, other: Summary, gap: Difference, among: Interval | None) -> tuple[Outcome, float | None]:
    """What the difference amounts to, and the spread that it was held against if there is no interval.

    Args:
        among: the interval for the best of so many settings as there were; None for one, and where there is none.
    """
    if gap.mean and (gap.mean < 0) != (best.mean < other.mean):
        return Outcome.DIFFERENT_SEEDS, None
    if best.seeds < 2 or other.seeds < 2 or gap.seeds == 1:
        return Outcome.UNKNOWN_SPREAD, None
    if gap.interval is not None:
        told = gap.interval.excludes_zero and (among is None or among.excludes_zero)
        return Outcome.DIFFERENCE if told else Outcome.NO_DIFFERENCE, None
    spread = max(summary.sd or 0.0 for summary in (best, other, gap))
    if abs(gap.mean) <= spread:
        return Outcome.NO_DIFFERENCE, spread
    return Outcome.DIFFERENCE if seeds_of(best, other, gap) >= FEWEST else Outcome.BEYOND_SPREAD, spread


def _rival(spec: GridSpec, best: Group, others: Sequence[Group]) -> Group | None:
    """Its baseline; of a baseline the best that is compared with it; without one the next best, on a ladder of its
    size. None where there is nothing.

    Args:
        others: the better first.
    """
    baseline = [group for group in others if group.signature == best.baseline]
    arms = [group for group in others if best.is_baseline and group.baseline == best.signature]
    sizes = spec.together(spec.ladder.size) if spec.ladder is not None else ()
    alike = [group for group in others if all(group.values.get(key) == best.values.get(key) for key in sizes)]
    return next(iter([*baseline, *arms, *alike]), None)


def _rank(group: Group, metric: str, direction: str) -> float:
    """The best first."""
    mean = _summary(group, metric).mean
    return mean if direction == LOWER else -mean


def _summary(group: Group, metric: str) -> Summary:
    found = group.summary(metric)
    assert found is not None, "ranked settings all have the metric"
    return found


def _setting(group: Group | None, metric: str) -> Setting | None:
    found = None if group is None else group.summary(metric)
    return None if group is None or found is None else Setting(group.label, group.signature, group.is_baseline, found)
