"""`mtp grid submit | resume | cancel` on a Slurm of scripts; a real one is in tests/e2e."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import CONFIG, GRID, ONE, cells_of, finish, grid_file, house, starts, states
from test_grid_slurm_fakes import FakeSlurm, slurm

from mtp_lightning.config.cell import command
from mtp_lightning.errors import InputError
from mtp_lightning.files import FileLock
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.run.state import Progress, State, Status
from mtp_lightning.grid.slurm import client as programs
from mtp_lightning.grid.slurm import submit
from mtp_lightning.grid.slurm.submissions import Submission, Submissions

__all__ = ["house", "slurm"]

pytestmark = pytest.mark.usefixtures("house")


@pytest.fixture(autouse=True)
def no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "checkout", lambda: None)


def call(command: Any, *more: Any, **options: Any) -> int:
    return command(Grid("grid.yaml"), *more, **options)  # type: ignore[no-any-return]


def failure(command: Any, *more: Any) -> str:
    """What Slurm refused."""
    with pytest.raises(programs.SlurmError) as caught:
        call(command, *more)
    return str(caught.value)


def rows() -> list[dict[str, Any]]:
    assert call(Grid.status, json="status.json") == 0
    found: list[dict[str, Any]] = json.loads(Path("status.json").read_text())["cells"]
    return found


def records() -> list[Submission]:
    return Submissions(Path("runs").absolute()).read()


def attempted(folder: Path, state: State, job: str | None = None, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Status(state.value, 1, **{"host": "node1", "started_at": time.time(), "job": job, **more}).write(folder)


def test_missing_and_interrupted_cells_are_submitted_and_failed_ones_named(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file(tmp_path)
    cells = cells_of(tmp_path)
    finish(cells[0], loss_1=1.0)
    attempted(cells[1].directory, State.FAILED)
    attempted(cells[2].directory, State.INTERRUPTED)
    cells[3].directory.mkdir()
    Progress(step=1, max_steps=5, phase="train").write(cells[3].directory)  # started by hand
    call(Grid.submit)
    (record,) = records()
    assert record.cells == tuple(cell.signature for cell in (cells[2], *cells[4:]))
    shown = capsys.readouterr().out
    assert "3 of 6 cells submitted; 1 finished, 1 failed, 1 running" in shown
    assert f"1 failed (n_future=1 seed=1); `{command('grid', 'resume', 'grid.yaml')}` submits them again" in shown
    call(Grid.resume)
    assert [list(one.cells) for one in records()[1:]] == [[cells[1].signature]]
    assert slurm.elements() == ["7_0", "7_1", "7_2", "8_0"]


def test_each_shape_of_resources_is_an_array_of_its_own_no_longer_than_slurm_allows(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    rules = "[{when: n_future == 4, gpus: 2, nodes: 2, memory_gb: 1.5, minutes: 8, account: mine}]"
    grid_file(tmp_path, GRID + f"resources: {{cpus: 3, rules: {rules}}}\n")
    slurm.say("largest", "3")
    call(Grid.submit, max_parallel=2, partition="long", account="theirs")
    assert slurm.elements() == ["7_0", "7_1", "7_2", "8_0", "9_0", "9_1"]
    scripts = [(tmp_path / "runs/submissions" / one.token / "job.sh").read_text() for one in records()]
    flags = [{line.split(" --", 1)[1] for line in text.splitlines() if line.startswith("#SBATCH")} for text in scripts]
    common = {"nodes=1", "ntasks-per-node=1", "cpus-per-task=3", "partition=long", "requeue"}
    assert flags[0] >= common | {"array=0-2%2", "account=theirs", "signal=USR2@120"}
    assert not any(flag.startswith(("time", "mem", "gpus", "wckey")) for flag in flags[0]), "left to the cluster"
    wide = {"nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "mem=1536M", "time=8", "account=mine", "array=0-1%2"}
    assert flags[2] >= wide
    assert "--cpus-per-task=3" in scripts[0].split("srun")[1]


def test_a_cell_that_another_grid_has_submitted_is_not_submitted_again(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file(tmp_path)
    call(Grid.submit)
    grid_file(tmp_path, GRID.replace("head-count", "other").replace("[1, 2, 4]", "[1, 2, 3]"))
    call(Grid.submit)
    assert "2 of 6 cells submitted; 4 queued" in capsys.readouterr().out
    assert len(slurm.elements()) == 8


@pytest.mark.parametrize("known", ["queue", "ended", "accounts", "nobody"])
def test_an_intent_without_a_job_is_adopted_where_slurm_knows_it(
    slurm: FakeSlurm, tmp_path: Path, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    call(Grid.submit)
    (record,) = records()
    path = tmp_path / "runs/submissions" / f"{record.token}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": None}))
    if known == "ended":
        slurm.set("7_0", "COMPLETED")  # Slurm forgets it in some minutes
    elif known != "queue":
        slurm.empty()
    slurm.say("accounts", f"5_0|mtp-other-1\n7_0|{record.job_name}\n" if known == "accounts" else "")
    call(Grid.submit)
    adopted = records()[0]
    expected = {"queue": ("7", False), "ended": ("7", True), "accounts": ("7", True), "nobody": (None, True)}
    assert (adopted.job, adopted.over) == expected[known]
    assert len(records()) == (1 if known == "queue" else 2)


def test_nobody_looks_for_a_job_while_its_sbatch_is_at_work(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submitter is dead, its sbatch is not: the job may yet appear."""
    grid_file(tmp_path, ONE)
    slurm.say("sbatch", (slurm.folder / "sbatch").read_text().replace("job = 1", "import time; time.sleep(2)\njob = 1"))
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(Submissions, "write", _then_die_in_a_second(Submissions.write))
        call(Grid.submit)
        os._exit(0)
    os.waitpid(pid, 0)
    assert records()[0].job is None
    call(Grid.submit)
    assert slurm.elements() == ["7_0"]
    assert [one.job for one in records()] == ["7"]


def _then_die_in_a_second(write: Any) -> Any:
    import signal

    def written(self: Submissions, one: Submission) -> None:
        write(self, one)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)

    return written


def test_two_submitters_take_turns(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtp_lightning.grid.slurm import submissions

    grid_file(tmp_path, ONE)
    folder = tmp_path / "runs/submissions"
    folder.mkdir(parents=True)
    other = FileLock(folder / "lock")
    assert other.acquire()
    monkeypatch.setattr(submissions, "LOCK_SECONDS", 0.2)
    with pytest.raises(InputError, match="another `mtp grid submit` is at work there"):
        call(Grid.submit)
    assert rows()[0]["state"] == "missing", "looking needs no turn"
    other.release()
    call(Grid.submit)


def test_what_slurm_refuses_leaves_nothing_behind(slurm: FakeSlurm, tmp_path: Path) -> None:
    grid_file(tmp_path, GRID + "resources: {rules: [{when: n_future == 4, gpus: 8}]}\n")
    slurm.say("refuses", "Requested node configuration is not available")
    with pytest.raises(InputError, match=r"(?s)not available .cells with 1 node, 1 task.\n.*not available.*8 GPUs"):
        call(Grid.submit)
    assert not records()
    assert [path.name for path in (tmp_path / "runs/submissions").iterdir()] == ["lock"]


def test_cells_on_gpus_do_not_take_the_precision_of_the_machine_that_submits_them(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A login node without bfloat16 would have them train in float32, and other machines look for other cells."""
    monkeypatch.setitem(CONFIG["trainer"], "precision", None)
    native = {"base": "trainer: {precision: '${native_precision:}'}\n"}
    gpus = GRID + "resources: {rules: [{when: n_future == 4, gpus: 8}]}\n"
    grid_file(tmp_path, gpus, **native)
    before = sorted(tmp_path.rglob("*"))
    for method in (Grid.plan, Grid.run, Grid.submit, Grid.resume):
        with pytest.raises(InputError, match=r"grid\.yaml: n_future=4 seed=0 and 1 more: .*Set it in the grid, as in"):
            call(method)
    assert sorted(tmp_path.rglob("*")) == before
    assert call(Grid.status) == 0, "what is there can be looked at"
    grid_file(tmp_path, gpus.replace("overrides: {", "overrides: {trainer.precision: bf16-mixed, "), **native)
    assert (call(Grid.plan), call(Grid.submit)) == (0, 0)
    assert "precision" not in capsys.readouterr().err
    grid_file(tmp_path, ONE, **native)
    call(Grid.submit)
    assert "warning: trainer.precision is ${native_precision:}, as this machine" in capsys.readouterr().err


_LOOK = """
assert os.environ["SLURM_CONF"] == "here"
assert not [k for k in os.environ if k.startswith(("SBATCH_", "SQUEUE_", "SLURM_")) and k != "SLURM_CONF"], os.environ
"""


def test_cells_that_a_changed_file_has_no_more_are_shown_and_cancelled(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file(tmp_path)
    call(Grid.submit)
    grid_file(tmp_path, GRID.replace("[1, 2, 4]", "[1, 2]"))
    slurm.say("queue", slurm.queue.read_text() + "9|0|somebody-elses|RUNNING|None\n")
    call(Grid.status)
    assert "and in Slurm, though no longer in grid.yaml: 7_4, 7_5" in capsys.readouterr().out
    call(Grid.cancel, ["n_future=1 seed=0"])
    assert slurm.elements() == ["7_1", "7_2", "7_3", "7_4", "7_5", "9_0"]
    call(Grid.cancel, [])
    assert slurm.elements() == ["9_0"]
    assert "no longer in the file: cancelled 7_4, which was pending (Priority)" in capsys.readouterr().out


def test_a_plan_knows_a_job_that_was_not_noted(slurm: FakeSlurm, tmp_path: Path) -> None:
    """And notes nothing itself."""
    grid_file(tmp_path, ONE)
    call(Grid.submit)
    (record,) = records()
    path = tmp_path / "runs/submissions" / f"{record.token}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": None}))
    call(Grid.plan, json="plan.json")
    (row,) = json.loads(Path("plan.json").read_text())["cells"]
    assert (row["state"], row["action"], row["job"]) == ("queued", "wait for it", "7_0")
    assert [one.job for one in records()] == [None]


def test_what_was_submitted_before_a_refusal_is_said(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_file(tmp_path)
    slurm.say("largest", "4")
    whole = (slurm.folder / "sbatch").read_text()
    full = "if lines and '--test-only' not in sys.argv: sys.exit('sbatch: error: QOSMaxSubmitJobPerUserLimit')\ntext ="
    slurm.say("sbatch", whole.replace("text =", full, 1))
    assert "QOSMaxSubmitJobPerUserLimit (submitted before: job 7 with 4 cells)" in failure(Grid.submit)
    slurm.say("sbatch", whole)
    assert call(Grid.submit) == 0
    assert len(slurm.elements()) == 6


def test_without_slurm_it_says_what_is_missing_and_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    grid_file(tmp_path, ONE)
    with pytest.raises(InputError, match=r"sbatch is not on the PATH; `mtp grid run grid.yaml` runs the cells on this"):
        call(Grid.submit)
    with pytest.raises(InputError, match=r"Ctrl-C in `mtp grid run` stops local runs"):
        call(Grid.cancel, [])
    assert not (tmp_path / "runs").exists()
    (cell,) = cells_of(tmp_path, ONE)
    assert call(Grid.resume) == 0, "it was never submitted: it runs here"
    assert (states([cell]), starts(cell)) == (["finished"], 1)
