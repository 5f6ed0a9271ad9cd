"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 functions to complete, zero-shot; and HumanEval+, its file in
EvalPlus's format, which asks the same with more inputs."""

from pathlib import Path

from mtp_lightning.evaluation.programs import CodeTask, Job
from mtp_lightning.evaluation.rows import check_distinct, read_rows
from mtp_lightning.evaluation.sandbox import Program
from mtp_lightning.evaluation.tasks.evalplus import EvalPlus

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "<|endoftext|>")
"""Of the paper, and the end of a text where a tokenizer writes it out."""
FIELDS = {"task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str}


def humaneval(path: str | Path) -> CodeTask:
    """
    Raises:
        InputError: not a file of HumanEval or HumanEval+.
    """
    rows = read_rows(path, FIELDS, "HumanEval")
    is_plus = "plus_input" in rows[0]
    more: dict[str, type] = {"base_input": list, "plus_input": list} if is_plus else {"test": str}
    rows = read_rows(path, FIELDS | more, "HumanEval+" if is_plus else "HumanEval")
    check_distinct(path, [row["task_id"] for row in rows])
    by_id = {row["task_id"]: row for row in rows}
    prompts: dict[str, str] = {task_id: row["prompt"] for task_id, row in by_id.items()}
    canonical = {task_id: row["canonical_solution"] for task_id, row in by_id.items()}

    def assemble(task_id: str, completion: str) -> str:
        return prompts[task_id] + completion

    if is_plus:
        plus = EvalPlus(Path(path), rows, {i: assemble(i, canonical[i]) for i in by_id})
        return CodeTask(
            "humaneval", prompts, STOPS, assemble, plus.jobs, canonical, scores=("", "plus"), prepare=plus.prepare
        )

    def jobs(task_id: str, source: str) -> list[Job]:
        row = by_id[task_id]
        return [Job(Program(source + "\n", check=f"{row['test']}\ncheck({row['entry_point']})"))]

    return CodeTask("humaneval", prompts, STOPS, assemble, jobs, canonical)
