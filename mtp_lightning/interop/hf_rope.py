"""Rotary positions in Hugging Face's config.json <-> `RopeScaling`. Both ways of writing them are read, that of
transformers 4 (`rope_theta`, `rope_scaling`) and that of 5 (`rope_parameters`)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, RopeScaling
from mtp_lightning.ranges import Range, check_value, declared

ORIGINAL = "original_max_position_embeddings"
ROPE_KEYS = {
    "factor": "factor",
    ORIGINAL: "original_context",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
}
"""Theirs -> ours, in `RopeScaling`."""
ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", ORIGINAL, "beta_fast", "beta_slow", "truncate", "attention_factor"),
}
NEEDED = ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor")
"""Numbers that a kind which has them cannot do without: `transformers` has no default for them."""
Mscale = Annotated[float, Range(least=0, most=1000)]


def read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """(theta, scaling), from either way of writing them.

    Args:
        config: config.json with `max_position_embeddings`, which has been looked at.

    Raises:
        InputError: positions that a model here does not have, a number that is missing or none; names its key.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    written = config.get(name) or {}
    if not isinstance(written, Mapping):
        raise InputError(f"{name} is {written!r:.80}: it has to be keys with their values")
    if name == "rope_parameters" and config.get("rope_scaling"):
        new, old = ({**config, other: None} for other in ("rope_scaling", "rope_parameters"))
        theta, scaling = read_rope(new)
        if read_rope({**old, "rope_theta": theta}) != (theta, scaling):
            raise InputError("rope_scaling and rope_parameters say different things: keep the one that is meant")
        return theta, scaling
    given = dict(written)
    theta = given.pop("rope_theta", config.get("rope_theta", 10_000.0))
    if config.get("rope_theta", theta) != theta:
        raise InputError(f"rope_theta is {config['rope_theta']}, and {name}.rope_theta {theta}")
    check_value("rope_theta", theta, declared(BackboneConfig)["rope_theta"])
    kind, *others = [given.pop(key) for key in ("rope_type", "type") if key in given] or ["default"]
    if any(other != kind for other in others) or kind not in [*ROPE_KINDS]:
        raise InputError(f"{name}.rope_type is {kind!r}: what a model here has is {', '.join(ROPE_KINDS)}")
    if given.pop("partial_rotary_factor", None) not in (None, 1):
        raise InputError(f"{name}.partial_rotary_factor: a model here rotates all coordinates")
    if ORIGINAL in ROPE_KINDS[kind]:
        given.setdefault(ORIGINAL, config["max_position_embeddings"])
    strict = {key for key in (*NEEDED, "truncate") if key in ROPE_KINDS[kind]}
    given = {key: value for key, value in given.items() if value is not None or key in strict}
    _check_numbers(name, kind, given, config["max_position_embeddings"])
    if kind == "yarn":
        _sharpen(given)
    unknown = sorted(given.keys() - set(ROPE_KINDS[kind]))
    if unknown:
        raise InputError(f"{name}.{unknown[0]} is {given[unknown[0]]!r:.80}: rope_type '{kind}' has no such number")
    try:
        return float(theta), RopeScaling(kind, **{ROPE_KEYS[key]: value for key, value in given.items()})
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_numbers(name: str, kind: str, given: dict[str, Any], made_for: int) -> None:
    """Every number of a kind is there and is one. A factor that yarn has as null is what the context was made longer
    by, as in `transformers`."""
    numbers = {key: declared(RopeScaling).get(ROPE_KEYS[key]) for key in ROPE_KINDS[kind]}
    if ORIGINAL in numbers:
        numbers[ORIGINAL] = Annotated[int, Range(least=1, most=10**9)]
        check_value(f"{name}.{ORIGINAL}", given[ORIGINAL], numbers[ORIGINAL])
    if kind == "yarn":
        numbers |= {"mscale": Mscale, "mscale_all_dim": Mscale}
        if given.get("factor", 1) is None:
            given["factor"] = made_for / given[ORIGINAL]
    for key, hint in numbers.items():
        if key in NEEDED and key not in given:
            raise InputError(f"{name}.{key} is missing: rope_type '{kind}' cannot do without it")
        if key == "truncate" and type(given.get(key, True)) is not bool:
            raise InputError(f"{name}.truncate is {given[key]!r:.80}: it has to be true or false")
        if key in given and hint is not None:
            check_value(f"{name}.{key}", given[key], hint)


def _sharpen(given: dict[str, Any]) -> None:
    """Two more numbers that yarn's attention factor may be made of become that factor (as DeepSeek writes it)."""
    mscale, over = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    more = 0.1 * math.log(given["factor"])
    if mscale and over and "attention_factor" not in given:
        given["attention_factor"] = (more * mscale + 1) / (more * over + 1)
    if "attention_factor" in given and math.isclose(given["attention_factor"], more + 1, rel_tol=1e-12):
        del given["attention_factor"]  # one way to say it


def rope_scaling(scaling: RopeScaling) -> dict[str, Any] | None:
    """The entry `rope_scaling` of config.json."""
    if scaling.kind == "default":
        return None
    values = {theirs: getattr(scaling, ROPE_KEYS[theirs]) for theirs in ROPE_KINDS[scaling.kind]}
    return {"rope_type": scaling.kind, **{key: value for key, value in values.items() if value is not None}}
