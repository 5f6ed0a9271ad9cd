"""What a benchmark found out, and at which temperature each score is reported."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mtp_lightning.evaluation.benchmark import Benchmark, Judged
from mtp_lightning.evaluation.plan import Plan
from mtp_lightning.evaluation.results.temperatures import Chosen, choose, fixed_temperatures


class AtTemperature(NamedTuple):
    """What was found at one temperature."""

    judged: Judged
    counts: dict[str, int]
    """Over everything that the file holds, as `write_batch` counts."""
    ended: Counter[str]
    cut: int
    """Problems whose prompt was longer than the context has room for."""
    file: Path

    @property
    def tokens_per_forward(self) -> float:
        return _ratio(self.counts.get("accepted", 0), self.counts.get("forwards", 0))

    @property
    def bytes_per_forward(self) -> float:
        """What compares between tokenizers."""
        return _ratio(self.counts.get("bytes", 0), self.counts.get("forwards_of_bytes", 0))

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
        if counts.get("forwards"):
            found["tokens_per_forward"] = _ratio(counts["accepted"], counts["forwards"])
        if counts.get("forwards_of_bytes"):
            found["bytes_per_forward"] = _ratio(counts["bytes"], counts["forwards_of_bytes"])
        found |= {f"acceptance/head_{head}": share for head, share in acceptance(counts).items()}
        return {f"eval/{self.benchmark.name}/{name}": value for name, value in found.items()}


def temperature_name(score: str) -> str:
    """`pass_at_10` -> `temperature_at_10`; of other scores `rouge_l` -> `rouge_l/temperature`."""
    if "pass_at_" in score:
        return score.replace("pass_at_", "temperature_at_")
    return f"{score}/temperature"


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


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
