"""`mtp mix`: weighted averages of checkpoints of one shape (model soups, arXiv 2203.05482; Branch-Train-Merge,
2208.03306)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.checkpoints.files import SAFETENSORS, LoadedModel, describe_model, load_model, read_weights
from mtp_lightning.checkpoints.initial import digest_of
from mtp_lightning.checkpoints.select import find_checkpoint
from mtp_lightning.checkpoints.streaming import write_model
from mtp_lightning.errors import InputError
from mtp_lightning.interop.importing.import_command import check_target
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import trunk_widths
from mtp_lightning.model.weights import Spec, Weights, open_weights


class Parent(NamedTuple):
    """A checkpoint that is averaged. Its weights are read from the file again, in the precision they have there."""

    path: Path
    described: dict[str, Any]
    step: int
    weights: Weights


def mix_command(
    runs: list[str],
    out: str | None = None,
    average: Literal["all"] = "all",
    weights: str | None = None,
    force: bool = False,
) -> None:
    """Average checkpoints of one shape into one file: exact in float64, then rounded once.

    Args:
        runs: Two or more checkpoints, files of `mtp import` or `mtp export`, or folders of runs.
        out: File to write, *.safetensors. Its parents and their contents' hashes stand in its header.
        average: all: of every weight.
        weights: A weight of each, as '[0.75, 0.25]'; they are divided by their sum. By default all weigh the same.
        force: Overwrite `out`.
    """
    if out is None:
        raise InputError("mix: where to? Give the file to write by --out FILE.safetensors")
    target = check_target(out, force)
    if len(runs) < 2:
        raise InputError(f"mix: {len(runs)} checkpoints; an average takes two or more: `mtp mix A B --out FILE`")
    shares = read_shares(weights, len(runs))
    parents = [open_parent(Path(run)) for run in runs]
    for other in parents[1:]:
        refuse_different(parents[0], other)
    first = parents[0]
    record: list[dict[str, Any]] = [
        {"path": str(parent.path), "share": share, "step": parent.step, "sha256": digest_of(parent.path)}
        for parent, share in zip(parents, shares)
    ]
    contexts = [parent.described["context"] for parent in parents if parent.described["context"]]
    described = {**first.described, "context": min(contexts, default=None), "parents": record}
    write_model(target, described, averaged([parent.weights for parent in parents], shares))
    for line in record:
        print(f"{line['share']:.6g} of {line['path']} (step {line['step']}, sha256 {line['sha256']})")
    print(f"{out}: the average of {len(parents)}")


def read_shares(given: str | None, count: int) -> list[float]:
    """
    Raises:
        InputError: not a list of as many weights, or weights that have no average.
    """
    if given is None:
        return [1 / count] * count
    try:
        values = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--weights is {given}: it has to be a list, as [0.75, 0.25]") from error
    items = values if isinstance(values, list) else []
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(numbers) != count or len(items) != count:
        raise InputError(f"--weights is {given}: it has to be a list of {count} numbers, one for each checkpoint")
    if not all(math.isfinite(v) and v >= 0 for v in numbers) or sum(numbers) <= 0:
        raise InputError(f"--weights is {given}: each has to be a finite number of at least 0, and one above it")
    return [v / math.fsum(numbers) for v in numbers]


def open_parent(run: Path) -> Parent:
    """
    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    path = find_checkpoint(run)
    loaded = load_model(path)
    return Parent(path, _described(loaded), loaded.step, _weights(loaded))


def _described(loaded: LoadedModel) -> dict[str, Any]:
    model, text = loaded.model, loaded.text_tokenizer
    state = None if text is None else text.state()
    described = describe_model(model.config, model.heads_config, state, loaded.context)
    begins = {"begin_ids": list(loaded.begin_ids)} if loaded.begin_ids else {}
    return {**described, **begins, "task": None if loaded.task is None else dict(loaded.task)}


def _weights(loaded: LoadedModel) -> Weights:
    """In the file's precision: a model in memory has float32."""
    if loaded.path.suffix == SAFETENSORS:
        return open_weights(loaded.path)
    stored = read_weights(loaded.path, lazy=loaded.path.is_file()).weights
    own = {name: stored[name] for name, _ in loaded.model.named_parameters()}
    return Weights({name: Spec(w.dtype, tuple(w.shape)) for name, w in own.items()}, own.__getitem__)


def refuse_different(first: Parent, other: Parent) -> None:
    """
    Raises:
        InputError: another model, or another tokenizer; names what differs.
    """
    ours, theirs = _function(first), _function(other)
    for key, value in ours.items():
        if theirs[key] != value:
            raise InputError(
                f"'{first.path}' has {key} = {value!r}, and '{other.path}' {theirs[key]!r}: only checkpoints of one "
                "shape have an average"
            )
    begins = [parent.described.get("begin_ids", []) for parent in (first, other)]
    if begins[0] != begins[1]:
        raise InputError(
            f"every text of '{first.path}' begins with the tokens {begins[0]}, and of '{other.path}' with {begins[1]}: "
            "only checkpoints whose texts begin alike have an average"
        )
    for key, what in (("tokenizer", "tokenizers"), ("task", "tasks")):
        if first.described[key] != other.described[key]:
            raise InputError(f"'{first.path}' and '{other.path}' have different {what}: their tokens are not the same")
    for name, spec in first.weights.specs.items():
        if other.weights.specs[name] != spec:
            raise InputError(
                f"the weight '{name}' is {spec.dtype} in '{first.path}', and {other.weights.specs[name].dtype} in "
                f"'{other.path}'"
            )


def _function(parent: Parent) -> dict[str, Any]:
    """What makes the same weights the same function, by its key, whether it was written down or is the default: not
    how weights were drawn, and `match` only where it made other widths."""
    backbone = BackboneConfig.from_dict(parent.described["backbone"])
    heads = HeadsConfig(**parent.described["heads"])
    is_matched = trunk_widths(backbone, heads) != trunk_widths(backbone, replace(heads, match="none"))
    said = {f"model.backbone.{key}": value for key, value in asdict(backbone).items() if key != "init_std"}
    said |= {f"model.heads.{key}": value for key, value in asdict(heads).items()}
    return said | {
        "model.backbone.n_kv_heads": backbone.kv_heads,
        "model.backbone.head_dim": backbone.head_size,
        "model.backbone.ffn_dim": backbone.ffn,
        "model.heads.offsets": heads.head_offsets,
        "model.heads.markov_rank": heads.bigram_rank,
        "model.heads.mixture_rank": heads.components,
        "model.heads.latent_width": heads.network_width(backbone.dim),
        "model.heads.match": heads.match if is_matched else "none",
    }


def averaged(parents: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """The weighted mean of each tensor, summed in float64 and rounded once."""

    def read(name: str) -> Tensor:
        total = torch.zeros(parents[0].specs[name].shape, dtype=torch.float64)
        for weights, share in zip(parents, shares):
            total.add_(weights[name].double(), alpha=share)
        return total.to(parents[0].specs[name].dtype)

    return Weights(parents[0].specs, read)
