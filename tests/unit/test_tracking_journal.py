"""What a server did not take is kept beside the checkpoint, and goes when the server is back."""

import math
from pathlib import Path

import pytest
from test_tracking_away import AwayClient, Clock, Gate, clock, writer
from test_tracking_fakes import fresh_store, runs_of

from mtp_lightning.tracking.journal import JOURNAL, read_journal
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.patience import StoreAwayError
from mtp_lightning.tracking.read import history, read_run

__all__ = ["clock"]


def test_at_a_checkpoint_what_waits_is_kept_beside_it(clock: Clock, tmp_path: Path) -> None:
    client, journal = AwayClient(clock), tmp_path / JOURNAL
    sink = writer(client, journal)
    client.away = True
    sink.log_metrics({"m": math.nan, "n": math.inf}, 7)
    sink.log_file(tmp_path / "a.png", "pictures")
    sink.keep()
    kept = read_journal(journal)
    assert [(m.key, str(m.value), m.timestamp, m.step) for m in kept.points] == [
        ("m", "nan", 1000000, 7),
        ("n", "inf", 1000000, 7),
    ]
    assert kept.files == [(str(tmp_path / "a.png"), "pictures")]

    after = AwayClient(clock)  # of a process that is killed here, the next one sends it
    assert writer(after, journal).resend()
    assert (after.points, after.files) == ([("m", 7), ("n", 7)], kept.files)
    assert not journal.exists()
    assert not writer(after, journal).resend()


def test_the_journal_goes_when_the_server_is_back(clock: Clock, tmp_path: Path) -> None:
    client, journal = AwayClient(clock), tmp_path / JOURNAL
    sink = writer(client, journal)
    client.away = True
    sink.log_metrics({"m": 0.0}, 0)
    sink.keep()
    assert journal.exists()
    client.away = False
    sink.keep()  # too early to ask again
    assert journal.exists()
    clock.now += 11
    sink.keep()
    assert not journal.exists()
    assert client.points == [("m", 0)]


def test_a_run_that_ended_without_its_server_is_whole_after_the_next_attempt(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed, and failed at the end, and started again: every step once, in one run."""
    uri, gate = fresh_store(tmp_path), Gate(monkeypatch)

    def attempt() -> MLflowRunLogger:
        return MLflowRunLogger(uri, directory=str(tmp_path / "run"), system_metrics=False, flush_every_seconds=1e9)

    first = attempt()
    for step in range(6):
        first.log_metrics({"m": float(step)}, step)
        if step == 3:
            gate.closed = True
            first.keep()
    assert len(read_journal(tmp_path / "run" / JOURNAL)) == 4
    del first  # 4 and 5 are lost with the process, whose last checkpoint was at 3

    gate.closed = False
    second = attempt()
    for step in range(4, 9):
        second.log_metrics({"m": float(step)}, step)
    gate.closed = True
    with pytest.raises(StoreAwayError, match="5 values wait in"):
        second.flush()
    second.finalize("failed")  # as Lightning does after an error
    assert "5 values wait in" in capsys.readouterr().err

    gate.closed = False
    third = attempt()
    third.log_metrics({"m": 9.0}, 8)
    assert third.last_values == {"m": 8.0}
    third.finalize("success")
    (run,) = runs_of(uri, "mtp/fit")
    assert history(uri, run.run_id, ["m"]) == {"m": [(step, float(step)) for step in range(9)]}
    assert read_run(uri, run.run_id).status == "FINISHED"
    assert not (tmp_path / "run" / JOURNAL).exists()
