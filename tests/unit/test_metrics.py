"""Means over what was really counted: under accumulation, in half precision, of bytes, of heads without targets."""

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from tiny import tiny_backbone
from typing_extensions import override
from uneven import Uneven, fit

from mtp_lightning.data.loader import ResumableLoader
from mtp_lightning.errors import InputError
from mtp_lightning.metrics import HeadMetrics, training_means, validation_means
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.loss import HeadScores, LossOutput


@pytest.mark.parametrize("kind", ["parallel", "order", pytest.param("future_summary", marks=pytest.mark.slow), "none"])
def test_accumulated_batches_train_as_one(tmp_path: Path, kind: str) -> None:
    """12 windows at once, or 4, 3 or 1 at a time: the same losses, gradients and next weights."""
    (whole, *others) = [fit(tmp_path, size, kind=kind).last_by_step("train/") for size in (12, 4, 1)]
    assert set(whole) == {1, 2, 3, 4}
    for other in others:
        for step, metrics in whole.items():
            assert other[step] == pytest.approx(metrics, rel=2e-5), f"step {step}"


@pytest.mark.parametrize("batch_size", [12, 3])
def test_the_objective_is_the_sum_of_its_heads(tmp_path: Path, batch_size: int) -> None:
    for metrics in fit(tmp_path, batch_size).last_by_step("train/").values():
        heads = [metrics[f"train/loss/head_{i}"] * metrics[f"train/weight/head_{i}"] for i in (1, 2, 3)]
        assert metrics["train/loss"] == pytest.approx(sum(heads), rel=1e-6)


def test_a_loader_that_does_not_look_ahead_is_refused(tmp_path: Path) -> None:
    class Short(Uneven):
        @override
        def train_dataloader(self) -> ResumableLoader:
            return ResumableLoader(self, self.n_train_batches)

    with pytest.raises(InputError, match=r"accumulate_grad_batches is 3: .* training_loader"):
        fit(tmp_path, 4, Short(4))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_counts_exactly(tmp_path: Path, precision: str) -> None:
    """400 batches of 2.1 nats: bfloat16 cannot count beyond 256, float16 not to its own largest number."""
    plugin = pl.Trainer(precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False).strategy
    module = plugin.precision_plugin.convert_module(MTPModule(tiny_backbone(n_layers=4), HeadsConfig(n_future=3)))
    metrics = module.val_metrics
    for _ in range(400):
        metrics.update(HeadScores(torch.full((3,), 2.1 * 64), torch.full((3,), 48), torch.full((3,), 64)))
    found = validation_means(["a", "b", "c"], metrics.compute())
    assert found["val/loss"] == pytest.approx(6.3, rel=1e-6)
    assert found["val/accuracy/a"] == 0.75


def test_it_follows_its_module_to_a_device() -> None:
    assert HeadMetrics(2).to(torch.device("meta"), torch.float16).nll.device.type == "meta"


def test_a_head_that_diverged_is_not_left_out() -> None:
    """NaN where there are targets, and nothing where there are none."""
    metrics = HeadMetrics(3)
    metrics.update(HeadScores(torch.tensor([4.0, math.nan, 0.0]), torch.zeros(3), torch.tensor([2, 2, 0])))
    found = validation_means(["a", "b", "c"], metrics.compute())
    assert math.isnan(found["val/loss"])
    assert found["val/loss/a"] == 2.0
    metrics.reset()
    metrics.update(HeadScores(torch.tensor([4.0, 6.0, 0.0]), torch.zeros(3), torch.tensor([2, 2, 0])))
    found = validation_means(["a", "b", "c"], metrics.compute())
    assert found["val/loss"] == 5.0
    assert math.isnan(found["val/loss/c"])
    assert "val/bits_per_byte" not in found


def test_bits_per_byte_are_over_the_bytes_that_were_scored() -> None:
    metrics = HeadMetrics(1)
    metrics.update(HeadScores(torch.tensor([math.log(2) * 30]), torch.zeros(1), torch.tensor([7])), torch.tensor(10))
    metrics.update(HeadScores(torch.tensor([math.log(2) * 10]), torch.zeros(1), torch.tensor([3])), torch.tensor(6))
    assert validation_means(["head_1"], metrics.compute())["val/bits_per_byte"] == pytest.approx(40 / 16)


def test_training_means_weigh_batches_by_their_targets() -> None:
    outs = [
        LossOutput(torch.tensor(1.5), torch.tensor([9.0, 0.0]), torch.tensor([9, 0])),
        LossOutput(torch.tensor(2.5), torch.tensor([3.0, 0.0]), torch.tensor([1, 0])),
    ]
    assert training_means(["head_1", "head_2"], outs, (1.0, 0.5)) == {
        "train/loss": 2.0,
        "train/loss/head_1": 1.2,
        "train/loss/head_2": 0.0,
        "train/weight/head_1": 1.0,
        "train/weight/head_2": 0.5,
    }
