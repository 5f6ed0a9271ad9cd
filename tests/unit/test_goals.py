"""The script that judges the project's goals: bounds, what is not to be judged, and what it reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from goals import goals_table, judge_decoding, judge_training, main
from test_bench_decode import decoded_rows
from test_bench_train import row

from mtp_lightning.bench import overhead


def verdicts(rows: list[dict[str, Any]], overheads: dict[str, dict[str, Any]] | None = None) -> dict[str, bool | None]:
    return {goal.text: goal.reached for goal in judge_training(rows, overheads or {})}


def logging(logged: float, others: float, **changes: Any) -> dict[str, dict[str, Any]]:
    """Medians are far better: what only some steps do is not in them. `changes` of the logged steps alone."""
    base = {"median": 0.0, "busy": 0, "steady": True}
    return {
        overhead.MLFLOW: base | {"mean": logged} | changes,
        overhead.NOT_LOGGED: base | {"mean": others},
        overhead.LOGGED: base | {"mean": 9.0, "median": 9.0},
    }


def test_goals_are_judged_at_their_bounds() -> None:
    rows = [
        row("ours", 1, 1400.0), row("huggingface", 1, 1000.0), row("ours", 4, 1299.0), row("naive", 4, 1000.0),
        row("ours", 4, 998.0, 32000), row("naive", 4, 1000.0, 32000),
        row("ours", 4, 500.0, 256), row("ours", 1, 1000.0, 256),
    ]  # fmt: skip
    found = verdicts(rows, logging(1.5, 0.31))
    assert found["n = 1 over Hugging Face, tokens/s"] is True
    assert found["n = 4 over naive n = 4, tokens/s"] is False
    assert found["n = 4 over the paper's loop, tokens/s"] is None
    assert found["n = 4 over naive n = 4, tokens/s, V = 32000"] is False
    assert found["n = 4 over n = 1, tokens/s over FLOPs, V = 256"] is True, "half the rate, twice the FLOPs"
    assert found["n = 4 over n = 1, tokens/s over FLOPs, V = 32000"] is None
    assert found["Lightning and MLflow, ms a step"] is True
    assert found["Lightning, steps not logged, ms a step"] is False
    for changes in ({"busy": None}, {"busy": 3, "steady": False}, {"steady": False}):
        found = verdicts(rows, logging(1.5, 0.31, **changes))
        assert found["Lightning and MLflow, ms a step"] is None
        assert found["Lightning, steps not logged, ms a step"] is False, "that was measured in quiet"


def test_memory_goals_are_upper_bounds_and_need_no_steady_rates() -> None:
    rows = [
        row("ours", 4, 1.0, 32000, peak_bytes=1800, steady=False, busy=5),
        row("naive", 4, 1.0, 32000, peak_bytes=4000),
    ]
    text = "n = 4 over naive n = 4, peak memory, V = 32000"
    assert verdicts(rows)[text] is True
    assert verdicts([rows[0] | {"peak_bytes": 1801}, rows[1]])[text] is False
    for each in rows:
        del each["peak_bytes"]
    assert verdicts(rows)[text] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steady": False}, "too few rounds, or median far below best"),
        ({"steady": False, "busy": 2}, "on a busy machine"),
        ({"busy": None}, "nobody looked whether the machine was busy"),
    ],
)
def test_a_row_that_is_unsteady_or_of_a_busy_machine_is_not_judged(changes: dict[str, Any], reason: str) -> None:
    rows = [row("ours", 1, 2000.0, **changes), row("huggingface", 1, 1000.0)]
    goal = judge_training(rows, {})[0]
    assert (goal.value, goal.reached, goal.reason) == (2.0, None, reason)
    decoded = judge_decoding(decoded_rows(**changes))
    assert {goal.reason for goal in decoded if "k = 4" in goal.text} == {reason}


def test_goals_of_decoding_are_judged_at_their_bounds() -> None:
    goals = {goal.text: goal for goal in judge_decoding(decoded_rows())}
    values = {text: (goal.value, goal.reached) for text, goal in goals.items()}
    assert values["m: plain over llama.cpp, equal layers"] == (0.9, True)
    assert values["m: four heads over llama.cpp"] == (1.2, False)
    assert values["m: cost of a step over plain, k = 4"] == (1.5, False)
    assert values["m: four heads over use_mtp"] == (2.0, True)
    assert values["m: adaptive over plain, batch 1"] == (0.9, False)
    assert values["texts equal to plain decoding's, ours"] == (1.0, True)
    assert not any("torch's layers" in text for text in goals), "at batch 1 llama.cpp is the bound"
    several = {goal.text: goal for goal in judge_decoding(decoded_rows(batch=2, equal=4))}
    assert several["m: plain over torch's layers, batch 2"].reached is False
    assert several["texts equal to plain decoding's, ours"].value == 0.9


def test_the_table_says_what_was_not_measured() -> None:
    overheads = logging(2.0, 0.1, busy=0)
    del overheads[overhead.NOT_LOGGED]
    shown = goals_table(judge_training([], overheads), "title")
    assert list(shown.columns[3].cells)[-2:] == ["not reached", "not measured"]
    shown = goals_table(judge_training([], {overhead.MLFLOW: {"mean": 2.0, "median": 0.0}}), "title")
    assert list(shown.columns[3].cells)[-2] == "nobody looked whether the machine was busy", "an older file"


def test_the_script_reads_what_either_command_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, decode = tmp_path / "train.json", tmp_path / "decode.json"
    machine = {"device": "AMD EPYC 9B45", "threads": 2}
    content = {"machine": machine, "rows": [row("ours", 1, 1.0)], "overhead_ms": logging(1.0, 0.1)}
    train.write_text(json.dumps(content))
    decode.write_text(json.dumps({"machine": machine, "rows": decoded_rows()}))
    assert main([str(train)]) == 0, "nothing that was measured is missed"
    assert "AMD EPYC 9B45, threads 2" in " ".join(capsys.readouterr().out.split())
    assert main([str(train), str(decode)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed on AMD EPYC 9B45")]
    assert lines[0].endswith("m: four heads over llama.cpp: 1.20, the bound is 1.30")
    assert len(lines) == 3
