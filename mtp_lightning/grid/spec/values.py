"""Keys and values of a grid file: their kinds, and what they are called in labels, expressions and messages."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mtp_lightning.errors import InputError, did_you_mean, printable
from mtp_lightning.grid.spec.signature import canonical

SEED = "seed"
"""The name of a cell's seed in labels and expressions."""


def look_up(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key.

    Raises:
        InputError: there is no such key.
    """
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise InputError(f"no key '{key}' in the configuration")
        node = node[part]
    return node


def is_file(value: object) -> TypeGuard[str]:
    """An axis value ending in .yaml is a configuration file, merged after `configs` as one more `-c` would be."""
    return isinstance(value, str) and value.endswith(".yaml")


def is_number(value: object) -> TypeGuard[int | float]:
    """For Python true and false are numbers too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() else printable(canonical(value))


def short_names(keys: Iterable[str], stages: Sequence[str] = ()) -> dict[str, str]:
    """Key -> its shortest dotted ending that no other key shares: `model.heads.n_future` -> `n_future`.

    Args:
        stages: earlier ones, whose axes are `pretrain.model.heads.n_future` -> `pretrain.n_future`.
    """
    keys = list(keys)
    owners = endings([*keys, SEED], stages)

    def shortest(key: str) -> str:
        return next((name for name in reversed(_names(key, stages)) if len(owners[name]) == 1), key)

    return {key: shortest(key) for key in keys}


def value_names(values: Iterable[object]) -> dict[str, str]:
    """Canonical text of a value -> its name: the stem of a configuration file where no other has the same, the keys of
    a mapping with their values (`kind:markov,n_future:4`), else its text."""
    texts = {canonical(value): value for value in values}
    files = [value for value in texts.values() if is_file(value)]
    stems = [Path(file).stem for file in files]
    unique = {file: stem for file, stem in zip(files, stems) if stems.count(stem) == 1}
    names = {text: unique.get(name := _name(value), name) for text, value in texts.items()}
    once = Counter(names.values())
    return {text: name if once[name] == 1 else shown(texts[text]) for text, name in names.items()}


def _name(value: object) -> str:
    return ",".join(_pairs(value)) if isinstance(value, Mapping) and value else shown(value)


def _pairs(value: Mapping[Any, Any], before: str = "") -> Iterator[str]:
    """`weights.lam:1` of {weights: {lam: 1}}."""
    for key, inner in sorted(value.items(), key=lambda item: str(item[0])):
        if isinstance(inner, Mapping) and inner:
            yield from _pairs(inner, f"{before}{key}.")
        else:
            yield f"{printable(before + str(key))}:{shown(inner)}"


def endings(keys: Iterable[str], stages: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every dotted ending -> the keys that end with it; an axis of an earlier stage keeps the stage's name."""
    owners: dict[str, list[str]] = {}
    for key in keys:
        for name in _names(key, stages):
            owners.setdefault(name, []).append(key)
    return owners


def _names(key: str, stages: Sequence[str]) -> list[str]:
    """The longest first."""
    stage, *parts = key.split(".") if key.partition(".")[0] in stages else ["", *key.split(".")]
    return [".".join(filter(None, [stage, *parts[start:]])) for start in range(len(parts))]


def nearest_key(name: str, keys: Iterable[str], stages: Sequence[str] = ()) -> str:
    """The end of a message about an unknown name: the nearest key, else all keys."""
    keys = list(keys)
    owners = endings(keys, stages).get(name, [])
    if len(owners) == 1:
        return f"; did you mean '{owners[0]}'?"
    return did_you_mean(name, keys) or f"; the axes are {', '.join(keys)}"
