"""What a grid costs: tokens and FLOPs of every cell, hours by the nearest measurement, and a budget that holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid_fakes import GRID, FakeResolver, cells_of, finish, grid_file, house

from mtp_lightning.config import memory
from mtp_lightning.config.run_size import Size
from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run import cost
from mtp_lightning.grid.run.cost import Total, costs, seconds_left, time_by_flops
from mtp_lightning.grid.run.state import Progress, Result

__all__ = ["house"]

pytestmark = pytest.mark.usefixtures("house")
GPUS = GRID + "resources: {nodes: 2, gpus: 3}\n"


def test_hours_come_from_the_nearest_measurement(tmp_path: Path) -> None:
    """Cells: n = 1, 2, 4 with seeds 0, 1; 500 tokens each, FLOPs proportional to n."""
    cells = cells_of(tmp_path)
    before = costs(cells, FakeResolver())
    assert {cost.seconds for cost in before} == {None}
    assert str(Total.of(before)).endswith("run time unknown")

    finish(cells[0])
    Result(step=5, metrics={}, wall_seconds=100.0).write(cells[0].directory)
    found = costs(cells, FakeResolver())
    assert [cost.seconds for cost in found] == [100, 100, 200, 200, 400, 400]
    assert [cost.basis for cost in found[:3]] == ["measured", "its other seeds", "other settings"]

    cells[4].directory.mkdir()
    Progress(step=2, max_steps=5, phase="training", tokens_per_second=2.5).write(cells[4].directory)
    found = costs(cells, FakeResolver())
    assert found[4].seconds == 500 / 2.5
    assert found[4].basis == "its pace"
    assert found[4].done == 0.4
    # a pace has no start-up and no validations: no line goes through it and a whole run
    assert [cost.seconds for cost in found[2:4]] == [200, 200]
    Result(step=5, metrics={}, wall_seconds=220.0).write(cells[4].directory)
    assert [cost.seconds for cost in costs(cells, FakeResolver())[2:4]] == pytest.approx([140] * 2), "60 s, and 40 n"


def test_what_a_dead_run_did_after_its_checkpoint_is_not_done(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)[0]
    (cell.directory / "checkpoints").mkdir(parents=True)
    Progress(step=4, max_steps=5, phase="training", updated_at=1.0).write(cell.directory)
    assert costs([cell], FakeResolver())[0].done == 0
    for step in (1, 2):
        (cell.directory / "checkpoints" / f"step-{step:08d}.ckpt").touch()
    assert costs([cell], FakeResolver())[0].done == 0.4


def test_sums_of_all_and_of_what_is_left(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, GPUS)
    for cell in cells[:2]:
        cell.directory.mkdir(parents=True)
        Result(step=5, metrics={}, wall_seconds=3600.0).write(cell.directory)
    found = costs(cells, FakeResolver())
    total, left = Total.of(found), Total.of(found, left=True)
    assert total.amounts == {"gpu_hours": 6 * 14, "hours": 14, "tokens": 6 * 500, "flops": 2 * 7 * 500 * 24000}
    assert left.amounts == {"gpu_hours": 6 * 12, "hours": 12, "tokens": 4 * 500, "flops": 2 * 6 * 500 * 24000}
    assert str(total) == "3.00 k tokens, 168 MFLOPs, about 14 h 00 min of run time, about 84.0 GPU-hours"


def test_speeds_of_other_resources_say_nothing(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, GRID + "resources: {rules: [{when: n_future == 4, gpus: 1}]}\n")
    cells[0].directory.mkdir(parents=True)
    Result(step=5, metrics={}, wall_seconds=100.0).write(cells[0].directory)
    found = costs(cells, FakeResolver())
    assert found[2].seconds == 200
    assert found[4].seconds is None
    assert str(Total.of(found)) == (
        "3.00 k tokens, 168 MFLOPs, about 10 min 00 s of run time and 2 cells of unknown length, GPU-hours unknown"
    )


def test_a_cell_on_gpus_has_its_memory_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine that plans has none; there it takes twice as much here."""
    judged: list[tuple[int | None, int]] = []
    monkeypatch.setattr(memory, "check_memory", lambda config, limit, gpus: judged.append((limit, gpus)))
    here = FakeResolver().measure(cells_of(tmp_path)[0].config).memory_bytes
    assert here is not None
    gib = here * 1.5 / 2**30
    for resources, bytes_ in ((f"{{gpus: 1, gpu_memory_gb: {gib!r}}}", 2 * here), (f"{{memory_gb: {gib!r}}}", here)):
        cells = cells_of(tmp_path, f"{GRID}resources: {resources}\n")
        assert [cost.json()["memory_bytes"] for cost in costs(cells, FakeResolver())] == [bytes_] * 6
    assert judged == [(round(here * 1.5), 1)] * 6


def test_a_run_whose_data_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    class Silent(FakeResolver):
        def measure(self, config: Mapping[str, Any]) -> Size:
            return Size(10, 5)

    found = costs(cells_of(tmp_path), Silent())
    assert Total.of(found).unknown == {"hours": 6, "tokens": 6, "flops": 6}


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("tokens: 2999", "the grid costs 3.00 k tokens, and its budget is 3.00 k tokens"),
        ("flops: 1.0e6", "the grid costs 168 M FLOPs, and its budget is 1.00 M FLOPs"),
        ("hours: 0.05", "the grid costs 0.0583 hours, and its budget is 0.05 hours"),
    ],
)
def test_above_its_budget_a_grid_is_shown_and_not_run(
    tmp_path: Path, budget: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{GRID}budget: {{{budget}}}\n"
    cell = cells_of(tmp_path, text)[0]
    cell.directory.mkdir(parents=True)
    Result(step=5, metrics={}, wall_seconds=15.0).write(cell.directory)
    path = str(grid_file(tmp_path, text))
    runs = str(tmp_path / "runs")
    with pytest.raises(InputError, match=says):
        Grid(path, runs=runs).plan(json=str(tmp_path / "plan.json"))
    assert "n_future=4 seed=1" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["cells"][5]["cost"]["tokens"] == 500
    with pytest.raises(InputError, match=f"grid.yaml:9: budget.{budget.split(':')[0]}: {says}"):
        Grid(path, runs=runs).run()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [cell.signature]


def test_within_its_budget_it_runs(tmp_path: Path) -> None:
    path = grid_file(tmp_path, GRID + "budget: {tokens: 3000, gpu_hours: 1, hours: 1}\n")
    assert Grid(str(path), runs=str(tmp_path / "runs")).run(workers=2) == 0


@settings(max_examples=200, deadline=None)
@given(
    start_up=st.floats(0.5, 100),
    speed=st.floats(1e6, 1e15),
    work=st.lists(st.floats(1, 1e4), min_size=2, max_size=8).filter(lambda work: max(work) >= 2.5 * min(work)),
    asked=st.floats(0.1, 1e5),
)
def test_a_start_up_and_a_speed_are_found_again(
    start_up: float, speed: float, work: Sequence[float], asked: float
) -> None:
    def takes(seconds_of_work: float) -> float:
        return start_up + seconds_of_work

    found = time_by_flops([(one * speed, takes(one)) for one in work])
    assert found(asked * speed) == pytest.approx(takes(asked), rel=1e-3)


@pytest.mark.parametrize(
    ("timed", "ten_times"),
    [
        ([(1.0, 30.0)], 300),
        ([(1.0, 30.0), (1.02, 30.1)], 300),  # too close to each other to tell a start-up from a speed
        ([(1.0, 30.0), (4.0, 20.0)], 10 / 0.1166667),  # the larger took less
        ([(1.0, 30.0), (4.0, 240.0)], 10 / 0.025),  # a start-up below 0
    ],
)
def test_without_a_line_the_median_speed(timed: Sequence[tuple[float, float]], ten_times: float) -> None:
    assert time_by_flops(timed)(10.0) == pytest.approx(ten_times, rel=0.01)


def test_a_run_that_was_held_up_does_not_bend_the_line() -> None:
    """Errors are relative: one hour for a run of a minute moves what a long one takes by less than a tenth."""
    timed = [(flops, 20 + 10 * flops) for flops in (1.0, 1.0, 3.0, 3.0, 10.0, 10.0)]
    assert time_by_flops([*timed, (3.0, 3600.0)])(40.0) == pytest.approx(420, rel=0.1)


def test_what_is_left_ends_at_the_gate(tmp_path: Path) -> None:
    """Cells of 5 steps: n = 1 took 100 s, n = 2 is at step 2 of 5 and n = 4 has not begun."""
    cells = cells_of(tmp_path)
    cells[0].directory.mkdir(parents=True)
    Result(step=5, metrics={}, wall_seconds=100.0).write(cells[0].directory)
    (cells[2].directory / "checkpoints").mkdir(parents=True)
    (cells[2].directory / "checkpoints" / "step-00000002.ckpt").touch()
    Progress(step=2, max_steps=5, phase="training", updated_at=1.0).write(cells[2].directory)
    wanted = [cells[0], replace(cells[2], pause_at=3), replace(cells[4], pause_at=3), cells[5]]
    found = [seconds_left(wanted, FakeResolver())[cell.signature] for cell in wanted]
    assert found == pytest.approx([0, 200 * (0.6 - 0.4), 400 * 0.6, 400])
    assert seconds_left(cells[1:2], FakeResolver()) == {}


def test_while_cells_run_their_memory_is_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was checked before, and an error would end what runs."""
    cells = cells_of(tmp_path)

    def too_large(*_: Any) -> None:
        raise InputError("too large")

    monkeypatch.setattr(cost, "machine_memory", lambda: 1)
    monkeypatch.setattr(memory, "check_memory", too_large)
    with pytest.raises(InputError, match="too large"):
        costs(cells, FakeResolver())
    assert seconds_left(cells, FakeResolver()) == {}
