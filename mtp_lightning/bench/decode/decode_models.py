"""The models that `mtp bench decode` measures, their names, and the prompts that they continue."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.mtp import MTPModel


class Measured(NamedTuple):
    """A model that is measured."""

    label: str
    """No other model's."""
    model: MTPModel
    prompts: list[Tensor]
    """(length,) int64 each."""
    heads_used: list[int]


def random_model(
    backbone: BackboneConfig, heads: HeadsConfig, heads_used: Sequence[int] | None, count: int, length: int
) -> Measured:
    """With random weights and prompts; arguments as `measured_models`' are."""
    torch.manual_seed(0)
    model = MTPModel(backbone, heads).eval()
    prompts = list(torch.randint(0, backbone.vocab_size, (count, length)))
    return Measured(f"random, n = {heads.n_future}", model, prompts, heads_to_measure(heads_used, model))


def measured_models(
    ckpts: Sequence[str], heads_used: Sequence[int] | None, count: int, length: int, kind: str, path: str | None,
    directory: Path,
) -> list[Measured]:  # fmt: skip
    """Of every checkpoint.

    Args:
        heads_used: numbers of drafting heads, None: some up to the most that each model has.
        count: prompts for each, `length` tokens each, held out of the text that `kind` and `path` name.
        directory: where prepared corpora are kept; nothing is prepared for models that are refused.

    Raises:
        InputError: a checkpoint that is named twice or has not so many heads, shards of another tokenizer or of pairs,
            or too little text.
    """
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.data.corpora.source import SourceConfig
    from mtp_lightning.data.tokens.heldout import heldout_prompts
    from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, prepare_source
    from mtp_lightning.data.tokens.verify import open_store
    from mtp_lightning.data.tokens.vocabulary import can_read, of_text

    source, settings = SourceConfig(kind=kind, path=path), ShardSettings()  # type: ignore[arg-type]
    loaded = [load_model(find_checkpoint(Path(ckpt))) for ckpt in ckpts]
    names = labels(ckpts, [one.model for one in loaded])
    numbers = [heads_to_measure(heads_used, one.model) for one in loaded]
    found = []
    for one, ckpt, name, own in zip(loaded, ckpts, names, numbers):
        if kind == "shards":
            shards = Path(str(path))
        else:
            shards = directory / cache_name(source, of_text(one.tokenizer), settings)
            prepare_source(shards, source, of_text(one.tokenizer), settings)
        store = open_store(shards, "validation")
        if not can_read(one.tokenizer, store.meta.tokenizer_fingerprint):
            raise InputError(f"path: the shards in '{shards}' were made with another tokenizer than '{ckpt}'")
        if store.answer_starts is not None:
            raise InputError(
                f"path: the shards in '{shards}' hold pairs, whose questions differ in length: give shards of text"
            )
        found.append(Measured(name, one.model, heldout_prompts(store, count, length), own))
    return found


def labels(ckpts: Sequence[str], models: Sequence[MTPModel]) -> list[str]:
    """n, L and the kind of heads; where models share these, also the checkpoints' names, or their paths where names
    are shared too.

    Raises:
        InputError: a checkpoint that is named twice.
    """
    if len(set(ckpts)) < len(ckpts):
        twice = next(ckpt for ckpt in ckpts if ckpts.count(ckpt) > 1)
        raise InputError(f"ckpts: '{twice}' is there twice")
    kinds = [
        f"n = {model.n_future}, L = {model.config.n_layers}"
        + (f", {model.heads_config.kind}" if model.heads_config.kind != "parallel" else "")
        for model in models
    ]
    stems = [Path(ckpt).stem for ckpt in ckpts]
    own = stems if len(set(stems)) == len(stems) else ckpts
    return [kind if kinds.count(kind) == 1 else f"{kind}, {name}" for kind, name in zip(kinds, own)]


def heads_to_measure(asked: Sequence[int] | None, model: MTPModel) -> list[int]:
    """Numbers of drafting heads to measure; plain decoding is always one of them.

    Raises:
        InputError: more than the model has.
    """
    most = model.heads_config.max_heads_used
    for k in asked or ():
        if not 1 <= k <= model.n_future:
            raise InputError(f"heads_used is {k}: this model has {model.n_future} prediction heads")
    wanted = asked or [*range(1, 5), *(2**i for i in range(3, 8)), most]
    return sorted({1, *(k for k in wanted if k <= most)})
