"""Heads that are run again one at a time (`model.recompute: heads`): the same gradients, one head's states at once."""

from typing import Any

import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import INDEPENDENT, HeadKind, HeadsConfig
from mtp_lightning.model.memory import recomputed_flops
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.freezing import freeze_model
from mtp_lightning.model.training.recompute import HEADS, Recompute, recompute_model
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.loss import LossOptions, LossOutput
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.objective.weights import LossConfig

ALONE: tuple[HeadKind, ...] = ("causal", "recurrent", "none", "markov", "mixture")
SINGLE = {f"one {kind}": HeadsConfig(n_future=1, kind=kind) for kind in ALONE}
CAN = {name: heads for name, heads in VARIANTS.items() if heads.kind in INDEPENDENT} | SINGLE
PARALLEL = HeadsConfig(n_future=3)


def make_model(heads: HeadsConfig, recompute: Recompute = "none", **changes: object) -> MTPModel:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=6, init_std=0.3, **changes), heads).double()
    recompute_model(model, recompute)
    return model


def losses(model: MTPModel, **options: Any) -> LossOutput:
    """Two documents in each window, the second loss weighed 0.5, head 3's 0."""
    heads = model.heads_config
    window = torch.randint(0, 16, (2, 12 + heads.horizon), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(window.shape[1]) > 7).long().expand(window.shape)
    weights = [1.0, 0.5, 0.0][: heads.n_future]
    return model_loss(model, make_targets(heads, window, documents), documents[:, :12], weights, LossOptions(**options))


def gradients(model: MTPModel, **options: Any) -> list[Tensor | None]:
    model.zero_grad()
    losses(model, **options).total.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"z_loss": 0.01, "chunk_rows": 5}) for name in CAN),
        *(("parallel", {"stop_gradient": stop}) for stop in ("trunk", "unembedding", "both")),
        *(("parallel", {"implementation": name}) for name in ("naive", "checkpointed", "fused")),
    ],
)
def test_losses_and_gradients_are_those_of_heads_that_are_kept(name: str, options: dict[str, Any]) -> None:
    kept = make_model(CAN[name])
    expected = losses(kept, **options)
    for recompute in HEADS:
        model = make_model(CAN[name], recompute)
        for ours, theirs in zip(losses(model, **options), expected):
            torch.testing.assert_close(ours, theirs)
        for found, wanted in zip(gradients(model, **options), gradients(kept, **options), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("dtype", "autocast"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_gradients_differ_in_16_bits(dtype: str, autocast: bool) -> None:
    """So there it is part of a cell's signature; in float32 it is not."""
    models = [make_model(PARALLEL, recompute).to(getattr(torch, dtype)) for recompute in ("none", "heads")]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept, again = (torch.cat([p.flatten().double() for p in gradients(model) if p is not None]) for model in models)
    difference = float((kept - again).norm() / kept.norm())
    assert difference < 1e-6 if dtype == "float32" and not autocast else difference > 1e-4


@pytest.mark.parametrize("freeze", ["trunk", "trunk_and_unembedding", "next_token"])
def test_what_is_frozen_has_no_gradient_and_the_rest_the_same(freeze: Any) -> None:
    kept, model = make_model(PARALLEL), make_model(PARALLEL, "heads")
    for each in (kept, model):
        freeze_model(each, freeze)
    for found, wanted in zip(gradients(model), gradients(kept), strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_a_head_is_finished_before_the_next_one_is_run_again() -> None:
    model = make_model(PARALLEL, "heads")
    events: list[str] = []
    for i, head in enumerate(model.heads, start=1):
        head.register_forward_hook(lambda *_, i=i: events.append(f"run {i}"))
        head[0].register_full_backward_hook(lambda *_, i=i: events.append(f"done {i}"))
    total = losses(model).total
    assert events == ["run 1", "run 2", "run 3"]
    total.backward()
    assert events[3:] == ["run 3", "done 3", "run 2", "done 2", "run 1", "done 1"]


def kept_bytes(heads: HeadsConfig) -> int:
    """Of all that heads and losses keep for their backward; their trunk is the same one layer."""
    model = make_model(heads, "heads")
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        total = losses(model).total
    assert total.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_nothing_that_is_kept_grows_with_the_heads() -> None:
    few, many = (kept_bytes(HeadsConfig(n_future=n, match="none")) for n in (1, 3))
    assert abs(many - few) < 64, "a few scalars alone"


@pytest.mark.parametrize("name", ["parallel", "linear", "two layers a head"])
def test_flops_are_the_formulas_so_the_first_run_forms_no_gradient(name: str) -> None:
    heads, T, counts = VARIANTS[name], 12, {}
    for recompute in ("none", "heads"):
        model = make_model(heads, recompute)  # type: ignore[arg-type]
        with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
            losses(model).total.backward()
        counts[recompute] = counter.get_total_flops()
    more = 2 * T * recomputed_flops(model.config, heads, T, recompute="heads")
    layers = 0 if name == "linear" else heads.n_future * heads.layers
    attention = 2 * layers * 2 * T * T * model.config.q_dim  # torch does not count a processor's
    assert counts["heads"] - counts["none"] == more - attention


def test_heads_that_read_each_other_or_are_taught_are_refused_by_the_key() -> None:
    for heads in (*VARIANTS.values(), HeadsConfig(kind="order")):
        if heads not in CAN.values():
            with pytest.raises(InputError, match=f"'{heads.kind}': only heads that read the trunk alone"):
                make_model(heads, "heads")
    taught = LossConfig(target="tv")
    with pytest.raises(InputError, match=r"model\.recompute is 'heads', and model\.loss\.target is 'tv'"):
        MTPModule(tiny_backbone(n_layers=6), PARALLEL, taught, recompute="heads")
    MTPModule(tiny_backbone(n_layers=6), HeadsConfig(), taught, recompute="heads")  # one head has no teacher
