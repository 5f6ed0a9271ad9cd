"""Infilling (Bavarian et al. 2022, arXiv 2207.14255): a part of a HumanEval solution is taken out, and the model writes
it between what comes before and after.

    single-line   every line of a solution that is not blank: 1,033 problems
    multi-line    every run of lines that begins and ends on one that is not blank: 5,815 problems
    random-span   between two characters drawn uniformly, 10 a solution; draws of our own, not the published ones

A middle does not include the end of its last line, which the suffix begins with.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, get_args

from typing_extensions import override

from mtp_lightning.data.tokens.tokenizer import Tokenizer, encode_after
from mtp_lightning.data.transforms.infilling import Order, infilling_prompt, sentinels
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Judged, by_problem, fit_prompt
from mtp_lightning.evaluation.code_benchmark import CodeBenchmark, Running
from mtp_lightning.evaluation.programs import CodeTask, Job
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.samples import Prompt, Sample
from mtp_lightning.evaluation.sandbox import Program

Spans = Literal["single-line", "multi-line", "random-span"]
Mode = Order | Literal["prefix"]
RANDOM_SPANS = 10
_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Of a text that goes on after a prefix alone, as HumanEval's."""
_TITLES = {"single-line": "SingleLine", "multi-line": "MultiLine", "random-span": "RandomSpan"}


class Gap(NamedTuple):
    """A problem: prefix + middle + suffix is the whole solution."""

    prefix: str
    middle: str
    suffix: str


class Infilling(CodeBenchmark):
    """
    Args:
        path: HumanEval's file.
        mode: psm: prefix, suffix, middle; spm: suffix, then prefix and middle in one piece; prefix: the baseline of
            models without infilling tokens, which never see the suffix.
    """

    def __init__(self, path: str | Path, spans: Spans, mode: Mode, running: Running) -> None:
        self.gaps = read_gaps(path, spans)
        ends = ("\n",) if spans == "single-line" else _ENDS if mode == "prefix" else ()
        task = infilling(path, spans, self.gaps, ends)
        super().__init__(task, running, max_new_tokens=128 if spans == "single-line" else 512)
        self.mode = mode
        self.name = f"{self.name}-{mode}"
        self.shots = ""

    @override
    def check(self, tokenizer: Tokenizer) -> None:
        if self.mode != "prefix" and sentinels(tokenizer) is None:
            raise InputError(
                "the model's tokenizer has no infilling tokens (such as <fim_prefix>), so the model never learned to "
                "look at what comes after: `--mode prefix` asks for the baseline that sees what comes before alone"
            )
        super().check(tokenizer)

    @override
    def prompt(self, tokenizer: Tokenizer, task_id: str, room: int | None) -> Prompt:
        """Where it is too long, the suffix keeps its beginning, at most half of the room, and the prefix its end."""
        gap = self.gaps[task_id]
        marks = None if self.mode == "prefix" else sentinels(tokenizer)
        if marks is None:
            return fit_prompt(task_id, tokenizer.encode(gap.prefix), tokenizer, room)
        before, after = tokenizer.encode(gap.prefix), encode_after(tokenizer, gap.suffix)
        left = len(before) + len(after) if room is None else max(room - 3, 0)
        cut = len(before) + len(after) > left
        if cut:
            after = after[: max(left - len(before), left // 2)]
            before = before[max(len(before) + len(after) - left, 0) :]
        assert self.mode != "prefix"
        return Prompt(task_id, infilling_prompt(before, after, marks, self.mode), cut)

    @override
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        marks = sentinels(tokenizer)
        return () if marks is None or marks.end == tokenizer.eos_id else (marks.end,)

    @override
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        """Also `exact_match`; and where the suffix is seen `joined`: of middles those that came to their end."""
        judged = super().judge(samples, ks)
        problems = by_problem(self.prompts, samples)
        judged.scores["exact_match"] = [
            sum(sample.completion == self.gaps[task_id].middle for sample in found) / len(found)
            for task_id, found in problems.items()
        ]
        if self.mode != "prefix":
            judged.scores["joined"] = [
                sum(sample.ended != "length" for sample in found) / len(found) for found in problems.values()
            ]
        return judged


def infilling(path: str | Path, spans: Spans, gaps: Mapping[str, Gap], stops: Sequence[str] = ()) -> CodeTask:
    """
    Args:
        gaps: of the same file.

    Raises:
        InputError: not HumanEval's file.
    """
    tests = {row["task_id"]: f"{row['test']}\ncheck({row['entry_point']})" for row in _rows(path)}

    def assemble(task_id: str, completion: str) -> str:
        return f"{gaps[task_id].prefix}{completion}{gaps[task_id].suffix}\n"

    def jobs(task_id: str, source: str) -> list[Job]:
        problem = task_id.partition("/")[2].rpartition("/")[0]
        return [Job(Program(source, check=tests[problem]))]

    prefixes = {task_id: gap.prefix for task_id, gap in gaps.items()}
    middles = {task_id: gap.middle for task_id, gap in gaps.items()}
    return CodeTask(f"infilling-{spans}", prefixes, tuple(stops), assemble, jobs, middles)


def read_gaps(path: str | Path, spans: Spans) -> dict[str, Gap]:
    """
    Raises:
        InputError: not HumanEval's file.
    """
    rows = _rows(path)
    check_distinct(path, [row["task_id"] for row in rows])
    found = {
        f"{_TITLES[spans]}Infilling/{row['task_id']}/{number}": gap
        for row in rows
        for number, gap in gaps(row["task_id"], row["prompt"], row["canonical_solution"], spans)
    }
    if not found:
        raise InputError(f"data: '{path}': every canonical_solution is empty, so there is nothing to take out")
    return found


def _rows(path: str | Path) -> list[dict[str, Any]]:
    fields = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), str)
    return read_rows(path, fields, "HumanEval")


def gaps(task_id: str, prompt: str, solution: str, spans: Spans) -> Iterator[tuple[str, Gap]]:
    """(its number, as the published files write it, the problem) of every part of a solution that is taken out."""
    assert spans in get_args(Spans)
    if spans == "random-span":
        chance = Random(f"random-span {task_id}")
        for draw in range(RANDOM_SPANS):
            start, end = sorted((chance.randint(0, len(solution)), chance.randint(0, len(solution))))
            yield str(draw), Gap(prompt + solution[:start], solution[start:end], solution[end:])
        return
    lines = solution.split("\n")
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    written = [i for i, line in enumerate(lines) if line.strip()]
    for first in written:
        for last in written:
            if last == first or (spans == "multi-line" and last > first):
                start, end = starts[first], starts[last] + len(lines[last])
                number = f"L{first}" if spans == "single-line" else f"L{first}_L{last}"
                yield number, Gap(prompt + solution[:start], solution[start:end], solution[end:])
