"""Whole steps and whole runs on a GPU."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from scale import Figures, Scale
from torch import Tensor

from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.bench.harness import synchronize
from mtp_lightning.bench.train_contenders import Arm, flops_of, make_step
from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.optimization.schedule import ScheduleConfig


def strategies(scale: Scale) -> Figures:
    """`mtp fit` under each strategy, in float32, has the losses of one plain process; so has one that goes on, under
    each, from the plain one's checkpoint of half the steps."""
    losses: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("single", "fsdp2", "zero1", "zero2", "zero3"):
            if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
                continue
            strategy = ["-c", f"conf/strategy/{name}.yaml", "--data.val_windows", "8"]
            if name == "single":
                strategy += ["--trainer.callbacks.every_n_steps", str(half := max(1, scale.steps // 2))]
                start = Path(folder) / name / "checkpoints" / f"step-{half:08d}.ckpt"
            for how, more in (("", []), ("_resumed", ["--ckpt_path", str(start)])):
                metrics = _fitted(scale, Path(folder) / f"{name}{how}", "python_stdlib", *strategy, *more)
                losses[f"{name}{how}"] = metrics if isinstance(metrics, str) else metrics["val/loss"]
    single = losses["single"]
    for loss in losses.values():
        assert isinstance(loss, float), losses
        assert isinstance(single, float), losses
        assert abs(loss - single) <= 1e-3 * single, losses
    return {f"val_loss_{name}": loss for name, loss in losses.items()}


def _fitted(scale: Scale, folder: Path, data: str, *flags: str) -> dict[str, float] | str:
    """Metrics at the end of a short run, or what went wrong."""
    steps = str(scale.steps)
    command = [
        sys.executable, "-m", "mtp_lightning", "fit", "-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml",
        "-c", f"conf/data/{data}.yaml", "--model.heads.n_future", "4", "--trainer.max_steps", steps,
        "--model.schedule.warmup_steps", "2", "--trainer.val_check_interval", steps, "--trainer.devices", "1",
        "--trainer.accelerator", "gpu" if scale.on_gpu else "cpu", "--trainer.precision", "32-true",
        "--data.batch_size", "4", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(folder), *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr[-400:]
    metrics: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return metrics


def probes(scale: Scale) -> Figures:
    """Everything that callbacks measure while a model trains on documents kept apart, in this machine's precision."""
    windows = ["--data.context", "64", "--data.val_windows", "4", "--model.backbone.attend_across_documents", "false"]
    windows += ["--data.source.max_documents", "40"]
    long = ["-c", "conf/probes/long_context.yaml", "--trainer.callbacks.lengths", "[64, 96]"]
    induction = [
        "-c",
        "conf/probes/induction.yaml",
        "--trainer.callbacks.rows",
        "4",
        "--trainer.callbacks.length",
        "16",
    ]
    more = {
        "infilling": [*windows, *long, "--trainer.callbacks.keys", "2", "--trainer.callbacks.texts", "2"],
        "stories": [*windows, *induction, "--data.source.max_documents", "400"],
        "star_graph": ["--data.test_size", "16", "--data.val_examples", "8", "--trainer.callbacks.questions", "4"],
    }
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for data, flags in more.items():
            metrics = _fitted(scale, Path(folder) / data, data, *flags, "--trainer.precision", "bf16-mixed")
            assert not isinstance(metrics, str), f"{data}: {metrics}"
            figures |= {f"{data}_metrics": len(metrics), f"{data}_val_loss": metrics["val/loss"]}
    return figures


def compiled(scale: Scale) -> Figures:
    """`model.compile`: the loss of the uncompiled step, and how much faster it is."""
    workload = scale.workload(scale.sizes[0])
    figures: Figures = {}
    for name, compile_it in (("plain", False), ("compiled", True)):
        _, step = make_step(Arm("ours", 4, compile_it), workload)
        figures[f"{name}_loss"] = float(step())
        figures[f"{name}_milliseconds"] = 1e3 * scale.timed(step)[0]
        del step
        scale.free()
    assert abs(figures["plain_loss"] - figures["compiled_loss"]) <= 1e-2 * figures["plain_loss"], figures
    return figures


def training(scale: Scale) -> Figures:
    """Tokens a second, MFU and peak memory of a training step for n in {1, 2, 4}."""
    figures: Figures = {"matrix_product_tflops": (peak := scale.matrix_peak()) / 1e12}
    for size in scale.sizes:
        workload = scale.workload(size)
        for n in (1, 2, 4):
            arm = Arm("ours", n, scale.on_gpu)
            _, step = make_step(arm, workload)
            seconds, memory = scale.timed(step)
            rate = workload.tokens / seconds
            figures[f"{size}_n_{n}"] = {
                "tokens_per_second": rate,
                "mfu_of_measured_peak": rate * flops_of(arm, workload) / peak,
                "peak_gb": memory / 2**30,
            }
            del step
            scale.free()
        if scale.on_gpu:
            ratio = figures[f"{size}_n_4"]["peak_gb"] / figures[f"{size}_n_1"]["peak_gb"]
            figures[f"{size}_memory_n_4_over_n_1"] = ratio
    return figures


def checkpoint_stall(scale: Scale) -> Figures:
    """How long training stands still for a checkpoint, written at once or in the background; either holds the weights
    of the very step that was asked for."""
    figures: Figures = {}
    for name, background in (("at_once", False), ("in_background", True)):
        with tempfile.TemporaryDirectory() as folder:
            clock, step = _Clock(save_at=5), 5
            saving = PeriodicCheckpoint(every_n_steps=step, every_n_seconds=1e6, keep=4, background=background)
            backbone = scale.backbone(scale.sizes[0])
            module = MTPModule(backbone, HeadsConfig(n_future=4), schedule=ScheduleConfig(warmup_steps=1))
            loader = _Batches(torch.randint(0, backbone.vocab_size, (10, scale.batch, scale.context + 4)))
            pl.Trainer(
                max_steps=9, max_epochs=1, accelerator="gpu" if scale.on_gpu else "cpu", devices=1, logger=False,
                precision="bf16-mixed", callbacks=[saving, clock], enable_progress_bar=False,
                enable_model_summary=False, default_root_dir=folder, limit_val_batches=0,
            ).fit(module, loader, loader)  # fmt: skip
            path = Path(folder) / "checkpoints" / f"step-{step:08d}.ckpt"
            saved = read_checkpoint(path)["state_dict"]
            assert all(torch.equal(saved[name], weight) for name, weight in clock.weights.items()), "other weights"
            seconds = sorted(clock.seconds)
            figures[f"{name}_stall_seconds"] = seconds[-1] - seconds[len(seconds) // 2]
            figures["step_seconds"], figures["file_gb"] = seconds[len(seconds) // 2], path.stat().st_size / 2**30
            del module, saved
            scale.free()
    return figures


class _Batches:
    """A loader of given windows, (steps, B, T + n)."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return ({"tokens": batch} for batch in self.windows)


class _Clock(pl.Callback):
    """Seconds from each step's beginning to the next one's after the first three, and the weights after one of them."""

    def __init__(self, save_at: int) -> None:
        self.save_at = save_at
        self.seconds: list[float] = []
        self.weights: dict[str, Tensor] = {}
        self._began = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        synchronize(pl_module.device)
        now = time.perf_counter()
        if trainer.global_step > 3:
            self.seconds.append(now - self._began)
        self._began = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        if trainer.global_step == self.save_at:
            self.weights = {
                name: weight.detach().to("cpu", copy=True) for name, weight in pl_module.state_dict().items()
            }
