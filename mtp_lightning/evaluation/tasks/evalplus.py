"""EvalPlus's format (Liu et al. 2023, arXiv 2305.01210): a function is right where it returns what the canonical
solution returns, on the benchmark's own inputs (`base`) and on many more (`plus`).

The function runs in the sandbox and its results leave it as data; they are compared here, so nothing inside knows what
would be right. What EvalPlus limits for each input (max(1 s, 4 times the canonical solution's time)) is limited for all
inputs together: the sandbox's limit, or 4 times what the canonical solution took where that is more.
"""

import gzip
import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.programs import Job
from mtp_lightning.evaluation.sandbox import Limits, Outcome, Program, Sandbox, values
from mtp_lightning.files import write_bytes

AS_SETS = {
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
}  # fmt: skip
"""Functions of MBPP+ whose results have no order."""
NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
"""Whose tests ask only whether there is a result; one that is True or False says so itself."""
_RELATIVE = 1e-7
_FLOATS = 1e-6
"""Tolerance where the data has none and floats are expected."""
_VERSION = 2
"""Of the cache's content: 1 had what later calls made of earlier results."""


class EvalPlus:
    """
    Args:
        path: the file, whose content names the cache of expected values.
        rows: of EvalPlus's format; inputs as they are to be called with.
        solutions: task_id -> the whole canonical program.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]], solutions: Mapping[str, str]) -> None:
        self.path, self.rows = path, {row["task_id"]: row for row in rows}
        self.solutions = solutions
        self.expected: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._limits: dict[str, Limits] = {}

    def prepare(self, sandbox: Sandbox) -> None:
        """Run the canonical solutions, or take what an earlier run of them returned.

        Raises:
            InputError: one fails; names the problem.
        """
        if not self.expected:
            try:
                self._take(_read(self.path))
            except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, zlib.error):
                found = self._run_canonical(sandbox)  # there is no cache, or none that can be used: it is made again
                self._take(found)
                _write(self.path, found)
        for task_id, seconds in self._seconds.items():
            cpu_seconds = max(sandbox.limits.cpu_seconds, 4 * seconds)
            self._limits[task_id] = replace(sandbox.limits, cpu_seconds=cpu_seconds)

    def _run_canonical(self, sandbox: Sandbox) -> dict[str, dict[str, Any]]:
        """What the cache holds."""
        found: dict[str, dict[str, Any]] = {}
        asked = [(task_id, part) for task_id in self.rows for part in ("base", "plus")]
        programs = [self._program(task_id, part, self.solutions[task_id]) for task_id, part in asked]
        for index, outcome in sandbox.run(replace(program, limits=_PATIENT) for program in programs):
            task_id, part = asked[index]
            if outcome.verdict != "passed" or any(isinstance(v, values.Raised) for v in _results(outcome)):
                raise InputError(
                    f"data: '{self.path}': the canonical solution of {task_id} fails on its {part} inputs: "
                    f"{outcome.verdict}, {(outcome.stderr or outcome.result)[-300:]}"
                )
            found.setdefault(task_id, {})[part] = outcome.result
            found[task_id]["seconds"] = max(outcome.cpu_seconds, found[task_id].get("seconds", 0.0))
        return found

    def _take(self, found: Any) -> None:
        """
        Args:
            found: of a cache, so of any shape.

        Raises:
            LookupError, TypeError, ValueError: not what `_run_canonical` gives for these rows.
        """
        expected = {i: {part: values.decode_all(found[i][part]) for part in ("base", "plus")} for i in self.rows}
        seconds = {i: float(found[i]["seconds"]) for i in self.rows}
        for task_id, row in self.rows.items():
            if any(len(expected[task_id][part]) != len(row[f"{part}_input"]) for part in ("base", "plus")):
                raise ValueError(f"not a result for each input of {task_id}")
            if not 0 <= seconds[task_id] <= 2 * _PATIENT.cpu_seconds:
                raise ValueError(f"{task_id} took {seconds[task_id]} s")
        self.expected, self._seconds = expected, seconds

    def _program(self, task_id: str, part: str, source: str) -> Program:
        row = self.rows[task_id]
        try:
            inputs = values.encode_all(row[f"{part}_input"])
        except RecursionError:
            raise InputError(f"data: '{self.path}': the {part}_input of {task_id} is nested too deeply") from None
        return Program(source, entry=row["entry_point"], inputs=inputs, limits=self._limits.get(task_id))

    def jobs(self, task_id: str, source: str) -> list[Job]:
        return [
            Job(self._program(task_id, part, source), self._judge(task_id, part), scores)
            for part, scores in (("base", ("", "plus")), ("plus", ("plus",)))
        ]

    def _judge(self, task_id: str, part: str) -> Callable[[Outcome], bool]:
        row, expected = self.rows[task_id], self.expected[task_id][part]

        def right(outcome: Outcome) -> bool:
            if outcome.verdict != "passed":
                return False
            results = _results(outcome)
            return len(results) == len(expected) and all(
                is_right(row["entry_point"], arguments, result, wanted, row.get("atol") or 0)
                for arguments, result, wanted in zip(row[f"{part}_input"], results, expected)
            )

        return right


_PATIENT = Limits(cpu_seconds=60.0, memory_mb=4096)


def _results(outcome: Outcome) -> list[Any]:
    try:
        return values.decode_all(outcome.result)
    except ValueError:  # a program that has taken the place of what encodes
        return []


def cache_file(path: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mtp_lightning" / f"evalplus-{_VERSION}-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.json.gz"


def _read(path: Path) -> Any:
    return json.loads(gzip.decompress(cache_file(path).read_bytes()))


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """Goes on without a cache where there can be none, as in a read-only or unknown home: it only saves time."""
    try:
        cache = cache_file(path)
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cache, gzip.compress(json.dumps(found).encode(), compresslevel=1, mtime=0))
    except (OSError, RuntimeError) as error:
        print(f"what the canonical solutions return is not kept for the next time: {error}", file=sys.stderr)


def is_right(entry: str, arguments: Sequence[Any], result: Any, expected: Any, atol: float | int) -> bool:
    """Whether a result counts as the expected one; by EvalPlus's rules, with its exceptions by function."""
    if isinstance(result, values.Raised):
        return False  # it is not None, which is all that some tests ask
    try:
        if entry == "find_zero":
            return bool(abs(sum(c * math.pow(result, i) for i, c in enumerate(arguments[0]))) <= atol)
        if entry in AS_SETS:
            return set(result) == set(expected)
        if entry in NOT_NONE:
            wanted = expected is not None
            return result == wanted if isinstance(result, bool) else (result is not None) == wanted
        if entry == "surface_Area" and abs(result - _surface(*arguments)) <= max(atol, _FLOATS):
            return True
        if entry == "digit_distance_nums" and result == _digit_distance(*arguments):
            return True
        if result == expected:
            return True
        atol = atol or (_FLOATS if _is_floats(expected) else 0)
        return atol > 0 and _is_close(result, expected, atol)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False


def _is_floats(value: Any) -> bool:
    """A float, or a list or tuple of floats alone."""
    return isinstance(value, float) or (
        isinstance(value, list | tuple) and all(isinstance(item, float) for item in value)
    )


def _is_close(result: Any, expected: Any, atol: float | int) -> bool:
    if isinstance(expected, list | tuple):
        same = type(result) is type(expected) and len(result) == len(expected)
        return same and all(_is_close(a, b, atol) for a, b in zip(result, expected))
    if math.isnan(expected) or math.isinf(expected):
        return bool(result == expected or (math.isnan(expected) and math.isnan(result)))
    return bool(abs(result - expected) <= atol + _RELATIVE * abs(expected))


def _surface(edge: float | int, height: float | int) -> float:
    """Of a pyramid on a square."""
    return edge * edge + 2 * edge * math.hypot(edge / 2, height)


def _digit_distance(first: int, second: int) -> int:
    pairs = zip_longest(reversed(str(first)), reversed(str(second)), fillvalue="0")
    return sum(abs(int(a) - int(b)) for a, b in pairs)
