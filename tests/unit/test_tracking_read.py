"""What reports read back from a store."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtp_lightning.tracking import read


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
