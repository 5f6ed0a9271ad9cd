"""A model's transformer layers in the form decoding runs them: few operations, each on few rows.

Against `model.block.Block`, which they equal but for rounding: the norms' weights are multiplied into the maps after
them, the three maps of the attention are one and so are two of the SwiGLU's, and RoPE's pairs of coordinates lie side
by side, so that a rotation is one complex product (the same change of order in queries and keys leaves their products
alone).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.decoding.linear import Grouped, Linear, RoundedGrouped
from mtp_lightning.decoding.positions import LayerCache, NewPositions
from mtp_lightning.model.block import Block
from mtp_lightning.shapes import Float


class Norm:
    """x / |x|, RMSNorm but for its weight and the root of the width, which are part of the map after it (`folded`).

    RMSNorm divides by sqrt(|x|^2 / D + eps), which is hypot(|x|, sqrt(D eps)) / sqrt(D).
    """

    def __init__(self, norm: nn.RMSNorm) -> None:
        (dim,) = norm.normalized_shape
        self.floor_value = math.sqrt(dim * (norm.eps or 0.0))
        self.floor = torch.tensor(self.floor_value, device=norm.weight.device)

    def __call__(self, x_BMD: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        length = torch.linalg.vector_norm(x_BMD, dim=-1, keepdim=True, dtype=wide(x_BMD))
        return (x_BMD / torch.hypot(length, self.floor)).to(x_BMD.dtype)


class FinalNorm:
    """RMSNorm with its weight, for states that several maps read."""

    def __init__(self, norm: nn.RMSNorm, dtype: torch.dtype) -> None:
        self.norm = Norm(norm)
        self.gain_D = (norm.weight.detach() * math.sqrt(norm.weight.numel())).to(dtype)

    def __call__(self, x_BMD: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return self.norm(x_BMD) * self.gain_D


def wide(x: Tensor) -> torch.dtype:
    """The precision in which lengths and rotations are computed: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def folded(linear: nn.Linear, norm: nn.RMSNorm) -> Tensor:
    """The weight of `linear(norm(x))` as a map of `Norm`'s output."""
    return linear.weight.detach() * norm.weight.detach() * math.sqrt(linear.in_features)


def side_by_side(rows: Float[Tensor, "O *I"], head_dim: int) -> Float[Tensor, "O *I"]:
    """Rows reordered so that RoPE's pairs (j, j + E/2) of each attention head become (2j, 2j + 1)."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


class QKV(NamedTuple):
    """What one layer's queries, keys or values are made with, in the order of `side_by_side` where they are rotated."""

    weight: Tensor
    """(O, D), of `Norm`'s output."""
    bias: Tensor | None
    gains: Tensor | None
    """(O / E, E), what the normed vectors are multiplied with, where each attention head has a norm."""


def qkv_of(block: Block) -> tuple[QKV, QKV, QKV]:
    """Of queries, keys and values."""
    attention, E = block.attention, block.attention.head_dim

    def rotated(linear: nn.Linear, norm: nn.RMSNorm | None) -> QKV:
        plain = unrotated(linear)
        bias = None if plain.bias is None else side_by_side(plain.bias, E)
        gains_E = None if norm is None else side_by_side(norm.weight.detach(), E) * math.sqrt(E)
        gains = None if gains_E is None else gains_E.expand(linear.out_features // E, E)
        return QKV(side_by_side(plain.weight, E), bias, gains)

    def unrotated(linear: nn.Linear) -> QKV:
        return QKV(folded(linear, block.attention_norm), None if linear.bias is None else linear.bias.detach(), None)

    return rotated(attention.wq, attention.q_norm), rotated(attention.wk, attention.k_norm), unrotated(attention.wv)


class HeadNorm:
    """RMSNorm of each attention head's queries or keys, with gains of their own."""

    def __init__(self, norm: nn.RMSNorm, parts: Sequence[QKV], dtype: torch.dtype) -> None:
        self.norm = Norm(norm)
        gains = [part.gains for part in parts if part.gains is not None]
        self.gain_HE = torch.cat(gains).to(torch.promote_types(dtype, torch.float32))

    def __call__(self, x_BMHE: Float[Tensor, "B M H E"]) -> Float[Tensor, "B M H E"]:
        return (self.norm(x_BMHE.to(self.gain_HE.dtype)) * self.gain_HE).to(x_BMHE.dtype)


def stacked(parts: Sequence[QKV], dtype: torch.dtype) -> Linear:
    """One map for several, their outputs side by side."""
    biases = [part.bias for part in parts if part.bias is not None]
    return Linear(torch.cat([part.weight for part in parts]), dtype, torch.cat(biases) if biases else None)


def rotate(x_BMHE: Float[Tensor, "B M H E"], angles: Tensor) -> Float[Tensor, "B M H E"]:
    """RoPE on neighbouring coordinates."""
    pairs = torch.view_as_complex(x_BMHE.to(wide(x_BMHE)).view(*x_BMHE.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles).view(x_BMHE.shape).to(x_BMHE.dtype)


class Layer:
    """One transformer layer, for any number of new positions."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, ffn = block.attention, block.ffn
        self.head_dim = attention.head_dim
        self.kv_heads = attention.wk.out_features // self.head_dim
        self.attention_norm, self.ffn_norm = Norm(block.attention_norm), Norm(block.ffn_norm)
        parts = qkv_of(block)
        self.qkv = stacked(parts, dtype)
        self.qk_norm = None if attention.q_norm is None else HeadNorm(attention.q_norm, parts[:2], dtype)
        self.wo = Linear(attention.wo.weight, dtype)
        self.gate_up = Linear(torch.cat([folded(ffn.gate, block.ffn_norm), folded(ffn.up, block.ffn_norm)]), dtype)
        self.down = Linear(ffn.down.weight, dtype)
        self.itemsize = dtype.itemsize

    def __call__(self, x_BMD: Float[Tensor, "B M D"], new: NewPositions, cache: LayerCache) -> Float[Tensor, "B M D"]:
        qkv = self.qkv(self.attention_norm(x_BMD)).view(*x_BMD.shape[:2], -1, self.head_dim)
        qk = qkv[:, :, : -self.kv_heads]
        turned = rotate(qk if self.qk_norm is None else self.qk_norm(qk), new.angles)
        cache.write(new, turned[:, :, -self.kv_heads :], qkv[:, :, -self.kv_heads :])
        x_BMD = x_BMD + self.wo(cache.attend(new, turned[:, :, : -self.kv_heads]))
        gate, up = self.gate_up(self.ffn_norm(x_BMD)).chunk(2, dim=-1)
        return x_BMD + self.down(F.silu(gate) * up)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one forward reads."""
        return sum(w.nbytes for w in (self.qkv, self.wo, self.gate_up, self.down))

    @property
    def position_bytes(self) -> int:
        """Bytes of keys and values of one position."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize


class Path:
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    def __call__(
        self, x_BMD: Float[Tensor, "B M D"], new: NewPositions, caches: "Sequence[LayerCache]"
    ) -> Sequence[Float[Tensor, "B M D"]]:
        """Every layer's output."""
        outs = [x_BMD]
        for layer, cache in zip(self.layers, caches):
            outs.append(layer(outs[-1], new, cache))
        return outs[1:]


class _Maps(NamedTuple):
    """The attention's maps of several layers with the same input."""

    to_kv: Linear
    to_q: Linear
    q_norm: HeadNorm | None
    k_norm: HeadNorm | None


class SideBySide:
    """G transformer layers with the same input, as one: heads 2 .. n of a parallel model.

    Their keys and values cover every position; everything else runs at the Q last positions alone. That is exact: keys
    and values depend on the input, never on the layer's own output.

    Args:
        rounded: the SwiGLUs, most of the weights, in bfloat16.
    """

    def __init__(self, blocks: Sequence[Block], dtype: torch.dtype, rounded: bool) -> None:
        first = blocks[0]
        E = first.attention.head_dim
        self.head_dim = E
        self.kv_heads = first.attention.wk.out_features // E
        self.norm, self.dtype = Norm(first.attention_norm), dtype
        self.queries, self.keys, self.values = zip(*(qkv_of(block) for block in blocks))
        self.head_norm = first.attention.q_norm
        self._maps: dict[int, _Maps] = {}
        gate_up = [torch.cat([folded(b.ffn.gate, b.ffn_norm), folded(b.ffn.up, b.ffn_norm)]) for b in blocks]
        down = [block.ffn.down.weight for block in blocks]
        self.wo = Grouped([block.attention.wo.weight for block in blocks], dtype)
        made = RoundedGrouped if rounded else functools.partial(Grouped, dtype=dtype)
        self.gate_up, self.down = made(gate_up), made(down)

    def __call__(
        self, x_BLD: Float[Tensor, "B L D"], new: NewPositions, last: NewPositions, cache: LayerCache, count: int
    ) -> Float[Tensor, "G B Q D"]:
        """Outputs of the first `count` layers at the last Q of the L positions that are new.

        Args:
            new: the L positions.
            last: the last Q of them.
        """
        (B, L), Q, E = x_BLD.shape[:2], last.angles.shape[1], self.head_dim
        normed_BLD = self.norm(x_BLD)
        maps = self._maps_of(count)
        k, v = maps.to_kv(normed_BLD).view(B, L, 2, -1, E).unbind(2)
        q = maps.to_q(normed_BLD[:, -Q:]).view(B, Q, -1, E)
        if maps.q_norm is not None and maps.k_norm is not None:
            q, k = maps.q_norm(q), maps.k_norm(k)
        own = cache.heads(count * self.kv_heads)
        own.write(new, rotate(k, new.angles), v)
        q = rotate(q, last.angles)
        y_RGD = own.attend(last, q).view(B * Q, count, -1)  # R = B Q rows
        x_GRD = x_BLD[:, -Q:].reshape(B * Q, -1) + self.wo(y_RGD.transpose(0, 1))
        gate, up = self.gate_up(self.norm(x_GRD)).chunk(2, dim=-1)
        return (x_GRD + self.down(F.silu(gate) * up)).view(count, B, Q, -1)

    def _maps_of(self, count: int) -> "_Maps":
        """Of the first `count` layers; a packed map cannot be cut, so made for each number that is asked for."""
        if count not in self._maps:
            q, k, v = self.queries[:count], self.keys[:count], self.values[:count]
            norms = (None if self.head_norm is None else HeadNorm(self.head_norm, of, self.dtype) for of in (q, k))
            self._maps[count] = _Maps(stacked(k + v, self.dtype), stacked(q, self.dtype), *norms)
        return self._maps[count]

    def nbytes(self, count: int) -> tuple[int, int]:
        """(bytes of weights, bytes of keys and values per position) that the first `count` layers read."""
        maps = self._maps_of(count)
        weights = (
            maps.to_kv.nbytes + maps.to_q.nbytes + sum(w.nbytes(count) for w in (self.wo, self.gate_up, self.down))
        )
        return weights, 2 * count * self.kv_heads * self.head_dim * self.wo.weight_GIO.itemsize


class Plain:
    """What an engine is made of: torch's operations. `compiled.layers.Compiled` is the same in code of our own.

    Attributes:
        activations: precision of everything but weights.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.activations = dtype

    def linear(self, weight_OI: Tensor) -> Linear:
        return Linear(weight_OI, self.activations)

    def layer(self, block: Block) -> Layer:
        return Layer(block, self.activations)

    def path(self, layers: Sequence[Layer]) -> Path:
        return Path(layers)

    def side_by_side(self, blocks: Sequence[Block], rounded: bool) -> SideBySide:
        return SideBySide(blocks, self.activations, rounded)
