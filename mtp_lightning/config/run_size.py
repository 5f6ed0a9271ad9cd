"""How large a run is, by its configuration alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How large a run is, by its configuration alone; None where that does not say."""

    parameters: int
    parameters_non_embedding: int
    flops_per_token: int | None = None
    """Of training: forward and backward."""
    tokens: int | None = None
    """Input positions of the whole run."""
    memory_bytes: int | None = None
    """Of one process that shards nothing, about, on what it takes of this machine: processors, or a GPU."""
    gpu_memory_bytes: int | None = None
    """The same on a GPU, wherever it is planned."""

    @property
    def flops(self) -> int | None:
        return None if self.flops_per_token is None or self.tokens is None else self.flops_per_token * self.tokens
