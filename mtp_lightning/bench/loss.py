"""`mtp bench loss`: time and peak memory of the multi-head loss, ours against naive and checkpointed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtp_lightning.bench.harness import (
    IdleGate,
    check_counts,
    check_patience,
    describe_machine,
    interleaved,
    judged_by_cpu,
    not_looked_at,
    over,
    peak_memory_bytes,
    pin_threads,
    shown_progress,
)
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_json
from mtp_lightning.machine import keep_freed_memory
from mtp_lightning.objective.loss import Implementation, LossOptions, multi_token_loss

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("chunked", "checkpointed", "naive")


def bench_loss(
    n_future: Sequence[int],
    vocab_size: int,
    dim: int,
    positions: int,
    bfloat16: bool,
    threads: int,
    rounds: int,
    gate: IdleGate,
    progress: Callable[[str], None],
    report: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> list[Row]:
    """One row per (n, implementation): seconds of forward and backward, and bytes at the peak above its inputs.
    `report` gets the rows of each n as soon as they are there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pin_threads(threads)
    by_cpu = judged_by_cpu(device.type, threads)
    rows: list[Row] = []
    for n in n_future:
        shape = (n, vocab_size, dim, positions, bfloat16, device.type)
        contenders = {name: loss_step(name, *shape) for name in IMPLEMENTATIONS}
        timings = interleaved(
            contenders, rounds, device, before_step=gate if device.type == "cpu" else not_looked_at,
            progress=lambda text, n=n: progress(f"n = {n}, {text}"),  # type: ignore[misc]
        )  # fmt: skip
        del contenders
        for name in IMPLEMENTATIONS:
            progress(f"n = {n}: memory of {name}")
            peak = peak_memory_bytes(loss_step, threads, name, *shape)
            row = {"n_future": n, "implementation": name, "peak_bytes": peak} | timings[name].figures(by_cpu)
            rows.append(row | {"judged": row["cpu" if by_cpu else "median"]})
        report(ratios(rows)[-len(IMPLEMENTATIONS) :])
    return rows


def loss_step(
    implementation: Implementation, n: int, vocab_size: int, dim: int, positions: int, bfloat16: bool, device: str
) -> Callable[[], None]:
    """Inputs made and gradients allocated; returns one forward and backward over them."""
    torch.manual_seed(0)
    h = torch.randn(n, 1, positions, dim, device=device, requires_grad=True)
    weight = (torch.randn(vocab_size, dim, device=device) * dim**-0.5).requires_grad_()
    h.grad, weight.grad = torch.zeros_like(h), torch.zeros_like(weight)
    targets = torch.randint(0, vocab_size, (n, 1, positions), device=device)
    valid = torch.ones_like(targets, dtype=torch.bool)

    def step(rows: slice = slice(None)) -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            out = multi_token_loss(
                h[:, :, rows], weight, targets[:, :, rows], valid[:, :, rows], options=LossOptions(implementation)
            )
        out.total.backward()  # type: ignore[no-untyped-call]

    step(slice(0, 2))  # load every kernel, so that the measured step allocates nothing but its tensors
    return step


def ratios(rows: list[Row]) -> list[Row]:
    """Each row beside the naive one of its n, and its memory beside that of its implementation's first n."""
    naive = {row["n_future"]: row for row in rows if row["implementation"] == "naive"}
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row["implementation"], row["peak_bytes"])
        base = naive[row["n_future"]]
        row["time_over_naive"] = over(row["seconds"], base["seconds"])
        row["memory_over_naive"] = row["peak_bytes"] / base["peak_bytes"]
        row["memory_over_first_n"] = row["peak_bytes"] / first[row["implementation"]]
    return rows


def loss_command(
    n_future: list[int] | None = None,
    vocab_size: int = 32000,
    dim: int = 256,
    positions: int = 2048,
    dtype: str = "bf16",
    threads: int = 1,
    rounds: int = 5,
    patience: float = 600.0,
    json: str | None = None,
) -> None:
    """Time and peak memory of the multi-head loss, chunked against checkpointed and naive.

    Args:
        n_future: Numbers of heads to measure; 1, 2, 4 and 8 by default.
        vocab_size: V.
        dim: D.
        positions: Input positions B x T.
        dtype: bf16 (autocast) or fp32.
        threads: Threads of every measured process; one is judged by CPU time, several by the clock once idle.
        rounds: Counted rounds of the interleaved timing, at least 5 to be judged.
        patience: Seconds that several threads wait for a quiet machine, in all.
        json: File to write the rows to as well.
    """
    if dtype not in ("bf16", "fp32"):
        raise InputError(f"dtype is '{dtype}': it has to be bf16 or fp32")
    counts = n_future or [1, 2, 4, 8]
    sizes = {"vocab_size": vocab_size, "dim": dim, "positions": positions, "threads": threads, "rounds": rounds}
    check_counts({"n_future": min(counts)} | sizes)
    check_patience(patience)
    check_json(json)
    from rich.console import Console

    console, messages = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine, by_cpu = describe_machine(torch.device(device), threads), judged_by_cpu(device, threads)

    keeps = keep_freed_memory()  # as `mtp fit` does: half of naive code's time would be the system's, for its pages

    def report(rows: Sequence[Row]) -> None:
        for row in rows:
            says = f"{row['judged'] * 1e3:.0f} ms, {row['time_over_naive']:.2f} of naive's"
            messages.print(f"n = {row['n_future']}, {row['implementation']}: {says}", highlight=False)

    with shown_progress(messages) as progress:
        gate = IdleGate(0.0 if by_cpu else patience, progress)
        rows = bench_loss(counts, vocab_size, dim, positions, dtype == "bf16", threads, rounds, gate, progress, report)
    judged_by = "CPU time" if by_cpu else "wall clock"
    shape = f"V = {vocab_size}, D = {dim}, {positions} positions, {dtype}"
    caption = ", ".join(f"{k} {v}" for k, v in machine.items())
    caption += f"; medians of {rounds} rounds by {judged_by}"
    caption += f"{'; freed memory kept' if keeps else ''}; {gate.summary()}"
    console.print(loss_table(rows, f"Loss, forward and backward: {shape}", caption))
    if json:
        content = {"machine": machine, "shape": shape, "rounds": rounds, "judged_by": judged_by}
        write_json(Path(json), content | {"freed_memory_kept": keeps, "busy_steps": gate.busy_steps, "rows": rows})


def loss_table(rows: Sequence[Row], title: str, caption: str) -> "Table":
    """A ratio of times in brackets is not to be judged (few quiet rounds, or median far from best)."""
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for heading in ("n", "implementation", "cpu ms", "wall ms", "best ms", "time / naive", "peak MiB", "peak / naive"):
        table.add_column(heading, justify="left" if heading == "implementation" else "right")
    table.add_column(f"peak / n = {rows[0]['n_future']}", justify="right")
    steady = {(row["n_future"], row["implementation"]): row["steady"] for row in rows}
    for row in rows:
        ratio = f"{row['time_over_naive']:.2f}"
        table.add_row(
            str(row["n_future"]),
            row["implementation"],
            *(f"{row[key] * 1e3:.0f}" for key in ("cpu", "median", "best")),
            ratio if row["steady"] and steady[row["n_future"], "naive"] else f"({ratio})",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['memory_over_naive']:.2f}",
            f"{row['memory_over_first_n']:.2f}",
        )
    return table
