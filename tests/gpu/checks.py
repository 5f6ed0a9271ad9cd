"""What only a GPU can check, and the figures that only a GPU can give. `run.sh` says how it is started.

Each check is a function of `Scale` that returns its figures, raises AssertionError where something is wrong, and
`SkippedError` where it cannot run here. On a CPU the same functions run at tiny sizes, so that none fails for a
typo.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from scale import FULL, TINY, Figures, Scale, SkippedError, said
from torch import Tensor

from callbacks.checkpointing import PeriodicCheckpoint
from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.bench.harness import describe_machine, synchronize
from mtp_lightning.bench.train_contenders import Arm, flops_of, make_step
from mtp_lightning.checkpoints.files import read_checkpoint
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, generate
from mtp_lightning.model.attention import causal_attention
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.documents import Documents
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.chunked import chunked_linear_nll
from mtp_lightning.objective.fused import fused_linear_nll
from mtp_lightning.optimization.schedule import ScheduleConfig


def strategies(scale: Scale) -> Figures:
    """`mtp fit` under each strategy, in float32, has the losses of one plain process."""
    losses: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("single", "fsdp2", "zero1", "zero2", "zero3"):
            if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
                continue
            losses[name] = _fitted(scale, Path(folder) / name, "-c", f"conf/strategy/{name}.yaml")
    single = losses["single"]
    for loss in losses.values():
        assert isinstance(loss, float), losses
        assert isinstance(single, float), losses
        assert abs(loss - single) <= 1e-3 * single, losses
    return {f"val_loss_{name}": loss for name, loss in losses.items()}


def _fitted(scale: Scale, folder: Path, *flags: str) -> float | str:
    """Validation loss at the end of a short run, or what went wrong."""
    steps = str(scale.steps)
    command = [
        sys.executable, "-m", "mtp_lightning", "fit", "-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml",
        "-c", "conf/data/python_stdlib.yaml", *flags, "--model.heads.n_future", "4", "--trainer.max_steps", steps,
        "--model.schedule.warmup_steps", "2", "--trainer.val_check_interval", steps, "--trainer.devices", "1",
        "--trainer.accelerator", "gpu" if scale.on_gpu else "cpu", "--trainer.precision", "32-true",
        "--data.val_windows", "8", "--data.batch_size", "4", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr[-400:]
    return float(json.loads((folder / "result.json").read_text())["metrics"]["val/loss"])


def fused_loss(scale: Scale) -> Figures:
    """Cut cross-entropy against our chunks: loss, gradients, time, memory."""
    if scale.on_gpu and importlib.util.find_spec("cut_cross_entropy") is None:
        raise SkippedError("the package cut-cross-entropy is not installed: pip install 'mtp-lightning[cuda]'")
    generator = torch.Generator(scale.device).manual_seed(0)
    dim = 1024 if scale.on_gpu else 32
    h = torch.randn(scale.rows, dim, device=scale.device, generator=generator).bfloat16()
    weight = torch.randn(scale.vocab_size, dim, device=scale.device, generator=generator).bfloat16() * dim**-0.5
    targets = torch.randint(0, scale.vocab_size, (scale.rows, 1), device=scale.device, generator=generator)
    share = torch.full((scale.rows, 1), 1 / scale.rows, device=scale.device)
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    figures: Figures = {}
    for name, loss in (("chunked", chunked_linear_nll), ("fused", fused_linear_nll)):
        x, w = h.clone().requires_grad_(), weight.clone().requires_grad_()

        def run(loss: Any = loss, x: Tensor = x, w: Tensor = w) -> Tensor:
            x.grad = w.grad = None
            total: Tensor = loss(x, w, targets, share)[0]
            total.backward()  # type: ignore[no-untyped-call]
            return total

        seconds, peak = scale.timed(run)
        assert x.grad is not None
        assert w.grad is not None
        found[name] = run().detach(), x.grad, w.grad
        figures |= {f"{name}_milliseconds": 1e3 * seconds, f"{name}_peak_mb": peak / 2**20}
    for ours, theirs in zip(found["chunked"], found["fused"]):
        assert (error := _off(theirs, ours)) <= 2e-2, f"off by {error:.1e}"
    if scale.on_gpu and importlib.util.find_spec("liger_kernel") is not None:
        figures |= _liger(scale, h, weight, targets[:, 0], found["chunked"])
    return figures


def _liger(scale: Scale, h: Tensor, weight: Tensor, targets: Tensor, ours: tuple[Tensor, ...]) -> Figures:
    """Liger's kernel, which gives a mean alone and no loss per token: whether it would pay to have it too."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    x, w = h.clone().requires_grad_(), weight.clone().requires_grad_()

    def run() -> Tensor:
        x.grad = w.grad = None
        total: Tensor = LigerFusedLinearCrossEntropyFunction.apply(x, w, targets)[0]
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    seconds, peak = scale.timed(run)
    errors = [_off(theirs, one) for theirs, one in zip((run(), x.grad, w.grad), ours) if theirs is not None]
    return {"liger_milliseconds": 1e3 * seconds, "liger_peak_mb": peak / 2**20, "liger_largest_error": max(errors)}


def _off(found: Tensor, right: Tensor) -> float:
    """Relative distance."""
    return float((found.float() - right.float()).norm() / right.float().norm())


def documents(scale: Scale) -> Figures:
    """Attention that ends at the borders of documents: the states of every head are those of the CPU, and documents
    packed into one window are what each is alone."""
    backbone = replace(
        BackboneConfig(vocab_size=64, dim=64, n_layers=4, n_heads=4), attend_across_documents=False, init_std=0.1
    )
    torch.manual_seed(0)
    model = MTPModel(backbone, HeadsConfig(n_future=2)).eval()
    tokens = torch.randint(0, 64, (2, 48))
    borders = (torch.arange(48) // 16).expand(2, 48)
    with torch.no_grad():
        here = model(tokens, borders)
        alone = torch.cat([model(tokens[:, i : i + 16]) for i in (0, 16, 32)], dim=2)
        there = model.to(scale.device)(tokens.to(scale.device), borders.to(scale.device)).cpu()
    torch.testing.assert_close(here, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3)
    return {"largest_difference": float((there - here).abs().max())}


def long_documents(scale: Scale) -> Figures:
    """A long window of short documents: what attention and its gradients take without a T x T mask, with one, and
    where all is one document; the mask's result and gradients are the oracle."""
    T, generator = scale.window, torch.Generator(scale.device).manual_seed(0)
    shape, dtype = (1, 16, T, 64), torch.bfloat16 if scale.on_gpu else torch.float32
    inputs = [torch.randn(shape, device=scale.device, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    borders = (torch.arange(T, device=scale.device) // (T // 16)).expand(1, T)
    upstream = torch.randn(shape, device=scale.device, generator=generator).to(dtype)
    ways = {
        "documents": lambda: Documents(borders),
        "mask": lambda: Documents(borders).mask,
        "one_document": lambda: None,
    }
    figures: Figures = {}
    results = {}
    for name, way in ways.items():
        mask = way()

        def run(mask: Any = mask) -> tuple[Tensor, ...]:
            out = causal_attention(*inputs, mask)
            return (out.detach(), *torch.autograd.grad(out, inputs, upstream))

        seconds, peak = scale.timed(run)
        results[name] = run()
        figures |= {f"{name}_milliseconds": 1e3 * seconds, f"{name}_peak_mb": peak / 2**20}
    errors = [_off(ours, right) for ours, right in zip(results["documents"], results["mask"])]
    assert max(errors) <= 2e-2, f"output and gradients are off by {errors}"
    figures["documents_over_mask"] = figures["documents_milliseconds"] / figures["mask_milliseconds"]
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


def decoding(scale: Scale) -> Figures:
    """Texts with drafts are plain ones in float32 (steps replayed from recordings on CUDA); and the share that decoding
    reaches of what reading the weights allows, by batch, in bfloat16."""
    torch.manual_seed(0)
    backbone = replace(scale.backbone(scale.sizes[0]), init_std=0.05)
    model = MTPModel(backbone, HeadsConfig(n_future=4)).to(scale.device).eval()
    prompts = [torch.randint(0, backbone.vocab_size, (12,)) for _ in range(max(scale.batches))]
    exact = Engine(model, 4, torch.float32)
    plain, drafted = (_written(exact, prompts[:2], scale.new_tokens, k) for k in (1, 4))
    assert [a.tokens for a in plain] == [b.tokens for b in drafted], "drafts changed a text"
    del exact
    engine, figures = Engine(model, 4, torch.bfloat16), {}
    for batch in scale.batches:
        for k in (1, 4):
            _written(engine, prompts[:batch], 8, k)
            (fewer, some), (more, whole) = (
                _steps_and_seconds(scale, engine, prompts[:batch], new, k)
                for new in (scale.new_tokens // 4, scale.new_tokens)
            )
            step = (whole - some) / (more - fewer)  # reading prompts and recording a step are in both
            read = engine.forward_bytes(k, batch, 12 + scale.new_tokens // 2)
            figures[f"batch_{batch}_heads_{k}"] = {
                "tokens_per_second": batch * scale.new_tokens / whole,
                "milliseconds_per_step": 1e3 * step,
                "share_of_bandwidth": read / read_bandwidth(read, time.perf_counter) / step,
            }
    return figures


def _steps_and_seconds(scale: Scale, engine: Engine, prompts: list[Tensor], new: int, k: int) -> tuple[int, float]:
    started = time.perf_counter()
    made = _written(engine, prompts, new, k)
    synchronize(scale.torch_device)
    return max(len(one.steps) for one in made), time.perf_counter() - started


def _written(engine: Engine, prompts: list[Tensor], new: int, k: int) -> list[Generation]:
    return generate(engine, prompts, new, k)


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
            assert ratio <= 1.1, f"four heads take {ratio:.2f} of one head's memory"
    return figures


CHECKS: dict[str, Callable[[Scale], Figures]] = {
    check.__name__: check
    for check in (documents, long_documents, fused_loss, strategies, decoding, compiled, training, checkpoint_stall)
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    options = parser.parse_args(arguments)
    scale = FULL if options.device == "cuda" else TINY
    if scale.on_gpu and not torch.cuda.is_available():
        for name in options.only:
            with said({"check": name}):
                raise SkippedError("no CUDA device; `--device cpu` runs the same code at tiny sizes")
        return 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(json.dumps({"machine": describe_machine(scale.torch_device, torch.get_num_threads()), "commit": commit}))
    failed = False
    for name in options.only:
        line: dict[str, Any] = {"check": name}
        with said(line):
            line |= {"figures": CHECKS[name](scale)}
        failed |= line["ok"] is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
