"""The recipe of table S13: which weights decay, and the learning rate at every step."""

import math

import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw
from mtp_lightning.optimization.schedule import ScheduleConfig, learning_rate_factor


def test_matrices_decay_and_gains_do_not() -> None:
    model = MTPModel(tiny_backbone(n_layers=3), HeadsConfig(n_future=2))
    optimizer = make_adamw(model.parameters(), OptimizerConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1), name


def test_frozen_weights_are_left_out() -> None:
    model = MTPModel(tiny_backbone(), HeadsConfig())
    model.embedding.weight.requires_grad_(False)
    optimizer = make_adamw(model.parameters(), OptimizerConfig())
    assert all(p is not model.embedding.weight for group in optimizer.param_groups for p in group["params"])


def test_lightning_may_clip_what_the_fused_optimizer_steps() -> None:
    optimizer = make_adamw([torch.nn.Parameter(torch.ones(2, 2))], OptimizerConfig())
    assert optimizer.defaults["fused"]
    assert not optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]


def test_warm_up_then_cosine_to_the_ratio() -> None:
    schedule = ScheduleConfig(warmup_steps=4, decay_ratio=0.1)
    factors = [learning_rate_factor(step, 24, schedule) for step in range(25)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[24] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate_factor(1000, 24, schedule) == pytest.approx(0.1)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, 10, ScheduleConfig(warmup_steps=0)) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: OptimizerConfig(lr=0.0), r"model\.optimizer\.lr is 0\.0"),
        (lambda: ScheduleConfig(warmup_steps=-1), r"model\.schedule\.warmup_steps is -1"),
        (lambda: ScheduleConfig(decay_ratio=1.5), r"model\.schedule\.decay_ratio is 1\.5"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()  # type: ignore[operator]
