"""Decoding with caches, plain or self-speculative (paper, section 3; Stern et al. 2018): the same text, sooner.
`reference.py` is the same in a few plain lines.

After a forward whose last accepted token is x_t there are a_1, head 1's choice (certain to be right), and a_2 .. a_k,
those of heads 2 .. k (drafts). One forward over a_1 .. a_k then

    verifies    a_1 is accepted; a_{j+1} is, while it equals head 1's choice at a_j: a_1 .. a_m, 1 <= m <= k
    proposes    head 1's choice at a_m is the next certain token, heads 2 .. k at a_m draft again
    rolls back  the caches of trunk and heads to a_m

With k = 1 nothing is drafted: plain decoding.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.decoding.adaptive import Adaptive
from mtp_lightning.decoding.choosing import Sampling, make_chooser
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.positions import check_tree
from mtp_lightning.decoding.session import Session
from mtp_lightning.decoding.static import StaticSession
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Int

HeadsUsed = int | Literal["auto"]


class Step(NamedTuple):
    """New tokens of one text, in order, and the block whose forward made them certain."""

    row: int
    """Which of the prompts."""
    tokens: list[int]
    block: list[int]
    """What was verified: one certain token, then drafts (of a tree, all of its nodes). Empty for a text's last token,
    which is certain without a forward of its own."""


class Generation(NamedTuple):
    """Newly generated tokens of one text and the forwards, after the prompt's, that they took."""

    tokens: list[int]
    steps: list[Step]

    @property
    def tokens_per_forward(self) -> float:
        """Accepted tokens per forward: 1 for plain decoding, at most the number of heads used (table S2)."""
        return sum(len(step.tokens) for step in self.steps) / len(self.steps) if self.steps else float("nan")


def count_bytes(steps: Iterable[Step], token_bytes: Sequence[int]) -> int:
    """Bytes of text of all tokens that these steps made certain.

    Args:
        token_bytes: of each token of the tokenizer; a model may have more rows, which stand for no text.
    """
    known = len(token_bytes)
    return sum(token_bytes[token] for step in steps for token in step.tokens if token < known)


def generate(
    engine: Engine,
    prompts: Sequence[Int[Tensor, "_"]],
    max_new_tokens: int,
    heads_used: HeadsUsed | None = None,
    stop_ids: Collection[int] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    tree: Sequence[int] | None = None,
) -> list[Generation]:
    """Continue each prompt until a stop token (kept as the last) or `max_new_tokens`.

    Args:
        heads_used: k. 1 decodes plainly, more draft and verify; by default all that the engine was made for. "auto": as
            many as pay, by what the engine has measured in this text and those before.
        tree: candidates for each draft, of heads 2, 3, ..: [3, 2] verifies 3 first drafts, each with 2 second ones.
            A single one each, a chain, by default.

    Raises:
        InputError: no prompt or an empty one, heads that the engine does not have, a tree that does not fit.
    """
    out = [Generation([], []) for _ in prompts]
    for step in stream(engine, prompts, max_new_tokens, heads_used, stop_ids, sampling, tree):
        out[step.row].tokens.extend(step.tokens)
        if step.block:
            out[step.row].steps.append(step)
    return out


def stream(
    engine: Engine,
    prompts: Sequence[Int[Tensor, "_"]],
    max_new_tokens: int,
    heads_used: HeadsUsed | None = None,
    stop_ids: Collection[int] = (),
    sampling: Sampling = Sampling(),  # noqa: B008
    tree: Sequence[int] | None = None,
    ended: Collection[int] = (),
) -> Iterator[Step]:
    """`generate`, step by step: after every forward a `Step` of each row that is not finished.

    Args:
        ended: prompts whose text is to end where it is. The caller may add to them while it reads.
    """
    most = engine.heads_used if heads_used in (None, "auto") else int(heads_used)
    if not prompts or any(prompt.numel() == 0 for prompt in prompts):
        raise InputError("the prompt is empty: a token is predicted from the ones before it, so give at least one")
    if not 1 <= most <= engine.heads_used:
        raise InputError(f"heads_used is {heads_used}: the model was prepared for at most {engine.heads_used}")
    shape = check_tree(tree, engine.heads.head_offsets[most - 1]) if tree else None
    if shape and (sampling.accept == "ratio" or heads_used == "auto"):
        raise InputError("a tree of drafts goes with a fixed number of heads, and with acceptance by match")
    if shape and max(shape.branches) > engine.config.vocab_size:
        raise InputError(f"tree is {list(shape.branches)}: the vocabulary has {engine.config.vocab_size} tokens")
    if max_new_tokens < 1:
        return
    greedy = sampling.temperature == 0 and shape is None
    made = StaticSession if greedy and _static(engine) else Session
    session = made(engine, prompts, max_new_tokens, make_chooser(sampling), shape)
    adaptive = Adaptive(engine.experience, len(prompts), _clock(engine)) if heads_used == "auto" else None
    verified = drafted = adaptive.used if adaptive else most
    certain = session.read_prompts(drafted)
    rows = [_Row(i, max_new_tokens, stop_ids) for i in range(len(prompts))]
    while True:
        for index in reversed(range(session.batch)):  # from the last: the last row takes the place of one that leaves
            row = rows[index]
            if row.number in ended:
                row.left = 0
            if row.ends_with(certain[index]):
                yield Step(row.number, [certain[index]], [])
                row.left = 0
            if row.left == 0:
                session.remove(index)
                rows[index], certain[index] = rows[-1], certain[-1]
                rows.pop()
                certain.pop()
        if not rows:
            return
        if adaptive:
            adaptive.start()
        advances = session.step(drafted)
        if adaptive:
            accepted = [len(advance.accepted) for advance in advances]
            left = max(row.left for row in rows)
            verified, drafted = drafted, adaptive.next(verified, drafted, accepted, left)
        for row, advance in zip(rows, advances):
            yield Step(row.number, row.take(advance.accepted), advance.block)
        certain = [advance.certain for advance in advances]


def _clock(engine: Engine) -> Callable[[], float]:
    """What others do on the machine does not lengthen the processor's time, where one thread does all the work."""
    alone = engine.device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _static(engine: Engine) -> bool:
    """Whether steps of constant shape pay, as they can be recorded, and cover this engine's drafts."""
    gaps = engine.drafter is not None and engine.heads.horizon != engine.heads.n_future
    return engine.device.type == "cuda" and not gaps


class _Row:
    """What is left to generate of one text."""

    def __init__(self, number: int, left: int, stop_ids: Collection[int]) -> None:
        self.number, self.left, self.stop_ids = number, left, stop_ids

    def ends_with(self, certain: int) -> bool:
        """Whether a token that is certain is the last: it needs no forward."""
        return self.left == 1 or (self.left > 0 and certain in self.stop_ids)

    def take(self, tokens: Sequence[int]) -> list[int]:
        """Those of the accepted tokens that belong to the text."""
        tokens = list(tokens[: self.left])
        for i, token in enumerate(tokens, start=1):
            if token in self.stop_ids:
                tokens, self.left = tokens[:i], i
                break
        self.left -= len(tokens)
        return tokens
