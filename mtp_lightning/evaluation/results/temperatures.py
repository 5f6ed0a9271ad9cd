"""Which temperature a score is reported at, and how sure it is.

The paper's table 1 takes, for each k, the temperature that does best on the very problems that are reported: `oracle`.
That is optimistic, and more so the fewer samples and problems there are; the interval says how much, since every
resample of the problems chooses its temperature anew.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mtp_lightning.errors import InputError

Select = Literal["oracle", "fixed"]
RESAMPLES = 1000
COVERAGE = 0.9
"""As in the paper's table S7."""


class Chosen(NamedTuple):
    """A score at one temperature."""

    value: float
    """The mean over problems."""
    temperature: float
    low: float
    high: float
    """Bootstrap interval over problems, COVERAGE wide; the choice of the temperature is part of what is resampled."""


def choose(values: Mapping[float, Sequence[float]], only: float | None = None, seed: int = 0) -> Chosen:
    """
    Args:
        values: temperature -> a score of every problem, in the same order.
        only: the temperature that was fixed beforehand; by default the one with the highest mean, of equal ones the
            lowest.
    """
    temperatures = sorted(values) if only is None else [only]
    scores_TP = np.array([values[temperature] for temperature in temperatures], dtype=np.float64)
    problems = scores_TP.shape[1]
    assert problems > 0
    best = int(scores_TP.mean(axis=1).argmax())
    draws = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    means_TR = scores_TP @ draws.T / problems
    low, high = np.quantile(means_TR.max(axis=0), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Chosen(float(scores_TP[best].mean()), temperatures[best], float(low), float(high))


def fixed_temperatures(select: Select, temperatures: Sequence[float], ks: Sequence[int]) -> dict[int, float]:
    """k -> the temperature that was fixed for it: one for all, or one for each k, in order (Code Llama: 0.2 for k = 1,
    0.8 for k = 10). Nothing for `oracle`.

    Raises:
        InputError: it does not say which temperature belongs to which k.
    """
    if select == "oracle":
        return {}
    if len(temperatures) == 1:
        return dict.fromkeys(ks, temperatures[0])
    if len(temperatures) != len(ks):
        raise InputError(
            f"select is fixed with temperatures {[*temperatures]} and k {[*ks]}: give one, or one for each k"
        )
    return dict(zip(ks, temperatures))
