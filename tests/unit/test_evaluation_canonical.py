"""The benchmarks themselves: canonical solutions pass, stubs fail."""

from pathlib import Path

import pytest
from test_evaluation_code_tasks import bench, canonical, sandbox, stubs

from mtp_lightning.evaluation.programs import score
from mtp_lightning.evaluation.sandbox import Sandbox
from mtp_lightning.evaluation.tasks import evalplus
from mtp_lightning.evaluation.tasks.cruxeval import cruxeval
from mtp_lightning.evaluation.tasks.humaneval import humaneval
from mtp_lightning.evaluation.tasks.mbpp import mbpp

__all__ = ["bench", "sandbox"]


def test_canonical_solutions_pass_quickly(bench: Path, sandbox: Sandbox) -> None:
    assert canonical(humaneval(bench / "HumanEval.jsonl.gz"), sandbox, every=4) == ({"": 41}, 41)
    assert canonical(mbpp(bench / "mbpp.jsonl"), sandbox, every=20) == ({"": 25}, 25)
    assert canonical(cruxeval(bench / "cruxeval.jsonl", "output"), sandbox, every=20) == ({"": 40}, 40)


def test_stubs_fail_quickly(bench: Path, sandbox: Sandbox) -> None:
    task = humaneval(bench / "HumanEval.jsonl.gz")
    ids = list(task.prompts)[::4]
    found = score(task, [(i, task.source(i, "    return None\n")) for i in ids], sandbox)
    assert sum(one.passed[""] for one in found) == 0


@pytest.mark.slow
def test_all_canonical_solutions_pass(bench: Path, sandbox: Sandbox) -> None:
    assert canonical(humaneval(bench / "HumanEval.jsonl.gz"), sandbox) == ({"": 164}, 164)
    with Sandbox(workers=2) as usual:  # with the limits that `mtp evaluate` has by default
        assert canonical(mbpp(bench / "mbpp.jsonl"), usual) == ({"": 500}, 500)
        assert canonical(mbpp(bench / "sanitized-mbpp.json", whole=True), usual) == ({"": 427}, 427)
    assert canonical(cruxeval(bench / "cruxeval.jsonl", "output"), sandbox) == ({"": 800}, 800)
    assert canonical(cruxeval(bench / "cruxeval.jsonl", "input"), sandbox) == ({"": 800}, 800)


@pytest.mark.slow
def test_all_canonical_solutions_pass_evalplus(
    bench: Path, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes_unchecked: None
) -> None:
    """Without the check of shapes, which looks at each of some 30 million values."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plus = humaneval(bench / "HumanEvalPlus-Mini.jsonl")
    assert canonical(plus, sandbox) == ({"": 164, "plus": 164}, 164)
    assert evalplus.cache_file(bench / "HumanEvalPlus-Mini.jsonl").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in solutions of MBPP, which are parsed here
def test_all_stubs_fail(bench: Path, sandbox: Sandbox) -> None:
    task = humaneval(bench / "HumanEval.jsonl.gz")
    found = score(task, [(i, task.source(i, "    return None\n")) for i in task.prompts], sandbox)
    assert sum(one.passed[""] for one in found) == 0
    for path, whole in (("mbpp.jsonl", False), ("sanitized-mbpp.json", True)):
        task = mbpp(bench / path, whole=whole)
        sources = [(i, "\n".join(stubs(task.canonical[i]))) for i in task.prompts]
        assert sum(one.passed[""] for one in score(task, sources, sandbox)) == 0
