"""The benchmarks by name."""

from pathlib import Path
from typing import Literal

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark
from mtp_lightning.evaluation.code_benchmark import CodeBenchmark, Running
from mtp_lightning.evaluation.tasks.code_tasks import code_task
from mtp_lightning.evaluation.tasks.gsm8k import GSM8K
from mtp_lightning.evaluation.tasks.infilling import Infilling
from mtp_lightning.evaluation.tasks.rouge import Rouge

BenchmarkName = Literal[
    "humaneval", "mbpp", "cruxeval-output", "cruxeval-input", "stdin", "infilling", "gsm8k", "rouge"
]


def make_benchmark(name: BenchmarkName, data: str | Path, running: Running, turns: int = 1) -> Benchmark:
    """`infilling` takes out single lines, and asks in the order prefix, suffix, middle.

    Raises:
        InputError: not a file of this benchmark.
    """
    check_turns(name, turns)
    if name == "gsm8k":
        return GSM8K(data)
    if name == "rouge":
        return Rouge(data)
    if name == "infilling":
        return Infilling(data, "single-line", "psm", running)
    return CodeBenchmark(code_task(name, data), running, turns=turns)


def check_turns(name: BenchmarkName, turns: int) -> None:
    """
    Raises:
        InputError: turns, of a benchmark that has none.
    """
    if turns > 1 and name in ("gsm8k", "rouge", "infilling"):
        raise InputError(f"turns is {turns}: {name} has no public tests to give feedback on")
