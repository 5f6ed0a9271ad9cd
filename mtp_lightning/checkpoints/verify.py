"""Is a checkpoint's content what was written? Every record of torch's zip files has a CRC-32, which torch itself does
not look at when it reads: a bit that flipped in a tensor loads without a word. Here they are looked at, in files of any
version; that costs 1.2 to 1.5 s for a GB, about as much as loading it."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

from mtp_lightning.model.mtp import MTPModel

_CHUNK = 2**20


class ChangedError(ValueError):
    """The bytes are not those that were written."""


def verify_zip(path: Path, tensors: bool = True) -> None:
    """
    Args:
        tensors: look at the tensors too, and not only at what says where they are.

    Raises:
        ChangedError: a record does not have its checksum, or is not stored as torch stores it.
        zipfile.BadZipFile: no zip file, or a truncated one.
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ChangedError(f"its record '{record.filename}' is not stored as torch stores it")
            if not tensors and "/data/" in record.filename:
                continue
            try:
                with archive.open(record) as content:
                    while content.read(_CHUNK):
                        pass
            except zipfile.BadZipFile as error:
                raise ChangedError(f"its record '{record.filename}' was changed since it was written") from error


def digest(weights: Mapping[str, torch.Tensor], described: Mapping[str, str]) -> str:
    """A CRC-32 over names, types, shapes and bytes of the weights and over what describes them."""
    found = zlib.crc32(repr(sorted(described.items())).encode())
    for name in sorted(weights):
        weight = weights[name]
        found = zlib.crc32(f"{name} {weight.dtype} {tuple(weight.shape)}".encode(), found)
        content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(content.numpy().data, found)
    return f"crc32:{found:08x}"


def content_hash(model: MTPModel) -> str:
    """Of the weights, and of what they mean: equal for models that do the same."""
    hashed = hashlib.sha256(f"{model.config} {model.heads_config}".encode())
    for name, weight in sorted(model.state_dict().items()):
        hashed.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        hashed.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]
