"""Callbacks on a real, tiny run: exactly what they log and write, and that training does not notice them."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny import Recorder, tiny_backbone
from typing_extensions import override

from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.decoding import DecodingProbe
from callbacks.heartbeat import Heartbeat
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import BatchLoader, ResumableLoader
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadKind, HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.schedule import ScheduleConfig

Fit = Callable[..., tuple[pl.Trainer, MTPModule, "Recorder"]]


class Counting(MTPDataModule):
    """Windows that count upwards modulo 16: learned in no time."""

    token_bytes = torch.arange(16) % 3  # type: ignore[assignment]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": (torch.arange(12 + self.horizon) + torch.arange(4)[:, None] + index) % 16}

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(self)

    @override
    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self, 2)

    def heldout_prompts(self, count: int, length: int) -> list[torch.Tensor]:
        return [(torch.arange(length) + i) % 16 for i in range(count)]


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    def run(
        callbacks: list[pl.Callback],
        steps: int = 12,
        n_future: int = 2,
        kind: HeadKind = "parallel",
        data: MTPDataModule | None = None,
        **trainer: Any,
    ) -> Any:
        pl.seed_everything(0, verbose=False)
        module = MTPModule(
            tiny_backbone(n_layers=3, vocab_size=16 if data is None else data.vocab_size),
            HeadsConfig(n_future=n_future, kind=kind),
            optimizer=OptimizerConfig(lr=1e-2),
            schedule=ScheduleConfig(warmup_steps=2),
        )
        recorder = Recorder()
        settings = {
            "max_steps": steps, "max_epochs": 1, "accelerator": "cpu", "logger": recorder, "callbacks": callbacks,
            "val_check_interval": 6, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
            "log_every_n_steps": 4, "enable_progress_bar": False, "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, PeriodicCheckpoint) for c in callbacks),
            "gradient_clip_val": 1.0, "default_root_dir": tmp_path, "use_distributed_sampler": False,
        }  # fmt: skip
        trainer_ = pl.Trainer(**(settings | trainer))
        trainer_.fit(module, datamodule=data or Counting(horizon=n_future, vocab_size=16))
        return trainer_, module, recorder

    return run


def test_weights_move_with_the_training_and_are_recorded(fit: Fit) -> None:
    """Kind `none` of two tokens: the second one's weight falls from 1/2 to 0 over the first half of 12 steps."""
    _, _, recorder = fit([], kind="none", log_every_n_steps=1)
    weights = [metrics["train/weight/head_2"] for _, metrics in recorder.calls if "train/weight/head_2" in metrics]
    assert weights == pytest.approx([0.5 * (1 - step / 6) for step in range(6)] + [0.0] * 6)


def test_the_module_records_steps_and_validations(fit: Fit) -> None:
    _, _, recorder = fit([])
    assert recorder.steps("train/loss") == [4, 8, 12]
    assert recorder.steps("val/loss/head_2") == [6, 12]
    train = next(metrics for step, metrics in recorder.calls if step == 8 and "train/loss" in metrics)
    per_head = {f"train/{what}/head_{i}" for what in ("loss", "weight") for i in (1, 2)}
    assert set(train) == {"train/loss", "train/gradient_norm", "train/lr"} | per_head
    assert train["train/loss"] == pytest.approx(train["train/loss/head_1"] + train["train/loss/head_2"], rel=1e-5)
    val = [metrics for step, metrics in recorder.calls if "val/loss" in metrics]
    heads = {f"val/{kind}/head_{i}" for kind in ("loss", "accuracy") for i in (1, 2)}
    assert {name for name in val[0] if name.startswith("val/")} == heads | {"val/loss", "val/bits_per_byte"}
    assert val[-1]["val/loss/head_1"] < val[0]["val/loss/head_1"]
    # its 2 x 4 windows have 12 targets each for head 1, the tokens 1 + i + row + batch modulo 16
    targets = [(1 + i + row + batch) % 16 for batch in range(2) for row in range(4) for i in range(12)]
    per_byte = len(targets) / sum(token % 3 for token in targets)
    assert val[-1]["val/bits_per_byte"] == pytest.approx(val[-1]["val/loss/head_1"] / 0.6931472 * per_byte)


def test_accumulated_batches_are_one_step(fit: Fit) -> None:
    _, module, recorder = fit([], steps=4, accumulate_grad_batches=3, log_every_n_steps=1, val_check_interval=12)
    assert not module._since_step, "a step takes its batches along"
    assert recorder.steps("train/loss") == [1, 2, 3, 4]
    losses = [metrics["train/loss"] for _, metrics in recorder.calls if "train/loss" in metrics]
    # a new model's first step: ln 16 nats a head, whatever it is averaged over; later steps know nothing of it
    assert losses[0] == pytest.approx(2 * math.log(16), rel=0.05)
    _, _, sparse = fit([], steps=4, accumulate_grad_batches=3, log_every_n_steps=4, val_check_interval=12)
    (last,) = [metrics["train/loss"] for _, metrics in sparse.calls if "train/loss" in metrics]
    assert last == losses[-1], "a record is of its own step, however many went unrecorded before it"


def test_checkpoints_come_in_time_and_old_ones_go(fit: Fit, tmp_path: Path) -> None:
    saved: list[int] = []

    class Watch(pl.Callback):
        @override
        def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
            saved.append(trainer.global_step)

    fit([PeriodicCheckpoint(every_n_steps=3, keep=2), Watch()], steps=11)
    assert saved == [3, 6, 9, 11]
    files = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert files == ["step-00000009.ckpt", "step-00000011.ckpt"]
    content = torch.load(tmp_path / "checkpoints" / files[-1], weights_only=True)
    assert content["mtp_lightning"]["heads"]["n_future"] == 2


def test_a_checkpoint_is_on_disk_before_it_has_its_name(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not file.with_suffix(".ckpt").exists()
        synced.append(file.name)

    monkeypatch.setattr("mtp_lightning.files.os.fsync", fsync)
    fit([PeriodicCheckpoint(every_n_steps=8)])
    assert synced == ["step-00000008.partial", "step-00000012.partial"]


def test_a_checkpoint_waits_for_the_validation_of_its_step(fit: Fit) -> None:
    events: list[tuple[str, int]] = []

    class Watch(pl.Callback):
        @override
        def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
            events.append(("validate", trainer.global_step))

        @override
        def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
            events.append(("save", trainer.global_step))

    fit([PeriodicCheckpoint(every_n_steps=3), Watch()], steps=7)
    assert events == [("save", 3), ("validate", 6), ("save", 6), ("save", 7)]


def test_a_checkpoint_that_could_not_be_written_leaves_nothing(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trainer: pl.Trainer, path: Path, weights_only: bool) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"step-00000003\.ckpt"):
        fit([PeriodicCheckpoint(every_n_steps=3)])
    assert not list((tmp_path / "checkpoints").iterdir())


class Tell(pl.Callback):
    """Sends its own process a signal at the end of a batch, or inside the validation after it; again at each step."""

    def __init__(self, number: signal.Signals, steps: list[int], validating: bool = False) -> None:
        self.number, self.steps, self.validating = number, steps, validating
        self.trained: list[int] = []

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.trained.append(trainer.global_step)
        if trainer.global_step in self.steps and not self.validating:
            os.kill(os.getpid(), self.number)

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps and self.validating:
            os.kill(os.getpid(), self.number)


def test_no_checkpoint_inside_a_step(fit: Fit) -> None:
    """The clock strikes after every first batch of two; half a step's gradient is in no checkpoint."""
    checkpoint = PeriodicCheckpoint(every_n_steps=1000, every_n_seconds=1.0, keep=9)
    batches: list[int] = []

    class Watch(pl.Callback):
        @override
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            checkpoint._saved_at = math.inf if batch_idx % 2 else -math.inf

        @override
        def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
            batches.append(trainer.fit_loop.epoch_loop.batch_progress.current.processed)

    fit([checkpoint, Watch()], steps=5, accumulate_grad_batches=2, val_check_interval=10)
    assert batches == [10]


def test_the_last_checkpoint_holds_what_the_probes_measured(fit: Fit, tmp_path: Path) -> None:
    """A run killed after it has nothing left to measure when it is started again."""
    probe = DecodingProbe(prompts=2, prompt_tokens=8, new_tokens=8)
    fit([probe, Heartbeat(), PeriodicCheckpoint(every_n_steps=6)], steps=6)
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert "decode/speedup" in torch.load(file, weights_only=True)["heartbeat"]["metrics"]


def test_a_probe_that_cannot_run_is_refused_before_training(fit: Fit) -> None:
    with pytest.raises(InputError, match=r"DecodingProbe\.new_tokens is 1"):
        DecodingProbe(new_tokens=1)

    class NoRoom(Counting):
        @override
        def heldout_prompts(self, count: int, length: int) -> list[torch.Tensor]:
            raise InputError("a prompt of 64 tokens is longer than the validation split")

    recorder = Recorder()
    trainer = pl.Trainer(max_steps=3, accelerator="cpu", logger=recorder, callbacks=[DecodingProbe()],
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    with pytest.raises(InputError, match="longer than the validation split"):
        trainer.fit(MTPModule(tiny_backbone(n_layers=3)), datamodule=NoRoom(vocab_size=16))
    assert trainer.global_step == 0


def test_checkpoints_by_the_clock(fit: Fit, tmp_path: Path) -> None:
    fit([PeriodicCheckpoint(every_n_steps=1000, every_n_seconds=1e-6, keep=100)], steps=5)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5


def test_periods_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"PeriodicCheckpoint\.keep is 0"):
        PeriodicCheckpoint(keep=0)


def test_decoding_probe_measures_and_disturbs_nothing(fit: Fit) -> None:
    _, plain, _ = fit([], steps=30)
    _, probed, recorder = fit([DecodingProbe(prompts=3, prompt_tokens=8, new_tokens=20)], steps=30)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), probed.parameters()))
    steps, found = zip(*[(step, m) for step, m in recorder.calls if "decode/speedup" in m])
    assert steps == (6, 12, 18, 24, 30), "at every validation, and at the end"
    names = {"decode/tokens_per_forward", "decode/speedup", "decode/mismatches", "decode/acceptance/head_2"}
    names |= {"decode/bytes_per_forward"}
    cost = {"perf/probe/decoding/seconds"}
    assert all(set(metrics) == names | cost and metrics["decode/mismatches"] == 0 for metrics in found[:-1])
    assert set(found[-1]) == names | cost | {"perf/probe/decoding/share_of_time"}
    assert found[0]["decode/acceptance/head_2"] < found[-1]["decode/acceptance/head_2"]
    metrics = found[-1]
    assert 1.0 <= metrics["decode/tokens_per_forward"] <= 2.0
    assert metrics["decode/tokens_per_forward"] > 1.5, "counting is learned, so drafts are accepted"
    assert probed.training
