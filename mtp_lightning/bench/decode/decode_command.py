"""`mtp bench decode`: self-speculative decoding against plain decoding and against Hugging Face, interleaved."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtp_lightning.bench.decode.decode_contenders import Clock, Decode, clock_for
from mtp_lightning.bench.decode.decode_measure import Row, bench_decode
from mtp_lightning.bench.decode.decode_models import measured_models, random_model
from mtp_lightning.bench.decode.decode_parts import decoding_parts, parts_table
from mtp_lightning.bench.decode.decode_report import USE_MTP, decode_table, draw, heads_table, markdown
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
from mtp_lightning.decoding.compiled.compiler import LONG, wanted
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, check_out, write_json
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 220
"""Characters of a line where there is no terminal: room for the table of all contenders."""
NOT_ON_A_GPU = "where the time goes is not shown on a GPU: the host's time says little of a step there"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def decode_command(
    ckpts: list[str] | None = None,
    heads_used: list[int] | None = None,
    batch: list[int] | None = None,
    prompt_tokens: int = 256,
    new_tokens: int = 256,
    rounds: int = 5,
    dtype: Literal["fp32", "bf16"] = "fp32",
    kind: Literal["python_stdlib", "stories", "text", "json", "parquet", "shards"] = "python_stdlib",
    path: str | None = None,
    directory: str = "runs/data",
    n_future: int = 4,
    dim: int = 256,
    n_layers: int = 12,
    n_heads: int = 4,
    ffn_dim: int = 768,
    vocab_size: int = 256,
    threads: int = 1,
    patience: float = 300.0,
    compile: bool | Literal["auto"] = "auto",
    peer: Literal["transformers", "transformers_mtp", "llama_cpp"] = "transformers",
    out: str | None = None,
    json: str | None = None,
) -> None:
    """Self-speculative decoding against plain decoding and Hugging Face's generate: speed, exactness, roofline.

    Args:
        ckpts: Checkpoints, files of `mtp export` or folders of runs; without any, a model with random weights, whose
            drafts are hardly ever accepted: it shows what a step costs.
        heads_used: Numbers of drafting heads; by default all up to 4, then powers of two.
        batch: Batch sizes; by default 1, 2, 4 and 8.
        prompt_tokens: Length of the prompts, taken from held-out text.
        new_tokens: Length of what is generated; nothing stops earlier.
        rounds: Counted rounds, each with prompts of its own; at least 5 to be judged.
        dtype: Precision of all contenders.
        kind: Where the prompts' text comes from; the validation split of the default data is what `mtp fit` holds out.
        path: File or folder of that text.
        directory: Where prepared corpora are kept.
        n_future: Heads of the random model.
        dim: Its width.
        n_layers: Its layers, trunk and heads together.
        n_heads: Its attention heads.
        ffn_dim: Hidden width of its SwiGLUs.
        vocab_size: Its vocabulary.
        threads: Threads; one is judged by CPU time, several by the clock once the machine is idle.
        patience: Seconds that several threads wait for a quiet machine, in all.
        compile: Measure layers compiled for this processor, and plain decoding by torch beside them; auto does where
            there is a compiler, which is long work.
        peer: transformers: its `generate` on head 1. llama_cpp: also llama.cpp, in float32, at batch 1.
            transformers_mtp: also `generate(use_mtp=True)` on the same model, exported, at batch 1, the only one
            that it takes; the random model then has `sequential` heads.
        out: Folder for decode.json, results.csv, tables.md and figure.png.
        json: File to write the rows to as well.
    """
    from rich.console import Console

    check_counts({"prompt_tokens": prompt_tokens, "rounds": rounds, "threads": threads})
    check_patience(patience)
    if new_tokens < 4:
        raise InputError(f"new_tokens is {new_tokens}: it has to be at least 4, or there is nothing to time")
    check_json(json, out=out, path=path, **{f"the model '{ckpt}'": ckpt for ckpt in ckpts or ()})
    if out is not None:
        check_out(Path(out))
    batches = batch or [1, 2, 4, 8]
    if min(batches) < 1:
        raise InputError(f"batch is {batches}: every size has to be at least 1")
    if peer != "transformers" and 1 not in batches:
        raise InputError(f"peer is '{peer}', which decodes one text at a time, and batch is {batches}: add 1 to it")
    backbone = BackboneConfig(vocab_size, dim, n_layers, n_heads, ffn_dim=ffn_dim)
    count = max(batches) * rounds
    heads = HeadsConfig(n_future=n_future, kind="sequential" if peer == "transformers_mtp" else "parallel")
    models = (
        measured_models(ckpts, heads_used, count, prompt_tokens, kind, path, Path(directory))
        if ckpts
        else [random_model(backbone, heads, heads_used, count, prompt_tokens)]
    )  # all of them before the first is measured, which takes minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pin_threads(threads)
    by_cpu = judged_by_cpu(device.type, threads)
    machine = describe_machine(device, threads)
    console, messages = Console(width=None if Console().is_terminal else WIDTH), Console(stderr=True)
    rows: list[Row] = []
    parts: list[Row] = []
    started = time.perf_counter()
    compiled = wanted(compile is not False, device, LONG)
    seconds_to_compile = time.perf_counter() - started
    with shown_progress(messages) as progress:
        gate = IdleGate(0.0 if by_cpu else patience, progress)
        wait = gate if device.type == "cpu" else not_looked_at
        for label, model, held_out, numbers in models:
            clock = clock_for(device, threads)
            prompts = [prompt.to(device) for prompt in held_out]
            room = max(len(prompt) for prompt in prompts) + new_tokens
            left_out = partial(_left_out, messages, label)
            with _peers(peer, model.to(device), DTYPES[dtype], new_tokens, room, threads, clock, left_out) as peers:
                more, missing = bench_decode(
                    label, model, prompts, batches, numbers, new_tokens, rounds, DTYPES[dtype], clock, wait,
                    progress, peers, compiled, lambda own: _report(messages, own),
                )  # fmt: skip
            rows += more
            for k in dict.fromkeys((1, numbers[-1])) if device.type == "cpu" else ():
                progress(f"{label}, k = {k}: where the time goes")
                busy = wait()
                found = decoding_parts(model, k, DTYPES[dtype], compiled, prompts[:1], clock)
                parts.append({"model": label, "batch": 1, "heads_used": k, "busy": busy, **found})
            if missing:
                console.print(f"{label}: no comparison with Hugging Face: {missing}", highlight=False)
    judged_by = "CPU time" if by_cpu else "wall clock"
    caption = ", ".join(f"{key} {value}" for key, value in machine.items())
    caption += (
        f"; {dtype}, prompts of {prompt_tokens}, {new_tokens} new tokens, medians of {rounds} rounds by {judged_by}"
    )
    how = f"compiled layers ready after {seconds_to_compile:.1f} s" if compiled else "not compiled"
    caption += f"; {how}; {gate.summary()}; rates of whole texts, prompts included, ms and roofline of decoding alone"
    for label in dict.fromkeys(row["model"] for row in rows):
        console.print(decode_table([row for row in rows if row["model"] == label], f"Decoding: {label}", caption))
    console.print(heads_table(rows, caption))
    if parts:
        said = f"each part measured for itself, by {judged_by}; limits in ms, in the same run"
        console.print(parts_table(parts, f"{said}; in brackets: others used the machine"))
    else:
        console.print(NOT_ON_A_GPU, highlight=False)
    content = {
        "machine": machine, "dtype": dtype, "judged_by": judged_by, "rounds": rounds, "busy_steps": gate.busy_steps,
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "compiled": compiled,
        "seconds_to_compile": seconds_to_compile, "rows": [_without_nan(row) for row in rows], "parts": parts,
    }  # fmt: skip
    if json:
        write_json(Path(json), content)
    if out:
        _write(Path(out), content, rows, caption)


@contextmanager
def _peers(
    name: str, model: MTPModel, dtype: torch.dtype, new_tokens: int, room: int, threads: int, clock: Clock,
    left_out: Callable[[str, str], None],
) -> Iterator[dict[str, Decode]]:  # fmt: skip
    """Those that decode one text at a time, by the names of their arms. One that cannot be measured is left out, which
    `left_out` says: its name, the reason."""
    if name == "transformers_mtp":
        from mtp_lightning.bench.decode import decode_mtp_peer as mtp

        if reason := mtp.why_not(model):
            left_out("generate(use_mtp=True)", reason)
        else:
            with mtp.transformers_mtp(model, dtype, new_tokens, clock) as decode:
                yield {USE_MTP: decode}
            return
    if name == "llama_cpp":
        from mtp_lightning.bench.decode import decode_llama_cpp_peer as cpp

        if reason := cpp.why_not(model, dtype):
            left_out("llama.cpp", reason)
        else:
            with cpp.llama_cpp(model, new_tokens, room, threads, clock) as decode:
                yield {cpp.NAME: decode}
            return
    yield {}


def _left_out(messages: "Console", label: str, name: str, reason: str) -> None:
    messages.print(f"{label}: no comparison with {name}: {reason}", highlight=False, markup=False)


def _report(messages: "Console", rows: Sequence[Row]) -> None:
    """Results as they come."""
    for row in rows:
        speed = f"{row['tokens_per_second']:.0f} tokens/s, {row['speedup']:.2f} of plain"
        messages.print(f"{row['model']}, batch {row['batch']}, {row['arm']}: {speed}", highlight=False)


def _without_nan(row: Row) -> Row:
    """JSON has none."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(part) for part in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {key: known(value) for key, value in row.items()}


def _write(folder: Path, content: Mapping[str, Any], rows: Sequence[Row], caption: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "decode.json", content)
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "acceptance"))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    (folder / "tables.md").write_text(markdown(rows, caption))
    draw(rows, folder / "figure.png")
