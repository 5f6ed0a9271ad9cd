"""An evaluation's numbers in the MLflow run of the model that was evaluated, where it has one."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError

FOLDER = "evaluation"
"""Of a run's artifacts."""
UNSAFE = "mtp.unsafe_execution"
"""Tag of a run whose model's programs ran outside of the sandbox."""


def record(
    ckpt: Path,
    step: int,
    metrics: Mapping[str, float],
    files: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    limited: bool = False,
) -> bool:
    """Whether there was a run to record in: the one that the folder of the checkpoint remembers. A run that its store
    does not hold, as of a folder that was copied, or files of it that are damaged, are reported and no failure.

    Args:
        step: of the checkpoint.
        files: for the run's artifacts.
        limited: of a part of the problems (`--limit`): not recorded, since names of metrics are those of all.
    """
    import yaml

    from mtp_lightning.tracking.begin import begun_run, read_run_id
    from mtp_lightning.tracking.store import connect_existing, default_tracking_uri, whole_uri
    from mtp_lightning.tracking.writer import RunWriter

    try:
        folder, run_id = next(((f, i) for f in _folders(ckpt) if (i := read_run_id(f)) is not None), (None, None))
        if folder is None or run_id is None:
            return False
        if limited:
            print("not recorded in MLflow: --limit asks for a part of the problems alone", file=sys.stderr)
            return False
        uri = whole_uri(_uri_of(folder) or default_tracking_uri())
        client = connect_existing(uri)
        begun_run(client, run_id, uri, folder)
    except (InputError, yaml.YAMLError, RecursionError) as error:
        print(f"warning: not recorded in MLflow: {error}", file=sys.stderr)
        return False
    writer = RunWriter(client, run_id, uri, flush_every_seconds=0.0)
    writer.log_metrics(metrics, step)
    for file in files:
        writer.log_file(file, FOLDER)
    writer.flush()
    writer.set_tags(tags or {})
    return True


def _folders(ckpt: Path) -> list[Path]:
    """The folder of the run, or of a checkpoint's run."""
    if ckpt.is_dir() and ckpt.suffix != ".ckpt":  # a sharded checkpoint is a folder too
        return [ckpt]
    return [*ckpt.absolute().parents[:2]]


def _uri_of(folder: Path) -> str | None:
    """The store that a run's configuration names."""
    import yaml

    from mtp_lightning.files import read_state

    text = read_state(folder / "config.yaml")
    config: Any = yaml.safe_load(text) if text else None
    for key in ("trainer", "logger", "init_args", "tracking_uri"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, str) and "${" not in config else None
