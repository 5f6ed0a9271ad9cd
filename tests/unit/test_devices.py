"""Nothing of a step is on another device than its model and batch. Without a GPU here, `meta` is the other device: as
on a GPU, an operation on tensors of two devices is an error."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.metrics import HeadMetrics
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import count_targets, model_loss, model_scores
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.objective.teacher_config import TeacherConfig


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The other device; autocast, which knows real ones alone, is off there."""
    is_enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def enabled(kind: str) -> bool:
        return kind != "meta" and is_enabled(kind)

    def entered(kind: str, *args: Any, **options: Any) -> Any:
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, *args, **options)

    monkeypatch.setattr(torch, "is_autocast_enabled", enabled)
    monkeypatch.setattr(torch, "autocast", entered)
    return torch.device("meta")


def test_two_devices_are_an_error(elsewhere: torch.device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=elsewhere) / torch.ones(2)


@pytest.mark.parametrize(
    ("heads", "implementation"),
    [(heads, "chunked") for heads in VARIANTS.values()]
    + [(VARIANTS[name], other) for name in ("none", "order") for other in ("naive", "checkpointed")]
    + [(VARIANTS["leap"], way) for way in ("chunked lk_lambda", "naive lk_lambda")],
    ids=str,
)
def test_a_step_stays_on_its_device(heads: HeadsConfig, implementation: Any, elsewhere: torch.device) -> None:
    """Targets, loss, gradients and scores, with everything that may be given and with nothing of it."""
    model = MTPModel(tiny_backbone(n_layers=3), replace(heads, match="none")).to(elsewhere)
    window = torch.zeros(2, 9 + heads.horizon, dtype=torch.long, device=elsewhere)
    implementation, _, target = implementation.partition(" ")
    teacher = TeacherConfig(top=3) if target else TeacherConfig()
    options = LossOptions(implementation, z_loss=1e-4, target=target or "token", teacher=teacher)  # type: ignore[arg-type]
    for masks in ((), (window, window > 0, window > 0)):
        targets = make_targets(heads, window, *masks)
        weights = (0.5,) * len(heads.loss_names) if masks else None
        mean_count = count_targets(targets, options, heads) / 2 if masks else None
        out = model_loss(model, targets, None, weights, options, mean_count)
        assert {field.device for field in (*out[:3], *(out.teacher or ()))} == {elsewhere}
        out.total.backward()
    metrics = HeadMetrics(len(heads.loss_names)).to(elsewhere)
    metrics.update(model_scores(model, targets))
    assert metrics.compute().device == elsewhere


def test_metrics_follow_a_strategy_that_moves_parameters_alone(elsewhere: torch.device) -> None:
    """As ZeRO-3 does on a GPU."""
    module = MTPModule(tiny_backbone(), HeadsConfig())
    module._device = elsewhere
    module.on_validation_epoch_start()
    assert module.val_metrics.nll.device == elsewhere
