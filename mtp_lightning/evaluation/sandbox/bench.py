"""`mtp bench sandbox`: what running programs confined costs, against starting a bare interpreter for each."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_json

PROGRAMS = 164
_OWN = """
def f(n):
    found = []
    for i in range(n):
        if all(i % j for j in found):
            found.append(max(i, 2))
    return sorted(set(found))
"""


def sandbox_command(data: str | None = None, workers: int = 1, rounds: int = 5, json: str | None = None) -> None:
    """Time of 164 programs in the sandbox, against as many starts of a bare interpreter, which confines nothing.

    Args:
        data: File of HumanEval or HumanEval+, whose canonical solutions are run; without it, 164 small programs of our
            own.
        workers: Programs that run at once.
        rounds: Rounds, both in turn; medians and bests are reported.
        json: File to write the numbers to as well.
    """
    from mtp_lightning.evaluation.sandbox import Limits, Program, Sandbox
    from mtp_lightning.evaluation.tasks.humaneval import humaneval

    check_json(json, data=data)
    for name, value in (("workers", workers), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"{name} is {value}: it has to be at least 1")
    if data is None:
        programs = [Program(_OWN, check=f"assert len(f({50 + i})) > 9") for i in range(PROGRAMS)]
    else:
        task = humaneval(data)
        with Sandbox(Limits(cpu_seconds=20.0), workers) as sandbox:
            task.prepare(sandbox)
        programs = [job.program for i in task.prompts for job in task.jobs(i, task.source(i, task.canonical[i]))]
    confined, bare, starts = [], [], []
    cpu = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        with Sandbox(Limits(cpu_seconds=20.0), workers) as sandbox:
            starts.append(time.perf_counter() - start)
            start = time.perf_counter()
            outcomes = [outcome for _, outcome in sandbox.run(programs)]
            confined.append(time.perf_counter() - start)
            level = sandbox.level
        wrong = [outcome for outcome in outcomes if outcome.verdict != "passed"]
        if wrong:
            first = f"{wrong[0].verdict}, {wrong[0].stderr[-300:]}"
            raise InputError(f"{len(wrong)} of {len(programs)} programs do not pass: {first}")
        cpu = sum(outcome.cpu_seconds for outcome in outcomes)
        start = time.perf_counter()
        for _ in programs[:20]:
            subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        bare.append((time.perf_counter() - start) * len(programs) / len(programs[:20]))
    ratio = median(c / b for c, b in zip(confined, bare))
    print(f"{len(programs)} programs, {workers} at once, confined by {level}; medians (bests) of {rounds} rounds")
    print(
        f"  confined             {median(confined):6.2f} s ({min(confined):.2f}), {cpu:.2f} s of it CPU in the programs"
    )
    print(f"  bare interpreters    {median(bare):6.2f} s ({min(bare):.2f}), one after the other, nothing run in them")
    print(f"  confined / bare      {ratio:6.2f}")
    print(f"  start of the sandbox {median(starts):6.2f} s ({min(starts):.2f})")
    if json is not None:
        write_json(
            Path(json),
            {
                "machine": platform.platform(), "processors": os.cpu_count(), "programs": len(programs),
                "workers": workers, "rounds": rounds,
                "confined_by": level, "confined_s": confined, "bare_s": bare, "start_s": starts, "cpu_s": cpu,
                "ratio": ratio,
            },
        )  # fmt: skip
