"""A server that is away: training goes on, nothing is lost, nothing stands twice, and the end is clear."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
)
from test_tracking_fakes import CountingClient

import mtp_lightning.tracking.patience as patience
import mtp_lightning.tracking.writer as writer_module
from mtp_lightning.tracking.begin import TOKEN, new_run
from mtp_lightning.tracking.journal import JOURNAL, read_journal
from mtp_lightning.tracking.patience import StoreAwayError, with_patience
from mtp_lightning.tracking.writer import RunWriter

SERVER = "http://host:5000"
REFUSED = "API request to http://host:5000/api failed with exception Connection refused"


def answer(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    return response


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(writer_module, "time", clock)
    return clock


class AwayClient(CountingClient):
    """Answers only while it is there; a call that it does not answer takes `seconds`."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        super().__init__()
        self.clock, self.seconds, self.away, self.asked = clock, seconds, False, 0
        self.files: list[tuple[str, str | None]] = []

    def _answer(self) -> None:
        self.asked += 1
        if self.away:
            self.clock.now += self.seconds
            raise MlflowException(REFUSED)

    def log_batch(self, run_id: str, **content: Any) -> None:
        self._answer()
        super().log_batch(run_id, **content)

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._answer()
        self.files.append((path, folder))


def writer(client: CountingClient, journal: Path | None = None, seconds: float = 5.0) -> RunWriter:
    return RunWriter(client, "run", SERVER, seconds, journal=journal)


def test_a_server_is_waited_for_and_then_named(clock: Clock) -> None:
    def call() -> None:
        raise MlflowException(REFUSED)

    with pytest.raises(
        StoreAwayError, match=r"does not answer within 60 s \(.*Connection refused\): 'http://host:5000'"
    ):
        with_patience(call, SERVER)
    assert clock.waits[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert 50 < clock.now - 1000 <= 60


def test_what_a_server_refuses_for_good_is_not_asked_again(clock: Clock) -> None:
    answers = [MlflowException("busy", TEMPORARILY_UNAVAILABLE), MlflowException("no", INVALID_PARAMETER_VALUE)]

    def call() -> None:
        raise answers.pop(0)

    with pytest.raises(MlflowException, match=r"^no$"):
        with_patience(call, SERVER)
    with pytest.raises(MlflowException, match=r"^gone$"):
        with_patience(lambda: (_ for _ in ()).throw(MlflowException("gone")), "sqlite:////x/mlflow.db")
    assert clock.waits == [0.2]


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("too many requests", REQUEST_LIMIT_EXCEEDED),
        requests.HTTPError("429 too many requests", response=answer(429)),
        requests.HTTPError("503 unavailable", response=answer(503)),
    ],
)
def test_a_server_that_says_later_is_asked_again(clock: Clock, error: Exception) -> None:
    answers: list[Exception | None] = [error, None]

    def call() -> str:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return "done"

    assert with_patience(call, SERVER) == "done"
    assert clock.waits == [0.2]


def test_training_goes_on_without_the_server(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    client = AwayClient(clock)
    sink = writer(client)
    client.away = True
    for step in range(100):
        sink.log_metrics({"m": 0.0}, step)
        clock.now += 1
    assert client.points == []
    assert client.asked < 50  # a few times every ten seconds
    assert sum(clock.waits) < 10
    client.away = False
    for step in range(100, 120):
        sink.log_metrics({"m": 0.0}, step)
        clock.now += 1
    sink.flush()
    assert client.points == [("m", step) for step in range(120)]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split(" (")[0] for line in said] == [" MLflow does not answer", " MLflow answers again"]


def test_a_server_that_never_answers_costs_a_tenth_of_the_time(clock: Clock) -> None:
    client = AwayClient(clock, seconds=30.0)
    client.away = True
    sink = writer(client)
    for step in range(1000):
        sink.log_metrics({"m": 0.0}, step)
        clock.now += 1
    assert client.asked * client.seconds <= 0.1 * (clock.now - 1000) + 30


@pytest.mark.parametrize(
    "error", [requests.HTTPError("413 too large", response=answer(413)), FileNotFoundError("gone")]
)
def test_a_picture_that_is_refused_stops_neither_training_nor_the_rest(
    clock: Clock, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    client = AwayClient(clock)
    client.log_artifact = lambda *_: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
    run = writer(client)
    run.log_metrics({"m": 1.0}, 1)
    run.log_file(Path("heat.png"), None)
    run.log_metrics({"m": 2.0}, 2)
    run.flush()
    assert client.points == [("m", 1), ("m", 2)]
    assert capsys.readouterr().err.count("heat.png is not recorded") == 1


def test_a_file_store_that_is_away_is_asked_again(clock: Clock) -> None:
    answers: list[Exception | str] = [requests.ConnectionError("refused"), requests.Timeout("slow"), "done"]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_patience(call, SERVER) == "done"


def test_a_database_that_others_hold_loses_nothing(clock: Clock, tmp_path: Path) -> None:
    client = CountingClient([MlflowException("database is locked")] * 50)
    run = RunWriter(client, "run", "sqlite:////x/mlflow.db", 1e9, journal=tmp_path / JOURNAL)
    run.log_metrics({"m": 1.0}, 1)
    run.keep()
    assert len(read_journal(tmp_path / JOURNAL)) == 1
    with pytest.raises(StoreAwayError, match="1 values wait in"):
        run.flush()


def test_memory_is_not_filled_without_end(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "TOO_MANY", 10)
    client = AwayClient(clock)
    client.away = True
    sink = writer(client, tmp_path / JOURNAL)
    for step in range(9):
        sink.log_metrics({"m": 0.0}, step)
    with pytest.raises(StoreAwayError, match=r"10 values wait in .*unsent\.jsonl"):
        sink.log_metrics({"m": 0.0}, 9)
    assert len(read_journal(tmp_path / JOURNAL)) == 10


def test_a_run_whose_making_was_not_answered_is_made_once(clock: Clock) -> None:
    made: list[dict[str, str]] = []

    def create_run(experiment: str, tags: dict[str, str], run_name: str | None) -> Any:
        made.append(tags)
        raise MlflowException(REFUSED)

    def search_runs(experiments: list[str], words: str, max_results: int) -> list[Any]:
        found = [i for i, tags in enumerate(made) if words == f"tags.`{TOKEN}` = '{tags[TOKEN]}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=str(i))) for i in found]

    client = SimpleNamespace(create_run=create_run, search_runs=search_runs)
    assert new_run(client, "1", "name", {"a": "b"}, SERVER) == "0"
    assert len(made) == 1


class Gate:
    """Between every `MlflowClient` and its store, which is here a real one: closed, nothing is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = False
        for name in ("log_batch", "set_terminated", "log_artifact"):
            monkeypatch.setattr(MlflowClient, name, self._guarded(getattr(MlflowClient, name)))
        monkeypatch.setattr(patience, "_is_away", lambda error, uri: REFUSED in str(error))

    def _guarded(self, method: Any) -> Any:
        def call(*args: Any, **content: Any) -> Any:
            if self.closed:
                raise MlflowException(REFUSED)
            return method(*args, **content)

        return call
