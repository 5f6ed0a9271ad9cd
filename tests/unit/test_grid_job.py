"""What runs on the nodes, without Slurm: tasks as processes with Slurm's variables, and a mark for "queued again"."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import DONE, ONE, cells_of, command, environment, finish, launch, starts, states, until

from mtp_lightning.files import FileLock
from mtp_lightning.grid.run.attempts import read_attempts
from mtp_lightning.grid.run.state import (
    DIFF,
    HEARTBEAT_SECONDS,
    LOCK,
    Progress,
    State,
    Status,
    cell_state,
)
from mtp_lightning.grid.slurm.task import write_cell
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.resources import Resources

JOB = """
import signal, sys
from pathlib import Path
from mtp_lightning.grid.slurm import job, task
job.SAVE_SECONDS, job.OTHERS_SECONDS, job.ELSEWHERE_SECONDS = 1.0, 0.5, 2.0
job.BEAT_SECONDS, task.SILENT_SECONDS = 0.1, 1.0
def queue_again(*_):
    Path("queued").open("a").write("again\\n")
    sys.exit(255)
signal.signal(signal.SIGUSR2, queue_again)
job.CellJob(sys.argv[1], sys.argv[2] or None)()
"""
WAITS = "progress(1)\nwhile not (cell / 'go').exists(): time.sleep(0.02)\nfinish()"
SAVES = """
def save(*_):
    (cell / "checkpoints").mkdir(exist_ok=True)
    (cell / "checkpoints" / f"{time.time()}.ckpt").touch()
    os._exit(75)
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, save)
progress(1)
(cell / "ready").touch()
time.sleep(60)
"""


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queued = folder / "queued"

    def start(self, cell: Cell, script: str, job: str = "7", rank: int = 0, code: str = "") -> "subprocess.Popen[str]":
        submission = self.folder / "runs" / "submissions" / job
        submission.mkdir(parents=True, exist_ok=True)
        if not rank:
            write_cell(submission, 0, cell, dict(cell.config), command(script, cell.directory))
        variables = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": "0", "SLURM_PROCID": str(rank)}
        variables |= {"SLURM_CPUS_ON_NODE": "6", "SLURMD_NODENAME": f"node{rank}"}
        variables["PATH"] = f"{self.folder}:{os.environ['PATH']}"  # a `scontrol` of the test's own
        inherited = {key: value for key, value in environment().items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [sys.executable, "-c", JOB, str(submission), code], cwd=self.folder, text=True,
            env=inherited | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, cell: Cell, script: str, **more: Any) -> tuple[int, bool]:
        """Exit status, and whether it was queued again."""
        process = self.start(cell, script, **more)
        return self.end(process)

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, bool]:
        process.communicate(timeout=60)
        again = self.queued.exists()
        self.queued.unlink(missing_ok=True)
        return process.returncode, again


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    (one,) = cells_of(tmp_path, ONE)
    return one


def attempts(cell: Cell) -> list[tuple[Any, ...]]:
    return [(one["attempt"], one["job"], one["state"], one["reason"]) for one in read_attempts(cell.directory)]


def test_a_cell_is_run_as_it_is_here_and_only_once(slurm: Slurm, cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / DIFF).write_text("+ a line\n")
    script = "print(os.environ['OMP_NUM_THREADS'])\n" + DONE
    for _ in range(2):
        assert slurm.run(cell, script, code=str(tmp_path / "code")) == (0, False)
    assert attempts(cell) == [(1, "7_0", "finished", None)]
    assert (cell.directory / "log.txt").read_text().splitlines()[1] == "6"
    assert (cell.directory / DIFF).read_text() == "+ a line\n"


def ready(cell: Cell) -> None:
    until(lambda: (cell.directory / "ready").exists(), 60)


@pytest.mark.parametrize(
    ("number", "reason", "ends"),
    [(signal.SIGUSR2, "stopped by SIGUSR1", (255, True)), (signal.SIGTERM, "stopped by SIGTERM", (75, False))],
)
def test_signals_reach_the_run_which_saves(slurm: Slurm, cell: Cell, number: int, reason: str, ends: Any) -> None:
    """Slurm's warning: and the job is queued again. Cancelled: it is not."""
    process = slurm.start(cell, SAVES)
    ready(cell)
    process.send_signal(number)
    assert slurm.end(process) == ends
    assert attempts(cell) == [(1, "7_0", "interrupted", reason)]
    assert len(list((cell.directory / "checkpoints").iterdir())) == 1
    assert cell_state(cell.directory) is State.INTERRUPTED


def test_a_run_that_does_not_save_in_time_is_killed_and_queued_again(slurm: Slurm, cell: Cell) -> None:
    process = slurm.start(cell, SAVES.replace("SIGUSR1, save", "SIGUSR1, signal.SIG_IGN"))
    ready(cell)
    process.send_signal(signal.SIGUSR2)
    assert slurm.end(process) == (255, True)
    assert attempts(cell) == [(1, "7_0", "interrupted", "stopped by SIGUSR1")]


def test_a_run_that_somebody_else_stopped_is_no_failure(slurm: Slurm, cell: Cell) -> None:
    assert slurm.run(cell, "progress(1); sys.exit(75)") == (255, True)
    assert attempts(cell) == [(1, "7_0", "interrupted", "preempted")]


def test_a_run_at_the_gate_is_not_queued_again_and_goes_on_when_it_is_submitted_anew(slurm: Slurm, cell: Cell) -> None:
    to_gate = "progress(3); write('gate.json', step=3, metrics={'val/loss/head_1': 2.0}); sys.exit(75)"
    gated = replace(cell, pause_at=3)
    for _ in range(2):
        assert slurm.run(gated, to_gate) == (0, False)
    assert attempts(cell) == [(1, "7_0", "at the gate", None)]
    assert slurm.run(cell, DONE, job="8") == (0, False)
    assert [state for _, _, state, _ in attempts(cell)] == ["at the gate", "finished"]


def test_a_cell_that_gets_nowhere_is_not_queued_for_ever(slurm: Slurm, cell: Cell) -> None:
    again = [slurm.run(cell, "sys.exit(75)")[1] for _ in range(5)]
    assert again == [True] * 3 + [False] * 2
    assert starts(cell) == 4, "the last one was not even begun"
    status = Status.read(cell.directory)
    assert status is not None
    assert status.reason == "interrupted 4 times without a new checkpoint: not queued again"
    assert slurm.run(cell, "sys.exit(75)", job="8")[1], "submitted anew, it has its chances"


def test_a_cell_that_gets_on_is_queued_as_often_as_it_takes(slurm: Slurm, cell: Cell) -> None:
    saves = "(cell / 'checkpoints').mkdir(exist_ok=True); (cell / 'checkpoints' / f'{time.time()}.ckpt').touch()\n"
    assert [slurm.run(cell, saves + "sys.exit(75)")[1] for _ in range(5)] == [True] * 5


def test_failures_are_tried_again_by_whoever_runs_the_cell(slurm: Slurm, cell: Cell) -> None:
    script = "count = len((cell / 'starts').read_text().splitlines())\nif count < 3: sys.exit(count)\nfinish()"
    cell = replace(cell, retry=1)
    assert slurm.run(cell, script) == (1, False)
    assert attempts(cell) == [(n, "7_0", "failed", f"exit status {n}") for n in (1, 2)]
    other = replace(cell, retry=2, directory=cell.directory.with_name("other"))
    launched, display = launch([other], script)
    assert launched.outcomes[other.signature].state is State.FINISHED
    assert [one[2] for one in attempts(other)] == ["failed", "failed", "finished"]
    assert [note for note in display.notes if "again" in note] == [f"{cell.label}: again, {n} of 2" for n in (1, 2)]


def test_a_job_that_was_killed_with_its_run_is_recorded_by_the_next(slurm: Slurm, cell: Cell) -> None:
    process = slurm.start(cell, WAITS)
    until(lambda: Progress.read(cell.directory) is not None, 60)
    process.kill()
    status = Status.read(cell.directory)
    assert status is not None
    assert status.pid is not None
    os.killpg(status.pid, signal.SIGKILL)
    process.communicate()
    assert slurm.run(cell, DONE) == (0, False)
    assert attempts(cell) == [
        (1, "7_0", "interrupted", "killed, and its launcher too"),
        (2, "7_0", "finished", None),
    ]


def test_a_cell_that_runs_elsewhere_is_left_alone(slurm: Slurm, cell: Cell) -> None:
    cell.directory.mkdir(parents=True)
    lock = FileLock(cell.directory / LOCK)
    assert lock.acquire()
    assert slurm.run(cell, DONE) == (1, False), "what waits for this job must not begin"
    lock.release()
    Status("running", 1, "node1", time.time(), job="6_0").write(cell.directory)
    assert slurm.run(cell, DONE) == (1, False)
    assert starts(cell) == 0
    Status("running", 1, "node1", time.time(), job="7_0").write(cell.directory)
    slurm.run(cell, DONE)
    assert states([cell]) == ["finished"], "that was this very job, before its node went down"


def test_a_cell_does_not_begin_with_the_weights_of_one_that_is_not_finished(slurm: Slurm, cell: Cell) -> None:
    parent = replace(cell, directory=cell.directory.with_name("parent"))
    child = replace(cell, parent="parent", parent_label="pretrain", follows=True)
    parent.directory.mkdir(parents=True)
    Status("interrupted", 1, "node1", 1.0, ended_at=2.0).write(parent.directory)
    process = slurm.start(child, DONE)
    assert process.communicate(timeout=60)[0].splitlines()[-1] == (
        f"{cell.label}: blocked: begins with the weights of pretrain seed=0 (parent), which is interrupted"
    )
    assert process.returncode == 1
    assert (starts(cell), attempts(cell)) == (0, [])
    finish(parent)
    assert slurm.run(child, DONE) == (0, False)


def test_a_cell_whose_run_died_elsewhere_is_run_once_that_is_known(slurm: Slurm, cell: Cell) -> None:
    """Another job's, on a node that is gone: its last sign of life is a second short of too old."""
    cell.directory.mkdir(parents=True)
    at = time.time() - HEARTBEAT_SECONDS + 1
    Status("running", 1, "node1", at, job="6_0").write(cell.directory)
    Progress(1, 5, "training", updated_at=at, host="node1").write(cell.directory)
    assert slurm.run(cell, DONE) == (0, False)
    assert states([cell]) == ["finished"]


def test_a_lock_that_is_held_a_moment_longer_costs_no_attempt(slurm: Slurm, cell: Cell) -> None:
    """Helpers of a failed run have it until they are dead."""
    holds = "subprocess.Popen(['sleep', '1'], close_fds=False, start_new_session=True)"
    first = f"(cell / 'held').touch(); {holds}; sys.exit(3)"
    script = f"import subprocess\nif not (cell / 'held').exists():\n    {first}\nfinish()"
    assert slurm.run(replace(cell, retry=1), script) == (0, False)
    assert [one[2] for one in attempts(cell)] == ["failed", "finished"]


def two(cell: Cell) -> Cell:
    return replace(cell, resources=Resources(tasks=2), retry=1)


RANKED = "rank = int(os.environ['SLURM_PROCID'])\n(cell / f'rank{rank}').open('a').write('x')\n"


def both(slurm: Slurm, cell: Cell, script: str) -> Sequence[int]:
    tasks = [slurm.start(cell, script, rank=rank) for rank in range(2)]
    return [slurm.end(task)[0] for task in tasks]


NODES = Resources(nodes=2)


def scontrol(folder: Path, script: str) -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "scontrol").chmod(0o755)
