"""Runs that are to stop before their end: signals, and what several processes agree on."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import lightning.pytorch as pl
import pytest
import torch
from test_callbacks_training import Fit, Tell, fit
from tiny import Recorder
from typing_extensions import override

from callbacks import checkpointing
from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.heartbeat import Heartbeat
from mtp_lightning.errors import Paused, Preempted

__all__ = ["fit"]


@pytest.mark.parametrize(
    ("number", "status"), [(n, 130 if n is signal.SIGINT else 75) for n in checkpointing.STOPPING], ids=lambda v: str(v)
)
def test_a_run_that_is_asked_to_stop_saves_its_step_and_ends(
    fit: Fit, tmp_path: Path, number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {n: signal.getsignal(n) for n in checkpointing.STOPPING}
    tell = Tell(number, [4])
    with pytest.raises(Preempted) as stopped:
        fit([tell, Heartbeat(), PeriodicCheckpoint()])
    assert stopped.value.code == status
    assert tell.trained == [1, 2, 3, 4]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004.ckpt"]
    assert capsys.readouterr().err.endswith(f"{number.name}: saved step 4, stopping\n")
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "failure.json").exists()
    assert {n: signal.getsignal(n) for n in checkpointing.STOPPING} == before


def test_asked_to_stop_in_a_validation_it_ends_after_it(fit: Fit, tmp_path: Path) -> None:
    """Not inside: a resumed run would never log that validation."""
    tell = Tell(signal.SIGTERM, [6], validating=True)
    with pytest.raises(Preempted):
        fit([tell, PeriodicCheckpoint()])
    assert tell.trained[-1] == 6
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert file.name == "step-00000006.ckpt"


def test_asked_to_stop_at_its_last_step_a_run_just_ends(fit: Fit, tmp_path: Path) -> None:
    before = {n: signal.getsignal(n) for n in checkpointing.STOPPING}
    fit([Tell(signal.SIGTERM, [7]), Heartbeat(), PeriodicCheckpoint()], steps=7)
    assert (tmp_path / "result.json").exists()
    assert {n: signal.getsignal(n) for n in checkpointing.STOPPING} == before


def test_after_an_exception_signals_are_not_noted_any_more(fit: Fit) -> None:
    """While loggers end the run, which with a server away may take long, Ctrl-C ends it."""
    seen: dict[int, Any] = {}

    class Broken(pl.Callback):
        @override
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("broken")

    class Ending(Recorder):
        @override
        def finalize(self, status: str) -> None:
            seen.update({n: signal.getsignal(n) for n in checkpointing.STOPPING})

    with pytest.raises(RuntimeError, match="broken"):
        fit([Broken(), PeriodicCheckpoint()], logger=Ending())
    assert len(seen) == 4
    assert not [n for n, handler in seen.items() if getattr(handler, "__func__", None) is PeriodicCheckpoint._note]


def test_a_second_ctrl_c_does_not_wait(fit: Fit, tmp_path: Path) -> None:
    class Twice(pl.Callback):
        @override
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:  # Lightning's answer to a KeyboardInterrupt
        fit([Twice(), PeriodicCheckpoint()])
    assert stopped.value.code == 1
    assert not (tmp_path / "checkpoints").exists()


def test_two_ctrl_c_after_another_signal_do_not_wait(fit: Fit, tmp_path: Path) -> None:
    class Thrice(pl.Callback):
        @override
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as stopped:
        fit([Thrice(), PeriodicCheckpoint()])
    assert stopped.value.code == 1


def test_several_processes_ask_each_other_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """At steps that all of them know, the strongest wish wins: here the other process has to stop from step 5 on."""
    asked: list[int] = []
    trainer = create_autospec(pl.Trainer, instance=True, world_size=2)

    def reduce(wishes: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        asked.append(trainer.global_step)
        other = checkpointing.STOP if trainer.global_step >= 5 else checkpointing.GO_ON
        return torch.maximum(wishes, torch.tensor([other, 3]))

    trainer.strategy = SimpleNamespace(reduce=reduce, root_device="cpu")
    monkeypatch.setattr(checkpointing, "ASK_SECONDS", 0.0)
    checkpoint = PeriodicCheckpoint()
    checkpoint._saved_at = time.monotonic()
    answers = []
    for trainer.global_step in range(1, 9):
        answers.append(checkpoint._agreed(trainer, checkpointing.GO_ON))
    assert asked == [1, 4, 7]
    assert answers == [checkpointing.GO_ON] * 6 + [checkpointing.STOP, checkpointing.GO_ON]


def test_at_a_gate_a_run_saves_and_ends_after_its_validation_and_leaves_its_metrics(fit: Fit, tmp_path: Path) -> None:
    logger = Recorder()
    with pytest.raises(Paused) as stopped:
        fit([Heartbeat(), PeriodicCheckpoint(pause_at=6)], logger=logger)
    assert stopped.value.code == 75
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000006.ckpt"]
    left = json.loads((tmp_path / "gate.json").read_text())
    validated = {step: metrics for step, metrics in logger.calls if "val/loss/head_1" in metrics}
    assert (left["step"], [*validated]) == (6, [6])
    assert left["metrics"]["val/loss/head_1"] == pytest.approx(validated[6]["val/loss/head_1"])
    assert json.loads((tmp_path / "progress.json").read_text())["stopped"] == "the gate: saved step 6"
    assert not (tmp_path / "result.json").exists()
