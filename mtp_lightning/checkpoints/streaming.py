"""Model files, written one tensor at a time: memory for the largest tensor, whatever the model's size.

The format is that of `save_safetensors`, which `load_model` reads.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtp_lightning.checkpoints.files import DIGEST
from mtp_lightning.checkpoints.verify import digest
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_KEY
from mtp_lightning.model.weights import REAL, Spec, Weights, open_weights

_NO_DIGEST = "crc32:00000000"
"""As long as what takes its place."""


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
        written = digest(open_weights(partial), header)
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
