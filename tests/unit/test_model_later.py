"""A model that is made later is the one that would have been made at once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_backbone
from torch import nn

from mtp_lightning.model.block import Block
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.later import made_later, make_model, make_sharded
from mtp_lightning.strategies.check import shards_as_made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("more", [{}, {"kind": "recurrent"}, {"replicate_unembedding": True}], ids=str)
def test_it_has_the_same_weights_and_leaves_the_same_numbers(more: Any, tied: bool) -> None:
    heads = HeadsConfig(n_future=3, **more)
    backbone = tiny_backbone(n_layers=4, tie_embeddings=tied)
    torch.manual_seed(3)
    at_once, following = MTPModel(backbone, heads), torch.rand(1)
    torch.manual_seed(3)
    with made_later():
        shapes, drawn_from = make_model(backbone, heads)
    assert drawn_from is not None
    assert all(weight.is_meta for weight in shapes.parameters())
    torch.rand(5)  # whatever is drawn until the processes have met
    layers: list[nn.Module] = []
    later = make_sharded(shapes, drawn_from, layers.append)
    assert torch.equal(torch.rand(1), following)
    assert layers == [part for part in later.modules() if isinstance(part, Block)]
    expected = at_once.state_dict()
    assert expected.keys() == later.state_dict().keys()
    assert [name for name, weight in later.state_dict().items() if not torch.equal(weight, expected[name])] == []


def test_a_layer_is_sharded_before_the_next_one_is_made() -> None:
    backbone, heads = tiny_backbone(n_layers=4), HeadsConfig(n_future=2)
    with made_later():
        shapes, drawn_from = make_model(backbone, heads)
    assert drawn_from is not None
    drawn = []

    def shard(layer: nn.Module) -> None:
        drawn.append(torch.get_rng_state().sum().item())

    make_sharded(shapes, drawn_from, shard)
    assert len(set(drawn)) == len(shapes.blocks()) == 4


def test_outside_it_is_made_at_once() -> None:
    with made_later():
        pass
    model, drawn_from = make_model(tiny_backbone(n_layers=4), HeadsConfig())
    assert drawn_from is None
    assert not any(weight.is_meta for weight in model.parameters())


def test_which_strategies_have_no_weights_whole() -> None:
    def of(path: str, stage: int = 2) -> SimpleNamespace:
        return SimpleNamespace(class_path=path, init_args=SimpleNamespace(stage=stage))

    zero, fsdp2 = "mtp_lightning.strategies.zero.ZeroStrategy", "mtp_lightning.strategies.fsdp2.FSDP2Strategy"
    assert shards_as_made(of(fsdp2), begun=True, frozen=True)
    assert shards_as_made(of(zero, 3), begun=False, frozen=False)
    assert not any(shards_as_made(of(zero, 3), begun, not begun) for begun in (True, False))
    assert not any(shards_as_made(one, False, False) for one in ("auto", "ddp", zero, of(zero, 2)))
