"""Whatever a state file holds: its cell is shown as damaged, with the file; the others go on; nothing is replaced."""

import json
import os
from pathlib import Path

import pytest
from damages import DAMAGES
from test_grid_commands import grid_in
from test_grid_fakes import FakeHouse, cells_of, finish, house, starts
from test_grid_fakes import command as fake_command

from mtp_lightning.config import cell as config_cell
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_json, write_json
from mtp_lightning.grid.run.state import CellFiles, Progress, State, Status, cell_state
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.tracking.journal import check_journal

__all__ = ["house"]

pytestmark = pytest.mark.usefixtures("house")

STATE_FILES = (
    "status.json",
    "progress.json",
    "result.json",
    "failure.json",
    "gate.json",
    "unsent.jsonl",
    "mlflow_run_id",
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", STATE_FILES)
def test_a_damaged_file_is_named_whatever_it_holds(tmp_path: Path, name: str, damage: str) -> None:
    DAMAGES[damage](tmp_path / name)
    files = CellFiles.read(tmp_path)
    assert files.state is files.state_if_over is State.DAMAGED
    assert files.reason is not None
    assert str(tmp_path / name) in files.reason
    assert "move it away" in files.reason


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("status.json", '{"state": "paused", "attempt": 1, "host": "h", "started_at": 0}', "unknown to this version"),
        (
            "status.json",
            '{"state": "failed", "attempt": 1, "host": "h", "started_at": Infinity}',
            "'started_at' is inf",
        ),
        ("status.json", '{"state": "failed", "attempt": 1, "host": "h"}', "has no 'started_at'"),
        ("progress.json", f'{{"step": 1{"0" * 400}, "max_steps": 5, "phase": "a"}}', "'step' is 10000"),
        ("unsent.jsonl", '{"point": ["a", 1.0, 5, 1]}\n{"point": ["a", 1.0, 5]}\n', "line 2 is neither"),
        ("mlflow_run_id", "../../etc/passwd", "does not hold the id of an MLflow run"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    assert why in str(CellFiles.read(tmp_path).damaged)


def test_errors_of_the_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(116, "Stale file handle")

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DamagedError, match=r"a.json: cannot be read \(Stale file handle\)"):
        read_json(tmp_path / "a.json")


def test_a_journal_that_is_good_is_read(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"point": ["a", NaN, 5, 1]}\n{"file": ["/p.png", null]}\n')
    points, files = check_journal(tmp_path / "j")
    assert (len(points), files) == (1, [("/p.png", None)])


@pytest.mark.parametrize("damage", ["folder", "deep"])
def test_the_commands_show_it_and_the_other_cells_go_on(
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    house: FakeHouse,
) -> None:
    bad, *others = cells_of(tmp_path)
    finish(bad, loss_1=1.0, speedup=1.0)
    path = bad.directory / "progress.json"
    DAMAGES[damage](path)
    grid, out = grid_in(tmp_path), tmp_path / "out.json"
    for call in (grid.plan, grid.status):
        assert call(json=str(out)) == 0
        row = json.loads(out.read_text())["cells"][0]
        assert row["state"] == "damaged"
        assert str(path) in row["reason"]
    assert grid.run(json=str(out)) == 1
    assert starts(bad) == 0
    assert [cell_state(cell.directory) for cell in others] == [State.FINISHED] * len(others)
    assert str(path) in json.loads(out.read_text())["missing"][0], "it does not count, and the report says why"
    assert f"{bad.label}: damaged: {path}" in capsys.readouterr().err
    assert path.is_dir() or path.read_text() == "[" * 100_000
    path.rmdir() if path.is_dir() else path.unlink()
    assert grid_in(tmp_path).run() == 0


def test_a_file_that_becomes_unreadable_while_cells_run_costs_one_cell(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    house: FakeHouse,
) -> None:
    cells = cells_of(tmp_path)
    breaks = (
        'progress(1); (cell / "progress.json").unlink(); (cell / "progress.json").mkdir(); time.sleep(0.6); finish()'
    )

    def command(file: Path) -> list[str]:
        return fake_command(breaks if file.parent == cells[0].directory else house.script, file.parent)

    monkeypatch.setattr(config_cell, "fit_command", command)
    assert grid_in(tmp_path).run(workers=2) == 1
    assert [cell_state(cell.directory).value for cell in cells] == ["damaged", *["finished"] * 5]
    status = Status.read(cells[0].directory)
    assert status is not None
    assert status.state == "damaged"
    assert "the cell runs on" in capsys.readouterr().err


def test_a_damaged_record_of_a_submission_is_named_and_nothing_is_submitted_twice(
    tmp_path: Path,
    house: FakeHouse,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells_of(tmp_path)
    submissions = Submissions(tmp_path / "runs")
    submissions.folder.mkdir(parents=True)
    write_json(submissions.folder / "abc.json", {"token": "abc", "cells": 3})
    assert submissions.read() == []
    grid = grid_in(tmp_path)
    assert grid.plan() == 0
    assert "abc.json: has no 'grid'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"abc.json: .*nothing is known of its jobs"):
        grid.resume()


def test_a_good_progress_of_a_later_version_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "progress.json", {"step": 1, "max_steps": 5, "phase": "a", "loss": float("nan"), "colour": 1})
    progress = Progress.read(tmp_path)
    assert progress is not None
    assert progress.step == 1
