"""Faults: runs and launchers killed again and again, at random; clocks that jump. Nothing lost, nothing doubled."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_grid_fakes import cells_of, finish, grid_file, states
from test_grid_stop import runner

from mtp_lightning.grid.run.cost import Pace
from mtp_lightning.grid.run.state import Progress, State, Status, cell_state
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.machine import process_token

STEPS = 8
RUN = f"""
def alive(number):
    try:
        return pathlib.Path(f"/proc/{{number}}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
inside = cell / "inside"  # who is at work here
if inside.exists() and alive(inside.read_text()):
    (cell / "two at once").touch()
inside.write_text(str(os.getpid()))
saved = cell / "saved"
step = int(saved.read_text()) if saved.exists() else 0
while step < {STEPS}:
    time.sleep(0.03)
    step += 1
    progress(step)
    (cell / "saved.new").write_text(str(step))
    (cell / "saved.new").rename(saved)
    with (cell / "steps").open("a") as file:
        file.write(f"{{step}}\\n")
inside.unlink()
finish()
"""
"""A run that saves each step, and then notes it: killed in between, a step is missing in its notes, never twice."""


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6)]])
def test_runs_and_launchers_are_killed_until_all_is_done(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    grid, cells = grid_file(tmp_path), cells_of(tmp_path)
    killed = 0
    while killed < 5:
        process = runner(grid, RUN)
        while process.poll() is None and chance.random() < 0.6:
            time.sleep(chance.uniform(0.2, 0.5))
            killed += kill_one(cells, chance)
        if process.poll() is None:
            time.sleep(chance.uniform(0.1, 0.6))
            process.kill()
            killed += 1
        process.communicate()
    last = runner(grid, RUN)
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    for cell in cells:
        assert not (cell.directory / "two at once").exists()
        noted = [int(line) for line in (cell.directory / "steps").read_text().split()]
        assert noted == sorted(set(noted)), "a step was made twice"
        assert noted[-1] == STEPS
        assert len(noted) >= STEPS - 6, "steps were lost"


def kill_one(cells: list[Cell], chance: random.Random) -> int:
    found = [status for cell in cells if (status := Status.read(cell.directory)) and status.state == "running"]
    living = [status.pid for status in found if status.pid and process_token(status.pid) == status.process]
    if living:
        os.kill(chance.choice(living), signal.SIGKILL)
    return min(1, len(living))


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_jumps_ends_and_revives_nobody(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, gone, elsewhere = cells_of(tmp_path)[:3]
    for cell in (alive, gone, elsewhere):
        cell.directory.mkdir(parents=True)
        Progress(step=2, max_steps=5, phase="training").write(cell.directory)
    now, here = time.time(), Progress(0, 0, "").host
    Status("running", 1, here, now, os.getpid(), process_token(os.getpid())).write(alive.directory)
    Status("running", 1, here, now, os.getpid(), "another process").write(gone.directory)
    Progress(step=2, max_steps=5, phase="training", pid=2**22 - 1).write(gone.directory)
    finish(elsewhere)
    monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
    assert states([alive, gone, elsewhere]) == ["running", "interrupted", "finished"]
    Status("running", 1, "another host", now).write(gone.directory)
    # Whoever cannot be looked at goes by a heartbeat; one from the future is no sign of life for ever.
    assert cell_state(gone.directory) is State.INTERRUPTED


def test_time_left_is_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, now = Pace(1000.0), 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    assert pace.seconds_left(Progress(1, 10, "training", updated_at=1010.0)) is None
    for at in (1020.0, 900.0, 9000.0):
        now = at
        left = pace.seconds_left(Progress(5, 10, "training", updated_at=1020.0))
        assert left is None or left >= 0
