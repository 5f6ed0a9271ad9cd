"""`mtp bench train`: training steps of this platform against naive code and its peers, interleaved in one run."""

import json as json_module
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mtp_lightning.bench.goals import GOAL_CONTENDERS, judge
from mtp_lightning.bench.harness import (
    STEADY,
    IdleGate,
    Timing,
    describe_machine,
    interleaved,
    peak_memory_bytes,
    pin_threads,
)
from mtp_lightning.bench.overhead import step_overheads
from mtp_lightning.bench.peers import (
    Arm,
    Workload,
    arms,
    check_contenders,
    flops_of,
    make_step,
    missing_packages,
    prepared_step,
)
from mtp_lightning.bench.tables import goals_table, train_table
from mtp_lightning.errors import InputError
from mtp_lightning.machine import keep_freed_memory
from mtp_lightning.model.config import BackboneConfig

Row = dict[str, Any]
LEAST_ROUNDS = 5
"""With fewer, a row is not to be judged."""
PRODUCTS = 8
"""Matrix products in one timing of the peak."""


def bench_train(
    workload: Workload,
    rows_wanted: Sequence[Arm],
    threads: int,
    rounds: int,
    memory: bool,
    gate: IdleGate,
    progress: Callable[[str], None],
) -> list[Row]:
    """One row per arm: tokens per second, share of the matrix-product peak, peak memory."""
    device = torch.device(workload.device)
    by_cpu = judged_by_cpu(workload.device, threads)
    steps: dict[str, Callable[[], object]] = {}
    state_bytes: dict[Arm, int] = {}
    for arm in rows_wanted:
        learner, steps[label(arm)] = make_step(arm, workload)
        # weights and AdamW's two moments, which live on between steps
        state_bytes[arm] = 3 * sum(p.numel() * p.element_size() for p in learner.model.parameters())
    assert len(set(state_bytes.values())) <= 1, f"contenders of unequal size: {state_bytes}"
    products, product_flops = matrix_products(workload)
    steps["matrix products"] = products
    wait = gate if not by_cpu and workload.device == "cpu" else lambda: None
    timings = interleaved(steps, rounds, device, warmup=2, before_step=wait, progress=progress)
    peak = product_flops / _seconds(timings["matrix products"], by_cpu)[1]
    del steps
    rows = []
    for arm in rows_wanted:
        median, best = _seconds(timings[label(arm)], by_cpu)
        row: Row = arm._asdict() | {
            "vocab_size": workload.backbone.vocab_size,
            "tokens_per_second": workload.tokens / median,
            "best_tokens_per_second": workload.tokens / best,
            "steady": rounds >= LEAST_ROUNDS and best / median >= STEADY,
            "flops_per_token": flops_of(arm, workload),
            "peak_flops_per_second": peak,
        }
        row["share_of_peak"] = row["flops_per_token"] * row["tokens_per_second"] / peak
        if memory:
            progress(f"{label(arm)}: memory")
            row["peak_bytes"] = state_bytes[arm] + peak_memory_bytes(prepared_step, threads, arm, workload)
        rows.append(row)
    return ratios(rows)


def label(arm: Arm) -> str:
    return f"{arm.contender} n = {arm.n_future}{', compiled' if arm.compiled else ''}"


def judged_by_cpu(device: str, threads: int) -> bool:
    """One thread's processor time is what it would take undisturbed; several threads' waiting for each other is not
    in it, so those are judged by the clock on a quiet machine."""
    return device == "cpu" and threads == 1


def _seconds(timing: Timing, by_cpu: bool) -> tuple[float, float]:
    """(median, best)."""
    return (timing.cpu, timing.cpu_best) if by_cpu else (timing.median, timing.best)


def matrix_products(workload: Workload) -> tuple[Callable[[], object], int]:
    """What the machine reaches on the model's own shapes, (B T, D) x (D, ffn) in the step's dtype; and its FLOPs."""
    dtype = torch.bfloat16 if workload.bfloat16 else torch.float32
    backbone = workload.backbone
    a = torch.randn(workload.tokens, backbone.dim, device=workload.device, dtype=dtype)
    b = torch.randn(backbone.ffn, backbone.dim, device=workload.device, dtype=dtype)
    out = a.new_empty(len(a), len(b))

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b.t(), out=out)

    return run, PRODUCTS * 2 * out.numel() * backbone.dim


def ratios(rows: list[Row]) -> list[Row]:
    """Each row beside those of the same mode and vocabulary: Hugging Face, naive of its n, its own n = 1.

    `tokens_over_n1` is tokens/s over n = 1's, `flops_n1_over` what the FLOPs alone would make of it (below 1, as
    the unembedding is run n times), `efficiency` their quotient.
    """

    def find(row: Row, contender: str, n: int) -> Row | None:
        same = [r for r in rows if (r["compiled"], r["vocab_size"]) == (row["compiled"], row["vocab_size"])]
        return next((r for r in same if (r["contender"], r["n_future"]) == (contender, n)), None)

    for row in rows:
        bases = {
            "over_huggingface": find(row, "huggingface", 1),
            "over_naive": find(row, "naive", row["n_future"]),
            "tokens_over_n1": find(row, row["contender"], 1),
        }
        for key, base in bases.items():
            row[key] = row["tokens_per_second"] / base["tokens_per_second"] if base else None
        first = bases["tokens_over_n1"]
        row["flops_n1_over"] = first["flops_per_token"] / row["flops_per_token"] if first else None
        row["efficiency"] = row["tokens_over_n1"] / row["flops_n1_over"] if first else None
        for key, base in (("memory_over_naive", bases["over_naive"]), ("memory_over_naive_n1", find(row, "naive", 1))):
            row[key] = row["peak_bytes"] / base["peak_bytes"] if base and "peak_bytes" in row else None
    return rows


def train_command(
    n_future: list[int] | None = None,
    vocab_size: list[int] | None = None,
    contenders: list[str] | None = None,
    compile: bool = False,
    dim: int = 256,
    n_layers: int = 6,
    n_heads: int = 4,
    ffn_dim: int = 768,
    context: int = 512,
    batch: int = 8,
    dtype: str = "bf16",
    threads: int = 1,
    rounds: int = 5,
    memory: bool = True,
    overhead: bool = True,
    goals: bool = False,
    patience: float = 600.0,
    keep_memory: bool = True,
    json: str | None = None,
) -> None:
    """Training throughput and memory against Hugging Face, litgpt, naive code and the paper's loop, as ratios.

    Args:
        n_future: Numbers of heads; by default those of 1, 2, 4 and 8 that leave the trunk a layer (goals: 1 and 4).
        vocab_size: Vocabularies, measured one after the other; 4096 by default (goals: 256, 4096 and 32000).
        contenders: Some of ours, naive, paper, huggingface, litgpt; all by default (goals: those the goals name).
        compile: Measure each as it is and under torch.compile; without it, goals measure compiled code alone.
        dim: Width of the model.
        n_layers: Layers, trunk and heads together.
        n_heads: Attention heads.
        ffn_dim: Hidden width of the SwiGLUs.
        context: Positions of a row.
        batch: Rows of a step.
        dtype: bf16 (autocast) or fp32.
        threads: Threads of every measured process; one is judged by CPU time, several by the clock once idle.
        rounds: Counted rounds, at least 5 to be judged.
        memory: Measure peak memory, every contender in a process of its own.
        overhead: Measure what Lightning and logging add to a step.
        goals: Print the project's performance goals, each reached or not; the exit status stays 0.
        patience: Seconds to wait for a quiet machine, in all.
        keep_memory: Have the C library keep freed memory, as `mtp fit` does, for all contenders alike.
        json: File to write the rows to as well.
    """
    counts = n_future or [n for n in ((1, 4) if goals else (1, 2, 4, 8)) if n < n_layers]
    _check(counts, n_layers, dtype, {"threads": threads, "rounds": rounds, "context": context, "batch": batch})
    named = check_contenders(contenders)
    sizes = vocab_size or ([256, 4096, 32000] if goals else [4096])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = BackboneConfig(vocab_size=sizes[0], dim=dim, n_layers=n_layers, n_heads=n_heads, ffn_dim=ffn_dim)
    workload = Workload(backbone, context, batch, dtype == "bf16", device)

    from rich.console import Console

    console, messages = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 140  # a file has no edge to wrap at
    machine = describe_machine(torch.device(device), threads)
    messages.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    missing = missing_packages(named)
    for name, how in missing.items():
        messages.print(f"{name} is left out: {how}", highlight=False, markup=False)
    named = [name for name in named if name not in missing]
    pin_threads(threads)
    keeps = keep_memory and keep_freed_memory()
    modes = (False, True) if compile else (goals,)
    rows: list[Row] = []
    with messages.status("") as status:
        gate = IdleGate(patience, status.update)
        for size in sizes:
            here = named if contenders or not goals else [n for n in GOAL_CONTENDERS.get(size, named) if n in named]
            at = replace(workload, backbone=replace(backbone, vocab_size=size))

            def say(text: str, size: int = size) -> None:
                status.update(f"V = {size}: {text}")

            rows += bench_train(at, arms(here, counts, modes), threads, rounds, memory, gate, say)
        by_cpu, overheads = judged_by_cpu(device, threads), {}
        if overhead:
            at = replace(workload, backbone=replace(backbone, vocab_size=4096 if goals else sizes[0]))
            overheads = step_overheads(at, max(counts), rounds, by_cpu, status.update)
    judged_by = "CPU time" if by_cpu else "wall clock"
    caption = f"{', '.join(f'{k} {v}' for k, v in machine.items())}; medians of {rounds} rounds by {judged_by}"
    if keeps:
        caption += "; freed memory kept"
    if gate.passed_busy:
        caption += f"; {gate.passed_busy} steps ran on a busy machine"
    shape = f"d = {dim}, L = {n_layers}, {batch} x {context} tokens, {dtype}"
    for size in sizes:
        title = f"Training steps: V = {size}, {shape}"
        console.print(train_table([row for row in rows if row["vocab_size"] == size], title, caption))
    for name, milliseconds in overheads.items():
        console.print(f"{name}: {milliseconds:+.2f} ms a step above the bare loop", highlight=False)
    verdicts = judge(rows, overheads) if goals else []
    if goals:
        console.print(goals_table(verdicts, caption))
    if json:
        content = {
            "machine": machine,
            "backbone": asdict(backbone) | {"vocab_size": sizes},
            "context": context,
            "batch": batch,
            "dtype": dtype,
            "judged_by": judged_by,
            "rounds": rounds,
            "freed_memory_kept": keeps,
            "busy_steps": gate.passed_busy,
            "rows": rows,
            "overhead_ms": overheads,
            "goals": [goal._asdict() for goal in verdicts],
        }
        Path(json).write_text(json_module.dumps(content, indent=2) + "\n")


def _check(n_future: Sequence[int], n_layers: int, dtype: str, counts: dict[str, int]) -> None:
    """
    Raises:
        InputError: a flag that cannot be.
    """
    if dtype not in ("bf16", "fp32"):
        raise InputError(f"dtype is '{dtype}': it has to be bf16 or fp32")
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it has to be at least 1")
    for n in n_future:
        if not 0 < n < n_layers:
            raise InputError(f"n_future is {n} and n_layers is {n_layers}: the heads have to leave the trunk a layer")
