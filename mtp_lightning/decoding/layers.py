"""A model's transformer layers in the form decoding runs them: few operations, each on few rows.

Against `model.block.Block`, which they equal but for rounding: the norms' weights are multiplied into the maps after
them, the three maps of the attention are one and so are two of the SwiGLU's, and RoPE's pairs of coordinates lie side
by side, so that a rotation is one complex product (the same change of order in queries and keys leaves their products
alone).
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.decoding.linear import Linear
from mtp_lightning.decoding.positions import NewPositions
from mtp_lightning.model.block import Block
from mtp_lightning.shapes import Float


class KeyValues:
    """Keys and values of `layers` layers for B rows of S slots each, written in place. Rolling back needs nothing:
    slots after a row's accepted tokens are hidden by the mask, and written again."""

    def __init__(self, layers: int, batch: int, size: int, kv_heads: int, like: Tensor, head_dim: int) -> None:
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


class Norm:
    """x / |x|, RMSNorm but for its weight and the root of the width, which are part of the map after it (`folded`).

    RMSNorm divides by sqrt(|x|^2 / D + eps), which is hypot(|x|, sqrt(D eps)) / sqrt(D).
    """

    def __init__(self, norm: nn.RMSNorm) -> None:
        (dim,) = norm.normalized_shape
        self.floor = torch.tensor(math.sqrt(dim * (norm.eps or 0.0)), device=norm.weight.device)

    def __call__(self, x_BMD: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        length = torch.linalg.vector_norm(x_BMD, dim=-1, keepdim=True, dtype=wide(x_BMD))
        return (x_BMD / torch.hypot(length, self.floor)).to(x_BMD.dtype)


def wide(x: Tensor) -> torch.dtype:
    """The precision in which lengths and rotations are computed: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def folded(linear: nn.Linear, norm: nn.RMSNorm) -> Tensor:
    """The weight of `linear(norm(x))` as a map of `Norm`'s output."""
    return linear.weight.detach() * norm.weight.detach() * math.sqrt(linear.in_features)


def side_by_side(weight: Float[Tensor, "O I"], head_dim: int) -> Float[Tensor, "O I"]:
    """Rows reordered so that RoPE's pairs (j, j + E/2) of each attention head become (2j, 2j + 1)."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).flatten(0, 2)


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
        wq, wk, wv = (folded(w, block.attention_norm) for w in (attention.wq, attention.wk, attention.wv))
        self.qkv = Linear(torch.cat([side_by_side(wq, self.head_dim), side_by_side(wk, self.head_dim), wv]), dtype)
        self.wo = Linear(attention.wo.weight, dtype)
        self.gate_up = Linear(torch.cat([folded(ffn.gate, block.ffn_norm), folded(ffn.up, block.ffn_norm)]), dtype)
        self.down = Linear(ffn.down.weight, dtype)
        self.itemsize = dtype.itemsize

    def __call__(self, x_BMD: Float[Tensor, "B M D"], new: NewPositions, cache: LayerCache) -> Float[Tensor, "B M D"]:
        qkv = self.qkv(self.attention_norm(x_BMD)).view(*x_BMD.shape[:2], -1, self.head_dim)
        turned = rotate(qkv[:, :, : -self.kv_heads], new.angles)
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


class Grouped:
    """G linear maps of equal shape, each of rows of its own.

    Stacked, one batched product does; two large ones on a CPU with bfloat16 go quicker one by one in that.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.weight_GIO = torch.stack([weight.detach().to(dtype).t() for weight in weights]).contiguous()

    def __call__(self, x_GRI: Float[Tensor, "G R I"]) -> Float[Tensor, "G R O"]:
        return torch.bmm(x_GRI, self.weight_GIO[: len(x_GRI)])

    def nbytes(self, count: int) -> int:
        """Bytes of the first `count` maps."""
        return self.weight_GIO[:count].nbytes


class RoundedGrouped:
    """`Grouped` in bfloat16, prepacked: half the bytes to read."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.maps = [Linear(weight, torch.bfloat16) for weight in weights]

    def __call__(self, x_GRI: Float[Tensor, "G R I"]) -> Float[Tensor, "G R O"]:
        rounded = x_GRI.bfloat16()
        return torch.stack([own(x) for own, x in zip(self.maps, rounded)]).to(x_GRI.dtype)

    def nbytes(self, count: int) -> int:
        return sum(own.nbytes for own in self.maps[:count])


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
        attention = [(block.attention, block.attention_norm) for block in blocks]
        self.keys = [side_by_side(folded(a.wk, norm), E).to(dtype) for a, norm in attention]
        self.values = [folded(a.wv, norm).to(dtype) for a, norm in attention]
        self.queries = [side_by_side(folded(a.wq, norm), E).to(dtype) for a, norm in attention]
        self._maps: dict[int, tuple[Linear, Linear]] = {}
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
        to_kv, to_q = self._maps_of(count)
        kv = to_kv(normed_BLD).view(B, L, 2, -1, E)
        own = cache.heads(count * self.kv_heads)
        own.write(new, rotate(kv[:, :, 0], new.angles), kv[:, :, 1])
        q = rotate(to_q(normed_BLD[:, -Q:]).view(B, Q, -1, E), last.angles)
        y_RGD = own.attend(last, q).view(B * Q, count, -1)  # R = B Q rows
        x_GRD = x_BLD[:, -Q:].reshape(B * Q, -1) + self.wo(y_RGD.transpose(0, 1))
        gate, up = self.gate_up(self.norm(x_GRD)).chunk(2, dim=-1)
        return (x_GRD + self.down(F.silu(gate) * up)).view(count, B, Q, -1)

    def _maps_of(self, count: int) -> tuple[Linear, Linear]:
        """To keys and values and to queries of the first `count` layers; a packed map cannot be cut, so made for each
        number that is asked for."""
        if count not in self._maps:
            kv = torch.cat(self.keys[:count] + self.values[:count])
            self._maps[count] = Linear(kv, self.dtype), Linear(torch.cat(self.queries[:count]), self.dtype)
        return self._maps[count]

    def nbytes(self, count: int) -> tuple[int, int]:
        """(bytes of weights, bytes of keys and values per position) that the first `count` layers read."""
        weights = sum(w[i].nbytes for w in (self.keys, self.values, self.queries) for i in range(count))
        weights += sum(w.nbytes(count) for w in (self.wo, self.gate_up, self.down))
        return weights, 2 * count * self.kv_heads * self.head_dim * self.wo.weight_GIO.itemsize
