"""Which window of a split is looked at when: pure functions of (seed, epoch, index), in constant memory.

A window is T + horizon tokens. In an epoch the windows start at phase, phase + T, phase + 2T, ...: no token is an input
twice. The phase is drawn anew each epoch, so that windows are not always cut at the same places, and the order of the
windows is a keyed bijection of [0, n), so no list of n indices is ever made.

Windows are counted as if the horizon were `HORIZON_RESERVE`, R = 16. So runs with 1, 2, 4 or 8 heads and the same seed
see the same inputs in the same order, and only the targets beyond the window's T inputs differ. What that costs: the
last R tokens of a split are never an input, nor the last R - 1 a target of head 1; and as every epoch has the same
number of windows, it leaves out up to 2 T - 2 more tokens, before its phase and after its last window: other ones from
epoch to epoch.

Example with T = 4, horizon = 2, phase 1 and windows in the order 1, 0:

    tokens    0 1 2 3 4 5 6 7 8 9 10 ...
    sample 0            [5 6 7 8 9 10]
    sample 1    [1 2 3 4 5 6]
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtp_lightning.shapes import Int

HORIZON_RESERVE = 16
"""Tokens after its inputs that every window has room for, used or not."""
_ROUNDS = 6

Words = np.ndarray[Any, np.dtype[np.uint64]]


def tokens_needed(context: int, horizon: int) -> int:
    """The tokens a split must have for one window."""
    return context + max(horizon, HORIZON_RESERVE)


@dataclass(frozen=True)
class TrainingOrder:
    """Sample g is window g % `windows_per_epoch` of epoch g // `windows_per_epoch`, without end."""

    n_tokens: int
    context: int
    horizon: int
    seed: int

    def __post_init__(self) -> None:
        assert self.n_tokens >= tokens_needed(self.context, self.horizon)

    @property
    def phases(self) -> int:
        """The phase is below this: T, or less where the split is hardly longer than one window."""
        return min(self.context, self._spare + 1)

    @property
    def windows_per_epoch(self) -> int:
        """The same in every epoch: as many as fit at the largest phase."""
        return (self._spare - (self.phases - 1)) // self.context + 1

    @property
    def _spare(self) -> int:
        return self.n_tokens - tokens_needed(self.context, self.horizon)

    def starts(self, samples: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """Where the windows of these samples start."""
        epochs, indices = np.divmod(samples, self.windows_per_epoch)
        out = np.empty_like(indices)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            phase, *keys = random_words(f"{self.seed} {epoch}", 1 + _ROUNDS)
            windows = permute(indices[at], self.windows_per_epoch, keys)
            out[at] = phase % self.phases + windows * self.context
        return out


@dataclass(frozen=True)
class ValidationOrder:
    """Windows spread evenly over the split, the same for every run: at most `limit`, none overlapping another's
    inputs, and consecutive where all are taken."""

    n_tokens: int
    context: int
    horizon: int
    limit: int | None

    @property
    def n_windows(self) -> int:
        return self._fitting if self.limit is None else min(self.limit, self._fitting)

    @property
    def _fitting(self) -> int:
        return (self.n_tokens - tokens_needed(self.context, self.horizon)) // self.context + 1

    def starts(self, samples: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """Where the windows of these samples, all below `n_windows`, start."""
        return samples * self._fitting // self.n_windows * self.context


def prompt_starts(document_starts: Int[np.ndarray, "documents"], n_tokens: int, count: int, length: int) -> list[int]:
    """Where `count` pieces of `length` tokens start: evenly over the documents that are longer, and, where these are
    fewer, evenly inside each of them. If there are none, evenly over the split."""
    rooms = np.diff(document_starts, append=n_tokens) - 1 - length  # the end of a document is no part of a prompt
    fitting = np.flatnonzero(rooms >= 0)
    if not len(fitting):
        return [int(start) for start in np.linspace(0, n_tokens - length, count).astype(np.int64)]
    visits = -(-count // len(fitting))
    n_visited = -(-count // visits)
    starts = []
    for i in range(count):
        turn, visit = divmod(i, visits)
        document = fitting[turn * len(fitting) // n_visited]
        starts.append(int(document_starts[document] + rooms[document] * (2 * visit + 1) // (2 * visits)))
    return starts


def shuffled(samples: Int[np.ndarray, "B"], n: int, seed: int) -> Int[np.ndarray, "B"]:
    """Sample g is one of [0, n): in every epoch of n samples each is one once, in an order of the epoch's own."""
    epochs, indices = np.divmod(samples, n)
    out = np.empty_like(indices)
    for epoch in np.unique(epochs):
        at = epochs == epoch
        out[at] = permute(indices[at], n, random_words(f"{seed} {epoch}", _ROUNDS))
    return out


def permute(indices: Int[np.ndarray, "B"], n: int, keys: list[int]) -> Int[np.ndarray, "B"]:
    """A bijection of [0, n), chosen by the keys: a Feistel network on the next power of four, walked along its cycle
    until it is back below n. (A walk that starts below n must come back there, and by itself is a bijection.)"""
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    out = _feistel(indices.astype(np.uint64), half_bits, keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], half_bits, keys)
    return out.astype(np.int64)


def _feistel(x: Words, half_bits: int, keys: list[int]) -> Words:
    """A bijection of [0, 4**half_bits): each round stirs one half into the other, which can be undone, and swaps."""
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> bits, x & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ np.uint64(key)) & mask)
    joined: Words = (left << bits) | right
    return joined


def mix(x: Words) -> Words:
    """Every bit of the result depends on every bit of x (the finalizer of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed


def random_words(name: str, count: int) -> list[int]:
    """Random 64-bit numbers that depend on the name only: not on the platform, nor on a library's generator."""
    digest = hashlib.blake2b(name.encode(), digest_size=8 * count).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]
