"""The start of a run: everything is checked first, then everything is written.

**The rule:** what can be refused is refused before the hook `on_train_start`, and nothing that belongs to a run is
written before it: neither its folder, nor a file in it, nor its MLflow run. So a refused start leaves a run, or its
absence, as it was. Checks stand in constructors, in `mtp fit` before the trainer runs, and in the hooks `setup`,
`on_fit_start` and `on_load_checkpoint`; whatever writes (`Heartbeat`, probes, checkpoints, this file) begins with
`on_train_start`. A prepared corpus is no part of a run: it is a cache that any run may use.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from typing_extensions import override

from mtp_lightning.checkpoints.select import CHECKPOINTS
from mtp_lightning.config.config_files import literal
from mtp_lightning.config.run.continuing import is_finished, reopen_epoch
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_state, write_text
from mtp_lightning.module import MTPModule
from mtp_lightning.secrets import references
from mtp_lightning.tracking.logger import MLflowRunLogger

CONFIG = "config.yaml"
"""In a run's own folder: its resolved configuration."""
FILES = (CONFIG, "progress.json", "result.json", "failure.json", "gate.json")
"""What a run replaces there."""


class StartRun(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder and gives it to MLflow, and continues a finished run.

    It comes before all other callbacks, so the MLflow run is there, or has failed, before any of them writes.
    """

    @property
    def text(self) -> str:
        """The resolved configuration as YAML, without secrets: they come from the environment again."""
        text = str(self.parser.dump(self.config, skip_none=False))
        whole = yaml.safe_load(text)
        written = references(literal(whole))
        return text if written == whole else str(yaml.safe_dump(written, sort_keys=False, allow_unicode=True))

    @property
    def parameters(self) -> dict[str, Any]:
        """What MLflow is given as the run's parameters."""
        return semantic_parameters(yaml.safe_load(self.text))

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: a later check may refuse the run."""

    @override
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Once a run, on rank zero."""
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        text = self.text
        for logger in trainer.loggers:
            if isinstance(logger, MLflowRunLogger):
                logger.log_hyperparams(self.parameters)
                logger.log_text_artifact(text, CONFIG)
                parent: Any = getattr(pl_module, "parent", None)
                if parent is not None:
                    logger.set_tags(parent.tags)
        write_config(Path(trainer.default_root_dir), text)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and is_finished(checkpoint) and checkpoint["global_step"] < trainer.max_steps:
            every = trainer.val_check_interval
            batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
            validates = isinstance(every, int) and trainer.limit_val_batches > 0 and batches % every == 0
            reopen_epoch(checkpoint["loops"], validates)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, MTPModule):
            pl_module.check_loader()
        for optimizer in trainer.optimizers:
            check_moments(optimizer)
        self.save_config(trainer, pl_module, "fit")
        for config in trainer.lr_scheduler_configs:
            set_next_learning_rate(config.scheduler)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of a run that had no step left to make, `on_train_start` was never called."""
        self.save_config(trainer, pl_module, "fit")


def check_replaceable(folder: Path) -> None:
    """
    Raises:
        InputError: where a run writes a file there is a folder, or the other way round.
    """
    for name in FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            raise InputError(f"{path}: a folder, and the run writes a file of this name: move it away")
    if os.path.lexists(folder / CHECKPOINTS) and not (folder / CHECKPOINTS).is_dir():
        raise InputError(f"{folder / CHECKPOINTS}: no folder, and the run keeps its checkpoints there: move it away")


@contextmanager
def without_traces(start: StartRun, loggers: Sequence[object]) -> Iterator[None]:
    """Lightning makes the folders of its own loggers before it looks at the data: a start that is refused after that
    takes away those that were not there."""
    folders = [logger.log_dir for logger in loggers if isinstance(logger, (CSVLogger, TensorBoardLogger))]
    new = [Path(folder) for folder in folders if not os.path.exists(folder)]
    made = {parent for folder in new for parent in folder.parents if not parent.exists()}
    try:
        yield
    except InputError:
        if not start.already_saved:
            for folder in new:
                shutil.rmtree(folder, ignore_errors=True)
            for folder in sorted(made, reverse=True):
                with suppress(OSError):  # not there, or something else lies in it by now
                    folder.rmdir()
        raise


def write_config(folder: Path, text: str) -> None:
    """Write the run's configuration into its folder, unless a file that says the same is there, as in a cell's."""
    path = folder / CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    if not _holds(path, yaml.safe_load(text)):
        write_text(path, text)


def _holds(path: Path, config: Any) -> bool:
    try:
        there = read_state(path)
        return there is not None and bool(yaml.safe_load(there) == config)
    except (DamagedError, yaml.YAMLError, RecursionError):
        return False


def check_moments(optimizer: Any) -> None:
    """Adam's averages are of the shapes of their weights. Torch looks at that only in the first step.

    Raises:
        InputError: they came out of a damaged checkpoint.
    """
    for weight, state in getattr(optimizer, "state", {}).items():
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state and getattr(state[key], "shape", None) != weight.shape:
                raise InputError(
                    f"ckpt_path: the optimizer's '{key}' of a weight of shape {tuple(weight.shape)} is of another: the "
                    "checkpoint is damaged; give another"
                )


def set_next_learning_rate(scheduler: Any) -> None:
    """Compute the next step's learning rate anew. The one in a checkpoint was computed for the length that the run had
    then; where that is the same, so is the rate."""
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return
    for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
        group["lr"] = base * factor(scheduler.last_epoch)


def semantic_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what a restart may change, since MLflow's parameters are immutable.

    Hardware may: a checkpoint goes on with any number of processes, and the identity of a cell leaves it out too.
    """
    may_change = ("logger", "callbacks", "accelerator", "devices", "num_nodes")
    trainer = {k: v for k, v in config.get("trainer", {}).items() if k not in may_change}
    return {k: v for k, v in config.items() if k not in ("config", "ckpt_path", "trainer")} | {"trainer": trainer}
