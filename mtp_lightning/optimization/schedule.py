"""How the learning rate moves: linear warm-up, then cosine decay (the paper's recipe, table S13)."""

import math
from dataclasses import dataclass

from mtp_lightning.errors import InputError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to the peak, then a cosine down to `decay_ratio` of it at the last step."""

    warmup_steps: int = 1000
    """Steps from 0 up to the peak."""
    decay_ratio: float = 0.03
    """The learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InputError(f"model.schedule.warmup_steps is {self.warmup_steps}: it has to be at least 0")
        if not 0 <= self.decay_ratio <= 1:
            raise InputError(f"model.schedule.decay_ratio is {self.decay_ratio}: it has to lie between 0 and 1")


def learning_rate_factor(step: int, total_steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate that step `step` (0-based) of `total_steps` takes."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return schedule.decay_ratio + (1 - schedule.decay_ratio) * cosine
