"""What a model makes of a middle when it is shown what comes before and after (Bavarian et al. 2022, section 4): how
likely it finds the right one, what the suffix is worth for that, and whether what it writes joins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, Tokenizer
from mtp_lightning.data.tokens.windows import random_words
from mtp_lightning.data.transforms.infilling import Order, Sentinels, cut, infilling_prompt
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, count_bytes, generate
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_scores
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.shapes import Int

ROWS = 32
"""Texts of a forward."""
NEAR = {"last_8": 8, "last_32": 32}
"""Name -> so many tokens before the join, at most, and more than those of the one before."""
FAR = "before"


class Text(NamedTuple):
    """A text with a part of its middle to be written. Prefix and middle are not empty."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]


def cut_texts(texts: Sequence[Int[Tensor, "_"]], tokenizer: Tokenizer) -> list[Text]:
    """Each, up to the end of its document, at two places that its number decides; those that leave nothing before or
    between them are left out."""
    found = []
    for number, piece in enumerate(texts):
        text = piece[: int((piece == tokenizer.eos_id).cumsum(0).eq(0).sum())]
        draws = random_words(f"held-out text {number}", 2)
        parts = cut(text.numpy(), draws, isinstance(tokenizer, ByteTokenizer))
        if len(parts[0]) and len(parts[1]):
            found.append(Text(*(part.tolist() for part in parts)))
    return found


class Asking(NamedTuple):
    """How middles are asked for."""

    marks: Sentinels
    order: Order = "psm"
    begin: Sequence[int] = ()
    """Tokens before every text."""

    def prompt(self, text: Text) -> list[int]:
        return [*self.begin, *infilling_prompt(text.prefix, text.suffix, self.marks, self.order)]


def middle_losses(model: MTPModel, texts: Sequence[Text], asking: Asking) -> dict[str, float]:
    """Nats per token of the right middles, their ends left out.

    Returns:
        `head_i`: of each loss, from the middle's own positions and its sentinel, or, in the order spm, the end of the
        prefix; `suffix_worth`: how much less that is for head 1 than from left to right, with the prefix alone.
    """
    marks = asking.marks
    infilled, plain = torch.zeros(2, len(model.heads_config.loss_names), dtype=torch.float64), torch.zeros(2, 1)
    for first in range(0, len(texts), ROWS):
        part = texts[first : first + ROWS]
        rows = [([*asking.prompt(text), *text.middle, marks.end], len(text.middle)) for text in part]
        infilled += _scores(model, rows, marks)
        beside = [([*asking.begin, *text.prefix, *text.middle, marks.end], len(text.middle)) for text in part]
        plain = plain + _scores(model, beside, marks)[:, :1]
    losses = (infilled[0] / infilled[1]).tolist()
    found = dict(zip(model.heads_config.loss_names, losses))
    return found | {"suffix_worth": (plain[0] / plain[1]).item() - losses[0]}


def _scores(model: MTPModel, rows: Sequence[tuple[list[int], int]], marks: Sentinels) -> Tensor:
    """(2, M) float64: sums of nats and counts over the middles.

    Args:
        rows: tokens that end with a middle and its end, and how many the middle has.
    """
    device, horizon = model.embedding.weight.device, model.heads_config.horizon
    width = max(len(tokens) for tokens, _ in rows) + horizon
    tokens_BL = torch.zeros(len(rows), width, dtype=torch.long)
    middle_BL = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (tokens, middle) in enumerate(rows):
        tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
        middle_BL[row, len(tokens) - 1 - middle : len(tokens) - 1] = True
    sentinels_BL = torch.isin(tokens_BL, torch.tensor(marks[:3]))
    found = (tokens_BL.to(device), None, middle_BL.to(device), sentinels_BL.to(device))
    scores = model_scores(model, make_targets(model.heads_config, *found))
    return torch.stack([scores.nll.double(), scores.n_valid.double()]).cpu()


def joins(engine: Engine, texts: Sequence[Text], asking: Asking, token_bytes: Sequence[int]) -> dict[str, float]:
    """What greedy decoding writes between prefix and suffix, in twice the tokens of the right middle and 16 more.

    Returns:
        `joined`: the share of texts whose middle came to its end; `exact`: of those that are the right one;
        `bytes_per_forward`; `tokens_per_forward`, and by how far ahead the end was, of those that joined:
        `tokens_per_forward/last_8`, `/last_32` (9 to 32) and `/before`.
    """
    device, end = engine.device, asking.marks.end
    made: list[Generation] = []
    for text in texts:
        prompt = torch.tensor(asking.prompt(text), device=device)
        made += generate(engine, [prompt], 2 * len(text.middle) + 16, stop_ids=(end,))
    joined = [out for out in made if out.tokens[-1:] == [end]]
    exact = sum(out.tokens == [*text.middle, end] for out, text in zip(made, texts))
    steps = [step for out in made for step in out.steps]
    found = {"joined": len(joined) / len(made), "exact": exact / len(made)}
    if steps:
        found["tokens_per_forward"] = sum(len(step.tokens) for step in steps) / len(steps)
        found["bytes_per_forward"] = count_bytes(steps, token_bytes) / len(steps)
    return found | {f"tokens_per_forward/{name}": rate for name, rate in rates_by_distance(joined).items()}


def rates_by_distance(generations: Sequence[Generation]) -> dict[str, float]:
    """Tokens per forward of the forwards that began so many tokens before the end of their text."""
    counts: dict[str, list[int]] = {name: [] for name in (*NEAR, FAR)}
    for out in generations:
        left = len(out.tokens)
        for step in out.steps:
            counts[next((name for name, most in NEAR.items() if left <= most), FAR)].append(len(step.tokens))
            left -= len(step.tokens)
    return {name: sum(found) / len(found) for name, found in counts.items() if found}
