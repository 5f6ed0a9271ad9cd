"""`mtp evaluate score`: programs from anywhere, run in the sandbox and scored."""

import json as json_module
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_text
from mtp_lightning.ranges import Kept, check_value

DEFAULT_KS = (1, 10, 100)


def score_command(
    samples: str,
    task: str | None = None,
    data: str | None = None,
    k: list[int] | None = None,
    workers: int = 2,
    cpu_seconds: float = 4.0,
    memory_mb: int = 1024,
    details: str | None = None,
    unsafe_execution: bool = False,
    json: str | None = None,
) -> None:
    """Run programs that were written anywhere in the sandbox, and report how many pass.

    Args:
        samples: JSONL in EvalPlus's format, a program a line: task_id, and solution (a whole program) or completion
            (what follows the prompt). Plain or gzip.
        task: humaneval, mbpp, cruxeval-output, cruxeval-input or stdin (needed).
        data: File of the benchmark, in its published format; for humaneval and mbpp, in EvalPlus's too (needed).
        k: For pass@k; 1, 10 and 100, as far as there are samples, without it.
        workers: Programs that run at once.
        cpu_seconds: CPU time that a program may take.
        memory_mb: Address space that a program may take, in MiB.
        details: File for a line a sample: its verdict, and what it said.
        unsafe_execution: Run the programs with all your rights. Only where nothing else is to be had, and what wrote
            them is trusted; recorded in the results.
        json: File to write the numbers to as well.
    """
    from mtp_lightning.evaluation.programs import score
    from mtp_lightning.evaluation.sandbox import Limits, Sandbox
    from mtp_lightning.evaluation.tasks.code_tasks import code_task

    check_json(json, samples=samples, data=data)
    check_json(details, "details", json=json, samples=samples, data=data)
    if task is None or data is None:
        missing = "task" if task is None else "data"
        raise InputError(f"--{missing} is needed: `mtp evaluate score FILE.jsonl --task humaneval --data FILE`")
    check_value("workers", workers, Kept)
    limits = Limits(cpu_seconds=cpu_seconds, memory_mb=memory_mb)
    found = code_task(task, data)
    sources = read_samples(samples, found)
    counts = Counter(task_id for task_id, _ in sources)
    fewest = min(counts.values())
    ks = [k for k in DEFAULT_KS if k <= fewest] if k is None else k
    if not ks or max(ks) > fewest or min(ks) < 1:
        fewest_of = min(counts, key=lambda task_id: counts[task_id])
        raise InputError(f"k is {ks}: '{samples}' has {fewest} samples of {fewest_of}, so at most that, and at least 1")
    start = time.perf_counter()
    with Sandbox(limits, workers, unsafe=unsafe_execution) as sandbox:
        level = sandbox.level
        if unsafe_execution:
            print("unsafe_execution: the programs run with all your rights", file=sys.stderr)
        scored = score(found, sources, sandbox, _progress if sys.stderr.isatty() else lambda done, all_: None)
    seconds = time.perf_counter() - start

    metrics = metrics_of(found.scores, [task_id for task_id, _ in sources], [one.passed for one in scored], ks)
    verdicts = Counter(one.verdict for one in scored)
    met = Counter(one.limit for one in scored if one.limit)
    print(f"{found.name}: {len(sources):,} programs for {len(counts):,} of {len(found.prompts):,} problems")
    for name, value in metrics.items():
        print(f"  {name:<24}{value:8.4f}")
    print("  " + ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.most_common()))
    print(f"  limits met: {', '.join(f'{limit} {count:,}' for limit, count in met.items()) or 'none'}")
    print(f"  {seconds:.1f} s, {workers} at once, confined by {level}")
    if details is not None:
        lines = (
            json_module.dumps({"task_id": task_id} | one._asdict()) + "\n" for (task_id, _), one in zip(sources, scored)
        )
        write_text(Path(details), "".join(lines))
    if json is not None:
        content = {
            "task": found.name, "samples": samples, "data": data, "programs": len(sources), "problems": len(counts),
            "problems_in_data": len(found.prompts), "metrics": metrics, "verdicts": dict(verdicts),
            "limits_met": dict(met), "cpu_seconds": cpu_seconds, "memory_mb": memory_mb, "seconds": seconds,
            "confined_by": level, "unsafe_execution": unsafe_execution,
        }  # fmt: skip
        write_text(Path(json), json_module.dumps(content, indent=1) + "\n")


def read_samples(path: str, task: Any) -> list[tuple[str, str]]:
    """(task_id, source) of every line.

    Raises:
        InputError: no such file, not JSONL, a line without a program, or of a problem that the data has not.
    """
    from mtp_lightning.evaluation.rows import read_rows

    sources = []
    for number, row in enumerate(read_rows(path, {"task_id": str}, "EvalPlus's samples", key="samples"), start=1):
        where, task_id = f"samples: '{path}', row {number}", row["task_id"]
        if task_id not in task.prompts:
            first = next(iter(task.prompts))
            raise InputError(f"{where} is of '{task_id}', which the data has not: its problems are called as '{first}'")
        whole, completion = row.get("solution"), row.get("completion")
        if not isinstance(whole, str) and not isinstance(completion, str):
            raise InputError(f"{where} has no program: either 'solution' or 'completion' has to be a text")
        sources.append((task_id, whole if isinstance(whole, str) else task.source(task_id, completion)))
    return sources


def metrics_of(
    scores: Sequence[str], task_ids: Sequence[str], passed: Sequence[Mapping[str, bool]], ks: Sequence[int]
) -> dict[str, float]:
    """`pass_at_1`, `plus/pass_at_1` ...: means over the problems that have samples, and tests for the score."""
    from mtp_lightning.evaluation.passk import mean_pass_at_k

    metrics = {}
    for name in scores:
        counts = Counter(task_id for task_id, found in zip(task_ids, passed) if name in found)
        right = Counter(task_id for task_id, found in zip(task_ids, passed) if found.get(name))
        for k in ks if counts else ():
            key = f"{name}/pass_at_{k}" if name else f"pass_at_{k}"
            metrics[key] = mean_pass_at_k([(count, right[task_id]) for task_id, count in counts.items()], k)
    return metrics


def _progress(done: int, all_: int) -> None:
    end = "\n" if done == all_ else ""
    print(f"\r{done:,} of {all_:,} programs", end=end, file=sys.stderr, flush=True)
