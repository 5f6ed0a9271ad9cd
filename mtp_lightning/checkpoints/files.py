"""Checkpoints as files, and how a model comes back out of one. Nothing is unpickled."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from mtp_lightning.checkpoints.sharded import is_sharded, read_sharded, verify_sharded
from mtp_lightning.checkpoints.verify import ChangedError, digest, verify_zip
from mtp_lightning.data.tokens.tokenizer import Tokenizer, tokenizer_from_state
from mtp_lightning.errors import InputError
from mtp_lightning.files import open_as_usual
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

SAFETENSORS = ".safetensors"
DIGEST = "digest"
"""Entry of a safetensors header: a checksum over everything else."""
_MOST_HEADS = 10_000


LINEAGE = ("parent", "parents", "imported")
"""Where a model comes from: the weights that its run began with, the checkpoints that it is the average of, the folder
of somebody else's that it was read from."""


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
    begin_ids: Sequence[int] = ()
    """Tokens that go before a prompt: of an imported model, which has never seen a text without."""
    lineage: Mapping[str, Any] = MappingProxyType({})
    """The entries of `LINEAGE` that the file has."""
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
    """Of each weight that the file has in less than float32, its precision there: the model is in float32."""

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            InputError: the model was not trained on text.
        """
        if self.text_tokenizer is None:
            raise InputError(f"'{self.path}' holds no tokenizer: it was not trained on text")
        return self.text_tokenizer


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a file's content makes the code raise that reads it, as one message that names the file."""
    try:
        if not (path.is_file() or is_sharded(path)):
            raise InputError(f"checkpoint '{path}' is not a file")
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"'{path}': {error}") from error
    except ChangedError as error:
        raise InputError(f"'{path}' is damaged: {error}") from error
    except Exception as error:  # damaged bytes make the unpickler and whoever uses its results raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"'{path}' is not a checkpoint, or a truncated or damaged one ({said})") from error


def read_checkpoint(path: Path, lazy: bool = False) -> dict[str, Any]:
    """The file's content, verified, and loaded with `weights_only=True`.

    Args:
        lazy: leave the tensors in the file until they are used, unverified, which takes no time; of a sharded one they
            have shapes alone.

    Raises:
        InputError: no file, not a checkpoint, or one that was truncated or changed.
    """
    with reading(path):
        verify_content(path, tensors=not lazy)
        if path.is_dir():
            content = read_sharded(path, lazy)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
        return _checked(path, content)


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """
    Raises:
        InputError: not what `mtp fit` writes.
    """
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise InputError(f"'{path}' is not a checkpoint of `mtp fit`: it has no '{CHECKPOINT_KEY}' entry")
    _check_format(path, content[CHECKPOINT_KEY])
    step, weights = content["global_step"], content["state_dict"]
    if type(step) is not int or step < 0:
        raise InputError(f"'{path}': its 'global_step' is {step!r}, and has to be a number of steps")
    if not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise InputError(f"'{path}': its 'state_dict' holds something that is no tensor")
    return content


def verify_checkpoint(path: Path) -> None:
    """
    Raises:
        InputError: what `read_checkpoint` would refuse; found without taking memory for the tensors.
    """
    read_checkpoint(path, lazy=True)
    with reading(path):
        verify_content(path)


def verify_content(path: Path, tensors: bool = True) -> None:
    """
    Args:
        tensors: look at the tensors too.

    Raises:
        ChangedError: the bytes of a checkpoint of either kind are not those that were written.
        zipfile.BadZipFile: a file that is no zip file, or truncated.
    """
    (verify_sharded if path.is_dir() else verify_zip)(path, tensors)


class StoredModel(NamedTuple):
    """What a file holds, and no model made of it."""

    described: dict[str, Any]
    backbone: BackboneConfig
    heads: HeadsConfig
    weights: dict[str, torch.Tensor]
    """By the model's own names, a tied one under both."""
    step: int


def read_weights(path: Path, lazy: bool = False) -> StoredModel:
    """A checkpoint of `mtp fit` or a file of `mtp export`, its weights looked at before memory is taken for a model.

    Args:
        lazy: leave the weights in the file until they are used, unverified, which takes no time.

    Raises:
        InputError: not such a file, or a damaged one.
    """
    with reading(path):
        if path.suffix == SAFETENSORS:
            described, weights, step = _read_safetensors(path, lazy)
        else:
            content = _read_without_states(path, lazy) if path.is_dir() else read_checkpoint(path, lazy)
            described, step = content[CHECKPOINT_KEY], content["global_step"]
            prefix = "model."
            weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        backbone, heads = BackboneConfig.from_dict(described["backbone"]), HeadsConfig(**described["heads"])
        _check_weights(backbone, heads, weights)
        return StoredModel(described, backbone, heads, weights, step)


def _read_without_states(path: Path, lazy: bool) -> dict[str, Any]:
    verify_sharded(path, tensors=not lazy)
    return _checked(path, read_sharded(path, lazy, states=False))


def load_model(path: Path) -> LoadedModel:
    """The model of a checkpoint written by `mtp fit`, or of a file written by `mtp export`.

    Raises:
        InputError: not such a file, or a damaged one.
    """
    with reading(path):
        stored = read_weights(path)
        check_finite(stored.weights)
        described, backbone, heads, step = stored.described, stored.backbone, stored.heads, stored.step
        model = MTPModel(backbone, heads)
        model.load_state_dict(stored.weights)
        state, context, task = described["tokenizer"], described.get("context"), described.get("task")
        if not isinstance(context, int | None) or not isinstance(task, Mapping | None):
            raise InputError("its 'context' is no number, or its 'task' no mapping")
        tokenizer = None if state is None else tokenizer_from_state(state)
        begin, lineage = _begin_ids(described, backbone), {k: described[k] for k in LINEAGE if described.get(k)}
        dtypes = {name: weight.dtype for name, weight in stored.weights.items() if weight.dtype.itemsize < 4}
        return LoadedModel(path, model.eval(), tokenizer, step, context, task, begin, lineage, dtypes)


def _begin_ids(described: Mapping[str, Any], backbone: BackboneConfig) -> list[int]:
    ids = described.get("begin_ids", [])
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < backbone.vocab_size for i in ids):
        raise InputError("its 'begin_ids' are no list of tokens")
    return ids


def _check_weights(backbone: BackboneConfig, heads: HeadsConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """The weights are those of the model that is described, found out before memory is taken for it: a description may
    ask for any amount.

    Raises:
        InputError: they are not.
    """
    if max(backbone.n_layers, heads.layers) > len(weights) or heads.n_future > _MOST_HEADS:
        raise InputError(f"it describes a model of {backbone.n_layers} layers, and holds {len(weights)} weights")
    with torch.device("meta"):
        wanted = MTPModel(backbone, heads).state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        have, want = (tuple(found[name].shape) if name in found else None for found in (weights, wanted))
        if have != want:
            raise InputError(f"its weight '{name}' is of shape {have}, and the model that it describes has {want}")
        if not weights[name].is_floating_point():
            raise InputError(f"its weight '{name}' holds {weights[name].dtype}, and no real numbers")


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        InputError: a weight with a value that is no finite number. Such a model computes something all the same: the
            likeliest of tokens that are all NaN is the first.
    """
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise InputError(f"its weight '{name}' holds NaN or infinity: the model has diverged, or was changed")


def describe_model(
    backbone: BackboneConfig,
    heads: HeadsConfig,
    tokenizer: Mapping[str, str] | None,
    context: int | None,
    task: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The entry of a file that says what its weights are, as plain values: files load without unpickling.

    Args:
        tokenizer: its `state()`.
        more: where the model comes from, and what else goes with it.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "backbone": asdict(backbone),
        "heads": asdict(heads),
        "tokenizer": tokenizer,
        "context": context,
        "task": task,
        **more,
    }


def save_safetensors(loaded: LoadedModel, path: Path) -> None:
    """Weights under the model's own names and in the file's precision, a tied one once; what describes the model as
    JSON in the header."""
    from safetensors.torch import save_file

    model = loaded.model
    tokenizer = None if loaded.text_tokenizer is None else loaded.text_tokenizer.state()
    task = None if loaded.task is None else dict(loaded.task)
    more = dict(loaded.lineage) | ({"begin_ids": list(loaded.begin_ids)} if loaded.begin_ids else {})
    described = describe_model(model.config, model.heads_config, tokenizer, loaded.context, task, **more)
    kept = loaded.dtypes
    weights = {name: p.detach().to(kept.get(name, p.dtype)).contiguous() for name, p in model.named_parameters()}
    partial = path.with_name(path.name + ".partial")
    try:
        header = {CHECKPOINT_KEY: json.dumps(described), "step": str(loaded.step)}
        save_file(weights, partial, header | {DIGEST: digest(weights, header)})
        open_as_usual(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path, lazy: bool = False) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata() or {})
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    written = header.pop(DIGEST, None)  # not in files of earlier versions
    if CHECKPOINT_KEY not in header:
        raise InputError(f"'{path}' was not written by `mtp export`: its header has no '{CHECKPOINT_KEY}' entry")
    if header.keys() != {CHECKPOINT_KEY, "step"} or not (lazy or written in (None, digest(weights, header))):
        raise ChangedError("its content was changed since it was written")
    described = json.loads(header[CHECKPOINT_KEY])
    _check_format(path, described)
    if described["backbone"]["tie_embeddings"]:
        weights["unembedding.weight"] = weights["embedding.weight"]
    return described, weights, int(header["step"])


def _check_format(path: Path, described: Any) -> None:
    if not isinstance(described, dict) or described.get("format") != CHECKPOINT_FORMAT:
        found = described.get("format") if isinstance(described, dict) else f"{described!r:.40}"
        raise InputError(f"'{path}' is a checkpoint of format {found}, and this version reads {CHECKPOINT_FORMAT}")
