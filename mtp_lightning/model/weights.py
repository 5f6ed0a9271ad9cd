"""Weights that are not in memory yet: by name, each read when it is asked for."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

REAL = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Precisions of weights, and their names in a safetensors header."""


class Spec(NamedTuple):
    """What a tensor is, known before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class Weights(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, specs: Mapping[str, Spec], read: Callable[[str], Tensor]) -> None:
        self.specs, self._read = dict(specs), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs  # the default would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def open_weights(path: Path) -> Weights:
    """The tensors of a safetensors file.

    Raises:
        safetensors.SafetensorError: none, or a truncated or damaged one.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        specs = {name: spec_of(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    return Weights(specs, read)


_NAMES = {name: dtype for dtype, name in REAL.items()}


def spec_of(slice_: Any) -> Spec:
    """Of a tensor of a safetensors file; one that is no real number has the type `torch.uint8` here."""
    return Spec(_NAMES.get(slice_.get_dtype(), torch.uint8), tuple(slice_.get_shape()))
