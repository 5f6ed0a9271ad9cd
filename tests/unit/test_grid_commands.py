"""`mtp grid plan | run | report`, and `status` without Slurm, as the command line calls them."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import GRID, FakeHouse, cells_of, environment, finish, grid_file, house, run_id, starts

from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run.state import CHECKPOINTS, RUN_ID, Progress, State, Status, cell_state

FILES = ["report.html", "report.md", "results.csv", "figure.png", "verdict.json"]
MTP_UI = "MLflow: mtp ui --runs {runs} --experiment mtp/head-count"


__all__ = ["house"]

pytestmark = pytest.mark.usefixtures("house")


def grid_in(folder: Path, overrides: dict[str, Any] | None = None) -> Grid:
    return Grid(str(folder / "grid.yaml"), overrides=overrides, runs=str(folder / "runs"))


def run(folder: Path) -> int:
    return grid_in(folder).run(workers=2)


def test_plan_shows_what_would_happen_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert grid_in(tmp_path).plan() == 0
    assert sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr().out
    assert "n_future=1 seed=0 (baseline)" in output
    assert output.splitlines()[-2:] == [
        "6 cells: 6 missing; 6 to run",
        "in all 3.00 k tokens, 168 MFLOPs, run time unknown",
    ]


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_it_plans(tmp_path: Path) -> None:
    grid_file(tmp_path)
    assert grid_in(tmp_path).plan() == 0


def test_overrides_on_the_command_line_are_on_top_of_the_files(tmp_path: Path) -> None:
    """Other cells than without, checked like the file's own."""
    grid_file(tmp_path)
    out = tmp_path / "plan.json"

    def signatures(overrides: dict[str, Any] | None) -> set[str]:
        grid_in(tmp_path, overrides).plan(json=str(out))
        return {row["signature"] for row in json.loads(out.read_text())["cells"]}

    plain = signatures(None)
    assert signatures({"trainer.max_steps": 5}) == plain, "what the file says already"
    assert not signatures({"trainer.max_steps": 6}) & plain
    with pytest.raises(InputError, match=r"model\.heads\.n_future: is an axis too"):
        signatures({"model.heads.n_future": 3})


def test_a_report_under_overrides_says_so_and_does_not_replace_the_files_own(tmp_path: Path, house: FakeHouse) -> None:
    grid_file(tmp_path)
    for overrides in (None, {"trainer.max_steps": 6}):
        assert grid_in(tmp_path, overrides).run(workers=2) == 0
    plain, other = sorted((tmp_path / "runs/reports").iterdir(), key=lambda folder: len(folder.name))
    assert plain.name == "head-count"
    assert house.tracking.folders == [None, other.name.removeprefix("head-count-")], "nor in MLflow"
    assert "On top of the grid file: trainer.max_steps = 6" in (other / "report.md").read_text()
    assert "On top of" not in (plain / "report.md").read_text()


def test_plan_tells_finished_failed_and_resumable_cells_apart(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    finish(cells[0], loss_1=1.0)
    for cell, state in ((cells[1], State.FAILED), (cells[2], State.INTERRUPTED)):
        cell.directory.mkdir()
        Status(state.value, 1, "here", 0.0, reason="why").write(cell.directory)
    (cells[2].directory / CHECKPOINTS).mkdir()
    (cells[2].directory / CHECKPOINTS / "last.ckpt").touch()
    out = tmp_path / "plan.json"
    grid_in(tmp_path).plan(json=str(out))
    rows = json.loads(out.read_text())["cells"]
    assert [(row["state"], row["action"]) for row in rows[:4]] == [
        ("finished", "nothing"),
        ("failed", "run again"),
        ("interrupted", "go on"),
        ("missing", "run"),
    ]
    assert rows[1]["reason"] == "why"
    assert rows[0]["signature"] == cells[0].signature


def test_run_trains_reports_and_the_second_time_only_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], house: FakeHouse
) -> None:
    grid_file(tmp_path)
    cells = cells_of(tmp_path)
    assert run(tmp_path) == 0
    first = capsys.readouterr()
    assert "6 of 6 cells to run, 2 at a time with" in first.err
    lines = first.out.splitlines()
    assert lines[-1] == MTP_UI.format(runs=tmp_path / "runs")
    assert any(line.startswith("n_future=1, the baseline, has the lowest val/loss/head_1, 1.1050") for line in lines)
    reports = tmp_path / "runs" / "reports" / "head-count"
    assert sorted(path.name for path in reports.iterdir()) == sorted([*FILES, "report.json"])
    assert [sorted(names) for names in house.tracking.recorded] == [sorted(FILES)]
    assert house.tracking.uris == [f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"]
    assert house.tracking.charts == ["head-count"]

    assert run(tmp_path) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err == "all 6 cells are finished: nothing to run\n"
    assert [starts(cell) for cell in cells] == [1] * 6
    assert len(house.tracking.recorded) == 1

    for name in FILES:
        (reports / name).unlink()
        assert run(tmp_path) == 0
        assert (reports / name).is_file()


def test_a_failure_is_reported_and_only_it_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], house: FakeHouse
) -> None:
    grid_file(tmp_path)
    cells, good = cells_of(tmp_path), house.script
    house.script = "if n == 4 and seed == 1: print('out of luck'); sys.exit(5)\nfinish()"
    assert run(tmp_path) == 1
    captured = capsys.readouterr()
    assert "n_future=4 seed=1: failed: exit status 5: out of luck" in captured.err
    assert "incomplete: 1 of 6 cells missing: n_future=4 seed=1 (failed: exit status 5: out of luck)" in captured.out
    house.script = good
    assert run(tmp_path) == 0
    assert "1 of 6 cells to run" in capsys.readouterr().err
    assert [starts(cell) for cell in cells] == [1, 1, 1, 1, 1, 2]


def test_status_shows_how_far_each_cell_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = cells_of(tmp_path)
    finish(cells[0], loss_1=1.0)
    cells[1].directory.mkdir()
    Progress(step=3, max_steps=5, phase="train", loss=2.5, tokens_per_second=1000.0).write(cells[1].directory)
    out = tmp_path / "status.json"
    grid_in(tmp_path).status(json=str(out))
    output = capsys.readouterr().out
    assert "3/5" in output
    assert "1.00 k" in output
    assert output.splitlines()[-1] == "6 cells: 4 missing, 1 finished, 1 running"
    row = json.loads(out.read_text())["cells"][1]
    assert (row["step"], row["max_steps"], row["loss"], row["tokens_per_second"]) == (3, 5, 2.5, 1000.0)


def test_report_writes_where_it_should(tmp_path: Path, house: FakeHouse) -> None:
    cells = cells_of(tmp_path)
    for cell in cells[:4]:
        finish(cell, loss_1=1.0 + cell.seed, speedup=1.0)
        (cell.directory / RUN_ID).write_text(run_id(cell.label))
    out, table = tmp_path / "out", tmp_path / "table.json"
    for count in (1, 2):  # asked for by name, it is recorded even if nothing has changed
        assert grid_in(tmp_path).report(out=str(out), json=str(table)) == 0
        assert len(house.tracking.recorded) == count
    assert "incomplete: 2 of 6" in (out / "report.md").read_text().lower()
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["group"], rows[0]["metric"], rows[0]["mean"], rows[0]["seeds"]) == (
        "n_future=1",
        "val/loss/head_1",
        "1.5",
        "2",
    )
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(table.read_text())["missing"]) == 2


def test_a_report_before_the_first_run_leaves_no_trace(tmp_path: Path, house: FakeHouse) -> None:
    grid_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="no cell of the grid has run yet"):
        grid_in(tmp_path).report(out=str(tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before
    assert house.tracking.recorded == []


def test_a_store_that_fails_costs_the_record_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, house: FakeHouse
) -> None:
    def refuse(report: Any, files: Any) -> None:
        raise RuntimeError("the store is locked")

    grid_file(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(house.tracking, "record", refuse)
        assert run(tmp_path) == 1
    captured = capsys.readouterr()
    assert "warning: MLflow: RuntimeError: the store is locked" in captured.err
    assert "val/loss/head_1 ↓" in captured.out
    assert (tmp_path / "runs/reports/head-count/figure.png").is_file()
    assert run(tmp_path) == 0  # it is made good for although nothing was left to train
    assert (tmp_path / "runs/reports/head-count/report.json").is_file()


def test_bad_input_is_found_before_anything_is_written(tmp_path: Path) -> None:
    grid = grid_file(tmp_path, GRID.replace("[1, 2, 4]", "[1, 2, 0]"))
    with pytest.raises(InputError, match=r"grid\.yaml:5: axes.model.heads.n_future = 0: .* at least 1"):
        run(tmp_path)
    grid.write_text(GRID)
    with pytest.raises(InputError, match="workers: 0 is not a number of processes"):
        grid_in(tmp_path).run(workers=0)
    with pytest.raises(InputError, match=r"json: .* cannot be written"):
        grid_in(tmp_path).run(json=str(tmp_path / "no" / "x.json"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"runs: cannot be written to: File exists"):
        run(tmp_path)


def test_a_relative_runs_folder_is_found_by_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid_file(tmp_path)
    assert Grid("grid.yaml").run(workers=2) == 0
    assert [cell_state(cell.directory) for cell in cells_of(tmp_path)] == [State.FINISHED] * 6


def test_nothing_heavy_is_loaded_for_help() -> None:
    code = "import sys, mtp_lightning.grid.commands; print([m for m in sys.modules if m.partition('.')[0] in HEAVY])"
    heavy = "{'torch', 'lightning', 'mlflow', 'matplotlib', 'numpy', 'omegaconf'}"
    result = subprocess.run(
        [sys.executable, "-c", code.replace("HEAVY", heavy)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert result.stdout == "[]\n"


@pytest.mark.slow  # seconds are judged
def test_a_thousand_cells_are_planned_and_their_status_read_quickly(tmp_path: Path) -> None:
    import time

    text = GRID.replace("[0, 1]", str(list(range(334))))
    cells = cells_of(tmp_path, text)
    assert len(cells) == 1002
    for cell in cells[:500]:
        finish(cell, loss_1=1.0)
    began = time.process_time()
    grid_in(tmp_path).plan()
    grid_in(tmp_path).status()
    assert time.process_time() - began < 20  # generous: the run-time type checks of the tests cost much of it
