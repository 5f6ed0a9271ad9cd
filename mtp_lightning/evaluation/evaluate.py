"""A benchmark asked of a model: what can be refused is refused first, then samples are written, then judged."""

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtp_lightning.checkpoints.files import LoadedModel
from mtp_lightning.checkpoints.verify import digest
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.decoding.compiled.compiler import wanted
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark
from mtp_lightning.evaluation.code_benchmark import CodeBenchmark
from mtp_lightning.evaluation.plan import Plan
from mtp_lightning.evaluation.results.results import AtTemperature, Results, choose_all
from mtp_lightning.evaluation.samples import Prompt, SampleFile
from mtp_lightning.evaluation.turns import in_turns
from mtp_lightning.evaluation.write_samples import Write, Writing, prompt_room, write_batch, write_samples
from mtp_lightning.files import check_out
from mtp_lightning.model.mtp import MTPModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SECONDS_BETWEEN_REPORTS = 10.0


class Subject(NamedTuple):
    """The model that is asked."""

    model: MTPModel
    tokenizer: Tokenizer
    context: int | None
    """Positions of a window it was trained on; None where nobody knows."""
    step: int
    begin_ids: tuple[int, ...]
    """What all of its texts began with."""

    @classmethod
    def loaded(cls, found: LoadedModel, device: str) -> "Subject":
        """
        Raises:
            InputError: a model that was not trained on text.
        """
        tokenizer = found.tokenizer
        return cls(found.model.to(device), tokenizer, found.context, found.step, tuple(found.begin_ids))

    def prompt_room(self, max_new_tokens: int) -> int | None:
        """Tokens that a prompt may have, as `write_samples.prompt_room`."""
        context = None if self.context is None else self.context - len(self.begin_ids)
        return prompt_room(context, max_new_tokens)


def evaluate(subject: Subject, benchmark: Benchmark, plan: Plan, out: Path, data: str) -> Results:
    """
    Args:
        out: folder for the samples, a file for each temperature.
        data: hash of the benchmark's file.

    Raises:
        InputError: before anything is written.
    """
    prompts, max_new_tokens = check_prompts(subject, benchmark, plan)
    most = subject.model.heads_config.max_heads_used
    texts = len(prompts) * sum(plan.samples_at(temperature) for temperature in plan.temperatures)
    forwards = -(-texts // plan.batch_size) * max_new_tokens
    compiled = wanted(plan.compile, subject.model.embedding.weight.device, forwards)
    heads = most if plan.heads_used == "auto" else plan.heads_used
    engine = Engine(subject.model, heads, DTYPES[plan.dtype], compiled=compiled)
    model = model_digest(subject)
    files: dict[float, tuple[SampleFile, Writing]] = {}
    for temperature in plan.temperatures:
        writing = Writing(
            temperature, plan.top_p if temperature else None, plan.seed if temperature else 0, max_new_tokens,
            benchmark.stops, benchmark.stop_ids(subject.tokenizer), plan.heads_used, plan.batch_size,
            subject.begin_ids,
        )  # fmt: skip
        made_with = {"task": benchmark.name, "data": data, "model": model, **described(writing, engine, plan, subject)}
        if isinstance(benchmark, CodeBenchmark) and benchmark.turns > 1:  # what a model is told of its programs
            made_with |= {"limits": asdict(benchmark.running.limits), "unsafe_execution": benchmark.running.unsafe}
        short = f"{temperature:g}" if float(f"{temperature:g}") == temperature else repr(temperature)
        name = f"{benchmark.name}_step_{subject.step}_temperature_{short}.jsonl"
        files[temperature] = SampleFile(out / name, made_with, plan.heads_used), writing
    check_out(out)
    for file, _ in files.values():
        file.check()
    at: dict[float, AtTemperature] = {}
    with ExitStack() as stack:
        for file, _ in files.values():
            stack.enter_context(file)
        for temperature, (file, writing) in files.items():
            report = _Reporter(f"{benchmark.name}, temperature {temperature:g}")
            write: Write = partial(write_batch, engine, subject.tokenizer, writing)
            if isinstance(benchmark, CodeBenchmark) and benchmark.turns > 1:
                room = subject.prompt_room(max_new_tokens)
                write = stack.enter_context(in_turns(benchmark, subject.tokenizer, write, room))
            write_samples(file, write, prompts, plan.samples_at(temperature), plan.batch_size, report)
            file.put_in_order(benchmark.order)
    for temperature, (file, _) in files.items():
        _say_what_is_counted(file, len(prompts) * plan.samples_at(temperature))
        at[temperature] = judge(benchmark, file, plan, temperature, prompts)
    return Results(benchmark, choose_all(at, plan), at)


def check_prompts(subject: Subject, benchmark: Benchmark, plan: Plan) -> tuple[list[Prompt], int]:
    """(the prompts that are asked, the most tokens of an answer).

    Raises:
        InputError: the model cannot be asked; the context has no room for the worked examples.
        UnavailableError: answers cannot be judged on this machine.
    """
    benchmark.limit(plan.limit)
    benchmark.check(subject.tokenizer)
    max_new_tokens = plan.max_new_tokens or min(benchmark.max_new_tokens, max((subject.context or 10**9) // 2, 1))
    room = subject.prompt_room(max_new_tokens)
    shots = len(subject.tokenizer.encode(benchmark.shots)) if benchmark.shots else 0
    if room is not None and shots >= room:
        raise InputError(
            f"{benchmark.name} begins with worked examples of {shots} tokens, and of the {subject.context} tokens that "
            f"the model was trained on {max_new_tokens} are for the answer (max_new_tokens): they do not fit"
        )
    prompts = [benchmark.prompt(subject.tokenizer, task_id, room) for task_id in benchmark.prompts]
    return prompts, max_new_tokens


def judge(
    benchmark: Benchmark, file: SampleFile, plan: Plan, temperature: float, prompts: Sequence[Prompt]
) -> AtTemperature:
    asked = {prompt.task_id for prompt in prompts}
    most = plan.samples_at(temperature)
    samples = [s for s in file.samples.values() if s.task_id in asked and s.sample < most]
    judged = benchmark.judge(samples, plan.ks_at(temperature))
    ended = Counter[str](sample.ended for sample in samples)
    cut = {sample.task_id for sample in samples if sample.cut}  # with turns, of a later one too
    return AtTemperature(judged, file.counts, ended, len(cut), file.path)


def _say_what_is_counted(file: SampleFile, asked: int) -> None:
    """Acceptance is of the samples in the file that were written with the heads that are asked for, which may be fewer
    or others than the `asked` ones."""
    counted, there = file.counts.get("samples", 0), len(file.samples)
    if counted == there == asked:
        return
    of_these = f", of which {asked:,} are asked for" if asked < there else ""
    found = f"are of {counted:,} samples" if counted else "are not known"
    print(
        f"warning: '{file.path}' has {there:,} samples{of_these}, {counted:,} counted with heads_used "
        f"{file.heads_used}: tokens per forward and acceptance {found}; give another --out to measure them",
        file=sys.stderr,
    )


def model_digest(subject: Subject) -> str:
    """Of the weights, and of what else makes one model another."""
    model = subject.model
    settings = {"backbone": repr(model.config), "heads": repr(model.heads_config)}
    return digest(model.state_dict(), settings | {"tokenizer": subject.tokenizer.fingerprint})


def described(writing: Writing, engine: Engine, plan: Plan, subject: Subject) -> dict[str, Any]:
    """What decides the samples, beside task, data and model. Heads, batch and compiled layers do not: in float32 the
    texts are the same, but for ties between torch's layers and compiled ones."""
    begin = {"begin_ids": list(writing.begin_ids)} if writing.begin_ids else {}
    return (
        begin
        | {
            "temperature": writing.temperature,
            "top_p": writing.top_p,
            "seed": writing.seed,
            "max_new_tokens": writing.max_new_tokens,
            "stops": [*writing.stops, *writing.stop_ids],
            "context": subject.context,
            "dtype": plan.dtype,
            "device": engine.device.type,
        }
        | ({"heads_used": plan.heads_used} if plan.dtype != "fp32" else {})
        | ({"compiled": True} if plan.dtype != "fp32" and engine.compiled else {})
    )


def file_hash(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


class _Reporter:
    """A line on standard error now and then."""

    def __init__(self, what: str) -> None:
        self.what, self.begun, self.last, self.first = what, time.monotonic(), 0.0, -1

    def __call__(self, done: int, all_: int) -> None:
        now = time.monotonic() - self.begun
        self.first = done if self.first < 0 else self.first
        if done == self.first or (done < all_ and now - self.last < _SECONDS_BETWEEN_REPORTS):
            return
        self.last = now
        left = now / (done - self.first) * (all_ - done)
        rest = f", about {left:.0f} s left" if done < all_ else ""
        print(f"{self.what}: {done:,} of {all_:,} samples after {now:.0f} s{rest}", file=sys.stderr)
