"""A configuration as MLflow's parameters: flat, text, short enough, and the same text for the same value."""

import hashlib
import posixpath
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from mtp_lightning.errors import InputError
from mtp_lightning.secrets import known_secrets, mask

VALUE_LIMIT = 6000
NAME_LIMIT = 250
"""What MLflow takes in a parameter's value, and in a name."""
LENGTH = "trainer.max_steps"
"""The parameter that may change when a run is continued. MLflow keeps the one that the run was begun with; the tag
`mtp.max_steps` holds the new one."""
RECOMPUTE = "model.recompute"
NON_SEMANTIC: tuple[tuple[str, str], ...] = (
    ("config", "where the configuration was read from"),
    ("ckpt_path", "where an interrupted run continues; the run is the same"),
    ("model.on_divergence", "a run that diverges has no result, or the same numbers to its end"),
    ("model.recompute", "the same operations once more; of heads (`rounds_heads`) the same sums in another order"),
    ("trainer.logger", "where numbers are recorded"),
    ("trainer.log_every_n_steps", "how often numbers are recorded"),
    ("trainer.default_root_dir", "a folder"),
    ("trainer.enable_*", "progress bar, summary and checkpoints observe"),
    ("trainer.profiler", "observes"),
    ("trainer.accelerator", "hardware"),
    ("trainer.devices", "hardware"),
    ("trainer.num_nodes", "hardware"),
    ("data.directory", "a folder; what it holds is checked by the data fingerprint of the results"),
    ("data.init_args.directory", "a folder; what it holds is checked by the data fingerprint of the results"),
    ("data.source.strict", "the same text, or a refusal"),
    ("data.init_args.source.strict", "the same text, or a refusal"),
    ("data.prepare_workers", "the same bytes, sooner"),
    ("data.init_args.prepare_workers", "the same bytes, sooner"),
    ("data.num_workers", "sample order is a pure function of seed, epoch and index"),
    ("data.init_args.num_workers", "sample order is a pure function of seed, epoch and index"),
    ("data.pin_memory", "hardware"),
    ("data.init_args.pin_memory", "hardware"),
)
"""What cannot change a result: it is no part of a cell's identity, and may change when a run is continued. (dotted
pattern, reason): `*` matches within one component; a match is the key and everything under it."""
_NAME = re.compile(r"[\w\-. :/]+")


@cache
def checked_name(kind: str, name: str) -> str:
    """`name`, if MLflow takes it as the name of a `kind` (metric or parameter).

    Raises:
        ValueError: it does not (`pass@1`). Names are an API: none is ever changed silently.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} '{name}': MLflow takes letters, digits and _ - . / : and space in a name")
    plain = posixpath.normpath(name)
    if plain != name or name.startswith(("/", "..")) or name == ".":
        raise ValueError(f"{kind} '{name}': MLflow reads a name as a path, and this one would be '{plain}'")
    if len(name) > NAME_LIMIT:
        raise ValueError(f"{kind} '{name[:60]}...': {len(name)} characters, and MLflow takes {NAME_LIMIT}")
    return name


def as_parameters(params: object) -> dict[str, str]:
    """What MLflow is given for a configuration: `model.heads.n_future: "4"`.

    Raises:
        ValueError: a key MLflow does not take.
    """
    known = known_secrets()
    return {checked_name("parameter", key): shorten(mask(_text(value), known)) for key, value in flatten(params)}


def refuse_changes(params: Mapping[str, str], begun_with: Mapping[str, str], directory: Path | None) -> None:
    """
    Raises:
        InputError: a value other than the one that the run was begun with, of a key that its result depends on.
    """
    now, before = (rounds_heads(one.get(RECOMPUTE), params.get("trainer.precision")) for one in (params, begun_with))
    for key, value in params.items():
        may_change = key == LENGTH or (non_semantic(key) and (key != RECOMPUTE or now == before))
        if not may_change and begun_with.get(key, value) != value:
            raise InputError(
                f"{key} is {value}, but the run in '{directory}' was begun with {begun_with[key]}: continue it as it "
                "was, or give a new folder"
            )


@cache  # of the same few hundred keys for every cell of a grid
def non_semantic(key: str | tuple[str, ...]) -> str | None:
    """Why a dotted key, or its components, cannot change a result; None where it can."""
    path = tuple(key.split(".")) if isinstance(key, str) else key
    for pattern, reason in NON_SEMANTIC:
        parts = pattern.split(".")
        if len(path) >= len(parts) and all(map(fnmatchcase, path, parts)):
            return reason
    return None


def rounds_heads(recompute: object, precision: object) -> bool:
    """Whether heads that run again are rounded to 16 bits one by one, where kept heads are rounded together: their
    losses' weights, and with weights of 16 bits also the gradients that they add to. In float32 only the order of sums
    is another, which hardware changes too."""
    return "16" in str(precision) and recompute in ("heads", "layers_and_heads")


def flatten(params: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf of nested mappings, dataclasses, namespaces and sequences.

    {"model": {"heads": {"n_future": 4}}, "betas": [0.9, 0.95], "callbacks": [{"period": 5}]} ->
    ("model.heads.n_future", 4), ("betas", [0.9, 0.95]), ("callbacks.0.period", 5): a sequence of plain values is one
    leaf, since it is one setting.
    """
    children = _children(params)
    if children:
        for key, value in children.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, params


def shorten(text: str) -> str:
    """`text` within MLflow's limit. What is cut leaves its digest, so that a change after the cut still shows."""
    if len(text) <= VALUE_LIMIT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    note = f"... [cut: {len(text)} characters, sha256 {digest}]"
    return text[: VALUE_LIMIT - len(note)] + note


def _children(value: object) -> Mapping[Any, object] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace):
        return vars(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, (list, tuple)) and any(_children(item) is not None for item in value):
        return dict(enumerate(value))
    return None


def _text(value: object) -> str:
    """Numbers as they are; a name for what would print its address in memory, which no restart repeats."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    text = str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
