"""The script that judges the project's goals: bounds, what is not to be judged, and what it reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from goals import goals_table, judge_decoding, judge_training, main
from test_bench_decode import decoded_rows
from test_bench_train import row


def verdicts(rows: list[dict[str, Any]], overheads: dict[str, float] | None = None) -> dict[str, bool | None]:
    return {goal.text: goal.reached for goal in judge_training(rows, overheads or {})}


def test_goals_are_judged_at_their_bounds() -> None:
    rows = [row("ours", 1, 1250.0), row("huggingface", 1, 1000.0), row("ours", 4, 1240.0), row("naive", 4, 1000.0)]
    found = verdicts(rows, {"Lightning and logging": 1.5, "Lightning and MLflow": 1.6})
    assert found["n = 1 over Hugging Face, tokens/s"] is True
    assert found["n = 4 over naive n = 4, tokens/s"] is False
    assert found["n = 4 over the paper's loop, tokens/s"] is None
    assert found["n = 4 over n = 1, tokens/s over FLOPs, V = 4096"] is True
    assert found["n = 4 over n = 1, tokens/s over FLOPs, V = 256"] is None
    assert found["n = 4, share of the matrix-product peak, V = 4096"] is True
    assert found["Lightning and logging, ms a step"] is True
    assert found["Lightning and MLflow, ms a step"] is False


def test_memory_goals_are_upper_bounds_and_need_no_steady_rates() -> None:
    rows = [
        row("ours", 4, 1.0, 32000, peak_bytes=1800, steady=False),
        row("naive", 1, 1.0, 32000, peak_bytes=1700),
        row("naive", 4, 1.0, 32000, peak_bytes=4000),
    ]
    found = verdicts(rows)
    assert found["n = 4 over naive n = 1, peak memory, V = 32000"] is False
    assert found["n = 4 over naive n = 4, peak memory, V = 32000"] is True
    for each in rows:
        del each["peak_bytes"]
    assert verdicts(rows)["n = 4 over naive n = 1, peak memory, V = 32000"] is None


def test_an_unsteady_row_is_not_judged() -> None:
    rows = [row("ours", 1, 2000.0, steady=False), row("huggingface", 1, 1000.0)]
    goal = judge_training(rows, {})[0]
    assert (goal.value, goal.reached, goal.reason) == (2.0, None, "too few rounds, or median far below best")


def test_goals_of_decoding_are_judged_at_their_bounds() -> None:
    goals = {goal.text: goal for goal in judge_decoding(decoded_rows())}
    values = {text: (goal.value, goal.reached) for text, goal in goals.items()}
    assert values["m: plain over Hugging Face, equal layers"] == (1.5, True)
    assert values["m: speed-up over tokens per forward, k = 4"] == (2 / 3, True)
    assert values["m: cost of a step over plain, k = 4"] == (1.5, False)
    assert values["m: drafting over Hugging Face's n = 1"] == (4.2, True)
    assert values["m: adaptive over plain, batch 1"] == (0.9, False)
    assert values["texts equal to plain decoding's, ours"] == (1.0, True)
    deep = {goal.text: goal for goal in judge_decoding(decoded_rows(n_layers=24, equal=4))}
    assert deep["m: speed-up over tokens per forward, k = 4"].bound == 0.75
    assert deep["m: speed-up over tokens per forward, k = 4"].reached is False
    assert deep["texts equal to plain decoding's, ours"].value == 0.9
    unsteady = {goal.text: goal for goal in judge_decoding(decoded_rows(steady=False))}
    assert unsteady["m: cost of a step over plain, k = 4"].reached is None


def test_the_table_says_what_was_not_measured() -> None:
    shown = goals_table(judge_training([], {"Lightning and logging": 2.0}), "title")
    assert list(shown.columns[3].cells)[-2:] == ["not reached", "not measured"]


def test_the_script_reads_what_either_command_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, decode = tmp_path / "train.json", tmp_path / "decode.json"
    train.write_text(json.dumps({"rows": [row("ours", 1, 1.0)], "overhead_ms": {"Lightning and logging": 1.0}}))
    decode.write_text(json.dumps({"rows": [*decoded_rows(), decoded_rows()[1] | {"efficiency": None}]}))
    assert main([str(train)]) == 0, "nothing that was measured is missed"
    assert main([str(train), str(decode)]) == 1
    assert "m: adaptive over plain, batch 1" in capsys.readouterr().out
