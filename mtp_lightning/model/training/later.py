"""Models that no process ever holds whole, for strategies that shard weights.

A run's module is made before there are processes to share it. Within `made_later` it gets shapes alone, on the meta
device, and the state in which the random numbers were. When the processes have met, the model is made again from that
state (`make_sharded`): in the same order and from the same numbers as by a single process, so that its first weights
are the same, bit for bit; and every layer is sharded as soon as it stands. What is whole at one time is one layer, and
what belongs to none: embeddings, norms, and the projections of heads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from mtp_lightning.model.block import Block
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

_LATER: ContextVar[bool] = ContextVar("later", default=False)


@contextmanager
def made_later(later: bool = True) -> Iterator[None]:
    """Within, `make_model` makes shapes alone."""
    token = _LATER.set(later)
    try:
        yield
    finally:
        _LATER.reset(token)


def make_model(backbone: BackboneConfig, heads: HeadsConfig) -> tuple[MTPModel, Tensor | None]:
    """A model with its first weights and None; within `made_later` one without weights, and what they will be drawn
    from (the state of torch's generator).

    Raises:
        InputError: as `MTPModel`.
    """
    if not _LATER.get():
        return MTPModel(backbone, heads), None
    with torch.device("meta"):
        return MTPModel(backbone, heads), torch.get_rng_state()


def make_sharded(model: MTPModel, drawn_from: Tensor, shard: Callable[[nn.Module], None]) -> MTPModel:
    """The model of these shapes, drawn from that state of the generator.

    Args:
        shard: is given every layer when it has its weights, and leaves this process its part of them.
    """

    def registered(parent: nn.Module, name: str, part: nn.Module | None) -> None:
        if isinstance(part, Block):
            shard(part)

    torch.set_rng_state(drawn_from)
    watch = register_module_module_registration_hook(registered)  # a layer is registered when it has been made
    try:
        return MTPModel(model.config, model.heads_config)
    finally:
        watch.remove()
