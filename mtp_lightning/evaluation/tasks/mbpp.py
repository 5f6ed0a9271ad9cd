"""MBPP (Austin et al. 2021, arXiv 2108.07732): functions from a sentence and three tests, 3-shot. Reads the full file,
the sanitized one, and MBPP+, its file in EvalPlus's format (zero-shot: a row is a docstring and has no examples)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.programs import CodeTask, Job
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.sandbox import Limits, Program, Sandbox
from mtp_lightning.evaluation.tasks.evalplus import EvalPlus

STOPS = ("[DONE]",)
PLUS_STOPS = ("\nclass", "\nif", "\nprint", "\nassert", '\n"""', "\n#", "<|endoftext|>")
SHOTS = (2, 3, 4)
"""task_ids of the worked examples."""
TEST = range(11, 511)
"""task_ids of the test split."""
SLOW = {"Mbpp/123": 20.0}
"""CPU seconds for problems whose own solution needs more than `Limits` has: it tries all divisors, for 3 to 6 s."""


def mbpp(path: str | Path, whole: bool = False) -> CodeTask:
    """
    Args:
        whole: all problems of the file instead of its test split.

    Raises:
        InputError: not a file of MBPP, sanitized MBPP or MBPP+.
    """
    first = read_rows(path, {}, "MBPP")[0]
    if isinstance(first, dict) and "plus_input" in first:
        return _plus(Path(path))
    text = "prompt" if isinstance(first, dict) and "prompt" in first else "text"
    rows = read_rows(path, {"task_id": int, text: str, "code": str, "test_list": list}, "MBPP")
    for number, row in enumerate(rows, start=1):
        _check_tests(f"data: '{path}', row {number}", row)
    by_number = {row["task_id"]: row for row in rows}
    missing = [number for number in SHOTS if number not in by_number]
    if missing:
        raise InputError(f"data: '{path}' has no problem {missing[0]}, and 2, 3 and 4 are MBPP's worked examples")
    asked = {f"Mbpp/{number}": row for number, row in by_number.items() if whole or number in TEST}
    if not asked:
        raise InputError(f"data: '{path}' has none of the test split, the problems {TEST[0]} to {TEST[-1]}")
    check_distinct(path, [str(row["task_id"]) for row in rows])
    shots = "".join(f"{_question(row[text], row)}{row['code']}\n[DONE]\n\n" for row in map(by_number.get, SHOTS) if row)
    prompts = {task_id: shots + _question(row[text], row) for task_id, row in asked.items()}

    limits: dict[str, Limits] = {}

    def prepare(sandbox: Sandbox) -> None:
        for task_id, seconds in SLOW.items():
            limits[task_id] = replace(sandbox.limits, cpu_seconds=max(seconds, sandbox.limits.cpu_seconds))

    def jobs(task_id: str, source: str) -> list[Job]:
        row = asked[task_id]
        # after the code: what is set up may use its classes
        setup = [row.get("test_setup_code") or "", *(row.get("test_imports") or [])]
        check = "\n".join([*setup, *row["test_list"]])
        return [Job(Program(source, check=check, limits=limits.get(task_id)))]

    canonical = {task_id: row["code"] for task_id, row in asked.items()}
    return CodeTask("mbpp", prompts, STOPS, lambda task_id, completion: completion, jobs, canonical, prepare=prepare)


def _check_tests(where: str, row: Mapping[str, Any]) -> None:
    """
    Raises:
        InputError: no tests, so that any program would pass, or what is no text among them.
    """
    if not row["test_list"]:
        raise InputError(f"{where} has no tests, so any program would pass")
    imports = row.get("test_imports") or []
    for key, texts in (
        ("test_list", row["test_list"]),
        ("test_imports", imports if isinstance(imports, list) else [imports]),
        ("test_setup_code", [row.get("test_setup_code") or ""]),
    ):
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"{where}: its '{key}' has {text!r:.40}, which has to be a text")


def _question(text: str, row: Mapping[str, Any]) -> str:
    tests = "\n".join(row["test_list"][:3])
    return (
        f"You are an expert Python programmer, and here is your task: {text} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _plus(path: Path) -> CodeTask:
    fields = {"task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str}
    rows = read_rows(path, fields | {"base_input": list, "plus_input": list}, "MBPP+")
    check_distinct(path, [row["task_id"] for row in rows])
    for number, row in enumerate(rows, start=1):
        where, name = f"data: '{path}', row {number}", row["task_id"].rpartition("/")[2]
        if not name.isdecimal():
            raise InputError(f"{where}: its task_id is '{row['task_id']}', and has to end in a number, as 'Mbpp/2'")
        convert = _conversion(int(name))
        for part in ("base_input", "plus_input"):
            try:
                row[part] = [[*convert(arguments)] for arguments in row[part]]
            except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
                raise InputError(f"{where}: its {part} is not what {row['task_id']} takes ({error!r})") from error
    prompts = {row["task_id"]: row["prompt"] for row in rows}
    canonical = {row["task_id"]: row["canonical_solution"] for row in rows}
    plus = EvalPlus(path, rows, {i: prompts[i] + canonical[i] for i in prompts})
    return CodeTask(
        "mbpp", prompts, PLUS_STOPS, lambda task_id, completion: prompts[task_id] + completion, plus.jobs, canonical,
        scores=("", "plus"), prepare=plus.prepare,
    )  # fmt: skip


Convert = Callable[[Any], Any]


def _tuples(depth: int) -> Convert:
    """Lists at this depth of an argument become tuples; what is no list stays."""

    def convert(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return tuple(value) if depth == 0 else [_tuples(depth - 1)(item) for item in value]

    return convert


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else value


def _each(convert: Convert) -> Convert:
    return lambda arguments: [convert(argument) for argument in arguments]


def _first(convert: Convert) -> Convert:
    return lambda arguments: [convert(arguments[0]), *arguments[1:]]


def _two_deep(value: Any) -> Any:
    return tuple(map(_tuples(0), value)) if isinstance(value, list) else value


_CONVERSIONS: dict[Convert, tuple[int, ...]] = {
    _each(_tuples(0)): (
        2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809,
    ),
    _each(_tuples(1)): (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    _first(_tuples(1)): (75, 413, 444, 753),
    _first(_tuples(0)): (250, 307, 405, 446, 617, 720, 763, 808),
    _each(_two_deep): (259, 278, 401, 445),
    _each(_deep): (580, 615, 791),
    lambda arguments: [arguments[0], tuple(arguments[1])]: (106, 750),
    lambda arguments: [[set(item) if isinstance(item, list) and item else {} for item in arguments[0]]]: (115,),
    lambda arguments: [float(arguments[0]), complex(arguments[1])]: (124,),
    lambda arguments: [complex(arguments[0])]: (252,),
    _first(lambda value: {key: tuple(item) for key, item in value.items()}): (722,),
}  # fmt: skip
"""Arguments that JSON has no notation for -> the task_ids that have them (EvalPlus 0.3.1, data/mbpp.py)."""


def _conversion(number: int) -> Convert:
    return next(
        (convert for convert, numbers in _CONVERSIONS.items() if number in numbers), lambda arguments: arguments
    )
