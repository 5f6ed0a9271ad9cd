"""`mtp bench loss`: what is judged by what, results as they come, freed memory kept, bad input."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from mtp_lightning.bench import harness, loss
from mtp_lightning.bench.harness import IdleGate, over
from mtp_lightning.cli import main

TINY = ["--n_future", "[1, 2]", "--vocab_size", "64", "--dim", "16", "--positions", "8", "--rounds", "1"]


def test_the_command_keeps_freed_memory_and_reports_each_n(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    real = loss.loss_step

    def step(*given: Any) -> Any:
        calls.append("step")
        return real(*given)

    monkeypatch.setattr(loss, "loss_step", step)
    monkeypatch.setattr(loss, "keep_freed_memory", lambda: calls.append("kept") or True)
    monkeypatch.setattr(loss, "peak_memory_bytes", lambda *_: calls.append("memory") or 1000)
    monkeypatch.setattr(harness, "idle_share", lambda seconds: 0.5)
    file = tmp_path / "rows.json"
    assert main(["bench", "loss", *TINY, "--json", str(file)]) == 0
    assert calls == ["kept", *(["step"] * 3 + ["memory"] * 3) * 2]
    printed = capsys.readouterr()
    assert "freed memory kept; 6 of 6 steps on a busy machine" in " ".join(printed.out.split())
    assert "n = 2, naive: " in printed.err
    content = json.loads(file.read_text())
    assert (content["busy_steps"], content["judged_by"], content["freed_memory_kept"]) == (6, "CPU time", True)
    assert {(row["busy"], row["steady"]) for row in content["rows"]} == {(1, False)}
    assert "(1.00)" in printed.out, "not to be judged"


def test_several_threads_are_judged_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "peak_memory_bytes", lambda *_: 1000)
    monkeypatch.setattr(loss, "pin_threads", lambda threads: None)
    monkeypatch.setattr(harness, "idle_share", lambda seconds: 1.0)
    reported: list[int] = []
    for threads, key in ((1, "cpu"), (2, "median")):
        rows = loss.bench_loss(
            [1, 2], 64, 16, 8, False, threads, 2, IdleGate(0.0), lambda text: None,
            lambda own: reported.extend(row["n_future"] for row in own),
        )  # fmt: skip
        for row in rows:
            naive = next(r for r in rows if (r["n_future"], r["implementation"]) == (row["n_future"], "naive"))
            assert row["time_over_naive"] == over(row["seconds"], naive["seconds"])
            assert median(row["seconds"]) == row[key]
    assert reported == [1, 1, 1, 2, 2, 2] * 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rounds", "0"], "rounds is 0: it has to be at least 1"),
        (["--threads", "0"], "threads is 0"),
        (["--positions", "0"], "positions is 0"),
        (["--vocab_size", "-1"], "vocab_size is -1"),
        (["--dim", "0"], "dim is 0"),
        (["--patience", ".nan"], "patience is nan: it has to be a number of seconds, at least 0"),
        (["--patience", "-1"], "patience is -1"),
        (["--n_future", "[2, 0]"], "n_future is 0"),
        (["--json", "nowhere/rows.json"], "json: nowhere/rows.json cannot be written"),
    ],
)
def test_bad_input(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loss", *flags]) == 2
    assert says in capsys.readouterr().err
