"""The project's goals for training throughput, judged on the rows of `mtp bench train`.

Stated for two threads of one machine, bf16, d = 256, L = 6, context 512; on another the ratios say something else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

GOAL_CONTENDERS = {256: ("ours",), 32000: ("ours", "naive")}
"""Vocabulary -> contenders that a goal names there; all of them at any other."""


class Goal(NamedTuple):
    """One goal and how it stands. `reached` is None where it was not measured, or not to be judged."""

    text: str
    bound: float
    value: float | None
    reached: bool | None
    reason: str = ""
    """Why there is no verdict."""


def judge(rows: Sequence[Row], overheads: Mapping[str, float]) -> list[Goal]:
    """Every goal. Ratios are of median rates, compiled code against compiled code, memory likewise."""

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
            return Goal(text, bound, value, None, "too few rounds, or median far below best")
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
