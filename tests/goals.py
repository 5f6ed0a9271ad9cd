"""The project's own goals for speed and memory, judged on what `mtp bench` measured. For whoever works on the project:

    mtp bench train --threads 2 --compile true --n_future "[1, 4]" --vocab_size "[4096, 256, 32000]" --json train.json
    mtp bench decode --ckpts '[runs/mine]' --json decode.json
    python tests/goals.py train.json decode.json

The exit status is 1 where a goal was missed. Goals of training are for two threads of one machine, bf16, d = 256,
L = 6 and context 512; those of decoding for d = 256 in float32 on one thread. Elsewhere ratios mean something else.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
UNSTEADY = "too few rounds, or median far below best"


class Goal(NamedTuple):
    """One goal and how it stands. `reached` is None where it was not measured, or is not to be judged."""

    text: str
    bound: float
    value: float | None
    reached: bool | None
    reason: str = ""
    """Why there is no verdict."""


def judge_training(rows: Sequence[Row], overheads: Mapping[str, float]) -> list[Goal]:
    """Ratios are of median rates, compiled code against compiled code, memory likewise."""

    def at(contender: str, n: int, vocab_size: int) -> Row | None:
        key = (contender, n, vocab_size, True)
        return next((r for r in rows if (r["contender"], r["n_future"], r["vocab_size"], r["compiled"]) == key), None)

    def rate(a: Row, b: Row) -> float:
        return float(a["tokens_per_second"] / b["tokens_per_second"])

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
        if ratio is not memory and not (a["steady"] and b["steady"]):
            return Goal(text, bound, value, None, UNSTEADY)
        return Goal(text, bound, value, value >= bound if at_least else value <= bound)

    one, four = at("ours", 1, 4096), at("ours", 4, 4096)
    goals = [
        pair("n = 1 over Hugging Face, tokens/s", one, at("huggingface", 1, 4096), rate, 1.25),
        pair("n = 4 over naive n = 4, tokens/s", four, at("naive", 4, 4096), rate, 1.25),
        pair("n = 4 over the paper's loop, tokens/s", four, at("paper", 4, 4096), rate, 1.3),
    ]
    for size in (256, 4096, 32000):
        text = f"n = 4 over n = 1, tokens/s over FLOPs, V = {size}"
        goals.append(pair(text, at("ours", 4, size), at("ours", 1, size), scaling, 0.95))
    large = at("ours", 4, 32000)
    for n, bound in ((1, 1.0), (4, 0.45)):
        text = f"n = 4 over naive n = {n}, peak memory, V = 32000"
        goals.append(pair(text, large, at("naive", n, 32000), memory, bound, at_least=False))
    for row, n in ((one, 1), (four, 4)):
        text = f"n = {n}, share of the matrix-product peak, V = 4096"
        goals.append(pair(text, row, row, lambda a, _: float(a["share_of_peak"]), 0.4))
    for name in ("Lightning and logging", "Lightning and MLflow"):
        milliseconds = overheads.get(name)
        reached = None if milliseconds is None else milliseconds <= 1.5
        reason = "not measured" if milliseconds is None else ""
        goals.append(Goal(f"{name}, ms a step", 1.5, milliseconds, reached, reason))
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
        elif not (row["steady"] and plain_of(row)["steady"]):
            goals.append(Goal(text, bound, row[key], None, UNSTEADY))
        else:
            goals.append(Goal(text, bound, row[key], row[key] >= bound if at_least else row[key] <= bound))

    for model in dict.fromkeys(row["model"] for row in single):
        own = [row for row in single if row["model"] == model]
        add(f"{model}: plain over Hugging Face, equal layers", 1.5, _arm(own, "plain"), "over_huggingface")
        if own[0]["n_future"] == 4:
            bound = 0.75 if own[0]["n_layers"] >= 24 else 0.65
            drafted = _arm(own, "k = 4")
            add(f"{model}: speed-up over tokens per forward, k = 4", bound, drafted, "efficiency")
            add(f"{model}: cost of a step over plain, k = 4", 1.4, drafted, "step_cost", at_least=False)
            add(f"{model}: drafting over Hugging Face's n = 1", 4.0, drafted, "over_huggingface_n1")
    for row in rows:
        if row["arm"] == "k = auto":
            add(f"{row['model']}: adaptive over plain, batch {row['batch']}", 1.0, row, "speedup")
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
    missed = False
    for file in files:
        goals = judge(json.loads(Path(file).read_text()))
        Console(width=None if sys.stdout.isatty() else 120).print(goals_table(goals, file))
        missed |= any(goal.reached is False for goal in goals)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
