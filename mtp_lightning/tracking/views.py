"""A saved chart view in an experiment of MLflow: one link opens its runs filtered, grouped and drawn.

MLflow's pages keep a view that somebody shares as a tag of the experiment. The format is not documented: it was read
out of the pages of `TESTED_MLFLOW`, and tests/e2e/test_mlflow_ui.py opens a view in a browser. Where other pages do
not understand it, they say so and show the experiment's plain charts, to which `mtp ui` prints a link as well.
"""

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TESTED_MLFLOW = "3.17.2"
TAG_PREFIX = "mlflow.sharedViewState."
TAG_LIMIT = 5000
"""What MLflow takes in an experiment's tag."""
RUNS_SHOWN = 100
"""Of one chart; MLflow's own limit for bars, lines and points together is 10."""
_PLAIN_LINE = {
    "xAxisKey": "step",
    "scaleType": "linear",
    "lineSmoothness": 0,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
"""Left to itself, MLflow smooths the band between the lowest and the highest run of a group, and the line not."""


@dataclass(frozen=True)
class View:
    """What is drawn of an experiment's runs, all of them shown."""

    name: str
    """As MLflow lists it."""
    filter: str
    """Of runs, in MLflow's search language."""
    group_by: str
    """Tag whose runs are drawn as one, by their average."""
    metrics: Sequence[str]
    """Each as a line over the steps, and its last values as bars."""
    scatter: tuple[str, str]
    """Two metrics, x and y."""
    parameters: Sequence[str] = ()
    """Axes of the parallel coordinates, numbers only: MLflow draws no text of grouped runs there."""


def view_key(experiment: str) -> str:
    """Of the experiment's one view: `mtp/head-count` -> `mtp-head-count`."""
    return experiment.replace("/", "-")


def write_view(client: Any, experiment_id: str, key: str, view: View) -> None:
    """Put the view under `key` in the place of an earlier one, changes made to that in MLflow included.

    Args:
        client: an `mlflow.MlflowClient`.
    """
    client.set_experiment_tag(experiment_id, TAG_PREFIX + key, encoded(view))


def has_view(tags: Mapping[str, str], key: str) -> bool:
    """Whether an experiment with these tags holds it."""
    return TAG_PREFIX + key in tags


def encoded(view: View) -> str:
    """The tag's value; of more metrics than fit into a tag, the first ones are kept."""
    for count in range(len(view.metrics), -1, -1):
        text = json.dumps(state(view, view.metrics[:count]), separators=(",", ":"))
        packed = "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        now = int(time.time() * 1000)
        value = json.dumps({"name": view.name, "createdAt": now, "updatedAt": now, "state": packed})
        if len(value) <= TAG_LIMIT:
            return value
    raise AssertionError("a view without metrics fits a tag")


def state(view: View, metrics: Sequence[str]) -> dict[str, Any]:
    """What MLflow's page keeps of itself."""
    charts = _overview(view, metrics)
    charts += [_of_metric("LINE", "lines", metric, **_PLAIN_LINE) for metric in metrics]
    charts += [_of_metric("BAR", "bars", metric) for metric in metrics]
    sections = {"overview": "Comparison", "lines": "By step", "bars": "Last values"}
    return {
        "searchFilter": view.filter,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": view.group_by}]},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [f"metrics.`{metric}`" for metric in metrics],
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": key, "name": title, "display": True, "isReordered": True} for key, title in sections.items()
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _overview(view: View, metrics: Sequence[str]) -> list[dict[str, Any]]:
    x, y = ({"key": metric, "type": "METRIC"} for metric in view.scatter)
    charts = [_chart("SCATTER", "overview", "", xaxis=x, yaxis=y)]
    parameters, results = list(view.parameters), list(metrics[: 1 if view.parameters else 2])
    if len(parameters) + len(results) > 1:
        options = {"selectedParams": parameters, "selectedMetrics": results, "showAllRuns": True}
        charts.append(_chart("PARALLEL", "overview", "", **options))
    return charts


def _of_metric(kind: str, section: str, metric: str, **options: Any) -> dict[str, Any]:
    return _chart(kind, section, metric, metricKey=metric, selectedMetricKeys=[metric], displayName=metric, **options)


def _chart(kind: str, section: str, name: str, **options: Any) -> dict[str, Any]:
    """Scatter and parallel coordinates have titles of MLflow's own."""
    return {
        "type": kind,
        "uuid": f"{section}-{kind}-{name}",
        "metricSectionId": section,
        "runsCountToCompare": RUNS_SHOWN,
        "deleted": False,
        "isGenerated": False,
    } | options
