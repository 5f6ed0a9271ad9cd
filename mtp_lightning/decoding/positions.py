"""The caches of keys and values, where the new positions of a batch lie in them, and which keys each may look at.

A draft is a tree of tokens: its root is certain, a chain is the tree without branches. Its nodes take the cache slots
after a row's accepted tokens, in order, while a node's position in the text is that of its depth:

    text  A B C | nodes  D  (E E')  (F F')       slots 3 4 5 6 7, depths 0 1 1 2 2, F after E, F' after E'
                                                 F sees A B C D E F
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.errors import InputError
from mtp_lightning.machine import machine_memory
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.rope import rope_frequencies
from mtp_lightning.shapes import Float

PerRow = Sequence[int] | Tensor
"""One position of every row of a batch; a tensor on the device stands for numbers that the host does not know."""
MAX_NODES = 64
"""Tokens that one forward may verify in a row."""


@dataclass(frozen=True)
class Tree:
    """The shape of a draft: `branches[d]` candidates after every node of depth d."""

    branches: tuple[int, ...]

    @classmethod
    def chain(cls, length: int) -> "Tree":
        """One certain token and `length - 1` drafts in a row."""
        return cls((1,) * (length - 1))

    @cached_property
    def is_chain(self) -> bool:
        return all(branch == 1 for branch in self.branches)

    @property
    def depth(self) -> int:
        """Tokens on the longest path: how many one forward can make certain."""
        return len(self.branches) + 1

    @cached_property
    def size(self) -> int:
        """M, the number of nodes."""
        if self.is_chain:
            return self.depth
        return sum(math.prod(self.branches[:depth]) for depth in range(self.depth))

    @cached_property
    def levels(self) -> list[range]:
        """The nodes of each depth; breadth first, siblings side by side."""
        levels = [range(1)]
        for branch in self.branches:
            start = levels[-1].stop
            levels.append(range(start, start + len(levels[-1]) * branch))
        return levels

    @cached_property
    def parents(self) -> list[int]:
        """Of every node; the root is its own."""
        parents = [0]
        for above, level, branch in zip(self.levels, self.levels[1:], self.branches):
            parents += [above[i // branch] for i in range(len(level))]
        return parents

    @cached_property
    def depths(self) -> list[int]:
        return [depth for depth, level in enumerate(self.levels) for _ in level]

    def visible(self) -> Tensor:
        """(M, M), True where a node sees another: itself and what it follows."""
        if self.is_chain:
            return torch.ones(self.size, self.size, dtype=torch.bool).tril()
        seen = torch.eye(self.size, dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            seen[node] |= seen[parent]
        return seen


def check_tree(branches: Sequence[int], heads_used: int) -> Tree:
    """
    Raises:
        InputError: no candidate at some depth, more than MAX_NODES nodes, or more depths than drafts.
    """
    tree = Tree(tuple(branches))
    if any(branch < 1 for branch in branches):
        raise InputError(f"tree is {list(branches)}: every draft needs at least one candidate")
    if tree.depth > heads_used:
        raise InputError(f"tree is {list(branches)}: {heads_used} heads draft {heads_used - 1} tokens, and no more")
    if tree.size > MAX_NODES:
        raise InputError(f"tree is {list(branches)}: {tree.size} nodes, and {MAX_NODES} are the most in one forward")
    return tree


class NewPositions(NamedTuple):
    """Positions that a forward is about to compute, and what they may look at."""

    slots: slice | tuple[Tensor, Tensor]
    """In the S slots of a cache: a slice where all rows have the same, else indices of rows (B, 1) and slots (B, M)."""
    angles: Tensor
    """(B or 1, M, 1, E/2), complex: RoPE's rotation of each position."""
    span: int
    """The first slot after all those that hold anything to look at."""
    mask: Tensor | None
    """(B or 1, 1, M, span - first), added to the scores; None where all may be seen, or `causal` says it."""
    causal: bool = False
    first: int = 0
    """The first slot that is looked at."""

    def reaching(self, ends: PerRow, reach: int) -> "NewPositions":
        """Without the keys more than `reach` before the last position of the shortest row, where the host knows it."""
        if isinstance(ends, Tensor) or self.causal:
            return self
        first = max(min(ends) - reach, 0)
        return self._replace(first=first, mask=None if self.mask is None else self.mask[..., first:])


class KeyValues:
    """Keys and values of `layers` layers for B rows of S slots each, written in place. Rolling back needs nothing:
    slots after a row's accepted tokens are hidden by the mask, and written again.

    Raises:
        InputError: more than the machine's memory.
    """

    def __init__(self, layers: int, batch: int, size: int, kv_heads: int, like: Tensor, head_dim: int) -> None:
        nbytes = layers * 2 * batch * kv_heads * size * head_dim * like.element_size()
        memory = machine_memory() if like.device.type == "cpu" else None
        if memory is not None and nbytes > memory:
            raise InputError(
                f"keys and values of {size:,} tokens in {batch} texts take {nbytes / 2**30:,.1f} GiB, and this machine "
                f"has {memory / 2**30:,.1f}: ask for fewer new tokens, or fewer texts at a time"
            )
        self.data = like.new_zeros(layers, 2, batch, kv_heads, size, head_dim)  # a NaN would spread, masked or not
        self._views: dict[tuple[int, int], list[LayerCache]] = {}

    def layers(self, rows: slice) -> "list[LayerCache]":
        """Every layer's part for the given rows."""
        key = rows.start, rows.stop
        if key not in self._views:
            self._views[key] = [LayerCache(*layer[:, rows]) for layer in self.data]
        return self._views[key]

    def move_row(self, source: int, target: int) -> None:
        self.data[:, :, target] = self.data[:, :, source]

    def gather(self, row: int, start: int, slots: Tensor) -> None:
        """The given slots, in their order, become those from `start` on."""
        self.data[:, :, row, :, start : start + len(slots)] = self.data[:, :, row][:, :, :, slots]


class LayerCache:
    """One layer's part of `KeyValues`, for the rows in use."""

    def __init__(self, k_BKSE: Tensor, v_BKSE: Tensor) -> None:
        self.k_BKSE, self.v_BKSE = k_BKSE, v_BKSE
        self.pointers: list[Any] | None = None
        """What compiled layers know it by."""

    def write(self, new: NewPositions, k_BMKE: Tensor, v_BMKE: Tensor) -> None:
        if isinstance(new.slots, slice):
            self.k_BKSE[:, :, new.slots] = k_BMKE.transpose(1, 2)
            self.v_BKSE[:, :, new.slots] = v_BMKE.transpose(1, 2)
        else:
            rows_B1, slots_BM = new.slots
            self.k_BKSE[rows_B1, :, slots_BM] = k_BMKE
            self.v_BKSE[rows_B1, :, slots_BM] = v_BMKE

    def attend(self, new: NewPositions, q_BMHE: Float[Tensor, "B M H E"]) -> Float[Tensor, "B M D"]:
        seen = slice(new.first, new.span)
        k, v = self.k_BKSE[:, :, seen], self.v_BKSE[:, :, seen]
        y = F.scaled_dot_product_attention(
            q_BMHE.transpose(1, 2),
            k,
            v,
            attn_mask=new.mask,
            is_causal=new.causal,
            enable_gqa=q_BMHE.shape[2] != k.shape[1],
        )
        return y.transpose(1, 2).flatten(2)

    def heads(self, count: int) -> "LayerCache":
        """Of the first `count` key/value heads alone."""
        return LayerCache(self.k_BKSE[:, :count], self.v_BKSE[:, :count])


class PositionTables:
    """Makes `NewPositions` for caches of `size` slots, from tables of rotations and masks that are made once."""

    def __init__(self, size: int, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        positions = torch.arange(size, device=device, dtype=torch.float32)
        angles = positions[:, None] * rope_frequencies(config, device)
        lengths = torch.full_like(angles, config.rope_scaling.attention)
        self.angles = torch.polar(lengths, angles)[:, None]  # (S, 1, E/2)
        self.slots = torch.arange(size, device=device)
        self._tables: dict[Tree, Tensor] = {}

    def block(self, starts: PerRow, tree: Tree) -> NewPositions:
        """The nodes of `tree` after `starts[b]` accepted tokens of each row b."""
        M = tree.size
        if isinstance(starts, Tensor):
            return self._nodes(starts[:, None], tree, self.size)
        start, span = starts[0], max(starts) + M
        if start + M != span or min(starts) != start:
            return self._nodes(self._column(starts), tree, span)
        angles = self.angles[start:span] if tree.is_chain else self.angles[start + self._depths(tree)]
        new = NewPositions(slice(start, span), angles[None], span, None)
        if M == 1:
            return new
        if start == 0 and tree.is_chain:
            return new._replace(causal=True)
        return new._replace(mask=self._table(tree)[None, None, :, self.size - start : self.size + M])

    def window(self, ends: PerRow, length: int, masked: bool = True) -> NewPositions:
        """The last `length` of each row's `ends[b]` accepted tokens, in order; a shorter row repeats its first.

        Args:
            masked: False where nothing will be looked at from there.
        """
        if isinstance(ends, Tensor):
            return self._tokens(ends[:, None], length, self.size, masked)
        if min(ends) == max(ends) >= length and (length <= MAX_NODES or length == ends[0]):
            return self.block([end - length for end in ends], Tree.chain(length))
        return self._tokens(self._column(ends), length, max(ends), masked)

    def _nodes(self, starts_B1: Tensor, tree: Tree, span: int) -> NewPositions:
        # slot s of a row holds an accepted token where s < start and node s - start from there on
        columns_BS = (self.slots[:span] - starts_B1 + self.size).clamp_(max=self.size + tree.size)
        mask_BMS = self._table(tree).t()[columns_BS].transpose(1, 2).contiguous()
        nodes = self.slots[: tree.size]
        positions_BM = starts_B1 + (nodes if tree.is_chain else self._depths(tree))
        return NewPositions(self._indices(starts_B1 + nodes), self.angles[positions_BM], span, mask_BMS[:, None])

    def _tokens(self, ends_B1: Tensor, length: int, span: int, masked: bool) -> NewPositions:
        positions_BL = (ends_B1 - length + self.slots[:length]).clamp_(min=0)
        new = NewPositions(self._indices(positions_BL), self.angles[positions_BL], span, None)
        if not masked:
            return new
        return new._replace(mask=self._hide(self.slots[:span] > positions_BL[:, :, None])[:, None])

    def _indices(self, slots_BM: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(slots_BM), device=self.device)[:, None], slots_BM

    def _column(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device)[:, None]

    def _depths(self, tree: Tree) -> Tensor:
        return torch.tensor(tree.depths, device=self.device)

    def _hide(self, hidden: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))

    def _table(self, tree: Tree) -> Tensor:
        """(M, S + M + 1): what a node may see of S accepted tokens, the nodes, and an empty slot after them.

        A row with `start` accepted tokens takes the columns from S - start on, so that one table serves every start.
        """
        if tree not in self._tables:
            hidden = torch.ones(tree.size, self.size + tree.size + 1, dtype=torch.bool, device=self.device)
            hidden[:, : self.size] = False
            hidden[:, self.size : -1] = ~tree.visible().to(self.device)
            self._tables[tree] = self._hide(hidden)
        return self._tables[tree]
