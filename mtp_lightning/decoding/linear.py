"""Linear maps of a handful of rows, which is all that decoding does.

On a CPU the weight is laid out once for oneDNN. Then four rows cost what one costs (with torch's default for float32
four rows cost twice one, which eats what drafts gain), and a row's result does not depend, to the last bit, on how many
others are computed with it.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.shapes import Float

ROWS = 4
"""How many rows oneDNN lays the weight out for."""


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's prepacked linear map, an internal of torch.compile, and it is right."""
    weight = torch.linspace(-1, 1, 32 * 16, dtype=torch.float32).sin().view(32, 16).to(dtype)
    rows = torch.linspace(-1, 1, 3 * 16, dtype=torch.float32).cos().view(3, 16).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        out = _packed(rows, packed)
    except (AttributeError, RuntimeError):  # NotImplementedError is a RuntimeError
        return False
    return torch.allclose(out, F.linear(rows, weight), rtol=1e-2, atol=1e-2)


def _packed(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]


class Linear:
    """x W^T (+ b), W prepacked where that is possible."""

    def __init__(
        self, weight_OI: Float[Tensor, "O I"], dtype: torch.dtype, bias_O: Float[Tensor, "O"] | None = None
    ) -> None:
        self.weight = weight_OI.detach().to(dtype, copy=True).contiguous()
        self.bias = None if bias_O is None else bias_O.detach().to(dtype, copy=True)
        self.nbytes = self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)
        self.packed = self.weight.device.type == "cpu" and can_pack(dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS)

    def __call__(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        out = _packed(x, self.weight) if self.packed else F.linear(x, self.weight)
        return out if self.bias is None else out + self.bias

    def of_normed(self, x: Float[Tensor, "*rows I"], norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "*rows O"]:
        """Of rows that `norm` norms first."""
        return self(norm(x))


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
