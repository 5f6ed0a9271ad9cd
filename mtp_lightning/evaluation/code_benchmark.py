"""What benchmarks share whose answers are programs: they are run in the sandbox."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.evaluation.benchmark import Benchmark, Judged, by_problem, pass_scores
from mtp_lightning.evaluation.samples import Sample
from mtp_lightning.evaluation.sandbox import Limits, Outcome, Program, Sandbox


@dataclass(frozen=True)
class Running:
    """How programs are run."""

    workers: int = 2
    unsafe: bool = False
    """With all of this user's rights."""
    limits: Limits = Limits()


class CodeBenchmark(Benchmark):
    """
    Args:
        running: how its programs are run.
    """

    domain = "code"

    def __init__(self, prompts: Mapping[str, str], running: Running) -> None:
        super().__init__(prompts)
        self.running = running

    @abstractmethod
    def program(self, task_id: str, completion: str) -> Program:
        """What a completion is tested by."""

    @override
    def check(self, tokenizer: Tokenizer) -> None:
        with self.sandbox(1):
            pass

    def sandbox(self, workers: int | None = None) -> Sandbox:
        return Sandbox(self.running.limits, workers or self.running.workers, self.running.unsafe)

    @override
    def judge(self, samples: Sequence[Sample], ks: Sequence[int]) -> Judged:
        outcomes = self.run({(sample.task_id, sample.completion) for sample in samples})
        passed: dict[str, list[bool]] = {}
        verdicts: Counter[str] = Counter()
        by_sample: dict[tuple[str, int], bool] = {}
        for task_id, own in by_problem(self.prompts, samples).items():
            found = [outcomes[task_id, sample.completion] for sample in own]
            passed[task_id] = [outcome.verdict == "passed" for outcome in found]
            verdicts.update(outcome.verdict for outcome in found)
            by_sample |= {(task_id, sample.sample): ok for sample, ok in zip(own, passed[task_id])}
        return Judged(pass_scores(passed, ks), verdicts, by_sample)

    def run(self, asked: set[tuple[str, str]]) -> dict[tuple[str, str], Outcome]:
        """(task_id, completion) -> what became of its program; equal ones are run once."""
        order = sorted(asked)
        with self.sandbox() as sandbox:
            found = sandbox.run(self.program(task_id, completion) for task_id, completion in order)
            return {order[index]: outcome for index, outcome in found}
