"""The chart view: what is in it, and that it fits where MLflow keeps it."""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import ONE, FakeHouse, grid_file, load_grid
from test_tracking_fakes import fresh_store

from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.report.forms import mlflow_page
from mtp_lightning.grid.report.forms.mlflow_page import charts, record_charts, varying_numbers
from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.tracking.store import connect
from mtp_lightning.tracking.ui import find_experiment, links
from mtp_lightning.tracking.views import TAG_LIMIT, TAG_PREFIX, View, encoded

VIEW = View("grid", "tags.`mtp.kind` = 'cell'", "mtp.group", ("a", "b"), ("b", "a"), ("lr",))


def decoded(value: str) -> dict[str, Any]:
    """As MLflow's page reads it."""
    envelope = json.loads(value)
    assert isinstance(envelope["createdAt"], int)
    packed = envelope["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed))) | {"name": envelope["name"]}


def spec(axes: dict[str, Any], compare: tuple[str, ...] = ("a", "b"), **more: Any) -> GridSpec:
    return GridSpec(path=Path("grid.yaml"), name="grid", configs=(), axes=axes, compare=compare, **more)


def test_a_view_shows_all_runs_in_groups_and_draws_what_is_compared() -> None:
    state = decoded(encoded(VIEW))
    assert state["runsHiddenMode"] == "SHOW_ALL"
    assert state["searchFilter"] == VIEW.filter
    assert (state["orderByKey"], state["orderByAsc"]) == ("attributes.start_time", True), "the oldest run first"
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "mtp.group"}]
    charts = [(c["type"], c.get("metricKey")) for c in state["compareRunCharts"]]
    assert charts == [("SCATTER", None), ("PARALLEL", None)] + [(kind, m) for kind in ("LINE", "BAR") for m in "ab"]
    assert state["selectedColumns"] == ["metrics.`a`", "metrics.`b`"]
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == 6
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert sections == ["overview", "lines", "bars"]
    assert [chart["metricSectionId"] for chart in state["compareRunCharts"]] == [
        "overview", "overview", "lines", "lines", "bars", "bars",
    ]  # fmt: skip
    scatter, parallel = state["compareRunCharts"][:2]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("b", "a")
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["lr"], ["a"])


def test_a_view_without_parameters_draws_two_metrics_and_one_alone_not_in_parallel() -> None:
    two = decoded(encoded(View("grid", "", "g", ("a", "b", "c"), ("b", "a"))))["compareRunCharts"][1]
    assert (two["selectedParams"], two["selectedMetrics"]) == ([], ["a", "b"])
    one = decoded(encoded(View("grid", "", "g", ("a",), ("b", "a"))))["compareRunCharts"]
    assert [chart["type"] for chart in one] == ["SCATTER", "LINE", "BAR"]


def test_of_too_many_metrics_the_first_are_drawn() -> None:
    many = tuple(hashlib.sha256(bytes([i])).hexdigest() for i in range(50))
    value = encoded(View("grid", "", "g", many, many[:2]))
    assert len(value) <= TAG_LIMIT
    drawn = [c["metricKey"] for c in decoded(value)["compareRunCharts"] if c["type"] == "LINE"]
    assert 10 < len(drawn) < 50
    assert drawn == list(many[: len(drawn)])


def test_parameters_are_the_axes_that_vary_in_numbers() -> None:
    axes = {"n": (1, 2.5), "one": (1,), "kind": ("a", "b"), "flag": (True, False), "none": (None, 1)}
    assert varying_numbers(spec(axes)) == ("n",)
    assert varying_numbers(spec(axes, include=({"one": 2, "n": "auto"},))) == ("one",)


@pytest.mark.parametrize(
    ("compare", "scatter"),
    [
        (("a", "b", "c"), ("b", "a")),
        (("a",), ("perf/tokens_per_second_median", "a")),
        (("perf/tokens_per_second_median",), ("val/loss/head_1", "perf/tokens_per_second_median")),
    ],
)
def test_a_metric_is_set_against_another(compare: tuple[str, ...], scatter: tuple[str, str]) -> None:
    assert charts(spec({"n": (1, 2)}, compare)).scatter == scatter


def test_the_view_is_there_before_the_first_cell_and_once(tmp_path: Path) -> None:
    uri, grid = fresh_store(tmp_path), load_grid(grid_file(tmp_path))
    for _ in range(2):
        record_charts(uri, grid)
    experiment = find_experiment(uri, "mtp/head-count")
    (key,) = [tag for tag in experiment.tags if tag.startswith(TAG_PREFIX)]
    assert decoded(experiment.tags[key])["compareRunCharts"][1]["selectedParams"] == ["model.heads.n_future"]
    plain = "http://h:1/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert links("http://h:1/", experiment) == [f"{plain}&viewStateShareKey={key.removeprefix(TAG_PREFIX)}", plain]
    connect(uri).create_experiment("mtp/fit")
    assert links("http://h:1", find_experiment(uri, "mtp/fit")) == [plain.replace("/1/runs", "/2/runs")]


def test_a_grid_does_not_wait_for_a_store_that_cannot_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells run all the same."""
    house = FakeHouse(monkeypatch)
    monkeypatch.setattr(mlflow_page, "record_charts", record_charts)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    grid = Grid(str(grid_file(tmp_path, ONE)), runs=str(tmp_path / "runs"))
    assert grid.run() == 0
    warned = capsys.readouterr().err
    assert "warning: MLflow: StoreAwayError: " in warned
    assert "does not answer within 2 s" in warned
    assert len(house.tracking.recorded) == 1
