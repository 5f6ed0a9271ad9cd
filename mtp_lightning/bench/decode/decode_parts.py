"""Where the time of a decoding step goes, beside what this machine could do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function

from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.decoding.choosing import Chooser, Verdict
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.session import Session

if TYPE_CHECKING:
    from rich.table import Table

PARTS = ("maps", "attention", "small", "sampling", "python")
HEADINGS = {
    "milliseconds": "ms a step", "maps": "linear maps", "attention": "attention", "small": "small operations",
    "sampling": "sampling", "python": "Python", "reading": "limit: reading", "products": "limit: products",
}  # fmt: skip
MAPS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise", "aten::mkldnn_linear")
CHOOSING = "choosing"
STEPS = 32
"""That are looked at."""


class _Recorded(Chooser):
    """Greedy choice, whose time the profiler sees."""

    def draft(self, *arguments: Any) -> Tensor:
        with record_function(CHOOSING):
            return super().draft(*arguments)

    def verify(self, *arguments: Any) -> Verdict:
        with record_function(CHOOSING):
            return super().verify(*arguments)


def decoding_parts(
    engine: Engine, heads_used: int, prompts: Sequence[Tensor], clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of a step without the profiler; `PARTS`' shares of it, as the profiler sees them; and milliseconds
    in which the machine reads the step's weights, keys and values once, and does its products at its best pace.

    What is neither an operation of torch nor of a compiled layer is Python's share.
    """
    session = _begun(engine, heads_used, prompts)
    started = clock()
    for _ in range(STEPS):
        session.step(heads_used)
    milliseconds = (clock() - started) / STEPS * 1e3
    shares = _shares(engine, heads_used, _begun(engine, heads_used, prompts), clock)
    length = len(prompts[0]) + STEPS // 2
    read = engine.forward_bytes(heads_used, len(prompts), length)
    rows = len(prompts) * engine.heads.head_offsets[heads_used - 1]
    products = 2 * rows * engine.forward_bytes(1, 1, 0) / engine.dtype.itemsize
    return {
        "milliseconds": milliseconds,
        **shares,
        "reading": read / read_bandwidth(read, clock) * 1e3,
        "products": products / product_peak(engine.device, engine.dtype, clock) * 1e3,
    }


def _begun(engine: Engine, heads_used: int, prompts: Sequence[Tensor]) -> Session:
    """A session that has made its first steps."""
    room = (STEPS + 3) * engine.most_tokens
    session = Session(engine, prompts, room, _Recorded())
    session.read_prompts(heads_used)
    for _ in range(2):
        session.step(heads_used)
    return session


def _shares(engine: Engine, heads_used: int, session: Session, clock: Callable[[], float]) -> dict[str, float]:
    compiled = (0.0, 0.0, 0.0)
    if engine.compiled:
        from mtp_lightning.decoding.compiled.layers import seconds

        seconds(count=True)
    with profile() as profiler, record_function("steps"):
        started = clock()
        for _ in range(STEPS):
            session.step(heads_used)
        total = clock() - started
    if engine.compiled:
        compiled = seconds(count=False)
    events: list[Any] = list(profiler.function_events)
    whole = next(event.cpu_time_total for event in events if event.name == "steps")
    sums = dict.fromkeys(PARTS, 0.0)
    for event in events:
        part = _part(event)
        if part:
            sums[part] += (event.cpu_time_total if part == "sampling" else event.self_cpu_time_total) / whole
    for part, own in zip(PARTS, compiled):
        sums[part] += own / total
    sums["python"] = max(1 - sum(sums.values()), 0.0)
    return sums


def _part(event: Any) -> str | None:
    """None of what is counted elsewhere."""
    if event.name == CHOOSING:
        return "sampling"
    parent = event.cpu_parent
    while parent is not None:
        if parent.name == CHOOSING:
            return None
        parent = parent.cpu_parent
    if not event.name.startswith(("aten::", "mkldnn::")):
        return None
    if "scaled_dot_product" in event.name:
        return "attention"
    return "maps" if event.name in MAPS else "small"


def product_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Floating-point operations a second of the product of two square matrices; the best of 5."""
    size = 512
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = clock()
        for _ in range(8):
            a @ b
        best = min(best, (clock() - started) / 8)
    return 2 * size**3 / best


def parts_table(rows: Sequence[dict[str, Any]], caption: str) -> "Table":
    from rich.table import Table

    table = Table(title="Where the time of a step goes", caption=caption)
    for heading in ("model", "batch", "heads used", *HEADINGS.values()):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        shown = [f"{row[key]:.0%}" if key in PARTS else f"{row[key]:.2f}" for key in HEADINGS]
        table.add_row(row["model"], str(row["batch"]), str(row["heads_used"]), *shown)
    return table
