"""Where the time of a training step of ours goes, beside what this machine could do.

On a CPU, by torch's profiler, whose own cost is small beside operations on thousands of rows. It reads the clock, and
so do the shares: on a busy machine they say little.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.autograd.profiler import profile, record_function

from mtp_lightning.bench.overhead import MLFLOW, NOT_LOGGED
from mtp_lightning.bench.train_contenders import UPDATE

if TYPE_CHECKING:
    from rich.table import Table

STEP, STEPS = "step", 2
LOG_EVERY = 10
"""Steps from one that is logged to the next, by default."""
PARTS = ("products", "attention", "loss", "optimizer", "small", "python")
EXTRA = ("data", "logging")
LABELS = {
    "_ChunkedNLL": "loss", UPDATE: "optimizer", "aten::mm": "products", "aten::addmm": "products",
    "mkldnn::_linear_pointwise": "products", "aten::bmm": "attention", "aten::baddbmm": "attention",
    "aten::_scaled_dot_product": "attention", "aten::scaled_dot_product": "attention", "aten::softmax": "attention",
    "aten::_softmax": "attention", "aten::masked_fill": "attention",
}  # fmt: skip
"""How a name in the profile begins -> its part, and that of all below it. Other operations are small ones."""
HEADINGS = {
    "milliseconds": "ms", "products": "products", "attention": "attention", "loss": "unembedding and loss",
    "optimizer": "optimizer", "small": "small operations", "python": "Python", "sum": "sum", "data": "data",
    "logging": "logging", "limit_products": "limit: products", "limit_reading": "limit: reading",
}  # fmt: skip
MILLISECONDS = ("milliseconds", "limit_products", "limit_reading")


def training_parts(step: Callable[[], object], seconds: float) -> dict[str, float]:
    """Shares of `seconds`, which a step takes that nothing looks into: PARTS and their `sum`, which says how well they
    explain it. Attention's are its products and softmax; its linear maps are products like all others.

    Of compiled layers the products are seen; what is fused in them counts as small operations.
    """
    with profile() as profiler:
        for _ in range(STEPS):
            with record_function(STEP):
                step()
    parts = {part: own / STEPS / seconds for part, own in booked(profiler.function_events).items()}
    return parts | {"sum": sum(parts.values())}


def booked(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of PARTS: of every event inside a step its own time, without that of the events inside it."""
    parts = dict.fromkeys(PARTS, 0.0)
    for event in events:
        if part := _part(event):
            parts[part] += 1e-6 * event.self_cpu_time_total
    return parts


def _part(event: Any) -> str | None:
    """Of the outermost event around it that has one; None outside of all steps."""
    part = "python" if event.name == STEP else "small"
    while event is not None and event.name != STEP:
        part = next((part for start, part in LABELS.items() if event.name.startswith(start)), part)
        event = event.cpu_parent
    return None if event is None else part


def with_extra(
    parts: Mapping[str, float], loader_ms: float, overheads: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """`parts` and what comes on top of a step: reading data; Lightning and MLflow, one step in LOG_EVERY logged."""
    step = parts["milliseconds"]
    means = {name: each["mean"] for name, each in overheads.items()}
    logging = (means[MLFLOW] + (LOG_EVERY - 1) * means[NOT_LOGGED]) / LOG_EVERY
    return {**parts, "data": loader_ms / step, "logging": logging / step}


def parts_table(rows: Sequence[Mapping[str, Any]], caption: str) -> "Table":
    """Of the rows of `bench_train` that have `parts`; the time of a step in brackets where others used the machine."""
    from rich.table import Table

    table = Table(title="Where the time of a step of ours goes", caption=caption)
    for heading in ("V", "n", "mode", *HEADINGS.values()):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for row in rows:
        parts, mode = row["parts"], "compiled" if row["compiled"] else "eager"
        shown = [_shown(key, parts.get(key)) for key in HEADINGS]
        shown[0] = f"({shown[0]})" if parts.get("busy") else shown[0]
        table.add_row(str(row["vocab_size"]), str(row["n_future"]), mode, *shown)
    return table


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if key in MILLISECONDS else f"{value:.1%}" if key in EXTRA else f"{value:.0%}"
