"""A grid from the command line: cells in processes of their own, one that fails alone, a report, nothing run twice."""

import json
from pathlib import Path

import pytest
from processes import Mtp

GRID = """
name: heads
configs: [conf/base.yaml, tiny.yaml]
overrides: {trainer.max_steps: 12, trainer.val_check_interval: 4}
axes:
  model.heads.n_future: [1, 2]
baseline: {model.heads.n_future: 1}
compare: [val/loss/head_1, decode/tokens_per_forward]
"""


def test_run_fail_alone_rerun_report(mtp: Mtp, folder: Path) -> None:
    (folder / "grid.yaml").write_text(GRID)
    planned = mtp("grid", "plan", "grid.yaml", "--json", "plan.json")
    assert "2 to run" in planned.stdout
    assert not (folder / "runs").exists()
    cells = [row["signature"] for row in json.loads((folder / "plan.json").read_text())["cells"]]

    # One cell cannot write its checkpoints: something else has the folder's name.
    (folder / "runs" / cells[1]).mkdir(parents=True)
    (folder / "runs" / cells[1] / "checkpoints").write_text("in the way")
    first = mtp("grid", "run", "grid.yaml", "--workers", "2", check=False)
    assert first.returncode == 1
    assert "incomplete: 1 of 2 cells missing" in first.stdout

    (folder / "runs" / cells[1] / "checkpoints").unlink()
    second = mtp("grid", "run", "grid.yaml", "--workers", "2")
    assert "1 of 2 cells to run" in second.stderr
    assert "incomplete" not in second.stdout

    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").glob("*/log.txt")}
    third = mtp("grid", "run", "grid.yaml")
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").glob("*/log.txt")} == before
    table = third.stdout[: third.stdout.index("files:")]
    assert table == second.stdout[: second.stdout.index("files:")]
    for metric in ("val/loss/head_2", "val/bits_per_byte", "perf/peak_memory_bytes", "decode/tokens_per_forward"):
        assert metric in table
    assert "ui --experiment mtp/heads" in third.stdout
    assert (folder / "runs/reports/heads/figure.png").read_bytes().startswith(b"\x89PNG")
    verdict = json.loads((folder / "runs/reports/heads/verdict.json").read_text())
    assert (verdict["outcome"], verdict["best"]["seeds"], verdict["missing"]) == ("unknown spread", 1, [])
    assert verdict["sentence"] in (folder / "runs/reports/heads/report.html").read_text()
    assert (folder / "runs/reports/heads/results.csv").read_text().count("\n") > 10


@pytest.mark.slow
def test_a_cell_that_waited_at_a_gate_ends_as_if_it_had_not(mtp: Mtp, folder: Path) -> None:
    (folder / "grid.yaml").write_text(GRID)
    (folder / "gated.yaml").write_text(GRID + "gate: {at: step=8, keep: within 1.0e-9 of the best}\n")
    said = mtp("grid", "run", "gated.yaml", "--runs", "gated").stderr
    assert said.count("2 of 2 cells to run") == 1
    assert mtp("grid", "run", "gated.yaml", "--runs", "gated").stderr.rstrip().endswith("nothing to run")
    mtp("grid", "run", "grid.yaml")
    found = json.loads((folder / "gated/reports/heads/verdict.json").read_text())["gate"]["judged"]
    ended = list((folder / "gated").glob("*/result.json"))
    assert len(ended) == sum(not one["stopped"] for one in found) >= 1
    for path in ended:
        assert json.loads((path.parent / "gate.json").read_text())["step"] == 8
        both = (folder / runs / path.parent.name / "result.json" for runs in ("gated", "runs"))
        gated, plain = (json.loads(file.read_text()) for file in both)
        same = [
            name
            for name in plain["metrics"]
            if name.startswith(("val/", "train/", "decode/")) and "speedup" not in name
        ]
        assert {name: gated["metrics"][name] for name in same} == {name: plain["metrics"][name] for name in same}
