"""What `mtp fit` is given for one cell of a grid, and commands of this program: to run it, and for a user to type."""

import copy
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtp_lightning.model.initial import CELL
from mtp_lightning.own_code import given
from mtp_lightning.tracking.store import default_tracking_uri


def cell_config(
    config: Mapping[str, Any],
    folder: Path,
    *,
    run_name: str,
    experiment: str,
    tags: Mapping[str, str],
    devices: int = 1,
    nodes: int = 1,
    pause_at: int | None = None,
) -> dict[str, Any]:
    """The configuration with the cell's own folder and MLflow run; all cells share the data in the folder above, where
    the cell lies that it may begin from.

    Args:
        devices: processes on each node; with 1 the configuration's own setting stays, as with 1 node.
        pause_at: the step of a gate, at which it saves and ends.
    """
    runs, full = folder.parent, copy.deepcopy(dict(config))
    full["ckpt_path"] = "auto"
    trainer = full["trainer"]
    trainer |= {"default_root_dir": str(folder), "enable_progress_bar": False}
    if devices > 1:
        trainer["devices"] = devices
    if nodes > 1:
        trainer["num_nodes"] = nodes
    for callback in trainer["callbacks"] or [] if pause_at is not None else []:
        if is_saving(callback):
            callback["init_args"] = {**(callback.get("init_args") or {}), "pause_at": pause_at}
    trainer["logger"] = {
        "class_path": "mtp_lightning.tracking.logger.MLflowRunLogger",
        "init_args": {
            "tracking_uri": default_tracking_uri(runs),
            "experiment": experiment,
            "run_name": run_name,
            "directory": str(folder),
            "tags": dict(tags),
        },
    }
    init = full["model"].get("init") or {}
    if str(init.get("path")).startswith(CELL):
        init["path"] = str(runs / init["path"].removeprefix(CELL))
    data = full["data"].get("init_args", {})
    if data.get("directory") == "runs/data":
        data["directory"] = str(runs / "data")
    return full


def is_saving(callback: object) -> bool:
    """Whether an entry of `trainer.callbacks` is the one that saves, and stops at a gate."""
    return isinstance(callback, Mapping) and str(callback.get("class_path")).endswith(".PeriodicCheckpoint")


def fit_command(file: Path) -> list[str]:
    """`mtp fit` of a configuration file, in this environment. A cell continues from its newest good checkpoint."""
    return [sys.executable, "-m", "mtp_lightning", "fit", "-c", str(file), *(f"--import={name}" for name in given)]


def command(*words: str) -> str:
    """A command of this program for a user's shell, as it was called: an environment need not be on the PATH."""
    program = ["mtp"]
    if shutil.which("mtp") is None:
        program = [os.path.relpath(sys.argv[0])]
        if program[0] == "-c" or program[0].endswith("__main__.py"):
            program = [os.path.relpath(sys.executable), "-m", "mtp_lightning"]
    return shlex.join([*program, *words])
