"""Problems whose programs read standard input and are judged by what they print: APPS (Hendrycks et al. 2021),
CodeContests (Li et al. 2022), and a neutral JSONL

    {"task_id": "a", "prompt": "...", "tests": [{"input": "1 2\\n", "output": "3\\n", "public": true}],
     "time_limit": 2.0, "memory_limit": 256}

(limits, `public` and `task_id` may be left out; seconds and MiB). Every test is a run of its own; what is printed is
compared here, outside the sandbox."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.programs import CodeTask, Job
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.sandbox import Limits, Outcome, Program, Sandbox, values

STOPS = ("\nQUESTION:", "<|endoftext|>")
PYTHON_3 = 3
"""Of CodeContests' languages."""


@dataclass(frozen=True)
class Problem:
    """
    Args:
        tests: (input, expected output, whether the task shows it); with `entry` argument lists and results.
        limits: those of `Limits` that the problem has itself; the sandbox's own for the others.
        entry: a function, or a method of `class Solution`, that is called instead of reading standard input.
        canonical: a right program, where the data has one.
    """

    prompt: str
    tests: Sequence[tuple[Any, Any, bool]]
    limits: Mapping[str, Any] = field(default_factory=dict)
    entry: str | None = None
    canonical: str | None = None


def stdin_tests(path: str | Path) -> CodeTask:
    """
    Raises:
        InputError: none of the three formats.
    """
    rows = read_rows(path, {}, "stdin tests")
    problems: dict[str, Problem] = {}
    names: list[str] = []
    for number, row in enumerate(rows):
        kinds = [kind for kind in _READERS if isinstance(row, dict) and kind in row]
        if not kinds:
            raise InputError(
                f"data: '{path}', row {number + 1}: a problem has 'tests', or APPS's 'input_output', or CodeContests' "
                "'private_tests'"
            )
        try:
            problem = _READERS[kinds[0]](row)
            for given, wanted, _ in problem.tests if problem.entry else ():
                values.encode_all([given, wanted])  # what goes into the sandbox, and is compared with what comes out
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"data: '{path}', row {number + 1}: its tests cannot be read ({error!r})") from error
        if not problem.tests:
            raise InputError(f"data: '{path}', row {number + 1} has no tests, so any program would pass")
        names.append(str(row.get("task_id", row.get("name", row.get("problem_id", row.get("id", f"stdin/{number}"))))))
        problems[names[-1]] = problem
    check_distinct(path, names)

    limits: dict[str, Limits] = {}

    def prepare(sandbox: Sandbox) -> None:
        limits.update({i: replace(sandbox.limits, **p.limits) for i, p in problems.items() if p.limits})

    def jobs(task_id: str, source: str) -> list[Job]:
        problem = problems[task_id]
        return [_job(problem, limits.get(task_id), source, *test) for test in problem.tests]

    prompts = {task_id: problem.prompt for task_id, problem in problems.items()}
    canonical = {task_id: problem.canonical for task_id, problem in problems.items() if problem.canonical}
    shown = any(public for problem in problems.values() for *_, public in problem.tests)
    scores = ("", "public") if shown else ("",)
    return CodeTask("stdin", prompts, STOPS, lambda task_id, completion: completion, jobs, canonical, scores, prepare)


def _job(problem: Problem, limits: Limits | None, source: str, given: Any, expected: Any, public: bool) -> Job:
    scores = ("", "public") if public else ("",)
    if problem.entry is None:
        program = Program(source, stdin=given, limits=limits)

        def right(outcome: Outcome) -> bool:
            return outcome.verdict == "passed" and same_output(outcome.stdout, expected)

    else:
        method = f"\nif 'Solution' in globals(): {problem.entry} = Solution().{problem.entry}\n"
        inputs = values.encode_all([given])
        program = Program(source + method, entry=problem.entry, inputs=inputs, limits=limits)

        def right(outcome: Outcome) -> bool:
            try:
                results = values.decode_all(outcome.result) if outcome.verdict == "passed" else []
            except ValueError:
                return False
            return len(results) == 1 and _as_lists(expected) in (_as_lists(results[0]), [_as_lists(results[0])])

    return Job(program, right, scores, expected if problem.entry is None else repr(expected))


def same_output(printed: str, expected: str) -> bool:
    """Lines without surrounding blanks are the same, empty ones at the ends aside; numbers with a decimal point or an
    exponent, in lines that hold numbers alone, to 1e-5 relative or 1e-8."""
    left, right = ([line.split() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(left) == len(right) and all(map(_same_line, left, right))


def _same_line(printed: Sequence[str], expected: Sequence[str]) -> bool:
    if list(printed) == list(expected):
        return True
    try:
        pairs = [(float(a), float(b)) for a, b in zip(printed, expected, strict=True)]
    except ValueError:
        return False
    inexact = [any(set(word.lower()) & set(".e") for word in words) for words in zip(printed, expected)]
    return all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8) if close else words[0] == words[1]
        for (a, b), close, words in zip(pairs, inexact, zip(printed, expected))
    )


def _as_lists(value: Any) -> Any:
    """JSON has no tuples."""
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _neutral(row: Mapping[str, Any]) -> Problem:
    tests = [(_text(test["input"]), _text(test["output"]), bool(test.get("public"))) for test in row["tests"]]
    return Problem(_text(row["prompt"]), tests, _limits(row.get("time_limit"), row.get("memory_limit")))


def _apps(row: Mapping[str, Any]) -> Problem:
    """`question`, `input_output` (JSON with `inputs`, `outputs`, maybe `fn_name`), `starter_code`, `solutions`."""
    found = row["input_output"]
    found = json.loads(found) if isinstance(found, str) else found
    entry = found.get("fn_name")
    form = "Use Call-Based format" if entry else "Use Standard Input format"
    prompt = f"\nQUESTION:\n{row['question']}\n{row.get('starter_code') or ''}\n{form}\n\nANSWER:\n"
    read = (lambda value: value) if entry else _text
    tests = [
        (read(given), read(wanted), False) for given, wanted in zip(found["inputs"], found["outputs"], strict=True)
    ]
    solutions = row.get("solutions") or "[]"
    solutions = json.loads(solutions) if isinstance(solutions, str) else solutions
    return Problem(prompt, tests, entry=entry, canonical=solutions[0] if solutions else None)


def _code_contests(row: Mapping[str, Any]) -> Problem:
    """`description`, `public_tests`, `private_tests`, `generated_tests` ({`input`: [...], `output`: [...]}),
    `solutions` ({`language`: [...], `solution`: [...]}), `time_limit`, `memory_limit_bytes`."""
    prompt = f"\nQUESTION:\n{row['description']}\n\nUse Standard Input format\n\nANSWER:\n"
    tests = [
        (_text(given), _text(wanted), kind == "public_tests")
        for kind in ("public_tests", "private_tests", "generated_tests")
        for given, wanted in zip((row.get(kind) or _NONE)["input"], (row.get(kind) or _NONE)["output"], strict=True)
    ]
    limit = row.get("time_limit")
    seconds = limit.get("seconds", 0) + limit.get("nanos", 0) / 1e9 if isinstance(limit, Mapping) else limit
    memory = row.get("memory_limit_bytes")
    solutions = row.get("solutions") or {"language": [], "solution": []}
    python = [s for kind, s in zip(solutions["language"], solutions["solution"]) if kind in (PYTHON_3, "PYTHON3")]
    limits = _limits(seconds, memory / 2**20 if memory else None)
    return Problem(prompt, tests, limits, canonical=python[0] if python else None)


_NONE: dict[str, list[str]] = {"input": [], "output": []}
_READERS: dict[str, Callable[[Mapping[str, Any]], Problem]] = {
    "tests": _neutral, "input_output": _apps, "private_tests": _code_contests,
}  # fmt: skip
_LEAST_MB = 128
"""An interpreter and a small program; the limits of contests are for compiled ones."""


def _limits(seconds: float | int | None, memory_mb: float | int | None) -> dict[str, Any]:
    given: dict[str, Any] = {"cpu_seconds": float(seconds)} if seconds else {}
    given |= {"memory_mb": max(_LEAST_MB, round(memory_mb))} if memory_mb else {}
    Limits(**given)  # within their ranges
    return given


def _text(value: Any) -> str:
    """APPS has some tests as lists of lines."""
    if isinstance(value, list):
        value = "\n".join(map(str, value))
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text has U+{ord(value[error.start]):X}, half of a surrogate pair") from error
    return value
