"""Checkpoints as files, and how a model comes back out of one. Nothing is unpickled."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mtp_lightning.data.tokens.tokenizer import Tokenizer, tokenizer_from_state
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

SAFETENSORS = ".safetensors"


class LoadedModel(NamedTuple):
    """What a checkpoint holds, the model in evaluation mode."""

    path: Path
    model: MTPModel
    text_tokenizer: Tokenizer | None
    """None where it was not trained on text."""
    step: int
    """Training step it was saved at."""
    context: int | None
    """Positions of a window it was trained on; None where the file does not say."""
    task: Mapping[str, Any] | None
    """State of the synthetic task it was trained on, if that is what it was."""

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            InputError: the model was not trained on text.
        """
        if self.text_tokenizer is None:
            raise InputError(f"'{self.path}' holds no tokenizer: it was not trained on text")
        return self.text_tokenizer


def read_checkpoint(path: Path, lazy: bool = False) -> dict[str, Any]:
    """The file's content, loaded with `weights_only=True`.

    Args:
        lazy: leave the tensors in the file until they are used, which takes no time where they are not.

    Raises:
        InputError: no file, not a checkpoint, or a truncated one.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}' is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise InputError(f"'{path}' is not a checkpoint, or a truncated one") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise InputError(f"'{path}' is not a checkpoint of `mtp fit`: it has no '{CHECKPOINT_KEY}' entry")
    _check_format(path, content[CHECKPOINT_KEY])
    return content


def load_model(path: Path) -> LoadedModel:
    """The model of a checkpoint written by `mtp fit`, or of a file written by `mtp export`.

    Raises:
        InputError: not such a file.
    """
    if path.suffix == SAFETENSORS:
        described, weights, step = _read_safetensors(path)
    else:
        content = read_checkpoint(path)
        described, step = content[CHECKPOINT_KEY], content["global_step"]
        prefix = "model."
        weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    model = MTPModel(BackboneConfig(**described["backbone"]), HeadsConfig(**described["heads"]))
    model.load_state_dict(weights)
    state = described["tokenizer"]
    tokenizer = None if state is None else tokenizer_from_state(state)
    return LoadedModel(path, model.eval(), tokenizer, step, described.get("context"), described.get("task"))


def save_safetensors(loaded: LoadedModel, path: Path) -> None:
    """Weights under the model's own names, a tied one once; what describes the model as JSON in the header."""
    from safetensors.torch import save_file

    model = loaded.model
    described = {
        "format": CHECKPOINT_FORMAT,
        "backbone": asdict(model.config),
        "heads": asdict(model.heads_config),
        "tokenizer": None if loaded.text_tokenizer is None else loaded.text_tokenizer.state(),
        "context": loaded.context,
        "task": None if loaded.task is None else dict(loaded.task),
    }
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(weights, partial, {CHECKPOINT_KEY: json.dumps(described), "step": str(loaded.step)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"'{path}' is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"'{path}' is not a safetensors file, or a truncated one") from error
    if CHECKPOINT_KEY not in header:
        raise InputError(f"'{path}' was not written by `mtp export`: its header has no '{CHECKPOINT_KEY}' entry")
    described = json.loads(header[CHECKPOINT_KEY])
    _check_format(path, described)
    if described["backbone"]["tie_embeddings"]:
        weights["unembedding.weight"] = weights["embedding.weight"]
    return described, weights, int(header["step"])


def _check_format(path: Path, described: Mapping[str, Any]) -> None:
    if described.get("format") != CHECKPOINT_FORMAT:
        raise InputError(
            f"'{path}' is a checkpoint of format {described.get('format')}, and this version reads {CHECKPOINT_FORMAT}"
        )
