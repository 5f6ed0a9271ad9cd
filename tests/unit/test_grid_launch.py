"""The local launcher, on real processes: failures, full disks, locks, what is shown."""

import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_grid_fakes import CONFIG, DONE, ONE, Silent, cells_of, command, finish, launch, starts, states, until

from mtp_lightning.files import FileLock, read_json
from mtp_lightning.grid.run import launch as launching
from mtp_lightning.grid.run.cost import Expected, Pace
from mtp_lightning.grid.run.display import Line, PlainDisplay
from mtp_lightning.grid.run.gpus import default_workers, gpus_of, least_used, visible_gpus
from mtp_lightning.grid.run.launch import LocalLauncher
from mtp_lightning.grid.run.logs import log_tail
from mtp_lightning.grid.run.process import Outcome, child_environment
from mtp_lightning.grid.run.state import LOCK, Progress, State, Status, cell_state
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.resources import Resources


def test_every_cell_runs_once_and_leaves_its_files(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    launched, display = launch(cells)
    assert {outcome.state for outcome in launched.outcomes.values()} == {State.FINISHED}
    assert launched.stopped_by is None
    assert states(cells) == ["finished"] * 6
    assert [starts(cell) for cell in cells] == [1] * 6
    assert [line.state for line in display.lines] == ["finished"] * 6
    status = Status.read(cells[0].directory)
    assert status is not None
    assert (status.state, status.attempt, status.returncode) == ("finished", 1, 0)
    assert "tracking.logger.MLflowRunLogger" in (cells[0].directory / "config.yaml").read_text()
    assert (cells[0].directory / "log.txt").read_text().startswith("===== attempt 1, 20")


def test_no_more_than_the_workers_run_at_once(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    peak = 0

    class Counting(Silent):
        def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
            nonlocal peak
            peak = max(peak, sum(line.state == "running" for line in lines))

    launch(cells, "time.sleep(0.15); finish()", display=Counting())
    assert peak == 2


REASONS = {
    "failure file": ('write("failure.json", error="OSError", message="disk full"); sys.exit(1)', "OSError: disk full"),
    "log": ('print("first\\nlast words"); sys.exit(3)', "exit status 3: last words"),
    "signal": ("os.kill(os.getpid(), 9)", "ended by SIGKILL (out of memory?)"),
    "no result": ("pass", "ended without a result"),
}


@pytest.mark.parametrize(("script", "reason"), REASONS.values(), ids=REASONS)
def test_a_failing_cell_fails_alone_and_says_why(tmp_path: Path, script: str, reason: str) -> None:
    cells = cells_of(tmp_path)
    launched, display = launch(cells, f"if n == 2 and seed == 0:\n    {script}\nelse:\n    finish()")
    assert states(cells) == ["finished", "finished", "failed", "finished", "finished", "finished"]
    assert launched.outcomes[cells[2].signature].reason == reason
    assert [note.splitlines()[0] for note in display.notes] == [f"n_future=2 seed=0: failed: {reason}"]
    if "last words" in reason:
        assert display.notes[0].endswith("log.txt:\n    first\n    last words")
    status = Status.read(cells[2].directory)
    assert status is not None
    assert status.reason == reason


def test_a_second_attempt_forgets_the_first_ones_failure_and_keeps_its_log(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, ONE)
    launch([cell], 'write("failure.json", error="E", message="one"); print("old"); sys.exit(1)')
    launched, _ = launch([cell], 'print("new"); sys.exit(1)')
    assert launched.outcomes[cell.signature].reason == "exit status 1: new"
    log = (cell.directory / "log.txt").read_text()
    assert [line[:17] for line in log.splitlines()] == ["===== attempt 1, ", "old", "===== attempt 2, ", "new"]
    launch([cell])
    assert states([cell]) == ["finished"]


def test_a_cell_that_cannot_be_started_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(tmp_path)[:3]
    cells[0].directory.parent.mkdir()
    cells[0].directory.write_text("a file where the folder should be")

    def absent(cell: Cell) -> list[str]:
        return ["/no/such/program"] if cell is cells[1] else command(DONE, cell.directory)

    monkeypatch.setattr(launching, "fit_command", absent)
    launched, _ = launch(cells)
    assert [launched.outcomes[cell.signature].state.value for cell in cells] == ["failed", "failed", "finished"]
    assert "cannot be started" in str(launched.outcomes[cells[0].signature].reason)
    assert "/no/such/program" in str(launched.outcomes[cells[1].signature].reason)
    assert cell_state(cells[1].directory) is State.FAILED
    assert FileLock(cells[1].directory / LOCK).acquire()


def test_what_outlives_a_run_is_ended_with_it(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, ONE)
    script = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']); (cell / 'helper').write_text(str(p.pid)); finish()"
    )
    launch([cell], script)
    helper = int((cell.directory / "helper").read_text())
    stat = Path(f"/proc/{helper}/stat")
    until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_finished_cell_is_not_run_although_it_was_asked_for(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)[:2]
    finish(cells[0], loss_1=1.0)
    launch(cells)
    assert [starts(cell) for cell in cells] == [0, 1]


def test_a_cell_locked_by_another_launcher_is_waited_for_and_not_run(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)[:2]
    cells[0].directory.mkdir(parents=True)
    other = FileLock(cells[0].directory / LOCK)
    assert other.acquire()
    seen = []

    class Watching(Silent):
        def update(self, lines: Sequence[Line], seconds_left: float | None) -> None:
            seen.append(lines[0].state)
            if lines[1].state == "finished" and seen.count("elsewhere") > 3:
                finish(cells[0], loss_1=1.0)
                other.release()

    launched, _ = launch(cells, display=Watching())
    assert launched.outcomes[cells[0].signature].state is State.FINISHED
    assert starts(cells[0]) == 0


def test_a_disk_that_fills_up_while_a_cell_runs_costs_that_cell(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    script = "if n == 2 and seed == 0:\n    open(cell / 'big', 'w').write('x' * 9999)\nelse:\n    finish()"
    launched, _ = launch(cells, full + script)
    assert states(cells) == ["finished", "finished", "failed", "finished", "finished", "finished"]
    assert "File too large" in str(launched.outcomes[cells[2].signature].reason)


def test_a_status_that_cannot_be_written_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Status, directory: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Status, "write", full)
    cells = cells_of(tmp_path)
    launched, display = launch(cells)
    assert {outcome.state for outcome in launched.outcomes.values()} == {State.FINISHED}
    assert display.notes[0] == "n_future=1 seed=0: cannot write status.json: No space left on device"


def test_the_environment_divides_the_cores_and_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtp_lightning.grid.run.process.cores", lambda: 8)
    assert child_environment(3, {})["OMP_NUM_THREADS"] == "2"
    assert child_environment(99, {})["OMP_NUM_THREADS"] == "1"
    assert child_environment(2, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
    assert child_environment(2, {})["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in child_environment(1, {})
    assert child_environment(1, {})["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_run_is_no_task_of_the_slurm_job_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would make its world of the job's tasks: 1 where the run has 2 devices, an error where they are 4."""
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1"}
    for key, value in {**kept, "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(key, value)
    (cell,) = cells_of(tmp_path, ONE)
    launch([cell], "write('seen.json', **{k: v for k, v in os.environ.items() if k.startswith('SLURM')}); finish()")
    assert read_json(cell.directory / "seen.json") == kept


def test_runs_are_on_gpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG["trainer"], "accelerator", "auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5,GPU-c,3")
    cells = cells_of(tmp_path)
    seen = "write('gpus.json', gpus=os.environ['CUDA_VISIBLE_DEVICES']); "
    together = "while len(list(cell.parent.glob('*/gpus.json'))) < 4: time.sleep(0.02)\n"

    def shown(cell: Cell) -> str:
        return str((read_json(cell.directory / "gpus.json") or {})["gpus"])

    launch(cells[:4], seen + "\n" + together + "finish()", workers=4)
    assert [shown(cell) for cell in cells[:4]] == ["GPU-a", "5", "GPU-c", "3"]
    wide = replace(cells[4], resources=Resources(gpus=2))
    launch([wide], seen + "finish()")
    assert shown(wide) == "GPU-a,5"


@pytest.mark.parametrize(
    ("trainer", "resources", "gpus", "workers"),
    [
        ({"devices": 1}, {}, 1, 8),
        ({"devices": 1}, {"gpus": 3}, 3, 2),
        ({"devices": "auto"}, {}, 8, 1),
        ({"devices": -1}, {"gpus": 1}, 1, 8),
        ({"devices": [5]}, {}, 8, 1),
        ({"devices": 99}, {}, 8, 1),
        ({"accelerator": "cpu", "devices": 2}, {}, 0, 3),
    ],
)
def test_as_many_runs_as_the_gpus_are_enough_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trainer: dict[str, Any],
    resources: dict[str, int],
    gpus: int,
    workers: int,
) -> None:
    monkeypatch.setattr("mtp_lightning.grid.run.gpus.cores", lambda: 3)
    (cell,) = cells_of(tmp_path, ONE)
    config = {**cell.config, "trainer": {**cell.config["trainer"], "accelerator": "auto", **trainer}}
    cell = replace(cell, config=config, resources=Resources(**resources))
    assert gpus_of(cell, 8) == gpus
    assert (default_workers([cell] * 9, 8), default_workers([cell] * 9, 0)) == (workers, 3)


def test_gpus_are_counted_as_cuda_counts_them(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia5", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    for text, gpus in (("2, GPU-a", ["2", "GPU-a"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("NoDevFiles", [])):
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": text}, tmp_path) == gpus
    assert least_used(["a", "b", "c"], ["a", "a", "c"], 2) == ["b", "c"]


def test_time_left_counts_from_where_the_attempt_began() -> None:
    now = time.time()
    pace = Pace(now - 10)

    def at(step: int, when: float) -> float | None:
        return pace.seconds_left(Progress(step=step, max_steps=100, phase="train", updated_at=when))

    assert pace.seconds_left(None) is None
    assert at(70, now - 20) is None  # left behind by the attempt before
    assert at(50, now - 5) is None
    assert at(60, now) == pytest.approx(20.0, abs=0.5)  # 10 steps in 5 s, 40 to go
    pace.pause_at = 70
    assert at(60, now) == pytest.approx(5.0, abs=0.5), "to the gate"


def test_time_left_of_a_grid_is_shared_by_the_workers_and_is_the_longest_cells_at_least(tmp_path: Path) -> None:
    known: dict[str, float] = {}
    launcher = LocalLauncher(Silent(), workers=2, expected=Expected(lambda: dict(known)))
    launcher.cells = cells = cells_of(tmp_path)[:5]
    a, b, c, d, e = (cell.signature for cell in cells)
    launcher.active = dict.fromkeys((a, b))  # type: ignore[arg-type]
    launcher.waiting, launcher.outcomes, launcher.retry_at = {}, {}, {}
    waits = [Line(name, "waiting") for name in "cde"]
    lines = [Line("a", "running", seconds_left=30.0), Line("b", "running", seconds_left=90.0), *waits]
    assert launcher._seconds_left(lines) == 90.0
    launcher.waiting = {cell.signature: cell for cell in cells[2:]}
    assert launcher._seconds_left(lines) is None, "nothing is known of those that wait"
    known.update({c: 10.0, d: 20.0, e: 300.0})
    assert launcher._seconds_left(lines) is None, "nor asked for, while no cell has ended"
    launcher.outcomes = {"x": Outcome(State.FINISHED, seconds=40.0)}
    assert launcher._seconds_left(lines) == 300.0, "the longest"
    known[e] = 60.0
    launcher.outcomes["y"] = Outcome(State.FINISHED, seconds=20.0)
    assert launcher._seconds_left(lines) == (30 + 90 + 10 + 20 + 60) / 2
    del known[c]
    launcher.outcomes["z"] = Outcome(State.FAILED, seconds=1.0)
    assert launcher._seconds_left(lines) == (30 + 90 + 30 + 20 + 60) / 2, "as long as those that ended"
    launcher.retry_at = {e: 0.0}
    assert launcher._seconds_left(lines) == 90.0, "another launcher runs the last, and a third of what waits"
    known.update({c: 150.0, d: 150.0, b: 100.0})
    launcher.outcomes["w"] = Outcome(State.FAILED, seconds=1.0)
    assert launcher._seconds_left(lines) == (30 + 90 + 300 + 60) / 3
    lines[1] = Line("b", "running")
    assert launcher._seconds_left(lines) == (30 + 100 + 300 + 60) / 3, "just begun, and without a pace"
    launcher.active = {}
    launcher.waiting = {e: cells[4]}
    assert launcher._seconds_left([Line(name, "finished") for name in "abcd"] + [lines[4]]) == 60.0, "waited for"
    launcher.waiting = {}
    assert launcher._seconds_left([]) == 0.0


def test_the_tail_of_a_log_is_of_the_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert log_tail(log) == ""
    log.write_bytes(b"===== attempt 1, a\nold\n===== attempt 2, b\n" + b"x\n" * 9 + b" 50%\r100%\n\n\xff\n")
    assert log_tail(log) == "x\nx\n50%\n100%\n\ufffd"
    log.write_bytes(b"===== attempt 3, c\n")
    assert log_tail(log) == ""


def test_plain_lines_show_changes_at_once_and_the_rest_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("mtp_lightning.grid.run.display.time.monotonic", lambda: clock[0])
    out = StringIO()
    display = PlainDisplay(Console(file=out, width=200))
    running = Line("a", "running", step=1, max_steps=4, loss=2.5, tokens_per_second=12345.0)
    for second in range(25):
        clock[0] = float(second)
        display.update([running, Line("b", "waiting")], None if second < 15 else 65.0)
    display.update([Line("a", "finished"), Line("b", "waiting")], None)
    assert out.getvalue().splitlines() == [
        "[    0 s] a: running",
        "[   10 s] 2 cells: 1 running, 1 waiting: a 1/4 loss 2.500 12.3 k tokens/s",
        "[   20 s] 2 cells: 1 running, 1 waiting; about 1 min 05 s left: a 1/4 loss 2.500 12.3 k tokens/s",
        "[   24 s] a: finished",
    ]
