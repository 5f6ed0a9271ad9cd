"""`mtp fit | validate`."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.checkpoints.select import latest_checkpoint
from mtp_lightning.config.cross_checks import check_writable
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.errors import InputError
from mtp_lightning.machine import keep_freed_memory

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, below `trainer.default_root_dir`."""


def fit(args: Sequence[str]) -> int:
    """`mtp fit`: train, from the start or from `--ckpt_path`."""
    cli = MTPCLI(args, "mtp fit")
    root = Path(cli.trainer.default_root_dir)
    check_writable(root)
    start_from = checkpoint_to_start_from(cli.config.ckpt_path, root, cli.trainer.max_steps)
    if cli.trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start_from, weights_only=True)
    return 0


def validate(args: Sequence[str]) -> int:
    """`mtp validate`: the validation metrics of `--ckpt_path`, printed and not recorded."""
    cli = MTPCLI([*args, "--trainer.logger=false", "--trainer.callbacks=null"], "mtp validate")
    if cli.config.ckpt_path is None:
        raise InputError("mtp validate: --ckpt_path is missing: the checkpoint to validate")
    path = cli.config.ckpt_path
    read_checkpoint(Path(path))
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # left out on purpose, above
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True, verbose=False)
    if cli.trainer.is_global_zero:
        for name, value in sorted(cli.trainer.callback_metrics.items()):
            print(f"{name:<24}{float(value):.6f}")
    return 0


def checkpoint_to_start_from(ckpt_path: str | None, directory: Path, max_steps: int) -> str | None:
    """The checkpoint `fit` starts from, checked before anything is written.

    Raises:
        InputError: not a checkpoint, or one at the end of a shorter run, whose only epoch is over, so that Lightning
            would train nothing and report success; or a new run asked for where another one lies.
    """
    newest = latest_checkpoint(directory / CHECKPOINTS)
    if ckpt_path == "auto":
        return str(newest) if newest else None
    if ckpt_path is not None:
        content = read_checkpoint(Path(ckpt_path))
        step, epochs = content["global_step"], content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
        if epochs and step < max_steps:
            raise InputError(
                f"ckpt_path: '{ckpt_path}' is the end of a run of {step} steps, and trainer.max_steps is {max_steps}: "
                "nothing more would be trained; take an earlier checkpoint of that run"
            )
    same = newest is not None and ckpt_path is not None and newest.resolve() == Path(ckpt_path).resolve()
    if newest is not None and not same and os.environ.get("LOCAL_RANK", "0") == "0":
        raise InputError(
            f"trainer.default_root_dir: '{directory}' already holds a run ({newest.name}); "
            "give a new folder, or --ckpt_path auto to continue that run"
        )
    return ckpt_path
