"""Decoding on a GPU: texts, and the share of what reading the weights allows."""

import time
from dataclasses import replace
from typing import Any

import torch
from scale import Figures, Scale
from tiny import VARIANTS, tiny_backbone
from torch import Tensor

from mtp_lightning.bench.decode.decode_measure import read_bandwidth
from mtp_lightning.bench.harness import synchronize
from mtp_lightning.decoding.choosing import Sampling
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, generate
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel


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


def ways_to_decode(scale: Scale) -> Figures:
    """Every kind of heads: greedy texts are those of the CPU, plainly, with drafts, with as many as pay and with trees
    of them; sampled ones are the same with drafts and without."""
    texts = 0
    for name, heads in VARIANTS.items():
        torch.manual_seed(0)
        model = MTPModel(tiny_backbone(n_layers=3, init_std=0.3), replace(heads, match="none")).eval()
        prompts = [torch.randint(0, 16, (length,)) for length in (3, 9, 5)]
        most = heads.max_heads_used
        here = generate(Engine(model, most, torch.float64), prompts, 24, 1)
        engine = Engine(model.to(scale.device), most, torch.float64)
        hot, ratio = Sampling(1.0, top_p=0.9, seed=1), Sampling(1.0, seed=1, accept="ratio")
        branches = [2] * (heads.head_offsets[most - 1] - 1)
        ways: list[dict[str, Any]] = [{"heads_used": 1}, {"heads_used": most}]
        if most > 1:
            ways += [{"heads_used": "auto"}, {"heads_used": most, "tree": branches}]
            generate(engine, prompts, 24, most, sampling=ratio)
        for way in ways:
            found = generate(engine, prompts, 24, **way)
            assert [one.tokens for one in found] == [one.tokens for one in here], f"{name}: {way}"
        plain, drafted = (generate(engine, prompts, 24, k, sampling=hot) for k in (1, most))
        assert [one.tokens for one in plain] == [one.tokens for one in drafted], f"{name}: sampled"
        texts += len(prompts) * (len(ways) + 2)
    return {"texts": texts}
