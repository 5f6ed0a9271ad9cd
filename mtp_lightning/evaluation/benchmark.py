"""What a benchmark is: prompts, where an answer ends, and how answers are judged."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.passk import pass_at_k
from mtp_lightning.evaluation.samples import Prompt, Sample

Domain = Literal["code", "prose", "maths"]


@dataclass
class Judged:
    """What became of the samples of one temperature."""

    scores: dict[str, list[float]]
    """Name (`pass_at_1`, `plus/pass_at_10`, `majority_at_8`, `rouge_l`) -> a score of every problem that can have it,
    in order; at least one."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """How many samples passed, failed, ran out of time ..."""
    passed: dict[tuple[str, int], bool] = field(default_factory=dict)
    """(task_id, number of the sample) -> whether it passed, where that is asked."""
    limits_met: Counter[str] = field(default_factory=Counter)
    """Limit of a program (its processor time, the wall clock, memory ...) -> how many samples met it."""


class Benchmark(ABC):
    """
    Args:
        prompts: task_id -> prompt, in order.
    """

    name: str
    """Part of the names of metrics: `eval/<name>/pass_at_1`."""
    domain: Domain
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 512
    """Of an answer, where the command is not given another number."""
    confined_by: str | None = None
    """What confines the programs that it runs ("none": nothing), once it was checked; None where it runs none."""
    shots: str = ""
    """Worked examples at the beginning of every prompt. A prompt that has lost some of them is another task."""

    def __init__(self, prompts: Mapping[str, str]) -> None:
        self.prompts = dict(prompts)
        self.order = list(prompts)
        """All problems, also those that are not asked."""

    def tell_apart(self, name: str | None) -> None:
        """From the same benchmark on other data, in files and metrics: `rouge` becomes `rouge-maths`."""
        if name is not None:
            self.name = f"{self.name}-{check_name(name)}"

    def limit(self, count: int | None) -> None:
        """Ask the first `count` problems only."""
        self.prompts = dict(list(self.prompts.items())[:count])

    def prompt(self, tokenizer: Tokenizer, task_id: str, room: int | None) -> Prompt:
        """
        Args:
            room: the most tokens that it may have.
        """
        return fit_prompt(task_id, tokenizer.encode(self.prompts[task_id]), tokenizer, room)

    def check(self, tokenizer: Tokenizer) -> None:  # noqa: B027 - most have nothing to check
        """Called before anything is written.

        Raises:
            InputError: the model cannot be asked.
            UnavailableError: its answers cannot be judged on this machine.
        """

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Tokens that end an answer, besides the end-of-document token."""
        return ()

    @abstractmethod
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        """
        Args:
            samples: as many of every problem.
            ks: none above that number.
        """


def check_name(name: str) -> str:
    """
    Raises:
        InputError: not fit for files and metrics.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise InputError(f"name is '{name}': it has to be 1 to 64 letters (a-z, A-Z), digits, '_', '.' or '-'")
    return name


def by_problem(prompts: Mapping[str, str], samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """task_id -> its samples in order of their numbers, for the problems asked."""
    found: dict[str, list[Sample]] = {task_id: [] for task_id in prompts}
    for sample in sorted(samples, key=lambda sample: sample.sample):
        if sample.task_id in found:
            found[sample.task_id].append(sample)
    return found


def pass_scores(passed: Mapping[str, Sequence[bool]], ks: Sequence[int]) -> dict[str, list[float]]:
    """`pass_at_k` of every problem, from whether its samples passed."""
    return {f"pass_at_{k}": [pass_at_k(len(found), sum(found), k) for found in passed.values()] for k in ks}


def fit_prompt(task_id: str, ids: Sequence[int], tokenizer: Tokenizer, room: int | None) -> Prompt:
    """The last `room` tokens of a prompt, where it is longer; a model has to be given at least one token, so an empty
    prompt is the end of a document, after which another begins."""
    whole = list(ids) or [tokenizer.eos_id]
    if room is None or len(whole) <= room:
        return Prompt(task_id, whole)
    return Prompt(task_id, whole[-room:], cut=True)
