"""How the learning rate moves during training: cosine (the paper's recipe, table S13), WSD or constant."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Range, Steps, check_ranges

ScheduleKind = Literal["cosine", "wsd", "constant"]
DecayShape = Literal["linear", "cosine", "1-sqrt"]


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to the peak, then what `kind` says.

    - `cosine`: a cosine from the peak down to `decay_ratio` of it, over all the steps after the warm-up;
    - `wsd` (warm-up, stable, decay): the peak, then a decay to `decay_ratio` of it over the last `decay_steps` steps;
    - `constant`: the peak.

    Under `wsd` (before its decay) and `constant` the learning rates do not depend on how long the run is, so a run can
    be trained for more steps later; under `cosine` they do.

    Raises:
        InputError: a number that cannot be, or `decay_steps` that is missing or without use.
    """

    kind: ScheduleKind = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Steps = 1000
    """Steps of linear warm-up."""
    decay_ratio: Annotated[float, Range(least=0, most=1)] = 0.03
    """Share of the peak that a decay ends at: its last step takes it. Under `cosine` it is what a step after the last
    one would take; the last step itself takes slightly more."""
    decay_steps: Count | None = None
    """Of wsd alone, which needs it: the last steps of the run, in which the learning rate falls."""
    decay: DecayShape = "1-sqrt"
    """Of wsd alone: shape of the decay."""

    def __post_init__(self) -> None:
        check_ranges("model.schedule", ScheduleConfig, vars(self))
        if self.kind == "wsd" and self.decay_steps is None:
            raise InputError(
                "model.schedule.decay_steps is missing: model.schedule.kind 'wsd' has to know over how many of the "
                "last steps the learning rate falls"
            )
        if self.kind != "wsd" and self.decay_steps is not None:
            raise InputError(
                f"model.schedule.decay_steps is {self.decay_steps}, and model.schedule.kind is '{self.kind}': only "
                "'wsd' has a decay of its own; leave decay_steps out, or set model.schedule.kind: wsd"
            )

    def check_length(self, total_steps: int) -> None:
        """A run has to get past its warm-up, and its decay must not begin before that.

        Raises:
            InputError: `total_steps` are too few.
        """
        if total_steps <= self.warmup_steps:
            raise InputError(
                f"model.schedule.warmup_steps is {self.warmup_steps} and trainer.max_steps is {total_steps}: the "
                "learning rate would never reach its peak; give fewer steps of warm-up, or more in all"
            )
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > total_steps:
            raise InputError(
                f"model.schedule.decay_steps is {self.decay_steps}, model.schedule.warmup_steps {self.warmup_steps} "
                f"and trainer.max_steps {total_steps}: the decay would begin before the warm-up is over; give a "
                "shorter decay or warm-up, or more steps in all"
            )


def learning_rate_factor(step: int, total_steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate that step `step` (0-based) of `total_steps` takes.

    With n = step + 1, S = `total_steps`, W = `warmup_steps`, D = `decay_steps` and r = `decay_ratio`:

    - warm-up, n <= W: n / W;
    - cosine: r + (1 - r) (1 + cos(pi p)) / 2 with p = (n - 1 - W) / (S - W). The first step after the warm-up takes the
      peak, and r belongs to the step after the last one: the last step itself takes slightly more (0.0303 for r = 0.03,
      S = 100 and W = 0);
    - wsd (MiniCPM, arXiv 2404.06395, section 4.2): 1 while n <= S - D, then r + (1 - r) f(p) with
      p = (n - (S - D)) / D, so that the last step takes r. f(p) is 1 - p, (1 + cos(pi p)) / 2, or 1 - sqrt(p)
      (Hägele et al., arXiv 2405.18392, section 4.1);
    - constant: 1.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "wsd":
        assert schedule.decay_steps is not None
        decayed = step + 1 - (total_steps - schedule.decay_steps)
        if decayed <= 0:
            return 1.0
        fall = DECAYS[schedule.decay](min(decayed / schedule.decay_steps, 1.0))
    else:
        progress = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
        fall = cosine_decay(min(progress, 1.0))
    return schedule.decay_ratio + (1 - schedule.decay_ratio) * fall


def cosine_decay(progress: float) -> float:
    """From 1 at `progress` 0 to 0 at 1, along half a period of the cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


DECAYS: dict[DecayShape, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": cosine_decay,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""Shapes of a decay: from 1 at progress 0 to 0 at progress 1."""
