"""A folder of Hugging Face's: config.json and safetensors, in one file or several with an index. Nothing else in it is
read, and no code that it may hold is run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import names_of
from mtp_lightning.model.weights import Spec, Weights, open_weights

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: not there, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"'{path.parent}' is no model: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds no JSON object")
    return content


def open_folder(folder: Path) -> Weights:
    """All its tensors, none of them read yet.

    Raises:
        InputError: no safetensors, missing or damaged files, or an index that says other things than the files.
    """
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            why = f"; {pickled[0]} is a pickle, which is not read: convert it to safetensors" if pickled else ""
            raise InputError(f"'{folder}' holds neither {SINGLE} nor {INDEX}{why}")
        return _opened(folder / SINGLE)
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise InputError(f"'{folder / INDEX}': its weight_map has to map names of tensors to names of files")
    if any(Path(name).name != name for name in index.values()):
        raise InputError(f"'{folder / INDEX}': its weight_map names files outside the folder")
    missing = sorted({name for name in index.values() if not (folder / name).is_file()})
    if missing:
        raise InputError(
            f"'{folder / INDEX}' names {names_of(missing)}, and there is no such file: the download is not complete"
        )
    shards = {name: _opened(folder / name) for name in sorted(set(index.values()))}
    _compare(folder, index, shards)

    def read(name: str) -> Tensor:
        return shards[index[name]][name]

    return Weights({name: shards[shard].specs[name] for name, shard in index.items()}, read)


def _opened(path: Path) -> Weights:
    from safetensors import SafetensorError

    try:
        return open_weights(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is no safetensors file, or a truncated or damaged one ({error})") from error


def _compare(folder: Path, index: Mapping[str, str], shards: Mapping[str, Weights]) -> None:
    """
    Raises:
        InputError: a tensor that is not where the index says, or that is twice there.
    """
    for shard, weights in shards.items():
        for name in weights:
            if index.get(name) != shard:
                instead = "does not name it" if name not in index else f"says '{index[name]}'"
                raise InputError(f"'{folder / shard}' holds the tensor '{name}', and {INDEX} {instead}")
    for name, shard in index.items():
        if name not in shards[shard]:
            raise InputError(f"'{folder / shard}' does not hold the tensor '{name}', which {INDEX} says it does")


def require(folder: Path, specs: Mapping[str, Spec], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """
    Args:
        wanted: name of each tensor -> its shape by the configuration.

    Raises:
        InputError: missing or left-over tensors, other shapes, or numbers that are not real.
    """
    missing = sorted(wanted.keys() - specs.keys())
    if missing:
        raise InputError(
            f"'{folder}' has no tensor '{names_of(missing)}', which its configuration asks for: not all of the model, "
            "or not the model that the configuration describes"
        )
    for name, shape in wanted.items():
        if specs[name].shape != shape:
            raise InputError(
                f"'{folder}': the tensor '{name}' is of shape {specs[name].shape}, and by its configuration of {shape}"
            )
        if not specs[name].dtype.is_floating_point:
            raise InputError(f"'{folder}': the tensor '{name}' holds no plain real numbers: quantised weights?")
    over = sorted(specs.keys() - wanted.keys())
    if over:
        raise InputError(
            f"'{folder}': its configuration knows no tensor '{names_of(over)}': the model computes something that a "
            "model here does not"
        )
