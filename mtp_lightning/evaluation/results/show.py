"""What an evaluation found, as a table and as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_lightning.evaluation.results.results import AtTemperature, Results, rates
from mtp_lightning.evaluation.results.temperatures import COVERAGE
from mtp_lightning.files import write_text

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel


def show(results: Results, loaded: "LoadedModel") -> None:
    benchmark = results.benchmark
    print(f"{benchmark.name} at step {loaded.step:,}, {len(benchmark.prompts):,} problems")
    names = list(results.chosen)
    width = max([len("tokens per forward"), *map(len, names)]) + 2
    temperatures = sorted(results.at)
    print(f"  {'temperature':<{width}}" + "".join(f"{t:>9g}" for t in temperatures) + "   reported")
    for name in names:
        means = {t: _mean(found.judged.scores.get(name)) for t, found in results.at.items()}
        chosen = results.chosen[name]
        reported = f"{chosen.value:.4f} at {chosen.temperature:g} [{chosen.low:.4f}, {chosen.high:.4f}]"
        print(f"  {name:<{width}}" + "".join(_number(means[t]) for t in temperatures) + f"   {reported}")
    rows: dict[str, dict[float, float | None]] = {}
    for rate in rates(results.counts):
        rows[rate.replace("_", " ")] = {t: rates(found.counts).get(rate) for t, found in results.at.items()}
    for head in sorted({head for found in results.at.values() for head in found.acceptance}):
        rows[f"acceptance of head {head}"] = {t: found.acceptance.get(head) for t, found in results.at.items()}
    for label, by_temperature in rows.items():
        print(f"  {label:<{width}}" + "".join(_number(by_temperature[t]) for t in temperatures))
    print(f"  intervals: {COVERAGE:.0%} of resamples of the problems, each choosing its own temperature")
    for temperature in temperatures:
        found = results.at[temperature]
        verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in found.judged.verdicts.most_common())
        met = f" (limits met: {_counts(found.judged.limits_met)})" if found.judged.limits_met else ""
        became = f"{verdicts}{met}; " if verdicts else ""
        print(f"  at {temperature:g}: {became}ended by {_counts(found.ended)}; {found.file}")
    if benchmark.confined_by is not None:
        print(f"  programs were confined by {benchmark.confined_by}")
    cut = max(found.cut for found in results.at.values())
    if cut:
        print(f"  {cut:,} prompts were longer than the context has room for: their beginnings were cut off")


def write(results: Results, loaded: "LoadedModel", path: Path) -> None:
    content = {"ckpt": str(loaded.path), "step": loaded.step, **as_json(results)}
    write_text(path, json.dumps(content, indent=1) + "\n")


def as_json(results: Results) -> dict[str, Any]:
    benchmark = results.benchmark
    return {
        "task": benchmark.name,
        "domain": benchmark.domain,
        "problems": len(benchmark.prompts),
        "confined_by": benchmark.confined_by,
        "unsafe_execution": benchmark.confined_by == "none",
        "metrics": results.metrics(),
        "scores": {name: chosen._asdict() for name, chosen in results.chosen.items()},
        "temperatures": [_at(temperature, found) for temperature, found in sorted(results.at.items())],
    }


def _at(temperature: float, found: AtTemperature) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "scores": {name: _mean(values) for name, values in found.judged.scores.items()},
        "tokens_per_forward": rates(found.counts).get("tokens_per_forward"),
        "bytes_per_forward": rates(found.counts).get("bytes_per_forward"),
        "acceptance": {str(head): share for head, share in found.acceptance.items()},
        "counts": found.counts,
        "verdicts": dict(found.judged.verdicts),
        "limits_met": dict(found.judged.limits_met),
        "ended": dict(found.ended),
        "cut_prompts": found.cut,
        "samples": str(found.file),
    }


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return f"{'':>9}" if value is None else f"{value:9.4f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
