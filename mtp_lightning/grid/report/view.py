"""A grid's own charts in MLflow, there from its first cell on."""

from typing import Any

from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.tracking.views import View, view_key, write_view

BESIDE = ("perf/tokens_per_second_median", "val/loss/head_1")
"""What a single compared metric is set against: what it costs, or, being that itself, what it buys."""


def experiment_name(grid: str) -> str:
    return f"mtp/{grid}"


def comparison(spec: GridSpec) -> View:
    """The cells, seeds together; the grid's report, a run without metrics, is left out."""
    x, y = list(dict.fromkeys([*spec.compare, *BESIDE]))[1::-1]
    return View(
        name=spec.name,
        filter="tags.`mtp.kind` = 'cell'",
        group_by="mtp.group",
        metrics=spec.compare,
        scatter=(x, y),
        parameters=varying_numbers(spec),
    )


def varying_numbers(spec: GridSpec) -> tuple[str, ...]:
    """The axes with several values, all of them numbers."""
    found = []
    for key, axis in spec.axes.items():
        values = [*axis, *(given[key] for given in spec.include if key in given)]
        if len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found.append(key)
    return tuple(found)


def write_comparison(client: Any, experiment: str, spec: GridSpec) -> None:
    """Into the experiment of that id; `client` is an `mlflow.MlflowClient`."""
    write_view(client, experiment, view_key(experiment_name(spec.name)), comparison(spec))
