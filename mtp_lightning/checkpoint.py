"""Checkpoints as files: which one to resume from, and how a model comes back out of one. Nothing is unpickled."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtp_lightning.data.tokenizer import Tokenizer, tokenizer_from_state
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its tokenizer, and the training step it was saved at."""

    model: MTPModel
    tokenizer: Tokenizer
    step: int


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's content, loaded with `weights_only=True`.

    Raises:
        InputError: no file, not a checkpoint, or a truncated one.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise InputError(f"'{path}' is not a checkpoint, or a truncated one") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise InputError(f"'{path}' is not a checkpoint of `mtp fit`: it has no '{CHECKPOINT_KEY}' entry")
    if content[CHECKPOINT_KEY].get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"'{path}' is a checkpoint of format {content[CHECKPOINT_KEY].get('format')}, and this version reads "
            f"{CHECKPOINT_FORMAT}"
        )
    return content


def load_model(path: Path) -> LoadedModel:
    """Model and tokenizer of a checkpoint written by `mtp fit`.

    Raises:
        InputError: not such a checkpoint.
    """
    content = read_checkpoint(path)
    described = content[CHECKPOINT_KEY]
    model = MTPModel(BackboneConfig(**described["backbone"]), HeadsConfig(**described["heads"]))
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    if described["tokenizer"] is None:
        raise InputError(f"'{path}' holds no tokenizer: it was not trained on text")
    return LoadedModel(model.eval(), tokenizer_from_state(described["tokenizer"]), content["global_step"])


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint under `directory` that loads; broken ones (a full disk, a kill) are passed over."""
    files = sorted(directory.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files:
        try:
            read_checkpoint(path)
        except InputError:
            continue
        return path
    return None
