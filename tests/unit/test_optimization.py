"""The recipe of table S13: which weights decay; and the learning rate at every step, under every schedule."""

import math

import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw
from mtp_lightning.optimization.schedule import DecayShape, ScheduleConfig, learning_rate_factor


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


def test_a_cosine_is_not_quite_at_its_ratio_in_the_last_step() -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay_ratio=0.03)
    assert learning_rate_factor(99, 100, schedule) == pytest.approx(0.0302393, abs=1e-7)


@pytest.mark.parametrize(
    ("decay", "falling"),
    [
        ("linear", [0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.868198, 0.55, 0.231802, 0.1]),
        ("1-sqrt", [0.55, 0.363604, 0.220577, 0.1]),
    ],
)
def test_wsd_by_hand(decay: DecayShape, falling: list[float]) -> None:
    """10 steps: 2 of warm-up, 4 at the peak, 4 of decay to a tenth: r + (1 - r) f(p) at p = 1/4, 2/4, 3/4, 1."""
    schedule = ScheduleConfig(kind="wsd", warmup_steps=2, decay_steps=4, decay=decay, decay_ratio=0.1)
    factors = [learning_rate_factor(step, 10, schedule) for step in range(11)]
    assert factors[:6] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors[6:10] == pytest.approx(falling, abs=1e-6)
    assert factors[10] == factors[9], "the step after the last one, which is computed and not made"


def test_the_stable_part_of_wsd_and_a_constant_do_not_know_how_long_the_run_is() -> None:
    wsd = ScheduleConfig(kind="wsd", warmup_steps=3, decay_steps=5)
    constant = ScheduleConfig(kind="constant", warmup_steps=3)
    for step in range(20):
        assert learning_rate_factor(step, 25, wsd) == learning_rate_factor(step, 1000, wsd)
        assert learning_rate_factor(step, 25, constant) == min(1.0, (step + 1) / 3)


def test_a_schedule_fits_into_the_run() -> None:
    wsd = ScheduleConfig(kind="wsd", warmup_steps=3, decay_steps=5)
    wsd.check_length(8)
    with pytest.raises(InputError, match="the decay would begin before the warm-up is over"):
        wsd.check_length(7)
    with pytest.raises(InputError, match="would never reach its peak"):
        ScheduleConfig(kind="constant", warmup_steps=3).check_length(3)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, 10, ScheduleConfig(warmup_steps=0)) == 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: OptimizerConfig(lr=0.0), r"model\.optimizer\.lr is 0\.0"),
        (lambda: ScheduleConfig(warmup_steps=-1), r"model\.schedule\.warmup_steps is -1"),
        (lambda: ScheduleConfig(decay_ratio=1.5), r"model\.schedule\.decay_ratio is 1\.5"),
        (lambda: ScheduleConfig(kind="wsd"), r"model\.schedule\.decay_steps is missing"),
        (lambda: ScheduleConfig(kind="wsd", decay_steps=0), r"model\.schedule\.decay_steps is 0"),
        (lambda: ScheduleConfig(decay_steps=5), r"decay_steps is 5, and model\.schedule\.kind is 'cosine'"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()  # type: ignore[operator]
