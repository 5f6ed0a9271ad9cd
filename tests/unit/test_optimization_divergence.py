"""A run that is no longer finite fails at once; its last good checkpoint stays, and nothing bad is saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from typing_extensions import override
from uneven import fit

from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.heartbeat import Heartbeat
from mtp_lightning.errors import DivergedError
from mtp_lightning.grid.run.state import DIVERGED, Failure
from mtp_lightning.optimization.divergence import Divergence


class At(pl.Callback):
    """Does something to the model as a step (counted from 1) begins, or before its weights are changed."""

    def __init__(self, step: int, act: Callable[[torch.nn.Parameter], Any], before_update: bool = False) -> None:
        self.step, self.act, self.before_update = step, act, before_update

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1 and not self.before_update:
            self.act(pl_module.model.norm.weight)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step - 1 and self.before_update:
            self.act(pl_module.model.norm.weight)


def poison(weight: torch.nn.Parameter) -> None:
    weight.data.fill_(math.nan)


def poison_gradient(weight: torch.nn.Parameter) -> None:
    assert weight.grad is not None
    weight.grad.fill_(math.inf)


def saving(folder: Path) -> list[pl.Callback]:
    return [PeriodicCheckpoint(every_n_steps=1, keep=9), Heartbeat(str(folder))]


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("log_every_n_steps", [1, 4])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path: Path, log_every_n_steps: int) -> None:
    callbacks = [At(3, poison), *saving(tmp_path)]
    with pytest.raises(DivergedError, match=r"diverged at step 3: its loss is not finite.*model\.on_divergence: go_on"):
        fit(tmp_path, 6, callbacks=callbacks, enable_checkpointing=True, log_every_n_steps=log_every_n_steps)
    assert saved(tmp_path) == ["step-00000001.ckpt", "step-00000002.ckpt"]
    failure = Failure.read(tmp_path)
    assert failure is not None
    assert (failure.error, failure.message[:18]) == (DIVERGED, "diverged at step 3"), "by which grids know it"
    assert not (tmp_path / "result.json").exists()


def test_the_step_at_which_it_went_wrong_is_recorded(tmp_path: Path) -> None:
    recorders: list[Any] = []

    class Keep(pl.Callback):
        @override
        def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
            recorders.append(trainer.logger)

    with pytest.raises(DivergedError):
        fit(tmp_path, 12, callbacks=[At(2, poison), Keep()], log_every_n_steps=4)
    assert math.isnan(recorders[0].last_by_step("train/loss")[2]["train/loss"])


@pytest.mark.parametrize("step", [2, 4])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, step: int) -> None:
    """A gradient that overflows leaves a finite loss after it; no later step shows that of the last one."""
    callbacks = [At(step, poison_gradient, before_update=True), *saving(tmp_path)]
    with pytest.raises(DivergedError, match=f"diverged at step {step}: its loss, or a weight after it"):
        fit(tmp_path, 12, callbacks=callbacks, enable_checkpointing=True, gradient_clip_val=None, limit_val_batches=0)
    assert saved(tmp_path) == [f"step-{i:08d}.ckpt" for i in range(1, step)]


def test_the_last_step_without_checkpoints_counts_too(tmp_path: Path) -> None:
    callbacks = [At(4, poison_gradient, before_update=True)]
    with pytest.raises(DivergedError, match="diverged at step 4"):
        fit(tmp_path, 12, callbacks=callbacks, gradient_clip_val=None, limit_val_batches=0)


def test_a_validation_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Validating(pl.Callback):
        @override
        def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            poison(pl_module.model.norm.weight)

    with pytest.raises(DivergedError, match="diverged at step 2: val/loss is nan"):
        fit(tmp_path, 6, callbacks=[Validating(), *saving(tmp_path)], enable_checkpointing=True)
    assert saved(tmp_path) == ["step-00000001.ckpt"], "that of step 2 waits for the validation"


def test_it_goes_on_where_that_is_asked_for(tmp_path: Path) -> None:
    recorder = fit(tmp_path, 6, callbacks=[At(2, poison), *saving(tmp_path)], enable_checkpointing=True,
                   on_divergence="go_on")  # fmt: skip
    assert math.isnan(recorder.last_by_step("train/loss")[4]["train/loss"])
    assert "step-00000004.ckpt" in saved(tmp_path)
    assert (tmp_path / "result.json").exists()


def test_the_first_step_is_kept() -> None:
    divergence = Divergence()
    assert divergence.step() is None
    for step, loss in ((1, 2.0), (2, math.inf), (3, 1.0), (4, math.nan)):
        divergence.note([torch.tensor(1.0), torch.tensor(loss)], step)
    assert divergence.step() == 2
