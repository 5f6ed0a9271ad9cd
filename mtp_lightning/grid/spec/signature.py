"""A cell's identity: a hash of everything that can change its result, and of nothing else.

The FULL resolved configuration is hashed, never its difference to the defaults: were it the difference, a changed
default would silently pass old results off as new ones. What cannot change a result is declared, with reasons, below
and in `tracking.params.NON_SEMANTIC`.
"""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from mtp_lightning.config.keys.linked_keys import SEED_KEY
from mtp_lightning.tracking.params import non_semantic, rounds_heads

SCHEMA = 1
"""Part of every hash. Raise it when the meaning of a configuration changes without its text changing."""

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
    model, trainer = config.get("model"), config.get("trainer")
    if (
        isinstance(model, Mapping)
        and isinstance(trainer, Mapping)
        and rounds_heads(model.get("recompute"), trainer.get("precision"))
    ):
        semantic["model"]["recompute"] = "heads"
    if without_seed:
        semantic.pop(SEED_KEY, None)
    text = canonical({"schema": SCHEMA, "config": semantic})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def canonical(value: object) -> str:
    """One text for equal values: keys sorted, and 1 equal to 1.0 (YAML writers do not mean a difference, and a
    configuration that was typed has the right type already). True is not 1, and null is not a missing key."""
    return json.dumps(_plain(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _semantic(node: Mapping[str, Any], at: tuple[str, ...]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        here = (*at, str(key))
        if non_semantic(here) or (".".join(here), value) in LATER:
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
