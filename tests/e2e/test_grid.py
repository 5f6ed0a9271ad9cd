"""A grid from the command line: cells in processes of their own, one that fails alone, a report, nothing run twice."""

import json
from pathlib import Path

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
