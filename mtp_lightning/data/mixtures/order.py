"""Which source a sample of a mixture comes from, and which of the source's own samples it is: a pure function of the
sample's number, in constant time and memory.

The sources are dealt out as evenly as can be, without chance: after any number of samples, each has had its part of
them to within a sample or so. The k-th sample that comes from a source is sample k of that source alone, so neither
another source nor another weight changes the order in which a source's windows are seen.

The first source takes its part of all samples, the second its part of those that the first left, and so on. A source
that takes the part s of what reaches it takes sample r of these (from 0) where c + r s passes a whole number, c being
what was left over before. Parts are whole numbers of 2^-30, so that nothing is ever rounded differently.

Example with weights 2, 1, 1: parts 1/2, 1/2, 1, and c = 1/2 to begin with.

    sample     0  1  2  3  4  5  6  7
    source     0  1  0  2  0  1  0  2
    its own    0  0  1  0  2  1  3  1
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtp_lightning.data.mixtures.sources import MixtureSource, change_steps, weight_at
from mtp_lightning.shapes import Int

_BITS = 30
_ONE = 1 << _BITS
MOST_SAMPLES = 1 << (62 - _BITS)
"""Of one stage: more, and 64 bits would not hold a product."""


class _Stage(NamedTuple):
    """Samples with the same weights."""

    start: int
    parts: tuple[int, ...]
    """Of each source, how much it takes of what reaches it, in units of 2^-30."""
    left: tuple[int, ...]
    """Of each source, c."""
    counts: tuple[int, ...]
    """Of each source, the samples it had before."""


class MixtureOrder:
    """The samples of all sources, one after the other, without end.

    Args:
        weights: {sample: the weights of all sources from it on}, from sample 0 on; of each at least one is above 0.
    """

    def __init__(self, weights: dict[int, Sequence[float]]) -> None:
        self._stages: list[_Stage] = []
        assert min(weights) == 0
        n_sources = len(weights[0])
        left: tuple[int, ...] = (_ONE // 2,) * n_sources
        counts: tuple[int, ...] = (0,) * n_sources
        for start in sorted(weights):
            if self._stages:
                counts, left = _after(self._stages[-1], start)
            self._stages.append(_Stage(start, _parts(weights[start]), left, counts))
        self._starts = np.array([stage.start for stage in self._stages])

    def counts(self, samples: int) -> tuple[int, ...]:
        """Of each source, how many of the first so many samples come from it."""
        stage = self._stages[int(np.searchsorted(self._starts, samples, side="right")) - 1]
        return _after(stage, samples)[0]

    def locate(self, samples: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """(the sources these samples come from, their numbers among the source's own)."""
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        stages = np.searchsorted(self._starts, samples, side="right") - 1
        for index in np.unique(stages):
            at = stages == index
            sources[at], numbers[at] = _locate(self._stages[index], samples[at])
        return sources, numbers


def _parts(weights: Sequence[float]) -> tuple[int, ...]:
    assert max(weights) > 0
    sums = [sum(weights[i:]) for i in range(len(weights))]
    return tuple(round(weight / total * _ONE) if total else _ONE for weight, total in zip(weights, sums))


def _locate(stage: _Stage, samples: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
    reached = samples - stage.start
    assert reached.max(initial=0) < MOST_SAMPLES
    sources, numbers = np.empty_like(samples), np.empty_like(samples)
    there = np.ones(len(samples), dtype=np.bool_)
    for source, (part, left, count) in enumerate(zip(stage.parts, stage.left, stage.counts)):
        passed = left + reached * part
        taken = passed >> _BITS
        takes = there & ((passed + part) >> _BITS > taken)
        sources[takes], numbers[takes] = source, count + taken[takes]
        there &= ~takes
        reached = reached - taken
    assert not there.any()
    return sources, numbers


def _after(stage: _Stage, samples: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(counts, what is left over) of each source after the first so many samples."""
    reached = samples - stage.start
    counts, left = [], []
    for part, before, count in zip(stage.parts, stage.left, stage.counts):
        taken, rest = divmod(before + reached * part, _ONE)
        counts.append(count + taken)
        left.append(rest)
        reached -= taken
    return tuple(counts), tuple(left)


def order_of(mixture: Sequence[MixtureSource], sizes: Sequence[int], step_windows: int) -> MixtureOrder:
    """
    Args:
        sizes: windows of an epoch of each source.
        step_windows: of an optimizer step.
    """
    if mixture[0].epochs is not None:
        return MixtureOrder({0: [(part.epochs or 0.0) * size for part, size in zip(mixture, sizes)]})
    weights = {step: [weight_at(part, step) for part in mixture] for step in change_steps(mixture)}
    return MixtureOrder({step * step_windows: values for step, values in weights.items()})
