"""`layers.Layer`, `layers.SideBySide` and `linear.Linear` by `kernels.cpp`: the same from outside, in float32.

Weights may be rounded to bfloat16; what is computed with them is float32, and so are keys and values.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtp_lightning.decoding.compiled.compiler import kernels
from mtp_lightning.decoding.layers import QKV, Layer, Norm, Path, Plain, SideBySide, folded, qkv_of
from mtp_lightning.decoding.linear import Linear
from mtp_lightning.decoding.positions import LayerCache, NewPositions
from mtp_lightning.model.block import Block
from mtp_lightning.shapes import Float

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Map(ctypes.Structure):
    _fields_ = (
        ("weight", _POINTER), ("bias", _POINTER), ("outputs", _LONG), ("inputs", _LONG), ("rounded", _LONG)
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("q", _Map), ("kv", _Map), ("wo", _Map), ("gate_up", _Map), ("down", _Map), ("gains", _POINTER),
        ("dim", _LONG), ("heads", _LONG), ("kv_heads", _LONG), ("head_dim", _LONG),
        ("attention_floor", _FLOAT), ("ffn_floor", _FLOAT), ("head_floor", _FLOAT),
    )  # fmt: skip


class _Positions(ctypes.Structure):
    _fields_ = (
        ("batch", _LONG), ("count", _LONG), ("slots", _POINTER), ("start", _LONG), ("angles", _POINTER),
        ("angles_row", _LONG), ("mask", _POINTER), ("mask_row", _LONG), ("mask_node", _LONG), ("first", _LONG),
        ("span", _LONG), ("causal", _LONG),
    )  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = (("k", _POINTER), ("v", _POINTER), ("row", _LONG), ("head", _LONG))


class CompiledLinear(Linear):
    """x W^T (+ b)."""

    def __init__(
        self, weight_OI: Float[Tensor, "O I"], dtype: torch.dtype, bias_O: Float[Tensor, "O"] | None = None
    ) -> None:
        self.outputs, self.inputs = weight_OI.shape
        rounded = dtype == torch.bfloat16
        weight_OI = weight_OI.detach().to(torch.bfloat16 if rounded else torch.float32)
        self.panels = _panels(weight_OI)
        self.bias = None if bias_O is None else bias_O.detach().float().clone()
        self.nbytes = weight_OI.nbytes + (0 if self.bias is None else self.bias.nbytes)
        bias = None if self.bias is None else self.bias.data_ptr()
        self.struct = _Map(self.panels.data_ptr(), bias, self.outputs, self.inputs, rounded)

    def __call__(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        return self._run(x, -1.0)

    def of_normed(self, x: Float[Tensor, "*rows I"], norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "*rows O"]:
        assert isinstance(norm, Norm)
        return self._run(x, norm.floor_value)

    def _run(self, x: Tensor, floor: float) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.outputs)
        rows = _LONG(x.numel() // self.inputs)
        _call("mtp_linear", ctypes.byref(self.struct), _FLOAT(floor), _at(x), rows, _at(out))
        return out


class CompiledLayer(Layer):
    """One transformer layer, for any number of new positions."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, ffn, E = block.attention, block.ffn, block.attention.head_dim
        q, k, v = qkv_of(block)
        gate_up = torch.cat([folded(ffn.gate, block.ffn_norm), folded(ffn.up, block.ffn_norm)])
        self.maps = [
            CompiledLinear(q.weight, dtype, q.bias), _both(k, v, dtype), CompiledLinear(attention.wo.weight, dtype),
            CompiledLinear(gate_up, dtype), CompiledLinear(ffn.down.weight, dtype),
        ]  # fmt: skip
        self.gains_HE: Tensor | None = None
        head_floor = 0.0
        if attention.q_norm is not None and q.gains is not None and k.gains is not None:
            self.gains_HE = torch.cat((q.gains, k.gains)).float().contiguous()
            head_floor = Norm(attention.q_norm).floor_value
        self.kv_heads, self.head_dim = len(k.weight) // E, E
        self.struct = _Layer(
            *(map_.struct for map_ in self.maps), None if self.gains_HE is None else self.gains_HE.data_ptr(),
            self.maps[2].outputs, len(q.weight) // E, self.kv_heads, E,
            Norm(block.attention_norm).floor_value, Norm(block.ffn_norm).floor_value, head_floor,
        )  # fmt: skip
        self.itemsize = torch.float32.itemsize

    def __call__(self, x_BMD: Float[Tensor, "B M D"], new: NewPositions, cache: LayerCache) -> Float[Tensor, "B M D"]:
        x_BMD = x_BMD.contiguous()
        out_BMD = torch.empty_like(x_BMD)
        places = _positions(new, x_BMD.shape[0], x_BMD.shape[1])
        self.run(x_BMD, places, places, _caches(cache, self.kv_heads)[0], out_BMD)
        return out_BMD

    @property
    def nbytes(self) -> int:
        return sum(map_.nbytes for map_ in self.maps)

    def run(self, x_BLD: Tensor, new: "_Positions", last: "_Positions", cache: _Cache, out_BQD: Tensor) -> None:
        """The output at the last positions; keys and values of all."""
        byref = ctypes.byref
        _call("mtp_layer", byref(self.struct), byref(new), byref(last), byref(cache), _at(x_BLD), _at(out_BQD))


class CompiledPath(Path):
    """Layers one after the other, in one call."""

    def __init__(self, layers: Sequence[CompiledLayer]) -> None:
        super().__init__(layers)
        self.pointers = (_POINTER * len(layers))(*(ctypes.addressof(layer.struct) for layer in layers))
        self.kv_heads = layers[0].kv_heads if layers else 0

    def __call__(
        self, x_BMD: Float[Tensor, "B M D"], new: NewPositions, caches: Sequence[LayerCache]
    ) -> Sequence[Float[Tensor, "B M D"]]:
        if not self.layers:
            return ()
        x_BMD = x_BMD.contiguous()
        out = x_BMD.new_empty(len(self.layers), *x_BMD.shape)
        (first,) = _caches(caches[0], self.kv_heads)
        step = 0 if len(caches) == 1 else (caches[1].k_BKSE.data_ptr() - caches[0].k_BKSE.data_ptr()) // out.itemsize
        places, byref = _positions(new, x_BMD.shape[0], x_BMD.shape[1]), ctypes.byref
        count = _LONG(len(self.layers))
        _call("mtp_layers", self.pointers, count, byref(places), byref(first), _LONG(step), _at(x_BMD), _at(out))
        return out.unbind()


class CompiledSideBySide(SideBySide):
    """G transformer layers with the same input, one by one: see `layers.SideBySide`."""

    def __init__(self, blocks: Sequence[Block], dtype: torch.dtype, rounded: bool) -> None:
        self.each = [CompiledLayer(block, torch.bfloat16 if rounded else dtype) for block in blocks]
        self.kv_heads, self.head_dim = self.each[0].kv_heads, self.each[0].head_dim

    def __call__(
        self, x_BLD: Float[Tensor, "B L D"], new: NewPositions, last: NewPositions, cache: LayerCache, count: int
    ) -> Float[Tensor, "G B Q D"]:
        """Outputs of the first `count` layers at the last Q of the L positions that are new."""
        x_BLD = x_BLD.contiguous()
        (B, L, D), Q = x_BLD.shape, last.angles.shape[1]
        out_GBQD = x_BLD.new_empty(count, B, Q, D)
        fresh, asked = _positions(new, B, L), _positions(last, B, Q)
        for layer, own, out in zip(self.each[:count], _caches(cache, self.kv_heads), out_GBQD):
            layer.run(x_BLD, fresh, asked, own, out)
        return out_GBQD

    def nbytes(self, count: int) -> tuple[int, int]:
        """(bytes of weights, bytes of keys and values per position) that the first `count` layers read."""
        own = self.each[:count]
        return sum(layer.nbytes for layer in own), sum(layer.position_bytes for layer in own)


class Compiled(Plain):
    """What an engine is made of, compiled: see `layers.Plain`.

    Args:
        dtype: of the weights: bfloat16, or any other for float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(torch.float32)
        self.dtype = dtype

    def linear(self, weight_OI: Tensor) -> CompiledLinear:
        return CompiledLinear(weight_OI, self.dtype)

    def layer(self, block: Block) -> CompiledLayer:
        return CompiledLayer(block, self.dtype)

    def path(self, layers: Sequence[Layer]) -> CompiledPath:
        return CompiledPath([layer for layer in layers if isinstance(layer, CompiledLayer)])

    def side_by_side(self, blocks: Sequence[Block], rounded: bool) -> CompiledSideBySide:
        return CompiledSideBySide(blocks, self.dtype, rounded)


def seconds(count: bool) -> tuple[float, float, float]:
    """(linear maps, attention, norms and the like) since the last call; and whether to count from now on."""
    out = (ctypes.c_double * 3)()
    library = kernels()
    assert library is not None
    library.mtp_seconds(out, ctypes.c_int(count))
    return out[0], out[1], out[2]


def _panels(weight_OI: Tensor) -> Tensor:
    """(O / PANEL, I, PANEL), with rows of zeros at the end; of bfloat16 with the two halves of a panel by turns."""
    library = kernels()
    assert library is not None
    panel = library.mtp_panel()
    O, I = weight_OI.shape  # noqa: E741
    padded = weight_OI.new_zeros(-(-O // panel) * panel, I)
    padded[:O] = weight_OI
    parts = 2 if weight_OI.dtype == torch.bfloat16 else 1
    return padded.view(-1, parts, panel // parts, I).permute(0, 3, 2, 1).contiguous()


def _both(k: QKV, v: QKV, dtype: torch.dtype) -> CompiledLinear:
    biases = [part.bias for part in (k, v) if part.bias is not None]
    return CompiledLinear(torch.cat((k.weight, v.weight)), dtype, torch.cat(biases) if biases else None)


def _positions(new: NewPositions, batch: int, count: int) -> _Positions:
    """Pointers into `new`, which has to outlive the call."""
    slots, start = (None, new.slots.start) if isinstance(new.slots, slice) else (_at(new.slots[1]), 0)
    head_dim = 2 * new.angles.shape[-1]
    mask = new.mask
    rows = (None, 0, 0) if mask is None else (_at(mask), _row(mask), mask.stride(2))
    return _Positions(
        batch, count, slots, start, _at(new.angles), count * head_dim if len(new.angles) > 1 else 0, *rows,
        new.first, new.span, new.causal,
    )  # fmt: skip


def _row(mask: Tensor) -> int:
    return 0 if len(mask) == 1 else mask.stride(0)


def _caches(cache: LayerCache, kv_heads: int) -> list[_Cache]:
    """Of each layer whose `kv_heads` heads are among the cache's, in order; made once."""
    if cache.pointers is None:
        k, v = cache.k_BKSE, cache.v_BKSE
        row, head = k.stride(0), k.stride(1)
        assert k.stride()[2:] == (k.shape[3], 1)
        step = kv_heads * head * k.itemsize
        layers = range(k.shape[1] // kv_heads)
        cache.pointers = [_Cache(k.data_ptr() + g * step, v.data_ptr() + g * step, row, head) for g in layers]
    return cache.pointers


def _at(x: Tensor) -> Any:
    return ctypes.c_void_p(x.data_ptr())


def _call(name: str, *arguments: Any) -> None:
    getattr(kernels(), name)(*arguments, ctypes.c_int(torch.get_num_threads()))
