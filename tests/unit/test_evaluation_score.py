"""`mtp evaluate score`: programs from a file, as a table and as JSON; what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_code_tasks import ADD, ADD_PLUS, CRUX, write

from mtp_lightning.cli import main
from mtp_lightning.evaluation import score_command
from mtp_lightning.evaluation.sandbox import SandboxError, run

TASK = "HumanEval/0"
WHOLE = ADD["prompt"] + ADD["canonical_solution"]


@pytest.fixture(autouse=True)
def confined() -> None:
    try:
        run.confinement()
    except SandboxError as error:
        pytest.skip(str(error))


def test_a_file_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.jsonl", ADD, ADD | {"task_id": "HumanEval/1"}, ADD | {"task_id": "HumanEval/2"})
    other = "HumanEval/1"
    samples = write(
        tmp_path / "samples.jsonl",
        {"task_id": TASK, "solution": WHOLE},
        {"task_id": TASK, "completion": "    return 0"},
        {"task_id": other, "completion": "    return a + b\nprint("},
        {"task_id": TASK, "completion": "    1/0"},
        {"task_id": other, "solution": "x"},
        {"task_id": other, "completion": "    return b + a"},
    )
    arguments = ["--task", "humaneval", "--data", str(data), "--k", "[1, 2]", "--json", str(tmp_path / "out.json")]
    details = tmp_path / "details.jsonl"
    assert main(["evaluate", "score", str(samples), *arguments, "--details", str(details)]) == 0
    out = capsys.readouterr().out
    assert "humaneval: 6 programs for 2 of 3 problems" in out
    assert "3 passed, 3 failed" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["metrics"] == {"pass_at_1": pytest.approx((1 / 3 + 2 / 3) / 2), "pass_at_2": pytest.approx(5 / 6)}
    assert (found["verdicts"], found["programs"], found["problems"]) == ({"passed": 3, "failed": 3}, 6, 2)
    assert (found["unsafe_execution"], found["limits_met"]) == (False, {})
    assert "seccomp" in found["confined_by"]
    lines = [json.loads(line) for line in details.read_text().splitlines()]
    assert [line["passed"][""] for line in lines] == [True, False, True, False, False, True]
    assert "ZeroDivisionError" in lines[3]["detail"]


def test_base_and_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = write(tmp_path / "plus.jsonl", ADD_PLUS)
    whole = {"task_id": TASK, "solution": WHOLE}
    samples = write(tmp_path / "s.jsonl", {"task_id": TASK, "completion": "    return int(a + b)"}, whole)
    out = tmp_path / "out.json"
    words = ["evaluate", "score", str(samples), "--task", "humaneval", "--data", str(data), "--json", str(out)]
    assert main([*words, "--unsafe_execution", "true"]) == 0
    assert "all your rights" in capsys.readouterr().err
    found = json.loads(out.read_text())
    assert found["metrics"] == {"pass_at_1": 1.0, "plus/pass_at_1": 0.5}
    assert (found["unsafe_execution"], found["confined_by"]) == (True, "none")


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"task_id": "HumanEval/9", "completion": ""}], [], "row 1 is of 'HumanEval/9', which the data has not"),
        ([{"task_id": TASK}], [], "row 1 has no program: either 'solution' or 'completion'"),
        ([{"task_id": TASK, "completion": None}], [], "row 1 has no program"),
        ([], [], "has no rows"), ([{"id": 1}], [], "samples: .*row 1 has 'id'"),
        ([{"task_id": TASK, "completion": ""}], ["--k", "[2]"], "k is .2.: .* has 1 samples of HumanEval/0"),
        ([{"task_id": TASK, "completion": ""}], ["--k", "[0]"], "k is .0."),
        ([{"task_id": TASK, "completion": ""}], ["--k", "[]"], "k is ..:"),
        ([{"task_id": TASK, "completion": ""}], ["--workers", "0"], "workers is 0: it has to be at least 1"),
        ([{"task_id": TASK, "completion": ""}], ["--cpu_seconds", "0"], "limits.cpu_seconds is 0"),
        ([{"task_id": TASK, "completion": ""}], ["--memory_mb", "9"], "memory_mb is 9: it has to be at least 64"),
        ([{"task_id": TASK, "completion": ""}], ["--json", "/nowhere/x"], "json: /nowhere/x cannot be written"),
        ([{"task_id": TASK, "completion": ""}], ["--details", "/nowhere/x"], "details: /nowhere/x cannot be written"),
    ],
)  # fmt: skip
def test_bad_input(
    tmp_path: Path, rows: list[dict[str, Any]], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, samples = write(tmp_path / "data.jsonl", ADD), write(tmp_path / "samples.jsonl", *rows)
    before = sorted(tmp_path.iterdir())
    assert main(["evaluate", "score", str(samples), "--task", "humaneval", "--data", str(data), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtp: error: ")
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_another_tasks_data_and_what_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, data = write(tmp_path / "s.jsonl", {"task_id": TASK, "completion": ""}), write(tmp_path / "d.jsonl", CRUX)
    assert main(["evaluate", "score", str(samples), "--task", "humaneval", "--data", str(data)]) == 2
    assert "a row of HumanEval has 'task_id'" in capsys.readouterr().err
    for flags, message in ((["--data", str(data)], "--task is needed"), (["--task", "humaneval"], "--data is needed")):
        assert main(["evaluate", "score", str(samples), *flags]) == 2
        assert message in capsys.readouterr().err


def test_no_sandbox_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sandbox that fails in the middle once counted as failures of the model."""
    data = write(tmp_path / "data.jsonl", ADD)
    samples = write(tmp_path / "samples.jsonl", *[{"task_id": TASK, "solution": WHOLE}] * 3)
    real, asked = run._Server.ask, []

    def ask(self: Any, *args: Any) -> Any:
        asked.append(args)
        if len(asked) > 2:
            raise SandboxError("the sandbox's server ended: no space left")
        return real(self, *args)

    monkeypatch.setattr(run._Server, "ask", ask)
    words = ["evaluate", "score", str(samples), "--task", "humaneval", "--data", str(data)]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 1
    shown = capsys.readouterr()
    assert "no space left" in shown.err
    assert "pass_at" not in shown.out
    assert not (tmp_path / "out.json").exists()


def test_means_are_over_problems_with_samples() -> None:
    ids = ["a", "a", "b", "b", "b"]
    passed = [{"": True, "plus": False}, {"": False, "plus": False}, *[{"": True, "plus": True}] * 3]
    found = score_command.metrics_of(("", "plus"), ids, passed, [1, 2])
    assert found == {"pass_at_1": 0.75, "pass_at_2": 1.0, "plus/pass_at_1": 0.5, "plus/pass_at_2": 0.5}


def test_the_benchmark_runs_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write(tmp_path / "data.jsonl", ADD), tmp_path / "out.json"
    assert main(["bench", "sandbox", "--rounds", "1", "--data", str(data), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["programs"], len(found["confined_s"])) == (1, 1)
    assert found["ratio"] > 0
    assert "1 programs, 1 at once" in capsys.readouterr().out
    bad = write(tmp_path / "bad.jsonl", ADD | {"canonical_solution": "    return 0\n"})
    assert main(["bench", "sandbox", "--rounds", "1", "--data", str(bad)]) == 2
    assert "1 of 1 programs do not pass: failed" in capsys.readouterr().err
