"""What `mtp fit` prints when it is done: where the checkpoint is, and the commands that go on from there."""

from pathlib import Path

import lightning.pytorch as pl

from mtp_lightning.config.cell import command
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.secrets import mask
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.store import default_tracking_uri
from mtp_lightning.tracking.ui import is_server


def after_fit(trainer: pl.Trainer, data: MTPDataModule, checkpoint: Path | None) -> str:
    """Lines of `what: path or command`, commands as they can be pasted into a shell."""
    lines = [f"finished at step {trainer.global_step}"]
    if checkpoint is None:
        lines.append("no checkpoint was saved: trainer.callbacks has no callbacks.checkpointing.PeriodicCheckpoint")
    else:
        lines.append(f"checkpoint:  {checkpoint}")
        lines.append(next_command(data, str(trainer.default_root_dir)))
    lines += [record_of(logger) for logger in trainer.loggers if isinstance(logger, MLflowRunLogger)]
    return "\n".join(lines)


def next_command(data: MTPDataModule, run: str) -> str:
    """What to do with the model: text is generated, a task that has a command is evaluated, all else validated."""
    if data.tokenizer is not None:
        return f"generate:    {command('generate', run, '--prompt', 'Once')}"
    name = getattr(getattr(data, "task", None), "name", None)
    if name in EVALUATED:
        return f"evaluate:    {command('evaluate', name.replace('_', '-'), run)}"
    return f"validate:    {command('validate', run)}"


EVALUATED = ("execution", "polynomial", "star_graph")
"""Synthetic tasks that have a command `mtp evaluate ...`."""


def record_of(logger: MLflowRunLogger) -> str:
    """The page of the run on a server, or the command that opens the store."""
    uri = logger.tracking_uri
    if is_server(uri):
        run = logger.client.get_run(logger.run_id).info
        return f"MLflow:      {mask(uri).rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    store = () if uri == default_tracking_uri() else ("--uri", mask(uri))
    return f"MLflow:      {command('ui', '--experiment', logger.experiment_name, *store)}"
