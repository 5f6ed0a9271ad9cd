"""`mtp bench loss`: time and peak memory of the multi-head loss, ours against naive and checkpointed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mtp_lightning.bench.harness import describe_machine, interleaved, peak_memory_bytes, pin_threads, shown_progress
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_json
from mtp_lightning.objective.loss import Implementation, LossOptions, multi_token_loss

IMPLEMENTATIONS: tuple[Implementation, ...] = ("chunked", "checkpointed", "naive")


def bench_loss(
    n_future: Sequence[int],
    vocab_size: int,
    dim: int,
    positions: int,
    bfloat16: bool,
    threads: int,
    rounds: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row per (n, implementation): seconds of forward and backward, and bytes at the peak above its inputs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pin_threads(threads)
    rows: list[dict[str, Any]] = []
    for n in n_future:
        shape = (n, vocab_size, dim, positions, bfloat16, device.type)
        progress(f"n = {n}: time")
        contenders = {name: loss_step(name, *shape) for name in IMPLEMENTATIONS}
        timings = interleaved(contenders, rounds, device)
        del contenders
        for name in IMPLEMENTATIONS:
            progress(f"n = {n}: memory of {name}")
            peak = peak_memory_bytes(loss_step, threads, name, *shape)
            rows.append({"n_future": n, "implementation": name, "peak_bytes": peak} | asdict(timings[name]))
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


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row beside the naive one of its n, and its memory beside that of its implementation's first n."""
    naive = {row["n_future"]: row for row in rows if row["implementation"] == "naive"}
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row["implementation"], row["peak_bytes"])
        base = naive[row["n_future"]]
        row["time_over_naive"] = row["cpu"] / base["cpu"]
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
    json: str | None = None,
) -> None:
    """Time and peak memory of the multi-head loss, chunked against checkpointed and naive.

    Args:
        n_future: Numbers of heads to measure; 1, 2, 4 and 8 by default.
        vocab_size: V.
        dim: D.
        positions: Input positions B x T.
        dtype: bf16 (autocast) or fp32.
        threads: Threads of every measured process.
        rounds: Counted rounds of the interleaved timing.
        json: File to write the rows to as well.
    """
    if dtype not in ("bf16", "fp32"):
        raise InputError(f"dtype is '{dtype}': it has to be bf16 or fp32")
    check_json(json)
    from rich.console import Console
    from rich.table import Table

    console, messages = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # a file has no edge to wrap at
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), threads)
    counts = n_future or [1, 2, 4, 8]
    with shown_progress(messages) as progress:
        rows = ratios(bench_loss(counts, vocab_size, dim, positions, dtype == "bf16", threads, rounds, progress))
    shape = f"V = {vocab_size}, D = {dim}, {positions} positions, {dtype}"
    table = Table(
        title=f"Loss, forward and backward: {shape}", caption=", ".join(f"{k} {v}" for k, v in machine.items())
    )
    for heading in ("n", "implementation", "cpu ms", "wall ms", "best ms", "time / naive", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "implementation" else "right")
    table.add_column("peak / naive", justify="right")
    table.add_column(f"peak / n = {counts[0]}", justify="right")
    for row in rows:
        table.add_row(
            str(row["n_future"]),
            row["implementation"],
            *(f"{row[key] * 1e3:.0f}" for key in ("cpu", "median", "best")),
            f"{row['time_over_naive']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            f"{row['memory_over_naive']:.2f}",
            f"{row['memory_over_first_n']:.2f}",
        )
    console.print(table)
    if json:
        write_json(Path(json), {"machine": machine, "shape": shape, "rounds": rounds, "rows": rows})
