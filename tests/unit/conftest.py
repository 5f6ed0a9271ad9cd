"""Fixtures: the models of the unit tests; one thread, as many tests run side by side with others."""

import os
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

torch.set_num_threads(1)
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning uses what is deprecated there


@pytest.fixture
def make_model() -> Callable[..., MTPModel]:
    """`make_model(n_future=4, n_layers=6, seed=0, **backbone)`: a random model in evaluation mode."""

    def make(n_future: int = 1, seed: int = 0, match: str = "parameters", **backbone: object) -> MTPModel:
        torch.manual_seed(seed)
        config = tiny_backbone(**{"n_layers": n_future + 1} | backbone)
        return MTPModel(config, HeadsConfig(n_future=n_future, match=match)).eval()  # type: ignore[arg-type]

    return make


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Without the check of shapes, as in training: for tests that compare values of thousands of tiny forwards, where
    it takes two thirds of the time. Other tests of the same functions have their shapes checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
