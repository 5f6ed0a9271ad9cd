"""Layers that are recomputed have the gradients of those that are kept, bit for bit, and keep less."""

from typing import Any

import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.memory import layers_run, recomputed_flops, training_memory
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.recompute import Recompute, recompute_model, recomputed_parts
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets

KINDS: list[Recompute] = ["layers", "attention", {"every": 2}]
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in VARIANTS),
    ("parallel", {"attend_across_documents": False}),
    ("sequential", {"n_kv_heads": 1, "qk_norm": True, "attention_bias": "qkv"}),
]


def gradients(model: MTPModel, rows: int = 2, T: int = 12, documents: bool = True) -> list[Tensor]:
    heads = model.heads_config
    generator = torch.Generator().manual_seed(1)
    window = torch.randint(0, 16, (rows, T + heads.horizon), generator=generator)
    ids = (torch.rand(window.shape, generator=generator) < 0.2).cumsum(1) if documents else None
    model.zero_grad()
    targets = make_targets(heads, window, ids)
    model_loss(model, targets, None if ids is None else ids[:, :T]).total.backward()
    found = [p.grad for p in model.parameters()]
    return [torch.zeros(()) if grad is None else grad.clone() for grad in found]


@pytest.mark.parametrize(("name", "features"), SETTINGS, ids=str)
def test_gradients_are_the_same_bit_for_bit(name: str, features: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=6, **features), VARIANTS[name])
    expected = gradients(model)
    for recompute in KINDS:
        recompute_model(model, recompute)
        assert all(map(torch.equal, gradients(model), expected)), recompute


def test_in_half_precision_too() -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=4), HeadsConfig(n_future=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(model)
        recompute_model(model, "layers")
        assert all(map(torch.equal, gradients(model), expected))


def kept_bytes(recompute: Recompute) -> int:
    """Of what a forward keeps for its backward."""
    torch.manual_seed(0)
    model = MTPModel(BackboneConfig(vocab_size=16, dim=64, n_layers=6, n_heads=2, ffn_dim=128), HeadsConfig(n_future=2))
    recompute_model(model, recompute)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    targets = make_targets(model.heads_config, torch.randint(0, 16, (2, 66)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        h = model(targets.inputs)
    del h
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_less_is_kept() -> None:
    none, attention, half, layers = (kept_bytes(kind) for kind in ("none", "attention", {"every": 2}, "layers"))
    assert layers < 0.35 * none
    assert layers < half < 0.75 * none
    assert layers < attention < 0.9 * none


def test_every_kth_layer_from_the_first() -> None:
    assert recomputed_parts({"every": 3}, 3, 2) == ["layer", "none", "none", "layer", "none"]
    assert recomputed_parts({"every": 1}, 1, 1) == recomputed_parts("layers", 1, 1)


def test_more_layers_than_there_are_is_refused_by_its_key() -> None:
    with pytest.raises(InputError, match=r"model.recompute.every is 7: the model has 6 layers, those of its heads"):
        MTPModule(tiny_backbone(n_layers=6), HeadsConfig(n_future=3), recompute={"every": 7})


def test_a_forward_without_gradients_recomputes_nothing() -> None:
    model = MTPModel(tiny_backbone(), HeadsConfig())
    recompute_model(model, "layers")
    runs: list[int] = []
    model.trunk[0].attention_norm.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.long))
    assert len(runs) == 1
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert len(runs) == 3


@pytest.mark.parametrize("name", ["parallel", "sequential", "recurrent", "linear", "two layers a head"])
def test_recomputed_flops_by_formula_are_those_that_torch_counts(name: str) -> None:
    """One more forward of the layers: counted with and without, on the meta device; but causal attention costs half."""
    backbone, heads, T = tiny_backbone(n_layers=6), VARIANTS[name], 16
    found = {}
    for recompute in ("none", "layers", "attention"):
        with torch.device("meta"):
            model = MTPModel(backbone, heads)
            tokens, ahead = torch.zeros(1, T, dtype=torch.long), torch.zeros(heads.n_future, 1, T, dtype=torch.long)
            recompute_model(model, recompute)  # type: ignore[arg-type]
            with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
                model(tokens, ahead_NBT=ahead).sum().backward()
        found[recompute] = counter.get_total_flops()
    runs = len(layers_run(backbone, heads, T, "none", "layers"))
    half = runs * 2 * T * T * backbone.q_dim
    for recompute in ("layers", "attention"):
        more = T * recomputed_flops(backbone, heads, T, recompute=recompute)  # type: ignore[arg-type]
        assert found[recompute] - found["none"] == more + half


def test_memory_by_formula_follows() -> None:
    backbone, heads = tiny_backbone(n_layers=6), VARIANTS["parallel"]
    kinds: list[Recompute] = ["none", {"every": 2}, "attention", "layers"]
    none, half, attention, layers = (training_memory(backbone, heads, 4, 64, 4, recompute=kind) for kind in kinds)
    assert layers < min(half, attention) < max(half, attention) < none
