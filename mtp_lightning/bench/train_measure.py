"""The measurements of `mtp bench train`: every contender's step in turn, memory, and ratios between rows."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from mtp_lightning.bench.decode.decode_contenders import clock_for
from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.bench.harness import IdleGate, interleaved, judged_by_cpu, not_looked_at, over, peak_memory_bytes
from mtp_lightning.bench.train_contenders import Arm, Workload, flops_of, make_step, prepared_step
from mtp_lightning.bench.train_parts import training_parts

Row = dict[str, Any]
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
    """One row per arm: tokens per second, share of the matrix-product peak, peak memory.

    Of ours on a CPU also `parts`: where the time goes, and milliseconds in which this machine does the products at its
    peak, and reads weights, gradient and moments once.
    """
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
    wait = gate if workload.device == "cpu" else not_looked_at
    timings = interleaved(steps, rounds, device, warmup=2, before_step=wait, progress=progress)
    peak = product_flops / min(timings["matrix products"].judged(by_cpu))
    parts = {}
    for arm in rows_wanted if workload.device == "cpu" else ():
        if arm.contender == "ours" and arm.recompute == "none":
            progress(f"{label(arm)}: where the time goes")
            busy = wait()
            parts[arm] = training_parts(steps[label(arm)], median(timings[label(arm)].wall)) | {"busy": busy}
    del steps
    rows = []
    for arm in rows_wanted:
        figures = timings[label(arm)].figures(by_cpu)
        seconds = figures["seconds"]
        row: Row = arm._asdict() | {
            "vocab_size": workload.backbone.vocab_size,
            "tokens_per_second": workload.tokens / median(seconds),
            "best_tokens_per_second": workload.tokens / min(seconds),
            "seconds": seconds,
            "steady": figures["steady"],
            "busy": figures["busy"],
            "flops_per_token": flops_of(arm, workload),
            "peak_flops_per_second": peak,
        }
        row["share_of_peak"] = row["flops_per_token"] * row["tokens_per_second"] / peak
        if arm in parts:
            read = state_bytes[arm] * 4 // 3  # and the gradient
            row["parts"] = parts[arm] | {
                "milliseconds": 1e3 * median(seconds),
                "limit_products": 1e3 * workload.tokens * row["flops_per_token"] / peak,
                "limit_reading": 1e3 * read / read_bandwidth(read, clock_for(device, threads)),
            }
        if memory:
            progress(f"{label(arm)}: memory")
            row["peak_bytes"] = state_bytes[arm] + peak_memory_bytes(prepared_step, threads, arm, workload)
        rows.append(row)
    return ratios(rows)


def label(arm: Arm) -> str:
    recomputed = "" if arm.recompute == "none" else f", recompute {arm.recompute}"
    return f"{arm.contender} n = {arm.n_future}{', compiled' if arm.compiled else ''}{recomputed}"


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
    """Each row beside those of the same mode and vocabulary: Hugging Face, naive of its n, its own n = 1; and, where
    layers are recomputed, itself without: `time_over_kept`, `memory_over_kept`. Ratios of rates are medians of the
    rounds' own (`harness.over`).

    `tokens_over_n1` is tokens/s over n = 1's, `flops_n1_over` what the FLOPs alone would make of it (below 1, as
    the unembedding is run n times), `efficiency` their quotient.
    """

    def find(row: Row, contender: str, n: int) -> Row | None:
        same = [r for r in rows if (r["compiled"], r["vocab_size"]) == (row["compiled"], row["vocab_size"])]
        plain = (r for r in same if r["recompute"] == "none")
        return next((r for r in plain if (r["contender"], r["n_future"]) == (contender, n)), None)

    for row in rows:
        bases = {
            "over_huggingface": find(row, "huggingface", 1),
            "over_naive": find(row, "naive", row["n_future"]),
            "tokens_over_n1": find(row, row["contender"], 1),
        }
        for key, base in bases.items():
            row[key] = over(base["seconds"], row["seconds"]) if base else None
        first = bases["tokens_over_n1"]
        row["flops_n1_over"] = first["flops_per_token"] / row["flops_per_token"] if first else None
        row["efficiency"] = row["tokens_over_n1"] / row["flops_n1_over"] if first else None
        for key, base in (("memory_over_naive", bases["over_naive"]), ("memory_over_naive_n1", find(row, "naive", 1))):
            row[key] = row["peak_bytes"] / base["peak_bytes"] if base and "peak_bytes" in row else None
        if row["recompute"] != "none" and (kept := find(row, row["contender"], row["n_future"])):
            row["time_over_kept"] = over(row["seconds"], kept["seconds"])
            row["memory_over_kept"] = row["peak_bytes"] / kept["peak_bytes"] if "peak_bytes" in row else None
    return rows
