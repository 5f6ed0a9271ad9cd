"""A dataclass as a JSON file, and back: the file gives the dataclass, or what is wrong with it is said."""

import functools
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mtp_lightning.files import DamagedError, read_json

T = TypeVar("T")
_LARGEST = 2**63
MEASURED = "loss"
"""The field that may be NaN or infinite, beside the values of mappings: what was measured, and no time or count."""


def read_record(cls: type[T], path: Path) -> T | None:
    """The instance of `cls` that a JSON file holds; None where there is no file. Keys that the class does not know are
    ignored, so that a later version may add some.

    Raises:
        DamagedError: anything else; names the file, and the key that is absent or of another type.
    """
    raw = read_json(path)
    return None if raw is None else _build(cls, path, raw, "")


def _build(cls: type[T], path: Path, raw: Mapping[str, Any], prefix: str) -> T:
    hints, known = _hints(cls), {}  # type: ignore[arg-type]  # mypy: classes of dataclasses cannot be hashed
    for field in fields(cls):  # type: ignore[arg-type]  # mypy: not known to be a dataclass
        if field.name in raw:
            known[field.name] = _value(path, prefix + field.name, raw[field.name], hints[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DamagedError(path, f"has no '{prefix}{field.name}'")
    return cls(**known)


def _value(path: Path, key: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, path, value, f"{key}.")
    if not _fits(value, hint, key == MEASURED):
        raise DamagedError(path, f"its '{key}' is {_shown(value)}, and has to be {_named(hint)}")
    return _converted(value, hint)


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: object, hint: Any, measured: bool) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, option, measured) for option in get_args(hint))
    if get_origin(hint) is dict:
        of = get_args(hint)[1]
        return isinstance(value, dict) and all(type(item) is of or _fits(item, of, True) for item in value.values())
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0], measured) for item in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if hint is float:
        return _fits(value, int, measured) or (isinstance(value, float) and (measured or math.isfinite(value)))
    return isinstance(value, hint)


def _converted(value: Any, hint: Any) -> Any:
    """JSON writers drop the `.0` of a float, and JSON has no tuples."""
    if get_origin(hint) is dict:
        of = get_args(hint)[1]
        return {key: item if type(item) is of else _converted(item, of) for key, item in value.items()}
    if get_origin(hint) is tuple:
        return tuple(value)
    is_float = hint is float or float in get_args(hint)
    return float(value) if is_float and type(value) is int else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
