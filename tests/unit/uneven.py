"""Steps whose windows have very unequal numbers of targets, in one batch or in several."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from tiny import Recorder, tiny_backbone
from torch import Tensor
from typing_extensions import override

from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import BatchLoader, ResumableLoader
from mtp_lightning.model.config import HeadKind, HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.schedule import ScheduleConfig

ROWS, T = 12, 8


class Uneven(MTPDataModule):
    """The same 12 windows a step, in one batch or in several; the loss mask leaves row r about r + 1 of 12 targets."""

    def __init__(self, batch_size: int, horizon: int = 3, masked: bool = True) -> None:
        super().__init__(horizon=horizon, vocab_size=16)
        self.batch_size, self.masked = batch_size, masked

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        per_step = ROWS // self.batch_size
        generator = torch.Generator().manual_seed(index // per_step)
        tokens = torch.randint(0, 16, (ROWS, T + self.horizon), generator=generator)
        mask = torch.rand(tokens.shape, generator=generator) < (torch.arange(ROWS)[:, None] + 1) / ROWS
        rows = slice(index % per_step * self.batch_size, (index % per_step + 1) * self.batch_size)
        return {"tokens": tokens[rows]} | ({"loss_mask": mask[rows]} if self.masked else {})

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(self)

    @override
    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self, 4)


def fit(
    folder: Path,
    batch_size: int,
    data: MTPDataModule | None = None,
    kind: HeadKind = "parallel",
    on_divergence: Literal["stop", "go_on"] = "stop",
    **trainer: Any,
) -> Recorder:
    """Four steps of a tiny model."""
    recorder, accumulate = Recorder(), ROWS // batch_size
    pl.seed_everything(0, verbose=False)
    module = MTPModule(
        tiny_backbone(n_layers=4),
        HeadsConfig(n_future=3, kind=kind),
        optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=1),
        on_divergence=on_divergence,
    )
    pl.Trainer(
        **{
            "max_steps": 4, "max_epochs": 1, "accelerator": "cpu", "logger": recorder, "log_every_n_steps": 1,
            "accumulate_grad_batches": accumulate, "val_check_interval": 2 * accumulate,
            "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False, "gradient_clip_val": 1.0, "default_root_dir": folder,
            "use_distributed_sampler": False, **trainer,
        }
    ).fit(module, datamodule=data or Uneven(batch_size))  # fmt: skip
    return recorder
