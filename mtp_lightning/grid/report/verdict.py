"""A verdict: what a grid's numbers say about the first metric of its `compare`, as a sentence for people and as JSON
for programs. `judge.py` comes to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mtp_lightning.grid.report.metric_names import LOWER, format_interval, format_value, strict_json
from mtp_lightning.grid.report.statistics import FEWEST, LEVEL, Difference, Interval, Summary
from mtp_lightning.grid.report.tuning import FEW, Choice, close_text, some
from mtp_lightning.grid.run.gate import Gating
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.units import counted


class Outcome(StrEnum):
    DIFFERENCE = "difference"
    NO_DIFFERENCE = "no difference"
    BEYOND_SPREAD = "beyond the spread"
    """Of two common seeds, which say no more."""
    UNKNOWN_SPREAD = "unknown spread"
    """One seed, or one common seed."""
    DIFFERENT_SEEDS = "different seeds"
    """The means and the differences by seed disagree about which is better."""
    ONE_FINITE = "one finite setting"
    ONE_OF_ITS_SIZE = "one setting of its size"
    """On a ladder, of which other sizes are no comparison."""
    ONE_SETTING = "one setting"
    NOT_FINITE = "not finite"
    NO_DIRECTION = "no direction"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Setting:
    """A setting's numbers of the metric."""

    label: str
    signature: str
    is_baseline: bool
    summary: Summary

    def json(self) -> dict[str, Any]:
        named = {"setting": self.label, "signature": self.signature, "is_baseline": self.is_baseline}
        return {**named, "mean": self.summary.mean, "sd": self.summary.sd, "seeds": self.summary.seeds}


@dataclass(frozen=True)
class Verdict:
    grid: str
    metric: str
    at: At | None
    """Where it is compared; None for the end."""
    title: str
    """The metric with where it is compared: `val/loss/head_1 at step 1000`."""
    direction: str | None
    """`lower` or `higher` is better; None where that is not known."""
    outcome: Outcome
    best: Setting | None
    baseline: Setting | None
    """The best setting's baseline: itself, if it is one."""
    other: Setting | None
    """What the best is compared with: its baseline; of a baseline the best that is compared with it; without one, the
    next best, on a ladder of its size. None where there is nothing."""
    is_next: bool
    """Whether no setting lies between the two."""
    difference: Difference | None
    """Best minus other."""
    rivals: int
    """How many settings have the best one's baseline, itself and those that the gate stopped included, where it is
    compared with that; else 1."""
    spread: float | None
    """What the difference has to exceed, where it has no interval."""
    not_finite: Sequence[str]
    """Labels of settings."""
    diverged: Mapping[str, Sequence[int]]
    """Label of a setting -> its seeds that did, where some did."""
    without_value: Sequence[str]
    """Labels of settings that have results, and none of this metric."""
    cells: int
    missing: Sequence[str]
    unfinished: Sequence[str]
    cells_without_value: int
    """Of settings in which other cells have one."""
    warnings: Sequence[str]
    worth: str
    """A sentence on effective speedup; empty without a ladder."""
    ladders: Sequence[Mapping[str, Any]]
    """As they go to `verdict.json`."""
    choices: Sequence[Choice]
    """Of each arm, where an axis is tuned."""
    gate: Gating

    @property
    def is_difference(self) -> bool | None:
        """None where that cannot be said."""
        return {Outcome.DIFFERENCE: True, Outcome.NO_DIFFERENCE: False}.get(self.outcome)

    @property
    def among(self) -> Interval | None:
        """The interval of the difference for the best of `rivals`; None for one."""
        return None if self.difference is None or self.rivals < 2 else self.difference.among(self.rivals)

    @property
    def provisional(self) -> bool:
        return bool(self.missing or self.unfinished or self.cells_without_value)

    @property
    def sentence(self) -> str:
        sentence = _main_sentence(self)
        if self.diverged:
            settings = [f"{label} ({counted(len(seeds), 'seed')})" for label, seeds in self.diverged.items()]
            sentence += f" Diverged: {', '.join(settings)}."
        if self.best is not None and self.outcome is not Outcome.ONE_SETTING:
            others = [label for label in self.not_finite if label not in self.diverged]
            sentence += f" Not finite: {', '.join(others)}." if others else ""
            sentence += f" Without a value: {', '.join(self.without_value)}." if self.without_value else ""
        sentence += f" {self.worth}" if self.worth else ""
        if edge := [f"{choice.arm} ({choice.axis}={choice.value:g})" for choice in self.choices if choice.at_edge]:
            named = some(edge, FEW)
            sentence += f" Best at the edge of the tuned axis, and perhaps better beyond: {named}."
        sentence += f" {text}" if (text := close_text(self.choices, self.metric)) else ""
        if stopped := [f"{one.label} ({self.gate.why(one)})" for one in self.gate.stopped.values()]:
            sentence += f" Stopped by the gate, and not compared: {', '.join(stopped)}."
        if self.provisional:
            lacking = {"are missing": len(self.missing), "are not finished": len(self.unfinished)}
            lacking[f"have no {self.title}"] = self.cells_without_value
            clauses = [f"{count} of {self.cells} cells {what}" for what, count in lacking.items() if count]
            sentence += f" Provisional: {' and '.join(clauses)}."
        return sentence + (" Mind the warnings." if self.warnings else "")

    def json(self) -> dict[str, Any]:
        gap = self.difference
        value = {
            "grid": self.grid,
            "sentence": self.sentence,
            "outcome": self.outcome.value,
            "is_difference": self.is_difference,
            "provisional": self.provisional,
            "metric": self.metric,
            "direction": self.direction,
            "at": None if self.at is None else {"unit": self.at.unit, "amount": self.at.amount},
            "best": self.best and self.best.json(),
            "baseline": self.baseline and self.baseline.json(),
            "compared_with": self.other and self.other.json(),
            "difference": gap and {"mean": gap.mean, "sd": gap.sd, "seeds": gap.seeds},
            "interval": gap and gap.interval and gap.interval.json(),
            "best_of": self.rivals,
            "interval_best_of": self.among and self.among.json(),
            "spread": self.spread,
            "not_finite": list(self.not_finite),
            "diverged": dict(self.diverged),
            "without_value": list(self.without_value),
            "cells": self.cells,
            "missing": list(self.missing),
            "unfinished": list(self.unfinished),
            "cells_without_value": self.cells_without_value,
            "warnings": list(self.warnings),
            "ladders": list(self.ladders),
            "tuning": [choice.json() for choice in self.choices],
            "gate": self.gate.json(),
        }
        strict: dict[str, Any] = strict_json(value)
        return strict


def _main_sentence(v: Verdict) -> str:
    if v.outcome is Outcome.NOT_MEASURED:
        return f"No verdict: no finished cell has {v.title}."
    if v.outcome is Outcome.NO_DIRECTION:
        return f"No verdict: whether a lower or a higher {v.metric} is better is not known."
    if v.outcome is Outcome.NOT_FINITE:
        return f"No verdict: {v.title} is not a finite number in any setting."
    assert v.best is not None
    best, mine = v.best, v.best.summary
    if v.outcome is Outcome.ONE_SETTING:
        return f"No comparison: only {best.label} has {v.title}."
    has = f"has the {'lowest' if v.direction == LOWER else 'highest'} {v.title}, {format_value(v.metric, mine.mean)}"
    if v.outcome is Outcome.ONE_OF_ITS_SIZE:
        return f"No comparison: {best.label} {has}, and no setting of its size has a finite one beside it."
    if v.other is None or v.difference is None:
        return f"{_capital(best.label)} has the only finite {v.title}, {format_value(v.metric, mine.mean)}."
    if v.outcome is Outcome.DIFFERENT_SEEDS:
        return f"No verdict: {best.label} and {v.other.label} have {v.title} of different seeds."
    gap = v.difference.mean
    name = f"{best.label}, the baseline," if best.is_baseline else best.label
    kind = "next," if v.is_next else "best compared with it,"
    rival = f"the {'baseline' if v.other.signature == _signature(v.baseline) else kind} {v.other.label}"
    amount = format_value(v.metric, abs(gap), like=mine.mean)
    apart = f"{amount} {'lower' if gap < 0 else 'higher'} than {rival}" if gap else f"equal to {rival}"
    if v.outcome is Outcome.UNKNOWN_SPREAD:
        one = "one common seed" if min(mine.seeds, v.other.summary.seeds) > 1 else "one seed"
        return f"{_capital(name)} {has}: {apart}; with {one} nothing is known about the spread."
    if v.outcome in (Outcome.DIFFERENCE, Outcome.BEYOND_SPREAD):
        return f"{_capital(name)} {has}: {apart}, {_evidence(v, mine, v.other.summary, v.difference)}."
    evidence = _evidence(v, mine, v.other.summary, v.difference)
    return f"No difference beyond {evidence}: {name} {has}, but {'only ' if gap else 'is '}{apart}."


def _evidence(v: Verdict, mine: Summary, theirs: Summary, gap: Difference) -> str:
    """What the difference was held against."""
    if gap.interval is None:
        seeds = counted(seeds_of(mine, theirs, gap), "seed")
        spread = f"the spread over {seeds} ({format_value(v.metric, v.spread or 0.0, like=mine.mean)})"
        if v.outcome is Outcome.NO_DIFFERENCE:
            return spread
        if v.is_difference:  # where no difference differs there is nothing to make an interval of
            return f"more than {spread}, and by the same on every seed"
        often = "one grid of four or more" if v.rivals > 1 else "one grid of four"
        return f"more than {spread}, which chance makes of equal settings in {often}: an interval needs {FEWEST} seeds"
    seeds = counted(gap.seeds, "seed") if gap.seeds else f"{mine.seeds} and {theirs.seeds} seeds, unpaired"
    interval = f"{LEVEL:.0%} interval {format_interval(v.metric, gap.interval, mine.mean)} over {seeds}"
    if not gap.interval.excludes_zero:
        return f"chance ({interval})"
    if (among := v.among) is None:
        return f"{interval} leaves out 0" + (
            f", without one for the best of {v.rivals} settings" if v.rivals > 1 else ""
        )
    best = f"that for the best of {v.rivals} settings, {format_interval(v.metric, among, mine.mean)}"
    if v.is_difference:
        return f"{interval} leaves out 0, so does {best}"
    return f"chance ({interval} leaves out 0, but not {best})"


def _signature(setting: Setting | None) -> str | None:
    return None if setting is None else setting.signature


def _capital(text: str) -> str:
    """Labels such as n_future=1 are names: they keep their case."""
    return text if "=" in text else text[:1].upper() + text[1:]


def seeds_of(best: Summary, other: Summary, gap: Difference) -> int:
    """That the difference rests on."""
    return gap.seeds or min(best.seeds, other.seeds)
