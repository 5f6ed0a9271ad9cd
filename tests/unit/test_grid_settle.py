"""MLflow runs whose process was killed say so, once that is certain; never those of another machine."""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_grid_commands import grid_in
from test_grid_fakes import FakeHouse, cells_of, house
from test_grid_state import dead_pid
from test_tracking_fakes import fresh_store

from mtp_lightning.files import FileLock
from mtp_lightning.grid.run import settle as grid_settle
from mtp_lightning.grid.run.state import LOCK, Progress, State, Status, cell_state
from mtp_lightning.machine import is_gone, this_process
from mtp_lightning.tracking import begin, logger
from mtp_lightning.tracking.begin import KILLED_AT, PROCESS, RUN_FILE, settle_by_id
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.read import read_run
from mtp_lightning.tracking.store import default_tracking_uri

__all__ = ["house"]


def process(host: str = "", machine: str = "", namespace: str = "", pid: str = "", token: str = "") -> str:
    """A description of this process with other parts."""
    given = (host, machine, namespace, pid, token)
    return " ".join(other or own for other, own in zip(given, this_process().split(" ")))


@pytest.mark.parametrize(
    ("described", "gone"),
    [
        (process, False),
        (lambda: process(pid=str(dead_pid())), True),
        (lambda: process(token=this_process().split(" ")[4] + "0"), True),  # a later process of the same number
        (lambda: process(token="an-earlier-boot:5"), True),
        (lambda: process(host="elsewhere", pid=str(dead_pid())), False),
        (lambda: process(machine="another-of-that-name", token="its-boot:5"), False),
        (lambda: process(namespace="pid:[1]", pid=str(dead_pid())), False),  # in another container
        (lambda: "", False),
        (lambda: "garbage", False),
        (lambda: "a b c d e", False),
    ],
)
def test_only_what_is_certainly_gone_is_gone(described: Callable[[], str], gone: bool) -> None:
    assert is_gone(described()) is gone


def test_a_process_whose_name_is_cut_inside_a_character_lives() -> None:
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    name.write_bytes(("é" * 8).encode())  # Linux keeps 15 bytes
    try:
        assert not is_gone(this_process())
    finally:
        name.write_bytes(before.strip())


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])  # hidepid is 2, is 1
def test_a_hidden_process_of_another_user_is_not_gone(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, pid = this_process().split(" "), 4_000_000
    boot = here[4].partition(":")[0]
    theirs, read_bytes = process(pid=str(pid), token=f"{boot}:7"), Path.read_bytes

    def hidden(path: Path) -> bytes:
        if str(path) == f"/proc/{pid}/stat":
            raise error
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", hidden)
    for answer, gone in ((PermissionError, False), (ProcessLookupError, True)):

        def kill(_pid: int, _signal: int, answer: type[OSError] = answer) -> None:
            raise answer

        monkeypatch.setattr("mtp_lightning.machine.os.kill", kill)
        assert is_gone(theirs) is gone
        Status("running", 1, here[0], time.time(), pid, f"{boot}:7").write(tmp_path)
        assert (cell_state(tmp_path) is State.RUNNING) is not gone
        assert is_gone(process(pid=str(pid), token="an-earlier-boot:7"))


@pytest.mark.parametrize("pid", ["0", "9" * 30])
def test_what_is_no_number_of_a_process_is_gone(pid: str) -> None:
    assert is_gone(process(pid=pid))


def started(uri: str, folder: Path, **tags: str) -> str:
    """An MLflow run that is left as a SIGKILL leaves it, after step 7."""
    run = MLflowRunLogger(uri, directory=str(folder), system_metrics=False, tags=tags)
    run.log_metrics({"train/loss": 1.0}, step=7)
    run.flush()
    return run.run_id


def test_a_dead_run_is_killed_with_its_last_step_and_others_are_left_alone(tmp_path: Path) -> None:
    uri = fresh_store(tmp_path)
    gone = process(pid=str(dead_pid()))
    away = process(host="elsewhere")
    cases: list[tuple[dict[str, str], Sequence[str], str]] = [
        ({PROCESS: gone}, (), "KILLED"),
        ({}, (), "RUNNING"),
        ({PROCESS: away}, (), "RUNNING"),
        ({PROCESS: away, "mtp.slurm_job": "7_0"}, ["7_0"], "KILLED"),
        ({PROCESS: away, "mtp.slurm_job": "7_1"}, ["7_0"], "RUNNING"),
    ]
    for number, (tags, over, status) in enumerate(cases):
        run_id = started(uri, tmp_path / str(number), **tags)
        if number == 3:
            Progress(step=9, max_steps=20, phase="training").write(tmp_path / "3")
        assert settle_by_id(uri, run_id, tmp_path / str(number), over) is (status == "KILLED")
        found = read_run(uri, run_id)
        last = "9" if number == 3 else "7"
        assert (found.status, found.tags.get(KILLED_AT)) == (status, last if status == "KILLED" else None)
    assert settle_by_id(uri, "0" * 32, tmp_path, ())  # not in the store


def test_the_next_attempt_settles_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = fresh_store(tmp_path)
    run_id = started(uri, tmp_path / "run", **{PROCESS: process(pid=str(dead_pid())), "mtp.slurm_job": "7_0"})
    statuses: list[str] = []
    settle = begin.settle

    def look(client: object, run: object, uri: str, folder: Path) -> bool:
        done = settle(client, run, uri, folder)
        statuses.append(read_run(uri, run_id).status)
        return done

    monkeypatch.setattr(logger, "settle", look)
    again = MLflowRunLogger(uri, directory=str(tmp_path / "run"), system_metrics=False)
    assert again.run_id == run_id
    found = read_run(uri, run_id)
    assert (statuses, found.status, found.tags[KILLED_AT]) == (["KILLED"], "RUNNING", "7")
    assert found.tags[PROCESS] == this_process()
    assert found.tags["mtp.slurm_job"] == "", "that job is not this attempt's"


def test_status_settles_killed_cells_and_asks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, house: FakeHouse, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh_store(tmp_path / "runs")
    uri = default_tracking_uri(tmp_path / "runs")
    killed, closed = cells_of(tmp_path)[:2]
    ids = [started(uri, cell.directory, **{PROCESS: process(pid=str(dead_pid()))}) for cell in (killed, closed)]
    here, now = socket.gethostname(), time.time()
    Status("running", 1, here, now, dead_pid(), "an earlier process").write(killed.directory)
    Status("failed", 1, here, now, ended_at=now, returncode=0).write(closed.directory)
    assert (killed.directory / RUN_FILE).is_file()
    grid = grid_in(tmp_path)
    assert grid.status() == 0
    assert [read_run(uri, run_id).status for run_id in ids] == ["KILLED", "RUNNING"]  # the second closed its own
    status = Status.read(killed.directory)
    assert status is not None
    assert (status.state, status.settled) == (State.RUNNING.value, True)

    def never(*_: object) -> bool:
        raise AssertionError("asked again")

    monkeypatch.setattr(begin, "settle_by_id", never)
    assert grid.status() == 0
    Status("running", 2, here, now, dead_pid(), "an earlier process").write(killed.directory)
    assert grid.status() == 0
    assert "warning: MLflow: AssertionError: asked again" in capsys.readouterr().err


def test_a_cell_that_somebody_has_started_meanwhile_is_left_alone(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)[0]
    cell.directory.mkdir(parents=True)
    holder = FileLock(cell.directory / LOCK)
    assert holder.acquire()
    with grid_settle._left_alone(cell) as files:
        assert files is None
    holder.release()
