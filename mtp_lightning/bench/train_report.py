"""How `mtp bench train` shows its rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

FIGURES: dict[str, tuple[str, str]] = {
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "best_tokens_per_second": ("best", "{:.0f}"),
    "over_huggingface": ("/ HF", "{:.2f}"),
    "over_naive": ("/ naive", "{:.2f}"),
    "tokens_over_n1": ("/ n = 1", "{:.2f}"),
    "flops_n1_over": ("FLOPs", "{:.2f}"),
    "efficiency": ("quotient", "{:.2f}"),
    "share_of_peak": ("of peak", "{:.0%}"),
    "peak_bytes": ("MiB", "{:.0f}"),
    "memory_over_naive": ("/ naive", "{:.2f}"),
    "memory_over_naive_n1": ("/ naive 1", "{:.2f}"),
    "time_over_kept": ("time / kept", "{:.2f}"),
    "memory_over_kept": ("MiB / kept", "{:.2f}"),
}
"""Key of a row -> heading and format."""


def train_table(rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> "Table":
    """The rows of one vocabulary. A rate in brackets is not to be judged (few quiet rounds, or far below best)."""
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for heading, justify in (("contender", "left"), ("n", "right"), ("mode", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    keys = [key for key in FIGURES if not key.endswith("_over_kept") or any(key in row for row in rows)]
    for key in keys:
        table.add_column(FIGURES[key][0], justify="right")
    for row in rows:
        shown = {key: _shown(row, key) for key in keys}
        if not row["steady"]:
            shown["tokens_per_second"] = f"({shown['tokens_per_second']})"
        mode = "compiled" if row["compiled"] else "eager"
        mode += "" if row["recompute"] == "none" else f", recompute {row['recompute']}"
        table.add_row(row["contender"], str(row["n_future"]), mode, *shown.values())
    return table


def _shown(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    return FIGURES[key][1].format(value / 2**20 if key == "peak_bytes" else value)
