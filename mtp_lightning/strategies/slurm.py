"""Below srun Lightning makes one run of a step's tasks; queueing the job again is left to whoever submitted it."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def without_requeueing(plugins: Any) -> Sequence[Any] | None:
    """The trainer's plugins, with an environment that does not save and queue again on the signals on which our
    checkpoints are written; None where there is nothing to add to them."""
    given = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins] if plugins else []
    chosen = TorchElasticEnvironment.detect() or any(isinstance(one, ClusterEnvironment) for one in given)
    return [*given, SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() and not chosen else None
