"""Benchmarks whose answers are programs, which are run in the sandbox."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark, Judged, by_problem, pass_scores
from mtp_lightning.evaluation.passk import n_at_k
from mtp_lightning.evaluation.programs import CodeTask, Scored, score
from mtp_lightning.evaluation.samples import Sample
from mtp_lightning.evaluation.sandbox import Limits, Sandbox

LIMITS = Limits()
PUBLIC = "public"
"""Score of the tests that a problem shows."""
FEEDBACK = "\nYour code failed the following tests:"
"""How feedback begins (Gehring et al. 2024, arXiv 2410.02089); a model that writes it itself has ended."""


@dataclass(frozen=True)
class Running:
    """How programs are run."""

    workers: int = 2
    unsafe: bool = False
    """With all of this user's rights."""
    limits: Limits = LIMITS


class CodeBenchmark(Benchmark):
    """Its worked examples are what all prompts begin with.

    Args:
        turns: programs of a sample at most: one that fails public tests is followed by another (`turns.py`).

    Raises:
        InputError: turns, and no public tests.
    """

    domain = "code"

    def __init__(self, task: CodeTask, running: Running, max_new_tokens: int = 512, turns: int = 1) -> None:
        super().__init__(task.prompts)
        if turns > 1 and PUBLIC not in task.scores:
            raise InputError(f"turns is {turns}: the problems of {task.name} have no public tests to give feedback on")
        self.turns = turns
        self.task, self.running = task, running
        self.name, self.stops, self.max_new_tokens = task.name, task.stops, max_new_tokens
        if turns > 1:
            self.name, self.stops = f"{self.name}-turns-{turns}", (*self.stops, FEEDBACK)
        self.shots = common_beginning([*task.prompts.values()]) if len(task.prompts) > 1 else ""

    @override
    def check(self, tokenizer: Tokenizer) -> None:
        with self.sandbox(1) as sandbox:
            self.confined_by = sandbox.level
            self.task.prepare(sandbox)

    def sandbox(self, workers: int | None = None) -> Sandbox:
        return Sandbox(self.running.limits, workers or self.running.workers, self.running.unsafe)

    @override
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        scored = self.run(samples)
        own = by_problem(self.prompts, samples)
        did = {i: [scored[i, sample.completion].passed for sample in found] for i, found in own.items()}
        scores: dict[str, list[float]] = {}
        for name in self.task.scores:
            passed = {i: [one[name] for one in of_i] for i, of_i in did.items() if all(name in one for one in of_i)}
            prefix = f"{name}/" if name else ""
            scores |= {prefix + score: values for score, values in pass_scores(passed, ks).items() if values}
        if PUBLIC in self.task.scores:
            scores |= self._filtered(did, ks)
        each = {(s.task_id, s.sample): scored[s.task_id, s.completion] for found in own.values() for s in found}
        verdicts = Counter[str](found.verdict for found in each.values())
        met = Counter[str](found.limit for found in each.values() if found.limit)
        return Judged(scores, verdicts, {at: found.passed[self.task.scores[0]] for at, found in each.items()}, met)

    def _filtered(self, did: Mapping[str, Sequence[Mapping[str, bool]]], ks: Sequence[int]) -> dict[str, list[float]]:
        """`1_at_k`: one program is taken of those among k samples that pass the public tests; of all k where a
        problem has none."""
        found: dict[str, list[float]] = {f"1_at_{k}": [] for k in ks if k > 1}
        for passed in did.values():
            right, public = (sum(one.get(name, True) for one in passed) for name in (self.task.scores[0], PUBLIC))
            for k in ks:
                if k > 1:
                    found[f"1_at_{k}"].append(n_at_k(len(passed), right, 1, k, public))
        return found

    def run(self, samples: Sequence[Sample]) -> dict[tuple[str, str], Scored]:
        """(task_id, completion) -> how it did; equal ones are run once."""
        order = sorted({(sample.task_id, sample.completion) for sample in samples})
        sources = [(task_id, self.task.source(task_id, completion)) for task_id, completion in order]
        with self.sandbox() as sandbox:
            return dict(zip(order, score(self.task, sources, sandbox)))


def common_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # in their order nothing else can differ sooner
    return first[: next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))]
