"""How `mtp bench decode` shows its rows: tables, the table of the paper's S2 and S3, a figure."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Row = Mapping[str, Any]

FIGURES: dict[str, tuple[str, str]] = {
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "best_tokens_per_second": ("best", "{:.0f}"),
    "speedup": ("/ plain", "{:.2f}"),
    "best_speedup": ("best", "{:.2f}"),
    "tokens_per_forward": ("tokens/forward", "{:.2f}"),
    "efficiency": ("quotient", "{:.2f}"),
    "step_cost": ("step cost", "{:.2f}"),
    "prompt_milliseconds": ("prompt ms", "{:.1f}"),
    "milliseconds_per_forward": ("ms", "{:.2f}"),
    "share_of_roofline": ("of roofline", "{:.0%}"),
    "over_huggingface": ("/ HF", "{:.2f}"),
    "over_huggingface_n1": ("/ HF n=1", "{:.2f}"),
    "over_use_mtp": ("/ use_mtp", "{:.2f}"),
    "over_llama_cpp": ("/ llama.cpp", "{:.2f}"),
    "over_torch": ("/ torch", "{:.2f}"),
}
"""Key of a row -> heading and format."""
USE_MTP = "use_mtp"
"""The arm of `generate(use_mtp=True)`."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")


def decode_table(rows: Sequence[Row], title: str, caption: str) -> "Table":
    """The rows of one model, with the figures that any of them has. A rate in brackets is not to be judged (few quiet
    rounds, or median far below best)."""
    from rich.table import Table

    table = Table(title=title, caption=caption)
    table.add_column("batch", justify="right")
    table.add_column("heads used")
    keys = [key for key in FIGURES if any(row.get(key) is not None for row in rows)]
    for key in keys:
        table.add_column(FIGURES[key][0], justify="right")
    table.add_column("text = plain")
    previous = None
    for row in rows:
        if previous not in (None, row["batch"]):
            table.add_section()
        shown = {key: _shown(row, key) for key in keys}
        if not row["steady"]:
            shown["tokens_per_second"] = f"({shown['tokens_per_second']})"
        table.add_row("" if row["batch"] == previous else str(row["batch"]), row["arm"], *shown.values(), texts(row))
        previous = row["batch"]
    return table


def texts(row: Row) -> str:
    """How many texts are plain decoding's, and what the others are."""
    if "texts" not in row:
        return "-"
    says = f"{row['equal']}/{row['texts']}"
    if row["ties"]:
        says += f", {row['ties']} at ties"
    return says + (f", {row['different']} DIFFERENT" if row["different"] else "")


def heads_used_rows(rows: Sequence[Row], batch: int) -> tuple[list[str], list[list[str]]]:
    """Tables S2 and S3 of the paper: by heads used, speed-up and tokens per forward of every model."""
    mine = [r for r in rows if r["batch"] == batch and isinstance(r["heads_used"], int) and _drafts(r)]
    models = list(dict.fromkeys(r["model"] for r in mine if r["n_future"] > 1))
    table = {(r["model"], r["heads_used"]): r for r in mine}
    header = ["heads used"]
    for model in models:
        header += [f"{model}: speed-up", "tokens/forward"]
    lines = []
    for k in sorted({k for model, k in table if model in models}):
        line = [str(k)]
        for model in models:
            row = table.get((model, k))
            line += [_shown(row, "speedup"), _shown(row, "tokens_per_forward")] if row else ["-", "-"]
        lines.append(line)
    return header, lines


def heads_table(rows: Sequence[Row], caption: str) -> "Table":
    from rich.table import Table

    batch = min(row["batch"] for row in rows)
    header, lines = heads_used_rows(rows, batch)
    table = Table(
        title=f"Speed-up and tokens per forward by heads used, batch {batch} (as the paper's S2, S3)", caption=caption
    )
    for heading in header:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def markdown(rows: Sequence[Row], caption: str) -> str:
    """Both kinds of tables."""
    batch = min(row["batch"] for row in rows)
    parts = [f"By heads used, batch {batch} ({caption}):", _markdown(*heads_used_rows(rows, batch))]
    for model in dict.fromkeys(row["model"] for row in rows):
        header = ["batch", "heads used", *(heading for heading, _ in FIGURES.values()), "text = plain"]
        lines = [
            [str(row["batch"]), row["arm"], *(_shown(row, key) for key in FIGURES), texts(row)]
            for row in rows
            if row["model"] == model
        ]
        parts += [f"{model}:", _markdown(header, lines)]
    return "\n\n".join(parts) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Speed-up, and tokens per forward, by heads used at the smallest batch; beside it, where there are several batch
    sizes, speed-up by batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    several = len({row["batch"] for row in rows}) > 1
    figure = Figure(figsize=(11 if several else 6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, *others = figure.subplots(1, 1 + several, squeeze=False)[0]
    mine = [row for row in rows if _drafts(row)]
    models = list(dict.fromkeys(row["model"] for row in mine if row["n_future"] > 1))
    batch = min(row["batch"] for row in rows)
    for colour, model in zip(itertools.cycle(COLOURS), models):
        own = [row for row in mine if row["model"] == model]
        used = [row for row in own if row["batch"] == batch and row["heads_used"] != "auto"]
        x = [row["heads_used"] for row in used]
        left.plot(x, [row["tokens_per_forward"] for row in used], color=colour, linestyle=":", marker=".")
        left.plot(x, [row["speedup"] for row in used], color=colour, marker="o", label=model)
        for heads, style in ((max(x), "-"), ("auto", "--")):
            line = [row for row in own if row["heads_used"] == heads]
            label = f"{model}: {'adaptive' if heads == 'auto' else f'all {heads}'}"
            points = [row["batch"] for row in line], [row["speedup"] for row in line]
            for axes in others:
                axes.plot(*points, style, color=colour, marker="o", label=label)
    left.set_title(f"batch {batch}: speed-up over plain decoding\n(dotted: tokens per forward)")
    left.set_xlabel("heads used")
    _finish(left, [row["heads_used"] for row in mine])
    for axes in others:
        axes.set_title("speed-up over plain decoding of the same batch")
        axes.set_xlabel("batch size")
        axes.set_xscale("log", base=2)
        _finish(axes, [row["batch"] for row in mine])
    figure.savefig(path, dpi=150)


def _drafts(row: Row) -> bool:
    """Whether a row is of the engine that is measured."""
    return "tokens_per_forward" in row and row["arm"] not in (USE_MTP, "torch")


def _finish(axes: "Axes", values: Sequence[Any]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = sorted({value for value in values if isinstance(value, int)})
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _shown(row: Row, key: str) -> str:
    value = row.get(key)
    return "-" if value is None else FIGURES[key][1].format(value)
