"""Submissions on a Slurm that does not answer, answers late, or knows an id twice."""

import re
from pathlib import Path

import pytest
from test_grid_fakes import ONE, grid_file, house
from test_grid_slurm_fakes import FakeSlurm, slurm
from test_grid_submit import _LOOK, call, failure, no_snapshot, records, rows

from mtp_lightning.cli import main
from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.slurm import client as programs

__all__ = ["house", "no_snapshot", "slurm"]

pytestmark = pytest.mark.usefixtures("house")


@pytest.mark.parametrize("partition", [None, "main", "other", "'third,other'"])
@pytest.mark.parametrize(
    ("nodes", "refused"),
    [
        ("main*|up|idle\nother|up|mixed~", True),
        ("main*|up|idle\nmain*|up|drained\nother|up|idle\nother|up|draining", False),
        ("main*|down|idle\nother|up|allocated*", False),
    ],
)
def test_what_slurm_cannot_tell_while_nodes_are_out_is_let_through(
    slurm: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    partition: str | None,
    nodes: str,
    refused: bool,
) -> None:
    grid_file(tmp_path, ONE + (f"resources: {{partition: {partition}}}\n" if partition else ""))
    slurm.say("doubts")
    slurm.say("nodes", nodes)
    if refused:
        with pytest.raises(InputError, match=r"configuration is not available .cells with 1 node"):
            call(Grid.submit)
        assert not slurm.elements()
        return
    call(Grid.submit)
    assert len(slurm.elements()) == 1
    assert re.search(r"warning: 1 of [12] nodes of (the default )?partition.* out of service", capsys.readouterr().err)


def test_without_an_answer_from_slurm_nothing_is_guessed(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    call(Grid.submit)
    slurm.say("broken")
    assert main(["grid", "submit", "grid.yaml"]) == 1
    assert capsys.readouterr().err == "mtp: error: squeue: Unable to contact slurm controller\n"
    assert rows()[0]["state"] == "missing"
    assert "from the cells' files alone: squeue: Unable" in capsys.readouterr().err
    (slurm.folder / "broken").unlink()
    slurm.say("silent")
    monkeypatch.setattr(programs, "CLIENT_SECONDS", 0.3)
    assert "squeue has not answered in 0.3 s" in failure(Grid.cancel, [])
    assert len(records()) == 1
    assert not records()[0].over


def test_an_sbatch_that_does_not_answer_is_looked_for_later(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    slurm.say("sbatch", (slurm.folder / "sbatch").read_text().replace("print(job)", "import time; time.sleep(60)"))
    monkeypatch.setattr(programs, "CLIENT_SECONDS", 1.5)
    assert "sbatch has not answered in 1.5 s; `mtp grid status` finds out" in failure(Grid.submit)
    assert [one.job for one in records()] == [None]
    assert rows()[0]["state"] == "queued"
    assert [one.job for one in records()] == ["7"]


@pytest.mark.parametrize("taken", [True, False])
def test_an_sbatch_that_lost_the_controller_is_looked_for_later(
    slurm: FakeSlurm, tmp_path: Path, taken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It exits with 1 whether the job was taken or not."""
    grid_file(tmp_path, ONE)
    whole = (slurm.folder / "sbatch").read_text()
    says = "sys.exit('sbatch: error: Batch job submission failed: Socket timed out on send/recv operation')"
    early = "\nif '--test-only' not in sys.argv: " + says
    lost = whole.replace("print(job)", says) if taken else whole.replace("\ntext =", early + "\ntext =", 1)
    slurm.say("sbatch", lost)
    assert "Socket timed out" in failure(Grid.submit)
    slurm.say("sbatch", whole)
    assert call(Grid.submit) == 0
    assert len(slurm.elements()) == 1


def test_what_the_environment_says_to_slurm_changes_nothing(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid_file(tmp_path, ONE)
    for name in ("SBATCH_JOB_NAME", "SQUEUE_STATES", "SLURM_MEM_PER_CPU"):
        monkeypatch.setenv(name, "9")
    monkeypatch.setenv("SBATCH_ACCOUNT", "physics")
    monkeypatch.setenv("SLURM_CONF", "here")
    for name in ("sbatch", "squeue"):
        text = (slurm.folder / name).read_text()
        slurm.say(name, text.replace("import os, re, sys\n", "import os, re, sys\n" + _LOOK, 1))
    assert call(Grid.submit) == 0
    assert rows()[0]["state"] == "queued"
    assert "--account=physics" in next((tmp_path / "runs/submissions").glob("*/job.sh")).read_text()


def test_an_id_that_is_used_again_is_another_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    grid_file(tmp_path, ONE)
    call(Grid.submit)
    slurm.queue.write_text("7|0|somebody-elses|RUNNING|None\n")
    assert rows()[0]["state"] == "missing"
    assert call(Grid.cancel, []) == 0
    assert slurm.elements() == ["7_0"]
    call(Grid.submit)
    assert slurm.elements() == ["7_0", "8_0"]


def test_an_id_that_a_later_array_of_ours_has_again_is_that_ones(slurm: FakeSlurm, tmp_path: Path) -> None:
    grid_file(tmp_path, ONE)
    call(Grid.submit)
    slurm.empty()  # a controller that lost its state counts from the beginning
    grid_file(tmp_path, ONE.replace("n_future: [1]", "n_future: [2]").replace("n_future: 1}", "n_future: 2}"))
    call(Grid.submit)
    assert [one.job for one in records()] == ["7", "7"]
    grid_file(tmp_path, ONE.replace("n_future: [1]", "n_future: [1, 2]"))
    assert [row["state"] for row in rows()] == ["missing", "queued"]
