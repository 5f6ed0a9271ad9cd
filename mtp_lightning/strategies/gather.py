"""An ordinary model out of a run whose weights are spread over processes."""

import lightning.pytorch as pl
import torch

from mtp_lightning.model.mtp import MTPModel


def full_model(trainer: pl.Trainer, pl_module: pl.LightningModule) -> MTPModel | None:
    """The run's model in evaluation mode on rank zero, None on all others; every rank has to call it.

    Sharded weights are gathered into a copy; elsewhere it is the very model, whose mode is the caller's to restore.
    Random states stay as they are.
    """
    model = pl_module.model
    assert isinstance(model, MTPModel)
    if not getattr(trainer.strategy, "is_sharded", False):
        return model.eval() if trainer.is_global_zero else None
    state = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return None
    with torch.random.fork_rng(devices=[]):  # made on the CPU; its initial weights are drawn, and thrown away
        copy = MTPModel(model.config, model.heads_config)
    copy.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    return copy.to(pl_module.device).eval()
