"""Grids on a real one-node Slurm cluster. Most runs are fakes made of files; training is real where it matters."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_grid_fakes
from slurm_cluster import WHOLE, Cluster, cluster, slurm
from test_grid_fakes import GRID, ONE, FakeHouse, cells_of, grid_file, house, starts, states

from mtp_lightning.config.cell import command
from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run.attempts import read_attempts
from mtp_lightning.grid.slurm.submissions import Submissions
from mtp_lightning.grid.spec import cell_maker
from mtp_lightning.grid.spec.cells import Cell

__all__ = ["cluster", "house", "slurm"]

pytestmark = pytest.mark.usefixtures("house")
SLEEPS = "progress(2); time.sleep(60)"
# Saves and stops on a signal, as `mtp fit` does, and continues from there.
SAVES = """
folder = cell / "checkpoints"
folder.mkdir(exist_ok=True)
step = max((int(path.stem) for path in folder.glob("*.ckpt")), default=0)
def save(*_):
    (folder / f"{step}.ckpt").touch()
    os._exit(75)
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, save)
while step < 4:
    step += 1
    progress(step)
    time.sleep(0.5)
finish()
"""
SMALL = GRID.replace("[0, 1]", "[0]").replace("[1, 2, 4]", "[1, 2]")


def grid() -> Grid:
    return Grid("grid.yaml")


def rows() -> list[dict[str, Any]]:
    grid().status(json="status.json")
    found: list[dict[str, Any]] = json.loads(Path("status.json").read_text())["cells"]
    return found


def attempts(cell: Cell) -> list[tuple[str, str | None]]:
    return [(attempt["state"], attempt["reason"]) for attempt in read_attempts(cell.directory)]


FAILS = (
    "progress(1)\nif n == 4 and seed == 1 and not os.path.exists('mended'): print('bad luck'); sys.exit(5)\nfinish()"
)


def test_one_cell_fails_the_others_finish_and_resume_submits_it_alone(
    cluster: Cluster, house: FakeHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house.script = FAILS
    grid_file(tmp_path, GRID + "retry: 1\n")
    cells = cells_of(tmp_path, GRID + "retry: 1\n")
    assert grid().submit(max_parallel=3) == 0
    assert {row["state"] for row in rows()} <= {"queued", "running"}
    assert grid().submit() == 0
    assert "0 of 6 cells submitted" in capsys.readouterr().out
    cluster.until(lambda: not cluster.jobs())
    assert states(cells) == ["finished"] * 5 + ["failed"]
    assert attempts(cells[5]) == [("failed", "exit status 5: bad luck")] * 2, "one retry"
    job = read_attempts(cells[0].directory)[0]["job"]
    assert [row["job"] for row in rows()] == [f"{job.split('_')[0]}_{index}" for index in range(6)]

    grid().submit()
    shown = capsys.readouterr().out
    assert "0 of 6 cells submitted; 5 finished, 1 failed" in shown
    assert f"1 failed (n_future=4 seed=1); `{command('grid', 'resume', 'grid.yaml')}` submits them again" in shown
    grid().logs("n_future=4 seed=1", lines=1)
    assert capsys.readouterr().out == "bad luck\n"

    (tmp_path / "mended").touch()
    assert grid().resume() == 0
    assert "1 of 6 cells submitted; 5 finished" in capsys.readouterr().out
    cluster.until(lambda: not cluster.jobs())
    assert states(cells) == ["finished"] * 6
    assert [starts(cell) for cell in cells] == [1, 1, 1, 1, 1, 3]


CHAIN = """\
name: chain
configs: [base.yaml]
overrides: {trainer.max_steps: 5}
seeds: [0, 1]
stages:
  - {name: first, axes: {model.heads.n_future: [1]}}
  - {name: second, from: first}
"""
ONE_PARENT_FAILS = """
first = "path: null" in text
time.sleep(2 * first)
if first and seed == 1 and not os.path.exists("mended"):
    sys.exit(5)
(cell.parent / "order").open("a").write(f"{'first' if first else 'second'} {seed}\\n")
finish()
"""


@pytest.mark.slow
def test_a_stage_waits_for_the_one_it_comes_from(
    cluster: Cluster,
    house: FakeHouse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cell by cell; what waits for one that fails leaves the queue, and comes again with it."""
    init = {"path": None, "heads": "keep", "unembedding": "keep", "vocabulary": "keep"}
    monkeypatch.setitem(test_grid_fakes.CONFIG, "model", {**test_grid_fakes.CONFIG["model"], "init": init})
    monkeypatch.setattr(cell_maker, "check_chained", lambda *_: None)
    house.script = ONE_PARENT_FAILS
    grid_file(tmp_path, CHAIN)
    assert grid().submit() == 0
    assert "4 of 4 cells submitted" in capsys.readouterr().out
    cluster.until(lambda: not cluster.jobs())
    assert [row["state"] for row in rows()] == ["finished", "failed", "finished", "blocked"]
    (tmp_path / "mended").touch()
    assert grid().resume() == 0
    cluster.until(lambda: not cluster.jobs())
    assert [row["state"] for row in rows()] == ["finished"] * 4
    order = (tmp_path / "runs/order").read_text().splitlines()
    assert order == ["first 0", "second 0", "first 1", "second 1"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import pytest
from test_grid_fakes import FakeHouse
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.slurm.submissions import Submissions
write = Submissions.write
def killed(self, submission):
    if submission.job is None:
        write(self, submission)
    if (submission.job is None) == {before!r}:
        os.kill(os.getpid(), signal.SIGKILL)
Submissions.write = killed
FakeHouse(pytest.MonkeyPatch(), {script!r})
Grid("grid.yaml").submit()
"""


@pytest.mark.parametrize("before", [True, False], ids=["before sbatch", "after it"])
def test_a_submitter_is_killed_and_the_second_one_submits_nothing_twice(
    cluster: Cluster, house: FakeHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    grid_file(tmp_path, SMALL)
    cells, house.script = cells_of(tmp_path, SMALL), "progress(1); time.sleep(1); finish()"
    code = KILLED.format(tests=str(Path(test_grid_fakes.__file__).parent), before=before, script=house.script)
    first = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert first.returncode == -signal.SIGKILL
    assert len(cluster.jobs()) == (0 if before else 2)
    (intent,) = Submissions(tmp_path / "runs").read()
    assert intent.job is None

    assert grid().submit() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{2 if before else 0} of 2 cells submitted")
    assert len(cluster.jobs()) == 2
    records = Submissions(tmp_path / "runs").read()
    assert [(one.job is None, one.over) for one in records] == (
        [(True, True), (False, False)] if before else [(False, False)]
    )
    cluster.until(lambda: not cluster.jobs())
    assert [(states([cell]), starts(cell)) for cell in cells] == [(["finished"], 1)] * 2


@pytest.mark.parametrize("partition", ["main", pytest.param("abrupt", marks=pytest.mark.slow)])
def test_a_preempted_cell_saves_is_queued_again_and_goes_on(
    cluster: Cluster, house: FakeHouse, tmp_path: Path, partition: str
) -> None:
    house.script = SAVES
    grid_file(tmp_path, ONE + WHOLE)
    (cell,) = cells_of(tmp_path, ONE + WHOLE)
    grid().submit(partition=partition)
    cluster.until(lambda: states([cell]) == ["running"])
    cluster.preempt()
    cluster.until(lambda: rows()[0]["state"] == "queued")
    cluster.until(lambda: len(read_attempts(cell.directory)) == 2)
    found = read_attempts(cell.directory)
    assert [(one["attempt"], one["state"]) for one in found] == [(1, "interrupted"), (2, "finished")]
    assert found[0]["reason"] == "stopped by SIGUSR1"
    assert found[0]["checkpoint"] is not None
    assert found[0]["job"] == found[1]["job"] == rows()[0]["job"]


def test_cancel_takes_out_what_is_named_and_nothing_else(
    cluster: Cluster, house: FakeHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file(tmp_path)
    cells = cells_of(tmp_path)
    cluster("sbatch", "--output=/dev/null", "--wrap", "sleep 60")
    house.script = SAVES.replace("step < 4", "True")
    grid().submit(max_parallel=1)
    cluster.until(lambda: states(cells[:1]) == ["running"] and (cells[0].directory / "checkpoints").is_dir())
    capsys.readouterr()
    assert grid().cancel(["n_future=4 seed=1", cells[4].signature[:6]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["n_future=4 seed=1", "n_future=4 seed=0"]
    assert [row["state"] for row in rows()] == ["running"] + ["queued"] * 3 + ["missing"] * 2
    assert grid().cancel([]) == 0
    cluster.until(lambda: len(cluster.jobs()) == 1)
    assert [row["state"] for row in rows()] == ["interrupted"] + ["missing"] * 5
    assert attempts(cells[0]) == [("interrupted", "stopped by SIGTERM")]
    assert len(list((cells[0].directory / "checkpoints").iterdir())) == 1, "it had the time to save"
    capsys.readouterr()
    grid().cancel([])
    assert capsys.readouterr().out == "nothing waits or runs\n"


def test_a_job_that_dies_before_its_run_is_reported_with_its_output(
    cluster: Cluster, house: FakeHouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house.script = SLEEPS
    grid_file(tmp_path, ONE)
    cluster.preempt(2.0)
    grid().submit()
    (record,) = Submissions(tmp_path / "runs").read()
    (tmp_path / "runs/submissions" / record.token / "0.json").unlink()
    cluster.until(lambda: len(cluster.jobs()) == 0)
    (row,) = rows()
    assert (row["state"], row["slurm"]) == ("missing", None)
    assert row["reason"] == f"job {record.job}_0 ended before the run began: `mtp grid logs` shows its output"
    capsys.readouterr()
    grid().logs(row["label"], lines=0)
    assert "lacks the cell 0" in capsys.readouterr().out


def test_what_slurm_refuses_is_reported_in_its_words_and_nothing_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    text = GRID + "resources: {cpus: 1, rules: [{when: n_future == 4, cpus: 400}, {when: n_future == 2, cpus: 2}]}\n"
    grid_file(tmp_path, text)
    with pytest.raises(InputError, match=r"not available \(cells with 1 node, 1 task, 400 cpus\)"):
        grid().submit()
    with pytest.raises(InputError, match="nowhere"):
        grid().submit(partition="nowhere")
    assert not cluster.jobs()
    assert not Submissions(tmp_path / "runs").read()
