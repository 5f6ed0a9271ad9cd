"""Programs in turns: what a model is told of public tests, and that private ones are never shown."""

import json
from pathlib import Path

import pytest

from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import fit_prompt
from mtp_lightning.evaluation.code_benchmark import CodeBenchmark, Running
from mtp_lightning.evaluation.passk import n_at_k
from mtp_lightning.evaluation.samples import Sample
from mtp_lightning.evaluation.tasks.benchmarks import make_benchmark
from mtp_lightning.evaluation.tasks.code_tasks import code_task
from mtp_lightning.evaluation.turns import in_turns
from mtp_lightning.evaluation.write_samples import Asked

BYTES = ByteTokenizer()
RIGHT = "print(int(input()) * 2)\n"
ANSWERS = {
    "double/right": [RIGHT],
    "double/late": ["print(3)\n", "print(1 / 0)\n", RIGHT],
    "double/never": ["print(5)\n", "while True: pass\n", "print(4)\n"],
    "double/public_alone": ["print(2 if int(input()) == 1 else 'SECRET')\n"],
}
"""What is written for each problem, turn by turn."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tests = [
        {"input": "1\n", "output": "2\n", "public": True}, {"input": "777\n", "output": "1554\n", "public": False},
    ]  # fmt: skip
    rows = [{"task_id": i, "prompt": f"{i}: twice a number.\n", "tests": tests, "time_limit": 0.5} for i in ANSWERS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_programs_in_turns(data: Path) -> None:
    benchmark = CodeBenchmark(code_task("stdin", data), Running(workers=1), turns=3)
    assert benchmark.name == "stdin-turns-3"
    seen: dict[str, str] = {}
    batches: list[int] = []

    def write(asked: Asked) -> tuple[list[Sample], dict[str, int]]:
        batches.append(len(asked))
        written = []
        for prompt, number in asked:
            problem, _, turn = prompt.task_id.partition(" turn ")
            seen[prompt.task_id] = BYTES.decode(prompt.ids)
            written.append(Sample(prompt.task_id, number, ANSWERS[problem][int(turn or 1) - 1], "stop"))
        return written, {"forwards": len(asked)}

    prompts = [fit_prompt(i, BYTES.encode(text), BYTES, None) for i, text in benchmark.prompts.items()]
    with in_turns(benchmark, BYTES, write, None) as in_three:
        samples, counts = in_three([(prompt, 4) for prompt in prompts])
    assert [(s.task_id, s.sample) for s in samples] == [(i, 4) for i in ANSWERS]
    assert [[*s.earlier, s.completion] for s in samples] == [*ANSWERS.values()]
    assert batches == [4, 2, 2], "who passes the public tests is done"
    assert counts == {"forwards": 8}
    first = "double/late: twice a number.\nprint(3)\n"
    told = "Your code failed the following tests:\n- input `1` failed: Expected output `2` but got `3`\n"
    again = "Give it another try.\n\nANSWER:\n"
    assert seen["double/late turn 2"] == f"{first}\n\n{told}{again}"
    assert "ZeroDivisionError" in seen["double/late turn 3"]
    assert seen["double/late turn 3"].startswith(seen["double/late turn 2"])
    assert "- input `1` failed: Execution took too long.\n" in seen["double/never turn 3"]
    for text in seen.values():
        assert not any(secret in text for secret in ("777", "1554", "SECRET"))
    judged = benchmark.judge([s._replace(sample=0) for s in samples], [1])
    assert judged.scores == {"pass_at_1": [1, 1, 0, 0], "public/pass_at_1": [1, 1, 0, 1]}


def test_one_program_is_chosen_by_the_public_tests(data: Path) -> None:
    benchmark = CodeBenchmark(code_task("stdin", data), Running(workers=1))
    benchmark.limit(1)
    texts = [RIGHT, "print(3)\n", ANSWERS["double/public_alone"][0], "print(4)\n"]
    judged = benchmark.judge([Sample("double/right", i, text, "stop") for i, text in enumerate(texts)], [1, 3])
    assert judged.scores["1_at_3"] == [pytest.approx(n_at_k(4, 1, 1, 3, public=2))]
    assert judged.scores["1_at_3"][0] > judged.scores["pass_at_1"][0]


def test_problems_without_public_tests_pass_none(data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()[:2]]
    rows[0]["tests"] = [{"input": "777\n", "output": "1554\n"}]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = CodeBenchmark(code_task("stdin", mixed), Running(workers=1))
    samples = [Sample(i, n, text, "stop") for i in benchmark.prompts for n, text in enumerate((RIGHT, "print(3)\n"))]
    judged = benchmark.judge([*samples], [1, 2])
    assert judged.scores["public/pass_at_1"] == [0.5]
    assert judged.scores["pass_at_1"] == [0.5, 0.5]
    assert judged.scores["1_at_2"] == [0.5, 1.0], "without public tests any may be taken"
    programs = tmp_path / "programs.jsonl"
    programs.write_text("".join(sample.line() for sample in samples if sample.completion == RIGHT or sample.sample))
    words = ["evaluate", "score", str(programs), "--task", "stdin", "--data", str(mixed)]
    assert main([*words, "--json", str(tmp_path / "score.json")]) == 0
    assert json.loads((tmp_path / "score.json").read_text())["metrics"]["public/pass_at_1"] == 0.5
    benchmark.limit(1)
    assert benchmark.judge(samples, [1]).scores == {"pass_at_1": [0.5]}


def test_limits_that_programs_met_are_counted(data: Path) -> None:
    benchmark = CodeBenchmark(code_task("stdin", data), Running(workers=1))
    benchmark.limit(1)
    texts = ["while True: pass\n", "x = bytearray(10**10)\n", "print(3)\n"]
    judged = benchmark.judge([Sample("double/right", i, text, "stop") for i, text in enumerate(texts)], [1])
    assert judged.verdicts == {"timed_out": 1, "out_of_memory": 1, "failed": 1}
    assert judged.limits_met == {"cpu": 1, "memory": 1}


def test_turns_need_public_tests(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = data.read_text().replace('"public": true', '"public": false')
    data.write_text(text)
    with pytest.raises(InputError, match="the problems of stdin have no public tests"):
        CodeBenchmark(code_task("stdin", data), Running(), turns=2)
    with pytest.raises(InputError, match="gsm8k has no public tests"):
        make_benchmark("gsm8k", data, Running(), turns=2)
    assert main(["evaluate", "stdin", "a.ckpt", "--data", str(data), "--turns", "4"]) == 2
    assert "turns is 4: it has to be at least 1 and at most 3" in capsys.readouterr().err


def test_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_evaluation_command import checkpoint

    monkeypatch.chdir(tmp_path)
    checkpoint()
    command = [
        "evaluate",
        "stdin",
        "a.ckpt",
        "--data",
        str(data),
        "--turns",
        "2",
        "--max_new_tokens",
        "6",
        "--k",
        "[1, 2]",
    ]
    assert main([*command, "--k", "[1, 2]", "--samples", "2", "--temperatures", "[0.8]", "--json", "out.json"]) == 0
    found = json.loads(Path("out.json").read_text())
    assert {"eval/stdin-turns-2/pass_at_1", "eval/stdin-turns-2/1_at_2"} <= found["metrics"].keys()
    assert "seccomp" in found["confined_by"]
    assert not found["unsafe_execution"]
    assert f"programs were confined by {found['confined_by']}" in capsys.readouterr().out
    file = Path("evaluation/stdin-turns-2_step_7_temperature_0.8.jsonl")
    before = file.read_bytes()
    assert all(len(json.loads(line)["earlier"]) == 1 for line in before.splitlines())
    file.write_bytes(before[:200])
    assert main([*command, "--k", "[1, 2]", "--samples", "2", "--temperatures", "[0.8]", "--heads_used", "1"]) == 0
    assert file.read_bytes() == before
    capsys.readouterr()
    for other, says in (
        (["--cpu_seconds", "9"], "limits {'cpu_seconds': 4.0"),
        (["--unsafe_execution", "true"], "unsafe"),
    ):
        assert main([*command, "--samples", "2", "--temperatures", "[0.8]", *other]) == 2
        assert f"was made with {says}" in capsys.readouterr().err, "what a model is told of its programs"
    unsafe = ["--turns", "1", "--limit", "1", "--unsafe_execution", "true", "--out", "unsafe", "--json", "out.json"]
    assert main([*command, "--samples", "2", "--temperatures", "[0.8]", *unsafe]) == 0
    found = json.loads(Path("out.json").read_text())
    assert (found["confined_by"], found["unsafe_execution"]) == ("none", True)


def test_prompts_that_lost_their_beginning_in_a_later_turn_are_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_evaluation_command import checkpoint

    monkeypatch.chdir(tmp_path)
    checkpoint(context=100)
    ask = ["evaluate", "stdin", "a.ckpt", "--data", str(data), "--max_new_tokens", "6", "--json", "out.json"]
    ask += ["--temperatures", "[0]", "--k", "[1]", "--limit", "2", "--turns"]
    for turns, cut in (("1", 0), ("2", 2)):
        assert main([*ask, turns]) == 0
        assert json.loads(Path("out.json").read_text())["temperatures"][0]["cut_prompts"] == cut
        assert ("2 prompts were longer than the context" in capsys.readouterr().out) == bool(cut)
