"""Greedy decoding with caches, plain or self-speculative (paper, section 3; Stern et al. 2018): the same output.

State after a forward whose last accepted token is x_t: a_1, head 1's choice (certain to be right), and a_2 .. a_k, the
choices of heads 2 .. k (drafts). One forward over a_1 .. a_k then

    verifies    a_1 is accepted; a_{j+1} is, while it equals head 1's choice at a_j: a_1 .. a_m, 1 <= m <= k
    proposes    head 1's choice at a_m is the next certain token, heads 2 .. k at a_m the next drafts
    rolls back  trunk and head 1 forget the positions of rejected drafts

Heads 2 .. k only ever see accepted positions (their keys and values depend on the trunk's output there, never on a
draft), so they have nothing to roll back. With k = 1 nothing is drafted: plain greedy decoding.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import ModelCache, MTPModel
from mtp_lightning.shapes import Float, Int


class Step(NamedTuple):
    """New tokens, in order, and the block whose forward made them certain."""

    tokens: list[int]
    block: list[int]
    """What was verified: one certain token, then drafts, of which `len(tokens) - 1` were accepted. Empty for a text's
    last token, which is certain without a forward of its own."""


class Generation(NamedTuple):
    """Newly generated tokens and the forwards, behind the prompt's, that they took."""

    tokens: list[int]
    steps: list[Step]

    @property
    def tokens_per_forward(self) -> float:
        """Accepted tokens per forward: 1 for plain decoding, at most the number of heads used (table S2)."""
        return sum(len(step.tokens) for step in self.steps) / len(self.steps) if self.steps else float("nan")


def generate(
    model: MTPModel,
    prompt_T: Int[Tensor, "T"],
    max_new_tokens: int,
    heads_used: int = 1,
    stop_ids: Collection[int] = (),
) -> Generation:
    """Decode greedily until a stop token (kept as the last) or `max_new_tokens`.

    Args:
        heads_used: k. 1 decodes plainly, up to `n_future` drafts and verifies; the tokens are the same.

    Raises:
        InputError: an empty prompt, or `heads_used` that the model does not have.
    """
    tokens: list[int] = []
    steps: list[Step] = []
    for step in stream(model, prompt_T, max_new_tokens, heads_used, stop_ids):
        tokens.extend(step.tokens)
        if step.block:
            steps.append(step)
    return Generation(tokens, steps)


def stream(
    model: MTPModel,
    prompt_T: Int[Tensor, "T"],
    max_new_tokens: int,
    heads_used: int = 1,
    stop_ids: Collection[int] = (),
) -> Iterator[Step]:
    """`generate`, step by step."""
    if prompt_T.numel() == 0:
        raise InputError("the prompt is empty: a token is predicted from the ones before it, so give at least one")
    if not 1 <= heads_used <= model.n_future:
        raise InputError(f"heads_used is {heads_used}: this model has {model.n_future} prediction heads")
    if heads_used > model.heads_config.max_heads_used:
        raise InputError(
            f"heads_used is {heads_used}: heads of kind '{model.heads_config.kind}' looking "
            f"{list(model.heads_config.places)} places ahead do not draft so far; use 1"
        )
    row = _Row(model, prompt_T.numel() + max_new_tokens + heads_used, heads_used)
    certain, drafts = row.read(prompt_T.tolist())
    left = max_new_tokens
    while left > 0:
        if left == 1 or certain in stop_ids:
            yield Step([certain], block=[])
            return
        block = [certain, *drafts][:left]
        accepted, certain, drafts = row.verify(block)
        tokens = _until_stop(block[:accepted], stop_ids)
        yield Step(tokens, block)
        left -= len(tokens)
        if tokens[-1] in stop_ids:
            return


def _until_stop(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    for i, token in enumerate(tokens, start=1):
        if token in stop_ids:
            return tokens[:i]
    return tokens


class _Row:
    """One row of text: the caches of trunk and heads, all holding exactly the accepted tokens between calls."""

    def __init__(self, model: MTPModel, size: int, heads_used: int) -> None:
        self.model = model
        self.cache = ModelCache(model, batch=1, size=size)
        self.heads_used = heads_used
        self.length = 0
        cos, sin = model.rotary(torch.arange(size, device=model.embedding.weight.device))
        self.rotary = cos, sin

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> tuple[int, list[int]]:
        """Take tokens that are given, the prompt; returns the certain next token and the drafts behind it."""
        z = self._trunk(tokens)
        best = self._best(self._first(z)[:, -1:])
        self.length += len(tokens)
        return best[-1], self._draft(z)

    @torch.inference_mode()
    def verify(self, block: list[int]) -> tuple[int, int, list[int]]:
        """(how many tokens of the block are accepted, the next certain token, the drafts behind it)."""
        z = self._trunk(block)
        best = self._best(self._first(z))
        accepted = 1
        while accepted < len(block) and block[accepted] == best[accepted - 1]:
            accepted += 1
        self.length += accepted
        for cache in [*self.cache.trunk, *self.cache.heads[0]]:
            cache.truncate(self.length)
        return accepted, best[accepted - 1], self._draft(z[:, :accepted])

    def _draft(self, z_BTD: Float[Tensor, "1 T D"]) -> list[int]:
        """Choices of heads 2 .. k behind the last of the T newly accepted positions."""
        if self.heads_used == 1:
            return []
        start = self.length - z_BTD.shape[1]
        rotary = self._positions(start, z_BTD.shape[1])
        heads, caches = self.model.heads, self.cache.heads
        h = [heads[i](z_BTD, rotary, None, caches[i])[:, -1:] for i in range(1, self.heads_used)]
        return self._best(torch.cat(h, dim=1), heads=slice(1, self.heads_used))

    def _positions(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        return self.rotary[0][start : start + count], self.rotary[1][start : start + count]

    def _trunk(self, tokens: list[int]) -> Float[Tensor, "1 T D"]:
        ids = torch.tensor([tokens], device=self.model.embedding.weight.device)
        return self.model.run_trunk(ids, self._positions(self.length, len(tokens)), caches=self.cache.trunk)

    def _first(self, z_BTD: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
        """Head 1 at the newest positions, behind `length` others."""
        return self.model.heads.first(z_BTD, self._positions(self.length, z_BTD.shape[1]), self.cache.heads)

    def _best(self, h_BTD: Float[Tensor, "1 T D"], heads: slice = slice(1)) -> list[int]:
        """The best token of each hidden state, of head 1 or one of each of `heads`; the first of equals, everywhere
        alike."""
        h_TD = self.model.norm(h_BTD[0])
        own = self.model.further_unembeddings
        if heads != slice(1) and len(own):
            logits = torch.stack([own[i](h) for i, h in enumerate(h_TD, start=heads.start - 1)])
        else:
            logits = self.model.unembedding(h_TD)
        return logits.argmax(-1).tolist()
