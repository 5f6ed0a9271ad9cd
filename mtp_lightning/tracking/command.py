"""`mtp ui`."""

from mtp_lightning.tracking.store import default_tracking_uri
from mtp_lightning.tracking.ui import find_experiment, runs_of, serve


def ui_command(
    experiment: str | None = None, runs: str = "runs", uri: str | None = None, port: int = 5000, open: bool = False
) -> int:
    """Start the MLflow UI on this project's runs, on 127.0.0.1, and print the link to an experiment's charts.

    Args:
        experiment: Experiment to link to, such as mtp/head-count; by default the one made last.
        runs: Folder of the runs, whose mlflow.db is shown.
        uri: Another MLflow store instead.
        port: Port on 127.0.0.1.
        open: Open the link in a browser.
    """
    store = uri or default_tracking_uri(runs_of(runs))
    return serve(store, find_experiment(store, experiment), port, open)
