"""What only a GPU can check, and the figures that only a GPU can give. `run.sh` says how it is started.

Each check is a function of `Scale` that returns its figures, raises AssertionError where something is wrong, and
`SkippedError` where it cannot run here. On a CPU the same functions run at tiny sizes, so that none fails for a
typo. One file, a little longer than others, as it is what a machine with a GPU is given to run.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.bench.harness import describe_machine, synchronize
from mtp_lightning.bench.train_contenders import Arm, Workload, flops_of, make_step
from mtp_lightning.config.config_files import find_config
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, generate
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.chunked import chunked_linear_nll
from mtp_lightning.objective.fused import fused_linear_nll
from mtp_lightning.yaml_lines import read_yaml

Figures = dict[str, Any]
ROUNDS = 5


class SkippedError(Exception):
    """Why a check cannot run here."""


@dataclass(frozen=True)
class Scale:
    """How large the checks are."""

    device: str
    sizes: tuple[str, ...]
    """Files of conf/model."""
    context: int
    batch: int
    batches: tuple[int, ...]
    """Of decoding."""
    new_tokens: int
    rows: int
    """Positions of a loss."""
    vocab_size: int
    steps: int
    """Of the runs under a strategy."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def backbone(self, size: str) -> BackboneConfig:
        values = read_yaml(find_config(f"conf/model/{size}.yaml"))[0]["model"]["backbone"]
        small = {"vocab_size": 256, "dim": 64, "n_layers": 6, "n_heads": 4} if self.device == "cpu" else {}
        return BackboneConfig(**values | small)


FULL = Scale("cuda", ("0.3B", "1.3B"), 2048, 4, (1, 8, 64), 256, 16384, 32000, 20)
TINY = Scale("cpu", ("0.3B",), 16, 2, (1, 2), 8, 64, 128, 4)


def strategies(scale: Scale) -> Figures:
    """`mtp fit` under each strategy, in float32, has the losses of one plain process."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("single", "fsdp2", "zero1", "zero2", "zero3"):
            if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
                continue
            figures[name] = _fit(scale, Path(folder) / name, "-c", f"conf/strategy/{name}.yaml")["val/loss"]
    for name, loss in figures.items():
        assert abs(loss - figures["single"]) <= 1e-3 * figures["single"], f"{name}: {figures}"
    return {f"val_loss_{name}": loss for name, loss in figures.items()}


def _fit(scale: Scale, folder: Path, *flags: str) -> dict[str, float]:
    """Metrics at the end of a short run."""
    steps = str(scale.steps)
    command = [
        sys.executable, "-m", "mtp_lightning", "fit", "-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml",
        "-c", "conf/data/python_stdlib.yaml", *flags, "--model.heads.n_future", "4", "--trainer.max_steps", steps,
        "--model.schedule.warmup_steps", "2", "--trainer.val_check_interval", steps, "--trainer.devices", "1",
        "--trainer.accelerator", "gpu" if scale.device == "cuda" else "cpu", "--trainer.precision", "32-true",
        "--data.val_windows", "8", "--data.batch_size", "4", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return metrics


def fused_loss(scale: Scale) -> Figures:
    """Cut cross-entropy against our chunks: loss, gradients, time, memory."""
    if scale.device == "cuda" and importlib.util.find_spec("cut_cross_entropy") is None:
        raise SkippedError("the package cut-cross-entropy is not installed: pip install 'mtp-lightning[cuda]'")
    generator = torch.Generator(scale.device).manual_seed(0)
    dim = 1024 if scale.device == "cuda" else 32
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

        seconds, peak = _timed(scale, run)
        assert x.grad is not None
        assert w.grad is not None
        found[name] = run().detach(), x.grad, w.grad
        figures |= {f"{name}_milliseconds": 1e3 * seconds, f"{name}_peak_mb": peak / 2**20}
    for ours, theirs in zip(found["chunked"], found["fused"]):
        error = float((ours.float() - theirs.float()).norm() / ours.float().norm())
        assert error <= 2e-2, f"off by {error:.1e}"
    return figures


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


def compiled(scale: Scale) -> Figures:
    """`model.compile`: the loss of the uncompiled step, and how much faster it is."""
    workload = _workload(scale, scale.sizes[0])
    figures: Figures = {}
    for name, compile_it in (("plain", False), ("compiled", True)):
        _, step = make_step(Arm("ours", 4, compile_it), workload)
        figures[f"{name}_loss"] = float(step())
        figures[f"{name}_milliseconds"] = 1e3 * _timed(scale, step)[0]
        del step
        _free(scale)
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
            started = time.perf_counter()
            made = _written(engine, prompts[:batch], scale.new_tokens, k)
            synchronize(scale.torch_device)
            seconds = time.perf_counter() - started
            steps = max(len(one.steps) for one in made)
            read = engine.forward_bytes(k, batch, 12 + scale.new_tokens // 2)
            limit = read / read_bandwidth(read, time.perf_counter)
            figures[f"batch_{batch}_heads_{k}"] = {
                "tokens_per_second": sum(len(one.tokens) for one in made) / seconds,
                "milliseconds_per_step": 1e3 * seconds / steps,
                "share_of_bandwidth": limit * steps / seconds,
            }
    return figures


def _written(engine: Engine, prompts: list[Tensor], new: int, k: int) -> list[Generation]:
    return generate(engine, prompts, new, k)


def training(scale: Scale) -> Figures:
    """Tokens a second, MFU and peak memory of a training step for n in {1, 2, 4}."""
    figures: Figures = {"matrix_product_tflops": (peak := _matrix_peak(scale)) / 1e12}
    for size in scale.sizes:
        workload = _workload(scale, size)
        for n in (1, 2, 4):
            arm = Arm("ours", n, scale.device == "cuda")
            _, step = make_step(arm, workload)
            seconds, memory = _timed(scale, step)
            rate = workload.tokens / seconds
            figures[f"{size}_n_{n}"] = {
                "tokens_per_second": rate,
                "mfu_of_measured_peak": rate * flops_of(arm, workload) / peak,
                "peak_gb": memory / 2**30,
            }
            del step
            _free(scale)
        if scale.device == "cuda":
            ratio = figures[f"{size}_n_4"]["peak_gb"] / figures[f"{size}_n_1"]["peak_gb"]
            figures[f"{size}_memory_n_4_over_n_1"] = ratio
            assert ratio <= 1.1, f"four heads take {ratio:.2f} of one head's memory"
    return figures


CHECKS: dict[str, Callable[[Scale], Figures]] = {
    check.__name__: check for check in (documents, fused_loss, strategies, decoding, compiled, training)
}


def _workload(scale: Scale, size: str) -> Workload:
    batch = scale.batch if size == scale.sizes[0] else max(1, scale.batch // 2)
    return Workload(scale.backbone(size), scale.context, batch, True, scale.device)


def _timed(scale: Scale, run: Callable[[], object]) -> tuple[float, float]:
    """(median seconds, bytes at the peak; 0 on a CPU), after two uncounted runs."""
    cuda = scale.device == "cuda"
    for _ in range(2):
        run()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(ROUNDS):
        synchronize(scale.torch_device)
        started = time.perf_counter()
        run()
        synchronize(scale.torch_device)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[ROUNDS // 2], float(torch.cuda.max_memory_allocated()) if cuda else 0.0


def _matrix_peak(scale: Scale) -> float:
    """FLOPs a second of a large product in bfloat16."""
    side = 8192 if scale.device == "cuda" else 128
    a = torch.randn(side, side, device=scale.device, dtype=torch.bfloat16)
    return 2 * side**3 / _timed(scale, lambda: a @ a)[0]


def _free(scale: Scale) -> None:
    torch.compiler.reset()
    if scale.device == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _said(line: dict[str, Any]) -> Iterator[None]:
    """Fill in how a check ended, and print it."""
    started = time.perf_counter()
    try:
        yield
        line["ok"] = True
    except SkippedError as reason:
        line |= {"ok": None, "skipped": str(reason)}
    except Exception as error:  # it is the result: printed, and the exit status
        line |= {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:2000],
            "where": traceback.format_exc(limit=-1),
        }
    print(json.dumps(line | {"seconds": round(time.perf_counter() - started, 1)}), flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    options = parser.parse_args(arguments)
    scale = FULL if options.device == "cuda" else TINY
    if scale.device == "cuda" and not torch.cuda.is_available():
        for name in options.only:
            with _said({"check": name}):
                raise SkippedError("no CUDA device; `--device cpu` runs the same code at tiny sizes")
        return 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(json.dumps({"machine": describe_machine(scale.torch_device, torch.get_num_threads()), "commit": commit}))
    failed = False
    for name in options.only:
        line: dict[str, Any] = {"check": name}
        with _said(line):
            line |= {"figures": CHECKS[name](scale)}
        failed |= line["ok"] is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
