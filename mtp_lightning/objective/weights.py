"""How the losses of a model's heads are weighed, and how the weights move while it trains.

    total = sum_i w_i(progress) L_i,     progress = steps made / trainer.max_steps

At rest: w_1 = 1, w_i = ratio^(i-1), or, with `lam`, w_i such that the further weights sum to lam. Then a schedule:

    constant   w_i
    anneal     n equal phases; in phase p (from 0) heads 1 .. n-p count, the last of them fading linearly to 0, in the
               last phase head 1 alone (modded-nanogpt: [1, .5, .25 -> 0], [1, .5 -> 0], [1])
    forward    n equal phases; in phase p heads 1 .. p+1 count (Aynetdinov and Akbik, arXiv 2505.22757)
    reverse    n equal phases; in phase p heads 1 .. n-p count (the same)

A weight of 0 multiplies, it does not skip: under sharding every rank has to run the same modules.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.ranges import LARGEST_WEIGHT, Range, Weight, check_ranges

Schedule = Literal["constant", "anneal", "forward", "reverse"]


@dataclass(frozen=True)
class WeightsConfig:
    """Weights of the heads' losses. Where none of `values`, `ratio` and `lam` is given, the head kind's default (one
    that is given replaces all of it: `lam: 1` is equal weights whose sum is 1, `ratio: 0.5` a constant schedule):

    - `sequential`: lam 0.3 (DeepSeek-V3: lambda / D each);
    - `recurrent`: ratio 0.6, lam 1 (FastMTP: beta^(k-1) / sum over the further heads);
    - `next_latent`, `fetch`: lam 1 (NextLat and JTP: the mean over the further tokens);
    - `none`: ratio 0.5, schedule `anneal` (modded-nanogpt);
    - `registers`: values 0.7 and 0.3 (MuToR: 1 - a and a);
    - all others: every weight 1 (the paper; TOP's L_NTP + L_TOP).

    Raises:
        InputError: numbers that cannot be, or that say the same thing twice.
    """

    values: tuple[Weight, ...] | None = None
    """One weight per loss, head 1's first."""
    ratio: Annotated[float, Range(least=0.001, most=1000)] | None = None
    """Each further head's weight over the one's before it."""
    lam: Weight | dict[Annotated[float, Range(least=0, below=1)], Weight] | None = None
    """The sum of the further heads' weights: a number, or steps {progress: sum}, as in {0.0: 0.3, 0.68: 0.1}."""
    schedule: Schedule | None = None
    """How the weights move while the model trains: `constant`, `anneal`, or one head more (`forward`) or fewer
    (`reverse`) in each of n equal phases."""

    def __post_init__(self) -> None:
        if self.values is not None:
            object.__setattr__(self, "values", tuple(self.values))
            for key in ("ratio", "lam"):
                if getattr(self, key) is not None:
                    raise InputError(f"model.loss.weights.values and .{key} both say the weights: give one of them")
        if isinstance(self.lam, dict) and all(_is_number(start) for start in self.lam):
            steps = {float(start): float(value) for start, value in self.lam.items()}  # YAML's keys come as text
            object.__setattr__(self, "lam", steps)
        check_ranges("model.loss.weights", WeightsConfig, vars(self))
        if self.values is not None and not any(self.values):
            raise InputError(f"model.loss.weights.values is {list(self.values)}: the weights cannot be all zero")
        if isinstance(self.lam, dict) and (next(iter(self.lam), None) != 0 or [*self.lam] != sorted(self.lam)):
            raise InputError(f"model.loss.weights.lam is {self.lam}: steps begin at progress 0, and increase")


@dataclass(frozen=True)
class LossConfig(LossOptions):
    """How the losses of the heads are weighed and computed."""

    weights: WeightsConfig = WeightsConfig()
    """w_i, and how they move during training; all 1 by default for the paper's heads."""


def complete(weights: WeightsConfig, heads: HeadsConfig) -> WeightsConfig:
    """The weights with nothing left out: what the configuration does not say, by the head kind's default.

    Raises:
        InputError: a list of another length than the losses are many.
    """
    count = len(heads.loss_names)
    if weights.values is not None:
        if len(weights.values) != count:
            raise InputError(
                f"model.loss.weights.values has {len(weights.values)} weights, and model.heads.n_future = "
                f"{heads.n_future} of kind '{heads.kind}' has {count} losses: {', '.join(heads.loss_names)}"
            )
        return WeightsConfig(values=weights.values, schedule=weights.schedule or "constant")
    ratio, lam, schedule = weights.ratio, weights.lam, weights.schedule
    if ratio is None and lam is None:
        if heads.kind == "registers":
            return WeightsConfig(values=(0.7, 0.3), schedule=schedule or "constant")
        if heads.kind == "sequential":
            lam = 0.3
        elif heads.kind == "recurrent":
            ratio, lam = 0.6, 1.0
        elif heads.kind in ("next_latent", "fetch"):
            lam = 1.0
        elif heads.kind == "none":
            ratio, schedule = 0.5, schedule or "anneal"
    if ratio is not None and (count - 1) * math.log10(ratio) > math.log10(LARGEST_WEIGHT):
        raise InputError(
            f"model.loss.weights.ratio is {ratio}: with model.heads.n_future = {heads.n_future} the last weight would "
            f"be {ratio} to the power of {count - 1}, and at most {LARGEST_WEIGHT:,.0f} can be computed with"
        )
    return WeightsConfig(ratio=1.0 if ratio is None else ratio, lam=lam, schedule=schedule or "constant")


def head_weights(weights: WeightsConfig, heads: HeadsConfig, progress: float) -> tuple[float, ...]:
    """(w_1, ...) of the heads' losses at `progress` in [0, 1], one for each of `heads.loss_names`."""
    return weights_at(complete(weights, heads), heads, progress)


def weights_at(weights: WeightsConfig, heads: HeadsConfig, progress: float) -> tuple[float, ...]:
    """`head_weights` of weights that are complete."""
    count = len(heads.loss_names)
    if weights.values is not None:
        resting = weights.values
    else:
        assert weights.ratio is not None
        resting = tuple(weights.ratio**i for i in range(count))
        if weights.lam is not None and count > 1:
            factor = _at(weights.lam, progress) / sum(resting[1:])
            resting = (1.0, *(factor * w for w in resting[1:]))
    phase, inside = _phase(progress, count)
    if weights.schedule == "anneal":
        last = count - 1 - phase
        fade = 1.0 if last == 0 else 1.0 - inside
        return tuple(w * (fade if i == last else float(i < last)) for i, w in enumerate(resting))
    if weights.schedule == "forward":
        return tuple(w * (i <= phase) for i, w in enumerate(resting))
    if weights.schedule == "reverse":
        return tuple(w * (i < count - phase) for i, w in enumerate(resting))
    return resting


def _phase(progress: float, count: int) -> tuple[int, float]:
    """(which of `count` equal phases, how far inside it)."""
    place = min(max(progress, 0.0), 1.0) * count
    phase = min(int(place), count - 1)
    return phase, place - phase


def _at(lam: float | dict[float, float], progress: float) -> float:
    if not isinstance(lam, dict):
        return lam
    return next(value for start, value in reversed(lam.items()) if progress >= start)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
