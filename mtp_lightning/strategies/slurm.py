"""Below srun Lightning makes one run of a step's tasks; queueing the job again is left to whoever submitted it."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from mtp_lightning.errors import InputError


def without_requeueing(plugins: Any) -> Sequence[Any] | None:
    """The trainer's plugins, with an environment that does not save and queue again on the signals on which our
    checkpoints are written; None where there is nothing to add to them."""
    given = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins] if plugins else []
    chosen = TorchElasticEnvironment.detect() or any(isinstance(one, ClusterEnvironment) for one in given)
    return [*given, SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() and not chosen else None


def check_tasks(trainer: pl.Trainer) -> None:
    """
    Raises:
        InputError: Slurm did not start one task a process of the run: Lightning would train in as many as it did.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    wanted = trainer.num_devices * trainer.num_nodes
    if isinstance(environment, SLURMEnvironment) and environment.world_size() != wanted:
        raise InputError(
            f"trainer.devices: {trainer.num_devices} on {trainer.num_nodes} node(s) make {wanted} processes, and this "
            f"Slurm job has SLURM_NTASKS={environment.world_size()}: start one task a process, as with `srun "
            f"--ntasks-per-node={trainer.num_devices}`, or set SLURM_JOB_NAME=interactive to have Lightning start them"
        )
