"""How far cells are, by their files and by Slurm's queue; their logs; taking them out of it."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_grid_fakes import GRID, ONE, cells_of, finish, grid_file, house, load_grid
from test_grid_slurm_fakes import FakeSlurm, slurm
from test_grid_submit import attempted, call, no_snapshot, records, rows

from mtp_lightning.config.keys.command_parser import call as cli_call
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run import logs
from mtp_lightning.grid.run import status as statuses
from mtp_lightning.grid.run.cost import Cost
from mtp_lightning.grid.run.plan import plan_table
from mtp_lightning.grid.run.state import LOG, Progress, State, cell_state
from mtp_lightning.grid.run.status import read_status
from mtp_lightning.grid.slurm.submissions import Submission, Submissions
from mtp_lightning.grid.spec.cells import find_cell
from mtp_lightning.grid.spec.resources import Resources

__all__ = ["house", "no_snapshot", "slurm"]

pytestmark = pytest.mark.usefixtures("house")


@pytest.fixture
def submitted(slurm: FakeSlurm, tmp_path: Path) -> list[Any]:
    """Six cells, 7_0 to 7_5 in the queue."""
    grid_file(tmp_path)
    call(Grid.submit)
    return cells_of(tmp_path)


def shown() -> list[tuple[str, str | None]]:
    return [(row["state"], row["slurm"]) for row in rows()]


def test_files_come_first_then_the_queue(
    slurm: FakeSlurm, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    finish(submitted[0], loss_1=1.0)
    slurm.set("7_1", "RUNNING")
    slurm.set("7_2", "COMPLETING")
    attempted(submitted[2].directory, State.FAILED, "7_2", reason="bad luck")
    attempted(submitted[3].directory, State.INTERRUPTED, "7_3")  # preempted, and queued again
    slurm.set("7_4", "PENDING", "BeginTime")
    Progress(step=1, max_steps=5, phase="train").write(_made(submitted[5].directory))  # somebody runs it by hand
    assert shown() == [
        ("finished", "pending (Priority)"),
        ("running", "running"),
        ("failed", "completing"),
        ("queued", "pending (Priority)"),
        ("queued", "pending (BeginTime)"),
        ("running", "pending (Priority)"),
    ]
    assert rows()[2]["reason"] == "bad luck"
    assert slurm.calls("squeue") == 2, "one a command"
    call(Grid.resume)
    assert "0 of 6 cells submitted" in capsys.readouterr().out, "not before its job has ended"
    (_made(submitted[4].directory) / "progress.json").write_text("{")
    assert shown()[4] == ("damaged", "pending (BeginTime)"), "the queue does not hide it"


def test_long_names_of_cells_cut_nothing_beside_them(tmp_path: Path) -> None:
    cells = [replace(cell, label=f"{'a_long_name=1 ' * 12}{cell.label}") for cell in cells_of(tmp_path)]
    found = read_status(cells, tmp_path / "runs").rows
    costs = [Cost(Size(1_000_000, 500_000, 5_000_000, 614_400, 2**27), 60.0, "", 0, 0.0)] * 6
    for table in (statuses.status_table("g", found), plan_table(load_grid(grid_file(tmp_path)), found, costs)):
        console = Console(width=110, record=True)
        console.print(table)
        assert "…" not in (text := console.export_text())
        assert text.count(cells[0].signature) == 1


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_heartbeat_from_another_host_counts_only_while_slurm_knows_the_job(
    slurm: FakeSlurm, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for index, cell in enumerate(submitted[:4]):
        attempted(cell.directory, State.RUNNING, f"7_{index}" if index < 3 else "99_0")
    slurm.set("7_0", "RUNNING")
    slurm.queue.write_text("\n".join(slurm.queue.read_text().splitlines()[:2]) + "\n")  # 7_2 to 7_5 have gone
    assert shown()[:4] == [
        ("running", "running"),
        ("queued", "pending (Priority)"),
        ("interrupted", None),
        ("running", None),
    ]
    slurm.say("broken")
    assert {state for state, _ in shown()[:4]} == {"running"}, "the files are all there is"
    (slurm.folder / "broken").unlink()
    capsys.readouterr()
    call(Grid.submit)
    assert "3 of 6 cells submitted; 2 running, 1 queued" in capsys.readouterr().out


def test_the_last_heartbeat_of_an_attempt_that_ended_elsewhere_is_no_sign_of_life(tmp_path: Path) -> None:
    now = time.time()
    attempted(tmp_path, State.FAILED, ended_at=now)
    for later, state in ((-1.0, State.FAILED), (1.0, State.RUNNING)):
        Progress(step=1, max_steps=5, phase="train", updated_at=now + later, host="node1").write(tmp_path)
        assert cell_state(tmp_path) is state


def test_the_newest_submission_counts_unless_an_older_one_lives(slurm: FakeSlurm, submitted: list[Any]) -> None:
    slurm.empty()
    call(Grid.submit)
    assert [row["job"] for row in rows()] == [f"7_{index}" for index in range(6)], "the scripts count from 7"
    newest = {element.submission.token for element in Submissions(Path("runs").absolute()).elements({}).values()}
    assert newest == {records()[1].token}


def test_what_is_over_is_not_asked_about_again(slurm: FakeSlurm, submitted: list[Any]) -> None:
    slurm.empty()
    rows()
    assert [one.over for one in records()] == [True]
    before = slurm.calls("squeue")
    rows()
    assert slurm.calls("squeue") == before


def test_cancel_touches_only_what_it_is_given(
    slurm: FakeSlurm, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.queue.write_text(slurm.queue.read_text() + "8|0|somebody-elses|RUNNING|None\n")
    Progress(step=1, max_steps=5, phase="train").write(_made(submitted[5].directory))
    finish(submitted[4], loss_1=1.0)
    call(Grid.cancel, ["n_future=1 seed=1"])
    assert slurm.elements() == ["7_0", "7_2", "7_3", "7_4", "7_5", "8_0"]
    capsys.readouterr()
    call(Grid.cancel, [])
    assert slurm.elements() == ["8_0"]
    assert "n_future=1 seed=0: cancelled 7_0, which was pending (Priority)" in capsys.readouterr().out
    call(Grid.cancel, [])
    assert capsys.readouterr().out.startswith("n_future=4 seed=1: not Slurm's: Ctrl-C in the `mtp grid run`")


def test_a_thousand_cells_are_read_quickly_and_with_one_question(slurm: FakeSlurm, tmp_path: Path) -> None:
    (one,) = cells_of(tmp_path, ONE)
    runs = tmp_path / "runs"
    cells = [replace(one, signature=f"{index:012x}", directory=runs / f"{index:012x}") for index in range(1000)]
    (runs / "submissions").mkdir(parents=True)
    submission = Submission("abc", "g", tuple(cell.signature for cell in cells), Resources(), 0.0, job="7")
    Submissions(runs).write(submission)
    slurm.queue.write_text("".join(f"7|{index}|mtp-g-abc|PENDING|Priority\n" for index in range(1000)))
    for index, cell in enumerate(cells[:500]):
        attempted(cell.directory, State.INTERRUPTED, f"7_{index}")
    began = time.process_time()
    found = read_status(cells, runs).rows
    assert {row.state for row in found} == {State.QUEUED}
    assert slurm.calls("squeue") == 1
    assert time.process_time() - began < 10  # the run-time type checks of the tests cost most of it


def test_watch_goes_on_until_nothing_runs_or_waits(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    (cell,) = cells_of(tmp_path, ONE)
    call(Grid.submit)
    moves = [lambda: slurm.set("7_0", "RUNNING"), lambda: (slurm.empty(), finish(cell, loss_1=1.0))]
    monkeypatch.setattr(statuses, "time", SimpleNamespace(sleep=lambda seconds: moves.pop(0)()))
    call(Grid.status, watch=True)
    captured = capsys.readouterr()
    assert [line.split("] ")[1] for line in captured.err.splitlines()] == [
        "head-count: queued",
        "head-count: running",
        "head-count: finished",
    ]
    assert captured.out.splitlines()[-1] == "1 cell: 1 finished"


def test_watch_waits_for_a_job_that_is_just_ending(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run failed since it lost a node; its job ends, and Slurm queues it again."""
    grid_file(tmp_path, ONE)
    (cell,) = cells_of(tmp_path, ONE)
    call(Grid.submit)
    slurm.set("7_0", "COMPLETING")
    attempted(cell.directory, State.FAILED, "7_0", reason="Connection reset by peer")
    moves = [lambda: slurm.set("7_0", "PENDING"), lambda: (slurm.empty(), finish(cell, loss_1=1.0))]
    monkeypatch.setattr(statuses, "time", SimpleNamespace(sleep=lambda seconds: moves.pop(0)()))
    call(Grid.status, watch=True)
    assert [line.split("] ")[1].split(" (")[0] for line in capsys.readouterr().err.splitlines()] == [
        "head-count: failed",
        "head-count: queued",
        "head-count: finished",
    ]


def test_cells_go_by_signature_its_beginning_or_label(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, GRID.replace("axes:", "axes:\n  model.width: [32, 64]"))
    assert find_cell(cells, cells[3].signature) is cells[3]
    assert find_cell(cells, cells[3].signature[:7]) is cells[3]
    assert find_cell(cells, "width=64 n_future=2 seed=1").seed == 1
    with pytest.raises(InputError, match=r"no cell 'width=32 n_futur=2 seed=1'; did you mean 'width=32 n_future=2 see"):
        find_cell(cells, "width=32 n_futur=2 seed=1")
    first = {cell.signature[0] for cell in cells}
    shared = next(letter for letter in first if sum(cell.signature[0] == letter for cell in cells) > 1)
    with pytest.raises(InputError, match=f"'{shared}' is the beginning of"):
        find_cell(cells, shared)
    with pytest.raises(InputError, match="no cell ''"):
        find_cell(cells, "")


def test_logs_are_the_cells_own_or_slurms_where_the_last_job_did_not_get_so_far(
    slurm: FakeSlurm, submitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="there is no log yet; the cell is queued"):
        call(Grid.logs, "n_future=1 seed=0")
    (record,) = records()
    output = Path("runs/submissions") / record.token / "7_0_0_log.out"
    output.write_text("srun: error\n")
    slurm.empty()
    assert rows()[0]["reason"] == "job 7_0 ended before the run began: `mtp grid logs` shows its output"
    capsys.readouterr()
    folder = submitted[0].directory
    folder.mkdir()
    (folder / LOG).write_text("one\ntwo\nthree\n")

    def said(**more: Any) -> str:
        call(Grid.logs, "n_future=1 seed=0", **more)
        return capsys.readouterr().out

    attempted(folder, State.FAILED, None, started_at=record.submitted_at - 100)  # a local run, long ago
    assert said() == "srun: error\n"
    attempted(folder, State.FAILED, None, started_at=record.submitted_at + 100)  # a local run since
    assert said(lines=1) == "three\n"
    attempted(folder, State.FAILED, "7_0")
    assert said(lines=2) == "two\nthree\n"
    assert said(lines=0) == "one\ntwo\nthree\n"
    with pytest.raises(InputError, match="less than none"):
        said(lines=-1)


def test_followed_logs_end_with_the_cell_and_miss_nothing(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    (cell,) = cells_of(tmp_path, ONE)
    call(Grid.submit)
    slurm.set("7_0", "RUNNING")
    attempted(cell.directory, State.RUNNING, "7_0")
    log = cell.directory / LOG
    log.write_text("a\nb\nc\n")

    def more(seconds: float) -> None:
        with log.open("a") as file:
            file.write("d\n" if not slurm.folder.joinpath("twice").exists() else "e\n")
        if slurm.folder.joinpath("twice").exists():
            finish(cell, loss_1=1.0)
        slurm.say("twice")

    monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=more))
    capsys.readouterr()
    call(Grid.logs, cell.label, follow=True, lines=1)
    assert capsys.readouterr().out == "c\nd\ne\n"


def test_the_command_line_takes_many_cells_and_bare_switches() -> None:
    said: list[Any] = []

    def command(grid: str, cells: list[str], *, watch: bool = False, runs: str = "runs") -> None:
        said.append((grid, cells, watch, runs))

    for line in ("g a b=1", "g", "g a --watch", "g --watch --runs r", "g --watch false"):
        cli_call(command, line.split(), "mtp")
    assert said == [
        ("g", ["a", "b=1"], False, "runs"),
        ("g", [], False, "runs"),
        ("g", ["a"], True, "runs"),
        ("g", [], True, "r"),
        ("g", [], False, "runs"),
    ]
