"""CRUXEval (Gu et al. 2024, arXiv 2401.03065): given a function, the output of a call (CRUXEval-O), or a call that has
an output (CRUXEval-I). Two worked examples, no chain of thought. A program has the sandbox's limits, as everywhere;
CRUXEval's own is 3 s of wall clock."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mtp_lightning.evaluation.programs import CodeTask, Job
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.sandbox import Program

STOPS = ("[/ANSWER]",)
OUTPUT_PROMPT = """\
You are given a Python function and an assertion containing an input to the function. Complete the assertion with a \
literal (no unsimplified expressions, no function calls) containing the output when executing the provided code on the \
given input, even if the function is incorrect or incomplete. Do NOT output any extra information. Provide the full \
assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

"""
INPUT_PROMPT = """\
You will be given a function f and an output in the form f(??) == output. Find any input such that executing f on the \
input leads to the given output. There may be multiple answers, but you should only output one. In [ANSWER] and \
[/ANSWER] tags, complete the assertion with one such input that will produce the output when executing the function.

[PYTHON]
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count
assert f(??) == 3
[/PYTHON]
[ANSWER]
assert f(["mq", "px", "zy"]) == 3
[/ANSWER]

[PYTHON]
def f(s1, s2):
    return s1 + s2
assert f(??) == "banana"
[/PYTHON]
[ANSWER]
assert f("ba", "nana") == "banana"
[/ANSWER]

"""


def cruxeval(path: str | Path, predict: Literal["input", "output"]) -> CodeTask:
    """
    Raises:
        InputError: not a file of CRUXEval.
    """
    rows = read_rows(path, {"id": str, "code": str, "input": str, "output": str}, "CRUXEval")
    check_distinct(path, [row["id"] for row in rows])
    by_id = {row["id"]: row for row in rows}
    is_output = predict == "output"
    prompts = {i: output_prompt(row) if is_output else input_prompt(row) for i, row in by_id.items()}
    canonical = {i: f"assert f({row['input']}) == {row['output']}\n" for i, row in by_id.items()}

    def jobs(task_id: str, answer: str) -> list[Job]:
        row = by_id[task_id]
        given_away = f"f({row['input']})" in answer if is_output else "f(" not in answer
        if given_away:
            return []
        check, canary = f"assert {row['output']} == {answer}", f"assert __other__ == {answer}"
        return [Job(Program(row["code"], check=check, canary=canary))]

    def assemble(task_id: str, completion: str) -> str:
        return answered_output(completion) if is_output else answered_input(completion)

    return CodeTask(f"cruxeval-{predict}", prompts, STOPS, assemble, jobs, canonical)


def output_prompt(row: Mapping[str, Any]) -> str:
    return f"{OUTPUT_PROMPT}[PYTHON]\n{row['code']}\nassert f({row['input']}) == ??\n[/PYTHON]\n[ANSWER]\n"


def input_prompt(row: Mapping[str, Any]) -> str:
    return f"{INPUT_PROMPT}[PYTHON]\n{row['code']}\nassert f(??) == {row['output']}\n[/PYTHON]\n[ANSWER]\n"


def answered_output(completion: str) -> str:
    """`assert f(1) == [2]` -> `[2]`: between the first `==` and the next, or all there is."""
    parts = completion.split("==")
    return (parts[1] if len(parts) > 1 else completion).strip()


def answered_input(completion: str) -> str:
    """`assert f(1) == [2]` -> `f(1)`: before the first `==`, after `assert`."""
    before = completion.split("==")[0]
    parts = before.split("assert")
    return (parts[1] if len(parts) > 1 else before).strip()
