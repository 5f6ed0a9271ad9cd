"""Fixtures: the two-layer, 32-wide, 16-symbol models of the unit tests."""

import os
from collections.abc import Callable

import pytest
import torch

from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

torch.set_num_threads(1)
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning uses what is deprecated there


def tiny_backbone(**changes: object) -> BackboneConfig:
    """16 symbols, width 32, two layers: enough for every property, and quick."""
    return BackboneConfig(**{"vocab_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 48} | changes)  # type: ignore[arg-type]


@pytest.fixture
def make_model() -> Callable[..., MTPModel]:
    """`make_model(n_future=4, n_layers=6, seed=0, **backbone)`: a random model in evaluation mode."""

    def make(n_future: int = 1, seed: int = 0, match: str = "parameters", **backbone: object) -> MTPModel:
        torch.manual_seed(seed)
        config = tiny_backbone(**{"n_layers": n_future + 1} | backbone)
        return MTPModel(config, HeadsConfig(n_future=n_future, match=match)).eval()  # type: ignore[arg-type]

    return make
