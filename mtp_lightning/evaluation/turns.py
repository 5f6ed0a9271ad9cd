"""Programs in turns (RLEF, Gehring et al. 2024, arXiv 2410.02089): one that fails a public test is followed by another,
written after the prompt, the program, and what failed. The last one is the sample, judged by all tests. Private tests
are never run here, and so never shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.evaluation.benchmark import fit_prompt
from mtp_lightning.evaluation.code_benchmark import FEEDBACK, PUBLIC, CodeBenchmark
from mtp_lightning.evaluation.programs import Job
from mtp_lightning.evaluation.samples import Prompt, Sample
from mtp_lightning.evaluation.sandbox import Outcome, Sandbox
from mtp_lightning.evaluation.write_samples import Asked, Write

_LIMITS = {"timed_out": "Execution took too long.", "out_of_memory": "Out of memory."}
_SHOWN = 500
"""Characters of an input, an output or an exception that a model is shown: a context has to hold them."""


@contextmanager
def in_turns(benchmark: CodeBenchmark, tokenizer: Tokenizer, write: Write, room: int | None) -> Iterator[Write]:
    """What writes batches in turns, in a sandbox of its own.

    Args:
        write: makes a batch of single texts.
        room: tokens that a prompt may have; with feedback it keeps its end.
    """
    with benchmark.sandbox() as sandbox:

        def write_in_turns(asked: Asked) -> tuple[list[Sample], dict[str, int]]:
            return _episodes(benchmark, tokenizer, write, room, sandbox, asked)

        yield write_in_turns


def _episodes(
    benchmark: CodeBenchmark, tokenizer: Tokenizer, write: Write, room: int | None, sandbox: Sandbox, asked: Asked
) -> tuple[list[Sample], dict[str, int]]:
    texts = [benchmark.prompts[prompt.task_id] for prompt, _ in asked]
    prompts: list[Prompt] = [prompt for prompt, _ in asked]
    last: dict[int, Sample] = {}
    counts: dict[str, int] = {}
    active = list(range(len(asked)))
    for turn in range(1, benchmark.turns + 1):
        written, more = write([(prompts[i], asked[i][1]) for i in active])
        counts = {key: counts.get(key, 0) + more.get(key, 0) for key in counts.keys() | more.keys()}
        for i, sample in zip(active, written):
            earlier = (*last[i].earlier, last[i].completion) if i in last else ()
            last[i] = sample._replace(task_id=asked[i][0].task_id, earlier=earlier)
        if turn == benchmark.turns:
            break
        feedback = public_feedback(benchmark, sandbox, [last[i] for i in active])
        active = [i for i, text in zip(active, feedback) if text]
        for i, text in zip(active, filter(None, feedback)):
            texts[i] += last[i].completion + text
            name = f"{asked[i][0].task_id} turn {turn + 1}"  # noise goes by names
            prompts[i] = fit_prompt(name, tokenizer.encode(texts[i]), tokenizer, room)
        if not active:
            break
    return [last[i] for i in range(len(asked))], counts


def public_feedback(benchmark: CodeBenchmark, sandbox: Sandbox, samples: Sequence[Sample]) -> list[str]:
    """What each program is told of the public tests it fails; nothing where it passes them."""
    jobs: list[tuple[int, Job]] = []
    for i, sample in enumerate(samples):
        source = benchmark.task.source(sample.task_id, sample.completion)
        jobs += [(i, job) for job in benchmark.task.jobs(sample.task_id, source) if PUBLIC in job.scores]
    outcomes = dict(sandbox.run(job.program for _, job in jobs))
    failed: list[list[str]] = [[] for _ in samples]
    for place, (i, job) in enumerate(jobs):
        if not job.right(outcomes[place]):
            failed[i].append(_line(job, outcomes[place]))
    again = "Give it another try.\n\nANSWER:\n"
    return [f"\n{FEEDBACK}\n{''.join(lines)}{again}" if lines else "" for lines in failed]


def _line(job: Job, outcome: Outcome) -> str:
    given = _short(job.program.stdin or job.program.inputs)
    if outcome.verdict in _LIMITS:
        return f"- input `{given}` failed: {_LIMITS[outcome.verdict]}\n"
    if outcome.verdict != "passed":
        return f"- input `{given}` failed:\n{_short(outcome.stderr, last=True)}\n"
    got = _short(outcome.stdout or outcome.result)
    return f"- input `{given}` failed: Expected output `{_short(job.expected)}` but got `{got}`\n"


def _short(text: str, last: bool = False) -> str:
    text = text.strip()
    if len(text) <= _SHOWN:
        return text
    return f"...{text[-_SHOWN:]}" if last else f"{text[:_SHOWN]}..."
