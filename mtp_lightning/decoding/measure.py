"""What drafting was worth: acceptance of every head's drafts, speed against plain decoding, and texts that differ."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, HeadsUsed, Step, count_bytes, generate
from mtp_lightning.decoding.positions import PositionTables, Tree

TIE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Gap of the two best logits, over the largest of all, that rounding alone may turn around; by precision. In bfloat16
two ways to compute models of 8 and 12 layers differed by 1e-3 (median) to 8e-3 (the most, of gaps below 5e-2)."""


class Difference(NamedTuple):
    """Where two continuations of a prompt begin to differ."""

    position: int
    """The first new token that differs, from 0."""
    gap: float
    """Between plain decoding's two best logits there."""
    tie: bool
    """Whether rounding can explain it."""


@dataclass(frozen=True)
class Comparison:
    """Self-speculative decoding of some prompts against plain decoding of the same."""

    tokens_per_forward: float
    bytes_per_forward: float | None
    """Of text; None where nobody said how long tokens are."""
    speedup: float
    """Plain seconds over self-speculative seconds, the median over the prompts; NaN where the clock did not move."""
    acceptance: dict[int, float]
    """Head -> share of its drafts that were accepted once all before them were; NaN where it never came to that."""
    differences: list[Difference]


def compare(
    engine: Engine,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    heads_used: HeadsUsed | None = None,
    stop_ids: Collection[int] = (),
    token_bytes: Tensor | None = None,
) -> Comparison:
    """Decode every prompt greedily both ways, in turns, each first as often as the other.

    A warm-up comes first, uncounted. Seconds are of the processor where torch has one CPU thread, else of the clock.

    Args:
        token_bytes: (V,) bytes of text of each token: forwards of models with other tokenizers compare by them alone.
    """
    for k in (1, heads_used):
        generate(engine, prompts[:1], min(max_new_tokens, 32), k, stop_ids)
    drafted: list[Generation] = []
    ratios: list[float] = []
    differences: list[Difference] = []
    for i, prompt in enumerate(prompts):
        out: dict[HeadsUsed | None, Generation] = {}
        seconds: dict[HeadsUsed | None, float] = {}
        for k in (1, heads_used) if i % 2 else (heads_used, 1):
            started = _now(engine)
            (out[k],) = generate(engine, [prompt], max_new_tokens, k, stop_ids)
            seconds[k] = _now(engine) - started
        drafted.append(out[heads_used])
        if seconds[heads_used] > 0:
            ratios.append(seconds[1] / seconds[heads_used])
        difference = first_difference(engine, prompt, out[1].tokens, out[heads_used].tokens)
        differences += [difference] if difference else []
    steps = [step for generation in drafted for step in generation.steps]
    size = None if token_bytes is None or not steps else count_bytes(steps, token_bytes.tolist())
    return Comparison(
        tokens_per_forward=sum(len(step.tokens) for step in steps) / len(steps) if steps else float("nan"),
        bytes_per_forward=None if size is None else size / len(steps),
        speedup=median(ratios) if ratios else float("nan"),
        acceptance=acceptance(drafted, engine.heads.head_offsets[: engine.heads_used]),
        differences=differences,
    )


def acceptance(generations: Sequence[Generation], offsets: Sequence[int]) -> dict[int, float]:
    """Of every head from the second on, the share of its drafts accepted among those whose turn came.

    A text's last forward is left out: what it accepts may have been cut.
    """
    counts = acceptance_counts(generations, offsets)
    return {head: right / turns if turns else float("nan") for head, (right, turns) in counts.items()}


def acceptance_counts(generations: Sequence[Generation], offsets: Sequence[int]) -> dict[int, tuple[int, int]]:
    """(drafts that were accepted, those whose turn came) of every head from the second on."""
    reached = dict.fromkeys(range(2, len(offsets) + 1), 0)
    accepted = dict(reached)
    steps: list[Step] = [step for generation in generations for step in generation.steps[:-1]]
    for step in steps:
        for head in reached:
            offset = offsets[head - 1]
            if offset <= len(step.block) and len(step.tokens) >= offset - 1:
                reached[head] += 1
                accepted[head] += len(step.tokens) >= offset
    return {head: (accepted[head], count) for head, count in reached.items()}


@torch.inference_mode()
def first_difference(
    engine: Engine, prompt: Tensor, plain: Sequence[int], other: Sequence[int], precision: torch.dtype | None = None
) -> Difference | None:
    """Where `other` first differs from `plain`, which is the engine's, and how near a tie was there; None where they
    are equal.

    Args:
        precision: in which `other` was computed, if not in the engine's: the lower of both says what is a tie.
    """
    if list(plain) == list(other):
        return None
    pairs = enumerate(zip(plain, other))
    position = next((i for i, (a, b) in pairs if a != b), min(len(plain), len(other)))
    text = torch.cat([prompt, prompt.new_tensor(list(plain[:position]))]).to(engine.device)
    logits_V = next_logits(engine, text)
    best, second = logits_V.topk(2).values.tolist()
    share = max(TIE.get(dtype, TIE[torch.bfloat16]) for dtype in (engine.dtype, precision or engine.dtype))
    bound = share * float(logits_V.abs().max())
    return Difference(position, best - second, best - second <= bound)


@torch.inference_mode()
def next_logits(engine: Engine, text_T: Tensor) -> Tensor:
    """(V,) float32: head 1's logits after a text, in one forward."""
    T = text_T.numel()
    tables = PositionTables(T, engine.config, engine.dtype, engine.device)
    cache = engine.key_values(1, T).layers(slice(0, 1))
    h_BTD, _ = engine.run(text_T[None], tables.block([0], Tree.chain(T)), cache)
    return engine.logits(h_BTD[:, -1:])[0, 0].float()


def _now(engine: Engine) -> float:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()
