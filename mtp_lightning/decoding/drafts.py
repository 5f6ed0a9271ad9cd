"""Drafting: how heads 2 .. k of every kind propose the tokens after the certain next one.

One interface for all. A drafter reads its input (the trunk's output, or head 1's state) at a window of accepted
positions that ends at each row's last, p, brings its own caches up to date, and proposes the tokens 2, 3, ..
ahead of p. Heads that leap leave gaps; a gap is filled by the same head from a position before p (L-MTP, arXiv
2505.17505):

    heads look 1, 3 and 4 tokens ahead      token p + 2: head 2 at p - 1,  p + 3: head 2 at p,  p + 4: head 3 at p

Nothing here can make a text wrong, only slow: head 1 verifies every draft.
"""

import copy
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.decoding.layers import FinalNorm, Norm, Plain, folded
from mtp_lightning.decoding.positions import KeyValues, LayerCache, PerRow, PositionTables
from mtp_lightning.errors import InputError
from mtp_lightning.model.block import Block
from mtp_lightning.model.config import SIDE_BY_SIDE
from mtp_lightning.model.heads import Join, LinearHead, Source, sources
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.networks.fetch import Fetch
from mtp_lightning.model.networks.next_latent import LatentNetwork
from mtp_lightning.shapes import Float

Caches = Sequence[LayerCache]
"""Of the further heads' layers, in the order in which `draft` runs them."""


class DraftedText:
    """The text that a drafter reads, and adds its proposals to."""

    def embedded(self, length: int, offset: int) -> Float[Tensor, "B L D"]:
        """Embeddings of the tokens `offset` positions after those of the window, drafts included."""
        raise NotImplementedError

    def propose(self, states_BJD: Float[Tensor, "B J D"], heads: Sequence[int]) -> None:
        """Choose the next J tokens, from these states (before the norm) of these heads."""
        raise NotImplementedError


class Drafter:
    """The further heads of one model.

    Attributes:
        lookback: accepted positions that every draft reads again: for gaps, or since their tokens were drafts before.
        reach: positions back that the heads' attention looks.
    """

    def __init__(self, model: MTPModel, heads_used: int) -> None:
        self.heads_used = heads_used
        self.offsets = model.heads_config.head_offsets
        self.lookback = max(source.shift for source in sources(self.offsets, heads_used))
        self.reach = sys.maxsize

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> KeyValues | None:
        """Caches of its own for that many rows and slots, of heads 2 .. `heads_used`."""
        raise NotImplementedError

    def nbytes(self, count: int) -> tuple[int, int]:
        """(bytes of weights, bytes of keys and values per position) that drafting with heads 2 .. `count` reads."""
        raise NotImplementedError

    def draft(
        self,
        x_BLX: Float[Tensor, "B L X"],
        tables: PositionTables,
        ends: PerRow,
        cache: Caches,
        count: int,
        text: DraftedText,
    ) -> None:
        """Propose with heads 2 .. `count` from their input at the last L of each row's `ends[b]` positions."""
        raise NotImplementedError


class ParallelDrafter(Drafter):
    """Heads of one layer each on the trunk's output, as one batched layer."""

    def __init__(self, model: MTPModel, heads_used: int, made: Plain, reach: int, rounded: bool) -> None:
        super().__init__(model, heads_used)
        blocks: list[Block] = [model.heads[i][0] for i in range(1, heads_used)]
        self.layers, self.reach = made.side_by_side(blocks, rounded), reach

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> KeyValues:
        layers = self.layers
        return KeyValues(1, batch, size, (heads_used - 1) * layers.kv_heads, like, layers.head_dim)

    def nbytes(self, count: int) -> tuple[int, int]:
        return self.layers.nbytes(count - 1)

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        L = x_BLX.shape[1]
        Q = min(L, 1 + self.lookback)
        last = tables.window(ends, Q).reaching(ends, self.reach)
        h_GBQD = self.layers(x_BLX, tables.window(ends, L, masked=False), last, cache[0], count - 1)
        _propose_all(h_GBQD, sources(self.offsets, count), text)


class LinearDrafter(Drafter):
    """Linear heads: a matrix each on the trunk's output."""

    def __init__(self, model: MTPModel, heads_used: int, dtype: torch.dtype) -> None:
        super().__init__(model, heads_used)
        heads: list[LinearHead] = [model.heads[i] for i in range(1, heads_used)]
        self.weight_GIO = torch.stack([head.projection.weight.detach().to(dtype).t() for head in heads]).contiguous()

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> None:
        return None

    def nbytes(self, count: int) -> tuple[int, int]:
        return self.weight_GIO[: count - 1].nbytes, 0

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        B, Q = len(x_BLX), min(x_BLX.shape[1], 1 + self.lookback)
        rows_RD = x_BLX[:, -Q:].reshape(B * Q, -1)
        h_GRD = rows_RD @ self.weight_GIO[: count - 1]
        _propose_all(h_GRD.view(len(h_GRD), B, Q, -1), sources(self.offsets, count), text)


class AnticausalDrafter(Drafter):
    """Heads below head 1, which has run them all: their states are there already."""

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> None:
        return None

    def nbytes(self, count: int) -> tuple[int, int]:
        return 0, 0

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        h_BLGD = x_BLX.view(*x_BLX.shape[:2], self.heads_used - 1, -1)
        _propose_all(h_BLGD.permute(2, 0, 1, 3), sources(self.offsets, count), text)


class LatentDrafter(Drafter):
    """NextLat's network, from head 1's state after its norm on from draft to draft. It looks at no position but the
    last: there is nothing to keep, and nothing to read again."""

    def __init__(self, model: MTPModel, heads_used: int, made: Plain) -> None:
        super().__init__(model, heads_used)
        network: LatentNetwork = model.heads[1]
        self.final_norm, self.norm = FinalNorm(model.norm, made.activations), Norm(network.norm)
        self.first = made.linear(folded(network.first, network.norm))
        self.second, self.last = made.linear(network.second.weight), made.linear(network.last.weight)

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> None:
        return None

    def nbytes(self, count: int) -> tuple[int, int]:
        return self.first.nbytes + self.second.nbytes + self.last.nbytes, 0

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        h_B1D = self.final_norm(x_BLX[:, -1:])
        for number in range(2, count + 1):
            joined_B1J = torch.cat((text.embedded(1, number - 1), h_B1D), dim=-1)
            x_B1H = self.second(F.gelu(self.first.of_normed(joined_B1J, self.norm)))
            h_B1D = h_B1D + self.last(F.gelu(x_B1H))
            text.propose(h_B1D, [number])


class FetchDrafter(Drafter):
    """JTP's fetch, of head 1's state after its norm and of one slot more for every draft; nothing is kept either."""

    def __init__(self, model: MTPModel, heads_used: int, made: Plain) -> None:
        super().__init__(model, heads_used)
        fetch: Fetch = model.heads[1]
        self.final_norm, self.slot_norm = FinalNorm(model.norm, made.activations), copy.deepcopy(fetch.slot_norm)
        self.gain, bias = (x.detach().to(made.activations, copy=True) for x in (fetch.gain, fetch.pair_bias))
        self.bias_HMN = bias.view(fetch.n_heads, -1, model.n_future)
        self.wq, self.wk, self.wv, self.wo = (made.linear(w.weight) for w in (fetch.wq, fetch.wk, fetch.wv, fetch.wo))

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> None:
        return None

    def nbytes(self, count: int) -> tuple[int, int]:
        return sum(w.nbytes for w in (self.wq, self.wk, self.wv, self.wo)), 0

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        h_B1D, bias_HMN = self.final_norm(x_BLX[:, -1:]), self.bias_HMN
        keys, values = h_B1D[:, :0], h_B1D[:, :0]
        for number in range(1, count + 1):
            s_B1D = self._slot(text.embedded(1, number - 1), h_B1D)
            keys, values = torch.cat((keys, self.wk(s_B1D)), dim=1), torch.cat((values, self.wv(s_B1D)), dim=1)
            if number == 1:
                continue
            q_BH1E, k_BHNE, v_BHNE = (
                x.view(*x.shape[:2], len(bias_HMN), -1).transpose(1, 2) for x in (self.wq(s_B1D), keys, values)
            )
            bias_H1N = bias_HMN[:, number - 2 : number - 1, :number]
            mixed_BH1E = F.scaled_dot_product_attention(q_BH1E, k_BHNE, v_BHNE, attn_mask=bias_H1N)
            text.propose(h_B1D + self.wo(mixed_BH1E.transpose(1, 2).flatten(-2)), [number])

    def _slot(self, e_B1D: Tensor, h_B1D: Tensor) -> Tensor:
        norm = self.slot_norm
        x_B1D = (e_B1D + self.gain * h_B1D).to(norm.weight.dtype)
        return F.layer_norm(x_B1D, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(h_B1D.dtype)


class SequentialDrafter(Drafter):
    """Heads run one after the other: causal, sequential and recurrent ones, and parallel ones of several layers.

    A sequential head reads the token before its target, which may be a draft; so its keys and values at the last
    positions are those of a guess, and the next window computes them again.
    """

    def __init__(self, model: MTPModel, heads_used: int, made: Plain) -> None:
        super().__init__(model, heads_used)
        kind = model.heads_config.kind
        self.on_each_other = kind not in SIDE_BY_SIDE
        modules = [model.heads[min(i, len(model.heads) - 1)] for i in range(1, heads_used)]
        layers = {module: _HeadLayers(module, made) for module in modules}
        self.heads = [layers[module] for module in modules]
        self.config = model.config
        self.read_through: list[FinalNorm] | None = None
        """Of each drafting head, the norm of the one before it, where that one hands on what is after it."""
        if model.heads_config.norms == "own":
            norms = model.final_norms()[: heads_used - 1]
            self.read_through = [FinalNorm(norm, made.activations) for norm in norms if norm is not None]
        if self.heads[0].joins:
            self.lookback = max(self.lookback, self.offsets[heads_used - 2] - 1)

    def key_values(self, batch: int, size: int, like: Tensor, heads_used: int) -> KeyValues:
        layers = sum(
            len(head.layers) for head in self.heads[: heads_used - 1]
        )  # a shared module keeps what each of its heads saw
        return KeyValues(layers, batch, size, self.config.kv_heads, like, self.config.head_size)

    def nbytes(self, count: int) -> tuple[int, int]:
        parts = [part for head in self.heads[: count - 1] for part in head.layers]
        own = dict.fromkeys(self.heads[: count - 1])  # a shared module once
        weights = sum(layer.nbytes for head in own for layer in head.layers)
        return weights + sum(head.projection.nbytes for head in own if head.joins), sum(
            layer.position_bytes for layer in parts
        )

    def draft(
        self, x_BLX: Tensor, tables: PositionTables, ends: PerRow, cache: Caches, count: int, text: DraftedText
    ) -> None:
        L = x_BLX.shape[1]
        new, index, h_BLD = tables.window(ends, L), 0, x_BLX
        for number, head in enumerate(self.heads[: count - 1], start=2):
            if self.read_through is not None:
                h_BLD = self.read_through[number - 2](h_BLD)
            if head.joins:
                h_BLD = head.join(h_BLD, text.embedded(L, self.offsets[number - 2]))
            elif not self.on_each_other:
                h_BLD = x_BLX
            for layer in head.layers:
                h_BLD = layer(h_BLD, new, cache[index])
                index += 1
            own = [source for source in sources(self.offsets, count) if source.head == number]
            if len(own) == 1:
                text.propose(h_BLD[:, -1:], [number])
            else:
                columns = [max(L - 1 - source.shift, 0) for source in own]
                text.propose(h_BLD[:, columns], [number] * len(own))


class _HeadLayers:
    """The layers of one head, and what joins a token's embedding to its input (DeepSeek-V3, equation 21)."""

    def __init__(self, module: nn.Module, made: Plain) -> None:
        self.joins = isinstance(module, Join)
        stack = module.stack if isinstance(module, Join) else module
        assert isinstance(stack, nn.ModuleList)
        self.layers = [made.layer(block) for block in stack]  # type: ignore[arg-type]
        if isinstance(module, Join):
            self.hidden_norm, self.embedding_norm = Norm(module.hidden_norm), Norm(module.embedding_norm)
            norms = torch.cat((module.hidden_norm.weight, module.embedding_norm.weight)).detach()
            weight = module.projection.weight.detach() * norms * math.sqrt(module.hidden_norm.weight.numel())
            self.projection = made.linear(weight)

    def join(self, h_BLD: Tensor, e_BLD: Tensor) -> Tensor:
        return self.projection(torch.cat((self.hidden_norm(h_BLD), self.embedding_norm(e_BLD)), dim=-1))


def _propose_all(h_GBQD: Float[Tensor, "G B Q D"], of: Sequence[Source], text: DraftedText) -> None:
    """Propose all tokens at once, from states at the last Q positions (fewer where the text is shorter)."""
    Q = h_GBQD.shape[2]
    heads = [source.head for source in of]
    if not any(source.shift for source in of):
        h_JBD = h_GBQD[: len(of), :, -1]
    else:
        h_JBD = h_GBQD[[head - 2 for head in heads], :, [max(Q - 1 - source.shift, 0) for source in of]]
    text.propose(h_JBD.transpose(0, 1), heads)


def make_drafter(model: MTPModel, heads_used: int, made: Plain, reach: int, rounded: bool) -> Drafter | None:
    """The drafter for heads 2 .. `heads_used`; None for one head, which drafts nothing.

    Args:
        made: what its layers are made of.
        reach: positions back that parallel heads look; `rounded`: whether their SwiGLUs are in bfloat16.

    Raises:
        InputError: not that many heads, or of a kind that cannot draft.
    """
    heads = model.heads_config
    if not 1 <= heads_used <= heads.n_future:
        raise InputError(f"heads_used is {heads_used}: this model has {heads.n_future} prediction heads")
    if heads_used == 1:
        return None
    if heads_used > heads.max_heads_used:
        raise InputError(
            f"heads_used is {heads_used}: a model of kind '{heads.kind}' has no head of its own for the tokens "
            "further ahead, and nothing to draft with; use 1"
        )
    if heads.kind == "linear":
        return LinearDrafter(model, heads_used, made.activations)
    if heads.kind == "anticausal":
        return AnticausalDrafter(model, heads_used)
    if heads.kind == "next_latent":
        return LatentDrafter(model, heads_used, made)
    if heads.kind == "fetch":
        return FetchDrafter(model, heads_used, made)
    if heads.kind in SIDE_BY_SIDE and heads.layers == 1:
        return ParallelDrafter(model, heads_used, made, reach, rounded)
    return SequentialDrafter(model, heads_used, made)
