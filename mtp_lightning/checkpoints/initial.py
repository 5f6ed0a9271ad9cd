"""Where a run's first weights come from (`model.init.path`): a run's folder, a checkpoint, or a safetensors file."""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mtp_lightning.checkpoints.files import SAFETENSORS, check_finite, read_weights, verify_checkpoint
from mtp_lightning.checkpoints.select import CHECKPOINTS, find_checkpoint, find_checkpoints
from mtp_lightning.checkpoints.sharded import is_sharded
from mtp_lightning.checkpoints.vocabulary import transfer_of, with_vocabulary
from mtp_lightning.data.tokens.tokenizer import Tokenizer, begin_ids, tokenizer_from_state
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, read_state
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.transfer import Source, fill, make_plan, other_positions, summary

CELL_TAG, PARENT_TAG, PARENT_WEIGHTS_TAG = "mtp.cell", "mtp.parent", "mtp.parent_weights"


class Parent(NamedTuple):
    """What a run was begun from."""

    name: str
    """The signature of a cell; of anything else, the name of its file."""
    weights: str
    """`weights_digest` of what was read."""
    begin_ids: tuple[int, ...] = ()
    """Tokens before every text, for its model (`LoadedModel.begin_ids`)."""

    @property
    def tags(self) -> dict[str, str]:
        return {PARENT_TAG: self.name, PARENT_WEIGHTS_TAG: self.weights}


def check_initial(init: InitConfig, model: MTPModel) -> None:
    """Whether the weights fit, by shapes and descriptions alone.

    Raises:
        InputError: they are not there, or do not.
    """
    _, source, described = _read(init, lazy=True)
    if init.vocabulary == "transfer":
        _text_of(described, source)
        source = with_vocabulary(source, model.config.vocab_size)
    make_plan(source, model, init)


def load_initial(init: InitConfig, model: MTPModel, tokenizer: Any = None) -> Parent:
    """Put the weights in place, and say what was done, in one line on standard error of rank zero.

    Args:
        tokenizer: of the run's data; one that is not the source's gives every number another meaning.

    Raises:
        InputError: they are not there, are damaged, or do not fit; the model is as it was.
    """
    path, source, described = _read(init)
    try:
        check_finite(source.weights)
    except InputError as error:
        raise InputError(f"model.init.path: '{path}': {error}") from error
    digest, state, made = weights_digest(source.weights), described["tokenizer"], ""
    same = state is None or tokenizer is None or _numbers(tokenizer.state()) == _numbers(state)
    begin = tuple(described.get("begin_ids", ()))
    if begin and not same:  # ids of the old vocabulary; drawn rows have learned nothing
        begin = tuple(begin_ids(tokenizer)) if init.vocabulary == "transfer" else ()
    if init.vocabulary == "transfer":
        if tokenizer is None:
            raise InputError("model.init.vocabulary is 'transfer', and these data have no tokenizer: leave it out")
        sizes = source.backbone.vocab_size, model.config.vocab_size
        rows = transfer_of(_text_of(described, source), tokenizer, *sizes)
        source, same, made = with_vocabulary(source, len(rows.pieces), rows.pieces), True, f"; {rows.summary}"
    plan = make_plan(source, model, init, same)
    fill(model, source, plan)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        ends = "" if made or not same else _other_end(tokenizer, state)
        said = f"{summary(source, plan)}{made}{other_positions(source, model.config)}{ends}"
        print(f"model.init: {said}", file=sys.stderr, flush=True)
    return Parent(parent_name(path), digest, begin)


def _numbers(state: Mapping[str, str]) -> dict[str, str]:
    """Of a tokenizer's state, what says which token a number is: the end of a document may be another of them."""
    return {key: value for key, value in state.items() if key != "end_token"}


def _other_end(tokenizer: Any, state: Mapping[str, str] | None) -> str:
    """How documents end otherwise than the source's, as the end of a line."""
    if state is None or tokenizer is None or tokenizer.state() == state:
        return ""
    there = getattr(tokenizer_from_state(state), "end_token", None)
    return f"; documents end with '{tokenizer.end_token}', there with '{there}' (data.end_token)"


def _text_of(described: Mapping[str, Any], source: Source) -> Tokenizer:
    """The source's tokenizer."""
    if described["tokenizer"] is None:
        raise InputError(
            f"model.init.vocabulary is 'transfer', and '{source.name}' was not trained on text: it has no tokenizer"
        )
    return tokenizer_from_state(described["tokenizer"])


def _read(init: InitConfig, lazy: bool = False) -> tuple[Path, Source, dict[str, Any]]:
    """(file, model, what the file says of it)."""
    assert init.path is not None
    path = source_file(Path(init.path), lazy)
    in_place = path.is_file() and path.suffix != SAFETENSORS
    if not lazy and in_place:
        verify_checkpoint(path)  # then the optimizer's states may stay in the file
    stored = read_weights(path, lazy or in_place)
    source = Source(str(path), stored.backbone, stored.heads, stored.weights)
    return path, source, stored.described


def source_file(path: Path, lazy: bool = False) -> Path:
    """The file itself; of a run's folder its newest good checkpoint.

    Args:
        lazy: do not look at its tensors, which takes as long as reading them.

    Raises:
        InputError: there is none.
    """
    try:
        if lazy and path.is_dir() and not is_sharded(path):
            found = next(iter([*find_checkpoints(path / CHECKPOINTS).by_step, *find_checkpoints(path).by_step]), None)
            if found is not None:
                return found
        file = find_checkpoint(path)
        is_there = file.is_file() or is_sharded(file)
    except InputError as error:
        raise InputError(f"model.init.path: {error}") from error
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise InputError(f"model.init.path: '{path}': {error.strerror}") from error
    if not is_there:
        raise InputError(f"model.init.path: there is no run, checkpoint or safetensors file '{path}'")
    return file


def parent_name(file: Path) -> str:
    """The cell whose checkpoint it is, by the configuration in its run's folder; else the file's own name, that of a
    checkpoint with its run's: `fit/step-30.ckpt`."""
    if file.absolute().parent.name != CHECKPOINTS:
        return file.name
    run = file.absolute().parent.parent
    try:
        node: Any = yaml.safe_load(read_state(run / "config.yaml") or "")
        for key in ("trainer", "logger", "init_args", "tags", CELL_TAG):
            node = node.get(key) if isinstance(node, dict) else None
    except (DamagedError, yaml.YAMLError, RecursionError):
        node = None
    return node if isinstance(node, str) and node else f"{run.name}/{file.name}"


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and bytes: the same for a checkpoint and its export, whatever their names and places."""
    found = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def digest_of(path: Path) -> str:
    """`weights_digest` of a run, a checkpoint or a file.

    Raises:
        InputError: there are none, or they are damaged.
    """
    return weights_digest(_read(InitConfig(str(path)))[1].weights)
