"""Weights that are sharded as they are made: the same as one process draws, and no process has them whole."""

import ctypes
import resource
from hashlib import sha256
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from parity import STRATEGIES
from test_strategies import Random, in_processes
from tiny import tiny_backbone

from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.training.later import made_later
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.schedule import ScheduleConfig

HEADS = {
    "parallel": HeadsConfig(n_future=3),
    "recurrent": HeadsConfig(n_future=3, kind="recurrent"),
    "linear": HeadsConfig(n_future=3, kind="linear"),
    "unembeddings of their own": HeadsConfig(n_future=3, replicate_unembedding=True),
}


def fit(strategy: str, backbone: BackboneConfig, heads: HeadsConfig, steps: int, *callbacks: pl.Callback) -> None:
    torch.manual_seed(5)
    with made_later(strategy in ("fsdp2", "zero3")):
        module = MTPModule(backbone, heads, schedule=ScheduleConfig(warmup_steps=0))
    assert all(weight.is_meta for weight in module.parameters()) == (strategy in ("fsdp2", "zero3"))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1 if strategy == "single" else 2, max_steps=steps, max_epochs=1, logger=False,
        strategy="auto" if strategy == "single" else STRATEGIES[strategy](), callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Random(horizon=heads.horizon, vocab_size=16))


def first_weights(strategy: str, name: str, tied: bool) -> dict[str, str]:
    """Digests of all weights as training begins."""
    found: dict[str, str] = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            state = trainer.strategy.lightning_module_state_dict()
            found.update({name: sha256(weight.numpy()).hexdigest() for name, weight in state.items()})

    fit(strategy, tiny_backbone(n_layers=5, tie_embeddings=tied), HEADS[name], 1, Look())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", HEADS)
def test_first_weights_are_those_of_one_process(strategy: str, name: str, tied: bool) -> None:
    whole, sharded = (in_processes(one, name, tied, run=first_weights) for one in ("single", strategy))
    assert whole == sharded


WIDE = BackboneConfig(vocab_size=16, dim=1024, n_layers=25, n_heads=16, ffn_dim=2816)
"""About 320 M parameters."""
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt."""


def peak(strategy: str) -> float:
    """GB that training took beyond what the process had, at the most."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # what is freed goes back: this is about what is held
    before = resident()
    fit(strategy, WIDE, HeadsConfig(n_future=2), 2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


@pytest.mark.slow
def test_of_two_processes_none_ever_has_more_than_two_thirds() -> None:
    """Weights, gradients and states of one process are 16 bytes a parameter; batches here are next to nothing."""
    whole, sharded = (in_processes(one, run=peak) for one in ("single", "fsdp2"))
    print(f"{sharded:.2f} of {whole:.2f} GB, {sharded / whole:.2f}")
    assert sharded < 0.65 * whole
