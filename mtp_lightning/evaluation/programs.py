"""What a code benchmark is: prompts, where a completion ends, the program it makes, and what makes that right; and the
scoring of programs in the sandbox. No torch: programs may come from anywhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mtp_lightning.evaluation.sandbox import Outcome, Program, Sandbox, Verdict

Source = str


def has_passed(outcome: Outcome) -> bool:
    return outcome.verdict == "passed"


class Job(NamedTuple):
    """One program to run for a sample.

    `scores`: what it counts for; a sample has the score where all its jobs for it are right.
    """

    program: Program
    right: Callable[[Outcome], bool] = has_passed
    scores: tuple[str, ...] = ("",)
    expected: str = ""
    """What should have come out, as a model may be told of a public test."""


@dataclass(frozen=True)
class CodeTask:
    """
    Args:
        name: as in `eval/<name>/pass_at_1`.
        prompts: task_id -> prompt, in order.
        stops: strings that end a completion, and are no part of it.
        assemble: (task_id, completion cut at its stop) -> source of a whole program.
        jobs: (task_id, source) -> what to run; nothing for a source that is wrong without being run.
        canonical: task_id -> a completion that is right, where the data has one.
        scores: `""` is the benchmark's own; others are reported as `eval/<name>/<score>/pass_at_1`.
        prepare: has to be called once before `jobs`; computes what only the sandbox can.
    """

    name: str
    prompts: Mapping[str, str]
    stops: tuple[str, ...]
    assemble: Callable[[str, str], Source]
    jobs: Callable[[str, Source], Sequence[Job]]
    canonical: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[str, ...] = ("",)
    prepare: Callable[[Sandbox], None] = lambda sandbox: None

    def source(self, task_id: str, completion: str) -> Source:
        """The program that a completion makes, up to its first stop."""
        return self.assemble(task_id, cut(completion, self.stops))


def cut(text: str, stops: Iterable[str]) -> str:
    """`text` up to the first of the stops."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


class Scored(NamedTuple):
    """A sample's scores.

    Args:
        passed: score -> whether it has it; a score that no test of the problem counts for is not there.
        verdict: of its first job that was not right; `passed` where all were.
        limit: that this job met, if any.
        detail: what that job said: the exception, or standard error.
    """

    passed: dict[str, bool]
    verdict: Verdict = "passed"
    limit: str = ""
    detail: str = ""


def score(
    task: CodeTask, sources: Sequence[tuple[str, Source]], sandbox: Sandbox,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> list[Scored]:  # fmt: skip
    """Run programs; a sample's jobs that can change nothing more are left out.

    Args:
        sources: (task_id, source) of every sample.
        progress: called with the number of samples begun, and of all.

    Raises:
        SandboxError: one could not be run; nothing is scored.
    """
    task.prepare(sandbox)
    results: list[Scored] = []
    waiting: dict[int, tuple[int, Job, int]] = {}
    firsts: dict[int, int] = {}  # sample -> the place of its first wrong job

    def programs() -> Iterator[Program]:
        number = 0
        for sample, (task_id, source) in enumerate(sources):
            progress(sample, len(sources))
            jobs = task.jobs(task_id, source)
            counted = {name for job in jobs for name in job.scores}
            results.append(Scored({name: True for name in task.scores if name in counted}))
            if not jobs:
                results[sample] = Scored(dict.fromkeys(task.scores, False), "failed", detail="no program")
            for place, job in enumerate(jobs):
                if any(results[sample].passed[name] for name in job.scores):
                    waiting[number] = (sample, job, place)
                    number += 1
                    yield job.program

    for index, outcome in sandbox.run(programs()):
        sample, job, place = waiting.pop(index)
        if job.right(outcome):
            continue
        before = results[sample]
        passed = before.passed | dict.fromkeys(job.scores, False)
        if place <= firsts.get(sample, place):
            firsts[sample] = place
            verdict: Verdict = "failed" if outcome.verdict == "passed" else outcome.verdict
            results[sample] = Scored(passed, verdict, outcome.limit, outcome.stderr)
        else:
            results[sample] = before._replace(passed=passed)
    progress(len(sources), len(sources))
    return results
