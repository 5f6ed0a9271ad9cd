"""The project's own goals for speed and memory, judged on what `mtp bench` measured. For whoever works on the project:

    mtp bench train --threads 2 --compile true --n_future "[1, 4]" --vocab_size "[4096, 256, 32000]" --json train.json
    mtp bench decode --ckpts '[runs/mine]' --peer llama_cpp --json decode.json
    mtp bench decode --ckpts '[runs/mine]' --peer transformers_mtp --json standard.json
    python tests/goals.py train.json decode.json standard.json

The exit status is 1 where a goal was missed. Goals of training are for two threads of one machine, bf16, d = 256,
L = 6 and context 512; those of decoding for 12 layers of d = 256 in float32 on one thread. Elsewhere ratios mean
something else. What was measured on a busy machine, or where nobody looked whether it was, is not judged.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from mtp_lightning.bench.harness import over

Row = Mapping[str, Any]
UNSTEADY = "too few rounds, or median far below best"
BUSY, NOT_LOOKED_AT = "on a busy machine", "nobody looked whether the machine was busy"
LOGGING = {"Lightning and MLflow": 1.5, "Lightning, steps not logged": 0.3}
"""How steps are run -> milliseconds that they may take more than in a bare loop, on average."""


class Goal(NamedTuple):
    """One goal and how it stands. `reached` is None where it was not measured, or is not to be judged."""

    text: str
    bound: float
    value: float | None
    reached: bool | None
    reason: str = ""
    """Why there is no verdict."""


def why_not(*rows: Row) -> str:
    """Why there is no verdict on these rows' rates; empty where there is one."""
    if any(row.get("busy") is None for row in rows):
        return NOT_LOOKED_AT
    if all(row["steady"] for row in rows):
        return ""
    return BUSY if any(row["busy"] for row in rows) else UNSTEADY


def judge_training(rows: Sequence[Row], overheads: Mapping[str, Row]) -> list[Goal]:
    """Ratios are medians of the rounds' own, compiled code against compiled code, memory likewise."""

    def at(contender: str, n: int, vocab_size: int) -> Row | None:
        key = (contender, n, vocab_size, True)
        return next((r for r in rows if (r["contender"], r["n_future"], r["vocab_size"], r["compiled"]) == key), None)

    def rate(a: Row, b: Row) -> float:
        return over(b["seconds"], a["seconds"])

    def scaling(a: Row, b: Row) -> float:
        return rate(a, b) * float(a["flops_per_token"] / b["flops_per_token"])

    def memory(a: Row, b: Row) -> float:
        return float(a["peak_bytes"] / b["peak_bytes"])

    def pair(
        text: str, a: Row | None, b: Row | None, ratio: Callable[[Row, Row], float], bound: float, at_least: bool = True
    ) -> Goal:
        if a is None or b is None or (ratio is memory and "peak_bytes" not in a):
            return Goal(text, bound, None, None, "not measured")
        value = ratio(a, b)
        if ratio is not memory and (reason := why_not(a, b)):
            return Goal(text, bound, value, None, reason)
        return Goal(text, bound, value, value >= bound if at_least else value <= bound)

    one, four = at("ours", 1, 4096), at("ours", 4, 4096)
    large, naive = at("ours", 4, 32000), at("naive", 4, 32000)
    goals = [
        pair("n = 1 over Hugging Face, tokens/s", one, at("huggingface", 1, 4096), rate, 1.4),
        pair("n = 4 over naive n = 4, tokens/s", four, at("naive", 4, 4096), rate, 1.3),
        pair("n = 4 over the paper's loop, tokens/s", four, at("paper", 4, 4096), rate, 1.3),
        pair("n = 4 over naive n = 4, tokens/s, V = 32000", large, naive, rate, 1.0),
        pair("n = 4 over naive n = 4, peak memory, V = 32000", large, naive, memory, 0.45, at_least=False),
    ]
    for size in (256, 4096, 32000):
        text = f"n = 4 over n = 1, tokens/s over FLOPs, V = {size}"
        goals.append(pair(text, at("ours", 4, size), at("ours", 1, size), scaling, 1.0))
    for name, bound in LOGGING.items():
        if name not in overheads:
            goals.append(Goal(f"{name}, ms a step", bound, None, None, "not measured"))
            continue
        milliseconds, reason = overheads[name]["mean"], why_not(overheads[name])
        goals.append(Goal(f"{name}, ms a step", bound, milliseconds, None if reason else milliseconds <= bound, reason))
    return goals


def judge_decoding(rows: Sequence[Row]) -> list[Goal]:
    single = [row for row in rows if row["batch"] == 1]
    goals: list[Goal] = []

    def plain_of(row: Row) -> Row:
        same = [r for r in rows if (r["model"], r["batch"]) == (row["model"], row["batch"])]
        return _arm(same, "plain") or row

    def add(text: str, bound: float, row: Row | None, key: str, at_least: bool = True) -> None:
        if row is None or row.get(key) is None:
            goals.append(Goal(text, bound, None, None, "not measured"))
        elif reason := why_not(row, plain_of(row)):
            goals.append(Goal(text, bound, row[key], None, reason))
        else:
            goals.append(Goal(text, bound, row[key], row[key] >= bound if at_least else row[key] <= bound))

    for model in dict.fromkeys(row["model"] for row in single):
        own = [row for row in single if row["model"] == model]
        add(f"{model}: plain over llama.cpp, equal layers", 0.9, _arm(own, "plain"), "over_llama_cpp")
        if own[0]["n_future"] == 4:
            drafted = _arm(own, "k = 4")
            add(f"{model}: four heads over llama.cpp", 1.3, drafted, "over_llama_cpp")
            add(f"{model}: cost of a step over plain, k = 4", 1.35, drafted, "step_cost", at_least=False)
            add(f"{model}: four heads over use_mtp", 2.0, drafted, "over_use_mtp")
    for row in rows:
        if row["arm"] == "k = auto":
            add(f"{row['model']}: adaptive over plain, batch {row['batch']}", 1.0, row, "speedup")
        if row["arm"] == "plain" and 2 <= row["batch"] <= 8:
            add(f"{row['model']}: plain over torch's layers, batch {row['batch']}", 1.0, row, "over_torch")
    ours = [row for row in rows if row["arm"].startswith("k = ")] or [{"equal": 1, "texts": 1}]
    share = sum(row["equal"] for row in ours) / sum(row["texts"] for row in ours)
    goals.append(Goal("texts equal to plain decoding's, ours", 1.0, share, share >= 1.0))
    return goals


def _arm(rows: Sequence[Row], arm: str) -> Row | None:
    return next((row for row in rows if row["arm"] == arm), None)


def judge(content: Mapping[str, Any]) -> list[Goal]:
    """The goals of what either command wrote."""
    if "overhead_ms" in content:
        return judge_training(content["rows"], content["overhead_ms"])
    return judge_decoding(content["rows"])


def goals_table(goals: Sequence[Goal], title: str) -> Table:
    table = Table(title=title)
    table.add_column("goal")
    for heading in ("bound", "measured"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for goal in goals:
        verdict = goal.reason or ("reached" if goal.reached else "not reached")
        table.add_row(goal.text, f"{goal.bound:.2f}", "-" if goal.value is None else f"{goal.value:.2f}", verdict)
    return table


def main(files: Sequence[str]) -> int:
    missed = []
    console = Console(width=None if sys.stdout.isatty() else 120)
    for file in files:
        content = json.loads(Path(file).read_text())
        goals, machine = judge(content), content.get("machine", {})
        named = f"{machine.get('device', 'an unknown processor')}, threads {machine.get('threads', 'unknown')}"
        console.print(goals_table(goals, f"{file}: {named}"))
        missed += [f"missed on {named}: {_says(goal)}" for goal in goals if goal.reached is False]
    for line in missed:
        console.print(line, highlight=False, soft_wrap=True)
    return int(bool(missed))


def _says(goal: Goal) -> str:
    return f"{goal.text}: {goal.value:.2f}, the bound is {goal.bound:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
