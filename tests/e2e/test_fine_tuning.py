"""Fine-tuning on answers alone, from weights, on two processes: as one process does it."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from parity import STRATEGIES
from test_strategies import Losses, in_processes
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.schedule import ScheduleConfig

BACKBONE = tiny_backbone(vocab_size=256, n_layers=3, attend_across_documents=False)
STEPS = 8


class Counts(pl.Callback):
    """Targets of head 1 in each batch of this rank."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict[str, Tensor], _: int
    ) -> None:
        self.counts.append(int(batch["loss_mask"].sum()))


def tune(strategy: str, folder: Path) -> tuple[dict[int, float], list[int]]:
    """(loss of each step, targets of rank zero in each batch); its weights at the end go into a file."""
    torch.manual_seed(0)
    module = MTPModule(
        BACKBONE, HeadsConfig(2, "sequential", match="none"), init=InitConfig(str(folder / "base.safetensors"), "copy"),
        optimizer=OptimizerConfig(lr=1e-2), schedule=ScheduleConfig(warmup_steps=2),
    )  # fmt: skip
    data = TokenDataModule(
        SourceConfig(kind="pairs", path=str(folder / "pairs.jsonl")), directory=str(folder / "cache"), context=40,
        batch_size=4, validation_fraction=0.2, val_windows=None, horizon=2, vocab_size=256,
    )  # fmt: skip
    recorder, counts = Losses(), Counts()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1 if strategy == "single" else 2, max_steps=STEPS, gradient_clip_val=0.5,
        strategy="auto" if strategy == "single" else STRATEGIES[strategy](), callbacks=[counts], logger=recorder,
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    weights = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        torch.save(weights, folder / f"{strategy}.pt")
    return recorder.losses, counts.counts


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_answers_count_alike_on_two_ranks(strategy: str, tmp_path: Path) -> None:
    rows = ({"prompt": f"{i} and {i}?", "completion": f"{2 * i}!" * (1 + i % 3 * 4)} for i in range(80))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(1)
    base = MTPModel(BACKBONE, HeadsConfig(1))
    path = tmp_path / "base.safetensors"
    save_safetensors(LoadedModel(path, base, None, 0, None, None), path)

    losses, whole = in_processes("single", tmp_path, run=tune)
    found_losses, half = in_processes(strategy, tmp_path, run=tune)
    assert len(losses) == STEPS
    assert any(abs(2 * mine - both) > both / 5 for mine, both in zip(half, whole)), "equal shares would prove nothing"
    assert found_losses == pytest.approx(losses, rel=2e-5)
    weights, found = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("single", strategy))
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
    moved = [(weights[f"model.{name}"] - weight).abs().max() for name, weight in base.named_parameters()]
    assert max(moved) > 0.02
