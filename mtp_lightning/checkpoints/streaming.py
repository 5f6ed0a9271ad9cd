"""Model files, read and written one tensor at a time: memory for the largest tensor, whatever the model's size.

The format is that of `save_safetensors`, which `load_model` reads.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.checkpoints.files import DIGEST
from mtp_lightning.checkpoints.verify import digest
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, BackboneConfig, HeadsConfig

REAL = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Precisions of weights, and their names in a safetensors header."""
_NO_DIGEST = "crc32:00000000"
"""As long as what takes its place."""


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
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def describe(
    backbone: BackboneConfig, heads: HeadsConfig, tokenizer: Mapping[str, str] | None, context: int | None, **more: Any
) -> dict[str, Any]:
    """The entry of a model file that says what its weights are.

    Args:
        tokenizer: the tokenizer's `state()`.
        more: where the model comes from.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "backbone": asdict(backbone),
        "heads": asdict(heads),
        "tokenizer": tokenizer,
        "context": context,
        "task": None,
        **more,
    }


def write_model(path: Path, described: Mapping[str, Any], weights: Weights, step: int = 0) -> None:
    """Write a model file; `path` appears when it is complete.

    Args:
        weights: under the model's own names, a tied one once.

    Raises:
        InputError: a weight with a value that is no finite number.
    """
    header = {CHECKPOINT_KEY: json.dumps(described), "step": str(step)}
    order = sorted(weights, key=lambda name: (-weights.specs[name].dtype.itemsize, name))  # each aligned to its size
    table: dict[str, Any] = {"__metadata__": header | {DIGEST: _NO_DIGEST}}
    end = 0
    for name in order:
        spec = weights.specs[name]
        table[name] = {
            "dtype": REAL[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for name in order:
                file.write(_bytes_of(name, weights[name], weights.specs[name]))
        written = digest(open_model(partial), header)
        with partial.open("r+b") as file:
            file.seek(8 + head.index(f'"{DIGEST}": "{_NO_DIGEST}"'.encode()) + len(f'"{DIGEST}": "'))
            file.write(written.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _bytes_of(name: str, tensor: Tensor, spec: Spec) -> memoryview:
    assert (tensor.dtype, tuple(tensor.shape)) == spec, name
    if not torch.isfinite(tensor).all():
        raise InputError(f"the weight '{name}' holds NaN or infinity: it is no model that anything can be done with")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def open_model(path: Path) -> Weights:
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
