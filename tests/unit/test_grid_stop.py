"""Launchers stopped, killed, doubled or out of room, as processes of their own: nothing lost, nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_grid_fakes import (
    DONE,
    ONE,
    Silent,
    cells_of,
    environment,
    grid_file,
    launch,
    starts,
    states,
    until,
)

from mtp_lightning.files import FileLock
from mtp_lightning.grid.run.display import Line
from mtp_lightning.grid.run.state import LOCK, Progress, Status

RUNNER = """
import sys
sys.path.insert(0, {tests!r})
import pytest
from test_grid_fakes import FakeHouse
from mtp_lightning.grid.commands import Grid
FakeHouse(pytest.MonkeyPatch(), {script!r})
sys.exit(Grid({grid!r}, runs={runs!r}).run(workers=2))
"""


def runner(grid: Path, script: str, before: str = "") -> subprocess.Popen[str]:
    """`mtp grid run` in a process of its own."""
    code = before + RUNNER.format(
        tests=str(Path(__file__).parent), script=script, grid=str(grid), runs=str(grid.parent / "runs")
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def test_two_launchers_at_once_run_every_cell_once(tmp_path: Path) -> None:
    grid, cells = grid_file(tmp_path), cells_of(tmp_path)
    script = "time.sleep(0.3); finish()"
    both = [runner(grid, script), runner(grid, script)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [starts(cell) for cell in cells] == [1] * 6
    assert outputs[0][0] == outputs[1][0]  # and both show the same table


SLEEPS = "progress(2); time.sleep(60)"


STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75}


@pytest.mark.parametrize(("signum", "status"), STOPPED.items())
def test_a_signal_stops_all_and_leaves_everything_resumable(tmp_path: Path, signum: int, status: int) -> None:
    grid, cells = grid_file(tmp_path), cells_of(tmp_path)
    process = runner(grid, SLEEPS)
    until(lambda: states(cells).count("running") == 2 and Progress.read(cells[1].directory) is not None)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "stopped (2 cells: 2 interrupted)" in errors
    assert states(cells) == ["interrupted"] * 2 + ["missing"] * 4
    again = runner(grid, DONE)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert [starts(cell) for cell in cells] == [2, 2, 1, 1, 1, 1]


STUBBORN = "signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN); progress(2); time.sleep(60)"


def test_runs_that_ignore_signals_are_killed_after_the_grace_period(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)

    class Impatient(Silent):
        def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
            if all(line.step == 2 for line in lines[:2]) and not self.notes:
                os.kill(os.getpid(), signal.SIGTERM)

    began = time.monotonic()
    launched, _ = launch(cells, STUBBORN, display=Impatient(), grace=0.3)
    assert launched.stopped_by == signal.SIGTERM
    assert time.monotonic() - began < 20
    assert [outcome.reason for outcome in launched.outcomes.values()] == ["stopped by SIGTERM"] * 2
    assert states(cells[:2]) == ["interrupted"] * 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_ctrl_c_ends_stubborn_runs_at_once(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    process = runner(grid_file(tmp_path), STUBBORN)
    until(lambda: all(Progress.read(cell.directory) for cell in cells[:2]))
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # a wrapper passing on the same Ctrl-C: not a second one
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)  # the grace period is 30 s
    assert process.returncode == 130
    assert states(cells[:2]) == ["interrupted"] * 2


def test_a_run_that_saves_on_the_signal_is_given_the_time(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, ONE)
    saves = "progress(2)\ntry:\n    time.sleep(60)\n"
    saves += "except KeyboardInterrupt:\n    time.sleep(0.3); (cell / 'saved').touch()"
    process = runner(grid_file(tmp_path, ONE), saves)
    until(lambda: Progress.read(cell.directory) is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (cell.directory / "saved").exists()
    assert states([cell]) == ["interrupted"]


def test_a_run_outlives_a_killed_launcher_and_is_not_started_twice(tmp_path: Path) -> None:
    grid, (cell,) = grid_file(tmp_path, ONE), cells_of(tmp_path, ONE)
    process = runner(grid, "progress(2)\nwhile not (cell / 'go').exists(): time.sleep(0.02)\nfinish()")
    until(lambda: Progress.read(cell.directory) is not None)
    process.kill()
    process.communicate()
    assert states([cell]) == ["running"]
    assert not FileLock(cell.directory / LOCK).acquire()  # held by the run itself
    second = runner(grid, DONE)
    time.sleep(1.0)
    assert second.poll() is None  # it waits
    (cell.directory / "go").touch()
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 0, errors
    assert starts(cell) == 1


def test_a_killed_launcher_and_killed_runs_leave_interrupted_cells(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    process = runner(grid_file(tmp_path), SLEEPS)
    until(lambda: states(cells).count("running") == 2)
    process.kill()
    process.communicate()
    for cell in cells[:2]:
        status = Status.read(cell.directory)
        assert status is not None
        assert status.pid is not None
        os.killpg(status.pid, signal.SIGKILL)
    until(lambda: states(cells) == ["interrupted"] * 2 + ["missing"] * 4)


def test_with_no_room_to_write_every_cell_fails_and_the_launcher_does_not(tmp_path: Path) -> None:
    grid, cells = grid_file(tmp_path), cells_of(tmp_path)
    # A limit of 0 bytes on every file is a full disk that needs no rights to set up.
    before = "import resource, sys; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    process = runner(grid, DONE, before)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    assert errors.count("failed: cannot be started: [Errno 27] File too large") == 6
    assert "no cell could be started: there is nothing to report" in errors
    assert output == ""
    assert states(cells) == ["missing"] * 6
    process = runner(grid, DONE)
    process.communicate(timeout=60)
    assert process.returncode == 0  # with room again, all of them run
