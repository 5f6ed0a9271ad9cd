"""The MLflow run of an attempt: a new one, made once, or the one that an earlier attempt began."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_json, read_state
from mtp_lightning.machine import is_gone, is_here, this_process
from mtp_lightning.secrets import mask, masked
from mtp_lightning.tracking.machine import SYSTEM
from mtp_lightning.tracking.patience import PATIENCE, with_patience
from mtp_lightning.tracking.store import connect

RUN_FILE = "mlflow_run_id"
"""In a run's own folder: the id of its MLflow run."""
TOKEN = "mtp.start"
"""Tag with a random value, by which a run is found whose making was not answered."""
PROCESS = "mtp.process"
"""Tag: the process at work on the run, as `this_process` describes it."""
KILLED_AT = "mtp.killed_at_step"
"""Tag: the last step that was known of the run when it was found dead."""
PROGRESS = "progress.json"
"""In a run's own folder: its heartbeat, with its step."""
_RUN_ID = re.compile("[0-9a-f]{32}")


def read_run_id(directory: Path) -> str | None:
    """The id of the MLflow run that a run's folder remembers.

    Raises:
        DamagedError: the file holds something else.
    """
    path = directory / RUN_FILE
    text = read_state(path)
    if text is not None and not _RUN_ID.fullmatch(text.strip()):
        raise DamagedError(path, "does not hold the id of an MLflow run (32 hexadecimal digits)")
    return None if text is None else text.strip()


def new_run(client: Any, experiment_id: str, name: str | None, tags: Mapping[str, str], uri: str) -> str:
    """The id of a run made now. A server that dies over its answer may hold the run already."""
    token, asked = uuid4().hex, False

    def make() -> Any:
        nonlocal asked
        found = client.search_runs([experiment_id], f"tags.`{TOKEN}` = '{token}'", max_results=1) if asked else []
        asked = True
        return (
            found[0] if found else client.create_run(experiment_id, tags=masked({**tags, TOKEN: token}), run_name=name)
        )

    return str(with_patience(make, uri).info.run_id)


def settle(
    client: Any, run: Any, uri: str, directory: Path, over: Collection[str] = (), away: float = PATIENCE
) -> bool:
    """Set a run that says RUNNING, and whose process is gone, to KILLED, with the last step that is known; whether it
    does not say RUNNING any more. Nothing is done to a run of which that is not certain.

    Args:
        directory: the run's own folder.
        over: Slurm's jobs that are known to be over.
    """
    if run.info.status != "RUNNING":
        return True
    tags, run_id = run.data.tags, run.info.run_id
    if not is_gone(tags.get(PROCESS, "")) and tags.get("mtp.slurm_job") not in over:
        return False
    steps = [metric.step for metric in run.data._metric_objs if not metric.key.startswith(SYSTEM)]
    last = max([*steps, _last_step(directory)])
    with_patience(lambda: client.set_tag(run_id, KILLED_AT, str(last)), uri, away)
    with_patience(lambda: client.set_terminated(run_id, "KILLED"), uri, away)
    return True


def _last_step(directory: Path) -> int:
    """By the run's heartbeat, which is later than what it sent."""
    try:
        step = (read_json(directory / PROGRESS) or {}).get("step")
    except DamagedError:
        return 0
    return step if type(step) is int else 0


def refuse_living(run: Any, directory: Path) -> None:
    """
    Raises:
        InputError: another process makes this run.
    """
    process = run.data.tags.get(PROCESS, "")
    if run.info.status == "RUNNING" and process != this_process() and is_here(process):
        raise InputError(
            f"trainer.default_root_dir: the run in '{directory}' is being made by process {process.split(' ')[3]}: "
            "wait for its end, stop it, or give another folder"
        )


def settle_by_id(uri: str, run_id: str, directory: Path, over: Collection[str], away: float = 1.0) -> bool:
    """`settle`, of a run that may not be in the store; then it says nothing there.

    Raises:
        StoreAwayError: a server does not answer.
    """
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        return settle(client, with_patience(lambda: client.get_run(run_id), uri, away), uri, directory, over, away)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


def begun_run(client: Any, run_id: str, uri: str, directory: Path) -> Any:
    """The run that `directory` remembers, as MLflow has it.

    Raises:
        InputError: it is not in this store, or was deleted there.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = with_patience(lambda: client.get_run(run_id), uri)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise not_held(uri, directory, run_id) from error
    if run.info.lifecycle_stage != "active":
        raise InputError(
            f"the run of '{directory}' ({run_id}) was deleted in MLflow: restore it there or give a new folder"
        )
    return run


def not_held(uri: str, directory: Path, run_id: str) -> InputError:
    return InputError(
        f"trainer.logger.init_args.tracking_uri: '{mask(uri)}' does not hold the run of '{directory}' ({run_id}): give "
        "the store it was begun in, or a new folder"
    )
