"""How a benchmark is asked: samples, temperatures, k."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.results.temperatures import Select, fixed_temperatures
from mtp_lightning.ranges import Kept, Range, Seed, check_value, declared


@dataclass(frozen=True)
class Plan:
    """How a benchmark is asked.

    Raises:
        InputError: numbers that cannot be, or that do not go together; it begins with the field's name.
    """

    samples: Kept = 20
    temperatures: tuple[Annotated[float, Range(least=0, most=100)], ...] = (0.2, 0.8)
    k: tuple[Kept, ...] = (1, 10)
    select: Select = "oracle"
    top_p: Annotated[float, Range(above=0, most=1)] | None = 0.95
    seed: Seed = 0
    limit: Kept | None = None
    """The first problems only."""
    max_new_tokens: Kept | None = None
    """By default the benchmark's own number, or half of the context, if that is less."""
    heads_used: Kept | Literal["auto"] = "auto"
    batch_size: Annotated[int, Range(least=1, most=4096)] = 16
    dtype: Literal["fp32", "bf16"] = "fp32"
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name, hint in declared(Plan).items():
            check_value(name, getattr(self, name), hint)
        for name in ("temperatures", "k"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name} is {[*values]}: it has a number twice")
        if max(self.k) > self.samples:
            raise InputError(f"k is {max(self.k)}, and pass@k needs at least k samples: samples is {self.samples}")
        if not any(self.temperatures) and max(self.k) > 1:
            raise InputError("k is above 1 at temperature 0, where all samples are the same: let k be [1]")
        for k, temperature in fixed_temperatures(self.select, self.temperatures, self.k).items():
            if k > self.samples_at(temperature):
                raise InputError(
                    f"temperatures is {[*self.temperatures]}, and select fixed takes {temperature:g} for k = {k}, "
                    "where all samples are the same: give k = 1 the temperature 0, or none"
                )

    def samples_at(self, temperature: float) -> int:
        """Greedy samples would all be the same."""
        return 1 if temperature == 0 else self.samples

    def ks_at(self, temperature: float) -> list[int]:
        return [k for k in self.k if k <= self.samples_at(temperature)]


def usual_ks(samples: int, temperatures: Sequence[float]) -> tuple[int, ...]:
    """1, and 10 where there are enough samples that are not the same."""
    return (1, 10) if samples >= 10 and any(temperatures) else (1,)
