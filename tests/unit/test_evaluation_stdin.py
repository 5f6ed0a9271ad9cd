"""Programs that read and print: APPS and CodeContests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_evaluation_code_tasks import canonical, sandbox, scores, write

from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.sandbox import Limits, Sandbox
from mtp_lightning.evaluation.tasks.stdin_tests import same_output, stdin_tests

__all__ = ["sandbox"]


def test_stdin_problems(tmp_path: Path, sandbox: Sandbox) -> None:
    neutral = {
        "task_id": "sum", "prompt": "Add.\n", "time_limit": 1, "memory_limit": 16,
        "tests": [{"input": "1 2\n", "output": "3\n", "public": True}, {"input": "5 6", "output": "11"}],
    }  # fmt: skip
    task = stdin_tests(write(tmp_path / "neutral.jsonl", neutral))
    assert task.prompts == {"sum": "Add.\n"}
    task.prepare(sandbox)
    assert [job.program.limits for job in task.jobs("sum", "")] == [Limits(cpu_seconds=1.0, memory_mb=128)] * 2
    right = "print(sum(map(int, input().split())))"
    found = scores(
        task, sandbox, right, "print(3)", "print('3 ')\nexit()", "print(4)", "while True: pass", right + "\n1/0"
    )
    assert [(one.passed[""], one.passed["public"]) for one in found] == [
        (True, True), (False, True), (False, True), (False, False), (False, False), (False, False),
    ]  # fmt: skip
    assert [one.verdict for one in found] == ["passed", "failed", "failed", "failed", "timed_out", "failed"]


def test_apps_and_codecontests(tmp_path: Path, sandbox: Sandbox) -> None:
    tests = {"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
    program = "print(int(input()) + int(input()))"
    apps = {
        "problem_id": 7, "question": "Add.", "input_output": json.dumps(tests), "difficulty": "introductory",
        "starter_code": "", "solutions": json.dumps([program]),
    }  # fmt: skip
    task = stdin_tests(write(tmp_path / "apps.jsonl", apps))
    assert task.prompts == {"7": "\nQUESTION:\nAdd.\n\nUse Standard Input format\n\nANSWER:\n"}
    assert canonical(task, sandbox) == ({"": 1}, 1)
    called = {"inputs": [[1, [2]], [3, []]], "outputs": [[[1, 2]], [3]], "fn_name": "join"}
    starter = "class Solution:\n    def join(self, a, b):"
    task = stdin_tests(
        write(tmp_path / "f.jsonl", {"question": "Q", "starter_code": starter, "input_output": json.dumps(called)})
    )
    assert task.prompts == {"stdin/0": f"\nQUESTION:\nQ\n{starter}\nUse Call-Based format\n\nANSWER:\n"}
    found = scores(
        task, sandbox, starter + "\n        return (a, *b)", "def join(a, b): return [a] + b",
        "def join(a, b): return [3]",
    )  # fmt: skip
    assert [one.passed[""] for one in found] == [True, True, False]
    contests = {
        "name": "1_A", "description": "Add.", "public_tests": {"input": ["1\n2\n"], "output": ["3\n"]},
        "private_tests": {"input": ["5\n6\n"], "output": ["11\n"]}, "generated_tests": {"input": [], "output": []},
        "solutions": {"language": [2, 3], "solution": ["int main", program]},
        "time_limit": {"seconds": 1, "nanos": 500_000_000}, "memory_limit_bytes": 256 << 20,
    }  # fmt: skip
    task = stdin_tests(write(tmp_path / "contests.jsonl", contests))
    task.prepare(sandbox)
    assert task.jobs("1_A", "")[0].program.limits == Limits(cpu_seconds=1.5, memory_mb=256)
    assert canonical(task, sandbox) == ({"": 1, "public": 1}, 1)


def test_what_a_problem_does_not_limit_the_command_does(tmp_path: Path) -> None:
    row = {"prompt": "", "tests": [{"input": "", "output": ""}]}
    rows = [row | given for given in ({}, {"time_limit": 1.5}, {"memory_limit": 200})]
    task = stdin_tests(write(tmp_path / "neutral.jsonl", *rows))
    given = Limits(cpu_seconds=9.0, memory_mb=512, output_kb=8)
    task.prepare(Sandbox(given))
    found = [task.jobs(f"stdin/{i}", "")[0].program.limits or given for i in range(3)]
    assert found == [given, replace(given, cpu_seconds=1.5), replace(given, memory_mb=200)]
    with pytest.raises(InputError, match=r"limits\.cpu_seconds is -1"):
        stdin_tests(write(tmp_path / "negative.jsonl", row | {"time_limit": -1}))


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True), ("1  2 \r\n 3\n\n", "1 2\n3", True), ("1 2 3", "1 2\n3", False), ("", "1", False),
        ("0.333333", "0.33333333", True), ("0.34", "0.33", False), ("10000001", "10000002", False), ("1.0", "1", True),
        ("yes 1.0", "yes 1.00", False), ("nan", "1.0", False), ("1.0 2.0", "1.0", False), ("Yes", "YES", False),
    ],
)  # fmt: skip
def test_what_is_printed_is_compared_by_lines(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) == same
