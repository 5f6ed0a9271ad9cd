"""What a model makes of contexts, also of longer ones than it was trained on (Code Llama, arXiv 2308.12950, section 3.3
and appendix): the loss by position, and whether it finds a key again, by how long the text is and how deep it lies.
"""

import itertools
from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.tasks.task import Examples
from mtp_lightning.data.tokens.tokenizer import Tokenizer, encode_after
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import count_bytes, generate
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import scores_by_position
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes.exact_match import answer
from mtp_lightning.shapes import Int

FIRST_BIN = 64
"""Positions of the first bin; each further one ends at twice the end of the one before."""
DIGITS = 5
"""Of a key: a guess finds one in 90,000."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def bins(length: int) -> list[int]:
    """Borders of the bins of positions below `length`: 0, 64, 128, 256, ... `length`."""
    ends = itertools.takewhile(lambda end: end < length, (FIRST_BIN << k for k in itertools.count()))
    return [0, *ends, length]


def losses_by_position(model: MTPModel, texts: Sequence[Int[Tensor, "L"]]) -> dict[str, float]:
    """Nats per token of each loss, as `<first>_to_<last>/head_i`: by the position that looks ahead, on texts of one
    length, which are looked at one at a time."""
    heads, device = model.heads_config, model.embedding.weight.device
    borders = bins(len(texts[0]) - heads.horizon)
    sums = torch.zeros(len(borders) - 1, 2, len(heads.loss_names), dtype=torch.float64)
    for text in texts:
        found = scores_by_position(model, make_targets(heads, text[None].to(device)), borders)
        sums += torch.stack([torch.stack([part.nll.double(), part.n_valid.double()]) for part in found]).cpu()
    return {
        f"{first}_to_{stop - 1}/{name}": nll / count
        for (first, stop), (nats, counts) in zip(itertools.pairwise(borders), sums.tolist())
        for name, nll, count in zip(heads.loss_names, nats, counts)
    }


def key_questions(tokenizer: Tokenizer, length: int, depth: float, count: int, begin: Sequence[int] = ()) -> Examples:
    """Prompts of exactly `length` tokens, with their answers: Python functions, one of which returns a number of five
    digits at `depth` (0: first, 1: last), and at the end `assert <its name>() ==`. The same for every model.

    Args:
        begin: tokens before every text, counted in `length`.

    Raises:
        InputError: the key and the question alone are longer.
    """
    rows, starts = [], []
    for number in range(count):
        rng = Random(f"key {length} {depth} {number}")
        name, key = _name(rng), rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)
        hidden = encode_after(tokenizer, f"def {name}(): return {key}\n")
        asked = encode_after(tokenizer, f"assert {name}() ==")
        room = length - len(begin) - len(hidden) - len(asked)
        if room < 0:
            raise InputError(f"lengths has {length}: a key and its question take {length - room} tokens of a text")
        before = round(depth * room)
        parts = _filler(tokenizer, rng, before), hidden, _filler(tokenizer, rng, room - before), asked
        prompt = [*begin, *itertools.chain(*parts)]
        assert len(prompt) == length
        starts.append(len(prompt))
        rows.append([*prompt, *encode_after(tokenizer, f" {key}")])
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((count, lengths.max()), dtype=np.int64)
    for row, found in zip(tokens, rows):
        row[: len(found)] = found
    return Examples(tokens, lengths, np.array(starts))


def retrieval(
    model: MTPModel,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: Sequence[float],
    count: int,
    begin: Sequence[int] = (),
) -> dict[tuple[int, float], float]:
    """(length, depth) -> the share of keys that greedy decoding would give."""
    return {
        (length, depth): answer(model, key_questions(tokenizer, length, depth, count, begin)).accuracy
        for length in lengths
        for depth in depths
    }


def rates(
    engine: Engine, prompts: Sequence[Int[Tensor, "_"]], new_tokens: int, token_bytes: Sequence[int]
) -> tuple[float, float]:
    """(tokens, bytes) per forward of self-speculative decoding after these prompts, one at a time.

    Args:
        token_bytes: of each token.
    """
    made = [generate(engine, [prompt.to(engine.device)], new_tokens)[0] for prompt in prompts]
    steps = [step for out in made for step in out.steps]
    return sum(len(step.tokens) for step in steps) / len(steps), count_bytes(steps, token_bytes) / len(steps)


def _name(rng: Random) -> str:
    return "".join(rng.choices(_LETTERS, k=6))


def _filler(tokenizer: Tokenizer, rng: Random, length: int) -> list[int]:
    """So many tokens: whole functions of one line, and empty lines where no further one fits."""
    found: list[int] = []
    while True:
        line = f"def {_name(rng)}(x): return x {rng.choice('+-*')} {rng.randrange(10**DIGITS)}\n"
        tokens = encode_after(tokenizer, line)
        if len(found) + len(tokens) > length:
            return found + tokenizer.encode("\n")[-1:] * (length - len(found))
        found += tokens
