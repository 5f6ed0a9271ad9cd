"""The code benchmarks by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.evaluation.programs import CodeTask
from mtp_lightning.evaluation.tasks.cruxeval import cruxeval
from mtp_lightning.evaluation.tasks.humaneval import humaneval
from mtp_lightning.evaluation.tasks.mbpp import mbpp
from mtp_lightning.evaluation.tasks.stdin_tests import stdin_tests

CODE_TASKS: dict[str, Callable[[str | Path], CodeTask]] = {
    "humaneval": humaneval,
    "mbpp": mbpp,
    "cruxeval-output": partial(cruxeval, predict="output"),
    "cruxeval-input": partial(cruxeval, predict="input"),
    "stdin": stdin_tests,
}


def code_task(name: str, path: str | Path) -> CodeTask:
    """
    Raises:
        InputError: no such benchmark, or the file is not one of its files.
    """
    if name not in CODE_TASKS:
        known = ", ".join(CODE_TASKS)
        raise InputError(f"task is '{name}': it has to be one of {known}{did_you_mean(name, CODE_TASKS)}")
    return CODE_TASKS[name](path)
