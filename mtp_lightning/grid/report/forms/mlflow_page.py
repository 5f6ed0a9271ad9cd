"""A grid's page in MLflow, an experiment: its charts, there from its first cell on; its report, one run named `report`
without metrics; and the report as the experiment's note."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.grid.report.comparison import Report
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import legend, markdown_table
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.ladder.tables import ladder_blocks
from mtp_lightning.grid.spec.grid_spec import GridSpec, experiment_name
from mtp_lightning.grid.spec.values import is_number
from mtp_lightning.secrets import mask
from mtp_lightning.tracking.views import View, view_key, write_view

NOTE_LIMIT = 5000
"""What MLflow takes in an experiment's tag."""
NOTE = "mlflow.note.content"
GROUP = "mtp.group"
"""The tag that a setting's runs share."""
BRIEFLY = 2.0
"""Seconds that the cells wait for a server that is away; they have more patience of their own."""
OTHER_METRICS = ("perf/tokens_per_second_median", "val/loss/head_1")
"""What a single compared metric is drawn against: what it costs, or, being that itself, what it buys."""


def record_charts(uri: str, spec: GridSpec) -> None:
    """Make the grid's experiment, if it is not there, and put its charts into it."""
    from mtp_lightning.tracking.store import connect, ensure_experiment

    experiment = ensure_experiment(uri, experiment_name(spec.name), away=BRIEFLY)
    _write_charts(connect(uri), experiment, spec)


def record_report(uri: str, report: Report, files: Sequence[Path], folder: str | None = None) -> str:
    """Put `files` into the grid's experiment and refresh its note; the id of the experiment. Repeating it replaces
    the artifacts of the same run: a second report is not a second row among the cells.

    Args:
        folder: of a report that is not the grid file's own: among the artifacts of that one, whose note stays.
    """
    from mtp_lightning.tracking.store import connect, ensure_experiment

    experiment: str = ensure_experiment(uri, experiment_name(report.spec.name))
    write_report(client := connect(uri), experiment, report, files, folder)
    _name_groups(client, experiment, report)
    return experiment


def _name_groups(client: Any, experiment: str, report: Report) -> None:
    """Runs from before their setting had its present name are drawn with those made since."""
    names = {cell.signature: cell.group_label for cell in report.cells}
    page = None
    while True:
        found = client.search_runs([experiment], "tags.`mtp.kind` = 'cell'", max_results=1000, page_token=page)
        for run in found:
            name = names.get(run.data.tags.get("mtp.cell"))
            if name is not None and run.data.tags.get(GROUP) != name:
                client.set_tag(run.info.run_id, GROUP, name)
        if not (page := found.token):
            return


def write_report(
    client: Any, experiment: str, report: Report, files: Sequence[Path], folder: str | None = None
) -> None:
    """`client` is an `mlflow.MlflowClient`."""
    name = report.spec.name
    found = client.search_runs([experiment], f"tags.`mtp.kind` = 'grid' and tags.`mtp.grid` = '{name}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {"mtp.kind": "grid", "mtp.grid": name}
        run_id = client.create_run(experiment, run_name="report", tags=tags).info.run_id
    for path in files:
        client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED")
    if folder is None:
        client.set_tag(run_id, NOTE, mask(note(report)))  # the whole is among the artifacts
        client.set_experiment_tag(experiment, NOTE, mask(note(report)))
    _write_charts(client, experiment, report.spec)


def note(report: Report) -> str:
    """One line first, since MLflow shows the note folded; then the notices, and as much of the table as a tag holds."""
    head = "\n\n".join([f"{report.spec.name}: {verdict(report).sentence}", *notices(report), ""])
    for metrics in (report.metrics, report.spec.compare):
        parts = [markdown_table(report, metrics), legend(report)]
        for blocks in ([*parts, *ladder_blocks(report.ladders)], parts):
            text = head + "\n\n".join(blocks) + "\n"
            if len(text) <= NOTE_LIMIT:
                return text
    return head[:NOTE_LIMIT]


def charts(spec: GridSpec) -> View:
    """The cells, seeds together; the grid's report, a run without metrics, is left out."""
    x, y = list(dict.fromkeys([*spec.compare, *OTHER_METRICS]))[1::-1]
    return View(
        name=spec.name,
        filter="tags.`mtp.kind` = 'cell'",
        group_by=GROUP,
        metrics=spec.compare,
        scatter=(x, y),
        parameters=varying_numbers(spec),
    )


def varying_numbers(spec: GridSpec) -> tuple[str, ...]:
    """The axes with several values, all of them numbers."""
    found = []
    for key, axis in spec.axes.items():
        values = [*axis, *(given[key] for given in spec.include if key in given)]
        if len(values) > 1 and all(map(is_number, values)):
            found.append(key)
    return tuple(found)


def _write_charts(client: Any, experiment: str, spec: GridSpec) -> None:
    write_view(client, experiment, view_key(experiment_name(spec.name)), charts(spec))
