"""What reports read back from a store."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtp_lightning.tracking import read
from mtp_lightning.tracking.store import NotRecordedError


class Client:
    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        steps = [4, 0, 2] if key == "loss" else []  # a continued run's points may come in any order
        return [SimpleNamespace(step=step, value=float(step)) for step in steps]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(read, "connect_existing", lambda uri: client)
    return client


def test_a_history_is_in_the_order_of_steps(client: Client) -> None:
    assert read.history("sqlite:////x/mlflow.db", "0", ["loss", "never"]) == {"loss": [(0, 0.0), (2, 2.0), (4, 4.0)]}


def test_a_run_that_a_server_does_not_hold_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST

    code = RESOURCE_DOES_NOT_EXIST

    def refuse(*_: Any) -> Any:
        raise MlflowException("no", error_code=code)

    monkeypatch.setattr(read, "connect_existing", lambda uri: SimpleNamespace(get_metric_history=refuse))
    with pytest.raises(NotRecordedError, match="run 'r' is not in 'http://h'"):
        read.history("http://h", "r", ["loss"])
    code = INTERNAL_ERROR
    monkeypatch.setattr(read, "with_patience", lambda call, uri: call())
    with pytest.raises(MlflowException, match="no"):
        read.history("http://h", "r", ["loss"])
