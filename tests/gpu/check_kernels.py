"""Attention and losses on a GPU: what they give, what they take."""

import importlib.util
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from scale import Figures, Scale, SkippedError
from tiny import VARIANTS, tiny_backbone
from torch import Tensor

from mtp_lightning.model.attention import causal_attention
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.documents import Documents
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.chunked import chunked_linear_nll
from mtp_lightning.objective.fused import fused_linear_nll
from mtp_lightning.objective.heads import model_loss, model_scores
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.targets import make_targets


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
    ways: dict[str, Any] = {"chunked": chunked_linear_nll, "fused": fused_linear_nll}
    ways |= {f"chunks_of_{n}": partial(chunked_linear_nll, chunk_rows=n) for n in (1024, 2048, 4096)}
    for name, loss in ways.items():
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


def objectives(scale: Scale) -> Figures:
    """Loss, scores and gradients of every kind of heads, of one that is taught among them, by every implementation, are
    those of the CPU."""
    figures: Figures = {}
    generator = torch.Generator().manual_seed(0)
    targets = dict.fromkeys(VARIANTS, "token") | {"leap": "lk_lambda"}
    for name, heads in VARIANTS.items():
        torch.manual_seed(0)
        model = MTPModel(
            tiny_backbone(n_layers=3, attend_across_documents=False, init_std=0.1), replace(heads, match="none")
        )
        window = torch.randint(0, 16, (2, 24 + heads.horizon), generator=generator)
        borders, counted = (torch.arange(window.shape[1]) // 9).expand_as(window), window % 5 != 0
        weights = [0.5] * len(heads.loss_names)
        for implementation in ("chunked", "naive", "checkpointed"):
            options = LossOptions(implementation, z_loss=1e-3, target=targets[name])  # type: ignore[arg-type]
            found = []
            for device in ("cpu", scale.device):
                model.to(device).zero_grad()
                there = make_targets(heads, *(one.to(device) for one in (window, borders, counted)))
                documents = borders[:, :24].to(device)
                out = model_loss(model, there, documents, weights, options)
                out.total.backward()  # type: ignore[no-untyped-call]
                scores = model_scores(model, there, documents)
                gradients = [w.grad.to("cpu", copy=True) for w in model.parameters() if w.grad is not None]
                found.append([out.total.detach().cpu(), out.nll.cpu(), scores.nll.cpu(), *gradients])
            figures[f"{name} {implementation}"] = max(_off(ours, right) for right, ours in zip(*found))
    assert max(figures.values()) <= 1e-3, figures
    return {"largest_error": max(figures.values()), "configurations": len(figures)}
