"""Muon beside AdamW: which weights each has, torch's own steps bit for bit, and sharded matrices as whole ones."""

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.signature import signature
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.freezing import freeze_model
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw
from mtp_lightning.optimization.muon import MuonWithAdamW, make_optimizer
from mtp_lightning.strategies.check import check_optimizer

MUON = OptimizerConfig(kind="muon", lr=0.02, momentum=0.9)


def model(seed: int = 0, heads: HeadsConfig = VARIANTS["sequential"]) -> MTPModel:
    torch.manual_seed(seed)
    return MTPModel(tiny_backbone(n_layers=5, attention_bias="qkv", qk_norm=True), heads)


def give_gradients(parameters: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_of_layers_are_muons_and_the_rest_adamws(variant: str) -> None:
    made = model(heads=VARIANTS[variant])
    optimizer = make_optimizer(made.named_parameters(), MUON)
    assert isinstance(optimizer, MuonWithAdamW)
    matrices, decayed, plain = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    beside = re.compile(r"(further_)?(un)?embeddings?\.|before\.|mixture\.gate\.")  # to and from tokens; few rows
    inside = {id(p) for name, p in made.named_parameters() if p.ndim == 2 and not beside.match(name)}
    assert matrices == inside
    assert decayed == {id(p) for p in made.parameters() if p.ndim == 2} - inside
    assert plain == {id(p) for p in made.parameters() if p.ndim == 1}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_each_step_is_torchs_own() -> None:
    ours, theirs = model(), model()
    optimizer = make_optimizer(ours.named_parameters(), MUON)
    inside = [p for part in (theirs.trunk, theirs.heads) for p in part.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if not any(p is q for q in inside)]
    muon = torch.optim.Muon(inside, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = make_adamw(others, MUON)
    for seed in range(3):
        give_gradients(ours.parameters(), seed)
        give_gradients(theirs.parameters(), seed)
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.02 / (1 + seed)
        for one in (optimizer, muon, adamw):
            one.step()  # type: ignore[no-untyped-call]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_state_that_was_saved_goes_on_bit_for_bit() -> None:
    whole, parts = model(), model()
    optimizers = [make_optimizer(one.named_parameters(), MUON) for one in (whole, parts)]
    for seed in range(4):
        if seed == 2:
            saved = io.BytesIO()
            torch.save(optimizers[1].state_dict(), saved)
            saved.seek(0)
            optimizers[1] = make_optimizer(parts.named_parameters(), MUON)
            optimizers[1].load_state_dict(torch.load(saved, weights_only=True))
        for one, optimizer in zip((whole, parts), optimizers):
            give_gradients(one.parameters(), seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_matrices_step_as_whole_ones(alone: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    generator = torch.Generator().manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 4), (3, 9))]
    sharded = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in whole]
    optimizers = [MuonWithAdamW(matrices, [], MUON) for matrices in (whole, sharded)]
    for seed in range(3):
        give_gradients(whole, seed)
        for p, q in zip(sharded, whole):
            p.grad = distribute_tensor(q.grad.clone(), mesh, [Shard(0)])  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(sharded, whole):
        torch.testing.assert_close(p.full_tensor(), q, rtol=1e-6, atol=1e-6)  # type: ignore[attr-defined]
        one, other = optimizers[1].state[p]["momentum_buffer"], optimizers[0].state[q]["momentum_buffer"]
        assert torch.equal(one.full_tensor(), other)


def test_what_is_frozen_is_left_out() -> None:
    made = model()
    freeze_model(made, "trunk")
    optimizer = make_optimizer(made.named_parameters(), MUON)
    trained = {id(p) for p in made.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    for p in (*made.trunk.parameters(), *made.heads.parameters()):
        p.requires_grad_(False)
    assert isinstance(make_optimizer(made.named_parameters(), MUON), torch.optim.AdamW)


def test_zero_refuses_muon_by_name() -> None:
    zero = {"class_path": "mtp_lightning.strategies.zero.ZeroStrategy"}
    with pytest.raises(InputError, match=r"model\.optimizer\.kind is 'muon': ZeroStrategy cuts"):
        check_optimizer("muon", type("Zero", (), zero))
    for kind, strategy in (("adamw", type("Zero", (), zero)), ("muon", "ddp")):
        check_optimizer(kind, strategy)


def test_cells_with_adamw_keep_their_names() -> None:
    before = {"model": {"optimizer": {"lr": 0.1}}}
    after = {"model": {"optimizer": {"lr": 0.1, "kind": "adamw", "momentum": 0.95}}}
    assert signature(after) == signature(before)
    assert signature({"model": {"optimizer": {"lr": 0.1, "kind": "muon", "momentum": 0.95}}}) != signature(before)
