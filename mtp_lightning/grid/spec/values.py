"""Keys and values of a grid file: which values are configuration files, and what all of them are called."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

from mtp_lightning.errors import did_you_mean
from mtp_lightning.grid.spec.signature import canonical

SEED = "seed"
"""What a cell's seed is called in labels and expressions."""


def is_file(value: object) -> TypeGuard[str]:
    """An axis value ending in .yaml is a configuration file, merged after `configs` as one more `-c` would be."""
    return isinstance(value, str) and value.endswith(".yaml")


def is_number(value: object) -> TypeGuard[int | float]:
    """Python takes true and false for numbers too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its shortest dotted ending that no other key shares: `model.heads.n_future` -> `n_future`."""
    keys = list(keys)
    owners = endings([*keys, SEED])

    def shortest(key: str) -> str:
        parts = key.split(".")
        names = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        return next((name for name in names if len(owners[name]) == 1), key)

    return {key: shortest(key) for key in keys}


def value_names(values: Iterable[object]) -> dict[str, str]:
    """Canonical text of a value -> its name: a configuration file goes by its stem where no other has the same,
    anything else by its text."""
    texts = {canonical(value): value for value in values}
    files = [value for value in texts.values() if is_file(value)]
    stems = [Path(file).stem for file in files]
    unique = {file: stem for file, stem in zip(files, stems) if stems.count(stem) == 1}
    return {text: unique.get(name := shown(value), name) for text, value in texts.items()}


def endings(keys: Iterable[str]) -> dict[str, list[str]]:
    """Every dotted ending -> the keys that end so."""
    owners: dict[str, list[str]] = {}
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts)):
            owners.setdefault(".".join(parts[start:]), []).append(key)
    return owners


def nearest_key(name: str, keys: Iterable[str]) -> str:
    """The end of a message about an unknown name: the key that ends so or looks so, else all there are."""
    keys = list(keys)
    owners = endings(keys).get(name, [])
    if len(owners) == 1:
        return f"; did you mean '{owners[0]}'?"
    return did_you_mean(name, keys) or f"; the axes are {', '.join(keys)}"
