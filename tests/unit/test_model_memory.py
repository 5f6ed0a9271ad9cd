"""How much memory a step takes, by formula, against what a step takes (`mtp_lightning.model.memory`)."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mtp_lightning.bench.harness import peak_memory_bytes
from mtp_lightning.config.memory import MemorySettings
from mtp_lightning.model.block import Block, Recomputed
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import trainable_parameters
from mtp_lightning.model.memory import layer_memory, state_memory, training_memory
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.rope import Rotary
from mtp_lightning.model.training.freezing import Freeze, freeze_model
from mtp_lightning.model.training.recompute import Recompute, recompute_model
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.muon import make_optimizer

MIB = 2**20


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("recomputed", ["none", "attention", "layer"])
def test_what_a_layer_keeps_is_what_autograd_saves(bf16: bool, grouped: bool, recomputed: Recomputed) -> None:
    dim, T, rows = 128, 256, 2
    backbone = BackboneConfig(vocab_size=16, dim=dim, n_heads=4, n_kv_heads=2 if grouped else None, ffn_dim=320)
    block = Block(backbone)
    block.recomputed = recomputed
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    copies = {tuple(p.shape) for p in block.parameters()} | {tuple(p.t().shape) for p in block.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights and tuple(x.shape) not in copies:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    x = torch.randn(rows, T, dim, requires_grad=True)
    rotary = Rotary(backbone)(torch.arange(T))
    with saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = block(x, rotary)
    kept[x.untyped_storage().data_ptr()] = x  # a checkpoint keeps its input by itself
    assert y.requires_grad
    found = sum(x.untyped_storage().nbytes() for x in kept.values())
    formula = rows * T * layer_memory(backbone, 320, T, 2 if bf16 else 4)[recomputed]
    assert formula == pytest.approx(found, rel=0.05 if recomputed == "none" else 0.12)  # masks and angles are left out


@pytest.mark.parametrize("name", ["markov", "mixture", "replicated", "order", "future_summary"])
def test_states_by_formula_are_muons_and_adamws(name: str) -> None:
    model = MTPModel(tiny_backbone(n_layers=6), VARIANTS[name])
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(kind="muon"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x) and x.ndim]
    found = sum(4 * x.numel() for x in (*kept, *model.parameters(), *model.parameters()))
    norms = sum(4 * p.numel() for p in model.parameters() if p.ndim == 1)  # of which the formula takes none for AdamW's
    assert found == state_memory(model.config, VARIANTS[name], optimizer="muon") + norms


def test_markov_heads_are_parallel_ones_and_a_bigram() -> None:
    def estimate(kind: str, vocab_size: int, rank: int | None = None) -> int:
        heads = HeadsConfig(n_future=4, kind=kind, match="none", markov_rank=rank)
        return training_memory(tiny_backbone(n_layers=6, vocab_size=vocab_size), heads, 2, 512, 4)

    assert estimate("markov", 16, 1) == pytest.approx(estimate("parallel", 16), abs=10**5)
    more = estimate("markov", 10**6, 32) - estimate("parallel", 10**6)
    # two matrices with their moments, the two of 64 columns for all the loss's gradients, and the copy of 64 columns
    assert more == pytest.approx(4 * 10**6 * (2 * 32 * 3 + 32 + 64), rel=0.02)


class Case(NamedTuple):
    """One configuration of a run."""

    heads: HeadsConfig
    vocab_size: int
    rows: int
    context: int
    bf16: bool = False
    recompute: Recompute = "none"
    optimizer: str = "adamw"
    accumulated: int = 1
    freeze: Freeze = "none"
    tied: bool = False

    @property
    def backbone(self) -> BackboneConfig:
        return BackboneConfig(
            vocab_size=self.vocab_size, dim=256, n_layers=10, n_heads=4, n_kv_heads=2, ffn_dim=768,
            tie_embeddings=self.tied,
        )  # fmt: skip

    def estimate(self) -> int:
        settings = MemorySettings.of(
            "bf16-mixed" if self.bf16 else "32-true", False, self.optimizer, self.accumulated, None, self.vocab_size
        )
        return training_memory(
            self.backbone, self.heads, self.rows, self.context, freeze=self.freeze, recompute=self.recompute,
            **settings._asdict(),
        )  # fmt: skip


CASES = {
    "plain": Case(HeadsConfig(), 4096, 4, 512),
    "large vocabulary, bf16": Case(HeadsConfig(n_future=4), 32000, 2, 512, bf16=True),
    "sequential, layers recomputed": Case(
        HeadsConfig(n_future=4, kind="sequential"), 4096, 2, 1024, recompute="layers"
    ),
    "heads one at a time": Case(HeadsConfig(n_future=8), 16000, 2, 512, recompute="heads"),
    "Muon, bf16, attention recomputed": Case(
        HeadsConfig(n_future=2), 8192, 1, 2048, bf16=True, recompute="attention", optimizer="muon"
    ),
    "accumulated, tied": Case(HeadsConfig(n_future=2), 16000, 4, 256, recompute={"every": 2}, accumulated=2, tied=True),
    "registers": Case(HeadsConfig(n_future=4, kind="registers"), 4096, 4, 512),
    "registers, long, bf16": Case(HeadsConfig(n_future=4, kind="registers"), 8192, 1, 2048, bf16=True),
    "markov": Case(HeadsConfig(n_future=4, kind="markov", markov_rank=128), 16000, 4, 512),
    "next_latent": Case(HeadsConfig(n_future=4, kind="next_latent"), 4096, 4, 512),
    "fetch": Case(HeadsConfig(n_future=4, kind="fetch"), 4096, 4, 512),
    "fetch, bf16": Case(HeadsConfig(n_future=8, kind="fetch"), 256, 4, 512, bf16=True),
    "future_summary": Case(HeadsConfig(n_future=12, kind="future_summary"), 16000, 2, 512),
    "mixture": Case(HeadsConfig(n_future=3, kind="mixture", mixture_rank=4), 256, 4, 512),
    "a frozen trunk": Case(HeadsConfig(n_future=4, kind="linear"), 4096, 4, 512, freeze="trunk"),
}


def prepared(case: Case) -> Callable[[], None]:
    """A step as `MTPModule` makes it, after one that has made the optimizer's state."""
    torch.manual_seed(0)
    model = MTPModel(case.backbone, case.heads)
    freeze_model(model, case.freeze)
    recompute_model(model, case.recompute)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(kind=case.optimizer))  # type: ignore[arg-type]
    window = torch.randint(0, case.vocab_size, (case.rows, case.context + case.heads.horizon))

    def step() -> None:
        for _ in range(case.accumulated):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.bf16):
                total = model_loss(model, make_targets(case.heads, window)).total
            total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_15_percent_of_what_is_measured(name: str) -> None:
    """`pytest -m slow -s -k within_15 tests/unit/test_model_memory.py` prints the table of the manual."""
    case = CASES[name]
    gradients = 4 * trainable_parameters(case.backbone, case.heads, case.freeze)
    always = state_memory(case.backbone, case.heads, case.freeze, case.optimizer) - gradients
    measured = always + peak_memory_bytes(prepared, 1, case)
    print(f"| {name} | {measured / MIB:.0f} | {case.estimate() / MIB:.0f} | {case.estimate() / measured:.2f} |")
    assert case.estimate() == pytest.approx(measured, rel=0.15)
