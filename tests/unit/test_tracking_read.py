"""What reports read back from a store that answers in pages."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtp_lightning.tracking import read


class Page(list[Any]):
    """As MLflow's: a list with a token for the next one."""

    token: str | None = None


def run(number: int, **tags: str) -> Any:
    info = SimpleNamespace(run_id=str(number), run_name=None, status="FINISHED")
    return SimpleNamespace(info=info, data=SimpleNamespace(metrics={}, params={}, tags=tags))


class Client:
    """Five runs, two to a page, every second one with the tag."""

    def __init__(self) -> None:
        self.orders: list[list[str]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name == "mtp/grid" else None

    def search_runs(self, experiments: list[str], order_by: list[str], page_token: str | None) -> Page:
        assert experiments == ["7"]
        self.orders.append(order_by)
        first = int(page_token or 0)
        page = Page(run(number, group="even" if number % 2 == 0 else "odd") for number in range(5)[first : first + 2])
        page.token = str(first + 2) if first < 4 else None
        return page

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        steps = [4, 0, 2] if key == "loss" else []  # a continued run's points may come in any order
        return [SimpleNamespace(step=step, value=float(step)) for step in steps]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(read, "connect_existing", lambda uri: client)
    return client


def test_runs_of_all_pages_are_found_oldest_first(client: Client) -> None:
    found = read.find_runs("sqlite:////x/mlflow.db", "mtp/grid", {"group": "even"})
    assert [record.run_id for record in found] == ["0", "2", "4"]
    assert client.orders == [["attributes.start_time ASC"]] * 3
    assert read.find_runs("sqlite:////x/mlflow.db", "mtp/other", {}) == []


def test_a_history_is_in_the_order_of_steps(client: Client) -> None:
    assert read.history("sqlite:////x/mlflow.db", "0", ["loss", "never"]) == {"loss": [(0, 0.0), (2, 2.0), (4, 4.0)]}
