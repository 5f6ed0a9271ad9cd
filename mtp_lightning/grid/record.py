"""A report in MLflow: one run named `report` without metrics, and the note on the experiment's page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.grid.report import Report
from mtp_lightning.grid.tables import markdown, markdown_table
from mtp_lightning.grid.verdict import verdict

NOTE_LIMIT = 5000
"""What MLflow takes in an experiment's tag."""


def experiment_name(grid: str) -> str:
    return f"mtp/{grid}"


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


def note(report: Report) -> str:
    """One line first, since MLflow shows the note folded; then as much of the table as a tag holds."""
    full = f"{report.spec.name}: {verdict(report)}\n\n"
    for metrics in (report.metrics, report.spec.compare):
        text = full + markdown_table(report, metrics)
        if len(text) <= NOTE_LIMIT:
            return text
    return full[:NOTE_LIMIT]
