"""What a benchmark found out, and at which temperature each score is reported."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mtp_lightning.evaluation.benchmark import Benchmark, Judged
from mtp_lightning.evaluation.plan import Plan
from mtp_lightning.evaluation.results.temperatures import Chosen, choose, fixed_temperatures

_RATES = {"tokens": "accepted", "bytes": "bytes"}
"""What is counted by the forward -> its name in the counts."""


class AtTemperature(NamedTuple):
    """What was found at one temperature."""

    judged: Judged
    counts: dict[str, int]
    """As `write_batch` counts, over the `samples` that were written with the heads that are asked for."""
    ended: Counter[str]
    cut: int
    """Problems with a prompt that was longer than the context has room for; with turns, in any of a sample's."""
    file: Path

    @property
    def acceptance(self) -> dict[int, float]:
        """Head -> share of its drafts that were right, of those whose turn came."""
        return acceptance(self.counts)


@dataclass(frozen=True)
class Results:
    """What a benchmark found out."""

    benchmark: Benchmark
    chosen: dict[str, Chosen]
    """Name of a score -> its value, at which temperature, and how sure."""
    at: dict[float, AtTemperature]

    @property
    def counts(self) -> dict[str, int]:
        """Over all temperatures."""
        total: Counter[str] = Counter()
        for found in self.at.values():
            total.update(found.counts)
        return dict(total)

    def metrics(self) -> dict[str, float]:
        """As MLflow has them: `eval/<task>/pass_at_k`, `.../temperature_at_k`, `.../tokens_per_forward`,
        `.../bytes_per_forward`, `.../acceptance/head_i`."""
        found: dict[str, float] = {}
        for name, chosen in self.chosen.items():
            found |= {name: chosen.value, temperature_name(name): chosen.temperature}
        counts = self.counts
        found |= rates(counts)
        found |= {f"acceptance/head_{head}": share for head, share in acceptance(counts).items()}
        return {f"eval/{self.benchmark.name}/{name}": value for name, value in found.items()}


def temperature_name(score: str) -> str:
    """`pass_at_10` -> `temperature_at_10`; of other scores `rouge_l` -> `rouge_l/temperature`."""
    if "pass_at_" in score:
        return score.replace("pass_at_", "temperature_at_")
    return f"{score}/temperature"


def rates(counts: Mapping[str, int]) -> dict[str, float]:
    """`tokens_per_forward`, and `bytes_per_forward`, which compares between tokenizers; nothing without forwards."""
    if not counts.get("forwards"):
        return {}
    return {f"{what}_per_forward": counts[of] / counts["forwards"] for what, of in _RATES.items()}


def acceptance(counts: Mapping[str, int]) -> dict[int, float]:
    heads = sorted(int(name.removeprefix("turns_")) for name in counts if name.startswith("turns_"))
    return {head: counts[f"right_{head}"] / counts[f"turns_{head}"] for head in heads if counts[f"turns_{head}"]}


def choose_all(at: Mapping[float, AtTemperature], plan: Plan) -> dict[str, Chosen]:
    """Of every score, the temperature that it is reported at. A temperature that was fixed for a k holds for all scores
    of that k (`majority_at_10` too); those without a k take the first one."""
    fixed = fixed_temperatures(plan.select, plan.temperatures, plan.k)
    chosen: dict[str, Chosen] = {}
    for name in dict.fromkeys(name for found in at.values() for name in found.judged.scores):
        values = {t: found.judged.scores[name] for t, found in at.items() if name in found.judged.scores}
        k = name.rpartition("_at_")[2]
        only = fixed.get(int(k) if k.isdigit() else 0, plan.temperatures[0]) if fixed else None
        if only is None or only in values:
            chosen[name] = choose(values, only)
    return chosen
