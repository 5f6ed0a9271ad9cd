"""A run whose loss or weights are no longer finite has no result: when that began, and the failure it ends in."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mtp_lightning.errors import DivergedError

NEVER = 2**62


class Divergence:
    """The first step whose loss was not finite. Kept on the device, so that a GPU is waited for only when asked."""

    def __init__(self) -> None:
        self._first_step: Tensor | None = None

    def note(self, losses: Sequence[Tensor], step: int) -> None:
        """
        Args:
            losses: this rank's, one number each, detached.
            step: counted from 1, growing.
        """
        if losses[0].device.type == "cpu" and all(map(math.isfinite, losses)):
            return  # nothing is computed where there is nothing to wait for
        found = torch.where(torch.stack([*losses]).isfinite().all(), NEVER, step)
        self._first_step = found if self._first_step is None else torch.minimum(self._first_step, found)

    def step(self, weights: Iterable[nn.Parameter] = (), now: int = NEVER) -> int | None:
        """The first such step of any rank, the same on each, which all have to ask together; None for a sound run.

        Args:
            weights: looked at too, this rank's part of them.
            now: the step of whose loss nothing is known yet, which these weights would spoil.
        """
        weights, several = list(weights), torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if self._first_step is None and not weights and not several:
            return None
        device = weights[0].device if weights else None
        first = torch.full((), NEVER, device=device) if self._first_step is None else self._first_step
        for weight in weights:
            first = torch.where(_local(weight).isfinite().all(), first, torch.clamp(first, max=now))
        if several:
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        step = int(first)
        return None if step == NEVER else step


def diverged_error(step: int, what: str, folder: str) -> DivergedError:
    """
    Args:
        what: is not finite.
        folder: the run's.
    """
    return DivergedError(
        f"diverged at step {step}: {what}. The last checkpoint before it stays in '{folder}'. A new run may hold with "
        "a smaller model.optimizer.lr, a longer model.schedule.warmup_steps or a smaller trainer.gradient_clip_val; "
        "model.on_divergence: go_on trains to the end anyway"
    )


def _local(weight: nn.Parameter) -> Tensor:
    """This rank's part of a weight: FSDP2's shard, ZeRO-3's partition, or all of it."""
    whole: Tensor = getattr(weight, "ds_tensor", weight.detach())
    return whole.to_local() if isinstance(whole, torch.distributed.tensor.DTensor) else whole
