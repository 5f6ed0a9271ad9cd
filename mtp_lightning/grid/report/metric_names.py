"""What is known about metrics by their names: which way is better, their unit, how they are written, their order."""

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mtp_lightning.grid.report.statistics import Interval
from mtp_lightning.units import quantity, size

LOWER, HIGHER = "lower", "higher"

_BETTER: tuple[tuple[str, str | None], ...] = (
    ("*/lead_step", LOWER),
    ("*/drop", None),
    ("*/chance", None),
    ("decode/*simulated_*", HIGHER),  # before all that the name of a source may hold
    ("*loss*", LOWER),
    ("*bits_per_byte*", LOWER),
    ("*perplexity*", LOWER),
    ("*memory*", LOWER),
    ("*seconds*", LOWER),
    ("*accuracy*", HIGHER),
    ("*acceptance*", HIGHER),
    ("*overlap*", HIGHER),
    ("train/teacher/*", LOWER),
    ("train/latent/*", LOWER),
    ("*tokens_per_second*", HIGHER),
    ("*tokens_per_forward*", HIGHER),
    ("*bytes_per_forward*", HIGHER),
    ("*speedup*", HIGHER),
    ("*pass_at_*", HIGHER),
    ("probe/*", HIGHER),
)

FAMILIES: tuple[str, ...] = (
    r"val/loss/head_\d+",
    r"val/accuracy/head_\d+",
    r"val/bits_per_byte",
    r"val/[\w-]+/loss/head_\d+",
    r"perf/tokens_per_second_median",
    r"perf/peak_memory_bytes",
    r"decode/tokens_per_forward",
    r"decode/bytes_per_forward",
    r"decode/simulated_(length|bytes)",
    r"decode/(?!entropy_)[\w-]+/simulated_(length|bytes)",
    r"decode/acceptance/head_\d+",
    r"decode/simulated_acceptance/head_\d+",
    r"decode/speedup",
    r"decode/mismatches",
    r"model/parameters",
    r"model/flops_per_token",
)
"""What a report shows after the metrics that the grid compares, where present, in this order."""

_PROBE_UNITS = {
    "loss": "nats per token",
    "lead_step": "step",
    "reached": "share of seeds",
    "drop": "accuracy lost",
    "prefix_matching": "score",
    "previous_token": "score",
}
"""A part of a probe's name, and its unit; all others are accuracies."""


def better_direction(metric: str) -> str | None:
    """`lower`, `higher`, or None where the name does not say. Reports ask `Report.direction`, which knows the file."""
    return next((direction for pattern, direction in _BETTER if fnmatchcase(metric, pattern)), None)


def report_order(compare: Iterable[str], present: Iterable[str]) -> list[str]:
    """The metrics of a report: those compared, present or not, then the families; heads in numerical order."""
    rows = list(compare)
    names = sorted(set(present), key=_natural_key)
    for family in FAMILIES:
        rows += [name for name in names if re.fullmatch(family, name) and name not in rows]
    return rows


def title_and_unit(metric: str) -> tuple[str, str]:
    """What a metric is called above its axes, and its unit."""
    if head := re.fullmatch(r"val/loss/head_(\d+)", metric):
        return f"Validation loss of head {head[1]}", "nats per token"
    if not metric.startswith("probe/"):
        return metric, metric
    return metric, next((unit for part, unit in _PROBE_UNITS.items() if part in metric.split("/")), "accuracy")


def format_value(metric: str, value: float, *, like: float | None = None, signed: bool = False) -> str:
    """A value with its unit; a spread or a difference has the decimals of the mean it belongs to, `like`."""
    if not math.isfinite(value):
        return f"{value:g}"
    sign = "+" if signed and value >= 0 else ""
    if metric.endswith("memory_bytes"):
        return sign + size(value)
    if metric.startswith("model/") or "per_second" in metric:
        return sign + quantity(value)
    return sign + f"{value:.{decimals(value if like is None else like)}f}"


def format_interval(metric: str, interval: Interval, like: float) -> str:
    """`[-0.0800, -0.0200]`"""
    low, high = (format_value(metric, end, like=like, signed=True) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def decimals(value: float) -> int:
    """Four for a loss of 1.2345, fewer for large numbers, three digits for tiny ones."""
    if value == 0:
        return 4
    magnitude = math.floor(math.log10(abs(value)))
    return max(0, 4 - max(0, magnitude)) if magnitude >= -2 else min(9, 2 - magnitude)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """head_2 before head_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def strict_json(value: Any) -> Any:
    """The same with null for numbers that are not finite: JSON has none of them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict_json(item) for key, item in value.items()}
    return [strict_json(item) for item in value] if isinstance(value, list | tuple) else value
