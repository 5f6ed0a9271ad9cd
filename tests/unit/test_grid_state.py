"""A cell's folder: atomic files, the lock, and the state that follows from what is there."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mtp_lightning.files import DamagedError, FileLock, read_json, write_json, write_text
from mtp_lightning.grid.run.process import close_attempt
from mtp_lightning.grid.run.state import (
    HEARTBEAT_SECONDS,
    Failure,
    Progress,
    Result,
    State,
    Status,
    cell_state,
    failure_reason,
)
from mtp_lightning.machine import process_token

HERE = socket.gethostname()


def status(state: str = "running", **more: Any) -> Status:
    me = {"pid": os.getpid(), "process": process_token(os.getpid()), "host": HERE}
    return Status(**{"state": state, "attempt": 1, "started_at": time.time(), **me, **more})


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_without_a_folder_or_files_a_cell_is_missing(tmp_path: Path) -> None:
    assert cell_state(tmp_path / "none") is State.MISSING
    assert cell_state(tmp_path) is State.MISSING


def test_finished_by_its_result_whatever_the_status_says(tmp_path: Path) -> None:
    status("failed").write(tmp_path)
    Result(step=5, metrics={"a": 1.0}).write(tmp_path)
    assert cell_state(tmp_path) is State.FINISHED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"state": "finished", "step": 5}',
        '{"state": "stopped", "step": 5, "metrics": {}}',
        '{"state": "finished", "step": "5", "metrics": {}}',
        '{"state": "finished", "step": 5, "metrics": {"a": "1"}}',
        '{"state": "finished", "step": true, "metrics": {}}',
    ],
)
def test_a_torn_or_wrong_result_finishes_nothing_and_is_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(DamagedError, match=r"result.json: "):
        Result.read(tmp_path)
    status("finished").write(tmp_path)
    assert cell_state(tmp_path) is State.DAMAGED


def test_records_survive_writing_and_keys_of_later_versions(tmp_path: Path) -> None:
    result = Result(step=5, metrics={"a": 1.0, "b": float("inf")}, tokens=10, wall_seconds=2.0)
    result.write(tmp_path)
    assert Result.read(tmp_path) == result
    (tmp_path / "result.json").write_text('{"state": "finished", "step": 5, "metrics": {"a": 1}, "colour": "red"}')
    assert Result.read(tmp_path) == Result(step=5, metrics={"a": 1.0})


def test_running_by_a_living_process_and_interrupted_by_a_dead_one(tmp_path: Path) -> None:
    status().write(tmp_path)
    assert cell_state(tmp_path) is State.RUNNING
    status(pid=dead_pid()).write(tmp_path)
    assert cell_state(tmp_path) is State.INTERRUPTED


def test_a_process_number_that_was_given_to_another_process_is_dead(tmp_path: Path) -> None:
    status(process="an-earlier-boot:123").write(tmp_path)
    assert cell_state(tmp_path) is State.INTERRUPTED


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    deadline = time.monotonic() + 10
    while process_token(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_token(process.pid) is None
    assert process.poll() == 0  # only now is it reaped


def test_on_another_host_the_heartbeat_counts(tmp_path: Path) -> None:
    long_ago = time.time() - HEARTBEAT_SECONDS - 1
    status(host="elsewhere", started_at=long_ago).write(tmp_path)
    assert cell_state(tmp_path) is State.INTERRUPTED
    Progress(step=1, max_steps=5, phase="train", host="elsewhere").write(tmp_path)
    assert cell_state(tmp_path) is State.RUNNING
    Progress(step=1, max_steps=5, phase="train", host="elsewhere", updated_at=long_ago).write(tmp_path)
    assert cell_state(tmp_path) is State.INTERRUPTED


def test_a_run_started_by_hand_is_seen_by_its_heartbeat(tmp_path: Path) -> None:
    status("failed").write(tmp_path)
    Progress(step=1, max_steps=5, phase="train").write(tmp_path)
    assert cell_state(tmp_path) is State.RUNNING
    Progress(step=1, max_steps=5, phase="train", pid=dead_pid()).write(tmp_path)
    assert cell_state(tmp_path) is State.FAILED
    (tmp_path / "status.json").unlink()
    assert cell_state(tmp_path) is State.INTERRUPTED


def test_a_failure_without_its_launcher_is_still_a_failure(tmp_path: Path) -> None:
    status(pid=dead_pid()).write(tmp_path)
    Failure("OSError", "no space left").write(tmp_path)
    assert cell_state(tmp_path) is State.FAILED
    assert failure_reason(tmp_path) == "OSError: no space left"
    status("failed", pid=dead_pid(), reason="task 1 ended with exit status -9").write(tmp_path)
    assert failure_reason(tmp_path) == "task 1 ended with exit status -9", "the launcher knows more than the run"


def test_a_run_that_saved_and_stopped_says_why_though_its_launcher_is_gone(tmp_path: Path) -> None:
    status(pid=dead_pid()).write(tmp_path)
    Progress(step=3, max_steps=5, phase="stopped", pid=dead_pid(), stopped="SIGTERM: saved step 3").write(tmp_path)
    assert cell_state(tmp_path) is State.INTERRUPTED
    assert failure_reason(tmp_path) == "stopped by SIGTERM: saved step 3"
    closed = close_attempt(tmp_path)
    assert closed is not None
    assert closed.reason == "stopped by SIGTERM: saved step 3"
    status(pid=dead_pid(), started_at=time.time() + 5).write(tmp_path)  # a later attempt, which was killed
    assert failure_reason(tmp_path) is None


def test_writing_replaces_in_one_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")  # fails after the temporary file was opened
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    write_json(tmp_path / "a", {"x": 1})
    assert json.loads((tmp_path / "a").read_text()) == read_json(tmp_path / "a") == {"x": 1}
    assert read_json(tmp_path / "b") is None
    with pytest.raises(DamagedError, match="Not a directory"):
        read_json(tmp_path / "a" / "b")


def test_the_lock_is_exclusive_and_free_again(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_a_child_that_was_handed_the_lock_holds_it_after_the_parent_let_go(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(first.descriptor,)
    )
    first.release()
    assert not second.acquire()
    child.communicate(b"\n")
    assert second.acquire()
    second.release()
