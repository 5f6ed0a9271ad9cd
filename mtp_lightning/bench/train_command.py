"""`mtp bench train`: training steps of this platform against naive code and its peers, interleaved in one run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mtp_lightning.bench.harness import (
    IdleGate,
    check_counts,
    check_patience,
    describe_machine,
    judged_by_cpu,
    not_looked_at,
    pin_threads,
    shown_progress,
)
from mtp_lightning.bench.loader import loader_cost, seconds_a_batch
from mtp_lightning.bench.overhead import step_overheads
from mtp_lightning.bench.train_contenders import Workload, arms, check_contenders, missing_packages, without_rows
from mtp_lightning.bench.train_measure import Row, bench_train
from mtp_lightning.bench.train_parts import parts_table, with_extra
from mtp_lightning.bench.train_report import train_table
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_json
from mtp_lightning.machine import keep_freed_memory
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.training.recompute import as_recompute


def train_command(
    n_future: list[int] | None = None,
    vocab_size: list[int] | None = None,
    contenders: list[str] | None = None,
    compile: bool = False,
    recompute: list[str] | None = None,
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
    patience: float = 600.0,
    keep_memory: bool = True,
    json: str | None = None,
) -> None:
    """Training throughput and memory against Hugging Face, litgpt, naive code and the paper's loop, as ratios.

    Args:
        n_future: Numbers of heads; by default those of 1, 2, 4 and 8 that leave the trunk a layer.
        vocab_size: Vocabularies, measured one after the other; 4096 by default.
        contenders: Some of ours, naive, paper, huggingface, litgpt; all by default.
        compile: Measure each as it is and under torch.compile.
        recompute: Values of model.recompute with which ours is measured too: layers, attention, heads, every=2.
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
        overhead: Measure what Lightning, logging and reading the data add to a step, at the first vocabulary.
        patience: Seconds that several threads wait for a quiet machine, in all.
        keep_memory: Have the C library keep freed memory, as `mtp fit` does, for all contenders alike.
        json: File to write the rows to as well.
    """
    for text in recompute or ():
        as_recompute(text)
    counts = n_future or [n for n in (1, 2, 4, 8) if n < n_layers]
    _check(counts, n_layers, dtype, {"threads": threads, "rounds": rounds, "context": context, "batch": batch})
    check_patience(patience)
    check_json(json)
    named, sizes = check_contenders(contenders or None), vocab_size or [4096]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in sizes:
        check_counts({"vocab_size": size})
    backbone = BackboneConfig(vocab_size=sizes[0], dim=dim, n_layers=n_layers, n_heads=n_heads, ffn_dim=ffn_dim)
    workload = Workload(backbone, context, batch, dtype == "bf16", device)

    from rich.console import Console

    console, messages = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to wrap at
    machine = describe_machine(torch.device(device), threads)
    left_out = missing_packages(named) | without_rows(named, counts)
    if len(left_out) == len(set(named)):
        reasons = "; ".join(f"{name}: {how}" for name, how in left_out.items())
        raise InputError(f"contenders: there is nothing to measure. {reasons}")
    messages.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    for name, how in left_out.items():
        messages.print(f"{name} is left out: {how}", highlight=False, markup=False)
    pin_threads(threads)
    keeps = keep_memory and keep_freed_memory()
    by_cpu = judged_by_cpu(device, threads)
    rows: list[Row] = []
    overheads: dict[str, dict[str, Any]] = {}
    loader: dict[str, Any] = {}
    gate = IdleGate(0.0 if by_cpu else patience)
    judged_by = "CPU time" if by_cpu else "wall clock"
    measured = f"{', '.join(f'{k} {v}' for k, v in machine.items())}; medians of {rounds} rounds by {judged_by}"
    measured += "; freed memory kept" if keeps else ""
    for size in sizes:
        here = [name for name in named if name not in left_out]
        wanted = arms(here, counts, (False, True) if compile else (False,), recompute or ())
        at = replace(workload, backbone=replace(backbone, vocab_size=size))
        with shown_progress(messages) as progress:

            def say(text: str, size: int = size, progress: Callable[[str], None] = progress) -> None:
                progress(f"V = {size}: {text}")

            gate.progress = say
            own = bench_train(at, wanted, threads, rounds, memory, gate, say)
        title = f"Training steps: V = {size}, d = {dim}, L = {n_layers}, {batch} x {context} tokens, {dtype}"
        console.print(train_table(own, title, f"{measured}; {gate.summary()}"))
        rows += own
    most = max(counts)
    if overhead:
        wait = gate if device == "cpu" else not_looked_at
        with shown_progress(messages) as progress:
            gate.progress = progress
            overheads = step_overheads(workload, most, rounds, by_cpu, wait, progress)
            progress("reading windows")
            first, busy = [row for row in rows if row["vocab_size"] == sizes[0]], wait()
            loader = loader_cost(seconds_a_batch(workload, most, by_cpu), workload, first) | {"busy": busy}
        for row in rows:
            if "parts" in row:
                row["parts"] = with_extra(row["parts"], loader["ms"], overheads)
    if looked_into := [row for row in rows if "parts" in row]:
        caption = f"shares of the step, data and logging, of n = {most} and V = {sizes[0]}, on top of it; limits "
        caption += "in ms, in the same run; in brackets: others used the machine"
        console.print(parts_table(looked_into, caption))
    for name, each in overheads.items():
        says = f"{each['median']:+.2f} ms a step above the bare loop, {each['mean']:+.2f} on average"
        busy_rounds = f", {each['busy']} of {rounds} rounds on a busy machine" if each["busy"] else ""
        console.print(f"{name}: {says if each['steady'] else f'({says})'}{busy_rounds}", highlight=False)
    if loader:
        share = f", {loader['share_of_step']:.2%} of the quickest step of ours" if "share_of_step" in loader else ""
        says = f"{loader['ms']:.2f} ms a step{share}"
        console.print(f"reading windows: {f'({says}), on a busy machine' if loader['busy'] else says}", highlight=False)
    if json:
        content = {
            "machine": machine, "backbone": asdict(backbone) | {"vocab_size": sizes}, "context": context,
            "batch": batch, "dtype": dtype, "judged_by": judged_by, "rounds": rounds, "freed_memory_kept": keeps,
            "busy_steps": gate.busy_steps, "rows": rows, "overhead_ms": overheads, "loader": loader,
        }  # fmt: skip
        write_json(Path(json), content)


def _check(n_future: Sequence[int], n_layers: int, dtype: str, counts: dict[str, int]) -> None:
    """
    Raises:
        InputError: a flag that cannot be.
    """
    if dtype not in ("bf16", "fp32"):
        raise InputError(f"dtype is '{dtype}': it has to be bf16 or fp32")
    check_counts(counts)
    if n_layers < 2:
        raise InputError(f"n_layers is {n_layers}: it has to be at least 2, one for the head and one for the trunk")
    for n in n_future:
        if not 0 < n < n_layers:
            raise InputError(f"n_future is {n} and n_layers is {n_layers}: the heads have to leave the trunk a layer")
