"""Where the time of a decoding step goes, beside what this machine could do.

Every part is timed by the clock that times the step, on a CPU alone: on a GPU the host's time says little of a step.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.decoding.choosing import Chooser, Verdict
from mtp_lightning.decoding.compiled import layers
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.linear import Linear
from mtp_lightning.decoding.session import Session
from mtp_lightning.model.mtp import MTPModel

if TYPE_CHECKING:
    from rich.table import Table

Clock = Callable[[], float]
PARTS = ("maps", "attention", "small", "sampling", "python")
HEADINGS = {
    "milliseconds": "ms a step", "maps": "linear maps", "attention": "attention", "small": "small operations",
    "sampling": "sampling", "python": "Python", "sum": "sum", "reading": "limit: reading",
    "products": "limit: products",
}  # fmt: skip
SHARES = (*PARTS, "sum")
MAPS = {"linear": 0, "mm": 0, "matmul": 0, "bmm": 0, "_linear_pointwise": 0, "addmm": 1, "baddbmm": 1}
"""Operation -> which of its arguments are the rows."""
STEPS, TIMES = 32, 3
"""Steps that are looked at; and how often, of which the quickest counts."""


def decoding_parts(
    model: MTPModel,
    heads_used: int,
    dtype: torch.dtype,
    compiled: bool,
    prompts: Sequence[Tensor],
    clock: Clock,
) -> dict[str, float]:
    """Milliseconds of a step that nothing looks into; `PARTS`' shares of it, each measured for itself, so that their
    `sum` says how well they explain the step; and milliseconds in which the machine reads the step's weights, keys and
    values once, and does the products of its linear maps at its best pace.

    Compiled layers time their own parts. The rest of a step is one in which these do nothing: less its operations of
    torch and what is spent on choosing tokens, it is Python's share.
    """
    engine = Engine(model, heads_used, dtype, compiled=compiled)

    def begin(chooser: Chooser) -> Callable[[], object]:
        session = _begun(engine, heads_used, prompts, chooser)
        return lambda: session.step(heads_used)

    whole = min(_seconds(begin(Chooser()), clock) for _ in range(TIMES))
    with _idle_layers(engine.compiled):
        parts = step_parts(begin, clock)
    if engine.compiled:
        for part, own in _least(lambda: _layer_parts(begin(Chooser()), clock)).items():
            parts[part] += own
    read = engine.forward_bytes(heads_used, len(prompts), len(prompts[0]) + STEPS // 2)
    peak = product_peak(engine.device, engine.dtype, clock)
    shares = {part: own / whole for part, own in parts.items()}
    return {
        "milliseconds": 1e3 * whole,
        **shares,
        "sum": sum(shares.values()),
        "reading": 1e3 * read / read_bandwidth(read, clock),
        "products": 1e3 * step_products(model, heads_used, prompts) / peak,
    }


def step_parts(begin: Callable[[Chooser], Callable[[], object]], clock: Clock) -> dict[str, float]:
    """Seconds of each of PARTS in a step of what `begin` begins, Python's being what is left of the whole.

    To time an operation costs something, of which a share lies inside its own time: that of an operation on nothing.
    """
    operations, timed, x = _Operations(clock), _Timed(clock), torch.zeros(8)

    def plainly() -> dict[str, float]:
        step, timed.seconds = begin(timed), 0.0
        return {"whole": _seconds(step, clock), "sampling": timed.seconds / STEPS}

    found, seen = _least(plainly), _least(lambda: operations.of(begin(timed)))
    nothing = _least(lambda: {"whole": _seconds(lambda: x.add_(1), clock)})
    seen_nothing = _least(lambda: operations.of(lambda: x.add_(1)))
    inside = (seen_nothing["small"] - nothing["whole"]) / (seen_nothing["whole"] - nothing["whole"])
    cost = inside * (seen["whole"] - found["whole"]) / seen["count"]
    parts = {part: seen[part] - cost * seen[f"{part}, count"] for part in PARTS[:3]}
    parts["sampling"] = found["sampling"]
    return parts | {"python": found["whole"] - sum(parts.values())}


def _layer_parts(step: Callable[[], object], clock: Clock) -> dict[str, float]:
    """Seconds of the parts of compiled layers in a step, as they say."""
    layers.seconds(count=True)
    _seconds(step, clock)
    return {part: own / STEPS for part, own in zip(PARTS, layers.seconds(count=False))}


def _least(measured: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Of each part, the least of TIMES: what other processes do only ever adds."""
    found = [measured() for _ in range(TIMES)]
    return {part: min(each[part] for each in found) for part in found[0]}


def step_products(model: MTPModel, heads_used: int, prompts: Sequence[Tensor]) -> float:
    """Floating-point operations of the linear maps of a step, drafts included: 2 inputs outputs for every row."""
    session = _begun(Engine(model, heads_used, torch.float32), heads_used, prompts, Chooser())
    return _Operations(lambda: 0.0).of(lambda: session.step(heads_used))["products"]


def _begun(engine: Engine, heads_used: int, prompts: Sequence[Tensor], chooser: Chooser) -> Session:
    """A session that has made its first steps."""
    session = Session(engine, prompts, (STEPS + 3) * engine.most_tokens, chooser)
    session.read_prompts(heads_used)
    for _ in range(2):
        session.step(heads_used)
    return session


def _seconds(step: Callable[[], object], clock: Clock) -> float:
    """Of one of STEPS steps."""
    started = clock()
    for _ in range(STEPS):
        step()
    return (clock() - started) / STEPS


@contextmanager
def _idle_layers(compiled: bool) -> Iterator[None]:
    """Compiled layers are called, and do nothing: texts are then any."""
    names: dict[str, Any] = vars(layers)
    real = names["kernels"]
    if compiled:
        nothing = dict.fromkeys(("mtp_linear", "mtp_layer", "mtp_layers"), real().mtp_panel)
        names["kernels"] = lambda: SimpleNamespace(**nothing)
    try:
        yield
    finally:
        names["kernels"] = real


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times the operations of torch by their part, but those that choose tokens; counts the products of maps."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.clock = clock
        self.sums: Counter[str] = Counter()

    def of(self, step: Callable[[], object]) -> dict[str, float]:
        """Of one of STEPS: seconds of the whole and of each part, numbers of operations, and `products`."""
        self.sums = Counter(dict.fromkeys([*PARTS[:3], *(f"{part}, count" for part in PARTS[:3]), "products"], 0))
        with self:
            whole = _seconds(step, self.clock)
        return {"whole": whole} | {key: value / STEPS for key, value in self.sums.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = self.clock()
        out = func(*args, **(kwargs or {}))
        seconds = self.clock() - started
        name = func.overloadpacket.__name__
        self.sums["count"] += 1
        if not _Timed.choosing:
            part = "attention" if "scaled_dot_product" in name else "maps" if name in MAPS else "small"
            self.sums[part] += seconds  # type: ignore[assignment]
            self.sums[f"{part}, count"] += 1
            if part == "maps":
                self.sums["products"] += 2 * out.numel() * args[MAPS[name]].shape[-1]
        return out


class _Timed(Chooser):
    """Greedy choice, which says how long it took."""

    choosing = False

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds = clock, 0.0

    def draft(self, *arguments: Any) -> Tensor:
        with self._timed():
            return super().draft(*arguments)

    def verify(self, *arguments: Any) -> Verdict:
        with self._timed():
            return super().verify(*arguments)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        _Timed.choosing, started = True, self.clock()
        yield
        self.seconds += self.clock() - started
        _Timed.choosing = False


def product_peak(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Floating-point operations a second of the product of two square matrices; the best of 5, and of
    torch's product and a map that is laid out for few rows."""
    size = 512
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
    best = float("inf")
    laid_out = Linear(b, dtype)
    with torch.inference_mode():
        for product in (lambda: a @ b, lambda: laid_out(a)):
            for _ in range(5):
                started = clock()
                for _ in range(8):
                    product()
                best = min(best, (clock() - started) / 8)
    return 2 * size**3 / best


def parts_table(rows: Sequence[dict[str, Any]], caption: str) -> "Table":
    from rich.table import Table

    table = Table(title="Where the time of a step goes", caption=caption)
    for heading in ("model", "batch", "heads used", *HEADINGS.values()):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        shown = [f"{row[key]:.0%}" if key in SHARES else f"{row[key]:.2f}" for key in HEADINGS]
        shown[0] = f"({shown[0]})" if row.get("busy") else shown[0]
        table.add_row(row["model"], str(row["batch"]), str(row["heads_used"]), *shown)
    return table
