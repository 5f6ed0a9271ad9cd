"""What a cell may use of a machine: at most what Slurm is asked for, and what its cost is reckoned with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of one cell. None leaves a thing to the cluster's default."""

    gpus: int = 0
    """On each node; 0: the cell trains on processors."""
    nodes: int = 1
    tasks: int | None = None
    """Processes on each node. None: one a GPU, or one."""
    cpus: int | None = None
    """Cores of each process."""
    memory_gb: float | None = None
    """Of each node."""
    minutes: int | None = None
    """Wall-clock limit of one attempt; a cell that runs into it is saved and queued again."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None

    @property
    def tasks_per_node(self) -> int:
        return self.tasks if self.tasks is not None else max(1, self.gpus)
