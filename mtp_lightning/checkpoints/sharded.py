"""Checkpoints that every rank writes its part of, through `torch.distributed.checkpoint`: a folder in place of a file.

    step-00000200.ckpt/
        shard-00001-model-00001-of-00001.safetensors ...   a file a rank: weights and moments, whole ones or pieces
        run.pt                                             all the rest, as in a single file
        manifest.json                                      size and SHA-256 of every file above; written last

The layout of what it says is the single file's, so either kind goes on under any strategy and number of ranks. Nothing
is unpickled: torch writes safetensors, whose headers say where a piece belongs, and `run.pt` loads with weights_only.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtp_lightning.checkpoints.verify import ChangedError
from mtp_lightning.files import DamagedError, as_record, read_json, to_disk

MANIFEST, RUN = "manifest.json", "run.pt"
FORMAT = 1
WEIGHTS, STATES = "state_dict", "optimizer_states"
"""Entries of a checkpoint whose tensors are in the shards."""
_SHARD = re.compile(r"shard-(\d{5})-model-\d{5}-of-\d{5}\.safetensors")
_STATE = re.compile(rf"{STATES}/(\d+)/(\d+)/(\w+)")


@dataclass(frozen=True)
class _Written:
    """A file that was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """`manifest.json`."""

    format: int
    files: dict[str, _Written]


def is_sharded(path: Path) -> bool:
    """Whether `path` is, or ought to be, such a folder; a run's folder holds checkpoints and is none."""
    return path.suffix == ".ckpt" and path.is_dir() and not (path / "checkpoints").exists()


def take_apart(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what goes into `run.pt`, the tensors of the shards by a name each). Numbers of steps, tensors of one number,
    stay with the former."""
    from torch.distributed.tensor import DTensor  # takes a while to load, which reading does not need

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, weight in content[WEIGHTS].items():
        place = (weight.to_local() if isinstance(weight, DTensor) else weight).data_ptr()
        tensors[f"{WEIGHTS}/{name}"] = weight.clone() if place in seen else weight  # tied: safetensors wants it apart
        seen.add(place)
    rest = {key: value for key, value in content.items() if key != WEIGHTS}
    rest[STATES] = []
    for g, saved in enumerate(content[STATES]):
        small: dict[int, dict[str, Any]] = {}
        for i, state in saved.get("state", {}).items():
            large = {key for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
            tensors |= {f"{STATES}/{g}/{i}/{key}": state[key] for key in sorted(large)}
            small[i] = {key: value for key, value in state.items() if key not in large}
        rest[STATES].append({**saved, "state": small})
    return rest, tensors


def put_together(rest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of the single file."""
    content = {**rest, WEIGHTS: {}}
    for name, tensor in tensors.items():
        if found := _STATE.fullmatch(name):
            content[STATES][int(found[1])]["state"][int(found[2])][found[3]] = tensor
        else:
            content[WEIGHTS][name.removeprefix(f"{WEIGHTS}/")] = tensor
    return content


def remove(path: Path) -> None:
    """A checkpoint of either kind, or what is left of one; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_sharded(content: Mapping[str, Any], folder: Path, group: Any = None) -> None:
    """Write a checkpoint; `folder` is complete when this returns on rank zero. Every rank calls it.

    Args:
        content: as Lightning gives it; of each tensor a rank has the whole, its piece (a DTensor), or nothing.
        group: the ranks' process group; None where there is one rank.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    rank = 0 if group is None else dist.get_rank(group)
    rest, tensors = take_apart(content)
    if rank == 0:  # what a killed run left; no rank writes before rank zero has planned with it
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process, which is known
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        except CheckpointException as error:  # of all ranks
            causes = [cause for cause, _ in error.failures.values()]
            raise next((cause for cause in causes if isinstance(cause, OSError)), error) from error
    shards = (path for path in folder.iterdir() if (found := _SHARD.fullmatch(path.name)) and int(found[1]) == rank + 1)
    mine = _described(shards)
    written: list[Any] = [mine] if group is None else [None] * dist.get_world_size(group)
    if group is not None:
        dist.all_gather_object(written, mine, group=group)
    if rank:
        return
    torch.save(rest, folder / RUN)
    files = {name: found for part in [*written, _described([folder / RUN])] for name, found in part.items()}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": dict(sorted(files.items()))}, indent=1))
    to_disk(manifest)
    to_disk(folder)


def verify_sharded(folder: Path, tensors: bool = True) -> None:
    """
    Args:
        tensors: look at the bytes of the shards too, and not only at which there are and how large.

    Raises:
        ChangedError: the folder is not what was written.
    """
    try:
        found = read_json(folder / MANIFEST)
        if found is None:
            raise ChangedError(f"it has no {MANIFEST}, which is written last: it is not whole")
        if found.get("format") != FORMAT:
            known = f"{found.get('format')!r:.40}"
            raise ChangedError(f"its {MANIFEST} is of format {known}, and this version reads {FORMAT}")
        wanted = as_record(_Manifest, folder / MANIFEST, found).files
    except DamagedError as error:
        raise ChangedError(f"its {MANIFEST} cannot be read: {error.why}") from error
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(there ^ wanted.keys() | {RUN} - wanted.keys()):
        raise ChangedError(f"its file '{name}' is {'not in its manifest' if name in there else 'not there'}")
    for name, written in wanted.items():
        path, size = folder / name, written.bytes
        if path.stat().st_size != size or not path.is_file():
            raise ChangedError(f"its file '{name}' has {path.stat().st_size:,} bytes, and {size:,} were written")
        if (tensors or name == RUN) and _sha256(path) != written.sha256:
            raise ChangedError(f"its file '{name}' was changed since it was written")


def read_sharded(folder: Path, lazy: bool = False, states: bool = True) -> dict[str, Any]:
    """The content of the single file that it stands for; verify it before.

    Args:
        lazy: tensors without content, on the meta device.
        states: the optimizer's too, two thirds of all.
    """
    rest = torch.load(folder / RUN, map_location="cpu", weights_only=True)
    made = {name: t for name, t in empty_tensors(folder).items() if states or not name.startswith(f"{STATES}/")}
    if not lazy:
        made = {name: torch.empty_like(tensor, device="cpu") for name, tensor in made.items()}
        fill(folder, made)
    return put_together(rest, made)


def empty_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, on the meta device.

    Raises:
        ChangedError: they are larger than the files.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    found: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    made = {name: torch.empty(t.size, dtype=t.properties.dtype, device="meta") for name, t in found.items()}
    if sum(tensor.nbytes for tensor in made.values()) > sum(path.stat().st_size for path in folder.iterdir()):
        raise ChangedError("its tensors are larger than its files")
    return made


def fill(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read the named tensors in place: whole ones, or of a DTensor the piece that is this rank's. No rank waits for
    another."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _described(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Name -> size and hash of files that are on the disk by now."""
    found = {}
    for path in paths:
        to_disk(path)
        found[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
