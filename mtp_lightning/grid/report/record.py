"""A grid in MLflow, beside its cells: its chart view; its report, one run named `report` without metrics, and as the
note on the experiment's page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.grid.report.report import Report
from mtp_lightning.grid.report.tables import legend, markdown, markdown_table, notices
from mtp_lightning.grid.report.verdict import verdict
from mtp_lightning.grid.report.view import experiment_name, write_comparison
from mtp_lightning.grid.spec.grid_spec import GridSpec

NOTE_LIMIT = 5000
"""What MLflow takes in an experiment's tag."""


BRIEFLY = 2.0
"""Seconds that the cells wait for a server that is away; they have more patience of their own."""


def record_view(uri: str, spec: GridSpec) -> None:
    """Make the grid's experiment, if it is not there, and put its chart view into it."""
    from mtp_lightning.tracking.store import connect, ensure_experiment

    experiment = ensure_experiment(uri, experiment_name(spec.name), away=BRIEFLY)
    write_comparison(connect(uri), experiment, spec)


def record_report(uri: str, report: Report, files: Sequence[Path]) -> str:
    """Put `files` into the grid's experiment and refresh its note; the id of the experiment. Repeating it replaces
    the artifacts of the same run: a second report is not a second row among the cells."""
    from mtp_lightning.tracking.store import connect, ensure_experiment

    experiment: str = ensure_experiment(uri, experiment_name(report.spec.name))
    write_record(connect(uri), experiment, report, files)
    return experiment


def write_record(client: Any, experiment: str, report: Report, files: Sequence[Path]) -> None:
    """`client` is an `mlflow.MlflowClient`."""
    name = report.spec.name
    found = client.search_runs([experiment], f"tags.`mtp.kind` = 'grid' and tags.`mtp.grid` = '{name}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {"mtp.kind": "grid", "mtp.grid": name}
        run_id = client.create_run(experiment, run_name="report", tags=tags).info.run_id
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_tag(run_id, "mlflow.note.content", markdown(report))
    client.set_terminated(run_id, "FINISHED")
    client.set_experiment_tag(experiment, "mlflow.note.content", note(report))
    write_comparison(client, experiment, report.spec)


def note(report: Report) -> str:
    """One line first, since MLflow shows the note folded; then what is missing, and as much of the table as a tag
    holds."""
    full = "\n\n".join([f"{report.spec.name}: {verdict(report)}", *notices(report), ""])
    for metrics in (report.metrics, report.spec.compare):
        text = full + f"{markdown_table(report, metrics)}\n\n{legend(report)}\n"
        if len(text) <= NOTE_LIMIT:
            return text
    return full[:NOTE_LIMIT]
