"""`mtp ui`."""

from pathlib import Path

from mtp_lightning.tracking.store import default_tracking_uri, whole_uri
from mtp_lightning.tracking.ui import find_experiment, is_server, links, serve, show


def ui_command(
    experiment: str | None = None, runs: str = "runs", uri: str | None = None, port: int = 5000, open: bool = False
) -> int:
    """Start the MLflow UI on this project's runs, on 127.0.0.1, and print the links to an experiment's charts: the
    comparison that its grid drew, where there is one, and plain ones. Of a store that is a server already, only the
    links.

    Args:
        experiment: Experiment to link to, such as mtp/head-count; by default the one made last.
        runs: Folder of the runs, whose mlflow.db is shown where MLFLOW_TRACKING_URI names no other store.
        uri: Another MLflow store instead.
        port: Port on 127.0.0.1.
        open: Open the first link in a browser.
    """
    store = whole_uri(uri or default_tracking_uri(Path(runs)))
    found = find_experiment(store, experiment)
    if is_server(store):
        show(links(store, found), open)
        return 0
    return serve(store, found, port, open)
