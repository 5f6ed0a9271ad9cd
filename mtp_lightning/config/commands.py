"""`mtp fit | validate`."""

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from mtp_lightning.checkpoints.files import read_checkpoint, reading, verify_checkpoint
from mtp_lightning.checkpoints.select import CHECKPOINTS, find_checkpoint, find_checkpoints, latest_checkpoint
from mtp_lightning.checkpoints.sharded import is_sharded
from mtp_lightning.config.cross_checks import check_writable, lightning_refusals
from mtp_lightning.config.lightning_cli import MTPCLI, naming_the_place
from mtp_lightning.config.run.continuing import check_continues
from mtp_lightning.config.run.ending import after_fit
from mtp_lightning.config.run.quiet import without_advertisements
from mtp_lightning.config.run.starting import CONFIG, check_replaceable, without_traces
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_json
from mtp_lightning.machine import keep_freed_memory
from mtp_lightning.module import MTPModule
from mtp_lightning.tracking.logger import MLflowRunLogger


def fit(args: Sequence[str]) -> int:
    """`mtp fit`: train, from the start or from `--ckpt_path`. Everything is checked before anything is written, by the
    rule of `config.run.starting`."""
    without_advertisements()
    cli = MTPCLI(args, "mtp fit")
    root = Path(cli.trainer.default_root_dir)
    if not cli.trainer.checkpoint_callbacks and cli.trainer.is_global_zero:
        print("warning: nothing of this run is saved: trainer.callbacks has no checkpoint", file=sys.stderr)
    with naming_the_place(cli.origins):
        _fit(cli, root)
    if cli.trainer.is_global_zero:
        print(after_fit(cli.trainer, cli.datamodule, next(iter(find_checkpoints(root / CHECKPOINTS).by_step), None)))
    return 0


def _fit(cli: MTPCLI, root: Path) -> None:
    check_writable(root)
    check_replaceable(root)
    start_from = checkpoint_to_start_from(cli.config.ckpt_path, root, cli.model, cli.trainer)
    for logger in cli.trainer.loggers:
        if isinstance(logger, MLflowRunLogger):
            logger.check(cli.start.parameters)
    if cli.trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    refusals = lightning_refusals(cli.config.trainer.as_dict(), lambda: cli.start.already_saved)
    with without_traces(cli.start, cli.trainer.loggers), refusals, restoring(start_from):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start_from, weights_only=True)


def validate(args: Sequence[str]) -> int:
    """`mtp validate`: the validation metrics of a run's checkpoint, printed and not recorded.

    `mtp validate RUN [--key value ...]` takes the configuration from the run's folder, and its newest good checkpoint,
    or the one that RUN names; in `mtp validate -c FILE ... --ckpt_path FILE` both are given.
    """
    without_advertisements()
    if args and not args[0].startswith("-"):
        args = [*of_run(Path(args[0])), *args[1:]]
    cli = MTPCLI([*args, "--trainer.logger=false", "--trainer.callbacks=null"], "mtp validate")
    if cli.config.ckpt_path is None:
        raise InputError(
            "mtp validate: say what to validate: the folder of a run, or a checkpoint in one (mtp validate runs/fit), "
            "or its configuration with -c and the checkpoint with --ckpt_path"
        )
    check_json(cli.config.json, ckpt_path=cli.config.ckpt_path)
    path = find_checkpoint(Path(cli.config.ckpt_path))
    verify_checkpoint(path)
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # left out on purpose, above
    with lightning_refusals(cli.config.trainer.as_dict(), lambda: False), restoring(path):
        cli.trainer.validate(
            cli.model, datamodule=cli.datamodule, ckpt_path=str(path), weights_only=True, verbose=False
        )
    if cli.trainer.is_global_zero:
        metrics = {name: float(value) for name, value in sorted(cli.trainer.callback_metrics.items())}
        width = max(map(len, metrics), default=0) + 2
        for name, value in metrics.items():
            print(f"{name:<{width}}{value:.6f}")
        if cli.config.json is not None:
            write_json(Path(cli.config.json), {"checkpoint": str(path), "metrics": metrics})
    return 0


@contextmanager
def restoring(path: Path | str | None) -> Iterator[None]:
    """What Lightning raises while it puts a checkpoint's content in place, as one message that names the file."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if path is None or not any(map(_restores, frames)):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"'{path}' is not what this run could go on from, or is damaged ({said})") from error


def _restores(frame: traceback.FrameSummary) -> bool:
    by_name = frame.name.lstrip("_").startswith(("restore", "resume"))
    return by_name and frame.filename.endswith("checkpoint_connector.py")


def of_run(run: Path) -> list[str]:
    """The arguments that say which configuration and which checkpoint `run` is: a run's folder, or a checkpoint in it.

    Raises:
        InputError: neither, or a folder without configuration.
    """
    if not run.exists():
        raise InputError(f"mtp validate: there is no run or checkpoint '{run}'")
    is_folder = run.is_dir() and not is_sharded(run)
    folder = run if is_folder else run.absolute().parent
    if not is_folder and folder.name == CHECKPOINTS:
        folder = folder.parent
    config = folder / CONFIG
    if not config.is_file():
        raise InputError(
            f"mtp validate: the run in '{folder}' has no {CONFIG}, as runs of earlier versions have not: say what it "
            f"was trained with, as in mtp validate -c conf/base.yaml ... --ckpt_path {shlex.quote(str(run))}"
        )
    return ["-c", str(config), "--ckpt_path", str(find_checkpoint(run))]


def checkpoint_to_start_from(ckpt_path: str | None, directory: Path, module: MTPModule, trainer: Trainer) -> str | None:
    """The checkpoint `fit` starts from, checked before anything is written.

    Raises:
        InputError: not a checkpoint, or one whose run cannot have this length; or a new run asked for where another
            one lies.
    """
    newest = latest_checkpoint(directory / CHECKPOINTS)
    path = newest if ckpt_path == "auto" else Path(ckpt_path) if ckpt_path is not None else None
    if path is not None and not (path.is_file() or is_sharded(path)):
        raise InputError(f"ckpt_path: there is no checkpoint file '{path}'")
    if path is not None:
        with reading(path):
            content = read_checkpoint(path, lazy=path == newest)  # the newest was just read
            check_continues(path, content, module, trainer)
    same = newest is not None and path is not None and newest.resolve() == path.resolve()
    if newest is not None and not same and os.environ.get("LOCAL_RANK", "0") == "0":
        raise InputError(
            f"trainer.default_root_dir: '{directory}' already holds a run ({newest.name}); "
            "give a new folder, or --ckpt_path auto to continue that run"
        )
    return None if path is None else str(path)
