"""The code benchmarks: prompts against text written by hand, completions to programs, files that are none."""

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.programs import CodeTask, Scored, cut, score
from mtp_lightning.evaluation.sandbox import Limits, Sandbox, SandboxError
from mtp_lightning.evaluation.tasks.code_tasks import code_task
from mtp_lightning.evaluation.tasks.cruxeval import answered_input, answered_output, cruxeval
from mtp_lightning.evaluation.tasks.humaneval import humaneval
from mtp_lightning.evaluation.tasks.infilling import read_gaps
from mtp_lightning.evaluation.tasks.mbpp import mbpp

ADD = {
    "task_id": "HumanEval/0", "entry_point": "add", "prompt": 'def add(a, b):\n    """Sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}  # fmt: skip
ADD_PLUS = {key: value for key, value in ADD.items() if key != "test"} | {
    "base_input": [[1, 2], [-1, 1]], "plus_input": [[0.1, 0.2], [10**30, 1]], "atol": 0, "contract": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox(Limits(cpu_seconds=20.0), workers=2) as opened:
            yield opened
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bench() -> Path:
    folder = Path(os.environ.get("MTP_DATA_DIR", "/nowhere")) / "bench"
    if not folder.is_dir():
        pytest.skip("MTP_DATA_DIR does not name a folder with bench/")
    return folder


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(task: CodeTask, sandbox: Sandbox, *completions: str) -> list[Scored]:
    """Of completions of the first problem."""
    first = next(iter(task.prompts))
    return score(task, [(first, task.source(first, completion)) for completion in completions], sandbox)


def canonical(task: CodeTask, sandbox: Sandbox, every: int = 1) -> tuple[dict[str, int], int]:
    """Score -> how many canonical solutions have it, and their number."""
    ids = list(task.canonical)[::every]
    found = score(task, [(i, task.source(i, task.canonical[i])) for i in ids], sandbox)
    wrong = [(i, one.verdict, one.detail[-200:]) for i, one in zip(ids, found) if not all(one.passed.values())]
    assert wrong == []
    return {name: sum(one.passed[name] for one in found) for name in task.scores}, len(ids)


def test_stops() -> None:
    assert cut("a\nb\ndef c", ("\ndef", "\nclass")) == "a\nb"
    assert cut("a\nclass x\ndef c", ("\ndef", "\nclass")) == "a"
    assert cut("abc", ()) == cut("abc", ("d",)) == "abc"
    assert cut("def f", ("\ndef",)) == "def f"


def test_humaneval(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ADD).encode()))
    task = humaneval(path)
    assert task.prompts == {"HumanEval/0": 'def add(a, b):\n    """Sum."""\n'}
    assert task.source("HumanEval/0", "    return a\nprint(1)") == 'def add(a, b):\n    """Sum."""\n    return a'
    [job] = task.jobs("HumanEval/0", "x = 1")
    assert job.program.source == "x = 1\n"
    assert job.program.check == ADD["test"] + "\ncheck(add)"
    found = scores(
        task, sandbox, "    return a + b\n\ndef more(", "    return None\n", "    return a +", "    exit()\n"
    )
    assert [(one.passed[""], one.verdict) for one in found] == [
        (True, "passed"), (False, "failed"), (False, "failed"), (False, "exited"),
    ]  # fmt: skip


def mbpp_row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "task_id": number, "text": f"Write f{number}.", "code": f"def f{number}(x):\r\n  return x",
        "test_setup_code": "", "test_list": [f"assert f{number}({i}) == {i}" for i in (1, 2, 3)],
    } | more  # fmt: skip


MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: Write f2. Your code should pass these tests:\n\n"
    "assert f2(1) == 1\nassert f2(2) == 2\nassert f2(3) == 3\n[BEGIN]\ndef f2(x):\r\n  return x\n[DONE]\n\n"
    "You are an expert Python programmer, and here is your task: Write f3. Your code should pass these tests:\n\n"
    "assert f3(1) == 1\nassert f3(2) == 2\nassert f3(3) == 3\n[BEGIN]\ndef f3(x):\r\n  return x\n[DONE]\n\n"
    "You are an expert Python programmer, and here is your task: Write f4. Your code should pass these tests:\n\n"
    "assert f4(1) == 1\nassert f4(2) == 2\nassert f4(3) == 3\n[BEGIN]\ndef f4(x):\r\n  return x\n[DONE]\n\n"
    "You are an expert Python programmer, and here is your task: Write f11. Your code should pass these tests:\n\n"
    "assert f11(root) == root\n[BEGIN]\n"
)


def test_mbpp(tmp_path: Path, sandbox: Sandbox) -> None:
    asked = mbpp_row(11, test_list=["assert f11(root) == root"], test_setup_code="root = Node()", test_imports=None)
    task = mbpp(write(tmp_path / "mbpp.jsonl", *map(mbpp_row, (2, 3, 4)), asked, mbpp_row(600)))
    assert task.prompts == {"Mbpp/11": MBPP_PROMPT}
    assert task.stops == ("[DONE]",)
    found = scores(task, sandbox, "class Node: pass\ndef f11(x): return x\n[DONE]\nx(", "def f11(x): return x")
    assert [one.passed[""] for one in found] == [True, False]
    assert "Node" in found[1].detail
    assert list(mbpp(tmp_path / "mbpp.jsonl", whole=True).prompts) == [f"Mbpp/{i}" for i in (2, 3, 4, 11, 600)]
    with pytest.raises(InputError, match="no problem 3, and 2, 3 and 4 are MBPP's worked examples"):
        mbpp(write(tmp_path / "few.jsonl", mbpp_row(2), mbpp_row(4)))


def test_a_slow_solution_of_mbpp_has_its_time_and_no_other(tmp_path: Path) -> None:
    task = mbpp(write(tmp_path / "mbpp.jsonl", *map(mbpp_row, (2, 3, 4, 122, 123))))
    usual = Limits(memory_mb=256)
    task.prepare(Sandbox(usual, 1))
    slow, other = (task.jobs(name, "")[0].program.limits for name in ("Mbpp/123", "Mbpp/122"))
    assert other is None, "the sandbox's own"
    assert slow == replace(usual, cpu_seconds=20.0)


def test_mbpp_sanitized(tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [mbpp_row(i, prompt=f"Do {i}.", test_imports=["import math"]) for i in (2, 3, 4, 12)]
    rows[3]["test_list"] = ["assert math.isclose(f12(1.0), 1)"]
    path = tmp_path / "sanitized.json"
    path.write_text(json.dumps(rows))
    task = mbpp(path)
    assert "task: Do 2. Your code" in task.prompts["Mbpp/12"]
    assert task.prompts["Mbpp/12"].endswith("task: Do 12. Your code should pass these tests:\n\n"
                                            "assert math.isclose(f12(1.0), 1)\n[BEGIN]\n")  # fmt: skip
    assert [one.passed[""] for one in scores(task, sandbox, "def f12(x): return x", "def f12(x): 0")] == [True, False]


DEEP: list[Any] = []
for _ in range(700):  # deeper than what goes into the sandbox may be; JSON itself may be so deep
    DEEP = [DEEP]
CRUX = {"id": "sample_0", "code": "def f(a, b):\n    return a + b", "input": "'x', 'y'", "output": "'xy'"}


def test_cruxeval(tmp_path: Path, sandbox: Sandbox) -> None:
    path = write(tmp_path / "cruxeval.jsonl", CRUX)
    output, given = cruxeval(path, "output"), cruxeval(path, "input")
    assert output.prompts["sample_0"].startswith("You are given a Python function and an assertion containing an input")
    assert output.prompts["sample_0"].endswith(
        '[ANSWER]\nassert f("x9j") == "x9ja"\n[/ANSWER]\n\n'
        "[PYTHON]\ndef f(a, b):\n    return a + b\nassert f('x', 'y') == ??\n[/PYTHON]\n[ANSWER]\n"
    )
    assert given.prompts["sample_0"].startswith("You will be given a function f and an output in the form f(??) ==")
    assert given.prompts["sample_0"].endswith(
        '[ANSWER]\nassert f("ba", "nana") == "banana"\n[/ANSWER]\n\n'
        "[PYTHON]\ndef f(a, b):\n    return a + b\nassert f(??) == 'xy'\n[/PYTHON]\n[ANSWER]\n"
    )
    for text in (*output.prompts.values(), *given.prompts.values()):
        assert text.count("[PYTHON]") == 3
        assert "\\" not in text
    assert [job.program.limits for job in output.jobs("sample_0", "'xy'")] == [None], "the sandbox's own"
    found = scores(
        output, sandbox, "assert f('x', 'y') == 'xy'\n[/ANSWER] == 3", "'x' + 'y'", "f('x', 'y')", "'xz'",
        "'xy' == 'xy'", "1 or True", "type('E', (), {'__eq__': lambda a, b: True})()", "'xy'; import os; os._exit(0)",
    )  # fmt: skip
    assert [one.passed[""] for one in found] == [True, True, False, False, True, False, False, False]
    found = scores(
        given, sandbox, "assert f('', 'xy') == 'xy'\n[/ANSWER]", "f('xy', '')", "'xy'", "f('y', 'x')",
        "f(1, 2) or True",
    )  # fmt: skip
    assert [one.passed[""] for one in found] == [True, True, False, False, False]
    assert (answered_output("a == b == c"), answered_input("assert f(1) == 2")) == ("b", "f(1)")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("humaneval", CRUX, "a row of HumanEval has 'task_id'"), ("mbpp", ADD, "a row of MBPP has 'task_id' .int"),
        ("humaneval", {k: v for k, v in ADD.items() if k != "test"}, "a row of HumanEval has 'test'"),
        ("cruxeval-output", ADD, "a row of CRUXEval has 'id'"), ("stdin", ADD, "a problem has 'tests', or APPS's"),
        ("stdin", {"prompt": "", "tests": []}, "row 1 has no tests, so any program would pass"),
        ("stdin", {"prompt": "", "tests": [{"input": "1"}]}, "row 1: its tests cannot be read .KeyError"),
        ("stdin", {"prompt": "", "tests": [{"input": 1, "output": ""}]}, "row 1: its tests cannot be read .*no text"),
        ("stdin", {"prompt": "", "tests": [{"input": "a\ud800", "output": ""}]}, r"jsonl', row 1: .* has U.D800,"),
        ("stdin", {"prompt": "", "tests": [{"input": "", "output": ["\udfff"]}]}, r"row 1: .* has U.DFFF, half of a"),
        (
            "stdin", {"prompt": "", "tests": [{"input": "", "output": ""}], "memory_limit": float("inf")},
            r"row 1: its tests cannot be read .OverflowError",
        ),
        (
            "stdin", {"question": "", "input_output": f'{{"inputs": [], "outputs": {"[" * 9000}'},
            r"row 1: its tests cannot be read .RecursionError",
        ),
        (
            "stdin", {"question": "", "input_output": {"fn_name": "f", "inputs": [[DEEP]], "outputs": [1]}},
            r"row 1: its tests cannot be read .RecursionError",
        ),
        ("humanevil", ADD, "it has to be one of .*did you mean 'humaneval'"),
    ],
)  # fmt: skip
def test_another_tasks_file_is_refused(tmp_path: Path, task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        code_task(task, write(tmp_path / "data.jsonl", row))


PLUS = ADD_PLUS | {"task_id": "Mbpp/75", "base_input": [[[[1]], 2]]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has none of the test split, the problems 11 to 510"),
        ([mbpp_row(11, test_list=[])], "row 4 has no tests, so any program would pass"),
        ([mbpp_row(11), mbpp_row(12, test_list=[5])], "row 5: its 'test_list' has 5, which has to be a text"),
        ([mbpp_row(11, test_imports=3)], "row 4: its 'test_imports' has 3"),
        ([mbpp_row(11, test_setup_code=["x"])], r"row 4: its 'test_setup_code' has \['x'\]"),
    ],
)
def test_rows_of_mbpp_that_cannot_be_used(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=rf"data: '.*mbpp.jsonl'(,|) {message}"):
        mbpp(write(tmp_path / "mbpp.jsonl", *map(mbpp_row, (2, 3, 4)), *rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "mine"}, "row 2: its task_id is 'mine', and has to end in a number, as 'Mbpp/2'"),
        ({"base_input": [[]]}, "row 2: its base_input is not what Mbpp/75 takes .IndexError"),
        ({"plus_input": [7]}, "row 2: its plus_input is not what Mbpp/75 takes .TypeError"),
        ({"task_id": "Mbpp/722", "base_input": [[[1], 2]]}, "row 2: its base_input is not what Mbpp/722 takes"),
        ({"task_id": "Mbpp/124", "base_input": [["a", "b"]]}, "row 2: its base_input is not what Mbpp/124 takes"),
    ],
)
def test_rows_of_mbpp_plus_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"data: '.*plus.jsonl', {message}"):
        mbpp(write(tmp_path / "plus.jsonl", PLUS | {"task_id": "Mbpp/9"}, PLUS | row))


def test_inputs_that_are_nested_too_deeply(tmp_path: Path, sandbox: Sandbox) -> None:
    task = humaneval(write(tmp_path / "plus.jsonl", ADD_PLUS | {"plus_input": [DEEP]}))
    with pytest.raises(InputError, match="the plus_input of HumanEval/0 is nested too deeply"):
        task.prepare(sandbox)


def test_solutions_of_nothing_have_no_gaps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every canonical_solution is empty, so there is nothing to take out"):
        read_gaps(write(tmp_path / "empty.jsonl", ADD | {"canonical_solution": "\n"}), "single-line")


@pytest.mark.parametrize(("task", "row"), [("humaneval", ADD), ("humaneval", ADD_PLUS), ("cruxeval-input", CRUX)])
def test_a_problem_that_is_there_twice_is_refused(tmp_path: Path, task: str, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="twice"):
        code_task(task, write(tmp_path / "data.jsonl", row, row))


# Real files


def stubs(code: str) -> list[str]:
    """A function that returns None for each of a program's; its classes as they are."""
    import ast

    found = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            found.append(f"def {node.name}(*args, **kwargs): return None")
        elif isinstance(node, ast.ClassDef | ast.Import | ast.ImportFrom):
            found.append(ast.unparse(node))
    return found
