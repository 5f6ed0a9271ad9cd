"""A cell's identity: a hash of everything that can change its result, and of nothing else.

The FULL resolved configuration is hashed, never its difference to the defaults: were it the difference, a changed
default would silently pass old results off as new ones. What cannot change a result is declared below, with reasons.
"""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from mtp_lightning.config.keys.linked_keys import SEED_KEY

SCHEMA = 1
"""Part of every hash. Raise it when the meaning of a configuration changes without its text changing."""

NON_SEMANTIC: tuple[tuple[str, str], ...] = (
    ("config", "where the configuration was read from"),
    ("ckpt_path", "where an interrupted run continues; the run is the same"),
    ("model.on_divergence", "a run that diverges has no result, or the same numbers to its end"),
    ("model.recompute", "the same operations once more; of heads (`_rounds_heads`) the same sums in another order"),
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
"""(dotted pattern, reason): `*` matches within one component; a match drops the key and everything under it."""

OBSERVERS: tuple[tuple[str, str], ...] = (
    ("*.ModelCheckpoint", "saves, changes nothing"),
    ("callbacks.checkpointing.*", "saves, changes nothing"),
    ("callbacks.heartbeat.*", "reports how far a run is"),
    ("*ProgressBar", "display"),
    ("*.ModelSummary", "display"),
    ("*.RichModelSummary", "display"),
    ("*.LearningRateMonitor", "records"),
    ("*.DeviceStatsMonitor", "records"),
)
"""(pattern of a class path, reason): entries of `trainer.callbacks` that are no part of the identity. Probes are:
they add metrics to a result, and a result without the metrics asked for is not that cell's result."""

LATER: tuple[tuple[str, Any], ...] = (
    ("data.end_token", None),
    ("data.init_args.end_token", None),
    ("model.backbone.head_dim", None),
    ("model.backbone.attention_bias", "none"),
    ("model.backbone.qk_norm", False),
    (
        "model.backbone.rope_scaling",
        {
            "kind": "default",
            "factor": 1.0,
            "original_context": None,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "attention_factor": None,
        },
    ),
    ("data.source.chat_template", None),
    ("data.source.deduplicate", False),
    ("data.init_args.source.deduplicate", False),
    ("data.init_args.source.chat_template", None),
    ("data.source.keep", None),
    ("data.init_args.source.keep", None),
    ("data.mixture.source.keep", None),
    ("data.init_args.mixture.source.keep", None),
    ("model.optimizer.kind", "adamw"),
    ("model.optimizer.momentum", 0.95),
    ("data.mixture", None),
    ("data.init_args.mixture", None),
    ("data.mixture_weights", None),
    ("data.init_args.mixture_weights", None),
    ("data.val_by_length", False),
    ("data.init_args.val_by_length", False),
    ("data.infilling", None),
    ("data.init_args.infilling", None),
    ("data.tokenizer.train.infilling", None),
    ("data.init_args.tokenizer.train.infilling", None),
    ("model.init.vocabulary", "keep"),
    ("model.init", {"path": None, "heads": "keep", "unembedding": "keep", "vocabulary": "keep"}),
    ("model.freeze", "none"),
    ("model.heads.norms", "shared"),
    ("model.loss.target", "token"),
    ("model.heads.markov_rank", None),
    ("model.heads.latent_width", None),
    ("model.heads.mixture_rank", None),
    ("model.loss.teacher", {"weight": 0.5, "top": None, "kl_scale": 1.0, "kl_decay": 1.0, "latent": 0.0}),
    ("model.loss.teacher.latent", 0.0),
    ("trainer.callbacks.init_args.name", None),
)
"""(dotted key, what earlier versions, which had no such key, did): left out where it has this value, so that their
cells keep their names."""

_COUNT_OR_SHARE = ("limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval")
"""Keys of Lightning's where 1 is one batch and 1.0 is all; everywhere else they are one number."""


class Share(float):
    """A fraction that a grid file gives to one of these keys."""


class Number(int):
    """A whole number that it gives to one."""


def as_meant(key: str, value: Any) -> Any:
    """A value of a grid file, for a dotted key."""
    if key.rpartition(".")[2] not in _COUNT_OR_SHARE or not isinstance(value, int | float) or isinstance(value, bool):
        return value
    return Share(value) if isinstance(value, float) else Number(value)


def same(left: object, right: object) -> bool:
    """Whether two values of one key are equal."""
    if isinstance(left, Share | Number) or isinstance(right, Share | Number):
        return isinstance(left, float) == isinstance(right, float) and left == right
    return canonical(left) == canonical(right)


def signature(config: Mapping[str, Any], *, without_seed: bool = False) -> str:
    """12 hexadecimal digits; `without_seed` gives the group, shared by the seeds of one setting."""
    semantic = _semantic(config, ())
    if _rounds_heads(config):
        semantic["model"]["recompute"] = "heads"
    if without_seed:
        semantic.pop(SEED_KEY, None)
    text = canonical({"schema": SCHEMA, "config": semantic})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def non_semantic(key: str) -> str | None:
    """Why a dotted key is no part of the identity, or None when it is part of it."""
    return _reason(tuple(key.split(".")))


def canonical(value: object) -> str:
    """One text for equal values: keys sorted, and 1 equal to 1.0 (YAML writers do not mean a difference, and a
    configuration that was typed has the right type already). True is not 1, and null is not a missing key."""
    return json.dumps(_plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _rounds_heads(config: Mapping[str, Any]) -> bool:
    """Whether heads that run again are rounded to 16 bits one by one, where kept heads are rounded together: their
    losses' weights, and with weights of 16 bits also the gradients that they add to. In float32 only the order of sums
    is another, which hardware changes too."""
    model, trainer = config.get("model"), config.get("trainer")
    if not isinstance(model, Mapping) or not isinstance(trainer, Mapping):
        return False
    return "16" in str(trainer.get("precision")) and model.get("recompute") in ("heads", "layers_and_heads")


def _semantic(node: Mapping[str, Any], at: tuple[str, ...]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        here = (*at, str(key))
        if _reason(here) or (".".join(here), value) in LATER:
            continue
        if isinstance(value, Mapping):
            kept[str(key)] = _semantic(value, here)
        elif here == ("trainer", "callbacks") and isinstance(value, (list, tuple)):
            # No callbacks at all, an empty list and a list of observers are the same run.
            kept[str(key)] = _without_later([entry for entry in value if not _observes(entry)], here) or None
        elif str(key) in _COUNT_OR_SHARE and isinstance(value, float) and value == 1.0:
            kept[str(key)] = "1.0: all"  # not 1: one batch
        else:
            kept[str(key)] = _without_later(value, here)
    return kept


def _without_later(value: Any, at: tuple[str, ...]) -> Any:
    """Of lists, as a mixture's sources, whose places in the list are no part of a dotted key."""
    if isinstance(value, (list, tuple)):
        return [_without_later(item, at) for item in value]
    if not isinstance(value, Mapping):
        return value
    left = {key: item for key, item in value.items() if (".".join((*at, str(key))), item) not in LATER}
    return {key: _without_later(item, (*at, str(key))) for key, item in left.items()}


@cache  # of the same few hundred keys for every cell of a grid
def _reason(path: tuple[str, ...]) -> str | None:
    for pattern, reason in NON_SEMANTIC:
        parts = pattern.split(".")
        if len(path) >= len(parts) and all(map(fnmatchcase, path, parts)):
            return reason
    return None


def _observes(entry: object) -> bool:
    class_path = entry.get("class_path", "") if isinstance(entry, Mapping) else entry
    return isinstance(class_path, str) and any(fnmatchcase(class_path, pattern) for pattern, _ in OBSERVERS)


def _plain(value: object, at: str) -> object:
    if value is None or isinstance(value, (str, bool, int)):  # first: nearly all are
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and not isinstance(value, Share) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{at}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    place = f" at {at.lstrip('.')}" if at else ""
    raise TypeError(f"{value!r}{place} is neither text, number, true/false, list nor mapping")
