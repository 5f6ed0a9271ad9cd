"""Gates where something is odd: validations elsewhere, runs that diverged or were killed, a record that is gone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_grid_commands import grid_in
from test_grid_fakes import FakeHouse, finish, grid_file, house, run_id
from test_grid_gate import GATED, LOSS, SAVES, N, made, pause, pause_all, runs, stopped

from mtp_lightning.config.run.starting import check_replaceable
from mtp_lightning.errors import InputError, UnavailableError
from mtp_lightning.files import write_json
from mtp_lightning.grid import commands
from mtp_lightning.grid.run import gate, rounds
from mtp_lightning.grid.run.attempts import is_at_gate, log_attempt
from mtp_lightning.grid.run.cost import Expected
from mtp_lightning.grid.run.gate import Gating, gated
from mtp_lightning.grid.run.launch import LaunchResult, LocalLauncher
from mtp_lightning.grid.run.plan import is_to_run
from mtp_lightning.grid.run.state import CHECKPOINTS, DIVERGED, AtGate, CellFiles, Failure, Progress, State, Status
from mtp_lightning.grid.run.status import CellStatus
from mtp_lightning.grid.slurm.job import _Leader
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.slurm.task import Task, write_cell
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.tracking.read import history
from mtp_lightning.tracking.store import NotRecordedError

__all__ = ["house"]


def diverge(cell: Cell) -> None:
    cell.directory.mkdir(parents=True, exist_ok=True)
    write_json(cell.directory / Failure.FILE, {"error": DIVERGED, "message": "nan"})
    ended = Status(State.FAILED.value, 1, "here", 0.0, ended_at=1.0, returncode=1, reason=f"{DIVERGED}: nan")
    ended.write(cell.directory)
    log_attempt(cell.directory, ended)


def saved(cell: Cell, step: int) -> None:
    (cell.directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (cell.directory / CHECKPOINTS / f"step-{step:08d}.ckpt").touch()


def passed(cell: Cell, step: int) -> None:
    """Without waiting, and it was interrupted later."""
    (cell.directory / AtGate.FILE).unlink(missing_ok=True)
    Status(State.INTERRUPTED.value, 1, "here", 0.0, ended_at=1.0, returncode=-9).write(cell.directory)
    saved(cell, step)
    (cell.directory / "mlflow_run_id").write_text(run_id("old"))


def rows_of(found: Gating) -> list[CellStatus]:
    rows = [CellStatus(cell, CellFiles.read(cell.directory), None, None, False) for cell in found.cells]
    return found.show(rows)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"val_check_interval": 3}, None),
        ({"val_check_interval": 6, "accumulate_grad_batches": 2}, None),
        ({"val_check_interval": 12, "accumulate_grad_batches": 4}, None),
        ({"val_check_interval": 2}, "is 2; give step=2 or step=4"),
        ({"val_check_interval": 4}, "is 4; give step=4"),
        ({"val_check_interval": 4, "accumulate_grad_batches": 2}, "is 4, in batches, 2 a step; give step=2 or step=4"),
        ({"val_check_interval": 6}, "is 6; give a smaller one"),
        ({"val_check_interval": None}, "give trainer.val_check_interval as a whole number of batches, not None"),
        ({"val_check_interval": 0.5}, "give trainer.val_check_interval as a whole number of batches, not 0.5"),
        ({"limit_val_batches": 0}, "trainer.limit_val_batches is 0"),
    ],
)
def test_every_cell_is_validated_at_the_very_step(tmp_path: Path, trainer: dict[str, Any], message: str | None) -> None:
    spec, cells = made(tmp_path)
    odd = replace(cells[2], config={**cells[2].config, "trainer": {**cells[2].config["trainer"], **trainer}})
    if message is None:
        assert len(runs(gated(spec, [odd, *cells[3:]]))) == 4
        return
    with pytest.raises(InputError) as caught:
        gated(spec, [odd, *cells])
    told = f"{tmp_path / 'grid.yaml'}:9: gate.at: n_future=2 is not validated at step 3, where it is judged: "
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)
    finish(odd, loss_1=2.0)
    assert len(gated(spec, [odd, *cells[3:]]).waits_for) == 3, "what is finished never meets the gate"


@pytest.mark.parametrize("bad", [(1,), (1, 2, 4)])
def test_what_diverged_is_run_once_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Sequence[int]
) -> None:
    spec, cells = made(tmp_path)
    started: list[str] = []

    def run_here(todo: Sequence[Cell], of: int, workers: int | None, expected: Expected) -> LaunchResult:
        for cell in todo:
            started.append(f"{cell.label} {cell.pause_at}")
            if cell.values[N] in bad:
                diverge(cell)
            elif cell.pause_at is not None:
                pause(cell, 2.0)
            else:
                finish(cell, loss_1=1.0)
        return LaunchResult({})

    def to_run() -> list[Cell]:
        found = gated(spec, cells)
        return [cell for cell in found.cells if found.may_run(cell) and not (cell.directory / "result.json").exists()]

    monkeypatch.setattr(rounds, "run_here", run_here)
    rounds.run_rounds(to_run, len(cells), 1, Expected(dict))
    goes_on = [cell for cell in cells if cell.values[N] not in bad]
    assert started == [f"{cell.label} 3" for cell in cells] + [f"{cell.label} None" for cell in goes_on]
    assert to_run() == [replace(cell, pause_at=3) for cell in cells if cell.values[N] in bad], "the command, again"
    (cells[0].directory / Failure.FILE).unlink()  # tried again, and interrupted
    Status(State.INTERRUPTED.value, 2, "here", 0.0, ended_at=2.0).write(cells[0].directory)
    assert gated(spec, cells).waits_for == []
    (cells[0].directory / "attempts.jsonl").unlink()
    assert gated(spec, cells).waits_for == [f"{cells[0].label} (interrupted)"]


def test_a_seed_that_diverged_is_worse_than_one_without_a_value(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells, dict.fromkeys((1, 2, 4), 2.0))
    pause(cells[4], None)
    pause(cells[5], float("nan"))
    assert stopped(gated(spec, cells)) == ["n_future=4"]


def test_what_diverged_after_the_gate_is_judged_by_its_record_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells, dict.fromkeys((1, 2, 4), 2.0))
    passed(cells[2], 4)
    diverge(cells[2])
    points = [(2, 7.0), (3, 2.0), (4, 9.0)]
    monkeypatch.setattr(gate.tracking, "history", lambda uri, run, keys: {LOSS: points})
    assert stopped(gated(spec, cells)) == []
    del points[1]
    assert stopped(gated(spec, cells)) == ["n_future=2"], "not at another step"


def test_without_its_record_a_cell_is_let_through(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells, dict.fromkeys((1, 2, 4), 2.0))
    passed(cells[2], 4)
    with pytest.raises(NotRecordedError):
        history(f"sqlite:///{tmp_path}/runs/mlflow.db", run_id("old"), [LOSS])
    found = gated(spec, cells)
    assert (found.judged[1].value, stopped(found)) == (None, [])


def test_without_mlflow_cells_are_shown_and_cancelled_and_nothing_is_judged(
    tmp_path: Path, house: FakeHouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cells = made(tmp_path)
    pause_all(cells)
    passed(cells[2], 4)
    (cells[2].directory / "log.txt").write_text("its log\n")

    def away(*_: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(gate.tracking, "history", away)
    monkeypatch.setattr(commands.slurm, "need_slurm", lambda instead: None)
    monkeypatch.setattr(commands.slurm, "cancel", lambda ids: None)
    monkeypatch.setattr(Submissions, "read_queue", lambda *_: {})
    assert grid_in(tmp_path).logs(cells[2].label) == 0
    assert "its log" in capsys.readouterr().out
    assert grid_in(tmp_path).cancel([cells[2].label]) == 0
    assert grid_in(tmp_path).cancel([]) == 0
    assert "away" not in capsys.readouterr().err
    shown: list[Callable[[], int]] = [grid_in(tmp_path).status, grid_in(tmp_path).plan]
    for show in shown:
        assert show() == 0
        said = capsys.readouterr()
        assert "6 cells: 5 at the gate, 1 interrupted" in said.out
        assert "OSError: away; what the gate makes of the cells is not known" in " ".join(said.err.split())
    for judge in (grid_in(tmp_path).run, grid_in(tmp_path).report):
        with pytest.raises(UnavailableError, match="away"):
            judge()


def test_a_cell_waits_for_those_of_its_own_size(tmp_path: Path) -> None:
    text = GATED.replace("axes:\n", "axes:\n  model.width: [8, 16, 32, 64]\n") + "ladder: {size: model.width}\n"
    spec, cells = made(tmp_path, text)
    for cell in cells:
        if cell.values["model.width"] != 64 and cell is not cells[0]:
            pause(cell, 2.0)
    found = gated(spec, cells)
    assert len(found.waits_for) == 7
    assert {row.reason for row in rows_of(found) if row.state is State.AT_GATE} == {"waits for 1 more", None}


def test_what_diverged_waits_too(tmp_path: Path) -> None:
    spec, cells = made(tmp_path)
    pause_all(cells[:4])
    diverge(cells[4])
    found = gated(spec, cells)
    rows = rows_of(found)
    assert [row.cell.label for row in rows if is_to_run(row)] == runs(found) == [cells[5].label]
    assert (rows[4].state, rows[4].reason) == (State.FAILED, f"{DIVERGED}: nan; waits for 1 more")


def test_a_killed_run_of_what_is_stopped_is_settled(
    tmp_path: Path, house: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cells = made(tmp_path)
    pause_all(cells)
    Status(State.INTERRUPTED.value, 1, "here", 0.0, ended_at=1.0, returncode=-9).write(cells[5].directory)
    asked: list[State] = []
    monkeypatch.setattr(commands, "settle_dead", lambda rows, uri: asked.extend(row.state for row in rows))
    assert grid_in(tmp_path).status() == 0
    assert asked == [State.AT_GATE] * 5 + [State.INTERRUPTED]


def test_a_run_killed_between_its_checkpoint_and_its_file_is_at_the_gate(tmp_path: Path) -> None:
    _, cells = made(tmp_path)
    cell = replace(cells[0], pause_at=3)
    saved(cell, 2)
    Status(State.RUNNING.value, 1, "here", 0.0, job="7_0").write(cell.directory)
    Progress(step=3, max_steps=5, phase="training", updated_at=1.0).write(cell.directory)
    write_cell(tmp_path, 0, cell, {}, [])
    leader = _Leader(Task(tmp_path, "7_0", 0, 0, 0), None)
    assert leader._instead() is None
    saved(cell, 3)
    outcome = leader._instead()
    assert outcome is not None
    assert outcome.state is State.AT_GATE
    launcher = LocalLauncher.__new__(LocalLauncher)
    launcher.began, launcher.retried = 0.0, {cell.signature: 1}  # type: ignore[assignment]
    again = launcher._done_elsewhere(cell, State.FAILED)
    assert again is not None
    assert again.state is State.AT_GATE
    assert not is_at_gate(cells[0], CellFiles.read(cell.directory)), "it goes on from there"


def test_a_folder_in_the_place_of_the_gates_file_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "gate.json").mkdir()
    with pytest.raises(InputError, match=r"gate\.json: a folder"):
        check_replaceable(tmp_path)


def test_the_gate_is_refused_before_anything_runs(tmp_path: Path, house: FakeHouse) -> None:
    grid_file(tmp_path, GATED.replace(SAVES, f"{SAVES}, trainer.val_check_interval: 2"))
    with pytest.raises(InputError, match="give step=2 or step=4"):
        grid_in(tmp_path).run()
    assert not list((tmp_path / "runs").glob("*/status.json"))
